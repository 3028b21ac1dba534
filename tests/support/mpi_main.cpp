#include "tests/support/mpi_main.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>

namespace convoy::testing {
namespace {

comm::Communicator* the_world = nullptr;

// Ranks that fail apart would wait for each other for ever: the first failed case ends all of them,
// a fatal failure (or an exception) at once, others at the end of their case.
class EndAllRanks : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    fmt::print(stderr, "rank {}: {}:{}: {}\n", world().rank(),
               result.file_name() ? result.file_name() : "?", result.line_number(),
               result.message());
    if (result.fatally_failed()) world().abort(1, "a test failed on this rank");
  }
  void OnTestEnd(const ::testing::TestInfo& test) override {
    if (test.result()->Failed())
      world().abort(1, fmt::format("{} failed on this rank", test.name()));
  }
};

}  // namespace

comm::Communicator& world() {
  return *the_world;
}

}  // namespace convoy::testing

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const std::unique_ptr<convoy::comm::Communicator> communicator =
      convoy::comm::make_communicator();
  convoy::testing::the_world = communicator.get();
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (communicator->rank() != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new convoy::testing::EndAllRanks);
  const int result = RUN_ALL_TESTS();
  return communicator->finish(result);
}
