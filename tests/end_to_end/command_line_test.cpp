// The command line as scripts use it: help, exit codes, JSON on standard output, published counts.
#include <gtest/gtest.h>

#include <algorithm>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/error.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

using nlohmann::json;

const TempFolder& folder() {
  static const TempFolder made;
  return made;
}

Outcome convoy(const Arguments& arguments) {
  return run(folder(), arguments);
}

// What `convoy ... --json` prints: one object and nothing else.
json object_of(const Arguments& arguments) {
  const Outcome outcome = convoy(arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  json object = json::parse(outcome.out, nullptr, false);
  EXPECT_TRUE(object.is_object()) << outcome.all();
  return object;
}

TEST(CommandLine, HelpIsComplete) {
  struct Row {
    Arguments command;
    std::vector<const char*> mentions;
  };
  const Row rows[] = {
      {{},
       {"train", "eval", "predict", "verify", "import", "export", "report", "data", "model",
        "bench", "--version", "64", "65", "70", "74", "75", "78"}},
      {{"train"},
       {"--job", "--data", "--out", "--set", "--data-threads", "--device", "--resume",
        "--allow-change", "--until", "--dry-run", "--log-gradients", "auto", "never"}},
      {{"eval"},
       {"--checkpoint", "--ensemble", "--weights", "--data", "--as", "--split", "--ten-crop",
        "--scales", "--confusion", "--mistakes", "--predictions", "--top", "--device",
        "--data-threads", "--json"}},
      {{"predict"},
       {"--checkpoint", "FILE|FOLDER", "--top", "--ten-crop", "--weights", "--classes-file",
        "--batch", "--device", "--data-threads", "--json", "65"}},
      {{"verify"},
       {"verify DIR", "--json", "digest", "ledger", "--as", "--data-threads", "--max-pixels",
        "--follow-links", "--all", "truncated", "65"}},
      {{"data"}, {"show"}},
      {{"data", "show"},
       {"--job", "--data", "--set", "--step", "--worker", "--split", "--count", "--out",
        "--data-threads", "--json", "batch_digests"}},
      {{"import"},
       {"import --model NAME", "--weights", "--out", "--classes ", "--classes-file", "--input",
        "--mean", "--std", "--set", "--dry-run", "--json", "transfer.init_from"}},
      {{"export"},
       {"export RUN|CHECKPOINT OUT", "--format", "--weights", "--fold", "--normalise", "--softmax",
        "--opset", "--batch", "--input", "--force", "--json", "load_state_dict"}},
      {{"report"},
       {"report RUN", "--json", "--plot", "errors", "gradients", "responses", "--out", "--label",
        "--title", "--panel", "--step"}},
      {{"model"}, {"list", "show NAME"}},
      {{"model", "show"},
       {"show NAME", "--format", "--json", "--out", "--wide", "--fold", "--unfold", "--input",
        "--classes", "--batch", "--precision", "--shortcut", "--stride-in-first-conv", "--force"}},
      {{"bench"}, {"step", "loader", "allreduce"}},
      {{"bench", "step"},
       {"--model", "--precision", "--batch", "--image", "--inference", "--workers", "--threads",
        "--seconds", "--warmup", "--device", "--json"}},
      {{"bench", "loader"},
       {"--data", "--job", "--set", "--data-threads", "--eval", "--seconds", "--rounds",
        "--no-limit", "--profile", "--json", "jpeg_read_coefficients"}},
      {{"bench", "allreduce"},
       {"--min-bytes", "--max-bytes", "--factor", "--iterations", "--repetitions", "--device",
        "--json", "algbw", "busbw =", "#wrong", "70"}},
  };
  for (const Row& row : rows)
    for (const char* flag : {"--help", "-h"}) {
      Arguments command = row.command;
      command.push_back(flag);
      const Outcome outcome = convoy(command);
      EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
      EXPECT_EQ(outcome.err, "");
      for (const char* words : row.mentions)
        EXPECT_GE(lines_with(outcome.out, words), 1) << words << ":\n" << outcome.out;
    }
  // Help is heard however little else makes sense.
  EXPECT_EQ(convoy({"train", "--help", "--job"}).exit_code, 64);
  EXPECT_EQ(convoy({"train", "--job", "x", "--help"}).exit_code, 0);
}

TEST(CommandLine, NonsenseIsAUsageError) {
  struct Row {
    Arguments command;
    const char* says;
  };
  const Row rows[] = {
      {{"trian"}, "\"train\""},
      {{"train"}, "--job"},
      {{"train", "--fast"}, "--fast"},
      {{"train", "stray"}, "convoy train --help"},
      {{"train", "--job", "a", "--job", "b"}, "--job"},
      {{"train", "--job", "a", "--data-threads", "few"}, "--data-threads"},
      {{"eval"}, "--checkpoint"},
      {{"eval", "--fast"}, "--fast"},
      {{"predict"}, "--checkpoint"},
      {{"predict", "--checkpoint", "a"}, "--files"},
      {{"predict", "--checkpoint", "a", "b", "--top", "0"}, "--top 0"},
      {{"predict", "--checkpoint", "a", "b", "--batch", "0"}, "--batch 0"},
      {{"verify"}, "--help"},
      {{"verify", "--fast"}, "--fast"},
      {{"verify", "a", "b"}, "--help"},
      {{"verify", "a", "--threads", "0"}, "--threads"},
      {{"report"}, "--help"},
      {{"report", "a", "b"}, "2 runs"},
      {{"report", "a", "--title", "t"}, "--title is for --plot"},
      {{"report", "a", "--plot", "pie"}, "--plot pie"},
      {{"report", "a", "--plot", "errors", "--label", "x", "--label", "y"}, "--label"},
      {{"report", "a", "--plot", "errors", "--panel", "x", "--panel", "y"}, "--panel"},
      {{"report", "a", "--plot", "errors", "--step", "3"}, "--step is for --plot gradients"},
      {{"report", "a", "--plot", "gradients", "--panel", "x"}, "--panel is for --plot errors"},
      {{"report", "a", "--plot", "gradients", "--json"}, "--json is for the table"},
      {{"report", "a", "--plot", "errors", "--out", "w.safetensors"}, "must end in .svg"},
      {{"model"}, "list or show"},
      {{"model", "lost"}, "list or show"},
      {{"model", "list", "--fast"}, "--fast"},
      {{"model", "show"}, "--help"},
      {{"model", "show", "resnet50", "--fast"}, "--fast"},
      {{"model", "show", "resnet50", "--input", "3x224"}, "3x224"},
      {{"model", "show", "resnet50", "--format", "xml"}, "xml"},
      {{"data", "show", "--job", "a", "--out", "b.png", "--step", "-1"}, "--step -1: must not be"},
      {{"train", "--job", "a", "--log-gradients", "-1"}, "--log-gradients -1: must not be"},
      {{"model", "show", "resnet50", "--format", "svg", "--fold", "--unfold"}, "choose one"},
      {{"model", "show", "resnet50", "--fold"}, "--fold is for --format svg"},
      {{"model", "show", "resnet50", "--format", "dot", "--unfold"}, "--unfold is for"},
      {{"model", "show", "resnet50", "--json", "--format", "svg"}, "--json and --format svg"},
      {{"model", "show", "resnet50", "--json", "--wide"}, "--wide is for the table"},
      {{"model", "show", "resnet50", "--format", "svg", "--batch", "2"}, "--batch is for"},
      {{"model", "show", "own.txtpb", "--classes", "2"}, "--classes is for models of"},
      {{"model", "show", "resnet50", "--force"}, "--force is for --out"},
      {{"model", "show", "resnet50", "--format", "dot", "--out", "a.svg"}, ".dot or .gv"},
      {{"data", "show", "--job", "a", "--step", "0", "--out", "b.txt"}, "--out b.txt: must end"},
      {{"data", "show", "--job", "a", "--step", "0", "--out", "b.png", "--split", "val", "--worker",
        "1"},
       "--worker is for --split train"},
      {{"bench", "stop"}, "step, loader, allreduce"},
      {{"bench", "step"}, "--model"},
      {{"bench", "step", "--model", "cifar_resnet20", "--fast"}, "--fast"},
      {{"bench", "step", "--model", "cifar_resnet20", "--precision", "fp64"}, "fp64"},
      {{"bench", "step", "--model", "cifar_resnet20", "--batch", "0"}, "--batch"},
      {{"bench", "step", "--model", "cifar_resnet20", "--profile", "--no-peak"}, "--no-peak"},
      {{"bench", "step", "--model", "cifar_resnet20", "--no-fold"}, "--inference"},
      {{"bench", "loader"}, "--data"},
      {{"bench", "loader", "--fast"}, "--fast"},
      {{"bench", "loader", "--data-threads", "-1"}, "--data-threads -1"},
      {{"bench", "loader", "--rounds", "0"}, "--rounds 0"},
      {{"bench", "allreduce", "--fast"}, "--fast"},
      {{"bench", "allreduce", "--min-bytes", "64k"}, "--min-bytes 64k"},
      {{"bench", "allreduce", "--max-bytes", "5G"}, "--max-bytes 5G"},
      {{"bench", "allreduce", "--max-bytes", "1K"}, "--min-bytes"},
      {{"bench", "allreduce", "--factor", "1"}, "--factor"},
  };
  for (const Row& row : rows) {
    const Outcome outcome = convoy(row.command);
    EXPECT_EQ(outcome.exit_code, 64) << fmt::format("convoy {}: ", row.command[0]) << outcome.all();
    EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, row.says), 1) << row.says << ":\n" << outcome.all();
    EXPECT_EQ(outcome.out, "") << outcome.all();
  }
  EXPECT_EQ(convoy({}).exit_code, 64);

  // Under mpirun too, where one rank speaks for all.
  for (const Arguments& command :
       {Arguments{"train", "--fast"}, Arguments{"eval", "--fast"},
        Arguments{"bench", "step", "--fast"}, Arguments{"bench", "allreduce", "--fast"}}) {
    const Outcome outcome = run(folder(), command, 3);
    EXPECT_EQ(outcome.exit_code, 64) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "--fast"), 1) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
  }
}

