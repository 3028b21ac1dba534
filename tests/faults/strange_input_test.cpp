// R32, R38, R41, R45, R46 and R47 by the real program: what a run says and does about damaged
// images, datasets that changed, tiny ones, absurd jobs, and output that has nowhere to go.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIdxJob = R"(data {
  format: IDX
  classes: 4
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" }
workers: 1
batch_per_worker: 4
epochs: 1
)";

constexpr const char* kImageJob = R"(data {
  format: IMAGE_FOLDER
  train { size: 16 }
  eval { resize: 20 }
  mean: [0.5, 0.5, 0.5]
  std: [0.2, 0.2, 0.2]
}
model { name: "cifar_resnet20" }
workers: 1
batch_per_worker: 4
epochs: 1
evaluation { batch: 3 }
)";

class StrangeInput : public RunTest {
 protected:
  StrangeInput() : RunTest(kIdxJob) {}

  Arguments train(const std::string& job, const std::string& data, const Arguments& more = {}) {
    folder_.write("job.txtpb", job);
    return train_in(folder_.path("run"), more, data);
  }
  std::string small_idx() { return make_idx(folder_, "idx", {.train = 12, .val = 5}); }

  // The run is complete and its files hold what they should, and nothing that was printed.
  void expect_whole_run(const std::string& out) {
    const Outcome verified = run({"verify", out});
    EXPECT_EQ(verified.exit_code, 0) << verified.all();
    const std::vector<std::string> metrics = lines_of(read_file(out + "/metrics.jsonl"));
    EXPECT_FALSE(metrics.empty());
    for (const std::string& line : metrics)
      EXPECT_TRUE(line.starts_with("{") && line.ends_with("}")) << line;
    const std::string lock = read_file(out + "/lock");
    EXPECT_TRUE(lock.starts_with("free life ") && lines_of(lock).size() == 1) << lock;
  }
};

