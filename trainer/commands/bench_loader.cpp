// convoy bench loader: images per second of the data loader alone, against libjpeg-turbo's entropy
// decoding, and where a thread's time goes.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "data_loader/eval_loader.h"
#include "data_loader/jpeg_limit.h"
#include "data_loader/loader.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "trainer/base/percentile.h"
#include "trainer/base/text.h"
#include "trainer/commands/commands.h"
#include "trainer/engine/setup.h"
#include "trainer/job/job.h"
#include "trainer/job/limits.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;

struct LoaderBench {
  std::string job_file;
  std::vector<std::string> sets;
  int threads = -1, rounds = 3;
  double seconds = 5;
  bool eval = false, no_limit = false, profile = false, json = false;
};

// Images of a round that the limit is measured on.
constexpr size_t kLimitImages = 500;
// A warm-up of a whole epoch would be too long for a dataset of this many seconds.
constexpr double kMaxWarmUpSeconds = 30;

// Batches without end, one after the other.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual const data::Batch& acquire() = 0;
  virtual void release(const data::Batch& batch) = 0;
  virtual data::LoaderStats stats() const = 0;
  virtual int slots() const = 0;
  virtual uint64_t ring_bytes() const = 0;
};

class TrainingStream final : public Stream {
 public:
  TrainingStream(const data::Dataset& dataset, const Job& job, const LoaderBench& b)
      : loader_(dataset, config_of(job, b)) {}
  const data::Batch& acquire() override { return loader_.acquire(next_++, 0); }
  void release(const data::Batch& batch) override { loader_.release(batch); }
  data::LoaderStats stats() const override { return loader_.stats(); }
  int slots() const override { return loader_.slots(); }
  uint64_t ring_bytes() const override { return loader_.ring_bytes(); }

 private:
  // As in training, of one worker, for as long as one likes.
  static data::LoaderConfig config_of(const Job& job, const LoaderBench& b) {
    data::LoaderConfig config = loader_config(job);
    config.workers = 1;
    config.end_step = uint64_t{1} << 40;
    config.threads = b.threads;
    config.profile = b.profile;
    return config;
  }

  data::Loader loader_;
  uint64_t next_ = 0;
};

class EvaluationStream final : public Stream {
 public:
  EvaluationStream(const data::Dataset& dataset, const Job& job, const LoaderBench& b)
      : config_(eval_loader_config(job)), dataset_(dataset) {
    config_.threads = b.threads;
    config_.profile = b.profile;
    const uint64_t slices = data::EvalLoader::slices(dataset.size(), config_.batch);
    for (uint64_t n = 0; n < kBatchesOfALoader; ++n) config_.slices.push_back(n % slices);
    loader_.emplace(dataset_, config_);
  }
  const data::Batch& acquire() override {
    if (next_ == config_.slices.size()) {
      before_ += loader_->stats();
      loader_.emplace(dataset_, config_);
      next_ = 0;
    }
    return loader_->acquire(next_++);
  }
  void release(const data::Batch& batch) override { loader_->release(batch); }
  data::LoaderStats stats() const override {
    data::LoaderStats all = before_;
    return all += loader_->stats();
  }
  int slots() const override { return loader_->slots(); }
  uint64_t ring_bytes() const override { return loader_->ring_bytes(); }

 private:
  static constexpr uint64_t kBatchesOfALoader = 1 << 16;

  data::EvalLoaderConfig config_;
  const data::Dataset& dataset_;
  data::LoaderStats before_;  // of loaders that have come to their end
  std::optional<data::EvalLoader> loader_;
  uint64_t next_ = 0;
};

struct CpuSeconds {
  double user = 0, system = 0;
};
CpuSeconds cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](timeval t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return {seconds(usage.ru_utime), seconds(usage.ru_stime)};
}

uint64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

struct Round {
  double seconds = 0;
  uint64_t images = 0;
  std::vector<double> batch_seconds;  // from asking for a batch to having it
  data::LoaderStats stats;
  CpuSeconds cpu;
  std::optional<data::Spent> limit;  // one thread's for an image
  std::vector<uint64_t> sample_ids;  // of the first ones

  double rate() const { return static_cast<double>(images) / seconds; }
};