TEST(CommandLine, AModelThatDoesNotExistIsNotFound) {
  for (const Arguments& command : {Arguments{"model", "show", "resnet51"},
                                   Arguments{"bench", "step", "--model", "resnet51"}}) {
    const Outcome outcome = convoy(command);
    EXPECT_EQ(outcome.exit_code, 78) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "\"resnet51\"; the nearest is \"resnet50\""), 1)
        << outcome.all();
  }
}

// One exit code for a file or folder that a command names, whatever it should hold.
TEST(CommandLine, WhatIsNotThereIsAnErrorOfInputAndOutput) {
  const std::string none = folder().path("nowhere"), out = folder().path("not_made");
  const std::string job = folder().write("synthetic.txtpb", R"(
    data { format: SYNTHETIC synthetic_samples: 8 classes: 4 train { size: 16 } }
    model { name: "cifar_resnet20" } workers: 1 batch_per_worker: 4 epochs: 1)");
  const Arguments train = {"train", "--job", job, "--out", out};
  const auto trained = [&](const Arguments& more) {
    Arguments all = train;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const Arguments commands[] = {
      {"train", "--job", none, "--out", out},
      trained({"--data", none, "--set", "data.format=AUTO"}),
      trained({"--data", none, "--set", "data.format=CIFAR"}),
      trained({"--set", "model.name=" + none + ".txtpb"}),
      trained({"--set", "transfer.init_from=" + none}),
      trained({"--resume", none}),
      {"eval", "--checkpoint", none},
      {"predict", "--checkpoint", none, job},
      {"verify", none},
      {"report", none},
      {"report", none, "--plot", "errors", "--out", out + ".svg"},
      {"report", none, "--plot", "gradients", "--out", out + ".svg"},
      {"import", "--model", "cifar_resnet20", "--weights", none, "--out", out + "-import"},
      {"import", "--model", none + ".txtpb", "--weights", job, "--out", out + "-import"},
      {"export", none, out + ".onnx"},
      {"pack", none, out + "-shards"},
      {"model", "show", none + ".txtpb"},
      {"data", "show", "--job", none, "--step", "0", "--out", out + ".png"},
      {"bench", "loader", "--data", none},
  };
  for (const Arguments& command : commands) {
    const Outcome outcome = convoy(command);
    SCOPED_TRACE(testing::PrintToString(command));
    EXPECT_EQ(outcome.exit_code, 74) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, none), 1) << outcome.all();
    EXPECT_EQ(outcome.out, "");
  }
}

