// Made-up datasets for tests: images encoded on the spot, IDX files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/temp_folder.h"

namespace convoy::test {

struct TestImage {
  int width = 0, height = 0, channels = 3;
  std::vector<uint8_t> pixels;  // [height, width, channels]

  uint8_t at(int x, int y, int c) const {
    return pixels[(static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x)) *
                      static_cast<size_t>(channels) +
                  static_cast<size_t>(c)];
  }
};

// Smooth waves with a little noise; another picture for each seed.
TestImage make_image(int width, int height, int channels, uint64_t seed);

struct JpegStyle {
  int quality = 90;
  bool progressive = false;
  int chroma_x = 2, chroma_y = 2;  // subsampling of chroma: 2, 2 is 4:2:0
  bool ycck = false;               // 4 channels: YCCK instead of CMYK
  bool adobe_marker = true;        // 4 channels
  bool arithmetic = false;         // arithmetic coding instead of Huffman's
  bool optimised = false;          // Huffman codes made for the image
  int restart_interval = 0;        // MCUs between restart markers; 0: none
};

// 1 channel: grey; 3: RGB stored as YCbCr; 4: CMYK or YCCK, values stored as they are.
std::string encode_jpeg(const TestImage& image, const JpegStyle& style = {});

struct PngStyle {
  int bits = 8;  // 8 or 16 (the low byte is noise)
  bool interlaced = false;
};

// 1 channel: grey; 3: RGB; 4: RGB and alpha.
std::string encode_png(const TestImage& image, const PngStyle& style = {});

std::string encode_idx_images(int n, int height, int width, const std::vector<uint8_t>& pixels);
std::string encode_idx_labels(const std::vector<uint8_t>& labels);
std::string gzip(std::string_view bytes);

// root/<split>/class_<c>/image_<i>.jpg for train and val; sizes vary from image to image.
void make_image_folder(const TempFolder& root, int classes, int train_per_class, int val_per_class);

}  // namespace convoy::test