// Takes batches for so long, and at least three. What lay ready before is not counted.
Round run_round(Stream& stream, double seconds) {
  for (int i = 0; i < stream.slots(); ++i) stream.release(stream.acquire());
  Round round;
  const data::LoaderStats stats = stream.stats();
  const CpuSeconds cpu = cpu_seconds();
  const Clock::time_point start = Clock::now();
  do {
    const Clock::time_point asked = Clock::now();
    const data::Batch& batch = stream.acquire();
    round.batch_seconds.push_back(seconds_since(asked));
    for (size_t i = 0; i < batch.labels.size(); ++i) {
      if (batch.labels[i] < 0) continue;  // padding
      ++round.images;
      const bool replaced = batch.substitutes[i] != data::kNoSubstitute;
      if (round.sample_ids.size() < kLimitImages)
        round.sample_ids.push_back(replaced ? batch.substitutes[i] : batch.sample_ids[i]);
    }
    stream.release(batch);
    round.seconds = seconds_since(start);
  } while (round.seconds < seconds || round.batch_seconds.size() < 3);
  const CpuSeconds after = cpu_seconds();
  round.cpu = {after.user - cpu.user, after.system - cpu.system};
  round.stats = stream.stats();
  round.stats -= stats;
  return round;
}

// One epoch, so that files are in the page cache and buffers have grown.
void warm_up(Stream& stream, uint64_t images) {
  const Clock::time_point start = Clock::now();
  for (uint64_t seen = 0; seen < images && seconds_since(start) < kMaxWarmUpSeconds;) {
    const data::Batch& batch = stream.acquire();
    seen += static_cast<uint64_t>(batch.size);
    stream.release(batch);
  }
}

// What one of so many threads spends on libjpeg-turbo's entropy decoding of an image, mean; reading
// the files is not counted. nullopt: none of them is a JPEG.
std::optional<data::Spent> measure_limit(const data::Dataset& dataset,
                                         const std::vector<uint64_t>& ids, int threads) {
  if (dataset.raw_shape()) return std::nullopt;
  std::mutex mutex;  // guards all but `next`
  data::Spent all;
  double images = 0;
  std::exception_ptr error;
  std::atomic<size_t> next = 0;
  {
    std::vector<std::jthread> pool;
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([&] {
        data::EntropyDecoder decoder;
        data::Sample sample;
        try {
          for (size_t i = next++; i < ids.size(); i = next++) {
            dataset.read(ids[i], sample);
            const std::optional<data::Spent> spent = decoder.decode(sample.bytes);
            if (!spent) continue;
            const std::lock_guard lock(mutex);
            all += *spent;
            ++images;
          }
        } catch (const Error&) {
          const std::lock_guard lock(mutex);
          error = std::current_exception();
        }
      });
  }
  if (error) std::rethrow_exception(error);
  if (images == 0) return std::nullopt;
  return data::Spent{all.seconds / images, all.cpu_seconds / images};
}

// What a thread spends on an image; the seconds add up to threads / (images/s). huffman and pixels
// are parts of decode, where our own decoder did it.
struct Profile {
  data::Spent read, decode, huffman, pixels, resize, other, waiting, all;
  std::optional<data::Spent> entropy;  // the limit
};

// What is said of all rounds.
struct Result {
  std::vector<double> rates;
  // Of the rounds that have one: images/s, and the share that was reached by the clock and by CPU
  // time, which other load on the machine hardly changes.
  std::vector<double> limits, shares, cpu_shares;
  double bytes_per_second = 0, batch_median = 0, batch_p99 = 0, ready = 0;
  double working = 0, consumer_waiting = 0;  // shares of the threads' time, and of the caller's
  CpuSeconds cpu_of_image;
  Profile profile;
  uint64_t images = 0, substituted = 0;
};

void add_limit(Result& result, const Round& round, int threads) {
  if (!round.limit) return;
  const double limit = threads / round.limit->seconds;
  const double cpu = (round.cpu.user + round.cpu.system) / static_cast<double>(round.images);
  result.limits.push_back(limit);
  result.shares.push_back(round.rate() / limit);
  result.cpu_shares.push_back(round.limit->cpu_seconds / cpu);
}