TEST(CommandLine, TheVersionIsALine) {
  const Outcome outcome = convoy({"--version"});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(lines_of(outcome.out).size(), 1u);
  EXPECT_TRUE(outcome.out.starts_with("convoy 0."));
}

TEST(CommandLine, VerifyOfNothingIsAnError) {
  const std::string dir = folder().path("empty");
  std::filesystem::create_directories(dir);
  const Outcome outcome = convoy({"verify", dir, "--json"});
  EXPECT_EQ(outcome.exit_code, 65) << outcome.all();
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(lines_with(outcome.err, dir), 1) << outcome.all();
}

// The list and `model show` agree with each other; what is published,
// tests/trainer/models/models_test.cpp knows.
TEST(Models, ListSaysWhatShowSays) {
  const Outcome list = convoy({"model", "list"});
  EXPECT_EQ(list.exit_code, 0);
  const json models = object_of({"model", "list", "--json"})["models"];
  EXPECT_GT(models.size(), 60u);
  const auto rows = lines_of(list.out);
  for (const json& model : models) {
    const auto name = model["model"].get<std::string>();
    const auto is_row = [&](const std::string& line) {
      return line.starts_with(fmt::format("  {} ", name));
    };
    EXPECT_EQ(std::ranges::count_if(rows, is_row), 1) << name;
    EXPECT_GE(lines_with(list.out, model["family"].get<std::string>()), 1) << name;
    for (const char* key : {"parameters", "training_parameters", "macs"})
      EXPECT_GT(model[key].get<int64_t>(), 0) << name;
  }
  for (const char* name : {"resnet50", "cifar_densenet40_k12", "inception_v1"}) {
    const json object = object_of({"model", "show", name, "--format", "json"});
    const json row =
        *std::ranges::find_if(models, [&](const json& m) { return m["model"] == name; });
    EXPECT_EQ(object["parameters"], row["training_parameters"]) << name;
    int64_t parameters = 0, macs = 0;
    for (const json& layer : object["layers"]) {
      parameters += layer["parameters"].get<int64_t>();
      macs += layer["macs"].get<int64_t>();
    }
    EXPECT_EQ(parameters, object["parameters"]) << name;
    EXPECT_EQ(macs, object["macs"]) << name;
  }
  const Outcome small = convoy({"model", "show", "vgg16", "--input", "3x20x224"});
  EXPECT_EQ(small.exit_code, 78);
  EXPECT_EQ(
      lines_with(small.err, "20 x 224 pixels is too small; the smallest that works is 32 x 32"), 1)
      << small.all();
}

