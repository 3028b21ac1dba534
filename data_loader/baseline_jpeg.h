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
#include "data_loader/jpeg_pixels.h"
#include "data_loader/sample_times.h"

namespace convoy::data {

// Keeps its memory and Huffman tables from one image to the next. Not thread-safe: one per thread.
class BaselineJpeg : private BlockSource {
 public:
  BaselineJpeg();
  ~BaselineJpeg() override;

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
    int id = 0, quantisation = 0;
    int dc_table = 0, ac_table = 0;
  };

  bool read_frame(std::span<const uint8_t> body);
  bool read_scan(std::span<const uint8_t> body);
  bool read_quantisation(std::span<const uint8_t> body);
  bool read_huffman(std::span<const uint8_t> body);
  bool is_ycc() const;

  bool unstuff();
  bool prepare_tables();
  bool begin_segment(size_t i);
  ptrdiff_t bits_left() const;
  bool pass(int64_t mcus, int16_t* coefficients, uint8_t* last);
  bool read(int row, int first, int end, int16_t* coefficients, uint8_t* last) override;

  const BaselineJpegKernels& kernels_;
  SampleTimes* times_ = nullptr;
  std::unique_ptr<Tables> tables_;
  // The file.
  JpegFrame frame_;
  int restart_interval_ = 0;
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
  int left_in_segment_ = 0;       // MCUs
  int64_t at_mcu_ = 0;            // the next one
  std::vector<McuBlock> blocks_;  // of an MCU
  JpegPixels pixels_;
};

}  // namespace convoy::data