Profile profile_of(const std::vector<Round>& rounds, int threads) {
  data::LoaderStats sum;
  data::Spent all, entropy;
  double images = 0, limits = 0;
  for (const Round& round : rounds) {
    sum += round.stats;
    all += {threads * round.seconds, round.cpu.user + round.cpu.system};
    images += static_cast<double>(round.images);
    if (!round.limit) continue;
    entropy += *round.limit;
    ++limits;
  }
  const auto of_image = [&](const data::Spent& spent) {
    return data::Spent{spent.seconds / images, spent.cpu_seconds / images};
  };
  const data::SampleTimes& t = sum.times;
  data::Spent other{sum.work_seconds, all.cpu_seconds};
  for (const data::Spent& part : {t.read, t.decode, t.resize}) other -= part;
  Profile profile{.read = of_image(t.read),
                  .decode = of_image(t.decode),
                  .huffman = of_image(t.entropy),
                  .pixels = of_image(t.pixels),
                  .resize = of_image(t.resize),
                  .other = of_image(other),
                  .waiting = of_image({all.seconds - sum.work_seconds, 0}),
                  .all = of_image(all),
                  .entropy = {}};
  if (limits > 0)
    profile.entropy = data::Spent{entropy.seconds / limits, entropy.cpu_seconds / limits};
  return profile;
}

Result summarise(const std::vector<Round>& rounds, int threads) {
  Result result;
  std::vector<double> batches;
  data::LoaderStats sum;
  double seconds = 0;
  CpuSeconds cpu;
  for (const Round& round : rounds) {
    result.rates.push_back(round.rate());
    add_limit(result, round, threads);
    batches.insert(batches.end(), round.batch_seconds.begin(), round.batch_seconds.end());
    sum += round.stats;
    seconds += round.seconds;
    result.images += round.images;
    cpu.user += round.cpu.user;
    cpu.system += round.cpu.system;
  }
  const auto images = static_cast<double>(result.images);
  result.bytes_per_second = static_cast<double>(sum.bytes) / seconds;
  result.batch_median = percentile(batches, 0.5);
  result.batch_p99 = percentile(batches, 0.99);
  result.ready = static_cast<double>(sum.ready) / static_cast<double>(sum.acquired);
  result.working = sum.work_seconds / (threads * seconds);
  result.consumer_waiting = sum.wait_seconds / seconds;
  result.cpu_of_image = {cpu.user / images, cpu.system / images};
  result.substituted = sum.substituted;
  result.profile = profile_of(rounds, threads);
  return result;
}

// What the numbers belong to.
struct Facts {
  std::string data;
  const char* transform = "";
  const char* split = "";
  uint64_t dataset_size = 0;
  data::ImageShape output;
  uint32_t batch = 0;
  int threads = 0, slots = 0;
  uint64_t ring_bytes = 0, peak_bytes = 0;
  double seconds = 0;  // of a round
};

constexpr const char* kLimitMeans =
    "libjpeg-turbo's entropy decoding alone (jpeg_read_coefficients) of the same images, as many "
    "threads, between the rounds";

nlohmann::ordered_json to_json(const data::Spent& spent) {
  return {{"seconds", spent.seconds}, {"cpu_seconds", spent.cpu_seconds}};
}

nlohmann::ordered_json to_json(const Profile& p) {
  nlohmann::ordered_json out = {{"read", to_json(p.read)},       {"decode", to_json(p.decode)},
                                {"huffman", to_json(p.huffman)}, {"pixels", to_json(p.pixels)},
                                {"resize", to_json(p.resize)},   {"other", to_json(p.other)},
                                {"waiting", to_json(p.waiting)}, {"all", to_json(p.all)}};
  if (p.entropy) out["entropy_decoding_alone"] = to_json(*p.entropy);
  return out;
}

nlohmann::ordered_json to_json(const Facts& facts, const Result& r, bool profile) {
  nlohmann::ordered_json out = {
      {"data", facts.data},
      {"split", facts.split},
      {"dataset_images", facts.dataset_size},
      {"transform", facts.transform},
      {"image", to_string(facts.output)},
      {"batch", facts.batch},
      {"threads", facts.threads},
      {"images_per_second", percentile(r.rates, 0.5)},
      {"rounds", r.rates},
      {"round_seconds", facts.seconds},
      {"images", r.images},
      {"substituted", r.substituted},
      {"bytes_per_second", r.bytes_per_second},
      {"batch_seconds", {{"median", r.batch_median}, {"p99", r.batch_p99}}},
      {"batches_ready", r.ready},
      {"ring_batches", facts.slots},
      {"threads_working", r.working},
      {"consumer_waiting", r.consumer_waiting},
      {"cpu_seconds_per_image", {{"user", r.cpu_of_image.user}, {"system", r.cpu_of_image.system}}},
      {"ring_bytes", facts.ring_bytes},
      {"peak_memory_bytes", facts.peak_bytes}};
  if (!r.shares.empty()) {
    out["limit"] = {{"images_per_second", percentile(r.limits, 0.5)}, {"what", kLimitMeans}};
    out["fraction_of_limit"] = percentile(r.shares, 0.5);
    out["fraction_of_limit_by_cpu_time"] = percentile(r.cpu_shares, 0.5);
  }
  if (profile) out["profile_of_an_image"] = to_json(r.profile);
  return out;
}

