// convoy bench allreduce: the sum of one buffer over all ranks in every way we have, in host memory
// or a GPU's, against the library's own.
#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "comm/reducer.h"
#include "comm/worker_map.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/core/tensor.h"
#include "ops/device.h"
#include "trainer/base/percentile.h"
#include "trainer/commands/commands.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;

struct AllReduceBench {
  size_t min_bytes = 0, max_bytes = 0;
  int factor = 0, iterations = 0, repetitions = 0;
  std::string device;
  bool json = false;
};

// One way to sum a buffer over all ranks.
class Way {
 public:
  virtual ~Way() = default;
  virtual const char* name() const = 0;
  // Into its buffer, whole, when no rank sums any more; and out of what run() has summed, which
  // may be the same memory.
  virtual void write(std::span<const float> values) = 0;
  virtual void read(std::span<float> sums) = 0;
  // Sums the buffer `times` times; seconds of all.
  virtual double run(int times) = 0;
};

class ReducerWay final : public Way {
 public:
  ReducerWay(const char* name, comm::Communicator& communicator, ops::Device& device, size_t floats,
             const comm::ReducerOptions& options)
      : name_(name),
        worker_(communicator.rank()),
        device_(device),
        reducer_(comm::make_reducer(communicator, communicator.size(), {{0, floats}}, options,
                                    device.queue())) {}

  const char* name() const override { return name_; }
  void write(std::span<const float> values) override {
    device_.upload(reducer_->memory(0), values.data(), values.size_bytes());
  }
  void read(std::span<float> sums) override {
    device_.download(sums.data(), result_, sums.size_bytes());
  }
  double run(int times) override {
    device_.wait();
    const auto start = Clock::now();
    for (int i = 0; i < times; ++i) {
      reducer_->begin_step();
      reducer_->contribute(worker_, 0, reducer_->memory(0), true);
      result_ = reducer_->wait(0).data();
    }
    device_.wait();
    const double seconds = seconds_since(start);
    reducer_->confirm();
    return seconds;
  }
  comm::ScheduleKind schedule() const { return reducer_->schedule(); }

 private:
  const char* name_;
  int worker_;
  ops::Device& device_;
  const std::unique_ptr<comm::Reducer> reducer_;
  const float* result_ = nullptr;
};

// The peer: timed where it is called, so that it does not pay for the way between our threads.
class LibraryWay final : public Way, comm::Exchange {
 public:
  LibraryWay(comm::Communicator& communicator, size_t floats)
      : communicator_(communicator),
        floats_(floats),
        lanes_(communicator.open_lanes(1)),
        buffer_(floats * sizeof(float)) {}

  const char* name() const override { return "MPI_Allreduce"; }
  void write(std::span<const float> values) override { std::ranges::copy(values, data()); }
  void read(std::span<float> sums) override { std::copy_n(data(), sums.size(), sums.data()); }
  double run(int times) override {
    times_ = times;
    done_ = false;
    communicator_.start(*this);
    std::unique_lock lock(mutex_);
    over_.wait(lock, [&] { return done_; });
    if (error_) std::rethrow_exception(error_);
    return seconds_;
  }

 private:
  float* data() const { return buffer_.as<float>(); }
  comm::Progress advance() override {
    const auto start = Clock::now();
    for (int i = 0; i < times_; ++i) lanes_[0]->all_reduce_sum_blocking(data(), floats_);
    seconds_ = seconds_since(start);
    end(nullptr);
    return comm::Progress::kOver;
  }
  void fail(std::exception_ptr error) override { end(std::move(error)); }
  void end(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
    done_ = true;
    over_.notify_one();
  }

  comm::Communicator& communicator_;
  const size_t floats_;
  const std::vector<std::unique_ptr<comm::Lane>> lanes_;
  std::mutex mutex_;
  std::condition_variable over_;
  const AlignedBuffer buffer_;
  int times_ = 0;
  double seconds_ = 0;
  bool done_ = false;
  std::exception_ptr error_;
};

using Ways = std::vector<std::unique_ptr<Way>>;

