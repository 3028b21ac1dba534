// The job file: what is read, what is refused and how, identity and differences.
#include "trainer/job/job.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>

#include "ops/core/error.h"
#include "proto/job.pb.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_folder.h"

namespace convoy::trainer {
namespace {

using test::TempFolder;
using testing::Test;

// The least that is a job.
constexpr const char* kMinimal = "model { name: \"resnet50\" } data { path: \"d\" }\n";

Job parse(const std::string& text, const std::vector<std::string>& sets = {},
          std::string_view device = "cpu") {
  return parse_job(text, "j.txtpb", sets, device);
}

// The message of the mistakes in a job; empty when it is accepted.
std::string mistakes(const std::string& text, const std::vector<std::string>& sets = {},
                     std::string_view device = "cpu") {
  try {
    parse(text, sets, device);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadJob);
    return error.what();
  }
}

std::string mistakes_of_set(const std::string& set) {
  return mistakes(kMinimal, {set});
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in\n" << text;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Job, EveryFieldIsReadFromTheFile) {
  const Job job = parse(R"(
    name: "n"
    data { format: IDX path: "p" 'q' classes: 10
      train { crop: PAD_AND_CROP size: 28 area_min: 0.1 area_max: 0.9 ratio_min: 0.5 ratio_max: 2
              scale_min: 100 scale_max: 200 pad: 2 flip: false
              pca_jitter: 0.1 brightness: 0.2 contrast: 0.3 saturation: 0.4 hue: 0.05 }
      eval { resize: 0 size: 20 }
      mean_subtraction: PER_CHANNEL mean: [0.5, 0.25] std: 0.1 std: 0.2f
      bad_sample: SUBSTITUTE max_pixels: 0x100 synthetic_samples: 7 }
    model < name: "m", stride_in_first_conv: true; shortcut: B zero_init_residual: true
      batch_norm_momentum: 0.2 batch_norm_epsilon: 1e-3 dropout: 0.3 label_smoothing: 0.1 >
    workers: 4 batch_per_worker: 16 threads_per_worker: 2 precision: bf16 seed: 18446744073709551615
    epochs: 7 stop_after_steps: 5
    optimizer { kind: LARS learning_rate: 0.3 linear_scaling: true base_batch: 128 momentum: 0.8
      nesterov: true weight_decay: 1e-5 decay_batch_norm_and_bias: false trust_coefficient: 0.02
      lars_epsilon: 1e-8 clip_norm: 1.5 ema_decay: 0.99
      group { pattern: "fc" learning_rate_factor: 2 } group { pattern: "*" weight_decay_factor: 0 } }
    schedule { kind: ONE_CYCLE milestones: 1 milestones: 2.5 gamma: 0.2 warmup_epochs: 1
      warmup_start_factor: 0.1 end_factor: 0.01 power: 3 patience: 4 threshold: 0.002 }
    evaluation { every_epochs: 2 batch: 50 }
    checkpoint { every_steps: 100 every_minutes: 1.5 keep: 2 keep_best: false keep_every_steps: 9 }
    reduction { order: FAST bucket_mib: 2 }
    log { every_steps: 10 samples: true }
    transfer { init_from: "w.safetensors" freeze: "conv1" freeze: ["bn1", "layer1.*"]
      train_last_blocks: 3 start_anew: "fc"
      unfreeze { epoch: 2 pattern: "layer4" } unfreeze < epoch: 0.5, pattern: "layer3" > }
  )");
  EXPECT_EQ(job.name, "n");
  EXPECT_EQ(job.data.format, Job::Data::Format::kIdx);
  EXPECT_EQ(job.data.path, "pq");
  EXPECT_EQ(job.data.classes, 10u);
  EXPECT_EQ(job.data.train.crop, Job::Data::Train::Crop::kPadAndCrop);
  EXPECT_EQ(job.data.train.size, 28u);
  EXPECT_EQ(job.data.train.area_min, 0.1);
  EXPECT_EQ(job.data.train.area_max, 0.9);
  EXPECT_EQ(job.data.train.ratio_min, 0.5);
  EXPECT_EQ(job.data.train.ratio_max, 2.0);
  EXPECT_EQ(job.data.train.scale_min, 100u);
  EXPECT_EQ(job.data.train.scale_max, 200u);
  EXPECT_EQ(job.data.train.pad, 2u);
  EXPECT_FALSE(job.data.train.flip);
  EXPECT_EQ(job.data.train.pca_jitter, 0.1);
  EXPECT_EQ(job.data.train.brightness, 0.2);
  EXPECT_EQ(job.data.train.contrast, 0.3);
  EXPECT_EQ(job.data.train.saturation, 0.4);
  EXPECT_EQ(job.data.train.hue, 0.05);
  EXPECT_EQ(job.data.eval.resize, 0u);
  EXPECT_EQ(job.data.eval.size, 20u);
  EXPECT_EQ(job.data.mean, (std::vector<double>{0.5, 0.25}));
  EXPECT_EQ(job.data.std, (std::vector<double>{0.1, 0.2}));
  EXPECT_EQ(job.data.bad_sample, Job::Data::BadSample::kSubstitute);
  EXPECT_EQ(job.data.max_pixels, 256u);
  EXPECT_EQ(job.data.synthetic_samples, 7u);
  EXPECT_EQ(job.model.name, "m");
  EXPECT_TRUE(job.model.stride_in_first_conv);
  EXPECT_EQ(job.model.shortcut, Job::Model::Shortcut::kB);
  EXPECT_TRUE(job.model.zero_init_residual);
  EXPECT_EQ(job.model.batch_norm_momentum, 0.2);
  EXPECT_EQ(job.model.batch_norm_epsilon, 1e-3);
  EXPECT_EQ(job.model.dropout, 0.3);
  EXPECT_EQ(job.model.label_smoothing, 0.1);
  EXPECT_EQ(job.workers, 4u);
  EXPECT_EQ(job.batch_per_worker, 16u);
  EXPECT_EQ(job.threads_per_worker, 2u);
  EXPECT_EQ(job.precision, Job::Precision::kBf16);
  EXPECT_EQ(job.seed, 18446744073709551615u);
  EXPECT_EQ(job.epochs, 7u);
  EXPECT_EQ(job.stop_after_steps, 5u);
  EXPECT_EQ(job.optimizer.kind, Job::Optimizer::Kind::kLars);
  EXPECT_EQ(job.optimizer.learning_rate, 0.3);
  EXPECT_TRUE(job.optimizer.linear_scaling);
  EXPECT_EQ(job.optimizer.base_batch, 128u);
  EXPECT_EQ(job.optimizer.momentum, 0.8);
  EXPECT_TRUE(job.optimizer.nesterov);
  EXPECT_EQ(job.optimizer.weight_decay, 1e-5);
  EXPECT_FALSE(job.optimizer.decay_batch_norm_and_bias);
  EXPECT_EQ(job.optimizer.trust_coefficient, 0.02);
  EXPECT_EQ(job.optimizer.lars_epsilon, 1e-8);
  EXPECT_EQ(job.optimizer.clip_norm, 1.5);
  EXPECT_EQ(job.optimizer.ema_decay, 0.99);
  EXPECT_EQ(job.schedule.kind, Job::Schedule::Kind::kOneCycle);
  EXPECT_EQ(job.schedule.milestones, (std::vector<double>{1, 2.5}));
  EXPECT_EQ(job.schedule.gamma, 0.2);
  EXPECT_EQ(job.schedule.warmup_epochs, 1.0);
  EXPECT_EQ(job.schedule.warmup_start_factor, 0.1);
  EXPECT_EQ(job.schedule.end_factor, 0.01);
  EXPECT_EQ(job.schedule.power, 3.0);
  EXPECT_EQ(job.schedule.patience, 4u);
  EXPECT_EQ(job.schedule.threshold, 0.002);
  EXPECT_EQ(job.evaluation.every_epochs, 2u);
  EXPECT_EQ(job.evaluation.batch, 50u);
  EXPECT_EQ(job.checkpoint.every_steps, 100u);
  EXPECT_EQ(job.checkpoint.every_minutes, 1.5);
  EXPECT_EQ(job.checkpoint.keep, 2u);
  EXPECT_FALSE(job.checkpoint.keep_best);
  EXPECT_EQ(job.checkpoint.keep_every_steps, 9u);
  EXPECT_EQ(job.reduction.order, Job::Reduction::Order::kFast);
  EXPECT_EQ(job.reduction.bucket_mib, 2.0);
  EXPECT_EQ(job.log.every_steps, 10u);
  EXPECT_TRUE(job.log.samples);
  EXPECT_EQ(job.transfer.init_from, "w.safetensors");
  EXPECT_EQ(job.transfer.freeze, (std::vector<std::string>{"conv1", "bn1", "layer1.*"}));
  EXPECT_EQ(job.transfer.train_last_blocks, 3u);
  EXPECT_EQ(job.transfer.start_anew, std::vector<std::string>{"fc"});
  ASSERT_EQ(job.transfer.unfreeze.size(), 2u);
  EXPECT_EQ(job.transfer.unfreeze[0].epoch, 2.0);
  EXPECT_EQ(job.transfer.unfreeze[1].pattern, "layer3");
  ASSERT_EQ(job.optimizer.group.size(), 2u);
  EXPECT_EQ(job.optimizer.group[0].pattern, "fc");
  EXPECT_EQ(job.optimizer.group[0].learning_rate_factor, 2.0);
  EXPECT_EQ(job.optimizer.group[0].weight_decay_factor, 1.0);
  EXPECT_EQ(job.optimizer.group[1].weight_decay_factor, 0.0);
}

TEST(Job, ListsOfGroupsComeBackFromTheText) {
  const Job job = parse(
      "model { name: \"m\" } data { path: \"d\" only_classes: [3, 1] images_per_class: 7 } "
      "optimizer { group { pattern: \"a\" learning_rate_factor: 0.3 } } "
      "transfer { freeze: \"a\" unfreeze { epoch: 1 pattern: \"b\" } }");
  const Job again = parse(to_text(job));
  EXPECT_EQ(again.data.only_classes, (std::vector<uint32_t>{3, 1}));
  EXPECT_EQ(again.data.images_per_class, 7u);
  ASSERT_EQ(again.optimizer.group.size(), 1u);
  EXPECT_EQ(again.optimizer.group[0].learning_rate_factor, 0.3);
  ASSERT_EQ(again.transfer.unfreeze.size(), 1u);
  EXPECT_EQ(again.transfer.unfreeze[0].pattern, "b");
  EXPECT_EQ(to_text(again), to_text(job));
}

// One difference for a list, whatever its lengths, which names all that it holds.
TEST(DifferingKeys, AListOfGroupsIsOneKey) {
  const auto job = [](const std::string& groups) {
    return to_text(parse(std::string(kMinimal) + "optimizer { " + groups + " }"));
  };
  const std::string none = job(""), one = job("group { pattern: \"a\" learning_rate_factor: 0.1 }"),
                    two = job("group { pattern: \"a\" } group { pattern: \"b\" }");
  for (const auto& [before, after] : {std::pair(none, one), {one, two}, {two, none}}) {
    const auto differences = differing_keys(before, after);
    ASSERT_EQ(differences.size(), 1u);
    EXPECT_EQ(differences[0].key, "optimizer.group");
    EXPECT_TRUE(differences[0].changes_result);
    EXPECT_NE(identity_digest(parse(before), "d"), identity_digest(parse(after), "d"));
  }
  EXPECT_EQ(differing_keys(none, one)[0].new_value,
            "[{pattern: \"a\" learning_rate_factor: 0.1 weight_decay_factor: 1}]");
}

// The defaults stand in job.proto and in job.h; they must not part.
TEST(Job, TheStructsDefaultsAreTheProtos) {
  Job job;
  job.model.name = "resnet50";
  job.data.path = "d";
  EXPECT_EQ(to_text(parse(kMinimal)), to_text(job));
}

TEST(Job, EveryEnumeratorHasTheNameOfTheProto) {
  const auto text = [](auto set_value) {
    Job job;
    set_value(job);
    return to_text(job);
  };
  using S = Job::Schedule::Kind;
  const std::pair<S, const char*> kinds[] = {
      {S::kStep, "STEP"},          {S::kPlateau, "PLATEAU"},
      {S::kCosine, "COSINE"},      {S::kPolynomial, "POLYNOMIAL"},
      {S::kOneCycle, "ONE_CYCLE"}, {S::kConstant, "CONSTANT"}};
  for (const auto& [kind, name] : kinds)
    expect_contains(text([value = kind](Job& job) { job.schedule.kind = value; }),
                    std::string("kind: ") + name);
  using P = Job::Precision;
  const std::pair<P, const char*> precisions[] = {
      {P::kFp32, "FP32"}, {P::kBf16, "BF16"}, {P::kTf32, "TF32"}, {P::kFp16, "FP16"}};
  for (const auto& [precision, name] : precisions)
    expect_contains(text([value = precision](Job& job) { job.precision = value; }),
                    std::string("precision: ") + name);
  using C = Job::Data::Train::Crop;
  const std::pair<C, const char*> crops[] = {{C::kRandomResized, "RANDOM_RESIZED"},
                                             {C::kScaleAndCrop, "SCALE_AND_CROP"},
                                             {C::kPadAndCrop, "PAD_AND_CROP"},
                                             {C::kCenter, "CENTER"}};
  for (const auto& [crop, name] : crops)
    expect_contains(text([value = crop](Job& job) { job.data.train.crop = value; }),
                    std::string("crop: ") + name);
  using F = Job::Data::Format;
  const std::pair<F, const char*> formats[] = {{F::kAuto, "AUTO"},
                                               {F::kImageFolder, "IMAGE_FOLDER"},
                                               {F::kIdx, "IDX"},
                                               {F::kCifar, "CIFAR"},
                                               {F::kSynthetic, "SYNTHETIC"}};
  for (const auto& [format, name] : formats)
    expect_contains(text([value = format](Job& job) { job.data.format = value; }),
                    std::string("format: ") + name);
  using M = Job::Data::MeanSubtraction;
  const std::pair<M, const char*> means[] = {
      {M::kPerChannel, "PER_CHANNEL"}, {M::kPerPixel, "PER_PIXEL"}, {M::kNone, "NONE"}};
  for (const auto& [mean, name] : means)
    expect_contains(text([value = mean](Job& job) { job.data.mean_subtraction = value; }),
                    std::string("mean_subtraction: ") + name);
  using X = Job::Model::Shortcut;
  const std::pair<X, const char*> shortcuts[] = {
      {X::kDefault, "DEFAULT"}, {X::kA, "A\n"}, {X::kB, "B\n"}, {X::kC, "C\n"}};
  for (const auto& [shortcut, name] : shortcuts)
    expect_contains(text([value = shortcut](Job& job) { job.model.shortcut = value; }),
                    std::string("shortcut: ") + name);
  expect_contains(text([](Job& job) { job.data.bad_sample = Job::Data::BadSample::kSubstitute; }),
                  "bad_sample: SUBSTITUTE");
  expect_contains(text([](Job& job) { job.optimizer.kind = Job::Optimizer::Kind::kLars; }),
                  "kind: LARS");
  expect_contains(text([](Job& job) { job.reduction.order = Job::Reduction::Order::kFast; }),
                  "order: FAST");
}

// Our walk over the text format and protobuf's own parser agree on what its own printer writes.
TEST(Job, TextIsReadAsProtobufReadsIt) {
  Job job = parse(kMinimal);
  job.data.path = "spaces \"quotes\" \n gr\xc3\xbc\xc3\x9f \xff";
  job.optimizer.learning_rate = 0.1 + 0.2;
  job.optimizer.weight_decay = 1e-300;
  job.seed = ~uint64_t{0};
  job.schedule.milestones = {30, 60, 80.5};
  const std::string text = to_text(job);
  EXPECT_EQ(to_text(parse(text)), text);
  EXPECT_EQ(parse(text).data.path, job.data.path);
  EXPECT_EQ(parse(text).optimizer.learning_rate, job.optimizer.learning_rate);
  proto::Job theirs;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &theirs));
  EXPECT_EQ(theirs.data().path(), job.data.path);
  EXPECT_EQ(theirs.schedule().milestones_size(), 3);
}

