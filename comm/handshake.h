// At the start all ranks tell each other what they run; one that differs is named before it can
// spoil the result.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace convoy::comm {

// (key, value), e.g. ("version", "0.1.0"), ("job digest", ...), ("instruction set", "avx512").
using Facts = std::vector<std::pair<std::string, std::string>>;

// Collective. Throws the same Error (kFault) on all ranks, naming every rank that differs from the
// majority: key, both values, hosts. Equal counts: the side of the lowest rank is taken as right.
void handshake(Communicator& communicator, const Facts& facts);

// The text of that error; "" where all ranks agree. Element r is rank r's.
std::string disagreement(const std::vector<Facts>& facts, const std::vector<std::string>& hosts);

}  // namespace convoy::comm
