#include "data_loader/baseline_jpeg.h"

#include <algorithm>
#include <cstring>

#include "data_loader/jpeg.h"

namespace convoy::data {
namespace {

enum Marker : uint8_t {
  kSof0 = 0xc0,
  kSof1 = 0xc1,
  kDht = 0xc4,
  kRst0 = 0xd0,
  kSoi = 0xd8,
  kSos = 0xda,
  kDqt = 0xdb,
  kDri = 0xdd,
  kApp0 = 0xe0,
  kApp14 = 0xee,
  kApp15 = 0xef,
  kCom = 0xfe,
};

int big_endian(const uint8_t* p) {
  return p[0] << 8 | p[1];
}

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// ---- Huffman tables ----

// From 16 counts and the symbols, whose number is right. False where libjpeg would refuse them.
bool make_code(HuffmanCode& code, std::span<const uint8_t> spec) {
  uint32_t next = 0;
  int symbol = 0;
  code.limit[0] = 0;
  code.offset[0] = 0;
  for (int length = 1; length <= 16; ++length) {
    code.offset[length] = symbol - static_cast<int>(next);
    const int count = spec[static_cast<size_t>(length) - 1];
    next += static_cast<uint32_t>(count);
    symbol += count;
    // No code is all ones.
    if (count > 0 && next >= 1u << length) return false;
    code.limit[length] = next << (16 - length);
    next <<= 1;
  }
  std::copy(spec.begin() + 16, spec.end(), code.symbols);
  return true;
}

// Calls body(symbol, length, first index, end) for each code of at most `bits` bits.
template <typename Body>
void each_short_code(std::span<const uint8_t> spec, int bits, const Body& body) {
  uint32_t next = 0;
  size_t symbol = 16;
  for (int length = 1; length <= bits; ++length) {
    for (int i = 0; i < spec[static_cast<size_t>(length) - 1]; ++i, ++next)
      body(spec[symbol++], length, next << (bits - length), (next + 1) << (bits - length));
    next <<= 1;
  }
}

bool make_dc_table(DcTable& table, std::span<const uint8_t> spec) {
  if (!make_code(table.code, spec)) return false;
  if (std::any_of(spec.begin() + 16, spec.end(), [](uint8_t size) { return size > 15; }))
    return false;
  std::fill(std::begin(table.entries), std::end(table.entries), uint16_t{0});
  each_short_code(spec, kDcPeekBits, [&](uint8_t size, int length, uint32_t first, uint32_t end) {
    if (size > kMaxDcSize) return;
    std::fill(table.entries + first, table.entries + end,
              static_cast<uint16_t>((length + size) | length << 6 | size << 11));
  });
  return true;
}

struct ShortCode {
  uint8_t length = 0, run = 0, size = 0;  // length 0: not within kAcPeekBits
  bool is_end() const { return run == 0 && size == 0; }
  bool is_zeros() const { return run == 15 && size == 0; }
  bool is_usual() const {
    return length > 0 && (size > 0 ? size <= kMaxAcSize : is_end() || is_zeros());
  }
};

constexpr uint32_t kPeekMask = (1u << kAcPeekBits) - 1;

AcEntry ac_entry(const ShortCode* codes, uint32_t index) {
  AcEntry entry{.advance = kNotInTable};
  uint32_t at = 0, advance = 0, n = 0;
  bool is_end = false;
  while (at < kAcPeekBits && !is_end) {
    const ShortCode& code = codes[index << at & kPeekMask];
    const uint32_t behind = at + code.length;
    // Sixteen zeros count together with the coefficient behind them: not as the last.
    if (!code.is_usual() || behind > kAcPeekBits) break;
    is_end = code.is_end();
    advance += is_end ? 0 : code.run + 1u;
    if (advance > 63) break;  // behind the block's end: a damaged file's
    at = behind + code.size;
    if (code.is_zeros()) continue;
    if (!is_end && n == 2) break;
    if (!is_end)
      (n++ == 0 ? entry.first : entry.second) = {static_cast<uint8_t>(advance),
                                                 static_cast<uint8_t>(behind),
                                                 static_cast<uint8_t>(64 - code.size)};
    entry.bits = static_cast<uint8_t>(at);
    entry.advance = static_cast<uint8_t>(advance + (is_end ? kEndOfBlock : 0));
  }
  if (n == 1) entry.second = entry.first;
  return entry;
}

uint16_t ac_skip(const ShortCode* codes, uint32_t index) {
  uint32_t used = 0, advance = 0;
  while (used < kAcPeekBits) {
    const ShortCode& code = codes[index << used & kPeekMask];
    if (!code.is_usual() || used + code.length > kAcPeekBits) break;
    // More would end the block in any case.
    const uint32_t next = advance + (code.is_end() ? kEndOfBlock : code.run + 1u);
    if (!code.is_end() && next > 63) break;
    used += code.length + code.size;
    advance = next;
    if (code.is_end()) break;
  }
  return static_cast<uint16_t>(used == 0 ? kNotInTable << 8 : used | advance << 8);
}

bool make_ac_table(AcTable& table, std::span<const uint8_t> spec) {
  if (!make_code(table.code, spec)) return false;
  std::array<ShortCode, 1 << kAcPeekBits> codes{};
  each_short_code(spec, kAcPeekBits, [&](uint8_t symbol, int length, uint32_t first, uint32_t end) {
    std::fill(codes.begin() + first, codes.begin() + end,
              ShortCode{static_cast<uint8_t>(length), static_cast<uint8_t>(symbol >> 4),
                        static_cast<uint8_t>(symbol & 15)});
  });
  for (uint32_t i = 0; i < codes.size(); ++i) {
    table.entries[i] = ac_entry(codes.data(), i);
    table.skips[i] = ac_skip(codes.data(), i);
  }
  return true;
}

}  // namespace

// ---- Header ----

// Tables of the last images: most writers use the standard ones, or the same for luma and chroma.
struct BaselineJpeg::Tables {
  struct Dc {
    std::vector<uint8_t> spec;
    DcTable table;
  };
  struct Ac {
    std::vector<uint8_t> spec;
    AcTable table;
  };
  std::array<Dc, 4> dc;
  std::array<Ac, 4> ac;

