// The floor: random numbers, digests, bf16 rounding, names in messages.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/random.h"
#include "ops/core/tensor.h"

namespace convoy {
namespace {

// Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 10 rounds).
TEST(Random, PhiloxEqualsThePublishedVectors) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, 0, 0),
            (Random4{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  const uint32_t ones = 0xffffffffu;
  EXPECT_EQ(philox4x32({ones, ones, ones, ones}, ones, ones),
            (Random4{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(
      philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0xa4093822u, 0x299f31d0u),
      (Random4{0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u}));
}

TEST(Random, PurposesAndSeedsDrawDifferentNumbers) {
  EXPECT_NE(random4(1, Purpose::kCrop, 5, 7), random4(1, Purpose::kFlip, 5, 7));
  EXPECT_NE(random4(1, Purpose::kCrop, 5, 7), random4(2, Purpose::kCrop, 5, 7));
  EXPECT_NE(random4(1, Purpose::kCrop, 5, 7), random4(uint64_t{1} << 32, Purpose::kCrop, 5, 7));
}

TEST(Random, NormalHasMeanZeroAndVarianceOne) {
  double sum = 0, squares = 0;
  const int n = 20000;
  for (int i = 0; i < n; ++i)
    for (double x : normal2(random4(3, Purpose::kInitialise, 0, static_cast<uint64_t>(i)))) {
      sum += x;
      squares += x * x;
    }
  // Standard errors at 40,000 draws: 0.005 and 0.007.
  EXPECT_NEAR(sum / (2 * n), 0.0, 0.025);
  EXPECT_NEAR(squares / (2 * n), 1.0, 0.035);
}

TEST(Digest, EqualsThePublishedVector) {
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256().update("a").update("bc").hex(), sha256_hex("abc"));
}

TEST(Bfloat16, RoundsToNearestEvenAndKeepsSpecialValues) {
  EXPECT_EQ(to_bfloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bfloat16(1.0f + 0x1p-8f).bits, 0x3f80);             // tie: to even
  EXPECT_EQ(to_bfloat16(1.0f + 3 * 0x1p-8f).bits, 0x3f82);         // tie: to even, upwards
  EXPECT_EQ(to_bfloat16(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);  // above the tie
  EXPECT_EQ(to_bfloat16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Float16, RoundsToNearestEven) {
  // All of its numbers come back, and what lies between two goes to the nearer one.
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float v = to_float(Float16{static_cast<uint16_t>(bits)});
    EXPECT_EQ(to_float16(v).bits, bits);
    EXPECT_EQ(to_float16(-v).bits, bits | 0x8000);
    const float next =
        bits == 0x7bff ? 65536.0f : to_float(Float16{static_cast<uint16_t>(bits + 1)});
    const float middle = v + (next - v) / 2;
    EXPECT_EQ(to_float16(middle).bits, bits + bits % 2);
    EXPECT_EQ(to_float16(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(to_float16(std::nextafter(middle, 1e9f)).bits, bits + 1);
  }
  EXPECT_EQ(to_float(Float16{0x3c00}), 1.0f);
  EXPECT_EQ(to_float(Float16{0x0001}), 0x1p-24f);
  EXPECT_EQ(to_float(Float16{0x7bff}), 65504.0f);
  EXPECT_EQ(to_float16(std::numeric_limits<float>::infinity()).bits, 0x7c00);
  EXPECT_EQ(to_float(Float16{0xfc00}), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(to_float(to_float16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Error, NamesFromOutsideStayOnOneLine) {
  EXPECT_EQ(printable("a\nb\x1b[31m\"\xff"), "a\\nb\\x1b[31m\\\"\\xff");
  EXPECT_EQ(printable("gr\xc3\xbc\xc3\x9f"), "gr\xc3\xbc\xc3\x9f");
  EXPECT_LE(printable(std::string(10000, 'x')).size(), 310u);
}

}  // namespace
}  // namespace convoy
