// The metrics file and the progress line.
#include "trainer/records/metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <unistd.h>

#include <atomic>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "ops/core/error.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/base/file_size_limit.h"

namespace convoy::trainer {
namespace {

using nlohmann::json;
using std::chrono::hours;
using std::chrono::milliseconds;
using test::FileSizeLimit;
using test::read_file;
using test::TempFolder;
using test::write_file;

TEST(MetricsLine, HasTheFieldsThatAreSetInTheOrderOfTheProto) {
  MetricsLine line;
  EXPECT_EQ(to_json(line), "{}");
  line.correct = 9012;
  line.step = 18446744073709551615u;
  line.top1 = 0.9012;
  line.event = "save";
  line.time = 2.5;
  EXPECT_EQ(to_json(line),
            "{\"time\":2.5,\"step\":18446744073709551615,\"top1\":0.9012,\"correct\":9012,"
            "\"event\":\"save\"}");
}

TEST(MetricsLine, EveryFieldIsWrittenUnderItsName) {
  MetricsLine line;
  line.time = 1;
  line.step = 2;
  line.epoch = 3;
  line.train_loss = 4;
  line.train_top1 = 5;
  line.learning_rate = 6;
  line.images_per_second = 7;
  line.input_wait_share = 8;
  line.reduce_wait_share = 9;
  line.gradient_norm = 10;
  line.loss_scale = 11;
  line.top1 = 20;
  line.top5 = 21;
  line.loss = 22;
  line.images = 23;
  line.correct = 24;
  line.ema_top1 = 25;
  line.ema_top5 = 26;
  line.event = "30";
  line.detail = "31";
  EXPECT_EQ(json::parse(to_json(line)),
            json::parse(R"({"time":1.0,"step":2,"epoch":3.0,"train_loss":4.0,"train_top1":5.0,
              "learning_rate":6.0,"images_per_second":7.0,"input_wait_share":8.0,
              "reduce_wait_share":9.0,"gradient_norm":10.0,"loss_scale":11.0,"top1":20.0,"top5":21.0,"loss":22.0,
              "images":23,"correct":24,"ema_top1":25.0,"ema_top5":26.0,"event":"30",
              "detail":"31"})"));
}

TEST(MetricsLine, IsAlwaysOneLineOfJson) {
  MetricsLine line;
  line.train_loss = std::numeric_limits<double>::quiet_NaN();
  line.gradient_norm = -std::numeric_limits<double>::infinity();
  line.detail = "two\nlines \"quoted\" \xff";
  const std::string text = to_json(line);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const json object = json::parse(text);
  EXPECT_TRUE(object["train_loss"].is_null());
  EXPECT_TRUE(object["gradient_norm"].is_null());
  EXPECT_EQ(object["detail"], "two\nlines \"quoted\" \xEF\xBF\xBD");
}

MetricsLine at_step(uint64_t step) {
  MetricsLine line;
  line.time = 1;
  line.step = step;
  return line;
}

std::string text_of(std::initializer_list<uint64_t> steps) {
  std::string text;
  for (const uint64_t step : steps) text += to_json(at_step(step)) + "\n";
  return text;
}

TEST(MetricsWriter, AppendsAndStampsTheTime) {
  const TempFolder out;
  {
    MetricsWriter writer(out.path(), 0);
    writer.write(at_step(1));
    writer.write(at_step(2));
    EXPECT_EQ(read_file(out.path("metrics.jsonl")), text_of({1, 2}));  // nothing is buffered
    MetricsLine line = at_step(3);
    line.time.reset();
    writer.write(line);
  }
  const std::string text = read_file(out.path("metrics.jsonl"));
  EXPECT_GT(json::parse(text.substr(text_of({1, 2}).size()))["time"].get<double>(), 1.7e9);
}

TEST(MetricsWriter, DropsWhatComesAfterTheStepItResumesAt) {
  const TempFolder out;
  const std::string path = out.path("metrics.jsonl");
  write_file(path, text_of({0, 10, 20, 20, 30, 40}) + "{\"step\":15}\n");
  MetricsWriter(out.path(), 20).write(at_step(20));
  EXPECT_EQ(read_file(path), text_of({0, 10, 20, 20}) + "{\"step\":15}\n" + text_of({20}));
  MetricsWriter fresh(out.path(), 0);
  EXPECT_EQ(read_file(path), text_of({0}));
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST(MetricsWriter, DropsTornAndForeignLines) {
  const TempFolder out;
  const std::string path = out.path("metrics.jsonl");
  write_file(path, text_of({1}) + "{\"step\":2,\"lo\n\n[]\n{\"top1\":1}\n{\"step\":-1}\n" +
                       text_of({2}) + "{\"step\":3}");
  MetricsWriter(out.path(), 9).write(at_step(4));
  EXPECT_EQ(read_file(path), text_of({1, 2, 4}));
}

TEST(MetricsWriter, FoldersThatCannotBeWrittenAreIoErrors) {
  const TempFolder out;
  out.write("file", "");
  try {
    MetricsWriter writer(out.path("file"), 0);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_NE(std::string(error.what()).find("file/metrics.jsonl"), std::string::npos);
  }
}

TEST(MetricsWriter, R23AFullDiskCostsALineAndNotTheRun) {
  const TempFolder out;
  MetricsWriter writer(out.path(), 0);
  writer.write(at_step(1));
  {
    const FileSizeLimit limit(read_file(out.path("metrics.jsonl")).size() + 5);
    writer.write(at_step(2));
  }
  writer.write(at_step(3));
  EXPECT_EQ(read_file(out.path("metrics.jsonl")), text_of({1, 3}));
}

ProgressState state_at(uint64_t step) {
  ProgressState state;
  state.step = step;
  state.total_steps = 938;
  state.epoch = 0.128;
  state.epochs = 1;
  state.loss = 1.2345;
  state.top1 = 0.5671;
  state.images_per_second = 890.4;
  state.input_wait_share = 0.012;
  state.seconds_left = 3725;
  return state;
}

TEST(ProgressLine, SaysWhatIsKnown) {
  EXPECT_EQ(to_line(state_at(120)),
            "step 120/938 | epoch 0.13/1 | loss 1.234 | top-1 56.7 % | 890 images/s | "
            "data wait 1 % | ETA 1:02:05");
  ProgressState start;
  start.total_steps = 938;
  start.epochs = 3;
  EXPECT_EQ(to_line(start), "step 0/938 | epoch 0.00/3 | data wait 0 %");
  start.seconds_left = 61.7;
  start.images_per_second = 1.26;
  EXPECT_EQ(to_line(start), "step 0/938 | epoch 0.00/3 | 1.3 images/s | data wait 0 % | ETA 1:02");
  start.seconds_left = std::numeric_limits<double>::infinity();
  EXPECT_EQ(to_line(start).find("ETA"), std::string::npos);
}

// A file that stands for a standard error which is no terminal.
class Output {
 public:
  Output() : fd_(::open(dir_.path("o").c_str(), O_RDWR | O_CREAT | O_APPEND, 0600)) {}
  ~Output() { ::close(fd_); }
  int fd() const { return fd_; }
  std::string text() const { return read_file(dir_.path("o")); }

 private:
  TempFolder dir_;
  int fd_;
};

std::string plain(uint64_t step) {
  return to_line(state_at(step)) + "\n";
}

TEST(Progress, WithoutATerminalPrintsTheFirstTheLastAndOnePerInterval) {
  Output rare;
  {
    Progress progress(hours(1), rare.fd());
    for (uint64_t step = 1; step <= 5; ++step) progress.update(state_at(step));
    EXPECT_EQ(rare.text(), plain(1));
  }
  EXPECT_EQ(rare.text(), plain(1) + plain(5));

  Output each;
  {
    Progress progress(milliseconds(0), each.fd());
    progress.update(state_at(1));
    progress.update(state_at(2));
    progress.finish();
    progress.update(state_at(3));  // after the end: nothing
  }
  EXPECT_EQ(each.text(), plain(1) + plain(2));

  Output none;
  { Progress progress(hours(1), none.fd()); }
  EXPECT_EQ(none.text(), "");
}

// A terminal of 60 columns; what is written to it can be read back.
class Terminal {
 public:
  Terminal() {
    const winsize size{24, 60, 0, 0};
    if (::openpty(&outer_, &inner_, nullptr, nullptr, &size) != 0) throw std::runtime_error("pty");
    termios raw{};
    ::tcgetattr(inner_, &raw);
    ::cfmakeraw(&raw);  // no translation of newlines
    ::tcsetattr(inner_, TCSANOW, &raw);
  }
  ~Terminal() {
    ::close(outer_);
    if (inner_ >= 0) ::close(inner_);
  }
  int fd() const { return inner_; }
  // Reads what has arrived: a terminal that is not read would block its writers.
  void drain() {
    pollfd ready{outer_, POLLIN, 0};
    while (::poll(&ready, 1, 0) > 0 && read_some()) {
    }
  }
  // Everything written; closes the terminal.
  const std::string& text() {
    if (inner_ >= 0) ::close(inner_);
    inner_ = -1;
    while (read_some()) {  // until the hang-up
    }
    return text_;
  }

 private:
  bool read_some() {
    char buffer[4096];
    const ssize_t got = ::read(outer_, buffer, sizeof buffer);
    if (got > 0) text_.append(buffer, static_cast<size_t>(got));
    return got > 0;
  }

  int outer_ = -1, inner_ = -1;
  std::string text_;
};

std::string live(uint64_t step) {
  return "\r\x1b[K" + to_line(state_at(step)).substr(0, 59);
}

TEST(Progress, OnATerminalOneLineIsRewrittenAndCutToTheWidth) {
  for (bool in_time = false; !in_time;) {  // a loaded machine may need another try
    Terminal terminal;
    const auto start = std::chrono::steady_clock::now();
    {
      Progress progress(hours(1), terminal.fd());
      progress.update(state_at(1));
      progress.update(state_at(2));  // within the tenth of a second: only remembered
      in_time = std::chrono::steady_clock::now() - start < std::chrono::milliseconds(100);
    }
    if (in_time) {
      EXPECT_EQ(terminal.text(), live(1) + live(2) + "\n");
    }
  }
}

TEST(Progress, LogLinesArePrintedWholeAboveTheLiveLine) {
  Terminal terminal;
  {
    Progress progress(hours(1), terminal.fd());
    log::warning("before the first");
    progress.update(state_at(1));
    log::info("hello");
  }
  const std::string text = terminal.text();
  const size_t hello = text.find("hello\n");
  ASSERT_NE(hello, std::string::npos) << text;
  EXPECT_NE(text.find("before the first\n" + live(1)), std::string::npos) << text;
  EXPECT_EQ(text.substr(hello + 6), live(1) + live(1) + "\n");
  // The line begins where the live line was erased.
  const size_t erased = text.rfind("\r\x1b[K", hello);
  EXPECT_EQ(text.substr(erased + 4, hello - erased - 4).find("step"), std::string::npos) << text;
}

TEST(Progress, ManyThreadsTearNoLine) {
  Terminal terminal;
  {
    Progress progress(milliseconds(0), terminal.fd());
    std::atomic<int> going{2};
    std::thread logger([&] {
      for (int i = 0; i < 20; ++i) log::info("event {}", i);
      --going;
    });
    std::thread updater([&] {
      for (uint64_t step = 0; step < 2000; ++step) progress.update(state_at(step));
      --going;
    });
    while (going > 0) {
      terminal.drain();
      std::this_thread::yield();
    }
    logger.join();
    updater.join();
  }
  const std::string text = terminal.text();
  size_t events = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    ASSERT_NE(end, std::string::npos);
    const std::string line = text.substr(begin, end - begin);
    const std::string last = line.substr(line.rfind("\x1b[K") + 3);
    if (last.find(fmt::format("event {}", events)) != std::string::npos) ++events;
    begin = end + 1;
  }
  EXPECT_EQ(events, 20u);
}

}  // namespace
}  // namespace convoy::trainer