TEST(Models, ShowFollowsItsOptions) {
  const auto show = [](Arguments more) {
    Arguments arguments = {"model", "show", "resnet50", "--format", "json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return object_of(arguments);
  };
  const json usual = show({});
  EXPECT_EQ(show({"--classes", "10"})["parameters"], 25557032 - 990 * 2049);
  EXPECT_EQ(show({"--input", "1x224x224"})["parameters"], 25557032 - 2 * 64 * 7 * 7);
  EXPECT_EQ(show({"--input", "3x64x64"})["parameters"], 25557032);
  EXPECT_LT(show({"--input", "3x64x64"})["macs"], usual["macs"]);
  // v1 has its strides one convolution earlier: about 3.8 billion instead of 4.1.
  EXPECT_EQ(show({"--stride-in-first-conv"})["parameters"], 25557032);
  EXPECT_EQ(show({"--stride-in-first-conv"})["macs"], 3857973248);
  EXPECT_LT(show({"--shortcut", "a"})["parameters"], 25557032);
  EXPECT_GT(show({"--shortcut", "c"})["parameters"], 25557032);

  const Outcome table = convoy({"model", "show", "resnet50"});
  EXPECT_EQ(table.exit_code, 0);
  for (const char* words : {"25,557,032", "4,089,184,256", "layer3.5.conv2", "naive",
                            "floor((224+2*3-7)/2) + 1 = 112", "427/32", "--wide"})
    EXPECT_GE(lines_with(table.out, words), 1) << words << ":\n" << table.out;
  for (const std::string& line : lines_of(table.out)) EXPECT_LE(line.size(), 120u) << line;
  EXPECT_EQ(lines_with(table.out, "64*3*7*7"), 0) << table.out;
  const Outcome wide = convoy({"model", "show", "resnet50", "--wide"});
  for (const char* words : {"64*3*7*7", "2*64", "1000*2048 + 1000"})
    EXPECT_GE(lines_with(wide.out, words), 1) << words << ":\n" << wide.out;

  const json conv1 = usual["layers"][0];
  EXPECT_EQ(conv1["window"]["kernel"], 7);
  EXPECT_EQ(conv1["window"]["rounded"], "down");
  EXPECT_EQ(conv1["receptive_field"]["jump"], 2);
  EXPECT_EQ(conv1["formula"], "64*3*7*7");
  EXPECT_EQ(conv1["inputs"], json::array({"input"}));
  EXPECT_EQ(object_of({"model", "show", "resnet50", "--json"}), usual);
}

TEST(Models, PicturesAreFiles) {
  const std::string path = folder().path("resnet18.svg");
  const Outcome outcome = convoy({"model", "show", "resnet18", "--format", "svg", "--out", path});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(outcome.out, "");
  const std::string svg = read_file(path);
  EXPECT_TRUE(svg.starts_with("<?xml") && svg.ends_with("</svg>\n"));
  EXPECT_EQ(convoy({"model", "show", "resnet18", "--format", "svg"}).out, svg);
  EXPECT_LT(convoy({"model", "show", "resnet18", "--format", "svg", "--fold"}).out.size(),
            svg.size());
  EXPECT_TRUE(convoy({"model", "show", "resnet18", "--format", "dot"}).out.starts_with("digraph"));
  const Outcome nowhere =
      convoy({"model", "show", "resnet18", "--out", folder().path("none/x.txt")});
  EXPECT_EQ(nowhere.exit_code, 74) << nowhere.all();

  // Drawn anew, it replaces the old one, whole; what people change by hand is not replaced unasked.
  folder().write("resnet18.svg", "old");
  EXPECT_EQ(convoy({"model", "show", "resnet18", "--format", "svg", "--out", path}).exit_code, 0);
  EXPECT_EQ(read_file(path), svg);
  const Arguments as_text = {"model",
                             "show",
                             "resnet18",
                             "--format",
                             "txtpb",
                             "--out",
                             folder().write("mine.txtpb", "mine")};
  const Outcome refused = convoy(as_text);
  EXPECT_EQ(refused.exit_code, 64) << refused.all();
  EXPECT_EQ(lines_with(refused.err, "mine.txtpb: is there already"), 1) << refused.all();
  EXPECT_EQ(read_file(folder().path("mine.txtpb")), "mine");
  Arguments forced = as_text;
  forced.emplace_back("--force");
  EXPECT_EQ(convoy(forced).exit_code, 0);
  EXPECT_EQ(read_file(folder().path("mine.txtpb")),
            convoy({"model", "show", "resnet18", "--format", "txtpb"}).out);
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));

  // A network of the user's own, and one that is none.
  folder().write("own.txtpb", convoy({"model", "show", "resnet18", "--format", "txtpb"}).out);
  EXPECT_EQ(convoy({"model", "show", folder().path("own.txtpb"), "--format", "svg"}).out, svg);
  folder().write("bad.txtpb",
                 "input_channels: 3 input_height: 8 input_width: 8 "
                 "node { name: 'a' input: 'b' relu {} }");
  for (const char* format : {"table", "svg", "dot", "json"}) {
    const Outcome bad = convoy({"model", "show", folder().path("bad.txtpb"), "--format", format});
    EXPECT_EQ(bad.exit_code, 78) << bad.all();
    EXPECT_EQ(lines_with(bad.err, "input \"b\" is neither"), 1) << bad.all();
    EXPECT_EQ(bad.out, "");
  }
}

