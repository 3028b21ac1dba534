// The clock by which everything is timed, and seconds as it counts them; the time of day.
#pragma once

#include <chrono>

namespace convoy {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The wall clock: seconds since 1970. For people to read, never to measure by.
inline double unix_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace convoy
