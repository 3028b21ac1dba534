// Which engines of a GPU's libraries a run uses, with the whole program on the emulated GPU, whose
// engines add in different orders: rank 0 decides, all lives of the run do as the first one did,
// and what cannot be done is said.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

constexpr const char* kJob = R"(
data { format: SYNTHETIC classes: 10 train { size: 8 } eval { resize: 0 } }
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 2
)";

// Other engines than the emulated libraries recommend first.
constexpr const char* kOthers = "CONVOY_EMULATED_CUDNN_PREFERS=0 CONVOY_EMULATED_CUBLAS_PREFERS=67";

class EmulatedPlans : public testing::Test, protected Runs {
 protected:
  EmulatedPlans() : Runs(kJob) {}

  // Up to `steps` steps, with variables of the environment on one rank or on all. Each run has a
  // cache of its own.
  Outcome train(const std::string& name, int ranks, int steps, const std::string& variables = "",
                const std::string& of_rank = "", const Arguments& more = {}) {
    std::string line = fmt::format("export CONVOY_CACHE='{}'; ", cache_of(name));
    if (!of_rank.empty()) line += fmt::format("[ \"$OMPI_COMM_WORLD_RANK\" != {} ] || ", of_rank);
    if (!variables.empty()) line += fmt::format("export {}; ", variables);
    Arguments arguments = {"train", "--job",   folder_.path("job.txtpb"),
                           "--out", out(name), "--device",
                           "cuda",  "--set",   fmt::format("stop_after_steps={}", steps)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_by(line + "exec \"$@\"", arguments, ranks);
  }
  std::string trained(const std::string& name, int ranks, int steps,
                      const std::string& variables = "", const std::string& of_rank = "",
                      const Arguments& more = {}) {
    const Outcome outcome = train(name, ranks, steps, variables, of_rank, more);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    return Runs::digest(out(name));
  }
  std::string cache_of(const std::string& name) const { return folder_.path("cache-" + name); }
  // The one file of plans there.
  std::string plans_in(const std::string& cache) const {
    const std::vector<std::string> plans = files_in(cache, "plans-");
    if (plans.size() == 1) return plans[0];
    ADD_FAILURE() << plans.size() << " files of plans in " << cache;
    return "";
  }
  std::vector<std::string> files_in(const std::string& cache, const std::string& begin) const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(cache))
      if (entry.path().filename().string().starts_with(begin)) found.push_back(entry.path());
    return found;
  }
  std::string manifest(const std::string& name, int step) const {
    return read_file(checkpoint(name, step) + "/manifest.txtpb");
  }
};

TEST_F(EmulatedPlans, AllRanksDoAsRank0) {
  const std::string one = trained("one", 1, 2);
  EXPECT_EQ(trained("two", 2, 2), one);
  EXPECT_EQ(trained("others-on-1", 2, 2, kOthers, "1"), one);
  EXPECT_NE(trained("others-on-0", 2, 2, kOthers, "0"), one);
  EXPECT_EQ(trained("others", 1, 2, kOthers), Runs::digest(out("others-on-0")));
}

// As on a GPU that is not quite rank 0's.
TEST_F(EmulatedPlans, ARankThatCannotDoAsRank0Stops) {
  const Outcome outcome = train("one", 2, 2, "CONVOY_EMULATED_CUDNN_REFUSES=9", "1");
  EXPECT_EQ(outcome.exit_code, 78) << outcome.all();
  for (const char* said : {"rank 1", "\"conv1\"", "refuses engine 9:", "rank 0"})
    EXPECT_NE(outcome.err.find(said), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.left_running, "");
}

TEST_F(EmulatedPlans, LaterLivesDoAsTheFirst) {
  const std::string unbroken = trained("unbroken", 1, 3);
  trained("stopped", 1, 1);
  EXPECT_NE(manifest("stopped", 1).find("plan: \"forward x [2, 3, 8, 8]"), std::string::npos);
  EXPECT_NE(manifest("stopped", 1).find("plan: \"product [2, 64] x"), std::string::npos);
  EXPECT_NE(manifest("stopped", 1).find("plan: \"forward x [100, 3, 8, 8]"), std::string::npos)
      << "evaluation's are decided at the start, too";
  EXPECT_EQ(trained("stopped", 2, 3, kOthers), unbroken);

  // A life that ended before its first checkpoint has decided, too.
  trained("early", 1, 1);
  std::filesystem::remove_all(out("early") + "/checkpoints");
  EXPECT_EQ(
      trained("early", 1, 3, "CONVOY_CACHE='' HOME='' XDG_CACHE_HOME='' " + std::string(kOthers)),
      unbroken);
}

