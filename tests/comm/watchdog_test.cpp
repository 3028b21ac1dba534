// Watchdogs of a made-up job, one per thread, and strangers that call at their door.
#include "comm/watchdog.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "comm/heartbeat.h"
#include "comm/network_address.h"
#include "ops/core/log.h"

namespace convoy::comm {
namespace {

// Generous: the machine may be loaded.
constexpr double kPatience = 60;

// What the ranks of a made-up world share.
struct World {
  explicit World(int n)
      : size(n), meeting(n), texts(static_cast<size_t>(n)), hosts(static_cast<size_t>(n), "here") {}

  const int size;
  std::barrier<> meeting;
  std::vector<std::string> texts;
  std::vector<std::string> hosts;
  std::vector<std::string> of_rank_0;  // what it has handed out so far; rank 0's
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(World& world, int rank) : world_(world), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return world_.size; }
  int local_rank() const override { return rank_; }
  int local_size() const override { return world_.size; }
  const std::vector<std::string>& hosts() const override { return world_.hosts; }

  void broadcast(std::string& text, int root) override {
    text = all_gather(text)[static_cast<size_t>(root)];
  }
  std::vector<std::string> all_gather(const std::string& text) override {
    world_.texts[static_cast<size_t>(rank_)] = text;
    world_.meeting.arrive_and_wait();
    const std::vector<std::string> all = world_.texts;
    if (rank_ == 0) world_.of_rank_0.push_back(all[0]);
    world_.meeting.arrive_and_wait();
    return all;
  }
  void barrier() override { world_.meeting.arrive_and_wait(); }

  void broadcast(std::vector<std::byte>&, int) override {}
  void all_reduce_sum(std::span<int64_t>) override {}
  int64_t all_reduce_max(int64_t value) override { return value; }
  std::vector<std::unique_ptr<Lane>> open_lanes(int) override { return {}; }
  void start(Exchange&) override {}
  void drop(Exchange&) override {}
  void enter_wait() override {}
  void leave_wait() override {}
  uint64_t waiting() const override { return 0; }
  int finish(int exit_code, const std::string&, const std::function<void()>&) noexcept override {
    return exit_code;
  }
  void abort(int exit_code, const std::string&) noexcept override { _exit(exit_code); }

 private:
  World& world_;
  const int rank_;
};

// How the ranks' watchdogs ended.
class Ends {
 public:
  void note(int rank, const Verdict& verdict) {
    const std::lock_guard lock(mutex_);
    verdicts_[rank] = verdict;
    changed_.notify_all();
  }
  // Waits for `n` of them.
  std::map<int, Verdict> wait_for(size_t n, double seconds = kPatience) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                      [&] { return verdicts_.size() >= n; });
    return verdicts_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, Verdict> verdicts_;
};

WatchdogConfig quick(Ends& ends, int rank) {
  WatchdogConfig config;
  config.heartbeat = 0.05;
  config.deadlines = {.start = 0, .input = 0, .compute = 0, .reduce = 0, .save = 0, .silence = 30};
  config.end = [&ends, rank](const Verdict& verdict) { ends.note(rank, verdict); };
  return config;
}

// Runs body(rank, communicator) on a thread for each of the ranks.
template <typename Body>
void on_ranks(World& world, int ranks, Body body) {
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&world, &body, rank] {
      ThreadCommunicator communicator(world, rank);
      body(rank, communicator);
    });
}

std::mutex lines_mutex;
std::vector<std::string> lines;
void collect(log::Level, const std::string& line) {
  const std::lock_guard lock(lines_mutex);
  lines.push_back(line);
}
int lines_with(const std::string& words) {
  const std::lock_guard lock(lines_mutex);
  return static_cast<int>(std::ranges::count_if(
      lines, [&](const std::string& l) { return l.find(words) != std::string::npos; }));
}

class WatchdogTest : public testing::Test {
 protected:
  void SetUp() override {
    lines.clear();
    log::set_sink(collect);
  }
  void TearDown() override { log::set_sink(nullptr); }

  template <typename Condition>
  static bool wait_until(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(kPatience);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }
};

