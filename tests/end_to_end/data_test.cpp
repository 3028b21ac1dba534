// `convoy verify DATASET` and `convoy data show`: what they say of folders, and that the pixels
// shown are those that a run was fed.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "ops/core/error.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json object_of(const Outcome& outcome) {
  json object = json::parse(outcome.out, nullptr, false);
  EXPECT_TRUE(object.is_object()) << outcome.all();
  return object;
}

// ---- verify ----

TEST(VerifyDataset, AWholeOneExitsWithZero) {
  const TempFolder folder;
  make_image_folder(folder, 2, 6, 3);
  const Outcome text = run(folder, {"verify", folder.path()});
  EXPECT_EQ(text.exit_code, 0) << text.all();
  EXPECT_EQ(
      lines_with(text.out, "image_folder (certain; train/ and val/, 4 class folder(s), 4 of 4"), 1)
      << text.out;
  EXPECT_EQ(lines_with(text.out, "train: 12 images in 2 classes"), 1);
  EXPECT_EQ(lines_with(text.out, "every image is whole"), 1);
  EXPECT_EQ(lines_with(text.out, "bad:") + lines_with(text.out, "odd:"), 0) << text.out;
  const json object = object_of(run(folder, {"verify", folder.path(), "--json"}));
  EXPECT_EQ(object["bad"], false);
  EXPECT_EQ(object["splits"][1]["samples"], 6);
  EXPECT_TRUE(object["findings"].empty());
}

TEST(VerifyDataset, BadOnesAreNamedInTheSameOrderAtAnyNumberOfThreads) {
  const TempFolder folder;
  const std::string data = folder.path("data");
  const std::string good = encode_jpeg(make_image(60, 50, 3, 1));
  for (int i = 0; i < 8; ++i) {
    folder.write(fmt::format("data/train/a/{}.jpg", i), good.substr(0, 300));
    folder.write(fmt::format("data/train/b/{}.jpg", i),
                 encode_jpeg(make_image(40, 40, i % 2 ? 3 : 1, static_cast<uint64_t>(i))));
  }
  folder.write("data/train/b/esc\x1b.jpg", good);
  folder.write("data/val/a/1.jpg", good);
  folder.write("data/val/b/2.jpg", "");
  Outcome first;
  for (const char* threads : {"1", "2", "5"}) {
    const Outcome outcome = run(folder, {"verify", data, "--data-threads", threads});
    EXPECT_EQ(outcome.exit_code, 65) << outcome.all();
    const std::string findings = outcome.out.substr(0, outcome.out.rfind("bad ("));
    if (first.out.empty()) first.out = findings;
    EXPECT_EQ(findings, first.out);
  }
  EXPECT_EQ(lines_with(first.out, "train: 17 images in 2 classes"), 1) << first.out;
  EXPECT_EQ(lines_with(first.out, "8 bad, 4 odd"), 1) << first.out;
  EXPECT_EQ(lines_with(first.out, "  truncated                8"), 1) << first.out;
  EXPECT_EQ(lines_with(first.out, "... and 3 more (--all)"), 1) << first.out;
  EXPECT_EQ(lines_with(first.out, "  empty                    1"), 1) << first.out;
  EXPECT_EQ(lines_with(first.out, "  grey                     4"), 1) << first.out;
  EXPECT_EQ(lines_with(first.out, "esc\\x1b.jpg (b) = " + data + "/val/a/1.jpg (a)"), 2)
      << first.out;
  const Outcome all = run(folder, {"verify", data, "--all"});
  EXPECT_EQ(lines_with(all.out, "damaged or unsupported JPEG"), 8) << all.out;
  const Outcome outcome = run(folder, {"verify", data, "--json", "--all"});
  EXPECT_EQ(outcome.exit_code, 65);
  const json object = object_of(outcome);
  std::map<std::string, int> counts;
  for (const json& finding : object["findings"]) {
    counts[finding["kind"]] = finding["count"];
    EXPECT_EQ(finding["list"].size(), finding["count"]);
  }
  EXPECT_EQ(counts, (std::map<std::string, int>{{"truncated", 8}, {"empty", 1}, {"grey", 4}}));
  EXPECT_EQ(object["across_splits"]["groups"], 1);
  EXPECT_EQ(object["other_label"]["groups"], 1);
  EXPECT_EQ(object["duplicates"]["groups"], 1);  // eight times the same 300 bytes
  EXPECT_EQ(object["duplicates"]["list"][0].size(), 8u);
}