Ways ways_of_a_host(comm::Communicator& communicator, ops::Device& device, size_t floats) {
  Ways ways;
  auto chosen = std::make_unique<ReducerWay>("exact shared", communicator, device, floats,
                                             comm::ReducerOptions{.buffers = 1});
  if (chosen->schedule() == comm::ScheduleKind::kShared) ways.push_back(std::move(chosen));
  const auto add = [&](const char* name, const comm::ReducerOptions& options) {
    ways.push_back(std::make_unique<ReducerWay>(name, communicator, device, floats, options));
  };
  add("exact all-to-all", {.schedule = comm::ScheduleKind::kAllToAll, .buffers = 1});
  if (comm::halving_fits(comm::map_workers(communicator.size(), communicator.size())))
    add("exact halving", {.schedule = comm::ScheduleKind::kHalving, .buffers = 1});
  add("fast", {.order = comm::ReductionOrder::kFast, .schedule = {}, .buffers = 1});
  ways.push_back(std::make_unique<LibraryWay>(communicator, floats));
  return ways;
}

// nccl: it connects the ranks.
Ways ways_of_a_gpu(comm::Communicator& communicator, ops::Device& device, size_t floats,
                   bool nccl) {
  using enum comm::Transport;
  Ways ways;
  const auto add = [&](const char* name, comm::ReductionOrder order, comm::Transport transport) {
    ways.push_back(std::make_unique<ReducerWay>(
        name, communicator, device, floats,
        comm::ReducerOptions{
            .order = order, .schedule = {}, .buffers = 1, .transport = transport}));
  };
  if (communicator.size() == 1) {
    add("exact", comm::ReductionOrder::kExact, kAuto);
    return ways;
  }
  if (nccl) add("exact NCCL", comm::ReductionOrder::kExact, kNccl);
  add("exact staged", comm::ReductionOrder::kExact, kStaged);
  if (nccl) add("ncclAllReduce", comm::ReductionOrder::kFast, kNccl);
  return ways;
}

// Collective: whether every rank has a GPU of its own; says so where not.
bool nccl_connects(comm::Communicator& communicator, ops::Device& device) {
  if (!device.queue() || communicator.size() == 1) return false;
  try {
    comm::make_reducer(communicator, communicator.size(), {{0, 1}},
                       {.schedule = {}, .transport = comm::Transport::kNccl}, device.queue());
    return true;
  } catch (const Error& error) {
    if (error.code() != ExitCode::kUsage) throw;
    if (communicator.rank() == 0) log::info("{}", error.what());
    return false;
  }
}

// Whole numbers below 2^11, so that the sum over up to 2^13 ranks is exact in any order.
float element(int rank, size_t i) {
  return static_cast<float>((i * 7919 + static_cast<size_t>(rank) * 104729) % 2039);
}

// Mean over the ranks.
double mean_of(comm::Communicator& communicator, double value) {
  int64_t sum[1] = {static_cast<int64_t>(value * 1e9)};
  communicator.all_reduce_sum(sum);
  return static_cast<double>(sum[0]) * 1e-9 / communicator.size();
}

// Bytes/s that a rank copies while all ranks copy, from memory to memory, of the host or a GPU.
double copy_rate(comm::Communicator& communicator, ops::Device& device) {
  if (device.queue()) {
    communicator.barrier();
    return 1 / mean_of(communicator, 2 / device.measure_copy());
  }
  constexpr size_t kBytes = size_t{128} << 20;
  const AlignedBuffer from(kBytes), to(kBytes);
  std::vector<double> seconds;
  for (int i = 0; i < 7; ++i) {
    communicator.barrier();
    const auto start = Clock::now();
    std::memcpy(to.data(), from.data(), kBytes);
    seconds.push_back(mean_of(communicator, seconds_since(start)));
  }
  return static_cast<double>(kBytes) / percentile(seconds, 0.5);
}

struct Row {
  std::string way;
  size_t bytes = 0;
  double microseconds = 0, best_microseconds = 0, worst_microseconds = 0;
  double algorithm_rate = 0, bus_rate = 0;  // bytes/s
  int64_t wrong = 0;
};

