#include "comm/heartbeat.h"

#include <sys/random.h>

#include <cmath>
#include <cstring>

#include "ops/core/error.h"

namespace convoy::comm {
namespace {

constexpr std::string_view kMagic = "CONVOYHB";
constexpr uint32_t kVersion = 2;
constexpr size_t kDetailBytes = 300, kTextBytes = 4000;
// Length and type in front; the fixed part of a beat.
constexpr size_t kHeadBytes = 5, kBeatBytes = 4 + 1 + 1 + 8 + 8 * 8 + 2 * 4 + 2;

class Writer {
 public:
  template <typename T>
  void put(T value) {
    char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    text.append(bytes, sizeof value);
  }
  void put_text(std::string_view piece, size_t most) {
    piece = piece.substr(0, most);
    put(static_cast<uint16_t>(piece.size()));
    text.append(piece);
  }

  std::string text;
};

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  template <typename T>
  T take() {
    T value{};
    if (text_.size() < sizeof value) {
      good = false;
      return value;
    }
    std::memcpy(&value, text_.data(), sizeof value);
    text_.remove_prefix(sizeof value);
    return value;
  }
  // Finite, or it is bad.
  double number() {
    const auto value = take<double>();
    good = good && std::isfinite(value);
    return value;
  }
  std::string take_text(size_t most) {
    const size_t size = take<uint16_t>();
    if (size > most || size > text_.size()) {
      good = false;
      return "";
    }
    std::string piece(text_.substr(0, size));
    text_.remove_prefix(size);
    return piece;
  }
  bool at_end() const { return text_.empty(); }

  bool good = true;

 private:
  std::string_view text_;
};

void put_beat(Writer& out, const Beat& beat) {
  const RankState& s = beat.state;
  out.put(static_cast<uint32_t>(beat.rank));
  out.put(static_cast<uint8_t>(s.phase));
  out.put(static_cast<uint8_t>((s.waits ? 1 : 0) | (s.left ? 2 : 0)));
  out.put(s.step);
  for (const double number : {s.seconds, s.saving, s.silence, s.closed, s.working[0], s.working[1],
                              s.reducing, s.answering})
    out.put(number);
  out.put(s.rounds);
  out.put(s.answers);
  out.put_text(s.detail, kDetailBytes);
}

Beat take_beat(Reader& in, int ranks) {
  Beat beat;
  RankState& s = beat.state;
  const auto rank = in.take<uint32_t>();
  const auto phase = in.take<uint8_t>();
  const auto flags = in.take<uint8_t>();
  in.good = in.good && rank < static_cast<uint32_t>(ranks) &&
            phase <= static_cast<uint8_t>(Phase::kLeave);
  beat.rank = static_cast<int>(rank);
  s.phase = static_cast<Phase>(phase);
  s.waits = (flags & 1) != 0;
  s.left = (flags & 2) != 0;
  s.step = in.take<uint64_t>();
  for (double* number : {&s.seconds, &s.saving, &s.silence, &s.closed, &s.working[0], &s.working[1],
                         &s.reducing, &s.answering})
    *number = in.number();
  s.rounds = in.take<uint32_t>();
  s.answers = in.take<uint32_t>();
  s.detail = in.take_text(kDetailBytes);
  return beat;
}

}  // namespace

std::string Nonce::bytes() const {
  return std::string(child.data(), child.size()) + std::string(parent.data(), parent.size());
}

Nonce Nonce::random() {
  Nonce nonce;
  for (auto* half : {&nonce.child, &nonce.parent})
    if (getrandom(half->data(), half->size(), 0) != static_cast<ssize_t>(half->size()))
      fail(ExitCode::kIo, "getrandom: {}", errno_text());
  return nonce;
}

Nonce Nonce::from(std::string_view bytes) {
  Nonce nonce;
  if (bytes.size() != nonce.child.size() + nonce.parent.size())
    fail(ExitCode::kFault, "a nonce of {} bytes", bytes.size());
  bytes.copy(nonce.child.data(), nonce.child.size());
  bytes.copy(nonce.parent.data(), nonce.parent.size(), nonce.child.size());
  return nonce;
}

std::string greeting(int rank, const std::array<char, 16>& secret) {
  Writer out;
  out.text = kMagic;
  out.put(kVersion);
  out.put(static_cast<uint32_t>(rank));
  out.text.append(secret.data(), secret.size());
  return out.text;
}

std::optional<int> read_greeting(std::string_view bytes, const std::array<char, 16>& secret) {
  if (bytes.size() != kGreetingBytes || !bytes.starts_with(kMagic)) return std::nullopt;
  Reader in(bytes.substr(kMagic.size()));
  const auto version = in.take<uint32_t>();
  const auto rank = in.take<uint32_t>();
  if (version != kVersion || rank > INT32_MAX) return std::nullopt;
  // Every byte is looked at: how long it takes tells a stranger nothing.
  int different = 0;
  for (const char c : secret) different |= in.take<char>() ^ c;
  if (different != 0) return std::nullopt;
  return static_cast<int>(rank);
}

std::string encode(const Frame& frame) {
  Writer out;
  switch (frame.type) {
    case FrameType::kBeats:
      out.put(static_cast<uint32_t>(frame.beats.size()));
      for (const Beat& beat : frame.beats) put_beat(out, beat);
      break;
    case FrameType::kVerdict:
      out.put(static_cast<int32_t>(frame.verdict.exit_code));
      out.put(static_cast<int32_t>(
          frame.verdict.culprits.empty() ? -1 : frame.verdict.culprits.front()));
      out.put_text(frame.verdict.text, kTextBytes);
      break;
    case FrameType::kBye:
    case FrameType::kEcho:
      break;
  }
  Writer head;
  head.put(static_cast<uint32_t>(out.text.size()));
  head.put(frame.type);
  return head.text + out.text;
}

Read take_frame(std::string& bytes, int ranks, Frame& frame) {
  if (bytes.size() < kHeadBytes) return Read::kMore;
  Reader head(bytes);
  const size_t size = head.take<uint32_t>();
  const auto type = head.take<uint8_t>();
  if (size > kTextBytes + 64 + static_cast<size_t>(ranks) * (kBeatBytes + kDetailBytes))
    return Read::kBad;
  if (bytes.size() < kHeadBytes + size) return Read::kMore;
  Reader in(std::string_view(bytes).substr(kHeadBytes, size));
  frame = {};
  frame.type = static_cast<FrameType>(type);
  switch (frame.type) {
    case FrameType::kBeats: {
      const auto count = in.take<uint32_t>();
      in.good = in.good && count <= static_cast<uint32_t>(ranks);
      for (uint32_t i = 0; in.good && i < count; ++i) frame.beats.push_back(take_beat(in, ranks));
      break;
    }
    case FrameType::kVerdict: {
      frame.verdict.exit_code = in.take<int32_t>();
      if (const auto culprit = in.take<int32_t>(); culprit >= 0) frame.verdict.culprits = {culprit};
      frame.verdict.text = in.take_text(kTextBytes);
      in.good = in.good && frame.verdict.exit_code > 0 && frame.verdict.exit_code < 256;
      break;
    }
    case FrameType::kBye:
    case FrameType::kEcho:
      break;
    default:
      return Read::kBad;
  }
  if (!in.good || !in.at_end()) return Read::kBad;
  bytes.erase(0, kHeadBytes + size);
  return Read::kFrame;
}

}  // namespace convoy::comm
