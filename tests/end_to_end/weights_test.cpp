// Weights out of a run and into a checkpoint again: the same bits, the same accuracy; what does not
// fit is named and leaves nothing behind; nothing trains on by accident in an imported folder.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kJob = R"(
data {
  format: IDX
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" }
workers: 1
batch_per_worker: 16
epochs: 1
optimizer { learning_rate: 0.05 ema_decay: 0.8 }
evaluation { batch: 8 }
)";

// A safetensors file as its header and its data.
struct Parts {
  std::string header, data;

  explicit Parts(const std::string& file) {
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    header = file.substr(8, length);
    data = file.substr(8 + length);
  }
  std::string file() const {
    const uint64_t length = header.size();
    std::string out(8, '\0');
    std::memcpy(out.data(), &length, sizeof length);
    return out + header + data;
  }
  // The bytes of each, without the counts of steps.
  std::map<std::string, std::string> tensors() const {
    std::map<std::string, std::string> out;
    const json all = json::parse(header);
    for (const auto& [name, tensor] : all.items()) {
      if (name == "__metadata__" || name.ends_with(".num_batches_tracked")) continue;
      const size_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
      out[name] = data.substr(begin, end - begin);
    }
    return out;
  }
  // The first `old` of the header.
  Parts& replace(const std::string& old, const std::string& with) {
    const size_t at = header.find(old);
    EXPECT_NE(at, std::string::npos) << old;
    header.replace(at, old.size(), with);
    return *this;
  }
};

class Weights : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    runs_ = std::make_unique<Runs>(kJob);
    make_idx(runs_->folder(), "data", {});
    const Outcome outcome = runs_->run(runs_->train("trained"));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
    ASSERT_EQ(convoy({"export", runs_->out("trained"), path("w.safetensors")}).exit_code, 0);
  }
  static void TearDownTestSuite() { runs_.reset(); }

  static Outcome convoy(const Arguments& arguments) { return runs_->run(arguments); }
  static std::string path(const std::string& name) { return runs_->folder().path(name); }
  static std::string data() { return path("data"); }
  static std::string exported() { return read_file(path("w.safetensors")); }

  // A list of the run's job as --mean and --std take it.
  static std::string numbers_of(const std::string& field) {
    const std::string job = read_file(runs_->out("trained") + "/job.txtpb");
    const size_t begin = job.find("  " + field + ": [") + field.size() + 5;
    return job.substr(begin, job.find(']', begin) - begin);
  }
  static Arguments import(const std::string& weights, const std::string& out,
                          const Arguments& more = {}) {
    Arguments all = {
        "import",  "--model", "cifar_resnet20", "--weights",        weights, "--out",          out,
        "--input", "1x12x12", "--mean",         numbers_of("mean"), "--std", numbers_of("std")};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  static json evaluated(const std::string& checkpoint) {
    return runs_->output_of({"eval", "--checkpoint", checkpoint, "--data", data(), "--json"});
  }
  // A file of weights, imported: how that ended.
  static Outcome import_bytes(const std::string& bytes, const Arguments& more = {}) {
    const std::string file = runs_->folder().write("odd.safetensors", bytes);
    fs::remove_all(path("odd"));
    return convoy(import(file, path("odd"), more));
  }
  // Names and bytes of all files in a folder.
  static std::map<std::string, std::string> contents(const std::string& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
      files[entry.path().string()] = entry.is_regular_file() ? read_file(entry.path()) : "";
    return files;
  }

  static std::unique_ptr<Runs> runs_;
};
std::unique_ptr<Runs> Weights::runs_;

void expect_refused(const Outcome& outcome, ExitCode code, const std::vector<std::string>& words) {
  EXPECT_EQ(outcome.exit_code, static_cast<int>(code)) << outcome.all();
  for (const std::string& w : words)
    EXPECT_NE(outcome.err.find(w), std::string::npos) << w << "\nin\n" << outcome.all();
}

