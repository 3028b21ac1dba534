// A decoder for the JPEGs that training sets are made of, faster than libjpeg-turbo's and with its
// very pixels (JDCT_ISLOW, its reduced inverse DCTs for 1/2, 1/4 and 1/8, its "fancy" upsampling,
// its fixed-point colour conversion): one scan, Huffman codes, 8 bits, grey or YCbCr with chroma
// sampled 1:1, 1:2 or 1:2 both ways, with or without restart markers (ITU-T T.81).
//
// It declines all else, and everything that is odd on the way: whoever uses it asks libjpeg then,
// which decides whether a file is damaged. Rows below the region are not read, so damage there
// stays unseen; that the file goes on to its end is checked (plainly_whole_scan()).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "data_loader/baseline_jpeg_kernels.h"
#include "data_loader/image.h"
#include "data_loader/sample_times.h"

namespace convoy::data {

// Keeps its memory and Huffman tables from one image to the next. Not thread-safe: one per thread.
class BaselineJpeg {
 public:
  BaselineJpeg();
  ~BaselineJpeg();

  // Reads the header; false: not for this decoder. `bytes` stay the caller's until decode() is
  // over.
  bool open(std::span<const uint8_t> bytes, ImageShape& shape);
  // The pixels of `region` (in coordinates of the image shrunk to 1/denominator: 1, 2, 4, 8), once
  // after open(); false: not for this decoder, and `out` is undefined.
  bool decode(const Region& region, int denominator, Image& out);
  // Where its parts are booked: entropy and pixels, twice for each row of MCUs; null: nowhere.
  void profile(SampleTimes* times) { times_ = times; }

 private:
  struct Tables;
  struct Component {
    // Of the file:
    int id = 0, h = 1, v = 1, quantisation = 0;
    int dc_table = 0, ac_table = 0;
    // At the scale that is asked for:
    int size = 8;               // pixels of a block's side
    int width = 0, height = 0;  // samples of the whole image
    // The samples of the region's columns of MCUs, of one row of MCUs, with one row above and below
    // and kMargin columns on each side.
    std::vector<uint8_t> plane;
    size_t stride = 0;
    uint8_t* row(int y) { return plane.data() + static_cast<size_t>(y + 1) * stride + kMargin; }
    int rows() const { return v * size; }
  };
  static constexpr size_t kMargin = 64;

  bool read_frame(std::span<const uint8_t> body);
  bool read_scan(std::span<const uint8_t> body);
  bool read_quantisation(std::span<const uint8_t> body);
  bool read_huffman(std::span<const uint8_t> body);
  bool is_ycc() const;

  bool unstuff();
  bool prepare_tables();
  bool begin_segment(size_t i);
  ptrdiff_t bits_left() const;
  bool pass(int mcus, int16_t* coefficients, uint8_t* last);

  void scale(int denominator);
  void choose_columns(const Region& region);
  bool read_row();
  bool transform_row();
  void extend_edges(int mcu_row);
  const uint8_t* chroma_row(size_t c, int y, int left, int width);
  void emit(int first, int end, int base, const Region& region, Image& out);

  const BaselineJpegKernels& kernels_;
  SampleTimes* times_ = nullptr;
  std::unique_ptr<Tables> tables_;
  // The file.
  int width_ = 0, height_ = 0, restart_interval_ = 0;
  bool saw_frame_ = false, saw_jfif_ = false;
  int adobe_transform_ = -1;  // -1: no such marker
  std::vector<Component> components_;
  std::array<std::array<uint16_t, kBlock>, 4> quantisation_{};
  std::array<bool, 4> has_quantisation_{};
  std::array<std::span<const uint8_t>, 8> huffman_;  // lengths and symbols; DC 0-3, AC 4-7
  std::span<const uint8_t> scan_;
  // Its entropy-coded bytes without stuffing, and where the pieces between restart markers end.
  std::vector<uint8_t> entropy_;
  std::vector<size_t> segment_ends_;
  EntropyState state_;
  size_t segment_ = 0;
  int left_in_segment_ = 0;  // MCUs
  // The region.
  std::vector<McuBlock> blocks_;  // of an MCU
  int mcu_width_ = 0, mcu_height_ = 0, mcus_per_row_ = 0, mcu_rows_ = 0;
  bool halves_x_ = false, halves_y_ = false, is_smooth_ = false;  // chroma, and its upsampling
  int first_mcu_ = 0, end_mcu_ = 0;                               // columns
  std::vector<int16_t> coefficients_;
  std::vector<uint8_t> last_;
  std::array<std::vector<uint8_t>, 2> upsampled_;  // a row of each chroma
  std::vector<uint16_t> sums_;
};

}  // namespace convoy::data
