#include "data_loader/jpeg_pixels.h"

#include <algorithm>
#include <cstring>

namespace convoy::data {
namespace {

constexpr int kMaxSide = 65500;  // libjpeg's

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

}  // namespace

bool is_supported(const JpegFrame& frame) {
  if (frame.width < 1 || frame.height < 1) return false;
  if (frame.width > kMaxSide || frame.height > kMaxSide) return false;
  const size_t n = frame.components.size();
  if (n != 1 && n != 3) return false;
  const JpegFrame::Component& luma = frame.components[0];
  if (luma.h < 1 || luma.h > (n == 1 ? 1 : 2) || luma.v < 1 || luma.v > luma.h) return false;
  return std::all_of(frame.components.begin() + 1, frame.components.end(),
                     [](const JpegFrame::Component& c) { return c.h == 1 && c.v == 1; });
}

void JpegPixels::begin(const JpegFrame& frame, const Region& region, int denominator) {
  region_ = region;
  scale(frame, denominator);
  choose_columns();
}

void JpegPixels::scale(const JpegFrame& frame, int denominator) {
  const int h = frame.components[0].h, v = frame.components[0].v;  // the largest
  const int size = 8 / denominator;
  planes_.resize(frame.components.size());
  blocks_per_mcu_ = 0;
  for (size_t c = 0; c < planes_.size(); ++c) {
    Plane& plane = planes_[c];
    plane.h = frame.components[c].h;
    plane.v = frame.components[c].v;
    plane.quantisation = frame.components[c].quantisation;
    // libjpeg scales chroma up by a larger inverse DCT where it can.
    plane.size = size;
    while (plane.size < 8 && h * size % (plane.h * plane.size * 2) == 0 &&
           v * size % (plane.v * plane.size * 2) == 0)
      plane.size *= 2;
    plane.width = ceil_div(frame.width * plane.h * plane.size, h * 8);
    plane.height = ceil_div(frame.height * plane.v * plane.size, v * 8);
    blocks_per_mcu_ += plane.h * plane.v;
  }
  width_ = ceil_div(frame.width, denominator);
  height_ = ceil_div(frame.height, denominator);
  mcu_width_ = h * size;
  mcu_height_ = v * size;
  mcus_per_row_ = ceil_div(frame.width, h * 8);
  mcu_rows_ = ceil_div(frame.height, v * 8);
  const Plane& chroma = planes_.back();
  halves_x_ = chroma.h * chroma.size < mcu_width_;
  halves_y_ = chroma.rows() < mcu_height_;
  is_smooth_ = halves_x_ && size > 1 && chroma.width > 2;
}

void JpegPixels::choose_columns() {
  const int margin = is_smooth_ ? 2 : 0;  // one sample of chroma
  first_mcu_ = std::max(region_.x - margin, 0) / mcu_width_;
  end_mcu_ = std::min(ceil_div(region_.x + region_.width + margin, mcu_width_), mcus_per_row_);
  const size_t mcus = static_cast<size_t>(end_mcu_ - first_mcu_);
  const size_t blocks = mcus * static_cast<size_t>(blocks_per_mcu_);
  coefficients_.resize((blocks + 1) * kBlock);
  last_.resize(blocks);
  for (Plane& plane : planes_) {
    plane.stride = mcus * static_cast<size_t>(plane.h * plane.size) + 2 * kMargin;
    plane.samples.resize(plane.stride * static_cast<size_t>(plane.rows() + 2));
  }
  const size_t columns = static_cast<size_t>(region_.width) + kMargin;
  for (std::vector<uint8_t>& row : upsampled_) row.resize(columns);
  sums_.resize(columns);
}

// The coefficients of a row of MCUs into the planes.
bool JpegPixels::transform_row() {
  int block = 0;
  for (Plane& plane : planes_)
    for (int v = 0; v < plane.v; ++v)
      for (int h = 0; h < plane.h; ++h, ++block) {
        BlockRow row;
        row.coefficients = coefficients_.data() + static_cast<ptrdiff_t>(block) * kBlock;
        row.last = last_.data() + block;
        row.step = blocks_per_mcu_;
        row.count = end_mcu_ - first_mcu_;
        row.quantisation = plane.quantisation;
        row.out = plane.row(v * plane.size) + static_cast<ptrdiff_t>(h) * plane.size;
        row.out_step = plane.h * plane.size;
        row.stride = plane.stride;
        if (!kernels_.idct(row, plane.size)) return false;
      }
  return true;
}

// Smooth upsampling reads one sample of chroma beyond the image's edge: the last one once more.
void JpegPixels::extend_edges(int mcu_row) {
  for (size_t c = 1; c < planes_.size(); ++c) {
    Plane& plane = planes_[c];
    const int decoded = static_cast<int>(plane.stride - 2 * kMargin);
    const int end = plane.width - first_mcu_ * plane.size;
    for (int y = 0; y < plane.rows(); ++y) {
      uint8_t* const row = plane.row(y);
      row[-1] = row[0];
      if (end <= decoded) row[end] = row[end - 1];
    }
    const auto copy_row = [&plane](int to, int from) {
      std::memcpy(plane.row(to) - kMargin, plane.row(from) - kMargin, plane.stride);
    };
    if (mcu_row == 0) copy_row(-1, 0);
    const int last = plane.height - mcu_row * plane.rows() - 1;
    if (last < plane.rows()) copy_row(last + 1, last);
  }
}

// Samples of chroma c for `width` pixels from column `left` of the planes, in row y of them.
const uint8_t* JpegPixels::chroma_row(size_t c, int y, int left, int width) {
  Plane& plane = planes_[1 + c];
  if (!halves_x_) return plane.row(y) + left;
  const int near = halves_y_ ? (y + 2) / 2 - 1 : y;  // row -1 is of row -1
  const int first = left / 2, samples = (left + width + 1) / 2 - first;
  const uint8_t* const row = plane.row(near) + first;
  uint8_t* const wide = upsampled_[c].data();
  if (!is_smooth_) {
    for (ptrdiff_t x = 0; x < samples; ++x) wide[2 * x] = wide[2 * x + 1] = row[x];
  } else if (halves_y_) {
    const int far = y % 2 == 0 ? near - 1 : near + 1;
    kernels_.upsample_h2v2(wide, row, plane.row(far) + first, sums_.data(), samples);
  } else {
    kernels_.upsample_h2v1(wide, row, samples);
  }
  return wide + left % 2;
}

// Rows [first, end) of the image; row 0 of the planes is row `base`.
void JpegPixels::emit(int first, int end, int base, Image& out) {
  const int left = region_.x - first_mcu_ * mcu_width_;
  for (int y = first; y < end; ++y) {
    uint8_t* const to = out.pixels.data() + out.stride * static_cast<size_t>(y - region_.y);
    const uint8_t* const luma = planes_[0].row(y - base) + left;
    if (planes_.size() == 1)
      for (ptrdiff_t x = 0; x < region_.width; ++x)
        to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = luma[x];
    else
      kernels_.ycc_to_rgb(to, luma, chroma_row(0, y - base, left, region_.width),
                          chroma_row(1, y - base, left, region_.width), region_.width);
  }
}

bool JpegPixels::decode(BlockSource& source, Image& out, SampleTimes* booked) {
  SampleTimes unused;
  SampleTimes& times = booked ? *booked : unused;
  Stopwatch watch(booked != nullptr);
  out.shape = {height_, width_, 3};
  out.region = region_;
  out.stride = static_cast<size_t>(region_.width) * 3;
  out.pixels.resize(out.stride * static_cast<size_t>(region_.height));

  // With chroma of half the height, a row needs the chroma above and below: the last row of each
  // row of MCUs waits for the next.
  const bool waits = is_smooth_ && halves_y_;
  const int end = region_.y + region_.height, context = waits ? 1 : 0;
  const int first_row = std::max(region_.y - context, 0) / mcu_height_;
  const int end_row = std::min(ceil_div(end + context, mcu_height_), mcu_rows_);
  for (int row = first_row; row < end_row; ++row) {
    if (!source.read(row, first_mcu_, end_mcu_, coefficients_.data(), last_.data())) return false;
    watch.book(times.entropy);
    if (!transform_row()) return false;
    if (is_smooth_) extend_edges(row);
    const int base = row * mcu_height_, next = base + mcu_height_;
    emit(std::max(base - context, region_.y),
         std::min(row + 1 < mcu_rows_ ? next - context : next, end), base, out);
    if (waits)
      for (Plane& plane : planes_)
        std::memcpy(plane.row(-1) - kMargin, plane.row(plane.rows() - 1) - kMargin, plane.stride);
    watch.book(times.pixels);
  }
  return true;
}

}  // namespace convoy::data