TEST_F(Weights, OutAndInAgainTheyHaveTheSameBitsAndTheSameAccuracy) {
  const std::string trained = runs_->out("trained");
  const auto newest = json(runs_->verified(trained))["checkpoint"].get<std::string>();
  EXPECT_EQ(exported(), read_file(newest + "/model.safetensors"));

  // With the batch of the run's evaluation: it says in which order losses are summed.
  const Outcome outcome =
      convoy(import(path("w.safetensors"), path("imported"), {"--set", "evaluation.batch=8"}));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
  const json before = evaluated(trained), after = evaluated(path("imported"));
  EXPECT_EQ(after["step"], 0);
  for (const char* what : {"images", "correct", "top1", "top5", "loss"})
    EXPECT_EQ(before[what], after[what]) << what;
  const json verified = runs_->verified(path("imported"));
  EXPECT_EQ(verified["step"], 0);
  EXPECT_NE(outcome.out.find(verified["digest"].get<std::string>()), std::string::npos);

  ASSERT_EQ(convoy({"export", path("imported"), path("again.safetensors")}).exit_code, 0);
  EXPECT_EQ(exported(), read_file(path("again.safetensors")));
}

TEST_F(Weights, TheMovingAverageIsExportedWhereItIsAskedFor) {
  const std::string trained = runs_->out("trained");
  ASSERT_EQ(
      convoy({"export", trained, path("average.safetensors"), "--weights", "average"}).exit_code,
      0);
  EXPECT_NE(exported(), read_file(path("average.safetensors")));
  ASSERT_EQ(convoy(import(path("average.safetensors"), path("average"))).exit_code, 0);
  const json before = evaluated(trained), after = evaluated(path("average"));
  EXPECT_EQ(before["ema_top1"], after["top1"]);
  EXPECT_EQ(before["ema_top5"], after["top5"]);
  // An imported checkpoint has none.
  expect_refused(convoy({"export", path("average"), path("none.onnx"), "--weights", "average"}),
                 ExitCode::kBadData, {"has no moving average"});
}

TEST_F(Weights, NobodyTrainsOnInAnImportedFolder) {
  ASSERT_EQ(convoy(import(path("w.safetensors"), path("fixed"))).exit_code, 0);
  const auto before = contents(path("fixed"));
  const std::vector<std::string> remedy = {"holds imported weights (of w.safetensors)",
                                           "--set transfer.init_from=", "/model.safetensors"};
  expect_refused(convoy(runs_->train_in(path("fixed"))), ExitCode::kUsage, remedy);
  expect_refused(convoy(runs_->train_in(path("fixed"), {"--allow-change"})), ExitCode::kUsage,
                 remedy);
  EXPECT_EQ(contents(path("fixed")), before);
  expect_refused(convoy(runs_->train("onwards", {"--resume", path("fixed"), "--allow-change"})),
                 ExitCode::kUsage, remedy);
  EXPECT_EQ(contents(path("fixed")), before);
}

