// Laws 1 and 2 on the program itself: a result belongs to the job, not to the ranks, the loader's
// threads or the stops on the way; every sample exactly once; an evaluation counts every image
// once.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/error.h"
#include "ops/core/isa.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

using nlohmann::json;

// 2 epochs of 235 samples in steps of 16 are 30 steps; the last takes 10 samples of a third epoch.
// With all that keeps a state or draws random numbers.
constexpr const char* kJob = R"(
data {
  format: IDX
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" dropout: 0.2 }
workers: 4
batch_per_worker: 4
epochs: 2
optimizer { kind: LARS learning_rate: 0.5 clip_norm: 1 ema_decay: 0.9 }
schedule { kind: PLATEAU patience: 1 }
evaluation { batch: 8 }
log { every_steps: 1 samples: true }
mixing { mixup_alpha: 0.2 cutmix_alpha: 1 }
)";
constexpr int kSamples = 235, kValImages = 50, kSteps = 30;

class SameBits : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    runs_ = std::make_unique<Runs>(kJob);
    make_idx(runs_->folder(), "data", {.train = kSamples, .val = kValImages});
    // The reference: unbroken, one rank, one thread.
    train("reference", 1, {"--data-threads", "1"});
  }
  static void TearDownTestSuite() { runs_.reset(); }

  static std::string out(const std::string& name) { return runs_->out(name); }

  // A life of the run `name`; what it printed.
  static Outcome train(const std::string& name, int ranks, const Arguments& more = {}) {
    const Outcome outcome = runs_->run(runs_->train(name, more), ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
    return outcome;
  }

  static std::string digest(const std::string& name, int step = kSteps) {
    json object = runs_->verified(out(name));
    EXPECT_EQ(object["step"], step) << name;
    EXPECT_EQ(object["digest"].get<std::string>().size(), 64u);
    return object["digest"];
  }

  static std::vector<json> metrics(const std::string& name) { return runs_->metrics(name); }

  struct Drawn {
    uint64_t epoch = 0, sample = 0;
    bool operator==(const Drawn&) const = default;
  };

  // The samples of a run in the order of the stream, from the logs of all its ranks.
  static std::vector<Drawn> drawn(const std::string& name) {
    std::map<std::pair<int, int>, std::vector<Drawn>> batches;
    for (const auto& entry : std::filesystem::directory_iterator(out(name))) {
      if (!entry.path().filename().string().starts_with("samples.rank")) continue;
      for (const std::string& text : lines_of(read_file(entry.path()))) {
        const json line = json::parse(text, nullptr, false);
        EXPECT_TRUE(line.is_object()) << text;
        std::vector<Drawn>& batch = batches[{line["step"], line["worker"]}];
        EXPECT_TRUE(batch.empty())
            << "worker " << line["worker"] << " twice in step " << line["step"];
        EXPECT_EQ(line["epochs"].size(), line["samples"].size());
        for (size_t i = 0; i < line["samples"].size(); ++i)
          batch.push_back({line["epochs"][i], line["samples"][i]});
      }
    }
    std::vector<Drawn> all;
    for (const auto& [at, batch] : batches) all.insert(all.end(), batch.begin(), batch.end());
    return all;
  }

  static std::unique_ptr<Runs> runs_;
};
std::unique_ptr<Runs> SameBits::runs_;

TEST_F(SameBits, OnAnyNumberOfRanksAndLoaderThreads) {
  const std::string expected = digest("reference");
  for (const int ranks : {kAlone, 1, 2, 3, 4, 5})
    for (const char* threads : {"1", "3"}) {
      if (ranks <= 1 && threads[0] == '1') continue;  // the reference; alone runs once
      const std::string name = fmt::format("{}-ranks-{}-threads", ranks, threads);
      train(name, ranks, {"--data-threads", threads});
      EXPECT_EQ(digest(name), expected) << name;
    }
}

TEST_F(SameBits, AJobOfAnotherSeedHasOthers) {
  train("seed", 2, {"--set", "seed=2"});
  EXPECT_NE(digest("seed"), digest("reference"));
}