TEST(Job, SetsOverrideTheFile) {
  const Job job = parse(std::string(kMinimal) + "schedule { milestones: [1, 2] }",
                        {"optimizer.learning_rate=0.25", "precision=Bf16", "optimizer.nesterov=1",
                         "data.train.flip=FALSE", "schedule.milestones=3,4.5",
                         "data.path=/a b/c=d,e", "seed=5", "seed=6", "name="});
  EXPECT_EQ(job.optimizer.learning_rate, 0.25);
  EXPECT_EQ(job.precision, Job::Precision::kBf16);
  EXPECT_TRUE(job.optimizer.nesterov);
  EXPECT_FALSE(job.data.train.flip);
  EXPECT_EQ(job.schedule.milestones, (std::vector<double>{3, 4.5}));
  EXPECT_EQ(job.data.path, "/a b/c=d,e");
  EXPECT_EQ(job.seed, 6u);
  EXPECT_EQ(job.name, "");
  EXPECT_TRUE(parse(std::string(kMinimal) + "schedule { milestones: 1 }", {"schedule.milestones="})
                  .schedule.milestones.empty());
}

TEST(Job, ByteOrderMarkAndCarriageReturnsAreAccepted) {
  const Job job = parse(
      "\xEF\xBB\xBFseed: 3\r\n# a comment\r\nmodel { name: \"m\" }\r\n"
      "data {\r\n path: \"d\" }");
  EXPECT_EQ(job.seed, 3u);
  EXPECT_EQ(job.model.name, "m");
}