// Steps so short that they change no bit, and batch norms that are frozen: a run ends with what it
// was told to begin with, on all ranks, its moving average too.
TEST_F(Weights, ATransferBeginsWithTheVeryWeights) {
  const auto begin = [&](const std::string& name, const Arguments& more) {
    Arguments arguments =
        runs_->train(name, {"--set", "transfer.init_from=" + path("w.safetensors"), "--set",
                            "transfer.freeze=bn1,*.bn?", "--set", "optimizer.learning_rate=1e-30",
                            "--set", "workers=2", "--set", "stop_after_steps=2"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = runs_->run(arguments, 2);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    return outcome;
  };
  const auto tensors = [&](const std::string& name, const char* kind) {
    const std::string file = path(fmt::format("{}-{}.safetensors", name, kind));
    EXPECT_EQ(convoy({"export", runs_->out(name), file, "--weights", kind}).exit_code, 0);
    return Parts(read_file(file)).tensors();
  };
  auto given = Parts(exported()).tensors();
  begin("still", {});
  for (const char* kind : {"trained", "average"})
    EXPECT_TRUE(tensors("still", kind) == given) << kind;

  // All but the classifier, of other classes.
  const Outcome outcome = begin("fewer", {"--set", "data.only_classes=2,0"});
  EXPECT_EQ(lines_with(outcome.err, "the head starts anew: fc: 4 classes there, 2 here"), 1)
      << outcome.all();
  given.erase("fc.weight");
  given.erase("fc.bias");
  for (const char* kind : {"trained", "average"}) {
    auto found = tensors("fewer", kind);
    EXPECT_EQ(found["fc.weight"].size(), 2 * 64 * sizeof(float));
    found.erase("fc.weight");
    found.erase("fc.bias");
    EXPECT_TRUE(found == given) << kind;
  }
}

TEST_F(Weights, NamesOfItsClassesGoWithThem) {
  const std::string names = runs_->folder().write("names.txt", "shirt\nbag\r\nshoe\n\xc3\xa4rmel");
  ASSERT_EQ(
      convoy(import(path("w.safetensors"), path("named"), {"--classes-file", names})).exit_code, 0);
  const std::string few = runs_->folder().write("few.txt", "shirt\nbag\n");
  for (const Arguments& more : {Arguments{}, Arguments{"--dry-run"}}) {
    Arguments command = import(path("w.safetensors"), path("few"), {"--classes-file", few});
    command.insert(command.end(), more.begin(), more.end());
    expect_refused(convoy(command), ExitCode::kBadData,
                   {"few.txt: has 2 lines; the network has 4 classes, one line each"});
  }
  EXPECT_FALSE(fs::exists(path("few")));
  const json object = evaluated(path("named"));
  for (size_t i = 0; i < 4; ++i)
    EXPECT_EQ(object["classes"][i]["name"],
              (std::vector{"shirt", "bag", "shoe", "\xc3\xa4rmel"}[i]));
  // A set of one class, which is the third by its name.
  for (int i = 0; i < 3; ++i)
    runs_->folder().write(fmt::format("shoes/val/shoe/{}.png", i),
                          encode_png(make_image(12, 12, 1, static_cast<uint64_t>(i))));
  const json shoes =
      runs_->output_of({"eval", "--checkpoint", path("named"), "--data", path("shoes"), "--json"});
  EXPECT_EQ(shoes["classes"][2]["images"], 3);
}

TEST_F(Weights, AFolderThatHoldsAnythingIsLeftAlone) {
  const auto before = contents(runs_->out("trained"));
  expect_refused(convoy(import(path("w.safetensors"), runs_->out("trained"))), ExitCode::kUsage,
                 {"is not empty; choose a new folder"});
  EXPECT_EQ(contents(runs_->out("trained")), before);
  runs_->folder().write("a_file", "");
  expect_refused(convoy(import(path("w.safetensors"), path("a_file"))), ExitCode::kUsage,
                 {"is no folder"});
  // A link is refused before the file of weights is opened.
  fs::create_directories(path("behind_link"));
  fs::create_directory_symlink(path("behind_link"), path("link"));
  for (const std::string& link : {path("link"), path("link") + "/"})
    expect_refused(convoy(import(path("nowhere"), link)), ExitCode::kUsage,
                   {"is a link; choose a new folder"});
  // An empty one will do, with a slash behind it, too.
  fs::create_directories(path("empty"));
  EXPECT_EQ(convoy(import(path("w.safetensors"), path("empty") + "/")).exit_code, 0);
  EXPECT_TRUE(fs::exists(path("empty") + "/checkpoints/step-0000000000/manifest.txtpb"));
}

// The temporary names may be someone else's, too.
TEST_F(Weights, WhatHasATemporaryNameIsLeftAlone) {
  const std::string run = runs_->out("trained"), out = path("careful.onnx");
  for (const char* ending : {".onnx.tmp/notes", "_file.onnx.tmp"}) {
    fs::create_directories(fs::path(path("careful") + ending).parent_path());
    runs_->folder().write(std::string("careful") + ending, "mine");
  }
  EXPECT_EQ(convoy({"export", run, out}).exit_code, 0);
  EXPECT_EQ(convoy({"export", run, path("careful_file.onnx")}).exit_code, 0);
  EXPECT_EQ(read_file(out + ".tmp/notes"), "mine");
  EXPECT_EQ(read_file(path("careful_file.onnx.tmp")), "mine");

  // Nothing that an export or an import has left.
  const std::string other = path("other.onnx"), folder = path("other_folder");
  const auto expect_kept = [&](const std::string& name, const Arguments& command) {
    runs_->folder().write(name, "mine");
    expect_refused(convoy(command), ExitCode::kIo, {"is in the way, and not ours to remove"});
    EXPECT_EQ(read_file(path(name)), "mine");
    EXPECT_FALSE(fs::exists(other)) << name;
    EXPECT_FALSE(fs::exists(folder)) << name;
    fs::remove_all(path(name.substr(0, name.find('/'))));
  };
  expect_kept("other.onnx.exporting/notes", {"export", run, other});
  expect_kept("other_folder.importing", import(path("w.safetensors"), folder));
  expect_kept("other_folder.importing/notes", import(path("w.safetensors"), folder));
}

// What a killed command leaves under its temporary name goes with the next one, unless another is
// still writing it.
TEST_F(Weights, WhatAKilledCommandLeftIsReplaced) {
  struct Case {
    std::string out, left;  // a file of what is left
    Arguments command;
  };
  const std::string run = runs_->out("trained");
  const std::string onnx = path("killed.onnx"), folder = path("killed");
  const Case cases[] = {
      {onnx, "killed.onnx.exporting", {"export", run, onnx}},
      {folder, "killed.importing/checkpoints/step-0000000000.1-2.tmp/model.safetensors",
       import(path("w.safetensors"), folder)}};
  for (const Case& c : cases) {
    runs_->folder().write(c.left, "half");
    const std::string left = path(c.left.substr(0, c.left.find('/')));
    const int writer = ::open(left.c_str(), O_RDONLY | O_CLOEXEC);
    ASSERT_EQ(::flock(writer, LOCK_EX), 0);
    expect_refused(convoy(c.command), ExitCode::kIo, {left, "another process is writing it"});
    EXPECT_EQ(read_file(path(c.left)), "half");
    EXPECT_FALSE(fs::exists(c.out));
    ::close(writer);
    const Outcome outcome = convoy(c.command);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_FALSE(fs::exists(left));
    EXPECT_TRUE(fs::exists(c.out));
  }
  EXPECT_FALSE(runs_->digest(folder).empty());
}

TEST_F(Weights, ADryRunListsAndWritesNothing) {
  const Outcome outcome = convoy(import(path("w.safetensors"), path("not_there"), {"--dry-run"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_NE(outcome.out.find("conv1.weight F32 [16, 1, 3, 3] -> conv1.weight [16, 1, 3, 3]"),
            std::string::npos)
      << outcome.all();
  EXPECT_FALSE(fs::exists(path("not_there")));
  Outcome bad =
      import_bytes(Parts(exported()).replace("bn1.weight", "bn1.wight").file(), {"--dry-run"});
  EXPECT_EQ(bad.exit_code, 65) << bad.all();
  EXPECT_NE(bad.out.find("problem: \"bn1.weight\" [16] is missing; the nearest there is "
                         "\"bn1.wight\" [16]"),
            std::string::npos)
      << bad.all();
}

TEST_F(Weights, FilesThatDoNotFitAreRefusedByName) {
  const std::string good = exported();
  struct Case {
    std::string bytes;
    std::vector<std::string> words;
  };
  std::string truncated = good, huge(8, '\xff');
  truncated.resize(good.size() / 2);
  huge += good.substr(8);
  const std::vector<Case> cases = {
      {Parts(good).replace("bn1.weight", "bn1.wight").file(),
       {"not a state of cifar_resnet20 with 4 classes: 2 tensor(s) do not fit",
        "\"bn1.weight\" [16] is missing", "\"bn1.wight\" [16] has no place"}},
      {Parts(good).replace("[16,1,3,3]", "[1,16,3,3]").file(),
       {"\"conv1.weight\" is [1, 16, 3, 3] in the file, [16, 1, 3, 3] in the network"}},
      {Parts(good).replace("F32", "I32").file(), {"\"conv1.weight\" is of type I32"}},
      {Parts(good).replace("F32", "F64").file(),
       {"dtype \"F64\" is not one of", "Python, .float() on every tensor before save_file"}},
      {truncated, {"odd.safetensors"}},
      {huge, {"not a safetensors file: a header of 18446744073709551615 bytes"}},
      {"", {"too few for a safetensors file"}},
      {"PK\3\4 archive of torch.save", {"a pickle of Python's", "weights_only=True"}},
      {"\x80\2}q\1.", {"a pickle of Python's", "safetensors.torch.save_file(torch.load("}},
  };
  for (const Case& c : cases) {
    expect_refused(import_bytes(c.bytes), ExitCode::kBadData, c.words);
    EXPECT_FALSE(fs::exists(path("odd")));
  }
  expect_refused(convoy(import(data(), path("odd"))), ExitCode::kBadData, {"is no file"});
  expect_refused(convoy(import(path("nowhere"), path("odd"))), ExitCode::kIo, {"cannot open"});
  // Nothing is left of any, under any name.
  for (const auto& entry : fs::directory_iterator(runs_->folder().path()))
    EXPECT_EQ(entry.path().string().find("importing"), std::string::npos) << entry.path();
}

TEST_F(Weights, AFileOfAnotherModelIsRecognised) {
  // The right model with a number of classes that is not the file's.
  expect_refused(convoy(import(path("w.safetensors"), path("odd"), {"--classes", "7"})),
                 ExitCode::kBadData,
                 {"\"fc.weight\" is [4, 64] in the file, [7, 64] in the network",
                  "\n  leave out --classes (the file has 4)"});
  Arguments command = import(path("w.safetensors"), path("odd"));
  command[2] = "cifar_resnet32";
  expect_refused(
      convoy(command), ExitCode::kBadData,
      {"\"layer1.3.conv1.weight\"", "is missing", "the file fits the model cifar_resnet20"});
}

TEST_F(Weights, ValuesThatAreNoNumbersAreSaidAloud) {
  Parts parts(exported());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(parts.data.data() + parts.data.size() - 4, &nan, 4);  // fc.bias
  const Outcome outcome = import_bytes(parts.file());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_NE(outcome.err.find("\"fc.bias\": 1 of 4 values are infinite or not a number"),
            std::string::npos)
      << outcome.all();
}

TEST_F(Weights, APrefixIsCutOffAndSaid) {
  const json header = json::parse(Parts(exported()).header);
  json prefixed;
  for (const auto& [name, entry] : header.items())
    prefixed[name == "__metadata__" ? name : "module." + name] = entry;
  Parts parts(exported());
  parts.header = prefixed.dump();
  const Outcome outcome = import_bytes(parts.file());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_NE(outcome.out.find("\"module.\" in front of the names was cut off"), std::string::npos);
  ASSERT_EQ(convoy({"export", path("odd"), path("odd.out"), "--format", "safetensors", "--force"})
                .exit_code,
            0);
  EXPECT_EQ(read_file(path("odd.out")), exported());
}

TEST_F(Weights, ExportWritesWholeFilesAndReplacesNone) {
  const std::string run = runs_->out("trained"), out = path("network.onnx");
  const json first = runs_->output_of({"export", run, out, "--json"});
  EXPECT_EQ(first["format"], "onnx");
  EXPECT_EQ(first["bytes"], fs::file_size(out));
  EXPECT_GT(fs::file_size(out), 4u * 270'000);
  const std::string bytes = read_file(out);
  expect_refused(convoy({"export", run, out, "--fold"}), ExitCode::kUsage,
                 {"is there already; --force replaces it"});
  EXPECT_EQ(read_file(out), bytes);
  EXPECT_EQ(convoy({"export", run, out, "--fold", "--force"}).exit_code, 0);
  EXPECT_LT(fs::file_size(out), bytes.size());
  EXPECT_FALSE(fs::exists(out + ".tmp"));
  expect_refused(convoy({"export", run, path("q.foo")}), ExitCode::kUsage,
                 {"q.foo: ends in neither .onnx nor .safetensors"});
  expect_refused(convoy({"export", run, data(), "--format", "onnx"}), ExitCode::kUsage,
                 {"is a folder; name a file"});
  expect_refused(convoy({"export", run, path("nowhere/x.onnx")}), ExitCode::kIo,
                 {"nowhere/x.onnx: there is no folder", "nowhere; make it first"});
  expect_refused(convoy({"export", data(), path("x.onnx")}), ExitCode::kBadData,
                 {"neither a checkpoint"});
}

// A network of one's own, here that of the list under another name, trains to the same bits, and
// its text goes where the weights go.
TEST_F(Weights, ANetworkAsTextTrainsAndTravelsWithItsWeights) {
  Outcome text = convoy({"model", "show", "cifar_resnet20", "--input", "1x12x12", "--classes", "4",
                         "--format", "txtpb"});
  ASSERT_EQ(text.exit_code, 0) << text.all();
  text.out.replace(text.out.find("cifar_resnet20"), 14, "mine");
  const std::string network = runs_->folder().write("mine.txtpb", text.out);
  const Outcome outcome = convoy(runs_->train("own", {"--set", "model.name=" + network}));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(runs_->digest(runs_->out("own")), runs_->digest(runs_->out("trained")));
  fs::remove(network);
  EXPECT_EQ(evaluated(runs_->out("own"))["loss"], evaluated(runs_->out("trained"))["loss"]);
  const json exported_own =
      runs_->output_of({"export", runs_->out("own"), path("own.onnx"), "--json"});
  EXPECT_EQ(exported_own["model"], "mine");

  runs_->folder().write("mine.txtpb", text.out);
  Arguments command =
      import(path("w.safetensors"), path("own_import"), {"--set", "evaluation.batch=8"});
  command[2] = network;
  const Outcome imported = convoy(command);
  ASSERT_EQ(imported.exit_code, 0) << imported.all();
  EXPECT_EQ(evaluated(path("own_import"))["loss"], evaluated(runs_->out("trained"))["loss"]);

  expect_refused(convoy(runs_->train(
                     "large", {"--set", "model.name=" + network, "--set", "data.train.size=10"})),
                 ExitCode::kBadJob, {"network \"mine\" is made for 1 x 12 x 12", "1 x 10 x 10"});
  expect_refused(convoy(runs_->train("none", {"--set", "model.name=" + path("none.txtpb")})),
                 ExitCode::kIo, {"none.txtpb"});

  const auto refused_own = [&](const std::string& nodes, const Arguments& words) {
    const std::string own = runs_->folder().write(
        "refused.txtpb",
        "name: 'refused' input_channels: 1 input_height: 12 input_width: 12 " + nodes);
    expect_refused(convoy(runs_->train("refused", {"--set", "model.name=" + own})),
                   ExitCode::kBadJob, words);
  };
  refused_own("node { name: 'maps' input: 'input' conv2d { out_channels: 3 kernel: 1 } }",
              {"its last node, \"maps\", gives [1, 3, 12, 12]", "end with global_avg_pool"});
  // Nobody waits for the system to kill it.
  refused_own(
      "node { name: 'c' input: 'input' conv2d { out_channels: 1000000000 kernel: 1 } } "
      "node { name: 'p' input: 'c' global_avg_pool {} } "
      "node { name: 'fc' input: 'p' linear { out_features: 4 } }",
      {"network \"refused\": 1 rank(s) here want ", "lower batch_per_worker"});

  // A run whose network's text changed says where, not all of it.
  std::string changed = text.out;
  changed.replace(changed.rfind("momentum: 0.1"), 13, "momentum: 0.2");
  runs_->folder().write("mine.txtpb", changed);
  const Outcome onwards = convoy(runs_->train("own", {"--set", "model.name=" + network}));
  expect_refused(
      onwards, ExitCode::kBadJob,
      {"the network's text changed, line ", ": \"    momentum: 0.1\" -> \"    momentum: 0.2\""});
  EXPECT_EQ(onwards.err.find("conv1"), std::string::npos) << onwards.err;

  // Another model's name does not change the text that is there.
  const Arguments other = {"train",           "--job", runs_->out("own") + "/job.txtpb", "--out",
                           path("run-other"), "--set", "model.name=cifar_resnet20"};
  expect_refused(convoy(other), ExitCode::kBadJob,
                 {"model.name is \"cifar_resnet20\", but model.graph holds the network \"mine\"; "
                  "clear model.graph (--set model.graph=)"});
  Arguments cleared = other;
  cleared.insert(cleared.end(), {"--set", "model.graph="});
  ASSERT_EQ(convoy(cleared).exit_code, 0);
  EXPECT_EQ(runs_->digest(path("run-other")), runs_->digest(runs_->out("trained")));
}

// What one's own network is called reaches no terminal as it is; one that is too large for a job
// becomes no checkpoint.
TEST_F(Weights, NetworksThatAreOddAreHandledWithCare) {
  const std::string head =
      "name: 'odd\\033[31m' input_channels: 1 input_height: 2 input_width: 2 "
      "node { name: 'fc\\033[31m' input: 'input' linear { out_features: 2 } } ";
  // The names as JSON.
  const std::string weights = runs_->folder().write("odd.safetensors", [] {
    Parts parts(exported());
    parts.header = R"({"fc\u001b[31m.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},)"
                   R"("fc\u001b[31m.bias":{"dtype":"F32","shape":[2],"data_offsets":[32,40]}})";
    parts.data = std::string(40, '\0');
    return parts.file();
  }());
  const auto import_own = [&](const std::string& network, const Arguments& more) {
    Arguments all = {"import",        "--model", runs_->folder().write("\xff_odd.txtpb", network),
                     "--weights",     weights,   "--out",
                     path("odd_own"), "--mean",  "0",
                     "--std",         "1"};
    all.insert(all.end(), more.begin(), more.end());
    return convoy(all);
  };
  for (const Arguments& more : {Arguments{"--dry-run"}, {"--dry-run", "--json"}, {}}) {
    const Outcome outcome = import_own(head, more);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ((outcome.out + outcome.err).find('\033'), std::string::npos) << outcome.all();
    const bool listed = outcome.out.find("x1b[31m.weight") != std::string::npos;
    EXPECT_EQ(listed, !more.empty()) << outcome.all();
  }
  const Outcome exported_own = convoy({"export", path("odd_own"), path("odd_own.onnx")});
  EXPECT_EQ(exported_own.exit_code, 0) << exported_own.all();
  EXPECT_EQ(exported_own.out.find('\033'), std::string::npos) << exported_own.all();

  fs::remove_all(path("odd_own"));
  std::string large = head, last = "fc\\033[31m";
  for (int i = 0; i < 15'000; ++i) {
    const std::string name = fmt::format("node{}", i);
    large += fmt::format("node {{ name: '{}' input: '{}' relu {{}} }} ", name, last);
    last = name;
  }
  expect_refused(
      import_own(large, {}), ExitCode::kBadJob,
      {"\\xff_odd.txtpb: has ", " bytes as a job holds it; a network has at most 983040"});
  EXPECT_FALSE(fs::exists(path("odd_own")));
  expect_refused(import_own(head, {"--input", "1x3x3"}), ExitCode::kUsage,
                 {"--input 1x3x3: the network of ", "is made for 1x2x2; leave out --input"});
}

TEST_F(Weights, MistakesOnTheCommandLineAreNamed) {
  const std::string run = runs_->out("trained"), weights = path("w.safetensors");
  const auto refused = [&](const Arguments& arguments, const std::string& words,
                           ExitCode code = ExitCode::kUsage) {
    expect_refused(convoy(arguments), code, {words});
  };
  refused({"export", run, path("x.onnx"), "--opset", "12"}, "--opset 12: must be from 13 to 22");
  refused({"export", run, path("x.onnx"), "--batch", "0"},
          "--batch 0: must be dynamic or a number");
  refused({"export", run, path("x.onnx"), "--batch", "two"}, "--batch two: must be dynamic");
  refused({"export", run, path("x.onnx"), "--weights", "best"}, "there are trained and average");
  refused({"export", run, path("x.safetensors"), "--fold"}, "--fold is for --format onnx");
  refused({"export", run, path("x.safetensors"), "--opset", "14"}, "--opset is for --format onnx");
  EXPECT_FALSE(fs::exists(path("x.onnx")));
  refused(import(weights, path("x"), {"--classes", "-1"}), "--classes -1");
  refused({"import", "--model", "cifar_resnet20", "--weights", weights, "--out", path("x"),
           "--input", "1x12x12"},
          "3 means and 3 standard deviations for images of 1 channel(s); give --mean and --std");
  refused({"import", "--model", "cifar_resnet20", "--weights", weights, "--out", path("x"),
           "--input", "1x12x12", "--mean", "0.5"},
          "--mean and --std belong together");
  refused({"import", "--model", "cifar_resnet20", "--weights", weights, "--out", path("x"),
           "--input", "1x12x12", "--mean", "0.5,x", "--std", "1"},
          "--mean 0.5,x: must be numbers");
  refused({"import", "--model", "cifar_resnet20", "--weights", weights, "--out", path("x"),
           "--mean", "0,0,0", "--std", "0,0,0"},
          "--std 0,0,0: must be above 0");
  refused({"import", "--model", "cifar_resnet20", "--weights", weights, "--out", path("x"),
           "--input", "1x12x12"},
          "--input 1x12x12: 3 means");
  for (const char* set : {"model.name=cifar_resnet32", "model.graph=node { }"})
    refused(import(weights, path("x"), {"--set", set}), "--model says which network it is");
  refused(
      {"export", run, path("x.onnx"), "--input", "3x12x12"},
      "--input 3x12x12: \"conv1.weight\" would be [16, 3, 3, 3], the checkpoint's is [16, 1, 3, "
      "3]");
  refused({"import", "--model", "cifar_resnet20", "--weights", weights, "--out", path("x"),
           "--input", "1x12x16", "--mean", "0.5", "--std", "1"},
          "evaluation crops squares");
  refused({"import", "--model", "cifar_resnet21", "--weights", weights, "--out", path("x")},
          "the nearest is \"cifar_resnet20\"", ExitCode::kBadJob);
  refused(import(weights, path("x"), {"--set", "data.eval.sise=3"}), "data.eval.sise",
          ExitCode::kBadJob);
  EXPECT_FALSE(fs::exists(path("x")));
}

}  // namespace
}  // namespace convoy::test
