// The contact sheet: every pixel of every image is on it, unchanged, and text is under it.
#include "trainer/pictures/contact_sheet.h"

#include <gtest/gtest.h>

#include <set>

#include "data_loader/image.h"
#include "data_loader/png.h"

namespace convoy::trainer {
namespace {

std::vector<uint8_t> noise(const data::ImageShape& shape, uint32_t seed) {
  std::vector<uint8_t> out(shape.bytes());
  for (uint8_t& value : out)
    value = static_cast<uint8_t>((seed = seed * 1664525 + 1013904223) >> 24);
  return out;
}

const uint8_t* at(const ContactSheet& sheet, int x, int y) {
  return sheet.pixels.data() +
         (static_cast<size_t>(y) * static_cast<size_t>(sheet.width) + static_cast<size_t>(x)) * 3;
}

void expect_images(const ContactSheet& sheet, const data::ImageShape& shape,
                   const std::vector<std::vector<uint8_t>>& images) {
  ASSERT_EQ(sheet.places.size(), images.size());
  for (size_t i = 0; i < images.size(); ++i)
    for (int y = 0; y < shape.height * sheet.scale; ++y)
      for (int x = 0; x < shape.width * sheet.scale; ++x)
        for (int c = 0; c < 3; ++c) {
          const size_t pixel =
              static_cast<size_t>(y / sheet.scale) * static_cast<size_t>(shape.width) +
              static_cast<size_t>(x / sheet.scale);
          const uint8_t expected = shape.channels == 1
                                       ? images[i][pixel]
                                       : images[i][pixel * 3 + static_cast<size_t>(c)];
          ASSERT_EQ(at(sheet, sheet.places[i].first + x, sheet.places[i].second + y)[c], expected)
              << "image " << i << " at " << x << ", " << y;
        }
}

TEST(ContactSheet, HoldsEveryPixelOnce) {
  for (const data::ImageShape& shape :
       {data::ImageShape{28, 28, 1}, {32, 32, 3}, {224, 224, 3}, {7, 300, 3}, {1, 1, 3}})
    for (const int count : {1, 2, 7, 16}) {
      SCOPED_TRACE(fmt::format("{} x {}", to_string(shape), count));
      std::vector<std::vector<uint8_t>> pixels;
      std::vector<SheetImage> images;
      for (int i = 0; i < count; ++i) pixels.push_back(noise(shape, static_cast<uint32_t>(i)));
      for (const auto& p : pixels) images.push_back({p.data(), {"class", "#1 e0"}});
      const ContactSheet sheet = make_contact_sheet("title", shape, images);
      EXPECT_EQ(sheet.pixels.size(),
                static_cast<size_t>(sheet.width) * static_cast<size_t>(sheet.height) * 3);
      expect_images(sheet, shape, pixels);
      EXPECT_EQ(std::set(sheet.places.begin(), sheet.places.end()).size(), pixels.size());
    }
}

// Dark pixels in the text below image 0.
std::vector<bool> ink_below(const std::string& line) {
  const data::ImageShape shape{112, 112, 1};
  const std::vector<uint8_t> white(shape.bytes(), 255);
  const ContactSheet sheet = make_contact_sheet("", shape, {{white.data(), {line}}});
  std::vector<bool> ink;
  for (int y = sheet.places[0].second + 112; y < sheet.height; ++y)
    for (int x = 0; x < sheet.width; ++x) ink.push_back(at(sheet, x, y)[0] < 128);
  return ink;
}

TEST(ContactSheet, EveryLetterLooksDifferent) {
  std::set<std::vector<bool>> seen;
  for (char c = ' '; c <= '~'; ++c) EXPECT_TRUE(seen.insert(ink_below({c})).second) << c;
  EXPECT_EQ(ink_below("\xff\n"), ink_below("??"));
  // What does not fit is cut, and said to be.
  EXPECT_EQ(ink_below(std::string(100, 'a')), ink_below(std::string(16, 'a') + ".."));
}

TEST(ContactSheet, ThePngHoldsThePixels) {
  const std::vector<uint8_t> pixels = noise({13, 21, 3}, 5);
  const std::string file = data::encode_png(pixels, 21, 13);
  data::ImageDecoder decoder;
  data::ImageShape shape;
  data::ImageCodec& codec = decoder.open(
      {reinterpret_cast<const uint8_t*>(file.data()), file.size()}, "sheet", 1000, shape);
  data::Image image;
  codec.decode({0, 0, shape.width, shape.height}, 1, image);
  EXPECT_EQ(shape, (data::ImageShape{13, 21, 3}));
  EXPECT_EQ(image.pixels, pixels);
}

}  // namespace
}  // namespace convoy::trainer
