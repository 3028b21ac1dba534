// Where a thread's time goes while it makes samples; measured only where somebody asks for it.
#pragma once

#include "ops/core/clock.h"

namespace convoy::data {

struct SampleTimes {
  // Seconds. decode: header and pixels. What is in none of them is the rest of a sample's work.
  double read = 0, decode = 0, resize = 0;

  SampleTimes& operator+=(const SampleTimes& other) {
    read += other.read;
    decode += other.decode;
    resize += other.resize;
    return *this;
  }
  SampleTimes& operator-=(const SampleTimes& other) {
    read -= other.read;
    decode -= other.decode;
    resize -= other.resize;
    return *this;
  }
};

// Books the time between its calls. Where it is off, no clock is read.
class Stopwatch {
 public:
  explicit Stopwatch(bool on) : on_(on) { skip(); }
  // From here on.
  void skip() {
    if (on_) last_ = Clock::now();
  }
  // Adds what has passed since the last call.
  void book(double& seconds) {
    if (!on_) return;
    const Clock::time_point now = Clock::now();
    seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  bool on_;
  Clock::time_point last_;
};

}  // namespace convoy::data