std::string to_text(const Profile& p) {
  std::string text = fmt::format("\n  {:<40} {:>8} {:>6} {:>8} {:>6}\n",
                                 "what a thread spends on an image", "ms", "%", "CPU ms", "%");
  const auto row = [&](const char* name, const data::Spent& spent) {
    text += fmt::format("  {:<40} {:>8.3f} {:>6.1f} {:>8.3f} {:>6.1f}\n", name, 1e3 * spent.seconds,
                        100 * spent.seconds / p.all.seconds, 1e3 * spent.cpu_seconds,
                        100 * spent.cpu_seconds / p.all.cpu_seconds);
  };
  row("read", p.read);
  row("decode", p.decode);
  row("  of it entropy decoding", p.huffman);
  row("  inverse DCT, chroma and colour", p.pixels);
  row("crop, resize and flip", p.resize);
  row("other work, and the caller's", p.other);
  row("waiting for room", p.waiting);
  row("all", p.all);
  if (p.entropy) row("libjpeg-turbo's entropy decoding alone", *p.entropy);
  return text;
}

std::string to_text(const Facts& facts, const Result& r, bool profile) {
  const auto [least, most] = std::minmax_element(r.rates.begin(), r.rates.end());
  std::string text = fmt::format(
      "{} ({}, {} images): {} transform to {}, batches of {}, {} thread(s), {} round(s) of {:g} s\n"
      "  {:.0f} images/s ({:.0f} - {:.0f})   {:.1f} MB/s read   {:.2f} ms of CPU an image, {:.2f} "
      "of "
      "it the system's\n",
      printable(facts.data), facts.split, facts.dataset_size, facts.transform,
      to_string(facts.output), facts.batch, facts.threads, r.rates.size(), facts.seconds,
      percentile(r.rates, 0.5), *least, *most, r.bytes_per_second / 1e6,
      1e3 * (r.cpu_of_image.user + r.cpu_of_image.system), 1e3 * r.cpu_of_image.system);
  if (!r.shares.empty())
    text += fmt::format("  {:.1f} % ({:.1f} % by CPU time) of {:.0f} images/s: {}\n",
                        100 * percentile(r.shares, 0.5), 100 * percentile(r.cpu_shares, 0.5),
                        percentile(r.limits, 0.5), kLimitMeans);
  text += fmt::format(
      "  batch {:.1f} ms (median; 99 % below {:.1f}); {:.2f} of {} batches ready when one is asked "
      "for\n"
      "  threads working {:.1f} % of their time; the caller waits {:.1f} % of its own\n"
      "  memory: ring {}, peak {}{}\n",
      1e3 * r.batch_median, 1e3 * r.batch_p99, r.ready, facts.slots, 100 * r.working,
      100 * r.consumer_waiting, mebibytes(static_cast<double>(facts.ring_bytes)),
      mebibytes(static_cast<double>(facts.peak_bytes)),
      r.substituted > 0 ? fmt::format("; {} bad samples replaced", r.substituted) : "");
  return profile ? text + to_text(r.profile) : text;
}