TEST(JobMistakes, AllAreReportedAtOnceWithTheirPlaces) {
  const std::string text = mistakes(
      "seed: 1\n"
      "optimiser { learning_rate: 0.1 nested { deep: [1, 2] } }\n"
      "optimizer { learnig_rate: 0.1 momentum: \"much\" }\n"
      "  workers: -1\n"
      "precision: FP8\n"
      "batch_per_worker: 1.5\n"
      "model { name: 5 zero_init_residual: 2 }\n"
      "seed: 2\n"
      "data: 3\n"
      "epochs { }\n"
      "threads_per_worker: 4294967296\n"
      "stop_after_steps: [1]\n",
      {"data.train.sise=3", "data=4", "epochs", "optimizer.momentum=1.0", "seed=x"});
  expect_contains(text, "j.txtpb: 18 mistakes");
  expect_contains(text, "j.txtpb:2:1: optimiser: unknown key; the nearest is optimizer\n");
  expect_contains(text,
                  "j.txtpb:3:13: optimizer.learnig_rate: unknown key; the nearest is "
                  "optimizer.learning_rate\n");
  expect_contains(text,
                  "j.txtpb:3:41: optimizer.momentum: expects a finite number, not the text "
                  "\"much\"");
  expect_contains(text,
                  "j.txtpb:4:12: workers: expects a whole number from 0 to 4294967295, not "
                  "-1");
  expect_contains(text, "j.txtpb:5:12: precision: expects one of FP32, BF16, TF32, FP16, not FP8");
  expect_contains(text,
                  "j.txtpb:6:19: batch_per_worker: expects a whole number from 0 to "
                  "4294967295, not 1.5");
  expect_contains(text, "j.txtpb:7:15: model.name: expects a text in quotes, not 5");
  expect_contains(text, "j.txtpb:7:37: model.zero_init_residual: expects true or false, not 2");
  expect_contains(text, "j.txtpb:8:1: seed: set a second time; the first is in line 1");
  expect_contains(text, "j.txtpb:9:1: data: is a group of fields: data { ... }");
  expect_contains(text, "j.txtpb:10:1: epochs: is one value, not a group");
  expect_contains(text,
                  "j.txtpb:11:21: threads_per_worker: expects a whole number from 0 to "
                  "4294967295, not 4294967296");
  expect_contains(text, "j.txtpb:12:19: stop_after_steps: is one value, not a list");
  expect_contains(text, "--set data.train.sise: unknown key; the nearest is data.train.size");
  expect_contains(text, "--set data: is a group of fields; set one of them, e.g. data.format");
  expect_contains(text, "--set epochs: expects key=value");
  expect_contains(text, "--set seed: expects a whole number");
}

