#include "trainer/checkpoints/checkpoint_writer.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/core/trace.h"
#include "trainer/base/file.h"

namespace convoy::trainer {
namespace {

using std::chrono::seconds;

constexpr seconds kFirstRetry{1}, kLongestRetry{300};
constexpr int kLastAttempts = 3;
// Of headers, manifest and folders, beside the tensors.
constexpr uint64_t kOverhead = uint64_t{64} << 10;

double mib(uint64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

uint64_t bytes_of(const CheckpointState& state) {
  uint64_t bytes = kOverhead;
  for (const TensorList* list : {&state.model, &state.optimizer, &state.ema})
    for (const NamedTensor& tensor : list->tensors) bytes += tensor.bytes.size();
  return bytes;
}

seconds pause_after(uint64_t failures) {
  return std::min(kLongestRetry, kFirstRetry * (1 << std::min<uint64_t>(failures - 1, 10)));
}

}  // namespace

std::string check_space(const std::string& out_dir, uint64_t bytes, uint64_t free, size_t standing,
                        const RetentionPolicy& policy) {
  const uint64_t more = free / bytes;
  const uint64_t fit = standing + more;
  const std::string numbers =
      fmt::format("{}: a checkpoint takes {:.1f} MiB, {:.1f} MiB are free and {} lie there",
                  printable(out_dir), mib(bytes), mib(free), standing);
  if (more < 1 || fit < 2)
    fail(ExitCode::kIo,
         "{}: no room for one beside the one before; free some space or choose another --out",
         numbers);
  const uint64_t wanted = uint64_t{std::max(policy.keep, 1u)} + (policy.keep_best ? 1 : 0) + 1;
  if (fit >= wanted) return "";
  return fmt::format(
      "{}, but checkpoint.keep: {}{} needs room for {} (one of them being written); lower it or "
      "free {:.1f} MiB",
      numbers, policy.keep, policy.keep_best ? " and the best" : "", wanted,
      mib((wanted - standing) * bytes - free));
}

CheckpointWriter::CheckpointWriter(std::string out_dir, RetentionPolicy policy,
                                   std::function<void()> expect_ours)
    : out_dir_(std::move(out_dir)), policy_(policy), expect_ours_(std::move(expect_ours)) {}

CheckpointWriter::~CheckpointWriter() {
  if (in_flight_.valid()) in_flight_.wait();
}

void CheckpointWriter::prove(const CheckpointState& state) {
  make_folder(out_dir_);
  const std::string warning = check_space(out_dir_, bytes_of(state), free_bytes(out_dir_),
                                          list_checkpoints(out_dir_).size(), policy_);
  if (!warning.empty()) log::warning("{}", warning);
  const TrialSave trial = trial_save(out_dir_, state);
  log::debug("trial save: {:.1f} MiB in {:.3f} s, read back in {:.3f} s", mib(trial.bytes),
             trial.save_seconds, trial.load_seconds);
  const std::lock_guard lock(mutex_);
  save_seconds_ = std::max(save_seconds_, trial.save_seconds);
}

void CheckpointWriter::save(const CheckpointState& state) {
  wait();
  try {
    CheckpointState copy{state.facts, copy_of(state.model), copy_of(state.optimizer),
                         copy_of(state.ema)};
    in_flight_ = std::async(std::launch::async, [this, copy = std::move(copy)] { attempt(copy); });
  } catch (const std::exception& e) {  // no memory, no thread
    note_failure(state.facts.step, e.what());
  }
}

bool CheckpointWriter::wait() {
  if (in_flight_.valid()) in_flight_.get();
  const std::lock_guard lock(mutex_);
  return failures_in_a_row_ == 0;
}

bool CheckpointWriter::retry_due() {
  if (in_flight_.valid() && in_flight_.wait_for(seconds(0)) != std::future_status::ready)
    return false;
  const std::lock_guard lock(mutex_);
  return failures_in_a_row_ > 0 && Clock::now() >= retry_at_;
}

void CheckpointWriter::finish(const std::function<CheckpointState()>& state) {
  bool saved = wait();
  for (int i = 1; i < kLastAttempts && !saved; ++i) {
    std::this_thread::sleep_for(kFirstRetry * i);
    saved = attempt(state());
  }
  if (saved) return;
  const std::lock_guard lock(mutex_);
  fail(ExitCode::kIo, "the last state could not be saved: {}; {}", last_reason_, what_stands());
}

std::optional<std::string> CheckpointWriter::take_failure() {
  const std::lock_guard lock(mutex_);
  return std::exchange(failure_, std::nullopt);
}

uint64_t CheckpointWriter::failures() const {
  const std::lock_guard lock(mutex_);
  return failures_;
}

double CheckpointWriter::save_seconds() const {
  const std::lock_guard lock(mutex_);
  return save_seconds_;
}

bool CheckpointWriter::attempt(const CheckpointState& state) {
  struct Telling {
    explicit Telling(const std::function<void(bool)>& t) : tell(t) { tell(true); }
    ~Telling() { tell(false); }
    const std::function<void(bool)>& tell;
  } const telling(tell_);
  const auto start = Clock::now();
  try {
    const TraceRange trace("checkpoint");
    save_checkpoint(out_dir_, state, expect_ours_);
  } catch (const std::exception& e) {
    note_failure(state.facts.step, e.what());
    return false;
  }
  {
    const std::lock_guard lock(mutex_);
    save_seconds_ = std::max(save_seconds_, seconds_since(start));
    if (failures_in_a_row_ > 0)
      log::info("step {}: saved, after {} save(s) that failed", state.facts.step,
                failures_in_a_row_);
    failures_in_a_row_ = 0;
  }
  try {
    apply_retention(out_dir_, policy_, state.facts.step);
  } catch (const std::exception& e) {  // what is whole stays whole
    log::warning("an old checkpoint was not removed: {}", e.what());
  }
  return true;
}

void CheckpointWriter::note_failure(uint64_t step, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  ++failures_;
  const seconds pause = pause_after(++failures_in_a_row_);
  retry_at_ = Clock::now() + pause;
  last_reason_ = reason;
  failure_ = fmt::format("step {}: not saved: {}", step, reason);
  log::error("{} ({} in a row); {}; trying again in {} s", *failure_, failures_in_a_row_,
             what_stands(), pause.count());
}

std::string CheckpointWriter::what_stands() const {
  try {
    const std::vector<std::string> paths = list_checkpoints(out_dir_);
    if (!paths.empty())
      return fmt::format("{} stands", std::filesystem::path(paths.back()).filename().string());
  } catch (const Error&) {  // it cannot be listed either
  }
  return "no checkpoint stands";
}

}  // namespace convoy::trainer
