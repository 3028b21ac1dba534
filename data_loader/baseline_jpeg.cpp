#include "data_loader/baseline_jpeg.h"

#include <algorithm>
#include <cstring>

#include "data_loader/jpeg.h"

namespace convoy::data {
namespace {

constexpr int kMaxSide = 65500;  // libjpeg's

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
        shape = {height_, width_, 3};
        return true;
      default:
        if (marker != kCom && (marker < kApp0 || marker > kApp15)) return false;
    }
  }
}

bool BaselineJpeg::read_frame(std::span<const uint8_t> body) {
  if (saw_frame_ || body.size() < 6 || body[0] != 8) return false;
  saw_frame_ = true;
  height_ = big_endian(&body[1]);
  width_ = big_endian(&body[3]);
  const size_t n = body[5];
  if (height_ == 0 || width_ == 0 || height_ > kMaxSide || width_ > kMaxSide) return false;
  if ((n != 1 && n != 3) || body.size() != 6 + 3 * n) return false;
  components_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    Component& component = components_[i];
    const uint8_t* p = &body[6 + 3 * i];
    component.id = p[0];
    component.h = p[1] >> 4;
    component.v = p[1] & 15;
    component.quantisation = p[2];
    if (component.quantisation > 3) return false;
    for (size_t other = 0; other < i; ++other)
      if (components_[other].id == component.id) return false;
  }
  Component& luma = components_[0];
  if (n == 1) {
    if (luma.h < 1 || luma.h > 4 || luma.v < 1 || luma.v > 4) return false;
    luma.h = luma.v = 1;  // one component alone is not sampled relative to another
  } else {
    if (components_[1].h != 1 || components_[1].v != 1) return false;
    if (components_[2].h != 1 || components_[2].v != 1) return false;
    if (luma.h < 1 || luma.h > 2 || luma.v < 1 || luma.v > luma.h) return false;
  }
  return true;
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
  const int mcus = mcus_per_row_ * mcu_rows_;
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
    block.dc_only = component.size == 1;
    if (block.dc == nullptr || block.ac == nullptr) return false;
    blocks_.insert(blocks_.end(), static_cast<size_t>(component.h * component.v), block);
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

