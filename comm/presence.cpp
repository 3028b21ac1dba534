#include "comm/presence.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace convoy::comm {
namespace {

// Nobody asks what a phase of less than this is about.
constexpr double kWorthWords = 1;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void Presence::account(Clock::time_point now) {
  const double seconds = seconds_between(booked_, now);
  booked_ = now;
  const Phase phase = phase_now();
  // Evaluation is shared out differently, so it does not count as a rank's time of a step.
  if (phase == Phase::kInput && phase_ == Phase::kCompute) working_[0] += seconds;
  if (phase == Phase::kCompute) working_[1] += seconds;
  if (phase == Phase::kReduce) reducing_ += seconds;
}

void Presence::enter(Phase phase, uint64_t step, int bucket) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  account(now);
  phase_ = phase;
  step_ = step;
  bucket_ = bucket;
  since_ = now;
}

void Presence::progress() {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  since_ = now;
}

void Presence::set_rounds(uint32_t rounds) {
  const std::lock_guard lock(mutex_);
  rounds_ = rounds;
}

Presence::Wait Presence::begin_input() {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  account(now);
  return inputs_.insert(inputs_.end(), now);
}

void Presence::end_input(Wait wait) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  account(now);
  inputs_.erase(wait);
  since_ = now;
}

void Presence::begin_saving() {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  if (saves_++ == 0) saving_since_ = now;
}

void Presence::end_saving() {
  const std::lock_guard lock(mutex_);
  --saves_;
}

Presence::Words Presence::set_words(Phase phase, Words words) {
  const std::lock_guard lock(words_mutex_);
  return std::exchange(words_.at(static_cast<size_t>(phase)), std::move(words));
}

std::string Presence::words_of(Phase phase, double seconds) {
  if (seconds < kWorthWords) return "";
  const std::lock_guard lock(words_mutex_);
  const Words& words = words_.at(static_cast<size_t>(phase));
  return words ? words() : "";
}

RankState Presence::sample(uint64_t waiting) {
  RankState state;
  int bucket = -1;
  {
    const std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    account(now);
    if (waiting != last_waiting_) {
      last_waiting_ = waiting;
      waiting_changed_ = now;
    }
    state.phase = phase_now();
    state.step = step_;
    state.waits = state.phase == Phase::kReduce || (waiting != 0 && state.phase != Phase::kInput);
    const auto since = state.phase == Phase::kInput ? inputs_.front() : since_;
    // Time that it has waited for others is not its own.
    state.seconds = seconds_between(std::max(since, waiting_changed_), now);
    if (saves_ > 0) state.saving = seconds_between(saving_since_, now);
    std::copy_n(working_, 2, state.working);
    state.reducing = reducing_;
    state.rounds = rounds_;
    bucket = bucket_;
  }
  if (state.phase == Phase::kReduce && bucket >= 0) state.detail = fmt::format("bucket {}", bucket);
  if (const std::string words = words_of(state.phase, state.seconds); !words.empty())
    state.detail = words;
  return state;
}

}  // namespace convoy::comm