TEST_F(SameBits, WithWorkersThatNoPowerOfTwoCounts) {
  std::set<std::string> digests;
  for (const int ranks : {1, 2, 3}) {
    const std::string name = fmt::format("3-workers-{}", ranks);
    train(name, ranks, {"--set", "workers=3", "--set", "stop_after_steps=30"});
    digests.insert(digest(name));
  }
  EXPECT_EQ(digests.size(), 1u);
}

TEST_F(SameBits, InBfloat16) {
  if (!cpu_supports_bf16()) GTEST_SKIP() << "this CPU computes no bfloat16";
  std::set<std::string> digests;
  for (const int ranks : {1, 3}) {
    const std::string name = fmt::format("bf16-{}", ranks);
    train(name, ranks, {"--set", "precision=bf16"});
    digests.insert(digest(name));
  }
  EXPECT_EQ(digests.size(), 1u);
  EXPECT_FALSE(digests.contains(digest("reference")));
}

TEST_F(SameBits, WithTwoThreadsForEachWorker) {
  std::set<std::string> digests;
  for (const int ranks : {1, 2}) {
    const std::string name = fmt::format("2-threads-{}", ranks);
    train(name, ranks, {"--set", "threads_per_worker=2"});
    digests.insert(digest(name));
  }
  EXPECT_EQ(digests.size(), 1u);
}

// One worker a rank, with all its threads; recorded, so that the run goes on with them elsewhere.
TEST_F(SameBits, AJobWithoutWorkersTakesThemFromItsFirstStart) {
  const Arguments open = {"--set", "workers=0", "--set", "batch_per_worker=8"};
  const auto train_open = [&](const char* name, int ranks, const char* steps) {
    Arguments more = open;
    more.insert(more.end(), {"--set", steps});
    train(name, ranks, more);
  };
  train_open("open", 2, "stop_after_steps=30");
  train_open("open-resumed", 2, "stop_after_steps=9");
  const std::string recorded = read_file(out("open-resumed") + "/job.txtpb");
  EXPECT_EQ(lines_with(recorded, "workers: 2"), 1) << recorded;
  EXPECT_EQ(lines_with(recorded, "threads_per_worker: 0"), 0) << recorded;
  train_open("open-resumed", 1, "stop_after_steps=30");
  EXPECT_EQ(read_file(out("open-resumed") + "/job.txtpb"), read_file(out("open") + "/job.txtpb"));
  EXPECT_EQ(digest("open-resumed"), digest("open"));
}

