// The measure of the limit: JPEGs have one, other bytes do not, and one bad file spoils no other.
#include "data_loader/jpeg_limit.h"

#include <gtest/gtest.h>

#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(EntropyDecoder, DecodesEveryKindOfJpegAndNothingElse) {
  const std::string jpeg = test::encode_jpeg(test::make_image(200, 120, 3, 1));
  const std::string progressive =
      test::encode_jpeg(test::make_image(64, 64, 3, 2), {.progressive = true});
  const std::string grey = test::encode_jpeg(test::make_image(33, 17, 1, 3));
  const std::string png = test::encode_png(test::make_image(32, 32, 3, 4));
  EntropyDecoder decoder;
  for (int round = 0; round < 3; ++round) {
    for (const std::string* good : {&jpeg, &progressive, &grey}) {
      const std::optional<Spent> spent = decoder.decode(bytes_of(*good));
      ASSERT_TRUE(spent);
      EXPECT_GT(spent->seconds, 0);
      EXPECT_GT(spent->cpu_seconds, 0);
    }
    EXPECT_FALSE(decoder.decode(bytes_of(png)));
    EXPECT_FALSE(decoder.decode(bytes_of("")));
    EXPECT_FALSE(decoder.decode(bytes_of(jpeg.substr(0, 30))));
  }
}

}  // namespace
}  // namespace convoy::data
