// Where the time of a step goes, each part against what the machine could do.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ops/network.h"

namespace convoy::trainer {

struct ProfileInput {
  const ops::Graph& graph;  // fused
  int64_t batch;            // samples of one lane's network
  DType type;
  bool training;
  ops::NetworkTimes seconds;                                  // of one step, mean over the lanes
  double step = 0, reduce_wait = 0, prepare = 0, update = 0;  // seconds of one step
  double flops_per_second = 0, bytes_per_second = 0;          // of one lane: matrix product, copy
};

// A node in one direction: batch norm's two passes are one row.
struct ProfileRow {
  std::string name, kind;
  bool backward = false;
  double seconds = 0, flops = 0, bytes = 0;
  // What the row would take at the machine's rates: arithmetic or memory, whichever is slower.
  double limit_seconds = 0;
};
std::vector<ProfileRow> profile_rows(const ProfileInput& input);

std::string to_text(const ProfileInput& input);
nlohmann::ordered_json to_json(const ProfileInput& input);

}  // namespace convoy::trainer
