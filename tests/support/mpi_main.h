// GoogleTest on several ranks: link mpi_main.cpp instead of gtest_main (convoy_mpi_test does).
// Every rank runs the same cases; when a case fails on one rank, all ranks end and mpirun fails.
#pragma once

#include "comm/communicator.h"

namespace convoy::testing {

// The ranks this test runs on; one where it was started without mpirun.
comm::Communicator& world();

}  // namespace convoy::testing