// What scripts read, and a profile: every node once in each direction with what it computes and
// moves.
TEST(Bench, JsonAndProfile) {
  const json object =
      object_of({"bench", "step", "--model", "cifar_resnet20", "--batch", "4", "--workers", "2",
                 "--seconds", "0.1", "--warmup", "1", "--profile", "--json"});
  for (const char* key : {"images_per_second", "gflops", "fraction_of_peak", "peak_memory_bytes"}) {
    ASSERT_TRUE(object.contains(key)) << object.dump(2);
    EXPECT_GT(object[key].get<double>(), 0) << key;
  }
  ASSERT_TRUE(object.contains("profile")) << object.dump(2);
  const json& profile = object["profile"];
  EXPECT_EQ(profile["samples"], 2);
  double flops = 0;
  std::set<std::string> seen;
  for (const json& node : profile["nodes"]) {
    const std::string name =
        node["name"].get<std::string>() + " " + node["pass"].get<std::string>();
    EXPECT_TRUE(seen.insert(name).second) << name;
    EXPECT_GT(node["seconds"].get<double>(), 0) << name;
    EXPECT_GT(node["bytes"].get<double>(), 0) << name;
    EXPECT_GT(node["limit_seconds"].get<double>(), 0) << name;
    flops += node["flops"].get<double>();
  }
  EXPECT_TRUE(seen.contains("conv1 forward"));
  EXPECT_TRUE(seen.contains("layer3.2.bn2 backward"));
  // Two images of one lane; the first layer needs no gradient of its input.
  const double macs = object_of({"model", "show", "cifar_resnet20", "--format", "json"})["macs"];
  EXPECT_EQ(flops, 2 * (6 * macs - 2 * 3 * 16 * 9 * 32 * 32));
  // Nodes and what is between them take no longer than the step; clocks are read apart.
  for (const auto& [name, value] : profile["other_seconds"].items())
    EXPECT_GE(value.get<double>(), -1e-4) << name;

  const Outcome table = convoy({"bench", "step", "--model", "cifar_resnet20", "--batch", "4",
                                "--seconds", "0.1", "--profile"});
  for (const char* words : {"layer3.2.bn2", "of limit", "all nodes", "weights packed", "update"})
    EXPECT_GE(lines_with(table.out, words), 1) << words << ":\n" << table.out;
}