// Two epochs of one step: backward first goes as far as layer 3, then to the images.
TEST_F(EmulatedPlans, WhatIsTrainedLaterIsDecidedAtTheStart) {
  folder_.write("job.txtpb", std::string(kJob) + R"(
epochs: 2
evaluation { every_epochs: 0 batch: 2 }
transfer {
  freeze: "conv1" freeze: "bn1" freeze: "layer1" freeze: "layer2"
  unfreeze { epoch: 1 pattern: "*" }
}
)");
  const Arguments few = {"--set", "data.synthetic_samples=4"};
  const std::string unbroken = trained("unbroken", 1, 2, "", "", few);
  trained("stopped", 1, 1, "", "", few);
  EXPECT_NE(manifest("stopped", 1).find("plan: \"backward weights x [2, 3, 8, 8]"),
            std::string::npos);
  EXPECT_EQ(trained("stopped", 1, 2, kOthers, "", few), unbroken);
}

TEST_F(EmulatedPlans, AnEngineThatIsRefusedStopsTheRunOrIsReplaced) {
  const std::string one = trained("one", 1, 1);
  for (const auto& [variable, what] :
       {std::pair{"CONVOY_EMULATED_CUDNN_REFUSES=9", "\"conv1\": cuDNN 9."},
        std::pair{"CONVOY_EMULATED_CUBLAS_REFUSES=66", "\"fc\": cuBLASLt 13."}}) {
    const Outcome refused = train("one", 2, 2, variable);
    EXPECT_EQ(refused.exit_code, 78) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "refuses engine"), 1) << refused.err;
    for (const char* said : {what, " [2, ", "began with (CUDA", "--allow-change"})
      EXPECT_NE(refused.err.find(said), std::string::npos) << said << " in " << refused.err;
  }
  EXPECT_EQ(Runs::digest(out("one")), one);

  const Outcome replaced =
      train("one", 1, 2, "CONVOY_EMULATED_CUDNN_REFUSES=9", "", {"--allow-change"});
  EXPECT_EQ(replaced.exit_code, 0) << replaced.all();
  EXPECT_EQ(lines_with(replaced.err, "a new numerical identity from step 1 on"), 1) << replaced.err;
  // From then on those are the run's.
  const Outcome after = train("one", 1, 3);
  EXPECT_EQ(after.exit_code, 0) << after.all();
  EXPECT_EQ(lines_with(after.err, "numerical identity"), 0) << after.err;
  EXPECT_NE(manifest("one", 3).find("fp32 = 0\""), std::string::npos);
}

// Also where it can no longer be compiled; a file that is damaged is as if it were not there.
TEST_F(EmulatedPlans, WhatIsCompiledIsKept) {
  const std::string compiling = "CONVOY_EMULATED_CUDNN_PREFERS=10",
                    refusing = "CONVOY_EMULATED_CUDNN_REFUSES=10";
  const std::string unbroken = trained("unbroken", 1, 3, compiling);
  trained("one", 2, 1, compiling);
  const std::vector<std::string> kernels = files_in(cache_of("one"), "kernel-");
  EXPECT_GT(kernels.size(), 10u);
  trained("one", 2, 2, refusing);
  std::map<std::string, std::string> whole;
  for (const std::string& kernel : kernels) {
    whole[kernel] = read_file(kernel);
    write_file(kernel, whole[kernel].substr(0, whole[kernel].size() / 2));
  }
  const Outcome refused = train("one", 1, 3, refusing);
  EXPECT_EQ(refused.exit_code, 78) << refused.all();
  EXPECT_EQ(lines_with(refused.err, "refuses engine 10"), 1) << refused.err;
  EXPECT_EQ(trained("one", 1, 3), unbroken);
  for (const auto& [kernel, text] : whole) EXPECT_EQ(read_file(kernel), text) << kernel;
}

TEST_F(EmulatedPlans, ACacheOfTooManyKernelsBeginsAnew) {
  std::filesystem::create_directories(cache_of("one"));
  for (int i = 0; i < 1000; ++i)
    write_file(fmt::format("{}/kernel-{:016}.txt", cache_of("one"), i), "of long ago");
  const std::string foreign = cache_of("one") + "/kernel-of-another.txt";
  write_file(foreign, "not ours");
  trained("one", 1, 1, "CONVOY_EMULATED_CUDNN_PREFERS=10");
  const std::vector<std::string> kernels = files_in(cache_of("one"), "kernel-");
  EXPECT_GT(kernels.size(), 10u);
  EXPECT_LT(kernels.size(), 100u);
  EXPECT_TRUE(std::filesystem::exists(foreign));
}

