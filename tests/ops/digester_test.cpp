// Digests of tensors on every device: any change is seen, and nothing but the contents counts.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <set>

#include "ops/core/digest_term.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

class DigesterTest : public testing::TestWithParam<std::string> {
 protected:
  // Two tensors that share memory with nothing, and lie where vectors do not.
  static constexpr size_t kFirst = 3 * kDigestBlock + 17, kSecond = 5, kGap = 3;

  DigesterTest() : values_(kFirst + kGap + kSecond) {
    for (size_t i = 0; i < values_.size(); ++i)
      values_[i] = 2 * uniform_float(random4(3, Purpose::kSyntheticData, i, 0)[0]) - 1;
  }

  std::vector<uint64_t> digests(int threads = 1, const Parallel& parallel = one_part) {
    const auto device = make_device(GetParam(), threads);
    const DeviceMemory memory = device->allocate(values_.size() * sizeof(float));
    device->upload(memory.data.get(), values_.data(), memory.bytes);
    const auto* data = static_cast<const float*>(memory.data.get());
    const auto digester =
        device->make_digester({{data, kFirst}, {data + kFirst + kGap, kSecond}}, parallel);
    return digester->digests();
  }

  void flip(size_t i, int bit) {
    values_[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(values_[i]) ^ (1u << bit));
  }

  std::vector<float> values_;
};

TEST_P(DigesterTest, IsTheSumOfTheTermsOnAnyNumberOfThreads) {
  std::vector<uint64_t> expected(2);
  for (size_t i = 0; i < kFirst; ++i)
    expected[0] += digest_term(i, std::bit_cast<uint32_t>(values_[i]));
  for (size_t i = 0; i < kSecond; ++i)
    expected[1] += digest_term(i, std::bit_cast<uint32_t>(values_[kFirst + kGap + i]));
  EXPECT_EQ(digests(), expected);
  EXPECT_EQ(digests(3), expected);
  EXPECT_EQ(digests(1,
                    [](const std::function<void(int, int)>& body) {
                      for (const int part : {4, 0, 2, 1, 3}) body(part, 5);
                    }),
            expected);
}

TEST_P(DigesterTest, SeesEveryBitOfEveryTensor) {
  const std::vector<uint64_t> before = digests();
  for (const size_t i : {size_t{0}, size_t{15}, kDigestBlock - 1, kDigestBlock, kFirst - 1})
    for (const int bit : {0, 1, 22, 23, 30, 31}) {
      flip(i, bit);
      EXPECT_NE(digests()[0], before[0]) << "float " << i << ", bit " << bit;
      EXPECT_EQ(digests()[1], before[1]);
      flip(i, bit);
    }
  flip(kFirst, 3);  // between the tensors
  EXPECT_EQ(digests(), before);
  flip(kFirst + kGap, 31);
  EXPECT_EQ(digests()[0], before[0]);
  EXPECT_NE(digests()[1], before[1]);
}

TEST_P(DigesterTest, SeesSwapsAndShifts) {
  const std::vector<uint64_t> before = digests();
  std::swap(values_[7], values_[8]);
  EXPECT_NE(digests()[0], before[0]);
  std::swap(values_[7], values_[8]);
  std::swap(values_[7], values_[7 + kDigestBlock]);
  EXPECT_NE(digests()[0], before[0]);
  std::swap(values_[7], values_[7 + kDigestBlock]);
  ASSERT_EQ(digests(), before);
  std::rotate(values_.begin(), values_.begin() + 1, values_.begin() + kFirst);
  EXPECT_NE(digests()[0], before[0]);
  // Two flips of the same bit do not cancel.
  values_.assign(values_.size(), 0.0f);
  std::set<uint64_t> seen = {digests()[0]};
  values_[3] = values_[4] = -0.0f;
  EXPECT_TRUE(seen.insert(digests()[0]).second);
  values_[3] = 0.0f;
  values_[5] = -0.0f;
  EXPECT_TRUE(seen.insert(digests()[0]).second);
}

TEST_P(DigesterTest, OfAPartLeavesTheOthersAsTheyWere) {
  const auto device = make_device(GetParam(), 1);
  const DeviceMemory memory = device->allocate(2 * kDigestBlock * sizeof(float));
  auto* data = static_cast<float*>(memory.data.get());
  const auto digester =
      device->make_digester({{data, kDigestBlock + 1}, {data + kDigestBlock + 1, 7}});
  const std::vector<uint64_t> before = digester->digests();
  const float one = 1.0f;
  device->upload(data, &one, sizeof one);
  device->upload(data + kDigestBlock + 1, &one, sizeof one);
  digester->run(1, 2);
  EXPECT_EQ(digester->result()[0], before[0]);
  EXPECT_NE(digester->result()[1], before[1]);
}

INSTANTIATE_TEST_SUITE_P(Devices, DigesterTest, testing::ValuesIn(device_names()),
                         [](const auto& each) { return each.param; });

// All single bits of many places, and all values of a bit pattern: no two terms are the same.
TEST(DigestTerm, TellsPlacesAndBitsApart) {
  std::set<uint64_t> seen;
  size_t count = 0;
  for (uint64_t index = 0; index < 2000; ++index)
    for (int bit = -1; bit < 32; ++bit, ++count)
      seen.insert(digest_term(index, bit < 0 ? 0 : 1u << bit));
  EXPECT_EQ(seen.size(), count);
}

TEST(DigestTerm, JoiningMindsTheOrder) {
  EXPECT_NE(digest_join(digest_join(0, 1), 2), digest_join(digest_join(0, 2), 1));
  EXPECT_NE(digest_join(0, 0), digest_join(digest_join(0, 0), 0));
}

}  // namespace
}  // namespace convoy::ops
