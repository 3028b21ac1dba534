#include "tests/support/tiny_images.h"

#include <png.h>
#include <zlib.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
// jpeglib.h needs <cstdio> first.
#include <jpeglib.h>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::test {

TestImage make_image(int width, int height, int channels, uint64_t seed) {
  TestImage image{width, height, channels, {}};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < channels; ++c) {
        const Random4 noise =
            random4(seed, Purpose::kSyntheticData, static_cast<uint64_t>(y * width + x),
                    static_cast<uint64_t>(c));
        const double phase = static_cast<double>(seed) * 1.7 + c * 2.1;
        const double wave = std::sin(x * 0.11 + phase) * std::cos(y * 0.07 - phase);
        image.pixels.push_back(static_cast<uint8_t>(118 + 100 * wave + noise[0] % 20));
      }
  return image;
}

std::string encode_jpeg(const TestImage& image, const JpegStyle& style) {
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg.err = jpeg_std_error(&errors);  // exits on error: the input is ours
  jpeg_create_compress(&jpeg);
  unsigned char* buffer = nullptr;
  unsigned long bytes = 0;
  jpeg_mem_dest(&jpeg, &buffer, &bytes);
  jpeg.image_width = static_cast<JDIMENSION>(image.width);
  jpeg.image_height = static_cast<JDIMENSION>(image.height);
  jpeg.input_components = image.channels;
  jpeg.in_color_space = image.channels == 1   ? JCS_GRAYSCALE
                        : image.channels == 3 ? JCS_RGB
                                              : JCS_CMYK;
  jpeg_set_defaults(&jpeg);
  if (image.channels == 4) {
    jpeg_set_colorspace(&jpeg, style.ycck ? JCS_YCCK : JCS_CMYK);
    jpeg.write_Adobe_marker = style.adobe_marker ? TRUE : FALSE;
  }
  jpeg_set_quality(&jpeg, style.quality, TRUE);
  if (image.channels == 3) {
    jpeg.comp_info[0].h_samp_factor = style.chroma_x;
    jpeg.comp_info[0].v_samp_factor = style.chroma_y;
  }
  if (style.progressive) jpeg_simple_progression(&jpeg);
  jpeg.optimize_coding = style.optimised ? TRUE : FALSE;
  jpeg.restart_interval = static_cast<unsigned>(style.restart_interval);
  jpeg.arith_code = style.arithmetic ? TRUE : FALSE;
  jpeg_start_compress(&jpeg, TRUE);
  const size_t stride = static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
  while (jpeg.next_scanline < jpeg.image_height) {
    JSAMPROW row = const_cast<JSAMPROW>(image.pixels.data() + jpeg.next_scanline * stride);
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  std::string out(reinterpret_cast<const char*>(buffer), bytes);
  jpeg_destroy_compress(&jpeg);
  std::free(buffer);
  return out;
}

std::string encode_png(const TestImage& image, const PngStyle& style) {
  std::string out;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &out,
      [](png_structp p, png_bytep data, size_t bytes) {
        static_cast<std::string*>(png_get_io_ptr(p))->append(reinterpret_cast<char*>(data), bytes);
      },
      nullptr);
  const int color = image.channels == 1   ? PNG_COLOR_TYPE_GRAY
                    : image.channels == 3 ? PNG_COLOR_TYPE_RGB
                                          : PNG_COLOR_TYPE_RGBA;
  png_set_IHDR(png, info, static_cast<png_uint_32>(image.width),
               static_cast<png_uint_32>(image.height), style.bits, color,
               style.interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  std::vector<uint8_t> bytes;
  for (const uint8_t value : image.pixels) {
    bytes.push_back(value);
    if (style.bits == 16) bytes.push_back(static_cast<uint8_t>(value * 37 + 11));
  }
  const size_t stride = bytes.size() / static_cast<size_t>(image.height);
  std::vector<png_bytep> rows;
  for (size_t y = 0; y < static_cast<size_t>(image.height); ++y)
    rows.push_back(bytes.data() + y * stride);
  png_write_info(png, info);
  png_write_image(png, rows.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return out;
}

namespace {

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

}  // namespace

std::string encode_idx_images(int n, int height, int width, const std::vector<uint8_t>& pixels) {
  return big_endian(0x803) + big_endian(static_cast<uint32_t>(n)) +
         big_endian(static_cast<uint32_t>(height)) + big_endian(static_cast<uint32_t>(width)) +
         std::string(pixels.begin(), pixels.end());
}

std::string encode_idx_labels(const std::vector<uint8_t>& labels) {
  return big_endian(0x801) + big_endian(static_cast<uint32_t>(labels.size())) +
         std::string(labels.begin(), labels.end());
}

std::string gzip(std::string_view bytes) {
  z_stream stream{};
  constexpr int kGzip = 16;
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + kGzip, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

void make_image_folder(const TempFolder& root, int classes, int train_per_class,
                       int val_per_class) {
  uint64_t seed = 1;
  for (const bool train : {true, false})
    for (int c = 0; c < classes; ++c)
      for (int i = 0; i < (train ? train_per_class : val_per_class); ++i, ++seed) {
        const int width = 40 + static_cast<int>(seed * 7 % 31);
        const int height = 36 + static_cast<int>(seed * 11 % 29);
        root.write(fmt::format("{}/class_{}/image_{}.jpg", train ? "train" : "val", c, i),
                   encode_jpeg(make_image(width, height, 3, seed)));
      }
}

}  // namespace convoy::test