std::vector<Row> measure(comm::Communicator& communicator, ops::Device& device,
                         const AllReduceBench& b, bool nccl, size_t bytes) {
  const size_t floats = bytes / sizeof(float);
  const Ways ways = device.queue() ? ways_of_a_gpu(communicator, device, floats, nccl)
                                   : ways_of_a_host(communicator, device, floats);

  std::vector<Row> rows;
  std::vector<float> values(floats), expected(floats), sums(floats);
  for (size_t i = 0; i < floats; ++i) values[i] = element(communicator.rank(), i);
  for (int rank = 0; rank < communicator.size(); ++rank)
    for (size_t i = 0; i < floats; ++i) expected[i] += element(rank, i);
  const std::vector<float> zeros(floats);
  for (const auto& way : ways) {
    way->write(values);
    way->run(1);
    way->read(sums);
    int64_t wrong[1] = {0};
    for (size_t i = 0; i < floats; ++i) wrong[0] += sums[i] != expected[i];
    communicator.all_reduce_sum(wrong);
    way->write(zeros);  // sums of sums would grow without end
    rows.push_back({.way = way->name(), .bytes = bytes, .wrong = wrong[0]});
  }

  const int iterations =
      b.iterations > 0
          ? b.iterations
          : static_cast<int>(std::clamp((size_t{32} << 20) / bytes, size_t{1}, size_t{100}));
  std::vector<std::vector<double>> times(ways.size());
  for (int repetition = 0; repetition < b.repetitions; ++repetition)
    for (size_t w = 0; w < ways.size(); ++w) {
      communicator.barrier();
      const double seconds = ways[w]->run(iterations);
      times[w].push_back(mean_of(communicator, seconds / iterations));
    }
  const double ranks = communicator.size();
  for (size_t w = 0; w < ways.size(); ++w) {
    Row& row = rows[w];
    const double seconds = percentile(times[w], 0.5);
    row.microseconds = 1e6 * seconds;
    row.best_microseconds = 1e6 * *std::min_element(times[w].begin(), times[w].end());
    row.worst_microseconds = 1e6 * *std::max_element(times[w].begin(), times[w].end());
    row.algorithm_rate = static_cast<double>(bytes) / seconds;
    row.bus_rate = row.algorithm_rate * 2 * (ranks - 1) / ranks;
  }
  return rows;
}

int run_allreduce_bench(comm::Communicator& communicator, const AllReduceBench& b) {
  const bool root = communicator.rank() == 0;
  const auto device = ops::make_device(b.device, 1, communicator.local_rank());
  const bool nccl = nccl_connects(communicator, *device);
  const double memcpy_bytes = copy_rate(communicator, *device);
  const std::set<std::string> hosts(communicator.hosts().begin(), communicator.hosts().end());
  if (root && !b.json)
    std::cout << fmt::format(
        "# {} rank(s) on {} host(s), {}, median of {}; memcpy of a rank, all at once: {:.2f} GB/s\n"
        "#{:>11} {:>11} {:>6} {:>6}  {:<16} {:>10} {:>8} {:>8} {:>8} {:>7}\n"
        "#{:>11} {:>11} {:>6} {:>6}  {:<16} {:>10} {:>8} {:>8} {:>8} {:>7}\n",
        communicator.size(), hosts.size(), device->name(), b.repetitions, memcpy_bytes / 1e9,
        "size", "count", "type", "redop", "way", "time", "algbw", "busbw", "/memcpy", "#wrong",
        "(B)", "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)", "(%)", "");
  nlohmann::ordered_json out = {{"ranks", communicator.size()},
                                {"hosts", hosts.size()},
                                {"device", device->name()},
                                {"type", "float"},
                                {"redop", "sum"},
                                {"repetitions", b.repetitions},
                                {"memcpy_gb_per_second", memcpy_bytes / 1e9},
                                {"rows", nlohmann::ordered_json::array()}};
  int64_t wrong = 0;
  for (size_t bytes = b.min_bytes;; bytes *= static_cast<size_t>(b.factor)) {
    for (const Row& row : measure(communicator, *device, b, nccl, bytes)) {
      wrong += row.wrong;
      const double share = row.bus_rate / memcpy_bytes;
      if (root && !b.json)
        std::cout << fmt::format(
            "{:>12} {:>11} {:>6} {:>6}  {:<16} {:>10.1f} {:>8.2f} {:>8.2f} {:>8.1f} {:>7}\n",
            row.bytes, row.bytes / sizeof(float), "float", "sum", row.way, row.microseconds,
            row.algorithm_rate / 1e9, row.bus_rate / 1e9, 100 * share, row.wrong);
      out["rows"].push_back({{"way", row.way},
                             {"bytes", row.bytes},
                             {"count", row.bytes / sizeof(float)},
                             {"time_us",
                              {{"median", row.microseconds},
                               {"min", row.best_microseconds},
                               {"max", row.worst_microseconds}}},
                             {"algbw_gb_per_second", row.algorithm_rate / 1e9},
                             {"busbw_gb_per_second", row.bus_rate / 1e9},
                             {"busbw_fraction_of_memcpy", share},
                             {"wrong", row.wrong}});
    }
    std::cout << std::flush;
    if (bytes > b.max_bytes / static_cast<size_t>(b.factor)) break;
  }
  if (root && b.json) std::cout << out.dump(2) << std::endl;
  if (wrong > 0) fail(ExitCode::kFault, "{} wrong sums: see the column #wrong", wrong);
  return 0;
}