// Both transforms, any number of threads; the parts of a thread's time are all of it.
TEST(Bench, LoaderJsonAndProfile) {
  const TempFolder images;
  make_image_folder(images, 3, 8, 5);
  const auto bench = [&](const Arguments& more) {
    Arguments command = {"bench",     "loader",
                         "--data",    images.path(),
                         "--set",     "data.train.size=32",
                         "--set",     "data.eval.resize=40",
                         "--seconds", "0.05",
                         "--json"};
    command.insert(command.end(), more.begin(), more.end());
    return object_of(command);
  };
  for (const char* threads : {"0", "1", "3"}) {
    const json object = bench({"--data-threads", threads, "--rounds", "2", "--profile"});
    for (const char* key : {"images_per_second", "bytes_per_second", "fraction_of_limit",
                            "ring_bytes", "peak_memory_bytes", "consumer_waiting"}) {
      ASSERT_TRUE(object.contains(key)) << object.dump(2);
      EXPECT_GE(object[key].get<double>(), 0) << key;
    }
    EXPECT_EQ(std::to_string(object["threads"].get<int>()), threads);
    EXPECT_EQ(object["transform"], "training");
    EXPECT_EQ(object["dataset_images"], 24);
    EXPECT_EQ(object["image"], "32x32x3");
    EXPECT_EQ(object["rounds"].size(), 2u);
    EXPECT_EQ(object["ring_bytes"], object["ring_batches"].get<int>() * 32 * 32 * 32 * 3);
    EXPECT_GE(object["batch_seconds"]["p99"].get<double>(),
              object["batch_seconds"]["median"].get<double>());
    EXPECT_GT(object["limit"]["images_per_second"].get<double>(), 0);
    EXPECT_GT(object["fraction_of_limit_by_cpu_time"].get<double>(), 0);
    const json& profile = object["profile_of_an_image"];
    for (const char* clock : {"seconds", "cpu_seconds"}) {
      double sum = 0;
      for (const char* part : {"read", "decode", "resize", "other", "waiting"})
        sum += profile[part][clock].get<double>();
      EXPECT_NEAR(sum, profile["all"][clock].get<double>(), 1e-12) << clock;
      EXPECT_LE(profile["huffman"][clock].get<double>() + profile["pixels"][clock].get<double>(),
                profile["decode"][clock].get<double>());
      for (const char* part :
           {"read", "decode", "huffman", "pixels", "resize", "entropy_decoding_alone"})
        EXPECT_GT(profile[part][clock].get<double>(), 0) << part << " " << clock;
    }
  }
  const json eval = bench({"--eval", "--no-limit", "--data-threads", "1", "--rounds", "1"});
  EXPECT_EQ(eval["transform"], "evaluation");
  EXPECT_EQ(eval["dataset_images"], 15);
  EXPECT_GT(eval["images_per_second"].get<double>(), 0);
  EXPECT_FALSE(eval.contains("fraction_of_limit"));
  EXPECT_FALSE(eval.contains("profile_of_an_image"));

  const Outcome table = convoy({"bench", "loader", "--data", images.path(), "--set",
                                "data.train.size=32", "--seconds", "0.05", "--profile"});
  for (const char* words : {"images/s", "ring", "entropy decoding alone", "waiting for room"})
    EXPECT_GE(lines_with(table.out, words), 1) << words << ":\n" << table.all();
  // Nothing to be compared with where no image is a JPEG.
  const Outcome raw = convoy({"bench", "loader", "--data", make_idx(folder(), "bench_loader", {}),
                              "--set", "data.train.crop=CENTER", "--set", "data.train.size=0",
                              "--set", "data.eval.resize=0", "--seconds", "0.01", "--json"});
  EXPECT_EQ(raw.exit_code, 0) << raw.all();
  EXPECT_FALSE(json::parse(raw.out, nullptr, false).contains("fraction_of_limit")) << raw.out;
}

