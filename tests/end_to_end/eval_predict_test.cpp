// convoy eval and convoy predict: the same bits on any ranks and threads, every image once, what
// they write, and how they refuse.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "ops/core/error.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kJob = R"(
data {
  train { size: 24 }
  eval { resize: 28 }
  mean: [0.5, 0.5, 0.5]
  std: [0.2, 0.2, 0.2]
}
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 4
epochs: 2
optimizer { ema_decay: 0.9 }
evaluation { batch: 4 every_epochs: 0 }
)";

constexpr int kClasses = 3, kVal = 15;

// One run on images of a folder serves all.
class EvaluationCommand : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    runs_ = std::make_unique<Runs>(kJob);
    make_image_folder(runs_->folder(), kClasses, 8, kVal / kClasses);
    fs::create_directory(data());
    for (const char* name : {"train", "val"})
      fs::rename(runs_->folder().path(name), fs::path(data()) / name);
    const Outcome outcome = runs_->run(runs_->train("a"));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
  }
  static void TearDownTestSuite() { runs_.reset(); }

  static std::string data() { return runs_->folder().path("data"); }
  static std::string run_a() { return runs_->out("a"); }
  static std::string path(const std::string& name) { return runs_->folder().path(name); }

  static json evaluate(const Arguments& more, int ranks = kAlone) {
    Arguments arguments = {"eval", "--checkpoint", run_a(), "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = runs_->run(arguments, ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    json object = json::parse(outcome.out, nullptr, false);
    EXPECT_TRUE(object.is_object()) << outcome.all();
    return object;
  }
  static Outcome predict(const Arguments& more) {
    Arguments arguments = {"predict", "--checkpoint", run_a()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return runs_->run(arguments);
  }
  // On any number of ranks: this exit code, nothing on standard output, the words in one line.
  static void expect_refusal(const Arguments& more, ExitCode code,
                             const std::vector<std::string>& words) {
    Arguments arguments = {"eval", "--checkpoint", run_a()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const int numbers[] = {kAlone, 1, 3};
    std::vector<std::unique_ptr<Running>> running;
    for (const int ranks : numbers)
      running.push_back(std::make_unique<Running>(runs_->folder(), arguments, ranks));
    for (size_t i = 0; i < running.size(); ++i) {
      const Outcome outcome = running[i]->finish();
      SCOPED_TRACE(fmt::format("{} ranks: {}", numbers[i], outcome.all()));
      EXPECT_TRUE(outcome.in_time);
      EXPECT_EQ(outcome.left_running, "");
      EXPECT_EQ(outcome.exit_code, static_cast<int>(code));
      EXPECT_EQ(outcome.out, "");
      EXPECT_EQ(lines_with(outcome.err, "error: ") + lines_with(outcome.err, "convoy: "), 1);
      for (const std::string& word : words) EXPECT_EQ(lines_with(outcome.err, word), 1) << word;
    }
  }

  static std::unique_ptr<Runs> runs_;
};
std::unique_ptr<Runs> EvaluationCommand::runs_;

TEST_F(EvaluationCommand, TheSameBitsOnAnyRanksAndThreads) {
  for (const Arguments& looks :
       {Arguments{}, Arguments{"--ten-crop"}, Arguments{"--scales", "24,40"},
        Arguments{"--ensemble", runs_->checkpoint("a", 6), "--scales", "24,33"}}) {
    std::set<std::string> predictions, objects;
    for (const auto& [ranks, threads] : {std::pair{kAlone, "0"}, {1, "1"}, {2, "3"}, {3, "1"}}) {
      const std::string file = path(fmt::format("predictions-{}.jsonl", ranks));
      Arguments arguments = {"--predictions", file, "--data-threads", threads};
      arguments.insert(arguments.end(), looks.begin(), looks.end());
      objects.insert(evaluate(arguments, ranks).dump());
      predictions.insert(read_file(file));
    }
    EXPECT_EQ(predictions.size(), 1u) << testing::PrintToString(looks);
    EXPECT_EQ(objects.size(), 1u) << testing::PrintToString(looks);
    EXPECT_EQ(lines_of(*predictions.begin()).size(), size_t{kVal});
  }
}

TEST_F(EvaluationCommand, EveryImageIsCountedOnce) {
  const json object = evaluate({"--confusion", path("c.json"), "--predictions", path("p.jsonl"),
                                "--mistakes", path("m.png"), "--top", "2"});
  EXPECT_EQ(object["images"], kVal);
  const json confusion = json::parse(read_file(path("c.json")));
  int all = 0, right = 0;
  for (size_t t = 0; t < kClasses; ++t) {
    int row = 0;
    for (const json& n : confusion["matrix"][t]) row += n.get<int>();
    EXPECT_EQ(row, kVal / kClasses);
    EXPECT_EQ(object["classes"][t]["images"], row);
    EXPECT_EQ(object["classes"][t]["correct"], confusion["matrix"][t][t]);
    EXPECT_EQ(object["classes"][t]["name"], fmt::format("class_{}", t));
    right += confusion["matrix"][t][t].get<int>();
    all += row;
  }
  EXPECT_EQ(all, kVal);
  EXPECT_EQ(object["correct"], right);
  int bins = 0;
  for (const json& bin : object["calibration"]) bins += bin["images"].get<int>();
  EXPECT_EQ(bins, kVal);

  const std::vector<std::string> lines = lines_of(read_file(path("p.jsonl")));
  ASSERT_EQ(lines.size(), size_t{kVal});
  int said_right = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    const json line = json::parse(lines[i]);
    EXPECT_EQ(line["index"], i);
    EXPECT_TRUE(fs::exists(line["file"].get<std::string>())) << line;
    ASSERT_EQ(line["top"].size(), 2u);
    EXPECT_GE(line["top"][0]["probability"], line["top"][1]["probability"]);
    said_right += line["top"][0]["class"] == line["label"];
  }
  EXPECT_EQ(said_right, right);
  EXPECT_TRUE(read_file(path("m.png")).starts_with("\x89PNG"));

  const json csv = evaluate({"--confusion", path("c.csv")});
  EXPECT_EQ(csv, object);
  EXPECT_EQ(lines_of(read_file(path("c.csv"))).size(), size_t{kClasses + 1});
  EXPECT_EQ(lines_of(read_file(path("c.csv")))[0], "true \\ predicted,class_0,class_1,class_2");
}

TEST_F(EvaluationCommand, WeightsSplitsAndCopies) {
  const json both = evaluate({});
  EXPECT_EQ(both["weights"], "trained");
  const json trained = evaluate({"--weights", "trained"});
  EXPECT_EQ(trained["top1"], both["top1"]);
  EXPECT_FALSE(trained.contains("ema_top1"));
  const json average = evaluate({"--weights", "average"});
  EXPECT_EQ(average["weights"], "average");
  EXPECT_EQ(average["top1"], both["ema_top1"]);
  EXPECT_NE(average["loss"], trained["loss"]);
  EXPECT_EQ(evaluate({"--split", "train"})["images"], 24);
  const json copies = evaluate({"--ensemble", run_a(), run_a()});
  EXPECT_EQ(copies["ensemble"].size(), 3u);
  for (const char* key : {"top1", "top5", "calibration_error"})
    EXPECT_NEAR(copies[key].get<double>(), both[key].get<double>(), 1e-12) << key;
}

// The network that evaluates is made for the size of evaluation, in training as well.
TEST_F(EvaluationCommand, AnotherSizeThanTraining) {
  const Outcome trained = runs_->run(
      runs_->train("size", {"--set", "data.eval.size=40", "--set", "data.eval.resize=44"}));
  ASSERT_EQ(trained.exit_code, 0) << trained.all();
  const json object = runs_->output_of({"eval", "--checkpoint", runs_->out("size"), "--json"});
  json last;
  for (const json& line : runs_->metrics("size"))
    if (line.contains("top1")) last = line;
  ASSERT_TRUE(last.is_object());
  for (const char* key : {"images", "correct", "top1", "top5", "loss", "ema_top1"})
    EXPECT_EQ(object[key], last[key]) << key;
}

// A set of some of the classes, and one of the same images in shards: by name.
TEST_F(EvaluationCommand, AnotherSetOfAnyFormat) {
  const Outcome packed = runs_->run({"pack", data(), path("shards")});
  ASSERT_EQ(packed.exit_code, 0) << packed.all();
  const json folder = evaluate({});
  json shards = evaluate({"--data", path("shards")});
  EXPECT_EQ(shards, folder);
  fs::create_directories(path("some"));
  fs::copy(data() + "/val/class_2", path("some/class_2"));
  const json some = evaluate({"--data", path("some")});
  EXPECT_EQ(some["images"], kVal / kClasses);
  EXPECT_EQ(some["correct"], folder["classes"][2]["correct"]);
  EXPECT_EQ(some["classes"][2]["images"], kVal / kClasses);
}

TEST_F(EvaluationCommand, TheTextHasATable) {
  const Outcome outcome = runs_->run({"eval", "--checkpoint", run_a(), "--ten-crop"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.out, "step 6: top-1"), 1) << outcome.out;
  EXPECT_EQ(lines_with(outcome.out, "moving average: top-1"), 1);
  EXPECT_EQ(lines_with(outcome.out, "ten crops, probabilities averaged"), 1);
  EXPECT_EQ(lines_with(outcome.out, "calibration error"), 1);
  EXPECT_EQ(lines_with(outcome.out, "most often taken for"), 1);
  EXPECT_EQ(lines_with(outcome.out, "class_"), kClasses) << outcome.out;
}

TEST_F(EvaluationCommand, NonsenseIsRefused) {
  expect_refusal({"--ten-crop", "--scales", "24"}, ExitCode::kUsage, {"choose one"});
  expect_refusal({"--scales", "24,x"}, ExitCode::kUsage, {"--scales 24,x"});
  expect_refusal({"--split", "test"}, ExitCode::kUsage, {"train and val"});
  expect_refusal({"--weights", "best"}, ExitCode::kUsage, {"trained and average"});
  expect_refusal({"--confusion", "c.txt"}, ExitCode::kUsage, {".csv or .json"});
  expect_refusal({"--data", data(), "--as", "jpeg"}, ExitCode::kUsage, {"image_folder"});
}

TEST_F(EvaluationCommand, WhatCannotBeIsRefused) {
  expect_refusal({"--ensemble", path("nothing")}, ExitCode::kIo, {path("nothing")});
  expect_refusal({"--predictions", path("no/where.jsonl")}, ExitCode::kIo,
                 {path("no/where.jsonl")});
  fs::copy(data() + "/val", path("broken"), fs::copy_options::recursive);
  const std::string file = path("broken/class_1/image_1.jpg");
  fs::resize_file(file, fs::file_size(file) / 2);
  for (const Arguments& looks : {Arguments{"--ten-crop"}, Arguments{"--scales", "24,40"}}) {
    Arguments arguments = {"--data", path("broken")};
    arguments.insert(arguments.end(), looks.begin(), looks.end());
    expect_refusal(arguments, ExitCode::kBadData, {file});
  }
  // Neither command has a job whose setting would be a remedy.
  for (const Outcome& outcome :
       {runs_->run({"eval", "--checkpoint", run_a(), "--data", path("broken")}), predict({file})}) {
    EXPECT_EQ(outcome.exit_code, 65) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, file + ": damaged or unsupported JPEG"), 1) << outcome.err;
    EXPECT_EQ(lines_with(outcome.err, "replace or remove the file"), 1) << outcome.err;
    EXPECT_EQ(lines_with(outcome.err, "bad_sample"), 0) << outcome.err;
  }
}

