// A small state to save, and what a test asks of the folder it is saved in.
#pragma once

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "ops/core/log.h"
#include "trainer/checkpoints/checkpoint.h"

namespace convoy::test {

// Tensors that point into its own memory; `floats` of weights.
struct TestState {
  std::vector<float> weight, mean, momentum;

  explicit TestState(float value, size_t floats = 16)
      : weight(floats, value), mean{0.5f, value}, momentum(floats, -value) {}

  trainer::CheckpointState at(uint64_t step) const {
    using trainer::StoredType;
    const auto n = static_cast<int64_t>(weight.size());
    trainer::CheckpointState state;
    state.facts.step = step;
    state.facts.job_digest = "jobdigest";
    state.facts.job = "name: \"a\"\n";
    state.model.tensors = {
        {"conv.weight", StoredType::kF32, {n}, std::as_bytes(std::span(weight))},
        {"bn.running_mean", StoredType::kF32, {2}, std::as_bytes(std::span(mean))}};
    state.optimizer.tensors = {
        {"momentum.conv.weight", StoredType::kF32, {n}, std::as_bytes(std::span(momentum))}};
    return state;
  }
};

inline std::string checkpoint_of(const std::string& out, uint64_t step) {
  return fmt::format("{}/checkpoints/step-{:010d}", out, step);
}

inline std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// Collects log lines of all threads while it lives.
class LogLines {
 public:
  LogLines() {
    {
      const std::lock_guard lock(mutex());
      lines().clear();
    }
    log::set_sink([](log::Level, const std::string& line) {
      const std::lock_guard lock(mutex());
      lines() += line + "\n";
    });
  }
  ~LogLines() { log::set_sink(nullptr); }
  LogLines(const LogLines&) = delete;
  LogLines& operator=(const LogLines&) = delete;

  static std::string text() {
    const std::lock_guard lock(mutex());
    return lines();
  }
  static bool has(std::string_view words) { return text().find(words) != std::string::npos; }

 private:
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static std::string& lines() {
    static std::string instance;
    return instance;
  }
};

}  // namespace convoy::test
