// Writes the first inputs of every fuzzer: DIR/<parser>/<name>, made by our own encoders. From
// these and from what fuzzing found, `run.sh --merge` makes the corpus that is committed.
#include <algorithm>
#include <cstdio>

#include "data_loader/coefficient_file.h"
#include "data_loader/tar.h"
#include "ops/core/error.h"
#include "tests/fuzz/tiny_checkpoint.h"
#include "tests/support/tiny_images.h"
#include "trainer/job/job.h"
#include "trainer/records/ledger.h"
#include "trainer/records/lives.h"

namespace convoy::fuzz {
namespace {

namespace fs = std::filesystem;
using test::encode_jpeg;
using test::encode_png;
using test::make_image;

std::string counted(const std::string& piece) {
  return std::string{static_cast<char>(piece.size() & 0xff), static_cast<char>(piece.size() >> 8)} +
         piece;
}

// Lines as records of an index, which end in zero bytes.
std::string records(std::string lines) {
  std::replace(lines.begin(), lines.end(), '\n', '\0');
  return lines;
}

std::string safetensors(const std::string& header, const std::string& data) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return length + header + data;
}

std::string manifest() {
  const test::TempFolder folder;
  const std::string path = save_checkpoint(folder.path(), TinyCheckpoint().state());
  const std::string text = test::read_file(path + "/manifest.txtpb");
  return text.substr(0, text.rfind(kManifestTrailer));
}

// The file of two lives: the second is under way.
std::string lives() {
  const test::TempFolder folder;
  for (int life = 0; life < 2; ++life) {
    trainer::Lives file(folder.path(), "host", 2, Clock::now());
    file.begin(static_cast<uint64_t>(3 * life), 9, 4, "job");
    for (int step = 0; step < 3; ++step) file.step_done(0);
    file.enter(trainer::Phase::kSaving);
    file.progress();
    if (life == 0) file.end(75, "a signal");
  }
  return test::read_file(folder.path("lives.jsonl"));
}

void images(const auto& write) {
  write("jpeg/grey", encode_jpeg(make_image(9, 7, 1, 1)));
  write("jpeg/colour", encode_jpeg(make_image(33, 18, 3, 2)));
  write("jpeg/444", encode_jpeg(make_image(16, 17, 3, 3), {.chroma_x = 1, .chroma_y = 1}));
  for (const int chroma_x : {1, 2})
    for (const int chroma_y : {1, 2})
      for (const bool optimised : {false, true})
        write(fmt::format("baseline/{}x{}{}", chroma_x, chroma_y, optimised ? "-optimised" : ""),
              encode_jpeg(make_image(37, 21, 3, 9), {.chroma_x = chroma_x,
                                                     .chroma_y = chroma_y,
                                                     .optimised = optimised,
                                                     .restart_interval = optimised ? 2 : 0}));
  data::CoefficientEncoder encoder(1u << 20);
  for (const int channels : {1, 3}) {
    const std::string jpeg = encode_jpeg(make_image(37, 21, channels, 11));
    std::vector<uint8_t> file;
    encoder.encode({reinterpret_cast<const uint8_t*>(jpeg.data()), jpeg.size()}, "x", file);
    write(fmt::format("coefficients/{}", channels), std::string(file.begin(), file.end()));
    write(fmt::format("coefficients/jpeg-{}", channels), jpeg);
  }
  write("baseline/grey", encode_jpeg(make_image(19, 17, 1, 10), {.quality = 30}));
  write("jpeg/progressive", encode_jpeg(make_image(20, 12, 3, 4), {.progressive = true}));
  write("jpeg/cmyk", encode_jpeg(make_image(8, 8, 4, 5)));
  write("jpeg/ycck", encode_jpeg(make_image(8, 9, 4, 6), {.ycck = true}));
  write("jpeg/arithmetic", encode_jpeg(make_image(12, 10, 3, 7), {.arithmetic = true}));
  for (const int bits : {8, 16})
    for (const bool interlaced : {false, true})
      for (const int channels : {1, 3, 4})
        write(fmt::format("png/{}-{}-{}", channels, bits, interlaced ? "adam7" : "plain"),
              encode_png(make_image(7, 5, channels, 8), {bits, interlaced}));
}

void exif(const auto& write) {
  const std::string big(
      "MM\0*\0\0\0\x08\0\x02\x01\x03\0\x03\0\0\0\x01\0\x06\0\0"
      "\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
      38);
  write("exif/big", big);
  write("exif/little", std::string("II*\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x03\0\0\0", 22));
  std::string nonsense = big;
  nonsense[31] = 9;
  write("exif/nonsense", nonsense);
  write("exif/file", std::string("\xff\xd8\xff\xe1\0\x2e"
                                 "Exif\0\0",
                                 12) +
                         big +
                         std::string("\xff\xc2\0\x0b\x08\0\x10\0\x20\x01\x01\x11\0\xff\xda", 15));
}

void datasets(const auto& write) {
  const std::string labels = test::encode_idx_labels({1, 0});
  const std::string pixels = test::encode_idx_images(2, 2, 3, std::vector<uint8_t>(12, 77));
  write("idx/plain", counted(labels) + pixels);
  write("idx/zipped", counted(test::gzip(labels)) + test::gzip(pixels));
  write("idx/members",
        counted(labels) + test::gzip(pixels.substr(0, 20)) + test::gzip(pixels.substr(20)));
  std::string names;
  for (int i = 0; i < 10; ++i) names += fmt::format("c{}\n", i);
  write("cifar/ten", counted(names) + std::string(3073, '\x03'));
  for (int i = 10; i < 100; ++i) names += fmt::format("c{}\n", i);
  write("cifar/hundred",
        counted(names + (names.size() % 2 == 0 ? "\n" : "")) + std::string(3074, '\x05'));
  write("index/two",
        records("convoy image index 2\n4000000000000000000 0 2\n4000000000000000000 1 a\n1 1.jpg\n"
                "4000000000000000000 1 b\n2 2.jpg\n"));
  write("index/outside",
        records("convoy image index 2\n4000000000000000000 0 1\n4000000000000000000 1 a\n"
                "9 ../../x.jpg\n"));
  const auto member = [](const std::string& name, const std::string& bytes) {
    return data::tar_header(name, bytes.size()) + bytes +
           std::string(data::tar_padding(bytes.size()), '\0');
  };
  const std::string end(data::kTarEnd, '\0');
  const std::string one = member("c/1.jpg", "image") + member("c/1.cls", "1");
  write("tar/one", one + end);
  write("tar/long", member(std::string(120, 'd') + "/" + std::string(180, 'n') + ".png", "x") +
                        member(std::string(120, 'd') + "/" + std::string(180, 'n') + ".cls", "0") +
                        one + end);
  write("tar_index/two",
        records(fmt::format("convoy shard index 1\n4096 2 1 1 {}\n512 5 1 0badcafe c/1.jpg\n"
                            "2048 600 0 - 2%2Ex.PNG\nleft out\n",
                            std::string(64, 'a'))));
  write("statistics/two", "2\n204\n6\n8\n10\n12\n");
}

void files(const auto& write) {
  write("safetensors/two",
        safetensors("{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2],"
                    "\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[],"
                    "\"data_offsets\":[8,9]}}   ",
                    std::string(9, 'x')));
  write("safetensors/empty", safetensors("{}", ""));
  write("manifest/whole", manifest());
  trainer::LedgerRecord record{.life = 2, .first = 3, .end = 5, .terms = {1000, 64, 1, "d"}};
  record.numbers = {7, ~uint64_t{0}};
  record.substituted = {{200, 5, 6, "damaged"}};
  record.skipped = {{4, 5, "not finite"}};
  const std::string line = to_line(record);
  write("ledger/line", line + "\n");
  write("ledger/record", line.substr(0, line.rfind(",\"check\"")) + "}");
  write("ledger/unrecorded",
        "{\"ledger\":1,\"life\":1,\"first\":0,\"end\":9,\"samples\":10,\"batch\":2,\"seed\":1,"
        "\"dataset\":\"d\",\"unrecorded\":\"why\"}");
  write("lives/two", lives());
  write("plans/choice", "62:2=8,13=1");
  write("plans/lines",
        "forward x [8, 64, 56, 56] w [64, 3, 3, 64] = 62:2=8,13=1\na = 0\nb = none\n");
  write("metrics/lines",
        "{\"step\":50,\"epoch\":0.5,\"train_loss\":1.25}\n{\"step\":101}\nrubbish\n{\"step\":60");
}

void texts(const auto& write) {
  trainer::Job job;
  job.model.name = "resnet50";
  job.data.path = "d";
  job.schedule.milestones = {30, 60.5};
  write("job/all", to_text(job));
  write("job/short",
        "model { name: 'a' 'b' }, data < path: \"d\" mean: [0.5] std: .5f >; seed: 0x1f # c\n");
  write("job/marked",
        "\xEF\xBB\xBF"
        "model { name: \"m\" }\r\ndata { path: \"d\" }\r\n");
  write("set/some", "seed=3\nschedule.milestones=1,2.5\ndata.train.flip=no\noptimizer.momentun=1");
  write("graph/all",
        "name: \"g\" input_channels: 3 input_height: 32 input_width: 32\n"
        "node { name: \"c\" input: \"input\" conv2d { out_channels: 8 kernel: 3 padding: 1 } }\n"
        "node { name: \"b\" input: \"c\" batch_norm { epsilon: 1e-5 momentum: 0.1 } }\n"
        "node { name: \"r\" input: \"b\" relu {} }\n"
        "node { name: \"s\" input: \"c\" input: \"r\" add {} }\n"
        "node { name: \"m\" input: \"s\" max_pool { kernel: 2 stride: 2 ceil_mode: true } }\n"
        "node { name: \"a\" input: \"m\" avg_pool { kernel: 2 stride: 2 } }\n"
        "node { name: \"k\" input: \"a\" input: \"a\" concat {} }\n"
        "node { name: \"u\" input: \"k\" subsample { stride: 2 out_channels: 32 } }\n"
        "node { name: \"d\" input: \"u\" dropout { rate: 0.5 } }\n"
        "node { name: \"p\" input: \"d\" global_avg_pool {} }\n"
        "node { name: \"fc\" input: \"p\" linear { out_features: 10 bias: true } }\n");
  write("graph/gates",
        "name: \"g\" input_channels: 3 input_height: 32 input_width: 32\n"
        "node { name: \"c\" input: \"input\" conv2d { out_channels: 8 bias: true weight_std: 0.01 "
        "bias_init: 0.2 } }\n"
        "node { name: \"l\" input: \"c\" local_response_norm { size: 5 alpha: 5e-4 k: 2 } }\n"
        "node { name: \"s\" input: \"l\" sigmoid { complement: true } }\n"
        "node { name: \"m\" input: \"s\" input: \"c\" multiply {} }\n"
        "node { name: \"a\" input: \"m\" adaptive_avg_pool { height: 4 width: 4 } }\n"
        "node { name: \"x\" input: \"a\" linear { out_features: 10 } }\n"
        "node { name: \"fc\" input: \"a\" linear { out_features: 10 bias_init: 0 } }\n"
        "auxiliary { node: \"x\" weight: 0.3 }\n");
}

}  // namespace
}  // namespace convoy::fuzz

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: convoy_fuzz_seeds DIR\n", stderr);
    return 64;
  }
  const auto write = [&](const std::string& name, const std::string& bytes) {
    const std::filesystem::path path = std::filesystem::path(argv[1]) / name;
    std::filesystem::create_directories(path.parent_path());
    convoy::test::write_file(path.string(), bytes);
  };
  convoy::fuzz::images(write);
  convoy::fuzz::exif(write);
  convoy::fuzz::datasets(write);
  convoy::fuzz::files(write);
  convoy::fuzz::texts(write);
  return 0;
}