// ---- predict ----

TEST_F(EvaluationCommand, PredictSaysWhatEvalSays) {
  evaluate({"--predictions", path("p.jsonl")});
  const Outcome outcome = predict({data() + "/val", "--json"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  const std::vector<std::string> expected = lines_of(read_file(path("p.jsonl"))),
                                 got = lines_of(outcome.out);
  ASSERT_EQ(got.size(), expected.size()) << outcome.all();
  for (size_t i = 0; i < got.size(); ++i) {
    const json a = json::parse(expected[i]), b = json::parse(got[i]);
    EXPECT_EQ(a["file"], b["file"]);
    ASSERT_EQ(a["top"].size(), b["top"].size());
    for (size_t k = 0; k < a["top"].size(); ++k) {
      EXPECT_EQ(a["top"][k]["name"], b["top"][k]["name"]);
      // Other batches than evaluation's: other blocks of the same sums.
      EXPECT_NEAR(a["top"][k]["probability"].get<double>(),
                  b["top"][k]["probability"].get<double>(), 2e-5);
    }
  }
  for (const char* threads : {"0", "3"})
    EXPECT_EQ(predict({data() + "/val", "--json", "--data-threads", threads}).out, outcome.out);
  EXPECT_EQ(lines_of(predict({data() + "/val", "--ten-crop", "--batch", "20"}).out).size(),
            size_t{kVal});
}

// "FILE: NAME 12.34 %, NAME 5.67 %", one line each.
TEST_F(EvaluationCommand, PredictsLinesOfText) {
  const std::string file = data() + "/val/class_0/image_0.jpg";
  const Outcome outcome = predict({file, "--top", "2"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(outcome.err, "");
  const std::string number = "[0-9]+\\.[0-9][0-9] %";
  EXPECT_TRUE(outcome.out.starts_with(file + ": ")) << outcome.out;
  EXPECT_TRUE(
      std::regex_match(outcome.out.substr(file.size()),
                       std::regex(": class_[0-2] " + number + ", class_[0-2] " + number + "\n")))
      << outcome.out;
  const std::string names = runs_->folder().write("names.txt", "cat\nbig dog\nfox\n");
  const Outcome named = predict({file, "--classes-file", names, "--top", "3"});
  for (const char* name : {"cat ", "big dog ", "fox "})
    EXPECT_EQ(lines_with(named.out, name), 1) << named.all();
  const Outcome few =
      predict({file, "--classes-file", runs_->folder().write("few.txt", "cat\nfox\n")});
  EXPECT_EQ(few.exit_code, 65);
  EXPECT_EQ(lines_with(few.err, "has 2 lines; the network has 3 classes"), 1) << few.err;
}

TEST_F(EvaluationCommand, PredictGoesOnBehindABadImage) {
  const std::string bad = runs_->folder().write("mixed/b.jpg", "no image");
  for (const char* name : {"mixed/a.jpg", "mixed/sub/c.png", "mixed/d.jpg"})
    runs_->folder().write(name, encode_jpeg(make_image(50, 40, 3, 7)));
  const std::string missing = path("mixed/missing.jpg");
  const Outcome outcome = predict({path("mixed"), missing, "--batch", "2"});
  EXPECT_EQ(outcome.exit_code, 65) << outcome.all();
  const std::vector<std::string> lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), 3u) << outcome.all();
  EXPECT_TRUE(lines[0].starts_with(path("mixed/a.jpg") + ": "));
  EXPECT_TRUE(lines[1].starts_with(path("mixed/d.jpg") + ": "));
  EXPECT_TRUE(lines[2].starts_with(path("mixed/sub/c.png") + ": "));
  EXPECT_EQ(lines_with(outcome.err, bad), 1) << outcome.err;
  EXPECT_EQ(lines_with(outcome.err, missing), 1) << outcome.err;
  EXPECT_EQ(lines_with(outcome.err, "5 images in"), 1) << outcome.err;
  // As JSON every file has its object.
  const Outcome objects = predict({path("mixed"), missing, "--json"});
  EXPECT_EQ(objects.exit_code, 65);
  ASSERT_EQ(lines_of(objects.out).size(), 5u) << objects.all();
  EXPECT_EQ(json::parse(lines_of(objects.out)[1])["file"], bad);
  EXPECT_TRUE(json::parse(lines_of(objects.out)[1]).contains("error"));
}

TEST_F(EvaluationCommand, PredictReadsNamesAndStopsWhenNobodyListens) {
  const std::string list = runs_->folder().write(
      "list.txt", data() + "/val/class_1/image_0.jpg\n\n" + data() + "/val/class_0\n");
  const Outcome piped = runs_->run_by(fmt::format("exec \"$@\" < {}", list),
                                      {"predict", "--checkpoint", run_a(), "-"});
  EXPECT_EQ(piped.exit_code, 0) << piped.all();
  ASSERT_EQ(lines_of(piped.out).size(), size_t{1 + kVal / kClasses}) << piped.all();
  EXPECT_TRUE(piped.out.starts_with(data() + "/val/class_1/image_0.jpg: "));
  const Outcome closed =
      runs_->run_by("\"$@\" | head -n 1; exit ${PIPESTATUS[0]}",
                    {"predict", "--checkpoint", run_a(), data() + "/train", "--batch", "1"});
  EXPECT_EQ(closed.exit_code, 0) << closed.all();
  EXPECT_EQ(lines_of(closed.out).size(), 1u);
  EXPECT_EQ(lines_with(closed.err, "rror"), 0) << closed.err;
}

// A network of grey images of 12 x 12, trained on IDX files, looks at photographs.
TEST_F(EvaluationCommand, PredictForANetworkOfGreyImages) {
  make_idx(runs_->folder(), "idx", {});
  const std::string job = runs_->folder().write("grey.txtpb", R"(
    data { format: IDX train { crop: PAD_AND_CROP size: 0 pad: 2 } eval { resize: 0 } }
    model { name: "cifar_resnet20" } workers: 1 batch_per_worker: 4 stop_after_steps: 1)");
  const Outcome trained =
      runs_->run({"train", "--job", job, "--data", path("idx"), "--out", path("grey")});
  ASSERT_EQ(trained.exit_code, 0) << trained.all();
  const Outcome outcome =
      runs_->run({"predict", "--checkpoint", path("grey"), data() + "/val/class_0", "--top", "1"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_of(outcome.out).size(), size_t{kVal / kClasses});
  // And is evaluated on a folder of images, whose classes it takes by their number.
  const Outcome other = runs_->run({"eval", "--checkpoint", path("grey"), "--data", data()});
  EXPECT_EQ(other.exit_code, 0) << other.all();
  EXPECT_EQ(lines_with(other.err, "taken by their number"), 1) << other.err;
}

// Made-up images lie in no folder; and what is imported has no names of classes.
TEST_F(EvaluationCommand, EvaluatesWhatWasTrainedOnMadeUpImages) {
  const std::string job = runs_->folder().write("made_up.txtpb", R"(
    data { format: SYNTHETIC synthetic_samples: 8 classes: 9
      train { crop: CENTER size: 16 } eval { resize: 16 } }
    model { name: "cifar_resnet20" } workers: 1 batch_per_worker: 4 stop_after_steps: 1)");
  const Outcome trained = runs_->run({"train", "--job", job, "--out", path("made_up")});
  ASSERT_EQ(trained.exit_code, 0) << trained.all();
  const Outcome own = runs_->run({"eval", "--checkpoint", path("made_up")});
  EXPECT_EQ(own.exit_code, 0) << own.all();
  const Outcome folder = runs_->run({"eval", "--checkpoint", path("made_up"), "--data", data()});
  EXPECT_EQ(folder.exit_code, 0) << folder.all();
  EXPECT_NE(folder.out.find(fmt::format("of {} images", kVal)), std::string::npos) << folder.all();
  EXPECT_EQ(lines_with(folder.err, "the network knows no class"), 1) << folder.err;
  std::filesystem::create_directory(path("nothing"));
  const Outcome none =
      runs_->run({"eval", "--checkpoint", path("made_up"), "--data", path("nothing")});
  EXPECT_EQ(none.exit_code, static_cast<int>(ExitCode::kBadData)) << none.all();

  const std::string weights = path("made_up.safetensors");
  ASSERT_EQ(runs_->run({"export", path("made_up"), weights}).exit_code, 0);
  const Outcome import = runs_->run({"import", "--model", "cifar_resnet20", "--weights", weights,
                                     "--out", path("nameless"), "--input", "3x16x16"});
  ASSERT_EQ(import.exit_code, 0) << import.all();
  const Outcome nameless = runs_->run({"eval", "--checkpoint", path("nameless"), "--data", data()});
  EXPECT_EQ(nameless.exit_code, 0) << nameless.all();
  EXPECT_EQ(lines_with(nameless.err, "whose names the checkpoint does not know"), 1)
      << nameless.err;
}

}  // namespace
}  // namespace convoy::test
