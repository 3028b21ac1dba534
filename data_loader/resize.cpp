#include "data_loader/resize.h"

#include <algorithm>
#include <cstring>

#include "data_loader/resize_kernels.h"

namespace convoy::data {
namespace {

double center_of(const AxisMap& axis, int o) {
  return axis.origin + (axis.first + o + 0.5) * axis.scale;
}

// Source pixels [first, end) under output pixel o, counted from axis.low.
struct TapRange {
  int first, end;
};
TapRange tap_range(const AxisMap& axis, int o) {
  const double support = std::max(axis.scale, 1.0);
  const double center = center_of(axis, o);
  return {std::max(static_cast<int>(center - support + 0.5), 0),
          std::min(static_cast<int>(center + support + 0.5), axis.high - axis.low)};
}

size_t product(int a, int b) {
  return static_cast<size_t>(a) * static_cast<size_t>(b);
}

// Up to here the sum of an output pixel's rounded weights is so near to one that no sum of bytes
// exceeds 255.8, which the fast kernels rely on.
constexpr double kMaxFastScale = 8192;

// The filter of an axis, in the order of its output pixels. False where it is there already.
bool make_filter(ResizeScratch::Axis& axis, const AxisMap& map, bool flip,
                 std::vector<double>& sums, const ResizeKernels& kernels) {
  if (axis.map == map && axis.flip == flip && axis.taps > 0) return false;
  axis.map = map;
  axis.flip = flip;
  const size_t count = static_cast<size_t>(map.count);
  axis.first.resize(count);
  axis.end.resize(count);
  const int most = kernels.find_taps(axis.first.data(), axis.end.data(), map.count, map.origin,
                                     map.scale, map.first, map.high - map.low);
  axis.taps = most + most % 2;
  axis.weights.resize(product(map.count, axis.taps));
  sums.resize(count);
  kernels.make_weights(axis.weights.data(), sums.data(), axis.first.data(), axis.end.data(),
                       map.count, axis.taps, map.origin, map.scale, map.first);
  for (size_t a = 0, b = count - 1; flip && a < b; ++a, --b) {
    std::swap(axis.first[a], axis.first[b]);
    std::swap(axis.end[a], axis.end[b]);
    const auto row = [&](size_t o) { return axis.weights.data() + product(int(o), axis.taps); };
    std::swap_ranges(row(a), row(a + 1), row(b));
  }
  return true;
}

void reserve(AlignedBuffer& buffer, size_t bytes) {
  if (buffer.size() < bytes) buffer = AlignedBuffer(bytes + bytes / 4);
}

// Where rows of the source are, for kernels that read a little more than a row: the last ones are
// copied to where there is something behind them.
class SourceRows {
 public:
  SourceRows(const PixelView& pixels, size_t slack, std::vector<uint8_t>& copies)
      : pixels_(pixels), copies_(copies) {
    const size_t height = static_cast<size_t>(pixels.region.height);
    const size_t bytes = product(pixels.region.width, pixels.channels);
    step_ = bytes + slack;
    const size_t unsafe = std::min((slack + pixels.stride - 1) / pixels.stride, height);
    first_copy_ = height - unsafe;
    if (copies.size() < unsafe * step_) copies.resize(unsafe * step_);
    for (size_t i = 0; i < unsafe; ++i)
      std::memcpy(&copies[i * step_], pixels.data + (first_copy_ + i) * pixels.stride, bytes);
  }

  // Counted from the view's first.
  const uint8_t* operator[](int y) const {
    const size_t row = static_cast<size_t>(y);
    return row < first_copy_ ? pixels_.data + row * pixels_.stride
                             : &copies_[(row - first_copy_) * step_];
  }