TEST_F(StrangeInput, R32DamagedImagesAreReplacedAndListed) {
  make_image_folder(folder_, 2, 6, 2);
  for (const char* file : {"train/class_0/image_3.jpg", "train/class_1/image_5.jpg"})
    fs::resize_file(folder_.path(file), fs::file_size(folder_.path(file)) / 2);
  const Outcome outcome =
      run(train(kImageJob, folder_.path(), {"--set", "data.bad_sample=substitute"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "was replaced by"), 2) << outcome.all();
}

TEST_F(StrangeInput, R38AFolderThatChangedBetweenLivesIsRefused) {
  make_image_folder(folder_, 2, 6, 2);
  const auto life = [&](const char* steps) {
    return run(
        train(kImageJob, folder_.path(), {"--set", fmt::format("stop_after_steps={}", steps)}));
  };
  EXPECT_EQ(life("1").exit_code, 0);
  const std::string added = folder_.path("train/class_0/image_0b.jpg");
  fs::copy_file(folder_.path("train/class_0/image_0.jpg"), added);
  const Outcome changed = life("2");
  EXPECT_EQ(changed.exit_code, 78) << changed.all();
  EXPECT_EQ(lines_with(changed.err, "training set"), 1) << changed.all();
  fs::remove(added);
  const Outcome as_before = life("2");
  EXPECT_EQ(as_before.exit_code, 0) << as_before.all();
}

TEST_F(StrangeInput, R41OneImageTrainsAndALastBatchOfOneIsEvaluated) {
  const std::string one = make_idx(folder_, "one", {.train = 1, .val = 1, .classes = 1});
  const Outcome outcome =
      run(train(kIdxJob, one, {"--set", "batch_per_worker=1", "--set", "epochs=2"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  fs::remove_all(folder_.path("run"));
  make_image_folder(folder_, 2, 4, 2);  // four images in batches of three
  const Outcome last = run(train(kImageJob, folder_.path()));
  EXPECT_EQ(last.exit_code, 0) << last.all();
}

TEST_F(StrangeInput, R45EnormousJobFilesAreRefused) {
  const std::string data = small_idx();
  Arguments arguments = train(kIdxJob, data);
  fs::resize_file(folder_.path("job.txtpb"), 100 << 20);
  const Outcome outcome = run(arguments);
  EXPECT_EQ(outcome.exit_code, 78) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "more than 1048576 bytes"), 1) << outcome.all();
}

// A plan is refused for the same reasons as a run.
TEST_F(StrangeInput, R46ContradictionsAreRefusedByADryRunToo) {
  const std::string data = small_idx();
  const std::pair<const char*, int> cases[] = {{"schedule.warmup_epochs=2", 78},
                                               {"optimizer.learning_rate=0", 78},
                                               {"data.train.size=20", 65},
                                               {"data.eval.size=20", 65},
                                               {"data.classes=2", 65}};
  for (const auto& [set, code] : cases)
    for (const bool dry : {false, true}) {
      Arguments more = {"--set", set};
      if (dry) more.emplace_back("--dry-run");
      const Outcome outcome = run(train(kIdxJob, data, more));
      EXPECT_EQ(outcome.exit_code, code) << set << outcome.all();
      EXPECT_EQ(outcome.out, "");
      EXPECT_FALSE(fs::exists(folder_.path("run/checkpoints"))) << set;
    }
}

TEST_F(StrangeInput, R47FoldersOfAnyName) {
  const std::string data = small_idx();
  const std::string job = folder_.write("job.txtpb", kIdxJob);
  for (const std::string name : {"with  spaces 'and' \"quotes\"", "gr\xc3\xbc\xc3\x9f \xe6\x97\xa5",
                                 "not utf-8 \xff\xfe", "new\nline", "$HOME;exit 3"}) {
    const Outcome outcome =
        run({"train", "--job", job, "--data", data, "--out", folder_.path(name)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    expect_whole_run(folder_.path(name));
  }
  // A relative one that looks like an option.
  const std::string there = fmt::format("cd '{}' && exec \"$@\"", folder_.path());
  const Outcome outcome = run_by(there, {"train", "--job", job, "--data", data, "--out=-x"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  expect_whole_run(folder_.path("-x"));
  // Longer than the system takes, as a name and as a path.
  std::string path = folder_.path();
  for (int i = 0; i < 50; ++i) path += "/" + std::string(100, 'p');
  for (const std::string& too_long : {folder_.path(std::string(300, 'n')), path}) {
    const Outcome refused = run({"train", "--job", job, "--data", data, "--out", too_long});
    EXPECT_EQ(refused.exit_code, 74) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "File name too long; choose another --out"), 1)
        << refused.all();
  }
}

TEST_F(StrangeInput, R47WithoutAHome) {
  const std::string data = small_idx();
  const Outcome outcome =
      run_by("unset HOME XDG_CACHE_HOME CONVOY_CACHE; exec \"$@\"", train(kIdxJob, data));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  expect_whole_run(folder_.path("run"));
}

TEST_F(StrangeInput, R47StandardStreamsThatAreClosedFullOrGone) {
  const std::string data = small_idx();
  for (const char* line :
       {"exec \"$@\" >&-", "exec \"$@\" 2>&-", "exec \"$@\" <&- >&- 2>&-",
        "exec \"$@\" >/dev/full 2>/dev/full",
        // A reader that is gone before the first line.
        "\"$@\" 2> >(exec 0<&-); exit", "\"$@\" 2>&1 | true; exit ${PIPESTATUS[0]}"}) {
    SCOPED_TRACE(line);
    const Outcome outcome = run_by(line, train(kIdxJob, data, {"--set", "log.every_steps=1"}));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    expect_whole_run(folder_.path("run"));
    fs::remove_all(folder_.path("run"));
  }
}

// What it prints is all that such a command does.
TEST_F(StrangeInput, R47OutputThatIsFullIsAnErrorWhereItIsTheResult) {
  for (const Arguments& command :
       {Arguments{"model", "list"}, Arguments{"model", "show", "cifar_resnet20", "--json"}}) {
    const Outcome outcome = run_by("exec \"$@\" >/dev/full", command);
    EXPECT_EQ(outcome.exit_code, 74) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "standard output: not all of it"), 1) << outcome.all();
  }
}

}  // namespace
}  // namespace convoy::test