  // The i-th table of `kept`, made anew where it is of another code; nullptr where the code is
  // wrong.
  template <typename Kept, typename Make>
  static auto* of(Kept& kept, std::span<const uint8_t> spec, const Make& make) {
    if (!std::ranges::equal(kept.spec, spec)) {
      kept.spec.clear();
      if (make(kept.table, spec)) kept.spec.assign(spec.begin(), spec.end());
    }
    return kept.spec.empty() ? nullptr : &kept.table;
  }
};

BaselineJpeg::BaselineJpeg()
    : kernels_(baseline_jpeg_kernels()), tables_(std::make_unique<Tables>()) {}
BaselineJpeg::~BaselineJpeg() = default;

bool BaselineJpeg::open(std::span<const uint8_t> bytes, ImageShape& shape) {
  restart_interval_ = 0;
  saw_jfif_ = saw_frame_ = false;
  adobe_transform_ = -1;
  has_quantisation_.fill(false);
  huffman_.fill({});
  if (bytes.size() < 4 || bytes[0] != 0xff || bytes[1] != kSoi) return false;
  for (size_t at = 2;;) {
    if (bytes.size() - at < 4 || bytes[at] != 0xff) return false;
    const uint8_t marker = bytes[at + 1];
    if (marker == 0xff) {  // padding
      ++at;
      continue;
    }
    const size_t length = static_cast<size_t>(big_endian(&bytes[at + 2]));
    if (length < 2 || bytes.size() - at - 2 < length) return false;
    const std::span<const uint8_t> body = bytes.subspan(at + 4, length - 2);
    at += 2 + length;
    switch (marker) {
      case kSof0:
      case kSof1:
        if (!read_frame(body)) return false;
        break;
      case kDht:
        if (!read_huffman(body)) return false;
        break;
      case kDqt:
        if (!read_quantisation(body)) return false;
        break;
      case kDri:
        if (body.size() != 2) return false;
        restart_interval_ = big_endian(body.data());
        break;
      case kApp0:
        saw_jfif_ |= body.size() >= 14 && std::memcmp(body.data(), "JFIF", 5) == 0;
        break;
      case kApp14:
        if (body.size() >= 12 && std::memcmp(body.data(), "Adobe", 5) == 0)
          adobe_transform_ = body[11];
        break;
      case kSos:
        if (!read_scan(body) || !is_ycc()) return false;
        scan_ = bytes.subspan(at);
        shape = {frame_.height, frame_.width, 3};
        return true;
      default:
        if (marker != kCom && (marker < kApp0 || marker > kApp15)) return false;
    }
  }
}

bool BaselineJpeg::read_frame(std::span<const uint8_t> body) {
  if (saw_frame_ || body.size() < 6 || body[0] != 8) return false;
  saw_frame_ = true;
  frame_.height = big_endian(&body[1]);
  frame_.width = big_endian(&body[3]);
  const size_t n = body[5];
  if ((n != 1 && n != 3) || body.size() != 6 + 3 * n) return false;
  components_.resize(n);
  frame_.components.resize(n);
  for (size_t i = 0; i < n; ++i) {
    Component& component = components_[i];
    const uint8_t* p = &body[6 + 3 * i];
    component.id = p[0];
    if (p[2] > 3) return false;
    component.quantisation = p[2];
    frame_.components[i] = {p[1] >> 4, p[1] & 15, quantisation_[p[2]].data()};
    for (size_t other = 0; other < i; ++other)
      if (components_[other].id == component.id) return false;
  }
  JpegFrame::Component& luma = frame_.components[0];
  if (n == 1) {
    if (luma.h < 1 || luma.h > 4 || luma.v < 1 || luma.v > 4) return false;
    luma.h = luma.v = 1;  // one component alone is not sampled relative to another
  }
  return is_supported(frame_);
}

bool BaselineJpeg::read_scan(std::span<const uint8_t> body) {
  const size_t n = components_.size();
  if (!saw_frame_ || body.size() != 4 + 2 * n || body[0] != n) return false;
  for (size_t i = 0; i < n; ++i) {
    Component& component = components_[i];
    if (body[1 + 2 * i] != component.id) return false;
    component.dc_table = body[2 + 2 * i] >> 4;
    component.ac_table = body[2 + 2 * i] & 15;
    if (component.dc_table > 3 || component.ac_table > 3) return false;
    if (!has_quantisation_[static_cast<size_t>(component.quantisation)]) return false;
  }
  const uint8_t* const rest = &body[1 + 2 * n];
  return rest[0] == 0 && rest[1] == 63 && rest[2] == 0;
}

bool BaselineJpeg::read_quantisation(std::span<const uint8_t> body) {
  while (!body.empty()) {
    const bool is_wide = body[0] >> 4 != 0;
    const size_t id = body[0] & 15, bytes = is_wide ? 128 : 64;
    if (id > 3 || body.size() < 1 + bytes) return false;
    for (int k = 0; k < kBlock; ++k) {
      const int value = is_wide ? big_endian(&body[1 + 2 * static_cast<size_t>(k)])
                                : body[1 + static_cast<size_t>(k)];
      if (value > kMaxQuantisation) return false;
      quantisation_[id][kBlockPlaces.zigzag[k]] = static_cast<uint16_t>(value);
    }
    has_quantisation_[id] = true;
    body = body.subspan(1 + bytes);
  }
  return true;
}

bool BaselineJpeg::read_huffman(std::span<const uint8_t> body) {
  while (!body.empty()) {
    if (body.size() < 17) return false;
    const size_t id = body[0];
    size_t count = 0;
    for (size_t length = 1; length <= 16; ++length) count += body[length];
    if ((id & 15) > 3 || id >> 4 > 1 || count == 0 || count > 256 || body.size() < 17 + count)
      return false;
    huffman_[(id >> 4) * 4 + (id & 15)] = body.subspan(1, 16 + count);
    body = body.subspan(17 + count);
  }
  return true;
}

// libjpeg's rule for three components.
bool BaselineJpeg::is_ycc() const {
  if (components_.size() == 1 || saw_jfif_) return true;
  if (adobe_transform_ >= 0) return adobe_transform_ == 1;
  return components_[0].id != 'R' || components_[1].id != 'G' || components_[2].id != 'B';
}

// ---- Entropy-coded bytes ----

bool BaselineJpeg::unstuff() {
  const size_t length = plainly_whole_scan(scan_);
  if (length == 0) return false;
  entropy_.resize(length + kEntropyPadding);
  segment_ends_.clear();
  uint8_t* out = entropy_.data();
  const uint8_t* in = scan_.data();
  const uint8_t* const end = in + length;
  while (in < end) {
    const uint8_t* stop =
        static_cast<const uint8_t*>(std::memchr(in, 0xff, static_cast<size_t>(end - in)));
    if (stop == nullptr) stop = end;
    std::memcpy(out, in, static_cast<size_t>(stop - in));
    out += stop - in;
    in = stop + 2;
    if (stop == end) break;
    if (stop[1] == 0) {
      *out++ = 0xff;
    } else {
      if (restart_interval_ == 0 || (stop[1] & 7) != static_cast<int>(segment_ends_.size() % 8))
        return false;
      segment_ends_.push_back(static_cast<size_t>(out - entropy_.data()));
    }
  }
  segment_ends_.push_back(static_cast<size_t>(out - entropy_.data()));
  std::memset(out, 0, kEntropyPadding);
  const int mcus = pixels_.mcus_per_row() * pixels_.mcu_rows();
  const int segments = restart_interval_ == 0 ? 1 : ceil_div(mcus, restart_interval_);
  return segment_ends_.size() == static_cast<size_t>(segments);
}

bool BaselineJpeg::prepare_tables() {
  blocks_.clear();
  for (size_t c = 0; c < components_.size(); ++c) {
    const Component& component = components_[c];
    const size_t dc_id = static_cast<size_t>(component.dc_table);
    const size_t ac_id = static_cast<size_t>(component.ac_table);
    if (huffman_[dc_id].empty() || huffman_[4 + ac_id].empty()) return false;
    McuBlock block;
    block.dc = Tables::of(tables_->dc[dc_id], huffman_[dc_id], make_dc_table);
    block.ac = Tables::of(tables_->ac[ac_id], huffman_[4 + ac_id], make_ac_table);
    block.component = static_cast<int>(c);
    block.dc_only = pixels_.is_dc_only(c);
    if (block.dc == nullptr || block.ac == nullptr) return false;
    const JpegFrame::Component& sampled = frame_.components[c];
    blocks_.insert(blocks_.end(), static_cast<size_t>(sampled.h * sampled.v), block);
  }
  return true;
}

// Segments follow one another without a gap: each must have been used up.
bool BaselineJpeg::begin_segment(size_t i) {
  if (i >= segment_ends_.size()) return false;
  const size_t begin = i == 0 ? 0 : segment_ends_[i - 1];
  state_ = {};
  state_.next = entropy_.data() + begin;
  state_.end = entropy_.data() + segment_ends_[i];
  segment_ = i;
  left_in_segment_ = restart_interval_;
  return true;
}

bool BaselineJpeg::pass(int64_t mcus, int16_t* coefficients, uint8_t* last) {
  const int n = static_cast<int>(blocks_.size());
  while (mcus > 0) {
    if (restart_interval_ != 0 && left_in_segment_ == 0) {
      const ptrdiff_t left = bits_left();
      if (left < 0 || left >= 8 || !begin_segment(segment_ + 1)) return false;
    }
    const int now =
        static_cast<int>(restart_interval_ != 0 ? std::min<int64_t>(mcus, left_in_segment_) : mcus);
    if (!kernels_.decode(state_, blocks_.data(), n, now, coefficients, last)) return false;
    if (coefficients != nullptr) {
      coefficients += static_cast<ptrdiff_t>(now) * n * kBlock;
      last += static_cast<ptrdiff_t>(now) * n;
    }
    mcus -= now;
    left_in_segment_ -= now;
  }
  return true;
}

ptrdiff_t BaselineJpeg::bits_left() const {
  return (state_.end - state_.next) * 8 + static_cast<ptrdiff_t>(state_.count);
}

// ---- Blocks ----

bool BaselineJpeg::read(int row, int first, int end, int16_t* coefficients, uint8_t* last) {
  const int64_t from = int64_t{row} * pixels_.mcus_per_row() + first;
  if (!pass(from - at_mcu_, nullptr, nullptr) || !pass(end - first, coefficients, last))
    return false;
  at_mcu_ = from + end - first;
  return true;
}

bool BaselineJpeg::decode(const Region& region, int denominator, Image& out) {
  SampleTimes unused;
  Stopwatch watch(times_ != nullptr);
  pixels_.begin(frame_, region, denominator);
  if (!prepare_tables() || !unstuff() || !begin_segment(0)) return false;
  at_mcu_ = 0;
  watch.book((times_ ? *times_ : unused).entropy);
  if (!pixels_.decode(*this, out, times_)) return false;
  // What was taken was there; and nothing is left behind the last MCU.
  const bool is_end = at_mcu_ == int64_t{pixels_.mcus_per_row()} * pixels_.mcu_rows();
  return bits_left() >= 0 && (!is_end || bits_left() < 8);
}

}  // namespace convoy::data
