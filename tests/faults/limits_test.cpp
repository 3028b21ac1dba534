// R7, R8: too little memory, too few files, threads or too small a stack end in one line that names
// the limit.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/end_to_end/program.h"
#include "trainer/job/limits.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJob = R"(
data { format: SYNTHETIC synthetic_samples: 64 classes: 4 train { size: 32 } eval { resize: 0 } }
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 8
epochs: 1
)";

class Limits : public RunTest {
 protected:
  Limits() : RunTest(kJob) {}

  // The program with what bash's ulimit sets.
  Outcome run_with(const std::string& ulimit, int ranks, const Arguments& more = {}) const {
    Arguments arguments = {"train", "--job", folder_.path("job.txtpb"), "--out", out("a")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_by(fmt::format("ulimit {} || exit 1\nexec \"$@\"", ulimit), arguments, ranks);
  }
};

TEST_F(Limits, TooFewFiles) {
  const Outcome outcome = run_with("-n 40", kAlone);
  EXPECT_EQ(outcome.exit_code, 74) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "may open 40 files"), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "ulimit -n"), 1) << outcome.all();
}

TEST_F(Limits, ASoftLimitOfFilesIsRaised) {
  const Outcome outcome = run_with("-Sn 40", kAlone);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
}

TEST_F(Limits, TooSmallAStack) {
  const Outcome outcome = run_with("-s 256", kAlone);
  EXPECT_EQ(outcome.exit_code, 74) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "ulimit -s"), 1) << outcome.all();
}

TEST_F(Limits, TooLittleAddressSpace) {
  const Outcome outcome = run_with("-v 600000", kAlone);
  EXPECT_EQ(outcome.exit_code, 74) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "ulimit -v"), 1) << outcome.all();
}

TEST_F(Limits, AThreadThatIsRefused) {
  const Outcome outcome = run_with("-v 3000000", kAlone, {"--data-threads", "3000"});
  EXPECT_EQ(outcome.exit_code, 74) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "the system refuses another thread"), 1) << outcome.all();
}

// A batch that cannot be had: one line with the bytes, on every number of ranks.
TEST_F(Limits, MemoryThatIsRefused) {
  for (const int ranks : {kAlone, 2}) {
    const Outcome outcome =
        run_with("-v 2000000", ranks,
                 {"--set", "batch_per_worker=16384", "--set", "data.synthetic_samples=100000"});
    EXPECT_TRUE(outcome.in_time);
    EXPECT_EQ(outcome.exit_code, 74) << outcome.all();
    EXPECT_GE(lines_with(outcome.err, "out of memory"), 1) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
  }
}

