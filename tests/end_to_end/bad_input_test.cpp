// What is wrong with data, job or folder is said in one clear line, with the exit code that
// trainer/main.cpp documents; no rank hangs and none is left.
#include <gtest/gtest.h>

#include <memory>

#include "ops/core/error.h"
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
workers: 4
batch_per_worker: 4
epochs: 1
)";

// The numbers are given, so no pass over the images comes before the first step.
constexpr const char* kImageJob = R"(data {
  format: IMAGE_FOLDER
  train { size: 24 }
  eval { resize: 28 }
  mean: [0.5, 0.5, 0.5]
  std: [0.2, 0.2, 0.2]
}
model { name: "cifar_resnet20" }
workers: 4
batch_per_worker: 2
epochs: 2
evaluation { batch: 2 }
)";

// Job files and datasets are made once; each number of ranks has a run's folder of its own.
class BadInput : public testing::Test {
 protected:
  // Stands for that folder in arguments and messages.
  std::string out() const { return folder_.path("run"); }

  Arguments train(const std::string& job, const std::string& data,
                  const Arguments& more = {}) const {
    const std::string file = folder_.write("job.txtpb", job);
    Arguments arguments = {"train", "--job", file, "--data", data, "--out", out()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Arguments train_idx(const Arguments& more = {}) const {
    return train(kIdxJob, make_idx(folder_, "idx", {}), more);
  }
  std::string make_images() const {
    make_image_folder(folder_, 3, 8, 4);
    return folder_.path();
  }
  void run_one_step() const {
    const Outcome outcome = run(folder_, train_idx({"--set", "stop_after_steps=1"}));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
  }

  // The program refuses on any number of ranks: with this exit code, nothing on standard output,
  // one error, and each of the words in one line.
  void expect_refusal(const Arguments& arguments, ExitCode code,
                      const std::vector<std::string>& words) const {
    // All at once: mpirun takes two seconds to notice that its only process has failed.
    const int numbers[] = {kAlone, 1, 3};
    std::vector<std::unique_ptr<Running>> running;
    for (const int ranks : numbers) {
      fs::remove_all(out_on(ranks));
      if (fs::exists(out())) fs::copy(out(), out_on(ranks), fs::copy_options::recursive);
      Arguments own;
      for (const std::string& argument : arguments) own.push_back(with_out_on(ranks, argument));
      running.push_back(std::make_unique<Running>(folder_, own, ranks));
    }
    for (size_t i = 0; i < running.size(); ++i) {
      const Outcome outcome = running[i]->finish();
      SCOPED_TRACE(fmt::format("{} ranks: {}", numbers[i], outcome.all()));
      EXPECT_TRUE(outcome.in_time);
      EXPECT_EQ(outcome.left_running, "");
      EXPECT_EQ(outcome.exit_code, static_cast<int>(code));
      EXPECT_EQ(outcome.out, "");
      EXPECT_EQ(lines_with(outcome.err, "error: ") + lines_with(outcome.err, "convoy: "), 1);
      for (const std::string& word : words)
        EXPECT_EQ(lines_with(outcome.err, with_out_on(numbers[i], word)), 1) << word;
    }
  }

  TempFolder folder_;

 private:
  std::string out_on(int ranks) const { return fmt::format("{}-{}", out(), ranks); }
  std::string with_out_on(int ranks, std::string text) const {
    const size_t at = text.find(out());
    return at == std::string::npos ? text : text.replace(at, out().size(), out_on(ranks));
  }
};

// ---- Data ----

TEST_F(BadInput, TruncatedJpeg) {
  const std::string data = make_images();
  const std::string file = data + "/train/class_1/image_5.jpg";
  fs::resize_file(file, fs::file_size(file) / 2);
  expect_refusal(train(kImageJob, data), ExitCode::kBadData, {file});
}

TEST_F(BadInput, TruncatedJpegWhileTheMeanIsTaken) {
  const std::string data = make_images();
  const std::string file = data + "/train/class_1/image_5.jpg";
  fs::resize_file(file, fs::file_size(file) / 2);
  expect_refusal(train(kImageJob, data, {"--set", "data.mean=", "--set", "data.std="}),
                 ExitCode::kBadData, {file});
}

TEST_F(BadInput, TextFileNamedJpeg) {
  const std::string data = make_images();
  const std::string file = folder_.write("train/class_0/notes.JPEG", "These are no pixels.\n");
  expect_refusal(train(kImageJob, data), ExitCode::kBadData, {file});
}

TEST_F(BadInput, FileOfZeroBytesInTheValidationSet) {
  const std::string data = make_images();
  const std::string file = folder_.write("val/class_2/empty.jpg", "");
  expect_refusal(train(kImageJob, data), ExitCode::kBadData, {file});
}

// Many slices behind the bad one: a lane that waits for one of them must not wait for ever.
TEST_F(BadInput, TheFirstOfManyValidationImages) {
  const std::string data = make_images();
  const std::string file = data + "/val/class_0/image_0.jpg";
  fs::resize_file(file, fs::file_size(file) / 2);
  expect_refusal(train(kImageJob, data, {"--set", "evaluation.batch=1"}), ExitCode::kBadData,
                 {file});
}

// A network that does not fit is refused before the images are read for their mean.
TEST_F(BadInput, ANetworkOfAnotherSizeOrOtherClasses) {
  const std::string data = make_images();
  const std::string file = data + "/train/class_0/image_0.jpg";
  fs::resize_file(file, fs::file_size(file) / 2);
  const std::string job = R"(data { train { size: 24 } eval { resize: 28 } }
    model { name: "mine.txtpb" } workers: 1 batch_per_worker: 2 epochs: 1)";
  const auto refused = [&](int size, int classes, const std::string& words) {
    const std::string network = folder_.write(
        "mine.txtpb",
        fmt::format("input_channels: 3 input_height: {0} input_width: {0} node {{ name: 'fc' "
                    "input: 'input' linear {{ out_features: {1} }} }}",
                    size, classes));
    expect_refusal(train(job, data, {"--set", "model.name=" + network}), ExitCode::kBadJob,
                   {words});
  };
  refused(20, 3, "is made for 3 x 20 x 20 (channels x height x width), the images are 3 x 24 x 24");
  refused(24, 4, "gives 4 classes, the data have 3");
}

TEST_F(BadInput, EmptyClassFolder) {
  const std::string data = make_images();
  fs::create_directory(data + "/train/class_9");
  expect_refusal(train(kImageJob, data), ExitCode::kBadData,
                 {data + "/train/class_9", "without images", "fill or remove"});
}

TEST_F(BadInput, ClassThatTrainingDoesNotKnow) {
  const std::string data = make_images();
  folder_.write("val/zebra/image.jpg", encode_jpeg(make_image(40, 40, 3, 1)));
  expect_refusal(train(kImageJob, data), ExitCode::kBadData, {data + "/val/zebra", "no class"});
}

TEST_F(BadInput, NoValidationFolder) {
  const std::string data = make_images();
  fs::remove_all(data + "/val");
  expect_refusal(train(kImageJob, data), ExitCode::kBadData, {data, "no folder val/"});
}

TEST_F(BadInput, LabelOutOfRange) {
  const std::string data = make_idx(folder_, "idx", {.classes = 10});
  expect_refusal(train(kIdxJob, data), ExitCode::kBadData,
                 {data + "/train-", "label 4", "data.classes"});
}

TEST_F(BadInput, TruncatedIdxFile) {
  const std::string data = make_idx(folder_, "idx", {});
  fs::resize_file(data + "/train-images-idx3-ubyte", 1000);
  expect_refusal(train(kIdxJob, data), ExitCode::kBadData, {data + "/train-images-idx3-ubyte"});
}

TEST_F(BadInput, CropLargerThanTheImage) {
  expect_refusal(train_idx({"--set", "data.train.size=20"}), ExitCode::kBadData,
                 {"a crop of 20 x 20", "of 12 x 12", "data.train.size", "data.train.pad"});
}

TEST_F(BadInput, EvaluationCropLargerThanTheImage) {
  expect_refusal(train_idx({"--set", "data.eval.size=20"}), ExitCode::kBadData,
                 {"a crop of 20 x 20", "of 12 x 12", "data.eval.size"});
}

TEST_F(BadInput, CropLargerThanAnImageOfAFolder) {
  const std::string data = make_images();
  const std::string file =
      folder_.write("train/class_0/small.jpg", encode_jpeg(make_image(20, 30, 3, 1)));
  expect_refusal(train(kImageJob, data,
                       {"--set", "data.train.crop=pad_and_crop", "--set", "data.train.pad=1"}),
                 ExitCode::kBadData, {file, "a crop of 24 x 24", "data.train.size"});
}

TEST_F(BadInput, DatasetSmallerThanAStep) {
  expect_refusal(train_idx({"--set", "batch_per_worker=100"}), ExitCode::kBadData,
                 {"235 samples", "400", "batch_per_worker"});
}

TEST_F(BadInput, MissingDataFolder) {
  const std::string data = folder_.path("nowhere");
  expect_refusal(train(kIdxJob, data), ExitCode::kIo, {data, "--data"});
}

TEST_F(BadInput, FolderWithoutADataset) {
  const std::string data = folder_.path("bare");
  fs::create_directory(data);
  expect_refusal(train(kIdxJob, data, {"--set", "data.format=auto"}), ExitCode::kBadData,
                 {data, "known"});
}

// ---- Job ----

TEST_F(BadInput, MissingJobFile) {
  const std::string job = folder_.path("missing.txtpb");
  expect_refusal({"train", "--job", job, "--out", out()}, ExitCode::kIo, {job, "--job"});
}

TEST_F(BadInput, UnknownKey) {
  const std::string job = std::string(kIdxJob) + "optimizer { learning_rat: 0.1 }\n";
  expect_refusal(
      train(job, folder_.path()), ExitCode::kBadJob,
      {"job.txtpb:11:13: optimizer.learning_rat:", "the nearest is optimizer.learning_rate"});
}

TEST_F(BadInput, UnknownKeyOnTheCommandLine) {
  expect_refusal(train_idx({"--set", "optimiser.learning_rate=0.1"}), ExitCode::kBadJob,
                 {"--set optimiser.learning_rate:", "the nearest is optimizer.learning_rate"});
}

TEST_F(BadInput, WrongType) {
  expect_refusal(train_idx({"--set", "workers=many"}), ExitCode::kBadJob,
                 {"--set workers: expects a whole number", "not many"});
}

TEST_F(BadInput, SeveralErrorsAreAllSaid) {
  const std::string job =
      std::string(kIdxJob) + "optimizer { momentun: 0.9 }\nseed: \"one\"\nschedule { gamma: -1 }\n";
  expect_refusal(
      train(job, folder_.path(), {"--set", "epochs=0"}), ExitCode::kBadJob,
      {"job.txtpb: 4 mistakes", "job.txtpb:11:13: optimizer.momentun", "optimizer.momentum",
       "job.txtpb:12:7: seed", "job.txtpb:13:12: schedule.gamma", "--set epochs"});
}

TEST_F(BadInput, NoTextInTheJobFile) {
  expect_refusal(train(std::string("\x00\x01\xff{", 4), folder_.path()), ExitCode::kBadJob,
                 {"3 mistakes"});
}

TEST_F(BadInput, EmptyJobFile) {
  expect_refusal(train("", folder_.path()), ExitCode::kBadJob, {"model.name: is missing"});
}

TEST_F(BadInput, UnknownModel) {
  expect_refusal(train_idx({"--set", "model.name=cifar_resnet22"}), ExitCode::kBadJob,
                 {"cifar_resnet22", "cifar_resnet20"});
}

TEST_F(BadInput, UnknownDevice) {
  expect_refusal(train_idx({"--device", "tpu"}), ExitCode::kUsage, {"tpu", "cpu"});
}

// ---- Weights to begin with, and what is frozen ----

TEST_F(BadInput, InitialWeightsThatAreNotThere) {
  const std::string from = folder_.path("nothing.safetensors");
  expect_refusal(train_idx({"--set", "transfer.init_from=" + from}), ExitCode::kIo,
                 {"transfer.init_from: " + from + ": there is no such file or folder"});
}

TEST_F(BadInput, InitialWeightsThatAreNone) {
  const std::string from = folder_.write("weights.safetensors", "These are no weights.\n");
  expect_refusal(train_idx({"--set", "transfer.init_from=" + from}), ExitCode::kBadData,
                 {from + ": not a safetensors file"});
}

TEST_F(BadInput, InitialWeightsOfAnotherModel) {
  run_one_step();
  fs::rename(out(), folder_.path("source"));
  const std::string from = folder_.path("source");
  expect_refusal(
      train_idx({"--set", "transfer.init_from=" + from, "--set", "model.name=cifar_resnet32"}),
      ExitCode::kBadData,
      {from + ": its tensors are not those of cifar_resnet32", "missing: layer1.3.conv1.weight"});
  expect_refusal(train_idx({"--set", "transfer.init_from=" + from, "--set",
                            "transfer.init_sha256=" + std::string(64, '0')}),
                 ExitCode::kBadData, {from + ": its tensors have the SHA-256"});
}

TEST_F(BadInput, APatternThatTakesNothing) {
  expect_refusal(train_idx({"--set", "transfer.freeze=layr1,conv1"}), ExitCode::kBadJob,
                 {"transfer.freeze \"layr1\" takes no parameter; the nearest name is \"layer1\""});
  expect_refusal(train_idx({"--set", "transfer.freeze=*"}), ExitCode::kBadJob,
                 {"everything is frozen"});
}

TEST_F(BadInput, ARunThatBeganWithOtherWeights) {
  run_one_step();
  fs::rename(out(), folder_.path("source"));
  const std::string from = "transfer.init_from=" + folder_.path("source");
  run_one_step();
  expect_refusal(train_idx({"--set", from}), ExitCode::kBadJob, {out(), "began without it"});
  fs::remove_all(out());
  ASSERT_EQ(run(folder_, train_idx({"--set", from, "--set", "stop_after_steps=1"})).exit_code, 0);
  expect_refusal(train_idx(), ExitCode::kBadJob, {out(), "transfer.init_sha256"});
  expect_refusal(
      train_idx({"--set", from, "--set", "transfer.init_sha256=" + std::string(64, '0')}),
      ExitCode::kBadJob, {out(), "transfer.init_sha256"});
  expect_refusal(train_idx({"--set", from, "--set", "transfer.freeze=conv1"}), ExitCode::kBadJob,
                 {out(), "transfer.freeze: [] -> [\"conv1\"]"});
  // Where it lies now, and that it is gone, does not matter.
  const std::string moved = "transfer.init_from=" + folder_.path("elsewhere");
  const Outcome outcome = run(folder_, train_idx({"--set", moved, "--set", "stop_after_steps=2"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
}

TEST_F(BadInput, ClassesAndImagesThatAreNotThere) {
  expect_refusal(train_idx({"--set", "data.only_classes=1,4", "--set", "data.classes=0"}),
                 ExitCode::kBadJob, {"there is no class 4: the dataset has 0 to 3"});
  expect_refusal(train_idx({"--set", "data.images_per_class=59"}), ExitCode::kBadData,
                 {"data.images_per_class is 59", "class \"3\" has 58 images"});
}

// ---- Folder of the run ----

TEST_F(BadInput, NoOutputFolderGiven) {
  const std::string data = make_idx(folder_, "idx", {});
  const std::string job = folder_.write("job.txtpb", kIdxJob);
  expect_refusal({"train", "--job", job, "--data", data}, ExitCode::kUsage, {"--out"});
}

TEST_F(BadInput, OutputFolderBelowAFile) {
  const std::string data = make_idx(folder_, "idx", {});
  const std::string job = folder_.write("job.txtpb", kIdxJob);
  const std::string out = folder_.write("file", "not a folder") + "/run";
  expect_refusal({"train", "--job", job, "--data", data, "--out", out}, ExitCode::kIo,
                 {out, "--out"});
}

TEST_F(BadInput, AJobThatHasChanged) {
  run_one_step();
  expect_refusal(train_idx({"--set", "optimizer.momentum=0.5"}), ExitCode::kBadJob,
                 {out(), "optimizer.momentum: 0.9 -> 0.5", "--out"});
  // What cannot change a result may change.
  const Outcome outcome = run(folder_, train_idx({"--set", "stop_after_steps=2", "--set",
                                                  "log.every_steps=1", "--set", "name=b"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
}

TEST_F(BadInput, DataThatHasChanged) {
  run_one_step();
  const std::string data = make_idx(folder_, "other", {.train = 234});
  expect_refusal(train(kIdxJob, data), ExitCode::kBadJob, {out(), "training set"});
}

TEST_F(BadInput, NeverResumeWhereCheckpointsAre) {
  run_one_step();
  expect_refusal(train_idx({"--resume", "never"}), ExitCode::kUsage,
                 {out(), "--resume never", "--out"});
}

TEST_F(BadInput, ResumeFromNothing) {
  const std::string from = folder_.path("nothing");
  expect_refusal(train_idx({"--resume", from}), ExitCode::kIo, {from, "--resume"});
}

// ---- Evaluation ----

TEST_F(BadInput, EvaluationOfNothing) {
  const std::string from = folder_.path("nothing");
  expect_refusal({"eval", "--checkpoint", from, "--json"}, ExitCode::kIo, {from});
}

TEST_F(BadInput, EvaluationOfADamagedCheckpoint) {
  run_one_step();
  const std::string checkpoint = out() + "/checkpoints/step-0000000001";
  fs::resize_file(checkpoint + "/model.safetensors", 1000);
  expect_refusal({"eval", "--checkpoint", checkpoint}, ExitCode::kFault,
                 {checkpoint + "/model.safetensors", "1000 bytes"});
}

TEST_F(BadInput, EvaluationOnImagesOfAnotherKind) {
  run_one_step();
  const std::string data = make_idx(folder_, "idx-10", {.classes = 10});
  expect_refusal({"eval", "--checkpoint", out(), "--data", data}, ExitCode::kBadData,
                 {data + "/t10k-", "label 4", "data.classes"});
}

}  // namespace
}  // namespace convoy::test