TEST(JobMistakes, TheNearestKeyIsFoundInAnotherGroup) {
  expect_contains(mistakes("learning_rate: 0.1"), "the nearest is optimizer.learning_rate");
  expect_contains(mistakes_of_set("label_smoothing=0.1"), "the nearest is model.label_smoothing");
  expect_contains(mistakes_of_set("optimizer.lr.x=0.1"), "unknown key");
  expect_contains(mistakes_of_set("optimizer.momentum.x=0.1"), "unknown key");
  expect_contains(mistakes_of_set(".=1"), "unknown key");
}

TEST(JobMistakes, ValuesOutOfRangeAndContradictions) {
  const std::pair<const char*, const char*> cases[] = {
      {"batch_per_worker=0", "batch_per_worker"},
      {"threads_per_worker=1025", "threads_per_worker"},
      {"workers=65537", "workers"},
      {"epochs=0", "epochs"},
      {"model.name=", "model.name: is missing"},
      {"data.path=", "data.path: is missing"},
      {"data.train.area_min=0", "area_min"},
      {"data.train.area_max=1.5", "area_max"},
      {"data.train.area_max=0.01", "area_min 0.08 is above area_max 0.01"},
      {"data.train.ratio_min=2", "ratio_min 2 is above"},
      {"data.train.scale_min=500", "scale_min 500 is above scale_max 480"},
      {"data.train.size=9000", "data.train.size"},
      {"data.train.pca_jitter=-0.1", "pca_jitter: is -0.1; it must be from 0 to 10"},
      {"data.train.brightness=1.5", "brightness"},
      {"data.train.contrast=-1", "contrast"},
      {"data.train.saturation=2", "saturation"},
      {"data.train.hue=0.6", "hue: is 0.6; it must be from 0 to 0.5"},
      {"data.train.size=300", "evaluation crops 300 pixels from a shorter side of 256"},
      {"data.eval.size=257", "evaluation crops 257 pixels"},
      {"data.mean=0.5", "mean has 1 values and std 0"},
      {"data.max_pixels=0", "max_pixels"},
      {"data.synthetic_samples=0", "synthetic_samples"},
      {"model.dropout=1", "dropout"},
      {"model.label_smoothing=1", "label_smoothing"},
      {"model.label_smoothing=-0.1", "label_smoothing"},
      {"model.batch_norm_momentum=1.1", "batch_norm_momentum"},
      {"model.batch_norm_epsilon=0", "batch_norm_epsilon"},
      {"optimizer.learning_rate=-1", "learning_rate"},
      {"optimizer.learning_rate=nan", "learning_rate: expects a finite number"},
      {"optimizer.learning_rate=inf", "learning_rate: expects a finite number"},
      {"optimizer.learning_rate=1e999", "learning_rate: expects a finite number"},
      {"optimizer.learning_rate=", "learning_rate: expects a finite number"},
      {"optimizer.learning_rate=0.1x", "learning_rate: expects a finite number"},
      {"optimizer.momentum=1", "momentum: is 1; it must be at least 0 and below 1"},
      {"optimizer.momentum=-0.5", "momentum"},
      {"optimizer.base_batch=0", "base_batch"},
      {"optimizer.weight_decay=-1", "weight_decay"},
      {"optimizer.trust_coefficient=0", "trust_coefficient"},
      {"optimizer.lars_epsilon=-1", "lars_epsilon"},
      {"optimizer.clip_norm=-1", "clip_norm"},
      {"optimizer.ema_decay=1", "ema_decay"},
      {"schedule.milestones=2,2", "must be above 0 and rising, not 2, 2"},
      {"schedule.milestones=0,2", "must be above 0 and rising"},
      {"schedule.milestones=1,,2", "expects a finite number"},
      {"schedule.gamma=0", "gamma"},
      {"schedule.warmup_epochs=-1", "warmup_epochs"},
      {"schedule.warmup_epochs=91", "warm-up of 91 epochs is longer than the run of 90"},
      {"schedule.warmup_start_factor=2", "warmup_start_factor"},
      {"schedule.end_factor=-0.1", "end_factor"},
      {"schedule.power=0", "power"},
      {"schedule.patience=0", "patience"},
      {"schedule.threshold=1", "threshold"},
      {"evaluation.batch=0", "evaluation.batch"},
      {"checkpoint.keep=0", "checkpoint.keep"},
      {"watchdog.input_seconds=-1", "watchdog.input_seconds"},
      {"watchdog.heartbeat_seconds=0", "watchdog.heartbeat_seconds"},
      {"watchdog.silence_seconds=2", "watchdog.silence_seconds"},
      {"watchdog.straggler_factor=0.5", "watchdog.straggler_factor"},
      {"watchdog.straggler_seconds=0", "watchdog.straggler_seconds"},
      {"checkpoint.every_minutes=-1", "every_minutes"},
      {"reduction.bucket_mib=0", "bucket_mib"},
      {"log.every_steps=0", "log.every_steps"},
      {"data.train.flip=maybe", "expects true or false"},
      {"workers=+1", "expects a whole number"},
      {"workers= 1", "expects a whole number"},
  };
  for (const auto& [set, expected] : cases) {
    SCOPED_TRACE(set);
    const std::string text = mistakes_of_set(set);
    expect_contains(text, expected);
    expect_contains(text, "1 mistake in the job");
    expect_contains(text, "--set ");
  }
  expect_contains(mistakes(kMinimal, {"data.train.crop=scale_and_crop", "data.train.size=250",
                                      "data.train.scale_min=240"}),
                  "a crop of 250 pixels does not fit");
  expect_contains(mistakes(kMinimal, {"data.format=image_folder", "data.train.size=0"}),
                  "have no common size");
  expect_contains(mistakes(kMinimal, {"data.mean=0.5", "data.std=0"}), "must be above 0");
  expect_contains(
      mistakes(kMinimal, {"data.mean=0.5", "data.std=1", "data.mean_subtraction=per_pixel"}),
      "has no effect");
  expect_contains(mistakes(kMinimal, {"optimizer.nesterov=true", "optimizer.momentum=0"}),
                  "nesterov needs a momentum above 0");
  expect_contains(mistakes(kMinimal, {"schedule.kind=plateau", "evaluation.every_epochs=0"}),
                  "PLATEAU needs evaluations");
  EXPECT_EQ(mistakes(kMinimal, {"data.path=", "data.format=synthetic"}), "");
}