 private:
  const PixelView& pixels_;
  std::vector<uint8_t>& copies_;
  size_t step_, first_copy_;
};

// The horizontal filter with its tables; made anew where anything differs from the last image's.
const RowFilter& row_filter(const Geometry& geometry, const PixelView& pixels,
                            ResizeScratch& scratch, const ResizeKernels& kernels) {
  const bool changed = make_filter(scratch.x, geometry.x, geometry.flip, scratch.sums, kernels);
  const ResizeScratch::Axis& x = scratch.x;
  const int start = pixels.region.x - geometry.x.low;
  RowFilter& filter = scratch.row_filter;
  if (!changed && filter.channels == pixels.channels && scratch.start == start &&
      scratch.kernels == &kernels)
    return filter;
  scratch.start = start;
  scratch.kernels = &kernels;
  const size_t count = x.first.size(), channels = static_cast<size_t>(pixels.channels);
  scratch.starts.resize(count);
  for (size_t o = 0; o < count; ++o) scratch.starts[o] = x.first[o] - start;
  reserve(scratch.table,
          row_table_words(count, channels, static_cast<size_t>(x.taps)) * sizeof(uint32_t));
  scratch.offsets.resize(count * channels + 16);
  filter = {.count = geometry.x.count,
            .channels = pixels.channels,
            .taps = x.taps,
            .first = scratch.starts.data(),
            .weights = x.weights.data(),
            .table = scratch.table.as<uint32_t>(),
            .offsets = scratch.offsets.data()};
  kernels.prepare(filter);
  return filter;
}

// Source rows pass along their own axis, four at a time, into a ring that holds no more of them
// than the next output row needs: in the nearest cache, not in an image between the passes.
class Ring {
 public:
  Ring(const RowFilter& filter, const SourceRows& rows, Region source, int capacity,
       ResizeScratch& scratch, const ResizeKernels& kernels)
      : filter_(filter),
        rows_(rows),
        source_(source),
        capacity_(capacity),
        lanes_((product(filter.count, filter.channels) + 63) / 64 * 64 + 64),
        kernels_(kernels) {
    reserve(scratch.ring, lanes_ * static_cast<size_t>(capacity) * sizeof(uint32_t));
    memory_ = scratch.ring.as<uint32_t>();
  }

  // Rows 2 p and 2 p + 1 of the source; stays until pair(p + capacity - 1) is asked for.
  uint32_t* pair(int p) {
    for (; made_ <= p; made_ += 2) {
      const uint8_t* four[4];
      for (int r = 0; r < 4; ++r)
        four[r] = rows_[source_.y + std::min(2 * made_ + r, source_.height - 1)];
      uint32_t* const into[2] = {slot(made_), slot(made_ + 1)};
      kernels_.filter_rows(into, four, filter_);
    }
    return slot(p);
  }

 private:
  uint32_t* slot(int p) const { return memory_ + static_cast<size_t>(p % capacity_) * lanes_; }

