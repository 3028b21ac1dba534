// Where a thread's time goes while it makes samples; measured only where somebody asks for it.
#pragma once

#include <ctime>

#include "ops/core/clock.h"

namespace convoy::data {

// Seconds of the clock, and those of them that the thread had a CPU.
struct Spent {
  double seconds = 0, cpu_seconds = 0;

  Spent& operator+=(const Spent& other) {
    seconds += other.seconds;
    cpu_seconds += other.cpu_seconds;
    return *this;
  }
  Spent& operator-=(const Spent& other) {
    seconds -= other.seconds;
    cpu_seconds -= other.cpu_seconds;
    return *this;
  }
};

// decode: header and pixels; what is in none of read, decode and resize is the rest of a sample's
// work. Of decode, where our own decoder of JPEGs did it: Huffman decoding, and from there to
// pixels (inverse DCT, chroma, colour).
struct SampleTimes {
  Spent read, decode, resize;
  Spent entropy, pixels;

  SampleTimes& operator+=(const SampleTimes& other) {
    read += other.read;
    decode += other.decode;
    resize += other.resize;
    entropy += other.entropy;
    pixels += other.pixels;
    return *this;
  }
  SampleTimes& operator-=(const SampleTimes& other) {
    read -= other.read;
    decode -= other.decode;
    resize -= other.resize;
    entropy -= other.entropy;
    pixels -= other.pixels;
    return *this;
  }
};

// Books what the calling thread spends between its calls. Where it is off, no clock is read.
class Stopwatch {
 public:
  explicit Stopwatch(bool on) : on_(on) { skip(); }
  // From here on.
  void skip() {
    if (on_) last_ = now();
  }
  // Adds what has passed since the last call.
  void book(Spent& spent) {
    if (!on_) return;
    const Spent at = now();
    spent += at;
    spent -= last_;
    last_ = at;
  }

 private:
  static Spent now() {
    timespec cpu{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    return {std::chrono::duration<double>(Clock::now().time_since_epoch()).count(),
            static_cast<double>(cpu.tv_sec) + 1e-9 * static_cast<double>(cpu.tv_nsec)};
  }

  const bool on_;
  Spent last_;
};

}  // namespace convoy::data