// "65536", "64K", "128M", "1G": bytes.
size_t parse_bytes(const char* option, const std::string& text) {
  size_t value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  const std::string_view suffix(at, static_cast<size_t>(end - at));
  const size_t place = std::string_view("KMG").find(suffix);
  if (error == std::errc() && suffix.size() <= 1 && place != std::string_view::npos) {
    const size_t unit = suffix.empty() ? 0 : 10 * (place + 1);
    if (value <= (size_t{1} << 30) >> unit && value << unit >= sizeof(float))
      return (value << unit) / sizeof(float) * sizeof(float);
  }
  fail(ExitCode::kUsage, "{} {}: write a size of 4 bytes to 1G, e.g. 64K or 128M", option,
       printable(text));
}

std::optional<AllReduceBench> parse_allreduce_options(const Arguments& arguments) {
  AllReduceBench b;
  std::string min_bytes, max_bytes;
  po::options_description options("Measurement");
  options.add_options()("min-bytes,b", po::value(&min_bytes)->default_value("64K"),
                        "smallest size; K, M and G are 2^10, 2^20, 2^30")(
      "max-bytes,e", po::value(&max_bytes)->default_value("128M"), "largest size, at most 1G")(
      "factor,f", po::value(&b.factor)->default_value(2), "from one size to the next")(
      "iterations,n", po::value(&b.iterations)->default_value(0),
      "sums in a row of one repetition; 0: as many as make 32M, at most 100")(
      "repetitions,r", po::value(&b.repetitions)->default_value(11),
      "times that every way is measured, in turn with the others; the median counts")(
      "device", po::value(&b.device)->default_value("cpu"), "cpu or cuda: where the buffer lies")(
      "json", po::bool_switch(&b.json), "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options, "bench allreduce [OPTIONS]",
      "Sums one buffer of fp32 in place over all ranks (cluster/mpirun.sh -n 2 -- bench "
      "allreduce):\n"
      "  exact ...      what training does: the fixed tree, the same bits on any number of ranks\n"
      "  fast           reduction.order FAST: the library's non-blocking all-reduce\n"
      "  MPI_Allreduce  the library's blocking call, timed alone; the others' times contain the\n"
      "                 way from the thread that computes to the one that talks, and back\n"
      "and on GPUs, where a rank's GPU is the one of its place on the host:\n"
      "  exact NCCL     from GPU to GPU; needs a GPU for every rank\n"
      "  exact staged   through host memory\n"
      "  ncclAllReduce  reduction.order FAST\n"
      "Columns as in nccl-tests. algbw = size / time. busbw = algbw x 2 (ranks - 1) / ranks: what\n"
      "every rank must send, and receive, at the least, per time; so it can be compared with the\n"
      "speed of a link whatever the number of ranks. Ranks of one host have memory for a link:\n"
      "/memcpy is busbw as a share of the rate at which each rank copies memory (of its GPU, with\n"
      "--device cuda) while all do.\n"
      "#wrong counts elements that differ from the exact sum on any rank; exit code 70 if there "
      "are\n"
      "any.\n");
  if (!values) return std::nullopt;
  b.min_bytes = parse_bytes("--min-bytes", min_bytes);
  b.max_bytes = parse_bytes("--max-bytes", max_bytes);
  if (b.max_bytes < b.min_bytes)
    fail(ExitCode::kUsage, "--max-bytes {} is less than --min-bytes {}", max_bytes, min_bytes);
  if (b.factor < 2 || b.iterations < 0 || b.repetitions < 1)
    fail(ExitCode::kUsage,
         "--factor must be at least 2, --repetitions at least 1, --iterations not negative");
  return b;
}

}  // namespace

int bench_allreduce(const Arguments& arguments) {
  return run_on_ranks(arguments, parse_allreduce_options, run_allreduce_bench);
}

}  // namespace convoy::trainer
