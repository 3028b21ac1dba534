// What the watchdogs of a job say to each other over TCP, as bytes. Both sides first prove that
// they belong to the job (a Greeting each way), then send frames. Everything read is bounded and
// checked: it may come from anybody.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/verdict.h"

namespace convoy::comm {

// The secret of a job, made by rank 0 and handed out by the communicator. A child shows the first
// half, its parent answers with the second: a stranger can take neither place.
struct Nonce {
  std::array<char, 16> child{}, parent{};

  std::string bytes() const;
  static Nonce random();  // throws Error (kIo) where the system has no random numbers
  static Nonce from(std::string_view bytes);  // 32; throws Error (kFault)
};

constexpr size_t kGreetingBytes = 32;

std::string greeting(int rank, const std::array<char, 16>& secret);
// The rank in it; nullopt: not one of ours. `bytes`: kGreetingBytes.
std::optional<int> read_greeting(std::string_view bytes, const std::array<char, 16>& secret);

struct Beat {
  int rank = 0;
  RankState state;
};

enum class FrameType : uint8_t {
  kBeats = 1,    // up: the states of the sender and of the ranks below it; down: none
  kVerdict = 2,  // down: leave now; up: a rank asks for the end
  kBye = 3,      // the sender leaves in good order
  kEcho = 4,     // up: a question; down: the answer, at once
};

struct Frame {
  FrameType type = FrameType::kBye;
  std::vector<Beat> beats;
  Verdict verdict;
};

// Longer details and texts are cut.
std::string encode(const Frame& frame);

enum class Read { kFrame, kMore, kBad };

// Takes the first frame off `bytes`; kMore: it is not whole yet; kBad: rubbish, hang up. A frame
// holds at most `ranks` beats, of ranks 0 ... ranks - 1.
Read take_frame(std::string& bytes, int ranks, Frame& frame);

}  // namespace convoy::comm