bool BaselineJpeg::pass(int mcus, int16_t* coefficients, uint8_t* last) {
  const int n = static_cast<int>(blocks_.size());
  while (mcus > 0) {
    if (restart_interval_ != 0 && left_in_segment_ == 0) {
      const ptrdiff_t left = bits_left();
      if (left < 0 || left >= 8 || !begin_segment(segment_ + 1)) return false;
    }
    const int now = restart_interval_ != 0 ? std::min(mcus, left_in_segment_) : mcus;
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

// ---- Pixels ----

void BaselineJpeg::scale(int denominator) {
  const int h = components_[0].h, v = components_[0].v;  // the largest
  const int size = 8 / denominator;
  for (Component& component : components_) {
    // libjpeg scales chroma up by a larger inverse DCT where it can.
    component.size = size;
    while (component.size < 8 && h * size % (component.h * component.size * 2) == 0 &&
           v * size % (component.v * component.size * 2) == 0)
      component.size *= 2;
    component.width = ceil_div(width_ * component.h * component.size, h * 8);
    component.height = ceil_div(height_ * component.v * component.size, v * 8);
  }
  mcu_width_ = h * size;
  mcu_height_ = v * size;
  mcus_per_row_ = ceil_div(width_, h * 8);
  mcu_rows_ = ceil_div(height_, v * 8);
  const Component& chroma = components_.back();
  halves_x_ = chroma.h * chroma.size < mcu_width_;
  halves_y_ = chroma.rows() < mcu_height_;
  is_smooth_ = halves_x_ && size > 1 && chroma.width > 2;
}

void BaselineJpeg::choose_columns(const Region& region) {
  const int margin = is_smooth_ ? 2 : 0;  // one sample of chroma
  first_mcu_ = std::max(region.x - margin, 0) / mcu_width_;
  end_mcu_ = std::min(ceil_div(region.x + region.width + margin, mcu_width_), mcus_per_row_);
  const size_t mcus = static_cast<size_t>(end_mcu_ - first_mcu_);
  coefficients_.resize((mcus * blocks_.size() + 1) * kBlock);
  last_.resize(mcus * blocks_.size());
  for (Component& component : components_) {
    component.stride = mcus * static_cast<size_t>(component.h * component.size) + 2 * kMargin;
    component.plane.resize(component.stride * static_cast<size_t>(component.rows() + 2));
  }
  const size_t columns = static_cast<size_t>(region.width) + kMargin;
  for (std::vector<uint8_t>& row : upsampled_) row.resize(columns);
  sums_.resize(columns);
}

// The coefficients of the region's columns of the next row of MCUs.
bool BaselineJpeg::read_row() {
  return pass(first_mcu_, nullptr, nullptr) &&
         pass(end_mcu_ - first_mcu_, coefficients_.data(), last_.data());
}

// From there into the planes.
bool BaselineJpeg::transform_row() {
  int block = 0;
  for (Component& component : components_)
    for (int v = 0; v < component.v; ++v)
      for (int h = 0; h < component.h; ++h, ++block) {
        BlockRow row;
        row.coefficients = coefficients_.data() + static_cast<ptrdiff_t>(block) * kBlock;
        row.last = last_.data() + block;
        row.step = static_cast<int>(blocks_.size());
        row.count = end_mcu_ - first_mcu_;
        row.quantisation = quantisation_[static_cast<size_t>(component.quantisation)].data();
        row.out = component.row(v * component.size) + static_cast<ptrdiff_t>(h) * component.size;
        row.out_step = component.h * component.size;
        row.stride = component.stride;
        if (!kernels_.idct(row, component.size)) return false;
      }
  return true;
}

// Smooth upsampling reads one sample of chroma beyond the image's edge: the last one once more.
void BaselineJpeg::extend_edges(int mcu_row) {
  for (size_t c = 1; c < components_.size(); ++c) {
    Component& component = components_[c];
    const int decoded = static_cast<int>(component.stride - 2 * kMargin);
    const int end = component.width - first_mcu_ * component.size;
    for (int y = 0; y < component.rows(); ++y) {
      uint8_t* const row = component.row(y);
      row[-1] = row[0];
      if (end <= decoded) row[end] = row[end - 1];
    }
    const auto copy_row = [&component](int to, int from) {
      std::memcpy(component.row(to) - kMargin, component.row(from) - kMargin, component.stride);
    };
    if (mcu_row == 0) copy_row(-1, 0);
    const int last = component.height - mcu_row * component.rows() - 1;
    if (last < component.rows()) copy_row(last + 1, last);
  }
}

// Samples of chroma c for `width` pixels from column `left` of the planes, in row y of them.
const uint8_t* BaselineJpeg::chroma_row(size_t c, int y, int left, int width) {
  Component& component = components_[1 + c];
  if (!halves_x_) return component.row(y) + left;
  const int near = halves_y_ ? (y + 2) / 2 - 1 : y;  // row -1 is of row -1
  const int first = left / 2, samples = (left + width + 1) / 2 - first;
  const uint8_t* const row = component.row(near) + first;
  uint8_t* const wide = upsampled_[c].data();
  if (!is_smooth_) {
    for (ptrdiff_t x = 0; x < samples; ++x) wide[2 * x] = wide[2 * x + 1] = row[x];
  } else if (halves_y_) {
    const int far = y % 2 == 0 ? near - 1 : near + 1;
    kernels_.upsample_h2v2(wide, row, component.row(far) + first, sums_.data(), samples);
  } else {
    kernels_.upsample_h2v1(wide, row, samples);
  }
  return wide + left % 2;
}

// Rows [first, end) of the image; row 0 of the planes is row `base`.
void BaselineJpeg::emit(int first, int end, int base, const Region& region, Image& out) {
  const int left = region.x - first_mcu_ * mcu_width_;
  for (int y = first; y < end; ++y) {
    uint8_t* const to = out.pixels.data() + out.stride * static_cast<size_t>(y - region.y);
    const uint8_t* const luma = components_[0].row(y - base) + left;
    if (components_.size() == 1)
      for (ptrdiff_t x = 0; x < region.width; ++x)
        to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = luma[x];
    else
      kernels_.ycc_to_rgb(to, luma, chroma_row(0, y - base, left, region.width),
                          chroma_row(1, y - base, left, region.width), region.width);
  }
}

bool BaselineJpeg::decode(const Region& region, int denominator, Image& out) {
  SampleTimes unused;
  SampleTimes& times = times_ ? *times_ : unused;
  Stopwatch watch(times_ != nullptr);
  scale(denominator);
  if (!prepare_tables() || !unstuff() || !begin_segment(0)) return false;
  choose_columns(region);
  out.shape = {ceil_div(height_, denominator), ceil_div(width_, denominator), 3};
  out.region = region;
  out.stride = static_cast<size_t>(region.width) * 3;
  out.pixels.resize(out.stride * static_cast<size_t>(region.height));

  // With chroma of half the height, a row needs the chroma above and below: the last row of each
  // row of MCUs waits for the next.
  const bool waits = is_smooth_ && halves_y_;
  const int end = region.y + region.height, context = waits ? 1 : 0;
  const int first_row = std::max(region.y - context, 0) / mcu_height_;
  const int end_row = std::min(ceil_div(end + context, mcu_height_), mcu_rows_);
  if (!pass(first_row * mcus_per_row_, nullptr, nullptr)) return false;
  for (int row = first_row; row < end_row; ++row) {
    if (!read_row()) return false;
    watch.book(times.entropy);
    if (!transform_row()) return false;
    if (is_smooth_) extend_edges(row);
    const int base = row * mcu_height_, next = base + mcu_height_;
    emit(std::max(base - context, region.y),
         std::min(row + 1 < mcu_rows_ ? next - context : next, end), base, region, out);
    if (waits)
      for (Component& component : components_)
        std::memcpy(component.row(-1) - kMargin, component.row(component.rows() - 1) - kMargin,
                    component.stride);
    watch.book(times.pixels);
    if (row + 1 < end_row && !pass(mcus_per_row_ - end_mcu_, nullptr, nullptr)) return false;
  }
  // What was taken was there; and nothing is left behind the last MCU.
  const bool is_end = end_row == mcu_rows_ && end_mcu_ == mcus_per_row_;
  return bits_left() >= 0 && (!is_end || bits_left() < 8);
}

}  // namespace convoy::data