TEST(JobMistakes, OfTransfer) {
  const auto expect = [](const std::string& text, const std::string& part) {
    expect_contains(mistakes(kMinimal + text), part);
  };
  expect("transfer { unfreeze { epoch: 1 pattern: \"a\" } }", "needs something frozen");
  expect("transfer { freeze: \"a\" unfreeze { epoch: 90 pattern: \"a\" } }",
         "transfer.unfreeze: has the epoch 90; it must be above 0 and below the run's 90");
  expect("transfer { freeze: \"a\" unfreeze { epoch: 0 pattern: \"a\" } }", "must be above 0");
  expect("transfer { freeze: \"a\" unfreeze { epoch: 1 } }", "has no pattern");
  expect("transfer { freeze: \"\" }", "transfer.freeze: has an empty pattern");
  expect("transfer { start_anew: \"fc\" }", "needs transfer.init_from");
  expect("transfer { init_from: \"x\" start_anew: \"\" }",
         "transfer.start_anew: has an empty pattern");
  expect("transfer { init_sha256: \"" + std::string(64, 'a') + "\" }",
         "transfer.init_sha256: needs transfer.init_from");
  expect("transfer { init_from: \"x\" init_sha256: \"abc\" }", "64 hexadecimal digits");
  expect("optimizer { group { learning_rate_factor: 2 } }", "a group without a pattern");
  expect("optimizer { group { pattern: \"a\" learning_rate_factor: 0 } }", "above 0");
  expect("optimizer { group { pattern: \"a\" weight_decay_factor: -1 } }", "at least 0");
  expect("optimizer { group { patern: \"a\" } }", "the nearest is optimizer.group.pattern");
  expect("optimizer { group: 3 }", "is a group of fields");
  expect_contains(mistakes_of_set("optimizer.group.pattern=a"), "list of groups");
  expect_contains(mistakes_of_set("transfer.unfreeze=a"), "list of groups");
  expect_contains(mistakes_of_set("data.only_classes=1,2,1"), "names a class twice");
  expect_contains(mistakes_of_set("data.only_classes=1048576"), "classes below 1048576");
  expect_contains(mistakes(kMinimal, {"data.only_classes=1", "data.format=SYNTHETIC"}),
                  "a dataset that is not SYNTHETIC");
  expect_contains(mistakes(kMinimal, {"data.only_classes=1,2", "data.classes=10"}),
                  "leave data.classes out");
  EXPECT_EQ(mistakes(kMinimal, {"data.only_classes=1,2", "data.classes=2"}), "");
  EXPECT_EQ(parse(kMinimal, {"transfer.freeze=a,b.*"}).transfer.freeze,
            (std::vector<std::string>{"a", "b.*"}));
}

// eval, verify and resume read the job that a run has recorded.
TEST(JobMistakes, WhatARunRecordsOfMeansIsNoMistake) {
  for (const char* kind : {"NONE", "PER_PIXEL"}) {
    const std::string recorded = fmt::format(
        "data {{ format: SYNTHETIC mean_subtraction: {} mean: [0, 0, 0] std: [1, 1, 1] }} "
        "model {{ name: \"resnet18\" }}",
        kind);
    EXPECT_NO_THROW(parse_job(recorded, "job", {}, "")) << kind;
    const std::string meant = fmt::format(
        "data {{ format: SYNTHETIC mean_subtraction: {} mean: [0, 0.5, 0] std: [1, 1, 1] }} "
        "model {{ name: \"resnet18\" }}",
        kind);
    EXPECT_THROW(parse_job(meant, "job", {}, ""), Error) << kind;
  }
}