// 22 ranks with a fan-out of 2 are five levels deep.
TEST_F(WatchdogTest, AVerdictCrossesADeepTreeBothWays) {
  constexpr int kRanks = 22, kCulprit = 21;
  World world(kRanks);
  Ends ends;
  on_ranks(world, kRanks, [&](int rank, Communicator& communicator) {
    WatchdogConfig config = quick(ends, rank);
    config.fan_out = 2;
    config.deadlines.input = 1.5;
    Watchdog watchdog(communicator, config);
    Watchdog::Scope wait, words;
    if (rank == kCulprit) {
      watchdog.enter(Phase::kCompute, 812);
      words = watchdog.describe(Phase::kInput, [] { return std::string("file y"); });
      wait = watchdog.input();
    } else {
      watchdog.enter(Phase::kReduce, 812, 4);
    }
    EXPECT_EQ(ends.wait_for(kRanks).size(), static_cast<size_t>(kRanks));
  });
  for (const auto& [rank, verdict] : ends.wait_for(kRanks)) {
    EXPECT_EQ(verdict.exit_code, 75);
    EXPECT_EQ(verdict.text.find("rank 21 on here: waiting for input "), 0u) << verdict.text;
    EXPECT_NE(verdict.text.find(", file y, step 812; ranks 0-20 waiting in reduce of bucket 4"),
              std::string::npos)
        << verdict.text;
  }
}

TEST_F(WatchdogTest, GettingOnBeginsTheDeadlineAnew) {
  World world(2);
  Ends ends;
  on_ranks(world, 2, [&](int rank, Communicator& communicator) {
    WatchdogConfig config = quick(ends, rank);
    config.deadlines.compute = 2;
    Watchdog watchdog(communicator, config);
    watchdog.enter(rank == 0 ? Phase::kReduce : Phase::kCompute, 1);
    for (int i = 0; i < 12; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(250));
      if (i % 2 == 0)
        watchdog.progress();
      else
        const auto wait = watchdog.input();
    }
    communicator.barrier();
  });
  EXPECT_TRUE(ends.wait_for(1, 0).empty());
}

TEST_F(WatchdogTest, AnyRankCanEndTheJobWithAnotherCode) {
  // Rank 1 is played by the test: it asks for the end on the wire.
  World world(2);
  Ends ends;
  std::jthread root([&] {
    ThreadCommunicator communicator(world, 0);
    Watchdog watchdog(communicator, quick(ends, 0));
    ends.wait_for(1);
  });
  ThreadCommunicator communicator(world, 1);
  std::string secret;
  communicator.broadcast(secret, 0);
  const std::string offer = communicator.all_gather("")[0];
  const Nonce nonce = Nonce::from(secret);
  const auto port = static_cast<uint16_t>(std::stoi(offer));
  const Socket socket = begin_to_connect("127.0.0.1", port);
  pollfd writable{socket.fd(), POLLOUT, 0};
  ASSERT_EQ(::poll(&writable, 1, 10000), 1);
  std::string bytes = greeting(1, nonce.child);
  bytes += encode({.type = FrameType::kVerdict,
                   .beats = {},
                   .verdict = {.exit_code = 70, .culprits = {1}, .text = "weights differ"}});
  ASSERT_EQ(::send(socket.fd(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  communicator.all_gather("");
  const auto verdicts = ends.wait_for(1);
  ASSERT_EQ(verdicts.size(), 1u);
  EXPECT_EQ(verdicts.at(0).exit_code, 70);
  EXPECT_EQ(verdicts.at(0).text, "weights differ");
}

TEST_F(WatchdogTest, TheCallerOfAVerdictDoesNotReturn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        log::set_sink(nullptr);
        const std::unique_ptr<Communicator> communicator = make_communicator("local");
        Watchdog watchdog(*communicator, WatchdogConfig());
        watchdog.verdict(ExitCode::kFault, "weights differ");
      },
      testing::ExitedWithCode(70), "error: weights differ");
}

TEST(StartAlarm, EndsTheProcessUnlessTheRanksMeet) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const StartAlarm alarm(0.1);
        std::this_thread::sleep_for(std::chrono::seconds(60));
      },
      testing::ExitedWithCode(75), "have not met within");
  { const StartAlarm alarm(0.5); }
  std::this_thread::sleep_for(std::chrono::seconds(1));
}

