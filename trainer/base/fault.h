// Deliberate faults, for tests of how a run survives them:
//   CONVOY_ALLOW_FAULTS=1 convoy train ... --fault "rank=2 step=40 kind=kill"
// Each happens once, but for kind=slow. A build with -DCONVOY_FAULTS=OFF (packages) refuses all.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace convoy::trainer {

enum class FaultKind {
  kKill,     // SIGKILL of the process
  kStop,     // SIGSTOP of it
  kThrow,    // an exception
  kHang,     // the thread sleeps for ever
  kSlow,     // the thread sleeps for `seconds`, `count` times from `step` on
  kNan,      // a float of `what` becomes NaN
  kBitflip,  // a bit of `what` is flipped
  kEnospc,   // of the file calls of checkpoints that follow, number `call` ... `call + count - 1`
  kEio,      // fail (no space, I/O error) or transfer less than was asked for
  kShort,
};

// Where in a step.
enum class FaultPoint { kStart, kInput, kCompute, kReduce, kSave, kEvaluate };

// What kNan and kBitflip change.
enum class FaultTarget {
  kWeights,
  kMomentum,
  kRunning,
  kEma,
  kGradient,  // as a worker contributes it
  kSum,       // of the gradients, as this rank has received it
  kPlateau,   // state of the schedule; its bit `bit` is flipped
  kSkips,     // of the run; likewise
};

struct Fault {
  FaultKind kind = FaultKind::kKill;
  int rank = 0;
  uint64_t step = 0;  // steps done before: the first one is 0
  FaultPoint at = FaultPoint::kCompute;
  double seconds = 1;
  FaultTarget what = FaultTarget::kWeights;
  uint64_t index = 0;            // of the float, modulo how many there are
  int bit = 30;                  // 0 to 31
  uint64_t call = 1, count = 1;  // count=0: for ever (file calls)
};

// Throws Error (kUsage) where the text makes no sense.
Fault parse_fault(const std::string& text);

// Those of one rank.
class Faults {
 public:
  // Throws Error (kUsage) where one makes no sense, where CONVOY_ALLOW_FAULTS is not 1 and where
  // this build has no faults.
  explicit Faults(const std::vector<std::string>& texts);

  // Until then nothing happens.
  void set_rank(int rank) { rank_ = rank; }

  // kKill, kStop, kThrow, kHang, kSlow and the file faults that are due here happen. Any thread.
  void at(FaultPoint point, uint64_t step);
  // The kNan or kBitflip that is due in this step, once; null: none. Any thread.
  const Fault* change(uint64_t step);

 private:
  struct Armed {
    Armed(const Fault& f, uint64_t times) : fault(f), left(times) {}
    const Fault fault;
    std::atomic<uint64_t> left;  // times that it will still happen
  };
  std::deque<Armed> armed_;
  int rank_ = -1;
};

}  // namespace convoy::trainer
