// Law 1 on the emulated GPU, with the whole program: the same bits on one rank and on several, over
// NCCL's stand-in and with ranks that share a GPU, stopped and resumed on other ranks, in fp32,
// in fp16, whose loss scale is part of the state, and in bf16 with parts frozen. Few steps, because
// it computes 10 images a second.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/error.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

constexpr const char* kJob = R"(
data { format: SYNTHETIC classes: 10 train { size: 8 } eval { resize: 0 } }
model { name: "cifar_resnet20" dropout: 0.2 }
workers: 4
batch_per_worker: 2
optimizer { kind: LARS learning_rate: 0.5 clip_norm: 1 ema_decay: 0.9 }
)";

class EmulatedGpu : public testing::Test, protected Runs {
 protected:
  EmulatedGpu() : Runs(kJob) {}

  Outcome train(const std::string& name, int ranks, int steps, const char* precision,
                const std::string& job = "") {
    const Outcome outcome =
        run({"train", "--job", job.empty() ? folder_.path("job.txtpb") : job, "--out", out(name),
             "--device", "cuda", "--set", fmt::format("stop_after_steps={}", steps), "--set",
             fmt::format("precision={}", precision)},
            ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
    return outcome;
  }
  std::string digest(const std::string& name) { return Runs::digest(out(name)); }
};

class EmulatedGpuIn : public EmulatedGpu, public testing::WithParamInterface<const char*> {};

TEST_P(EmulatedGpuIn, HasTheSameBitsOnAnyRanksAndAfterAStop) {
  train("one", 1, 4, GetParam());
  for (const bool shared : {false, true}) {
    if (shared) ::setenv("CONVOY_EMULATED_GPU_SHARED", "1", 1);
    const std::string name = shared ? "staged" : "nccl";
    train(name, 2, 4, GetParam());
    EXPECT_EQ(digest(name), digest("one")) << name;
    train(name + "-resumed", 3, 1, GetParam());
    train(name + "-resumed", 2, 4, GetParam());
    EXPECT_EQ(digest(name + "-resumed"), digest("one")) << name;
    ::unsetenv("CONVOY_EMULATED_GPU_SHARED");
  }
  // A CPU evaluates it, whatever it was trained in.
  const Outcome eval = run({"eval", "--checkpoint", out("one"), "--device", "cpu", "--json"});
  EXPECT_EQ(eval.exit_code, 0) << eval.all();
  train("less", 1, 3, GetParam());
  EXPECT_NE(digest("less"), digest("one"));
}

INSTANTIATE_TEST_SUITE_P(Precisions, EmulatedGpuIn, testing::Values("fp32", "fp16"),
                         [](const auto& each) { return std::string(each.param); });

// Begun with other weights, all but the classifier frozen till step 1, a part till step 2: of
// 10,000 images a step takes 8.
TEST_F(EmulatedGpu, HasTheSameBitsWithTransferAndUnfreezing) {
  train("source", 1, 1, "bf16");
  const std::string job = folder_.write(
      "transfer.txtpb", std::string(kJob) + "transfer { init_from: \"" + out("source") + "\"" + R"(
        freeze: "conv1" freeze: "bn1" freeze: "layer*"
        unfreeze { epoch: 0.0007 pattern: "layer3" } unfreeze { epoch: 0.0015 pattern: "*" } })");
  const Outcome unbroken = train("transfer", 1, 4, "bf16", job);
  for (const char* border : {"from step 1 on", "from step 2 on"})
    EXPECT_NE(unbroken.err.find(border), std::string::npos) << unbroken.all();
  ::setenv("CONVOY_EMULATED_GPU_SHARED", "1", 1);
  train("resumed", 3, 1, "bf16", job);
  const Outcome two = train("resumed", 2, 4, "bf16", job);
  EXPECT_EQ(lines_with(two.err, "these 2 ranks share 1 GPU(s)"), 1) << two.all();
  ::unsetenv("CONVOY_EMULATED_GPU_SHARED");
  EXPECT_EQ(digest("resumed"), digest("transfer"));
  train("resumed in training", 2, 3, "bf16", job);
  train("resumed in training", 1, 4, "bf16", job);
  EXPECT_EQ(digest("resumed in training"), digest("transfer"));
}