TEST(Bench, WaitingForSumsIsAShareOfTheStep) {
  const Outcome outcome = run(folder(),
                              {"bench", "step", "--model", "cifar_resnet20", "--batch", "4",
                               "--seconds", "0.1", "--warmup", "1", "--no-peak", "--json"},
                              2);
  const json object = json::parse(outcome.out, nullptr, false);
  ASSERT_TRUE(object.is_object()) << outcome.all();
  for (const char* key : {"exposed_communication", "rank_imbalance"}) {
    ASSERT_TRUE(object.contains(key)) << object.dump(2);
    EXPECT_GE(object[key].get<double>(), 0) << key;
  }
  EXPECT_GT(object["exposed_communication"].get<double>(), 0);
  EXPECT_LT(object["exposed_communication"].get<double>() + object["rank_imbalance"].get<double>(),
            1);
}

TEST(Bench, AllReduceIsRightOnEveryWay) {
  const json object =
      json::parse(run(folder(),
                      {"bench", "allreduce", "--min-bytes", "4", "--max-bytes", "256K", "--factor",
                       "256", "--iterations", "1", "--repetitions", "1", "--json"},
                      2)
                      .out);
  EXPECT_EQ(object["ranks"], 2);
  EXPECT_GT(object["memcpy_gb_per_second"].get<double>(), 0);
  std::map<std::string, std::vector<size_t>> bytes;
  for (const json& row : object["rows"]) {
    const std::string way = row["way"];
    bytes[way].push_back(row["bytes"].get<size_t>());
    EXPECT_EQ(row["wrong"], 0) << row.dump(2);
    EXPECT_GT(row["time_us"]["median"].get<double>(), 0) << row.dump(2);
    // Two ranks: each sends half of the buffer twice.
    EXPECT_EQ(row["busbw_gb_per_second"], row["algbw_gb_per_second"]) << row.dump(2);
  }
  for (const char* way :
       {"exact shared", "exact all-to-all", "exact halving", "fast", "MPI_Allreduce"})
    EXPECT_EQ(bytes[way], (std::vector<size_t>{4, 1024, 262144})) << object.dump(2);
}

