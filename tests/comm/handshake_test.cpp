// Who differs from whom; the exchange of the facts over ranks is in communicator_test.
#include "comm/handshake.h"

#include <gtest/gtest.h>

namespace convoy::comm {
namespace {

const std::vector<std::string> kHosts = {"alpha", "beta", "gamma"};

TEST(Handshake, EqualFactsAreNoError) {
  const Facts facts = {{"version", "1"}, {"job digest", "abc"}};
  EXPECT_EQ(disagreement({facts, facts, facts}, kHosts), "");
  EXPECT_EQ(disagreement({{}, {}, {}}, kHosts), "");
}

TEST(Handshake, TheOddRankIsNamedWithKeyValuesAndHosts) {
  const Facts right = {{"version", "1"}, {"job digest", "abc"}};
  const Facts wrong = {{"version", "1"}, {"job digest", "xyz"}};
  EXPECT_NE(disagreement({wrong, right, right}, kHosts)
                .find("rank 0 (alpha) has job digest \"xyz\" where rank 1 (beta) has \"abc\";"),
            std::string::npos);
  EXPECT_NE(disagreement({right, right, wrong}, kHosts)
                .find("rank 2 (gamma) has job digest \"xyz\" where rank 0 (alpha) has \"abc\";"),
            std::string::npos);
}

TEST(Handshake, MissingKeysAndTies) {
  EXPECT_NE(disagreement({{{"isa", "avx2"}}, {}, {{"isa", "avx2"}}}, kHosts)
                .find("rank 1 (beta) has isa nothing where rank 0 (alpha) has \"avx2\""),
            std::string::npos);
  // One against one: the lowest rank counts as right.
  EXPECT_NE(disagreement({{{"isa", "avx2"}}, {{"isa", "avx512"}}}, kHosts)
                .find("rank 1 (beta) has isa \"avx512\" where rank 0 (alpha) has \"avx2\""),
            std::string::npos);
}

TEST(Handshake, ManyDifferencesStayOneLine) {
  std::vector<Facts> facts(40);
  std::vector<std::string> hosts(40, "host\n");
  for (size_t r = 0; r < facts.size(); ++r) facts[r] = {{"digest", std::string(5000, 'a') + "\n"}};
  for (size_t r = 0; r < 12; ++r) facts[r + 20] = {{"digest", "b"}};
  const std::string text = disagreement(facts, hosts);
  EXPECT_NE(text.find("rank 27 "), std::string::npos);
  EXPECT_EQ(text.find("rank 28 "), std::string::npos);
  EXPECT_NE(text.find("and 4 more"), std::string::npos) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_LT(text.size(), 4000u);
}

}  // namespace
}  // namespace convoy::comm