int run_loader_bench(LoaderBench b) {
  constexpr const char* kAnyModel = "model { name: \"resnet50\" }";  // plays no part
  const Job job = b.job_file.empty() ? parse_job(kAnyModel, "the default job", b.sets, "cpu")
                                     : load_job(b.job_file, b.sets, "");
  if (b.threads < 0) b.threads = usable_cpus();
  const auto dataset = open_split(job, b.eval ? data::Split::kVal : data::Split::kTrain);
  if (dataset->size() == 0) fail(ExitCode::kBadData, "{}: no images", printable(job.data.path));
  std::unique_ptr<Stream> stream;
  if (b.eval)
    stream = std::make_unique<EvaluationStream>(*dataset, job, b);
  else
    stream = std::make_unique<TrainingStream>(*dataset, job, b);
  warm_up(*stream, dataset->size());

  Facts facts{.data = job.data.path,
              .transform = b.eval ? "evaluation" : "training",
              .split = data::name_of(b.eval ? data::Split::kVal : data::Split::kTrain),
              .dataset_size = dataset->size(),
              .output = b.eval ? data::output_shape(eval_transform(job), *dataset)
                               : data::output_shape(train_transform(job), *dataset),
              .batch = b.eval ? job.evaluation.batch : job.batch_per_worker,
              .threads = b.threads,
              .slots = stream->slots(),
              .ring_bytes = stream->ring_bytes(),
              .seconds = b.seconds};
  std::vector<Round> rounds;
  for (int n = 0; n < b.rounds; ++n) {
    rounds.push_back(run_round(*stream, b.seconds));
    // The coefficients of a whole image, which the limit keeps, are not the loader's.
    if (n == 0 || b.no_limit) facts.peak_bytes = peak_memory();
    if (!b.no_limit)
      rounds.back().limit =
          measure_limit(*dataset, rounds.back().sample_ids, std::max(1, b.threads));
  }
  const Result result = summarise(rounds, std::max(1, b.threads));
  if (b.json)
    std::cout << to_json(facts, result, b.profile).dump(2) << std::endl;
  else
    std::cout << to_text(facts, result, b.profile) << std::flush;
  return 0;
}

std::optional<LoaderBench> parse_loader_options(const Arguments& arguments) {
  LoaderBench b;
  std::string data;
  po::options_description options("Measurement");
  options.add_options()("data", po::value(&data), "folder of the dataset, in place of data.path")(
      "job", po::value(&b.job_file),
      "job file whose data, seed and batch are taken; without one, every default")(
      "set", po::value(&b.sets)->composing(),
      "key=value for a field of the job, e.g. batch_per_worker=64; may be repeated")(
      "data-threads", po::value(&b.threads),
      "threads that read and decode; 0: the caller's own; default: the CPUs of this process")(
      "eval", po::bool_switch(&b.eval), "the validation set and its transform")(
      "seconds", po::value(&b.seconds)->default_value(b.seconds), "of a round")(
      "rounds", po::value(&b.rounds)->default_value(b.rounds), "whose median is said")(
      "no-limit", po::bool_switch(&b.no_limit),
      "leave out the limit; the peak of memory is then that of all rounds, not of the first")(
      "profile", po::bool_switch(&b.profile), "where a thread's time goes")(
      "json", po::bool_switch(&b.json), "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options, "bench loader --data DIR [OPTIONS]",
      "The loader of a training run (or of its evaluation), with nothing behind it: batches of "
      "uint8 NHWC\n"
      "images are taken as fast as they come. One epoch (at most 30 s) warms up, then rounds are\n"
      "measured. The limit is libjpeg-turbo's entropy decoding alone (jpeg_read_coefficients) of "
      "up "
      "to\n"
      "500 of the same images on as many threads, measured behind each round; reading the files "
      "is "
      "not\n"
      "in it. A decoder that need not look at all of a file can exceed it.\n",
      nullptr);
  if (!values) return std::nullopt;
  if (values->count("data-threads") > 0 && (b.threads < 0 || b.threads > 4096))
    fail(ExitCode::kUsage, "--data-threads {}: give 0 to 4096", b.threads);
  if (!(b.seconds >= 0 && b.seconds <= 1e6) || b.rounds < 1 || b.rounds > 10000)
    fail(ExitCode::kUsage, "--seconds {:g} --rounds {}: give 0 to 1e6 seconds, 1 to 10000 rounds",
         b.seconds, b.rounds);
  if (b.job_file.empty() && data.empty() && b.sets.empty())
    fail(ExitCode::kUsage, "no images: give --data DIR, or --job FILE with data.path in it");
  if (!data.empty()) b.sets.push_back("data.path=" + data);
  return b;
}

}  // namespace

int bench_loader(const Arguments& arguments) {
  const std::optional<LoaderBench> options = parse_loader_options(arguments);
  return options ? run_loader_bench(*options) : 0;
}

}  // namespace convoy::trainer