TEST(JobMistakes, PrecisionsOfTheOtherDevice) {
  for (const char* precision : {"precision=TF32", "precision=FP16"}) {
    expect_contains(mistakes(kMinimal, {precision}), "need --device cuda");
    EXPECT_EQ(mistakes(kMinimal, {precision}, "cuda"), "");
  }
  EXPECT_EQ(mistakes(kMinimal, {"precision=BF16"}), "");
}

TEST(JobMistakes, AContradictionIsNotReportedForAValueThatIsWrongInItself) {
  const std::string text = mistakes("model { name: 5 } data { path: \"d\" }");
  EXPECT_EQ(count(text, "model.name"), 1u) << text;
}

TEST(JobMistakes, TextThatCannotBeFollowed) {
  const std::pair<const char*, const char*> cases[] = {
      {"model { name: \"m\"", "expected a key or \"}\", found the end of the file"},
      {"seed 1", "j.txtpb:1:6: expected \":\" or \"{\" after seed, found \"1\""},
      {"seed: }", "expected a value, found \"}\""},
      {"seed:", "expected a value, found the end of the file"},
      {"}", "expected a key, found \"}\""},
      {"model { name: \"m }\n", "j.txtpb:1:"},
      {"schedule { milestones: [1 2] }", "expected \",\" or \"]\", found \"2\""},
      {"unknown { a: [ }", "expected a closing bracket"},
      {"[a.b]: 1", "expected a key"},
      {"\x01\x02", "j.txtpb:1:1"},
  };
  for (const auto& [text, expected] : cases) {
    SCOPED_TRACE(text);
    const std::string message = mistakes(text);
    expect_contains(message, expected);
    EXPECT_EQ(count(message, "is missing"), 0u) << message;  // no mistakes that follow from it
  }
  EXPECT_NE(mistakes(std::string("seed\0: 1", 8)), "");
}

TEST(JobMistakes, HostileTextsEndInAnErrorOfBoundedSize) {
  std::string deep;
  for (int i = 0; i < 200000; ++i) deep += "a{";
  EXPECT_NE(mistakes(deep), "");
  EXPECT_NE(mistakes("a: " + std::string(200000, '[')), "");
  std::string many;
  for (int i = 0; i < 1000; ++i) many += fmt::format("key{}: 1\n", i);
  const std::string text = mistakes(many);
  expect_contains(text, "1002 mistakes");  // model.name and data.path are missing as well
  expect_contains(text, "... and 952 more");
  EXPECT_EQ(count(text, "unknown key"), 50u);
  EXPECT_LT(mistakes(std::string(500000, 'k') + ": 1").size(), 2000u);
  EXPECT_LT(mistakes("seed: \"" + std::string(500000, 'k') + "\"").size(), 2000u);
}

// R45: the longest text that is read, full of what takes longest, is answered within a second (of
// the processor: a loaded machine does not count).
TEST(JobMistakes, TheLongestHostileTextsAreAnsweredAtOnce) {
  constexpr double kMaxSeconds = test::kSanitized ? 10 : 1;
  constexpr size_t kBytes = size_t{1} << 20;
  const auto repeated = [](const std::string& piece) {
    std::string text;
    while (text.size() + piece.size() <= kBytes) text += piece;
    return text;
  };
  const std::string cases[] = {repeated("a:1 "),
                               repeated(std::string(99, 'k') + ":1\n"),
                               repeated("seed:1 "),
                               repeated("schedule{milestones:1}"),
                               repeated("workers:x "),
                               repeated("\x01"),
                               repeated("'a"),
                               repeated("'\\x"),
                               repeated("a{"),
                               "data{path:" + repeated("'a'"),
                               "schedule{milestones:[" + repeated("1,"),
                               "seed:" + repeated("9"),
                               "optimizer{momentum:1e" + repeated("9")};
  for (const std::string& text : cases) {
    const std::clock_t start = std::clock();
    EXPECT_NE(mistakes(text.substr(0, kBytes)), "") << text.substr(0, 30);
    EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, kMaxSeconds)
        << text.substr(0, 30);
  }
}