// Of training and of the evaluation at its end.
TEST_F(EmulatedGpu, ReadsImagesFromPinnedMemory) {
  const std::string uploads = out("uploads.txt");
  ::setenv("CONVOY_EMULATED_GPU_UPLOADS", uploads.c_str(), 1);
  const std::string job = folder_.write("short.txtpb", R"(
data { format: SYNTHETIC synthetic_samples: 16 classes: 10 train { size: 8 } eval { resize: 0 } }
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 5
epochs: 1
evaluation { batch: 7 })");
  train("short", 1, 2, "fp32", job);
  ::unsetenv("CONVOY_EMULATED_GPU_UPLOADS");
  constexpr size_t kImage = 8 * 8 * 3;
  std::map<std::string, int> count;
  std::ifstream file(uploads);
  for (std::string line; std::getline(file, line);) ++count[line];
  EXPECT_EQ(count[fmt::format("pinned {}", 5 * kImage)], 2 * 2);
  EXPECT_GT(count[fmt::format("pinned {}", 7 * kImage)], 1);
  for (const size_t images : {5, 7})
    EXPECT_EQ(count[fmt::format("pageable {}", images * kImage)], 0);
}

TEST_F(EmulatedGpu, SumsABufferInEveryWay) {
  for (const bool shared : {false, true}) {
    if (shared) ::setenv("CONVOY_EMULATED_GPU_SHARED", "1", 1);
    const Outcome outcome =
        run({"bench", "allreduce", "--device", "cuda", "--min-bytes", "4", "--max-bytes", "256K",
             "--factor", "256", "--iterations", "2", "--repetitions", "1", "--json"},
            2);
    ::unsetenv("CONVOY_EMULATED_GPU_SHARED");
    ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
    const auto object = nlohmann::json::parse(outcome.out);
    EXPECT_EQ(object["device"], "cuda");
    std::map<std::string, int> sizes;
    for (const auto& row : object["rows"]) {
      ++sizes[row["way"].get<std::string>()];
      EXPECT_EQ(row["wrong"], 0) << row.dump(2);
    }
    using Sizes = std::map<std::string, int>;
    EXPECT_EQ(sizes,
              (shared ? Sizes{{"exact staged", 3}}
                      : Sizes{{"exact NCCL", 3}, {"exact staged", 3}, {"ncclAllReduce", 3}}));
    EXPECT_EQ(outcome.err.find("NCCL needs a GPU for every rank") != std::string::npos, shared)
        << outcome.err;
  }
  const Outcome alone = run({"bench", "allreduce", "--device", "cuda", "--max-bytes", "64K"});
  EXPECT_EQ(alone.exit_code, 0) << alone.all();
}

// As NVTX ranges, on all its threads.
TEST_F(EmulatedGpu, TellsAProfilerWhatItDoes) {
  const char* recorder = std::getenv("CONVOY_NVTX_RECORDER");
  ASSERT_NE(recorder, nullptr);
  const std::string record = folder_.path("ranges");
  ::setenv("NVTX_INJECTION64_PATH", recorder, 1);
  ::setenv("CONVOY_NVTX_RECORD", record.c_str(), 1);
  train("profiled", 1, 2, "fp32");
  ::unsetenv("NVTX_INJECTION64_PATH");

  std::map<int, std::vector<std::string>> open;  // by thread
  std::map<std::string, std::set<std::string>> inside;
  std::ifstream lines(record);
  int thread;
  char border;
  for (std::string name; lines >> thread >> border && std::getline(lines, name);) {
    auto& ranges = open[thread];
    if (border == '-') {
      ASSERT_FALSE(ranges.empty());
      ranges.pop_back();
    } else {
      name.erase(0, 1);
      for (const std::string& outer : ranges) inside[name].insert(outer);
      inside[name];
      ranges.push_back(name);
    }
  }
  for (const auto& [each, ranges] : open) EXPECT_EQ(ranges, std::vector<std::string>{}) << each;
  for (const char* name : {"compute step 0", "compute step 1", "weights packed", "forward",
                           "backward", "sums and update", "image", "checkpoint"})
    EXPECT_TRUE(inside.contains(name)) << name;
  for (const auto& [name, outer] :
       std::map<std::string, std::string>{{"pixels to activations", "forward"},
                                          {"conv1 forward", "forward"},
                                          {"bn1 forward, statistics", "forward"},
                                          {"loss", "forward"},
                                          {"fc backward", "backward"},
                                          {"layer3.2.conv2 backward", "backward"},
                                          {"bucket handed over", "backward"},
                                          {"bucket's sum", "sums and update"},
                                          {"update", "sums and update"},
                                          {"images sent ahead", "sums and update"}})
    EXPECT_TRUE(inside[name].contains(outer)) << name;
}

}  // namespace
}  // namespace convoy::test
