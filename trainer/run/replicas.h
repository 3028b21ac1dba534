// All ranks hold the same bits (law 1). Where one does not, its memory or its arithmetic has failed
// silently: this finds which rank and which tensor, from 64-bit digests.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "trainer/engine/engine.h"

namespace convoy::trainer {

using Digests = std::vector<uint64_t>;  // of each tensor

// Which ranks differ from the majority of all ranks, tensor by tensor.
struct Difference {
  std::vector<int> ranks;       // that differ; all of them where no value has a majority
  std::vector<size_t> tensors;  // in which they do
  bool decided = true;          // false: no majority in at least one tensor

  bool all_equal() const { return tensors.empty(); }
};
// digests[r] are rank r's.
Difference compare_digests(const std::vector<Digests>& digests);

// "rank 2 (node7) has other bits than the other ranks in layer1.0.conv1.weight, ... and 3 more"
std::string to_text(const Difference& difference, const std::vector<std::string>& names,
                    const std::vector<std::string>& hosts,
                    const std::string& others = "the other ranks");

// One number for a list of digests.
uint64_t joined(const Digests& digests);

// Every rank's digests, in order of rank. Collective.
std::vector<Digests> gather(comm::Communicator& communicator, const Digests& mine);

// Compares the replicas of a run. What it returns is the same on all ranks.
//
// Two ranks have no majority. They digest their state right before every update, so that the first
// update before which they differed is known: what the wrong one computed has not reached the
// other's state yet. When the run has gone back and comes by that update again, the replay, which
// is exact, says whose digests were wrong.
class Replicas {
 public:
  // What must be the same on all ranks beside the engine's state, which follows from it: it is
  // named first.
  struct Beside {
    std::vector<std::string> names;
    std::function<Digests()> digests;  // of each name
  };

  // every: steps between comparisons; 0: none but those that are asked for.
  Replicas(comm::Communicator& communicator, Engine& engine, uint32_t every, Beside beside);

  // Between compute and update of a step; `done` steps are done.
  void before_update(uint64_t done);
  // Collective; after the update: `done` counts it. Compares where that is due. Returns a line
  // naming rank and tensor where replicas differ; then the state is not to be trusted on any rank.
  std::optional<std::string> after_update(uint64_t done);
  // Collective. Compares now.
  std::optional<std::string> compare(uint64_t done);
  // The run goes on from the state after `done` steps.
  void went_back(uint64_t done);
  // Who was wrong, as the replay has found since the last call, or that it cannot say.
  std::optional<std::string> take_judgement();

 private:
  struct Noted {
    uint64_t done;  // steps
    Digests digests;
  };
  struct Dispute {
    uint64_t done;                 // steps
    std::vector<Digests> digests;  // of each rank
  };

  Digests digests() const;
  std::vector<std::string> names() const;
  bool compares() const { return communicator_.size() > 1; }
  void settle(uint64_t done);
  std::string find_first_difference();

  comm::Communicator& communicator_;
  Engine& engine_;
  const uint32_t every_;
  const Beside beside_;
  std::vector<Noted> noted_;  // since the last comparison; the last one is of now
  std::optional<Dispute> dispute_;
  std::optional<std::string> judgement_;
};

}  // namespace convoy::trainer