TEST(VerifyDataset, OtherFormatsAndBrokenSplits) {
  const TempFolder folder;
  const Outcome idx = run(folder, {"verify", make_idx(folder, "idx", {}), "--json"});
  EXPECT_EQ(idx.exit_code, 0) << idx.all();
  EXPECT_EQ(object_of(idx)["format"], "idx");
  folder.write("broken/train/a/1.jpg", encode_jpeg(make_image(40, 40, 3, 1)));
  folder.write("broken/val/stranger/1.jpg", "x");
  const Outcome broken = run(folder, {"verify", folder.path("broken")});
  EXPECT_EQ(broken.exit_code, 65);
  EXPECT_EQ(lines_with(broken.out, "val cannot be opened"), 1) << broken.out;
  EXPECT_EQ(lines_with(broken.out, "no class of that name"), 1) << broken.out;
  EXPECT_EQ(lines_with(broken.out, "train: 1 images in 1 classes"), 1) << broken.out;
}

TEST(VerifyDataset, WhatIsAmbiguousIsRefusedWithTheOptionThatDecides) {
  const TempFolder folder;
  make_idx(folder, "both", {.train = 8, .val = 4});
  folder.write("both/train/a/1.jpg", encode_jpeg(make_image(40, 40, 3, 1)));
  folder.write("both/val/a/1.jpg", encode_jpeg(make_image(40, 40, 3, 2)));
  const Outcome both = run(folder, {"verify", folder.path("both")});
  EXPECT_EQ(both.exit_code, 64);
  EXPECT_EQ(lines_with(both.err, "--as idx or --as image_folder"), 1) << both.err;
  for (const char* format : {"idx", "image_folder"}) {
    const Outcome chosen = run(folder, {"verify", folder.path("both"), "--as", format, "--json"});
    EXPECT_EQ(chosen.exit_code, 0) << chosen.all();
    EXPECT_EQ(object_of(chosen)["format"], format);
  }
  // A run whose folder holds images, too.
  fs::create_directories(folder.path("both/checkpoints"));
  const Outcome is_run = run(folder, {"verify", folder.path("both")});
  EXPECT_EQ(is_run.exit_code, 64);
  EXPECT_EQ(lines_with(is_run.err, "say which with --as run or --as idx"), 1) << is_run.err;
  EXPECT_EQ(run(folder, {"verify", folder.path("both"), "--as", "run"}).exit_code, 65);
  EXPECT_EQ(run(folder, {"verify", folder.path("both"), "--as", "nothing"}).exit_code, 64);
  // Nothing at all, and what is only a guess.
  folder.write("empty/file", "x");
  const Outcome empty = run(folder, {"verify", folder.path("empty")});
  EXPECT_EQ(empty.exit_code, 65);
  EXPECT_EQ(lines_with(empty.err, "neither a checkpoint (no manifest.txtpb) nor a run"), 1)
      << empty.err;
  folder.write("one/a/1.jpg", encode_jpeg(make_image(40, 40, 3, 1)));
  const Outcome guess = run(folder, {"verify", folder.path("one")});
  EXPECT_EQ(guess.exit_code, 0) << guess.all();
  EXPECT_EQ(lines_with(guess.out, "image_folder (a guess; no train/ and val/"), 1) << guess.out;
  EXPECT_EQ(lines_with(guess.out, "images: 1 images in 1 classes"), 1) << guess.out;
}

TEST(VerifyDataset, LinksThatLeadOutNeedTheFlag) {
  const TempFolder folder;
  const std::string file = folder.write("elsewhere/1.jpg", encode_jpeg(make_image(40, 40, 3, 1)));
  fs::create_directories(folder.path("data/a"));
  fs::create_directories(folder.path("data/b"));
  for (const char* name : {"data/a/1.jpg", "data/b/1.jpg"})
    fs::create_symlink(file, folder.path(name));
  const Outcome refused = run(folder, {"verify", folder.path("data")});
  EXPECT_EQ(refused.exit_code, 65);
  EXPECT_EQ(lines_with(refused.err, "2 link(s) lead out of it, the first: " +
                                        folder.path("data/a/1.jpg") + " -> " + file),
            1)
      << refused.err;
  EXPECT_EQ(run(folder, {"verify", folder.path("data"), "--follow-links"}).exit_code, 0);
}

// ---- pack ----