// Measured at the first start alone: afterwards the run's plans are what they are.
TEST_F(EmulatedPlans, TheFastestAreTakenOnRequest) {
  const Arguments small = {"--set", "evaluation.batch=2"};
  const Arguments tuned = {"--set", "gpu.autotune=true", "--set", "evaluation.batch=2"};
  const std::string unbroken = trained("unbroken", 1, 2, "", "", tuned);
  EXPECT_NE(manifest("unbroken", 2).find("fp32 = 0\""), std::string::npos);
  EXPECT_EQ(manifest("unbroken", 2).find("fp32 = 9"), std::string::npos);
  EXPECT_NE(trained("not", 1, 2, "", "", small), unbroken);

  EXPECT_EQ(trained("stopped", 1, 1, "", "", tuned), trained("others", 2, 1, "", "", tuned));
  EXPECT_EQ(trained("stopped", 2, 2, "", "", small), unbroken) << "not part of the job's identity";
  trained("began-without", 1, 1, "", "", small);
  trained("began-without", 1, 2, "", "", tuned);
  EXPECT_NE(manifest("began-without", 2).find("fp32 = 9"), std::string::npos);
  EXPECT_EQ(manifest("began-without", 2)
                .find("x [2, 3, 8, 8] y [2, 16, 8, 8] kernel 3 stride 1 "
                      "padding 1 groups 1 fp32 = 0\""),
            std::string::npos);
}

// In FP16 products, and convolutions that give the batch norms' sums, are measured, too.
TEST_F(EmulatedPlans, WhatIsFasterElsewhereBelongsToTheRun) {
  const Arguments tuned = {
      "--set", "gpu.autotune=true",  "--set", "precision=FP16",
      "--set", "evaluation.batch=2", "--set", "model.name=cifar_preact_resnet164"};
  const std::string unbroken = trained("unbroken", 1, 2, "", "", tuned);
  const std::string plans = manifest("unbroken", 2);
  for (const char* decision : {"kernel 1 stride 1 padding 0 groups 1 fp16 = elsewhere\"",
                               "kernel 3 stride 1 padding 1 groups 1 fp16 sums = 5:"})
    EXPECT_NE(plans.find(decision), std::string::npos) << decision << " in\n" << plans;
  trained("stopped", 2, 1, "", "", tuned);
  EXPECT_EQ(trained("stopped", 1, 2, "", "", tuned), unbroken);
}

TEST_F(EmulatedPlans, AreKeptForOtherRunsAndMayBeAnything) {
  const std::string first = trained("first", 1, 1);
  const std::string path = plans_in(cache_of("first"));
  const std::string text = read_file(path);
  const auto again = [&](const std::string& name, const std::string& contents) {
    folder_.write(fmt::format("cache-{}/{}", name, std::filesystem::path(path).filename().string()),
                  contents);
    return trained(name, 1, 1, kOthers);
  };
  EXPECT_EQ(again("second", text), first) << "what the cache says is taken";
  const std::string others = trained("others", 1, 1, kOthers);
  EXPECT_NE(others, first);
  const auto with_digest = [](const std::string& lines) {
    return lines + sha256_hex(lines) + "\n";
  };
  const std::string head = text.substr(0, text.find('\n') + 1);
  EXPECT_EQ(again("damaged", text.substr(0, text.size() / 2)), others);
  EXPECT_EQ(again("strange", with_digest(head + "forward = fast\n")), others);
  EXPECT_EQ(again("binary", with_digest(head + std::string("\x00\xff\n = \n", 6))), others);
  EXPECT_EQ(again("of-another", with_digest("another GPU\n" + text.substr(head.size()))), others);
  // Every line of it: engines that do not exist, or that nobody may take.
  for (const char* engine :
       {"999999", "3", "9223372036854775807:99999=1", "9:0=99999999999", "none"}) {
    std::string lines = head;
    for (const std::string& line : lines_of(text.substr(head.size())))
      if (const size_t is = line.rfind(" = "); is != std::string::npos)
        lines += line.substr(0, is) + " = " + engine + "\n";
    EXPECT_EQ(again(fmt::format("hostile-{}", engine), with_digest(lines)), others) << engine;
  }
}

}  // namespace
}  // namespace convoy::test