TEST_F(WatchdogTest, AConnectionThatBreaksWithoutAGoodbyeIsADeadRank) {
  World world(2);
  Ends ends;
  std::jthread root([&] {
    ThreadCommunicator communicator(world, 0);
    Watchdog watchdog(communicator, quick(ends, 0));
    ends.wait_for(1);
  });
  ThreadCommunicator communicator(world, 1);
  std::string secret;
  communicator.broadcast(secret, 0);
  const std::string offer = communicator.all_gather("")[0];
  const auto port = static_cast<uint16_t>(std::stoi(offer));
  {
    const Socket socket = begin_to_connect("127.0.0.1", port);
    pollfd writable{socket.fd(), POLLOUT, 0};
    ASSERT_EQ(::poll(&writable, 1, 10000), 1);
    Frame frame{.type = FrameType::kBeats, .beats = {{.rank = 1, .state = {}}}, .verdict = {}};
    frame.beats[0].state.phase = Phase::kCompute;
    const std::string bytes = greeting(1, Nonce::from(secret).child) + encode(frame);
    ASSERT_EQ(::send(socket.fd(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
    communicator.all_gather("");
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  const auto verdicts = ends.wait_for(1);
  ASSERT_EQ(verdicts.size(), 1u);
  EXPECT_EQ(verdicts.at(0).text.find("rank 1 on here: its connection broke"), 0u)
      << verdicts.at(0).text;
}

// R19: rubbish, a wrong secret, silence, and a rank that does not exist.
TEST_F(WatchdogTest, R19StrangersAreDroppedAndNamed) {
  World world(3);
  Ends ends;
  on_ranks(world, 3, [&](int rank, Communicator& communicator) {
    Watchdog watchdog(communicator, quick(ends, rank));
    watchdog.enter(Phase::kCompute, 1);
    if (rank == 0) {
      const auto port = static_cast<uint16_t>(std::stoi(world.of_rank_0[1]));  // after the secret
      std::vector<Socket> sockets;
      for (const std::string& bytes :
           {std::string("GET / HTTP/1.1\r\nHost: rank-zero.example\r\n\r\n"),
            greeting(1, Nonce::random().child), std::string(1 << 20, 'x'), std::string()}) {
        Socket socket = begin_to_connect("127.0.0.1", port);
        pollfd writable{socket.fd(), POLLOUT, 0};
        ASSERT_EQ(::poll(&writable, 1, 10000), 1);
        [[maybe_unused]] const ssize_t sent =
            ::send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        sockets.push_back(std::move(socket));
      }
      EXPECT_TRUE(wait_until([] { return lines_with("it is none of this job") == 3; }));
      EXPECT_TRUE(wait_until([] { return lines_with("it did not say who it is") == 1; }));
      EXPECT_GE(lines_with("dropped a connection from "), 4);
      for (const Socket& socket : sockets) {
        pollfd gone{socket.fd(), POLLIN, 0};
        EXPECT_EQ(::poll(&gone, 1, 10000), 1) << "hung up";
      }
    }
    communicator.barrier();
  });
  EXPECT_TRUE(ends.wait_for(1, 0).empty()) << "the job goes on";
}

TEST_F(WatchdogTest, R17AnInterfaceThatIsNotThereIsEverybodysError) {
  World world(3);
  Ends ends;
  std::atomic<int> refused = 0;
  on_ranks(world, 3, [&](int rank, Communicator& communicator) {
    WatchdogConfig config = quick(ends, rank);
    config.interface = "nowhere0";
    try {
      const Watchdog watchdog(communicator, config);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadJob);
      EXPECT_NE(std::string(error.what()).find("watchdog.interface is \"nowhere0\""),
                std::string::npos);
      ++refused;
    }
  });
  EXPECT_EQ(refused, 3);
}

}  // namespace
}  // namespace convoy::comm
