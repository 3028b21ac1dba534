// Which parameters of its network a job trains, from when on, and with which factors: the job's
// patterns (proto/job.proto, Transfer) against the names that there are.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "ops/graph.h"
#include "trainer/job/job.h"
#include "trainer/job/lr_schedule.h"

namespace convoy::trainer {

// Does all of `text` fit the pattern, where * is any text and ? any one character?
bool fits(std::string_view pattern, std::string_view text);

// Does the pattern fit the name or that of anything it lies in ("layer1.0" of "layer1.0.bn1.bias")?
bool takes(std::string_view pattern, std::string_view name);

// From this step on exactly these parameters are frozen.
struct FrozenFrom {
  uint64_t step = 0;
  double epoch = 0;  // of the job, that begins there
  std::set<std::string> frozen;
};

struct TrainingPlan {
  std::vector<FrozenFrom> phases;  // steps rising; the first is 0
  std::map<std::string, ops::ParameterFactors> factors;

  // The parameters that are frozen in this step.
  const std::set<std::string>& frozen_at(uint64_t step) const;
  // The phase in which most is trained.
  const FrozenFrom& last() const { return phases.back(); }
};

// Throws one Error (kBadJob) that names every pattern that takes nothing, each with the nearest
// name, and where nothing would be trained.
TrainingPlan plan_training(const Job& job, const ops::Graph& graph, const RunLength& length);

// The blocks that transfer.train_last_blocks counts: names of parameters, in the order of the
// model.
std::vector<std::vector<std::string>> blocks_of(const ops::Graph& graph);

// "x of y parameters are trained", in elements, where something is frozen; else "y parameters".
std::string trained_share(const ops::ParameterLayout& layout, const std::set<std::string>& frozen);

// What `pattern` may have meant: the nearest of all names and of what they lie in.
std::string nearest_name(const std::string& pattern, const std::vector<std::string>& names);

}  // namespace convoy::trainer
