// From the quantised coefficients of a JPEG to the pixels of a region, with libjpeg-turbo's very
// pixels (JDCT_ISLOW, its reduced inverse DCTs for 1/2, 1/4 and 1/8, its "fancy" upsampling, its
// fixed-point colour conversion): grey or YCbCr, with chroma sampled 1:1, 1:2 or 1:2 both ways.
// Where the coefficients come from is the caller's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "data_loader/baseline_jpeg_kernels.h"
#include "data_loader/image.h"
#include "data_loader/sample_times.h"

namespace convoy::data {

struct JpegFrame {
  struct Component {
    int h = 1, v = 1;                        // sampling factors: the first one's 1 or 2, else 1
    const uint16_t* quantisation = nullptr;  // [64] in the order of a block
  };
  int width = 0, height = 0;
  std::vector<Component> components;  // grey; or Y, Cb, Cr
};

// Whether JpegPixels takes it; also false beyond libjpeg's largest sides.
bool is_supported(const JpegFrame& frame);

class BlockSource {
 public:
  virtual ~BlockSource() = default;
  // The blocks of MCUs [first, end) of a row of MCUs: coefficients [mcu][block][64] in the order of
  // a block, with room for one block more, and for each block `last`, 0 where only its first
  // coefficient may not be. An MCU has h * v blocks of each component, rows first. Rows are asked
  // for once, in ascending order, all with the same columns. False: damaged.
  virtual bool read(int row, int first, int end, int16_t* coefficients, uint8_t* last) = 0;
};

// Keeps its memory from one image to the next. Not thread-safe: one per thread.
class JpegPixels {
 public:
  // `region` in coordinates of the image shrunk to 1/denominator: 1, 2, 4, 8. The tables of `frame`
  // stay the caller's until decode() is over.
  void begin(const JpegFrame& frame, const Region& region, int denominator);
  int mcus_per_row() const { return mcus_per_row_; }
  int mcu_rows() const { return mcu_rows_; }
  int blocks_per_mcu() const { return blocks_per_mcu_; }
  // Of component c, only the first coefficients are looked at.
  bool is_dc_only(size_t c) const { return planes_[c].size == 1; }

  // False: the source failed, or a value is so large that implementations differ; `out` is then
  // undefined. Booked in `times`, unless null, are entropy and pixels for each row of MCUs.
  bool decode(BlockSource& source, Image& out, SampleTimes* times);

 private:
  struct Plane {
    int h = 1, v = 1;
    const uint16_t* quantisation = nullptr;
    // At the scale that is asked for:
    int size = 8;               // pixels of a block's side
    int width = 0, height = 0;  // samples of the whole image
    // The samples of the region's columns of MCUs, of one row of MCUs, with one row above and below
    // and kMargin columns on each side.
    std::vector<uint8_t> samples;
    size_t stride = 0;
    uint8_t* row(int y) { return samples.data() + static_cast<size_t>(y + 1) * stride + kMargin; }
    int rows() const { return v * size; }
  };
  static constexpr size_t kMargin = 64;

  void scale(const JpegFrame& frame, int denominator);
  void choose_columns();
  bool transform_row();
  void extend_edges(int mcu_row);
  const uint8_t* chroma_row(size_t c, int y, int left, int width);
  void emit(int first, int end, int base, Image& out);

  const BaselineJpegKernels& kernels_ = baseline_jpeg_kernels();
  std::vector<Plane> planes_;
  int width_ = 0, height_ = 0;  // of the image at this scale
  Region region_;
  int mcu_width_ = 0, mcu_height_ = 0, mcus_per_row_ = 0, mcu_rows_ = 0, blocks_per_mcu_ = 0;
  bool halves_x_ = false, halves_y_ = false, is_smooth_ = false;  // chroma, and its upsampling
  int first_mcu_ = 0, end_mcu_ = 0;                               // columns
  std::vector<int16_t> coefficients_;
  std::vector<uint8_t> last_;
  std::array<std::vector<uint8_t>, 2> upsampled_;  // a row of each chroma
  std::vector<uint16_t> sums_;
};

}  // namespace convoy::data
