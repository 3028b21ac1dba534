// The bytes that watchdogs exchange: what comes back is what was sent, and rubbish is refused.
#include "comm/heartbeat.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "comm/network_address.h"
#include "ops/core/error.h"

namespace convoy::comm {
namespace {

Frame beats() {
  Frame frame{.type = FrameType::kBeats, .beats = {}, .verdict = {}};
  for (int rank : {3, 7}) {
    Beat beat{.rank = rank, .state = {}};
    beat.state.phase = Phase::kInput;
    beat.state.step = 1ull << 40;
    beat.state.seconds = 4.5;
    beat.state.waits = true;
    beat.state.left = rank == 7;
    beat.state.saving = 3;
    beat.state.silence = 0.5;
    beat.state.closed = 9;
    beat.state.working[0] = 1;
    beat.state.working[1] = 2;
    beat.state.reducing = 7;
    beat.state.answers = 11;
    beat.state.answering = 0.25;
    beat.state.rounds = 2;
    beat.state.detail = "file x";
    frame.beats.push_back(beat);
  }
  return frame;
}

TEST(Heartbeat, FramesComeBackWhole) {
  std::string bytes = encode(beats());
  bytes += encode({.type = FrameType::kVerdict,
                   .beats = {},
                   .verdict = {.exit_code = 70, .culprits = {5}, .text = "rank 5 is wrong"}});
  bytes += encode({.type = FrameType::kBye, .beats = {}, .verdict = {}});
  bytes += encode({.type = FrameType::kEcho, .beats = {}, .verdict = {}});
  // However the network cuts them.
  std::string arrived;
  std::vector<Frame> frames;
  for (const char c : bytes) {
    arrived += c;
    Frame frame;
    if (take_frame(arrived, 8, frame) == Read::kFrame) frames.push_back(frame);
  }
  ASSERT_EQ(frames.size(), 4u);
  EXPECT_EQ(arrived, "");
  ASSERT_EQ(frames[0].beats.size(), 2u);
  EXPECT_EQ(encode(frames[0]), encode(beats()));
  EXPECT_EQ(frames[0].beats[1].rank, 7);
  EXPECT_EQ(frames[0].beats[1].state.detail, "file x");
  EXPECT_EQ(frames[0].beats[0].state.step, 1ull << 40);
  EXPECT_EQ(frames[1].verdict.exit_code, 70);
  EXPECT_EQ(frames[1].verdict.text, "rank 5 is wrong");
  EXPECT_EQ(frames[0].beats[0].state.reducing, 7);
  EXPECT_EQ(frames[0].beats[1].state.answers, 11u);
  EXPECT_EQ(frames[0].beats[1].state.answering, 0.25);
  EXPECT_EQ(frames[2].type, FrameType::kBye);
  EXPECT_EQ(frames[3].type, FrameType::kEcho);
}

TEST(Heartbeat, RanksThatDoNotExistAreRefused) {
  std::string bytes = encode(beats());
  Frame frame;
  EXPECT_EQ(take_frame(bytes, 7, frame), Read::kBad);
}

TEST(Heartbeat, LongTextsAreCut) {
  Frame frame = beats();
  frame.beats[0].state.detail = std::string(100000, 'x');
  std::string bytes = encode(frame);
  Frame back;
  ASSERT_EQ(take_frame(bytes, 8, back), Read::kFrame);
  EXPECT_LT(back.beats[0].state.detail.size(), 1000u);
}

TEST(Heartbeat, RubbishIsRefusedOrIncompleteButNeverTaken) {
  std::mt19937_64 random(1);
  const std::string good = encode(beats());
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int c = 0; c < changes; ++c) bytes[random() % bytes.size()] = static_cast<char>(random());
    bytes.resize(random() % (bytes.size() + 1));
    Frame frame;
    const Read read = take_frame(bytes, 8, frame);
    if (read != Read::kFrame) continue;
    EXPECT_LE(frame.beats.size(), 8u);
    for (const Beat& beat : frame.beats) EXPECT_LT(beat.rank, 8);
  }
  // A length that would fill the memory.
  std::string huge("\xff\xff\xff\x7f\x01", 5);
  Frame frame;
  EXPECT_EQ(take_frame(huge, 8, frame), Read::kBad);
}

TEST(Heartbeat, GreetingsNeedTheSecretOfTheirSide) {
  const Nonce nonce = Nonce::random(), other = Nonce::random();
  EXPECT_EQ(greeting(5, nonce.child).size(), kGreetingBytes);
  EXPECT_EQ(read_greeting(greeting(5, nonce.child), nonce.child), 5);
  EXPECT_EQ(read_greeting(greeting(5, nonce.child), nonce.parent), std::nullopt);
  EXPECT_EQ(read_greeting(greeting(5, other.child), nonce.child), std::nullopt);
  EXPECT_EQ(read_greeting(std::string(kGreetingBytes, 'x'), nonce.child), std::nullopt);
  EXPECT_EQ(read_greeting("", nonce.child), std::nullopt);
  EXPECT_EQ(Nonce::from(nonce.bytes()).parent, nonce.parent);
}

const std::vector<NetworkAddress> kOwn = {
    {.interface = "lo", .text = "127.0.0.1", .prefix_bits = 8, .loopback = true},
    {.interface = "eth0", .text = "10.0.3.4", .prefix_bits = 16, .loopback = false},
    {.interface = "ib0", .text = "192.168.7.4", .prefix_bits = 24, .loopback = false},
    {.interface = "ib0", .text = "fd00::4", .prefix_bits = 64, .loopback = false}};

std::vector<std::string> chosen(const std::string& wanted) {
  std::vector<std::string> texts;
  for (const NetworkAddress& a : choose_addresses(kOwn, wanted, "node1")) texts.push_back(a.text);
  return texts;
}

TEST(NetworkAddress, IsChosenByInterfaceAddressOrNetwork) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(chosen(""), (Texts{"10.0.3.4", "192.168.7.4", "fd00::4"}));
  EXPECT_EQ(chosen("ib0"), (Texts{"192.168.7.4", "fd00::4"}));
  EXPECT_EQ(chosen("10.0.0.0/8"), Texts{"10.0.3.4"});
  EXPECT_EQ(chosen("fd00::/32"), Texts{"fd00::4"});
  EXPECT_EQ(chosen("192.168.7.4,eth0"), (Texts{"192.168.7.4", "10.0.3.4"}));
  EXPECT_EQ(chosen("127.0.0.1"), Texts{"127.0.0.1"});
}

TEST(NetworkAddress, R17WhatIsNotThereIsRefusedWithWhatIs) {
  for (const char* wanted : {"eth7", "10.1.0.0/16", "10.0.0.0/x", "ib", ","}) {
    try {
      chosen(wanted);
      FAIL() << wanted;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadJob);
      EXPECT_NE(std::string(error.what()).find("node1 has no such"), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("eth0 10.0.3.4/16"), std::string::npos);
    }
  }
}

TEST(NetworkAddress, ThoseOfACommonNetworkAreTriedFirst) {
  EXPECT_EQ(order_addresses({"172.17.0.1", "10.0.9.9", "192.168.8.1", "fd00::9"}, kOwn),
            (std::vector<std::string>{"10.0.9.9", "fd00::9", "172.17.0.1", "192.168.8.1"}));
}

}  // namespace
}  // namespace convoy::comm
