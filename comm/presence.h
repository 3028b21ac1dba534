// What this rank is doing, as its threads say it and as its watchdog's thread asks for it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <string>

#include "comm/verdict.h"
#include "ops/core/clock.h"

namespace convoy::comm {

// Thread-safe; nothing blocks for longer than a short mutex, but sample() and set_words(), which
// wait for the words of others.
class Presence {
 public:
  using Words = std::function<std::string()>;
  using Wait = std::list<Clock::time_point>::iterator;

  void enter(Phase phase, uint64_t step, int bucket);
  void progress();
  void set_rounds(uint32_t rounds);
  Wait begin_input();
  void end_input(Wait wait);
  void begin_saving();
  void end_saving();
  // Empty words: none. When it returns, the earlier ones, which it returns, are no longer asked.
  Words set_words(Phase phase, Words words);

  // `waiting`: Communicator::waiting(). For one thread.
  RankState sample(uint64_t waiting);

 private:
  Phase phase_now() const { return inputs_.empty() ? phase_ : Phase::kInput; }
  // Books the time since the last change.
  void account(Clock::time_point now);
  std::string words_of(Phase phase, double seconds);

  mutable std::mutex mutex_;  // guards all up to the next comment
  Phase phase_ = Phase::kStart;
  uint64_t step_ = 0;
  int bucket_ = -1;
  Clock::time_point since_ = Clock::now();
  std::list<Clock::time_point> inputs_;  // when each waiting thread began, oldest first
  int saves_ = 0;
  Clock::time_point saving_since_;
  Clock::time_point booked_ = Clock::now();
  double working_[2] = {0, 0}, reducing_ = 0;
  uint32_t rounds_ = 0;

  std::mutex words_mutex_;
  std::array<Words, 7> words_;  // by phase

  // Of the sampling thread.
  uint64_t last_waiting_ = 0;
  Clock::time_point waiting_changed_;
};

}  // namespace convoy::comm