TEST(LoadJob, FilesThatCannotBeRead) {
  const TempFolder dir;
  const auto message = [&](const std::string& path,
                           ExitCode code = ExitCode::kBadJob) -> std::string {
    try {
      load_job(path, {}, "cpu");
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      return error.what();
    }
  };
  expect_contains(message(dir.path("none.txtpb"), ExitCode::kIo), "none.txtpb: cannot open");
  expect_contains(message(dir.path("none.txtpb"), ExitCode::kIo), "--job");
  EXPECT_NE(message(dir.path(), ExitCode::kIo), "");
  dir.write("big", kMinimal + std::string(1 << 20, '#'));
  expect_contains(message(dir.path("big")), "more than 1048576 bytes");
  // Written out it has twice as many quotes.
  dir.write("grows",
            "data { path: 'd' } model { name: 'g' graph: '#" + std::string(600'000, '"') + "' }");
  expect_contains(message(dir.path("grows")),
                  "bytes as a run writes it; a job has at most 1048576");
  dir.write("fits", std::string(kMinimal) + std::string(1000000, '#'));
  EXPECT_EQ(message(dir.path("fits")), "");
}

// A network that is in the job already may have any name, a file's too.
TEST(LoadJob, ANetworkThatIsThereIsNotLookedForInAFile) {
  const TempFolder dir;
  const std::string network =
      "input_channels: 1 input_height: 4 input_width: 4 node { name: 'fc' input: 'input' linear { "
      "out_features: 2 } }";
  const std::string file = dir.write("net.txtpb", "name: 'mine.txtpb' " + network);
  dir.write("job", kMinimal);
  const Job first = load_job(dir.path("job"), {"model.name=" + file}, "cpu");
  EXPECT_EQ(first.model.name, "mine.txtpb");
  dir.write("again", to_text(first));
  const Job again = load_job(dir.path("again"), {}, "cpu");
  EXPECT_EQ(again.model.name, "mine.txtpb");
  EXPECT_EQ(again.model.graph, first.model.graph);
  // Where it is cleared, the file is read.
  EXPECT_EQ(load_job(dir.path("again"), {"model.graph=", "model.name=" + file}, "cpu").model.graph,
            first.model.graph);
}

TEST(LoadJob, EveryRecipeIsAValidJob) {
  size_t recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(CONVOY_RECIPES)) {
    SCOPED_TRACE(entry.path());
    ++recipes;
    const Job job = load_job(entry.path(), {"data.path=d"}, "cpu");
    EXPECT_EQ(job.name, entry.path().stem());
    EXPECT_GT(job.workers, 0u);
  }
  EXPECT_GE(recipes, 2u);
  const Job imagenet = load_job(CONVOY_RECIPES "/imagenet_resnet50.txtpb", {"data.path=d"}, "cpu");
  EXPECT_EQ(imagenet.schedule.milestones, (std::vector<double>{30, 60, 80}));
  EXPECT_TRUE(imagenet.optimizer.linear_scaling);
  EXPECT_EQ(load_job(CONVOY_RECIPES "/fashion_mnist_resnet20.txtpb", {}, "cpu").data.path,
            "/usr/share/datasets/fashion-mnist");
}

TEST(Identity, DependsOnValuesAlone) {
  const std::string digest = identity_digest(parse(kMinimal), "d0");
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(identity_digest(parse("data { path: \"elsewhere\" } optimizer { momentum: 0.90 "
                                  "learning_rate: 1e-1 } model { name: \"resnet50\" } seed: 0x1"),
                            "d0"),
            digest);
  EXPECT_NE(identity_digest(parse(kMinimal), "d1"), digest);
}

// Fields that came later, left at their defaults, do not change what older jobs were.
TEST(Identity, OfAJobFromTheFirstVersionStays) {
  constexpr const char* kFirstDigest =
      "abb33ac820da742697a624d414f0049d7d149780db73e3bae86fa3ba03ece342";
  EXPECT_EQ(identity_digest(parse(kMinimal), "d0"), kFirstDigest);
  EXPECT_EQ(identity_digest(parse(kMinimal, {"non_finite.policy=stop"}), "d0"), kFirstDigest);
  EXPECT_EQ(identity_digest(parse(kMinimal, {"mixing.mixup_alpha=0"}), "d0"), kFirstDigest);
  EXPECT_EQ(identity_digest(parse(kMinimal, {"data.apply_exif_orientation=false"}), "d0"),
            kFirstDigest);
  EXPECT_EQ(identity_digest(parse(kMinimal, {"transfer.train_last_blocks=0"}), "d0"), kFirstDigest);
}

// What a job leaves to its model becomes part of it, as if it had been written.
TEST(Identity, HoldsWhatTheModelSaid) {
  const auto job = [](const char* model, const std::vector<std::string>& sets = {}) {
    return parse(fmt::format("model {{ name: \"{}\" }} data {{ path: \"d\" }}", model), sets);
  };
  EXPECT_EQ(job("resnet50").model.dropout, 0);
  EXPECT_EQ(job("resnet50").model.batch_norm_epsilon, 1e-5);
  EXPECT_EQ(job("vgg16").model.dropout, 0.5);
  EXPECT_EQ(job("vgg16", {"model.dropout=0"}).model.dropout, 0);
  EXPECT_EQ(job("googlenet").model.dropout, 0.2);
  EXPECT_EQ(job("googlenet").model.batch_norm_epsilon, 1e-3);
  EXPECT_EQ(job("googlenet", {"model.batch_norm_epsilon=1e-5"}).model.batch_norm_epsilon, 1e-5);
  const auto digest = [&](const std::vector<std::string>& sets) {
    return identity_digest(job("vgg16", sets), "d");
  };
  EXPECT_EQ(digest({}), digest({"model.dropout=0.5"}));
  EXPECT_NE(digest({}), digest({"model.dropout=0"}));
  // A run's own text says it, whatever the model will say one day.
  EXPECT_EQ(parse(to_text(job("vgg16", {"model.dropout=0"}))).model.dropout, 0);
}

// Sets each field of job.proto to a value that is not its default, and looks whether the digest
// changes: exactly the fields marked "not part of the identity" must not change it.
TEST(Identity, EveryFieldButTheMarkedOnesChangesIt) {
  const std::vector<std::string> outside = {"name=x",
                                            "data.path=x",
                                            "stop_after_steps=3",
                                            "checkpoint.every_steps=3",
                                            "checkpoint.every_minutes=3",
                                            "checkpoint.keep=7",
                                            "checkpoint.keep_best=false",
                                            "checkpoint.keep_every_steps=3",
                                            "checkpoint.lease_seconds=3",
                                            "reduction.bucket_mib=1",
                                            "log.every_steps=3",
                                            "log.samples=true",
                                            "log.batch_digests=true",
                                            "log.gradients=3",
                                            "data.follow_links=true",
                                            "transfer.init_from=x",
                                            "watchdog.start_seconds=3",
                                            "watchdog.input_seconds=3",
                                            "watchdog.compute_seconds=3",
                                            "watchdog.reduce_seconds=3",
                                            "watchdog.save_seconds=3",
                                            "watchdog.silence_seconds=30",
                                            "watchdog.heartbeat_seconds=3",
                                            "watchdog.interface=eth0",
                                            "watchdog.straggler_factor=3",
                                            "watchdog.straggler_seconds=3",
                                            "checks.replicas_every_steps=3",
                                            "checks.recompute_every_steps=3",
                                            "checks.max_roll_backs=1",
                                            "gpu.autotune=true",
                                            "gpu.graphs=false",
                                            "gpu.overlap=false",
                                            "gpu.merge=false"};
  const std::vector<std::string> inside = {"data.format=idx",
                                           "data.classes=3",
                                           "data.train.crop=center",
                                           "data.train.size=32",
                                           "data.train.area_min=0.2",
                                           "data.train.area_max=0.9",
                                           "data.train.ratio_min=0.5",
                                           "data.train.ratio_max=3",
                                           "data.train.scale_min=300",
                                           "data.train.scale_max=500",
                                           "data.train.pad=2",
                                           "data.train.flip=false",
                                           "data.train.pca_jitter=0.1",
                                           "data.train.brightness=0.1",
                                           "data.train.contrast=0.1",
                                           "data.train.saturation=0.1",
                                           "data.train.hue=0.1",
                                           "data.eval.resize=240",
                                           "data.eval.size=200",
                                           "data.mean_subtraction=none",
                                           "data.mean=1",
                                           "data.std=1",
                                           "data.bad_sample=substitute",
                                           "data.max_pixels=5",
                                           "data.synthetic_samples=5",
                                           "data.shuffle=window",
                                           "data.window_shards=3",
                                           "model.name=x",
                                           "model.stride_in_first_conv=true",
                                           "model.shortcut=a",
                                           "model.zero_init_residual=true",
                                           "model.batch_norm_momentum=0.5",
                                           "model.batch_norm_epsilon=1e-4",
                                           "model.dropout=0.5",
                                           "model.graph=node { }",
                                           "model.label_smoothing=0.1",
                                           "workers=3",
                                           "batch_per_worker=3",
                                           "threads_per_worker=3",
                                           "precision=bf16",
                                           "seed=3",
                                           "epochs=3",
                                           "optimizer.kind=lars",
                                           "optimizer.learning_rate=0.10000000000000002",
                                           "optimizer.linear_scaling=true",
                                           "optimizer.base_batch=3",
                                           "optimizer.momentum=0.5",
                                           "optimizer.nesterov=true",
                                           "optimizer.weight_decay=0",
                                           "optimizer.decay_batch_norm_and_bias=false",
                                           "optimizer.trust_coefficient=0.1",
                                           "optimizer.lars_epsilon=0.1",
                                           "optimizer.clip_norm=1",
                                           "optimizer.ema_decay=0.5",
                                           "schedule.kind=cosine",
                                           "schedule.milestones=3",
                                           "schedule.gamma=0.5",
                                           "schedule.warmup_epochs=3",
                                           "schedule.warmup_start_factor=0.5",
                                           "schedule.end_factor=0.5",
                                           "schedule.power=3",
                                           "schedule.patience=5",
                                           "schedule.threshold=0.5",
                                           "evaluation.every_epochs=3",
                                           "evaluation.batch=3",
                                           "reduction.order=fast",
                                           "data.apply_exif_orientation=true",
                                           "non_finite.policy=skip",
                                           "non_finite.max_skips=3",
                                           "mixing.mixup_alpha=0.2",
                                           "mixing.cutmix_alpha=1",
                                           "data.only_classes=1",
                                           "data.images_per_class=3",
                                           "transfer.freeze=conv1",
                                           "transfer.train_last_blocks=1"};
  // Of init_from; one, that is in the proto before it, is needed for these.
  const std::string some_sha(64, 'a');
  const std::vector<std::string> beside = {"transfer.start_anew=fc",
                                           "transfer.init_sha256=" + some_sha};
  const std::string before = to_text(parse(kMinimal));
  const auto changed = [](const std::string& set) {
    std::vector<std::string> sets = {set};
    if (set.starts_with("data.mean=")) sets.push_back("data.std=1");
    if (set.starts_with("data.std=")) sets.push_back("data.mean=1");
    return parse(kMinimal, sets);
  };
  const std::string digest = identity_digest(parse(kMinimal), "d");
  for (const std::string& set : outside) {
    SCOPED_TRACE(set);
    EXPECT_EQ(identity_digest(changed(set), "d"), digest);
    const auto differences = differing_keys(before, to_text(changed(set)));
    ASSERT_EQ(differences.size(), 1u);
    EXPECT_EQ(differences[0].key, set.substr(0, set.find('=')));
    EXPECT_FALSE(differences[0].changes_result);
  }
  for (const std::string& set : inside) {
    SCOPED_TRACE(set);
    const auto differences = differing_keys(before, to_text(changed(set)));
    EXPECT_NE(identity_digest(changed(set), "d"), digest);
    ASSERT_FALSE(differences.empty());
    EXPECT_TRUE(differences[0].changes_result);
  }
  const std::string from = "transfer.init_from=x";
  for (const std::string& set : beside) {
    EXPECT_NE(identity_digest(parse(kMinimal, {from, set}), "d"), digest);
    EXPECT_TRUE(
        differing_keys(to_text(parse(kMinimal, {from})), to_text(parse(kMinimal, {from, set})))
            .at(0)
            .changes_result);
  }
  // The lists together are all fields, but for the lists of groups.
  size_t leaves = 0;
  const std::string all =
      to_text(parse(kMinimal, {"schedule.milestones=1", "data.mean=1", "data.std=1",
                               "data.only_classes=1", "transfer.freeze=a", from, beside[0]}));
  for (size_t at = 0; at < all.size(); at = all.find('\n', at) + 1)
    if (all.substr(at, all.find('\n', at) - at).find(": ") != std::string::npos) ++leaves;
  EXPECT_EQ(outside.size() + inside.size() + beside.size(), leaves);
}

TEST(DifferingKeys, NamesValuesAndWhetherTheyMatter) {
  const std::string before = to_text(parse(kMinimal, {"schedule.milestones=30,60"}));
  const std::string after =
      to_text(parse(kMinimal, {"schedule.milestones=30", "checkpoint.keep=5",
                               "optimizer.learning_rate=0.2", "precision=bf16"}));
  const auto differences = differing_keys(before, after);
  ASSERT_EQ(differences.size(), 4u);
  EXPECT_EQ(differences[0].key, "precision");
  EXPECT_EQ(differences[0].old_value, "FP32");
  EXPECT_EQ(differences[0].new_value, "BF16");
  EXPECT_TRUE(differences[0].changes_result);
  EXPECT_EQ(differences[1].key, "optimizer.learning_rate");
  EXPECT_EQ(differences[1].old_value, "0.1");
  EXPECT_EQ(differences[1].new_value, "0.2");
  EXPECT_EQ(differences[2].key, "schedule.milestones");
  EXPECT_EQ(differences[2].old_value, "[30, 60]");
  EXPECT_EQ(differences[2].new_value, "[30]");
  EXPECT_EQ(differences[3].key, "checkpoint.keep");
  EXPECT_FALSE(differences[3].changes_result);
  // A default that was written out is no difference.
  EXPECT_TRUE(differing_keys(kMinimal, to_text(parse(kMinimal))).empty());
  EXPECT_THROW(differing_keys("nonsense: 1", kMinimal), Error);
}

}  // namespace
}  // namespace convoy::trainer