TEST(Bench, AllReduceOfOneRankIsItself) {
  const json object =
      object_of({"bench", "allreduce", "--max-bytes", "64K", "--repetitions", "1", "--json"});
  ASSERT_GE(object["rows"].size(), 3u) << object.dump(2);
  for (const json& row : object["rows"]) EXPECT_EQ(row["wrong"], 0) << row.dump(2);
}

TEST(Bench, WhatIsFrozenHasNoGradient) {
  const Arguments frozen = {
      "bench",    "step", "--model",  "cifar_resnet20", "--batch",  "2",   "--seconds", "0.1",
      "--warmup", "1",    "--freeze", "conv1",          "--freeze", "bn1", "--freeze",  "layer*"};
  Arguments more = frozen;
  more.insert(more.end(), {"--profile", "--json"});
  const json object = object_of(more);
  std::set<std::string> backward;
  for (const json& node : object["profile"]["nodes"])
    if (node["pass"] != "forward") backward.insert(node["name"]);
  EXPECT_EQ(backward, std::set<std::string>{"fc"}) << object.dump(2);
  more = frozen;
  more.emplace_back("--no-peak");
  const Outcome outcome = convoy(more);
  EXPECT_EQ(lines_with(outcome.out, "650 of 269722 parameters are trained"), 1) << outcome.all();
}

TEST(Training, DryRunPrintsThePlanAndWritesNothing) {
  const TempFolder own;
  const std::string job = own.write("job.txtpb", R"(
    data { format: IDX train { crop: CENTER size: 12 } eval { resize: 0 } }
    model { name: "cifar_resnet20" }
    workers: 2 batch_per_worker: 4 epochs: 3
  )");
  const std::string out = own.path("run");
  for (const int ranks : {kAlone, 2}) {
    const Outcome outcome =
        run(own,
            {"train", "--job", job, "--data", make_idx(own, "data", {}), "--out", out, "--dry-run"},
            ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.out, "89 (3 epochs x 235 images / 8 images a step"), 1)
        << outcome.all();
    EXPECT_EQ(lines_with(outcome.out, "learning_rate: 0.1"), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.out, "# loader"), 1) << outcome.all();
    EXPECT_FALSE(std::filesystem::exists(out));
  }
}

// When how much is trained, and what a step takes then.
TEST(Training, DryRunPrintsWhatIsFrozen) {
  const TempFolder own;
  const std::string job = own.write("job.txtpb", R"(
    data { format: IDX train { crop: CENTER size: 12 } eval { resize: 0 } }
    model { name: "cifar_resnet20" }
    workers: 2 batch_per_worker: 4 epochs: 3
    transfer { train_last_blocks: 1 unfreeze { epoch: 2 pattern: "*" } }
  )");
  const Outcome outcome = run(own, {"train", "--job", job, "--data", make_idx(own, "data", {}),
                                    "--out", own.path("run"), "--dry-run"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.out,
                       "from step 0 (epoch 0) on 260 of 269044 parameters are trained, "
                       "0.1 %"),
            1)
      << outcome.all();
  EXPECT_EQ(lines_with(outcome.out, "from step 59 (epoch 2) on 269044 parameters, 100.0 %"), 1)
      << outcome.all();
}

}  // namespace
}  // namespace convoy::test