TEST_F(SameBits, ForImagesOfAFolder) {
  make_image_folder(runs_->folder(), 3, 13, 3);
  runs_->folder().write("images.txtpb", R"(
    data { format: IMAGE_FOLDER train { size: 24 } eval { resize: 28 } }
    model { name: "cifar_resnet20" }
    workers: 3 batch_per_worker: 4 epochs: 2 evaluation { batch: 4 }
  )");
  std::set<std::string> results;
  for (const int ranks : {1, 2, 3}) {
    const std::string name = fmt::format("images-{}", ranks);
    const Outcome outcome = run(runs_->folder(),
                                {"train", "--job", runs_->folder().path("images.txtpb"), "--data",
                                 runs_->folder().path(), "--out", out(name)},
                                ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    results.insert(digest(name, 7) + " " + outcome.out);
  }
  EXPECT_EQ(results.size(), 1u) << fmt::format("{}", *results.begin());
}

// An inception module with a classifier beside it; evaluation takes images that are too small for
// that classifier's pool.
TEST_F(SameBits, WithAnAuxiliaryClassifier) {
  constexpr const char* kNetwork = R"(
    name: "inception" input_channels: 1 input_height: 12 input_width: 12
    node { name: "stem" input: "input" conv2d { out_channels: 8 padding: 1 } }
    node { name: "stem.bn" input: "stem" batch_norm {} }
    node { name: "stem.relu" input: "stem.bn" relu {} }
    node { name: "one" input: "stem.relu" conv2d { out_channels: 4 kernel: 1 bias: true } }
    node { name: "three" input: "stem.relu" conv2d { out_channels: 8 padding: 1 } }
    node { name: "three.bn" input: "three" batch_norm {} }
    node { name: "pool" input: "stem.relu" max_pool { stride: 1 } }
    node { name: "module" input: "one" input: "three.bn" input: "pool" concat {} }
    node { name: "module.relu" input: "module" relu {} }
    node { name: "aux.pool" input: "module.relu" avg_pool { kernel: 9 stride: 3 } }
    node { name: "aux.conv" input: "aux.pool" conv2d { out_channels: 8 kernel: 1 } }
    node { name: "aux.bn" input: "aux.conv" batch_norm {} }
    node { name: "aux.dropout" input: "aux.bn" dropout { rate: 0.7 } }
    node { name: "aux.fc" input: "aux.dropout" linear { out_features: 4 } }
    node { name: "down" input: "module.relu" conv2d { out_channels: 16 stride: 2 padding: 1 } }
    node { name: "down.relu" input: "down" relu {} }
    node { name: "features" input: "down.relu" global_avg_pool {} }
    node { name: "dropout" input: "features" dropout { rate: 0.4 } }
    node { name: "fc" input: "dropout" linear { out_features: 4 } }
    auxiliary { node: "aux.fc" weight: )";
  const auto train_it = [&](const std::string& name, const char* weight, int ranks,
                            const char* threads) {
    const std::string network =
        runs_->folder().write(name + ".txtpb", std::string(kNetwork) + weight + " }");
    return train(name, ranks,
                 {"--set", "model.name=" + network, "--set", "model.dropout=0", "--set",
                  "data.eval.size=8", "--data-threads", threads});
  };
  std::set<std::string> digests;
  std::map<int, std::set<std::string>> evaluations;  // by step
  for (const auto& [ranks, threads] :
       {std::pair{kAlone, "3"}, {1, "1"}, {2, "1"}, {2, "3"}, {3, "0"}, {3, "3"}}) {
    const std::string name = fmt::format("aux-{}-{}", ranks, threads);
    train_it(name, "0.3", ranks, threads);
    digests.insert(digest(name));
    for (json line : metrics(name))
      if (line.contains("top1")) {
        line.erase("time");
        evaluations[line["step"]].insert(line.dump());
      }
  }
  EXPECT_EQ(digests.size(), 1u);
  ASSERT_EQ(evaluations.size(), 2u);  // of two epochs
  for (const auto& [step, texts] : evaluations) EXPECT_EQ(texts.size(), 1u) << step;
  train_it("aux-unheard", "0", 2, "1");
  EXPECT_FALSE(digests.contains(digest("aux-unheard")));
  // The same evaluation by the command.
  for (const int ranks : {kAlone, 3}) {
    const Outcome outcome = runs_->run({"eval", "--checkpoint", out("aux-1-1"), "--json"}, ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    const json object = json::parse(outcome.out, nullptr, false);
    const json last = json::parse(*evaluations.rbegin()->second.begin());
    for (const char* key : {"images", "correct", "top1", "loss", "ema_top1"})
      EXPECT_EQ(object[key], last[key]) << key << " on " << ranks << " ranks";
  }
}

// Of layers: the log is the same text on any ranks and after a stop, and the run the same run.
TEST_F(SameBits, WithALogOfGradients) {
  const Arguments logged = {"--log-gradients", "4"};
  std::set<std::string> texts;
  for (const int ranks : {1, 3, 5}) {
    const std::string name = fmt::format("gradients-{}", ranks);
    train(name, ranks, logged);
    EXPECT_EQ(digest(name), digest("reference")) << name;
    texts.insert(read_file(out(name) + "/gradients.jsonl"));
  }
  // A life that has gone further than its last checkpoint: 16 steps are logged, 13 saved.
  train("gradients-resumed", 2, {"--log-gradients", "4", "--set", "stop_after_steps=13"});
  const std::string path = out("gradients-resumed") + "/gradients.jsonl";
  runs_->folder().write("runs/gradients-resumed/gradients.jsonl",
                        read_file(path) + "{\"step\":16,\"epoch\":1}\n{\"step\":");
  train("gradients-resumed", 1, logged);
  EXPECT_EQ(digest("gradients-resumed"), digest("reference"));
  texts.insert(read_file(path));
  EXPECT_EQ(texts.size(), 1u);

  std::vector<int> steps;
  for (const std::string& text : lines_of(*texts.begin())) {
    const json line = json::parse(text);
    steps.push_back(line["step"]);
    EXPECT_EQ(line["weights"].size(), 20u);
    EXPECT_EQ(line["batch_norms"].size(), 19u);
    for (const char* key : {"gradient_norm", "gradient_rms", "weight_norm", "weight_rms"})
      EXPECT_EQ(line[key].size(), 20u) << key;
    for (const json& v : line["gradient_norm"]) EXPECT_GT(v.get<double>(), 0);
    EXPECT_EQ(line["response_std"].size(), 19u);
  }
  EXPECT_EQ(steps, (std::vector<int>{1, 4, 8, 12, 16, 20, 24, 28}));
}

TEST_F(SameBits, StoppedAndResumedOnOtherRanks) {
  train("resumed", 1, {"--set", "stop_after_steps=13"});
  digest("resumed", 13);
  train("resumed", 3, {"--set", "stop_after_steps=21"});
  digest("resumed", 21);
  const Outcome last = train("resumed", 2);
  EXPECT_EQ(lines_with(last.err, "resumed at step 21 of 30"), 1) << last.all();
  EXPECT_EQ(digest("resumed"), digest("reference"));

  // Metrics read as those of one run: every step once, rising.
  int step = 0;
  std::vector<json> evaluations;
  for (const json& line : metrics("resumed")) {
    EXPECT_GE(line["step"].get<int>(), step) << line;
    if (line.contains("train_loss")) {
      EXPECT_EQ(line["step"], ++step) << line;
    }
    if (line.contains("top1")) evaluations.push_back(line);
  }
  EXPECT_EQ(step, kSteps);
  std::vector<json> expected;
  for (const json& line : metrics("reference"))
    if (line.contains("top1")) expected.push_back(line);
  ASSERT_EQ(expected.size(), 2u);
  ASSERT_EQ(evaluations.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    expected[i].erase("time");
    evaluations[i].erase("time");
    EXPECT_EQ(evaluations[i], expected[i]);
  }

  EXPECT_EQ(drawn("resumed"), drawn("reference"));
}

// Begun with weights of another run, parts of it frozen till epochs 0.5 and 1 (steps 8 and 15),
// with factors: the same on any ranks, stopped before, at and behind the borders, and without the
// file.
TEST_F(SameBits, WithTransferAndUnfreezing) {
  const std::string weights = runs_->folder().path("weights.safetensors");
  std::filesystem::copy_file(runs_->checkpoint("reference", kSteps) + "/model.safetensors", weights,
                             std::filesystem::copy_options::overwrite_existing);
  const std::string transfer = "transfer { init_from: \"" + weights + "\"" + R"(
        start_anew: "layer3.2"
        freeze: "conv1" freeze: "bn1" freeze: "layer1" freeze: "layer2.*"
        unfreeze { epoch: 1 pattern: "layer1" } unfreeze { epoch: 0.5 pattern: "layer2" } })";
  std::string with_factors = kJob;
  with_factors.insert(with_factors.find("learning_rate:"),
                      "group { pattern: \"fc\" learning_rate_factor: 2 } "
                      "group { pattern: \"layer3\" weight_decay_factor: 3 } ");
  const std::string job = runs_->folder().write("transfer.txtpb", with_factors + transfer);
  const std::string without_factors = runs_->folder().write("without.txtpb", kJob + transfer);
  const auto life = [&](const std::string& name, int ranks, int until, const std::string& of) {
    const Outcome outcome =
        runs_->run({"train", "--job", of, "--data", runs_->folder().path("data"), "--out",
                    out(name), "--set", fmt::format("stop_after_steps={}", until)},
                   ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
    return outcome;
  };
  const Outcome unbroken = life("transfer", 1, kSteps, job);
  EXPECT_EQ(lines_with(unbroken.err, "from step 8 on"), 1) << unbroken.all();
  EXPECT_EQ(lines_with(unbroken.err, "from step 15 on"), 1) << unbroken.all();
  std::vector<int> unfrozen;
  for (const json& line : metrics("transfer"))
    if (line.contains("event") && line["event"] == "unfreeze") unfrozen.push_back(line["step"]);
  EXPECT_EQ(unfrozen, (std::vector<int>{8, 15}));
  const std::string expected = digest("transfer");
  EXPECT_NE(expected, digest("reference"));
  life("without-factors", 1, kSteps, without_factors);
  EXPECT_NE(expected, digest("without-factors"));
  life("transfer-3", 3, kSteps, job);
  EXPECT_EQ(digest("transfer-3"), expected);
  const std::vector<std::string> names = {"before", "at", "behind"};
  for (int i = 0; i < 3; ++i) {
    life(names[static_cast<size_t>(i)], 1 + i, 7 + i, job);
    life(names[static_cast<size_t>(i)], 3 - i, 14 + i, job);
  }
  std::filesystem::remove(weights);
  for (const std::string& name : names) {
    const Outcome outcome = life(name, name == "at" ? 3 : 1, kSteps, job);
    EXPECT_EQ(lines_with(outcome.err, "begins with"), 0) << outcome.all();
    EXPECT_EQ(digest(name), expected) << name;
  }
}

TEST_F(SameBits, ACompleteRunIsLeftAsItIs) {
  const std::string before = digest("reference");
  const Outcome outcome = train("reference", 2);
  EXPECT_EQ(lines_with(outcome.out, "this run was already complete"), 1) << outcome.all();
  EXPECT_EQ(digest("reference"), before);
}

TEST_F(SameBits, EverySampleExactlyOnce) {
  train("logged", 3);
  for (const char* name : {"reference", "logged"}) {
    const std::vector<Drawn> stream = drawn(name);
    ASSERT_EQ(stream.size(), static_cast<size_t>(kSteps * 16)) << name;
    std::vector<std::set<uint64_t>> epochs(3);
    for (size_t i = 0; i < stream.size(); ++i) {
      EXPECT_EQ(stream[i].epoch, i / kSamples) << name << ", position " << i;
      EXPECT_LT(stream[i].sample, static_cast<uint64_t>(kSamples));
      epochs.at(stream[i].epoch).insert(stream[i].sample);
    }
    EXPECT_EQ(epochs[0].size(), static_cast<size_t>(kSamples)) << name;
    EXPECT_EQ(epochs[1].size(), static_cast<size_t>(kSamples)) << name;
    EXPECT_EQ(epochs[2].size(), 10u) << name;
    // Shuffled, and each epoch in its own way.
    int in_place = 0, same = 0;
    for (size_t i = 0; i < kSamples; ++i) {
      in_place += stream[i].sample == i;
      same += stream[i].sample == stream[i + kSamples].sample;
    }
    EXPECT_LT(in_place, 20) << name;
    EXPECT_LT(same, 20) << name;
  }
  EXPECT_EQ(drawn("logged"), drawn("reference"));
}

TEST_F(SameBits, AnEvaluationCountsTheSameOnAnyNumberOfRanks) {
  json result;
  for (const json& line : metrics("reference"))
    if (line.contains("top1")) result = line;
  ASSERT_TRUE(result.is_object());
  EXPECT_EQ(result["images"], kValImages);
  EXPECT_EQ(result["top1"].get<double>(), result["correct"].get<double>() / kValImages);
  for (const int ranks : {kAlone, 1, 2, 3}) {
    const Outcome outcome = runs_->run({"eval", "--checkpoint", out("reference"), "--json"}, ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    const json object = json::parse(outcome.out, nullptr, false);
    ASSERT_TRUE(object.is_object()) << outcome.all();
    EXPECT_EQ(object["step"], kSteps);
    for (const char* key : {"images", "correct", "top1", "top5", "loss", "ema_top1", "ema_top5"})
      EXPECT_EQ(object[key], result[key]) << key << " on " << ranks << " ranks";
  }
}

}  // namespace
}  // namespace convoy::test