  const RowFilter& filter_;
  const SourceRows& rows_;
  Region source_;  // in coordinates of rows_
  int capacity_;
  size_t lanes_;
  const ResizeKernels& kernels_;
  uint32_t* memory_;
  int made_ = 0;
};

void resample(uint8_t* out, const Geometry& geometry, const PixelView& pixels,
              ResizeScratch& scratch, const ResizeKernels& kernels) {
  const RowFilter& filter = row_filter(geometry, pixels, scratch, kernels);
  make_filter(scratch.y, geometry.y, false, scratch.sums, kernels);
  const ResizeScratch::Axis& y = scratch.y;
  Region source = source_region(geometry);
  const int low = geometry.y.low - source.y;  // of y.first, in the source
  source.y -= pixels.region.y;
  const SourceRows rows(
      pixels,
      row_slack_bytes(static_cast<size_t>(filter.taps), static_cast<size_t>(filter.channels)),
      scratch.last_rows);
  const int most = y.taps / 2 + 1;  // pairs of an output row
  Ring ring(filter, rows, source, most + 2, scratch, kernels);
  scratch.pairs.resize(static_cast<size_t>(most));
  scratch.weights.assign(static_cast<size_t>(y.taps) + 2, 0);
  const size_t row_bytes = product(filter.count, filter.channels);
  for (size_t o = 0; o < y.first.size(); ++o, out += row_bytes) {
    const int first = y.first[o] + low, last = y.end[o] + low - 1;
    const int32_t* weights = &y.weights[o * static_cast<size_t>(y.taps)];
    if (first % 2 != 0) {  // the first pair's first row has no part in it
      std::copy_n(weights, y.taps, scratch.weights.begin() + 1);
      weights = scratch.weights.data();
    }
    const int count = last / 2 - first / 2 + 1;
    for (int p = 0; p < count; ++p)
      scratch.pairs[static_cast<size_t>(p)] = ring.pair(first / 2 + p);
    kernels.filter_columns(out, scratch.pairs.data(), weights, count, row_bytes);
  }
}

void copy(uint8_t* out, const Geometry& geometry, const PixelView& pixels) {
  const size_t channels = static_cast<size_t>(pixels.channels);
  const size_t row_bytes = static_cast<size_t>(geometry.x.count) * channels;
  const Region source = source_region(geometry);
  const int left = source.x - geometry.x.low - geometry.x.first;  // zeros before the image
  const int top = source.y - geometry.y.low - geometry.y.first;
  std::memset(out, 0, row_bytes * static_cast<size_t>(geometry.y.count));
  for (int y = 0; y < source.height; ++y) {
    const uint8_t* row = pixels.data +
                         static_cast<size_t>(source.y + y - pixels.region.y) * pixels.stride +
                         static_cast<size_t>(source.x - pixels.region.x) * channels;
    uint8_t* to = out + static_cast<size_t>(top + y) * row_bytes;
    if (!geometry.flip) {
      std::memcpy(to + static_cast<size_t>(left) * channels, row,
                  static_cast<size_t>(source.width) * channels);
      continue;
    }
    for (int x = 0; x < source.width; ++x)
      std::memcpy(to + static_cast<size_t>(geometry.x.count - 1 - left - x) * channels,
                  row + static_cast<size_t>(x) * channels, channels);
  }
}

}  // namespace

Region source_region(const Geometry& geometry) {
  const bool copies = geometry.x.is_copy() && geometry.y.is_copy();
  const auto range = [&](const AxisMap& axis) -> TapRange {
    if (copies)
      return {axis.low + std::max(axis.first, 0),
              std::min(axis.low + axis.first + axis.count, axis.high)};
    return {axis.low + tap_range(axis, 0).first, axis.low + tap_range(axis, axis.count - 1).end};
  };
  const TapRange x = range(geometry.x), y = range(geometry.y);
  return {x.first, y.first, x.end - x.first, y.end - y.first};
}

int shrink_denominator(const Geometry& geometry) {
  if (!geometry.may_shrink) return 1;
  for (const int denominator : {8, 4, 2})
    if (geometry.x.scale >= denominator && geometry.y.scale >= denominator) return denominator;
  return 1;
}

Geometry shrink(const Geometry& geometry, int denominator) {
  Geometry small = geometry;
  for (AxisMap* axis : {&small.x, &small.y}) {
    const double start = (axis->low + axis->origin) / denominator;
    axis->low /= denominator;
    axis->high = (axis->high + denominator - 1) / denominator;
    axis->origin = start - axis->low;
    axis->scale /= denominator;
  }
  return small;
}

void apply(uint8_t* out, const Geometry& geometry, const PixelView& pixels, ResizeScratch& scratch,
           const ResizeKernels& kernels) {
  if (geometry.x.is_copy() && geometry.y.is_copy())
    copy(out, geometry, pixels);
  else
    resample(out, geometry, pixels, scratch, kernels);
}

void apply(uint8_t* out, const Geometry& geometry, const PixelView& pixels,
           ResizeScratch& scratch) {
  const bool fast = std::max(geometry.x.scale, geometry.y.scale) < kMaxFastScale;
  apply(out, geometry, pixels, scratch, fast ? resize_kernels() : isa_baseline::resize_kernels);
}

}  // namespace convoy::data
