// Collective calls, on any number of ranks.
#include "comm/communicator.h"

#include <gtest/gtest.h>

#include "comm/handshake.h"
#include "ops/core/error.h"
#include "tests/support/mpi_main.h"

namespace convoy::comm {
namespace {

using convoy::testing::world;

TEST(Communicator, RanksKnowTheirPlace) {
  EXPECT_GE(world().rank(), 0);
  EXPECT_LT(world().rank(), world().size());
  // Tests run on one host.
  EXPECT_EQ(world().local_size(), world().size());
  EXPECT_EQ(world().local_rank(), world().rank());
  ASSERT_EQ(world().hosts().size(), static_cast<size_t>(world().size()));
  EXPECT_FALSE(world().host().empty());
  EXPECT_EQ(world().hosts().front(), world().host());
}

TEST(Communicator, BroadcastGivesTheRootsBytesFromAnyRoot) {
  for (int root = 0; root < world().size(); ++root)
    for (const size_t size : {size_t{0}, size_t{1}, size_t{100000}}) {
      const std::string expected(size, static_cast<char>('a' + root));
      std::string text = world().rank() == root ? expected : "something else";
      world().broadcast(text, root);
      EXPECT_EQ(text, expected);
      std::vector<std::byte> bytes(world().rank() == root ? size : 3, std::byte{7});
      world().broadcast(bytes, root);
      EXPECT_EQ(bytes, std::vector<std::byte>(size, std::byte{7}));
    }
}

// More than one message's worth: the pieces must fit together.
TEST(Communicator, BroadcastCutsLargeMessages) {
  std::string text;
  if (world().rank() == 0) {
    text.resize((size_t{33} << 20) + 5);
    for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 2654435761u >> 13);
  }
  world().broadcast(text, 0);
  ASSERT_EQ(text.size(), (size_t{33} << 20) + 5);
  size_t wrong = 0;
  for (size_t i = 0; i < text.size(); ++i)
    wrong += text[i] != static_cast<char>(i * 2654435761u >> 13);
  EXPECT_EQ(wrong, 0u);
}

TEST(Communicator, AllGatherKeepsTheOrderAndSizesOfRanks) {
  const auto text_of = [](int rank) {
    return rank == 1 ? std::string()
                     : std::string(static_cast<size_t>(rank) * 1000 + 3, 'x') +
                           std::string(1, '\0') + std::to_string(rank);
  };
  const std::vector<std::string> all = world().all_gather(text_of(world().rank()));
  ASSERT_EQ(all.size(), static_cast<size_t>(world().size()));
  for (int r = 0; r < world().size(); ++r) EXPECT_EQ(all[static_cast<size_t>(r)], text_of(r));
}

TEST(Communicator, SumsIntegersExactly) {
  const int64_t big = int64_t{1} << 60;
  std::vector<int64_t> values = {1, world().rank(), world().rank() == 0 ? big + 1 : -3};
  world().all_reduce_sum(values);
  const int64_t n = world().size();
  EXPECT_EQ(values, (std::vector<int64_t>{n, n * (n - 1) / 2, big + 1 - 3 * (n - 1)}));
  world().all_reduce_sum(std::span<int64_t>());
}

TEST(Communicator, FindsTheLargestNumber) {
  const int64_t big = int64_t{1} << 60;
  for (int odd = 0; odd < world().size(); ++odd) {
    const bool is_odd = world().rank() == odd;
    EXPECT_EQ(world().all_reduce_max(is_odd ? big + 1 : big), big + 1);
    EXPECT_EQ(world().all_reduce_max(is_odd ? -7 : -8), -7);
  }
}

TEST(Communicator, NobodyLeavesABarrierBeforeAllAreThere) {
  // Each rank announces itself only in the barrier's order: without one, the sums of two rounds
  // mix.
  for (int round = 0; round < 50; ++round) {
    world().barrier();
    int64_t rounds = round;
    world().all_reduce_sum({&rounds, 1});
    ASSERT_EQ(rounds, int64_t{round} * world().size());
  }
}

TEST(Handshake, AllRanksThrowTheSameErrorAboutTheOddOne) {
  const Facts right = {{"version", "1"}, {"empty", ""}};
  EXPECT_NO_THROW(handshake(world(), right));
  if (world().size() == 1) return;
  const int odd = world().size() - 1;
  Facts facts = right;
  if (world().rank() == odd) facts[0].second = "2";
  try {
    handshake(world(), facts);
    FAIL() << "nobody noticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kFault);
    const std::string text = error.what();
    EXPECT_NE(
        text.find(fmt::format("rank {} ({}) has version \"2\" where rank 0", odd, world().host())),
        std::string::npos)
        << text;
    for (const std::string& other : world().all_gather(text)) EXPECT_EQ(other, text);
  }
}

}  // namespace
}  // namespace convoy::comm