// A control group of its own (v1 or v2) with little memory; "" where this system lends none.
class SmallGroup {
 public:
  explicit SmallGroup(uint64_t bytes) {
    for (const auto& [parent, limit] : {std::pair{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
                                        std::pair{"/sys/fs/cgroup", "memory.max"}}) {
      const std::string path = fmt::format("{}/convoy-test-{}", parent, ::getpid());
      std::error_code error;
      if (!fs::create_directory(path, error)) continue;
      path_ = path;
      if (std::ofstream(path + "/" + limit) << bytes << std::flush) return;
      fs::remove(path_, error);
      path_.clear();
    }
  }
  ~SmallGroup() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove(path_, ignored);
  }
  SmallGroup(const SmallGroup&) = delete;
  SmallGroup& operator=(const SmallGroup&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST_F(Limits, AKillForMemoryEndsTheJobAndTheRunGoesOn) {
  const SmallGroup group(uint64_t{100} << 20);
  if (group.path().empty()) GTEST_SKIP() << "no control group can be made here (needs root)";
  const Arguments more = {"--set", "batch_per_worker=64", "--set", "data.synthetic_samples=512"};
  const std::string join = fmt::format("-c 0; echo $$ >{}/cgroup.procs", group.path());
  const Outcome warned = run_with(join, 2, more);
  EXPECT_TRUE(warned.in_time);
  EXPECT_EQ(warned.exit_code, 137) << warned.all();
  EXPECT_EQ(lines_with(warned.err, "control group (cgroup) allows 100.0 MiB"), 1) << warned.all();
  EXPECT_EQ(warned.left_running, "");
  const Outcome outcome = run_with("-c 0", 2, more);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
}

// What cannot fit by far is refused before it is begun, by whoever looks at images.
TEST_F(Limits, HopelessSizesOfImagesAreRefused) {
  const SmallGroup group(uint64_t{64} << 20);
  if (group.path().empty()) GTEST_SKIP() << "no control group can be made here (needs root)";
  const Outcome trained =
      run_with("-c 0", kAlone, {"--set", "stop_after_steps=1", "--set", "evaluation.batch=8"});
  ASSERT_EQ(trained.exit_code, 0) << trained.all();
  const std::string image = folder_.write("a.png", encode_png(make_image(32, 32, 3, 1)));
  Arguments predict = {"predict", "--checkpoint", out("a"), "--batch", "8000"};
  predict.insert(predict.end(), 8000, image);
  const std::pair<Arguments, std::string> cases[] = {
      {{"eval", "--checkpoint", out("a"), "--scales", "32,2048"},
       "1 image(s) of 2048 x 2048 at once: "},
      {predict, "8000 image(s) of 32 x 32 at once: "},
      {{"train", "--job", folder_.path("job.txtpb"), "--out", out("b"), "--set",
        "evaluation.batch=8000"},
       "8000 image(s) of 32 x 32 at once: "}};
  for (const auto& [arguments, words] : cases) {
    const Outcome outcome =
        run_by(fmt::format("echo $$ >{}/cgroup.procs\nexec \"$@\"", group.path()), arguments);
    EXPECT_EQ(outcome.exit_code, 78) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, words), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "the control group (cgroup) allows 64.0 MiB"), 1)
        << outcome.all();
  }
}

TEST(ExpectMemory, RefusesMoreThanFourTimesWhatThereIs) {
  const trainer::MemoryLimit limit{.bytes = uint64_t{1} << 30, .what = "this machine has"};
  EXPECT_EQ(trainer::expect_memory("net", limit.bytes, 1, limit, "rest"), "");
  const std::string warning = trainer::expect_memory("net", 4 * limit.bytes, 1, limit, "rest");
  EXPECT_TRUE(warning.starts_with("net: 1 rank(s) here want 4096.0 MiB")) << warning;
  try {
    trainer::expect_memory("net", 5 * limit.bytes, 1, limit, "rest");
    ADD_FAILURE() << "taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    EXPECT_TRUE(std::string(e.what()).starts_with("net: 1 rank(s) here want 5120.0 MiB"))
        << e.what();
  }
}

TEST(MemoryWarning, ComparesAllRanksOfAHostWithTheLimit) {
  const trainer::MemoryLimit limit{.bytes = uint64_t{1} << 30, .what = "this machine has"};
  EXPECT_EQ(trainer::memory_warning(uint64_t{1} << 29, 2, limit, "rest"), "");
  const std::string warning = trainer::memory_warning((uint64_t{1} << 29) + 1, 2, limit, "rest");
  EXPECT_NE(warning.find("1024.0 MiB"), std::string::npos) << warning;
  EXPECT_NE(warning.find("this machine has"), std::string::npos) << warning;
  EXPECT_TRUE(warning.ends_with("; rest")) << warning;
}

TEST(MemoryLimit, IsNoMoreThanTheMachineHas) {
  const trainer::MemoryLimit limit = trainer::memory_limit();
  EXPECT_GT(limit.bytes, uint64_t{1} << 28);
  EXPECT_LT(limit.bytes, uint64_t{1} << 50);
}

TEST(AsError, NamesMemoryAndThreads) {
  EXPECT_EQ(trainer::as_error(std::bad_alloc()).code(), ExitCode::kIo);
  const std::system_error refused(std::make_error_code(std::errc::resource_unavailable_try_again));
  EXPECT_NE(std::string(trainer::as_error(refused).what()).find("ulimit -u"), std::string::npos);
  EXPECT_EQ(trainer::as_error(std::runtime_error("odd")).code(), ExitCode::kFault);
  EXPECT_EQ(trainer::as_error(Error(ExitCode::kBadJob, "x")).code(), ExitCode::kBadJob);
}

}  // namespace
}  // namespace convoy::test