constexpr const char* kPackedJob = R"(
data {
  train { size: 16 }
  eval { resize: 18 }
  mean: [0.5, 0.5, 0.5]
  std: [0.2, 0.2, 0.2]
}
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 4
epochs: 2
evaluation { batch: 4 }
)";

class PackCommand : public RunTest {
 protected:
  PackCommand() : RunTest(kPackedJob) { make_image_folder(images_, 3, 8, 3); }

  json packed(const Arguments& more) {
    Arguments arguments = {"pack", images_.path(), shards_, "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return output_of(arguments);
  }
  std::string digest_of(const std::string& name, const std::string& data, int ranks,
                        const Arguments& more = {}) {
    Arguments arguments = {"train", "--job",  folder_.path("job.txtpb"), "--data", data,
                           "--out", out(name)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(arguments, ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    return digest(out(name));
  }

  const TempFolder images_;
  const std::string shards_ = folder_.path("shards");
};

TEST_F(PackCommand, TrainingOnShardsIsTrainingOnTheFolder) {
  const json summary = packed({});
  EXPECT_EQ(summary["splits"][0]["images"], 24) << summary;
  EXPECT_EQ(summary["splits"][1]["images"], 9) << summary;
  EXPECT_EQ(output_of({"verify", shards_, "--json"})["bad"], false);
  const std::string folder = digest_of("folder", images_.path(), 2);
  EXPECT_EQ(digest_of("shards", shards_, 1), folder);
  EXPECT_EQ(digest_of("shards3", shards_, 3), folder);
}

// The same pixels in another code; what is no plain JPEG stays.
TEST_F(PackCommand, TrainingOnCoefficientsIsTrainingOnTheFolder) {
  images_.write("train/class_0/a_png_called.jpg", encode_png(make_image(30, 40, 3, 5)));
  const json summary = packed({"--coefficients"});
  EXPECT_EQ(summary["splits"][0]["images"], 25) << summary;
  EXPECT_EQ(summary["splits"][0]["coefficients"], 24) << summary;
  EXPECT_EQ(summary["splits"][1]["coefficients"], 9) << summary;
  EXPECT_EQ(output_of({"verify", shards_, "--json"})["bad"], false);
  const std::string folder = digest_of("folder", images_.path(), 2);
  EXPECT_EQ(digest_of("coefficients", shards_, 1), folder);
  EXPECT_EQ(digest_of("coefficients3", shards_, 3), folder);
}

TEST_F(PackCommand, WindowsOfShardsTrainTheSameOnAnyRanks) {
  packed({"--shard-megabytes", "1"});
  const Arguments window = {"--set", "data.shuffle=window", "--set", "data.window_shards=1"};
  const std::string one = digest_of("one", shards_, 1, window);
  EXPECT_EQ(digest_of("two", shards_, 2, window), one);
  EXPECT_EQ(verified(out("two"))["ledger"]["whole_epochs"], 2) << verified(out("two"));
  EXPECT_NE(digest_of("full", shards_, 1), one);
}

TEST_F(PackCommand, AFlatFolderIsVerifiedOnce) {
  Arguments arguments = {"pack", images_.path("val"), shards_};
  EXPECT_EQ(run(arguments).exit_code, 0);
  const json object = output_of({"verify", shards_, "--json"});
  EXPECT_EQ(object["splits"].size(), 1u) << object;
  EXPECT_EQ(object["splits"][0]["samples"], 9);
}

// Killed at moments spread over the whole run, and told to go on each time.
TEST_F(PackCommand, KilledAtAnyMomentItGoesOnToTheSameShards) {
  for (int i = 0; i < 60; ++i)
    images_.write(
        fmt::format("train/class_1/large_{}.jpg", i),
        encode_jpeg(make_image(320 + i, 240, 3, 100 + static_cast<uint64_t>(i)), {.quality = 97}));
  const auto pack_into = [&](const std::string& target) {
    return Arguments{"pack", images_.path(), target, "--shard-megabytes", "1", "--threads", "2"};
  };
  const auto files_of = [](const std::string& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
      if (entry.is_regular_file())
        files[fs::relative(entry.path(), folder).string()] = read_file(entry.path().string());
    return files;
  };
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  ASSERT_EQ(run(pack_into(folder_.path("whole"))).exit_code, 0);
  const auto whole_time = Clock::now() - start;
  const auto expected = files_of(folder_.path("whole"));
  EXPECT_GT(expected.size(), 6u);  // several shards
  const std::string unfinished = shards_ + "/pack.unfinished";
  constexpr int kKills = 8;
  // A kill may come before the first file or after the last one, as the machine likes: once more,
  // then, from the beginning, until one has come between.
  int between = 0;
  for (int tried = 0; between == 0 && tried < 20; ++tried) {
    fs::remove_all(shards_);
    for (int k = 1; k <= kKills; ++k) {
      Running running(folder_, pack_into(shards_), kAlone);
      std::this_thread::sleep_for(whole_time * k / (kKills + 1));
      ::kill(running.pid(), SIGKILL);
      running.finish();
      if (fs::exists(unfinished)) ++between;
      if (fs::exists(shards_ + "/classes.txt") && !fs::exists(unfinished)) break;
    }
  }
  EXPECT_GT(between, 0);
  const Outcome last = run(pack_into(shards_));
  EXPECT_TRUE(last.exit_code == 0 || lines_with(last.err, "is not empty") == 1) << last.all();
  EXPECT_TRUE(files_of(shards_) == expected);  // megabytes: not to be printed
}

TEST_F(PackCommand, KilledWhileItWroteItsPlanItGoesOn) {
  fs::create_directory(shards_);
  std::ofstream(shards_ + "/pack.unfinished.tmp") << "convoy pa";
  packed({});
  EXPECT_FALSE(fs::exists(shards_ + "/pack.unfinished.tmp"));
  EXPECT_EQ(output_of({"verify", shards_, "--json"})["bad"], false);
}

// ---- data show ----

constexpr const char* kJob = R"(name: "shown"
data {
  train { size: 24 }
  eval { resize: 28 }
  mean: [0.5, 0.5, 0.5]
  std: [0.2, 0.2, 0.2]
  bad_sample: SUBSTITUTE
}
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 4
epochs: 2
stop_after_steps: 4
evaluation { every_epochs: 0 batch: 4 }
log { batch_digests: true }
)";

json shown(const TempFolder& folder, const Arguments& more) {
  Arguments arguments = {"data", "show", "--out", folder.path("sheet.png"), "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Outcome outcome = run(folder, arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(read_file(folder.path("sheet.json")), outcome.out);
  EXPECT_TRUE(read_file(folder.path("sheet.png")).starts_with("\x89PNG"));
  return object_of(outcome);
}

// Two of three classes, the other way round, and half of the images of each.
TEST(DataShow, APartOfADatasetIsShownTrainedAndVerified) {
  const TempFolder folder;
  make_image_folder(folder, 3, 8, 3);
  const std::string job = folder.write("job.txtpb", kJob);
  const std::string out = folder.path("run");
  const Outcome outcome =
      run(folder, {"train", "--job", job, "--data", folder.path(), "--out", out, "--set",
                   "data.only_classes=2,0", "--set", "data.images_per_class=4"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
  const json ledger = object_of(run(folder, {"verify", out, "--json"}))["ledger"];
  EXPECT_EQ(ledger["whole_epochs"], 2) << ledger;
  // The first step of both workers is an epoch.
  const auto names_of = [&](const Arguments& more) {
    std::set<std::string> names;
    for (const char* worker : {"0", "1"}) {
      Arguments arguments = {"--job", out + "/job.txtpb", "--step", "0", "--worker", worker};
      arguments.insert(arguments.end(), more.begin(), more.end());
      const json sheet = shown(folder, arguments);
      for (const json& sample : sheet["samples"]) {
        EXPECT_EQ(sample["class"], sample["label"] == 0 ? "class_2" : "class_0");
        EXPECT_EQ(lines_with(sample["name"].get<std::string>(), sample["class"].get<std::string>()),
                  1);
        names.insert(sample["name"]);
      }
    }
    EXPECT_EQ(names.size(), 8u);
    return names;
  };
  EXPECT_NE(names_of({"--set", "seed=2"}), names_of({}));
  // Evaluation has all images of the two.
  EXPECT_EQ(object_of(run(folder, {"eval", "--checkpoint", out, "--json"}))["images"], 6);
}

TEST(DataShow, TheDigestIsTheOneThatTheRunLogs) {
  const TempFolder folder;
  make_image_folder(folder, 3, 8, 3);
  folder.write("train/class_1/image_3.jpg", "not an image");
  const std::string job = folder.write("job.txtpb", kJob);
  std::map<std::pair<int, int>, json> logged;
  for (const int ranks : {1, 2}) {
    const std::string out = folder.path(fmt::format("run{}", ranks));
    const Outcome outcome =
        run(folder, {"train", "--job", job, "--data", folder.path(), "--out", out}, ranks);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
    size_t lines = 0;
    for (int rank = 0; rank < ranks; ++rank)
      for (const std::string& text :
           lines_of(read_file(fmt::format("{}/samples.rank{}.jsonl", out, rank)))) {
        const json line = json::parse(text);
        ++lines;
        const auto [at, fresh] = logged.try_emplace({line["step"], line["worker"]}, line);
        if (!fresh) {
          EXPECT_EQ(at->second, line);
        }
      }
    EXPECT_EQ(lines, 8u);
  }
  int substitutes = 0;
  for (const auto& [place, line] : logged) {
    const json sheet =
        shown(folder, {"--job", folder.path("run1/job.txtpb"), "--step",
                       std::to_string(place.first), "--worker", std::to_string(place.second)});
    EXPECT_EQ(sheet["digest"], line["digest"]) << line;
    ASSERT_EQ(sheet["samples"].size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
      const json& sample = sheet["samples"][i];
      EXPECT_EQ(sample["id"], line["samples"][i]);
      EXPECT_EQ(sample["epoch"], line["epochs"][i]);
      EXPECT_TRUE(sample["class"].get<std::string>().starts_with("class_"));
      if (!sample["substitute"].is_null()) {
        ++substitutes;
        EXPECT_EQ(sample["id"], 11);  // class_1, image_3
      }
    }
  }
  // 32 of the stream's positions are epoch 0 and a third of epoch 1.
  EXPECT_GE(substitutes, 1);
  EXPECT_LE(substitutes, 2);
  // A step that the run has not come to, and a job file that leaves the workers out.
  const json future = shown(folder, {"--job", folder.path("run1/job.txtpb"), "--step", "1000000"});
  EXPECT_EQ(future["samples"][0]["epoch"], 333333);
  EXPECT_NE(future["digest"], logged.begin()->second["digest"]);
  const Outcome refused =
      run(folder, {"data", "show", "--job", job, "--data", folder.path(), "--step", "0", "--set",
                   "workers=0", "--out", folder.path("x.png")});
  EXPECT_EQ(refused.exit_code, 64);
  EXPECT_EQ(lines_with(refused.err, "--set workers=N"), 1) << refused.err;
}

TEST(DataShow, GreyRawPixelsAndSlicesOfEvaluation) {
  const TempFolder folder;
  const std::string data = make_idx(folder, "idx", {.train = 20, .val = 10, .classes = 4});
  const std::string job = folder.write("job.txtpb", R"(data {
  format: IDX
  train { crop: PAD_AND_CROP size: 0 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" }
workers: 1
batch_per_worker: 4
evaluation { batch: 4 }
)");
  const json train = shown(folder, {"--job", job, "--data", data, "--step", "3"});
  EXPECT_EQ(train["shape"], (json{12, 12, 1}));
  EXPECT_EQ(train["samples"].size(), 4u);
  const json few = shown(folder, {"--job", job, "--data", data, "--step", "3", "--count", "2"});
  EXPECT_EQ(few["digest"], train["digest"]);  // of the batch, not of what is shown
  EXPECT_LT(few["sheet"]["width"], train["sheet"]["width"]);
  EXPECT_EQ(few["samples"].size(), 4u);
  EXPECT_FALSE(few["samples"][2].contains("at"));
  // The last slice: two images and padding.
  const json last = shown(folder, {"--job", job, "--data", data, "--split", "val", "--step", "2"});
  ASSERT_EQ(last["samples"].size(), 2u);
  EXPECT_EQ(last["samples"][1]["id"], 9);
  EXPECT_EQ(last["samples"][1]["label"], 9 % 4);
  const auto refused = [&](const Arguments& more, const char* words) {
    Arguments arguments = {"data",   "show", "--job", job,
                           "--data", data,   "--out", folder.path("x.png")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(folder, arguments);
    EXPECT_EQ(outcome.exit_code, 64) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, words), 1) << outcome.err;
  };
  refused({"--split", "val", "--step", "3"}, "slices 0 to 2");
  refused({"--step", "0", "--worker", "1"}, "workers 0 to 0");
  refused({"--step", "0", "--split", "test"}, "train and val");
}

}  // namespace
}  // namespace convoy::test
