// Ranks connected by MPI. One thread owned by the communicator makes every MPI call, MPI_Init and
// MPI_Finalize included; others hand it calls and exchanges through a queue. It only ever begins
// non-blocking operations and polls them, so that exchanges go on during a collective call and an
// abort is always heard.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <numeric>
#include <thread>

#include "comm/communicator.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::comm {
namespace {

using std::chrono::microseconds;

// Larger messages are cut: some transports pin or copy a whole message at once.
constexpr size_t kMessageBytes = size_t{16} << 20;
// Between polls while transfers are under way and nobody waits for them.
constexpr microseconds kShortestPause{20}, kLongestPause{200};
// How long the communication thread goes on looking for work when it has none: while it does,
// nobody pays for waking it.
constexpr microseconds kLinger{200};
// A thread that waits is worth spinning for, but not for as long as another rank writes a
// checkpoint.
constexpr std::chrono::milliseconds kLongestSpin{100};
// How long a failed rank waits for the others to fail too, and for its own thread to hear an abort.
constexpr std::chrono::seconds kGrace{2}, kAbortTime{10};

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  fail(ExitCode::kRecoverable,
       "{}: {}: a rank or the network was lost, start the same command again", call,
       std::string_view(text, static_cast<size_t>(length)));
}

// A call that another thread hands over and waits for.
struct Call {
  std::function<void(MPI_Request&)> begin;  // may leave the request null: over at once
  bool even_when_broken = false;
  MPI_Request request = MPI_REQUEST_NULL;
  bool done = false;
  std::exception_ptr error;
  std::condition_variable over;
};

// What ranks tell each other at the end.
struct Farewell {
  int exit_code = 0;
  char message[2044] = "";
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    thread_ = std::thread([this] { run(); });
    std::unique_lock lock(mutex_);
    started_.wait(lock, [this] { return running_ || start_error_; });
    if (!start_error_) return;
    lock.unlock();
    thread_.join();
    std::rethrow_exception(start_error_);
  }

  ~MpiCommunicator() override {
    if (!thread_.joinable()) return;
    if (size_ > 1)
      abort(static_cast<int>(ExitCode::kFault), "the communicator ended before finish()");
    stop();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  const std::vector<std::string>& hosts() const override { return hosts_; }

  void barrier() override {
    await([this](MPI_Request& request) { check(MPI_Ibarrier(calls_, &request), "MPI_Ibarrier"); });
  }

  void broadcast(std::string& text, int root) override { broadcast_any(text, root); }
  void broadcast(std::vector<std::byte>& bytes, int root) override { broadcast_any(bytes, root); }

  std::vector<std::string> all_gather(const std::string& text) override {
    std::vector<int64_t> sizes(static_cast<size_t>(size_));
    const int64_t mine = static_cast<int64_t>(text.size());
    await([&](MPI_Request& request) {
      check(MPI_Iallgather(&mine, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, calls_, &request),
            "MPI_Iallgather");
    });
    const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    if (total > INT_MAX)
      fail(ExitCode::kFault, "all_gather of {} bytes in all: at most {} fit", total, INT_MAX);
    const std::vector<int> counts(sizes.begin(), sizes.end());
    std::vector<int> begins(counts.size());
    std::exclusive_scan(counts.begin(), counts.end(), begins.begin(), 0);
    std::string all(static_cast<size_t>(total), '\0');
    await([&](MPI_Request& request) {
      check(MPI_Iallgatherv(text.data(), counts[static_cast<size_t>(rank_)], MPI_BYTE, all.data(),
                            counts.data(), begins.data(), MPI_BYTE, calls_, &request),
            "MPI_Iallgatherv");
    });
    std::vector<std::string> texts;
    for (size_t r = 0; r < counts.size(); ++r)
      texts.emplace_back(all, static_cast<size_t>(begins[r]), static_cast<size_t>(counts[r]));
    return texts;
  }

  void all_reduce_sum(std::span<int64_t> values) override {
    constexpr size_t kPiece = kMessageBytes / sizeof(int64_t);
    for (size_t begin = 0; begin < values.size(); begin += kPiece) {
      const std::span<int64_t> piece =
          values.subspan(begin, std::min(kPiece, values.size() - begin));
      await([&](MPI_Request& request) {
        check(MPI_Iallreduce(MPI_IN_PLACE, piece.data(), static_cast<int>(piece.size()),
                             MPI_INT64_T, MPI_SUM, calls_, &request),
              "MPI_Iallreduce");
      });
    }
  }

  int64_t all_reduce_max(int64_t value) override {
    await([&](MPI_Request& request) {
      check(MPI_Iallreduce(MPI_IN_PLACE, &value, 1, MPI_INT64_T, MPI_MAX, calls_, &request),
            "MPI_Iallreduce");
    });
    return value;
  }

  std::vector<std::unique_ptr<Lane>> open_lanes(int count) override;
  void start(Exchange& exchange) override {
    const std::lock_guard lock(mutex_);
    new_exchanges_.push_back(&exchange);
    if (asleep_) wake_.notify_one();
  }
  void drop(Exchange& exchange) override {
    const auto forget = [&](MPI_Request&) {
      std::erase(exchanges_, &exchange);
      broken_ = true;
    };
    await(forget, true);
  }
  void enter_wait() override {
    const std::lock_guard lock(mutex_);
    begin_wait();
    wake_.notify_one();
  }
  void leave_wait() override {
    const std::lock_guard lock(mutex_);
    --waiting_;
  }

  uint64_t waiting() const override { return waiting_ > 0 ? waits_.load() : 0; }

  int finish(int exit_code, const std::string& message,
             const std::function<void()>& end_job) noexcept override;
  void abort(int exit_code, const std::string& message) noexcept override;

 private:
  friend class MpiLane;

  // Begins an operation on the communication thread and waits for its end.
  void await(std::function<void(MPI_Request&)> begin, bool even_when_broken = false) {
    Call call;
    call.begin = std::move(begin);
    call.even_when_broken = even_when_broken;
    hand_over(call);
    std::unique_lock lock(mutex_);
    begin_wait();
    call.over.wait(lock, [&] { return call.done; });
    --waiting_;
    if (call.error) std::rethrow_exception(call.error);
  }

  void begin_wait() {
    ++waits_;
    ++waiting_;
  }

  void hand_over(Call& call) {
    const std::lock_guard lock(mutex_);
    new_calls_.push_back(&call);
    wake_.notify_one();
  }

  template <typename Bytes>
  void broadcast_any(Bytes& bytes, int root) {
    uint64_t size = bytes.size();
    await([&](MPI_Request& request) {
      check(MPI_Ibcast(&size, 1, MPI_UINT64_T, root, calls_, &request), "MPI_Ibcast");
    });
    bytes.resize(size);
    for (size_t begin = 0; begin < size; begin += kMessageBytes)
      await([&](MPI_Request& request) {
        check(MPI_Ibcast(bytes.data() + begin,
                         static_cast<int>(std::min(kMessageBytes, size - begin)), MPI_BYTE, root,
                         calls_, &request),
              "MPI_Ibcast");
      });
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      wake_.notify_one();
    }
    thread_.join();
  }

  // Below: the communication thread.
  void run();
  void initialise();
  bool poll(Call& call);
  bool poll(Exchange& exchange);
  void complete(Call& call, std::exception_ptr error);

  std::mutex mutex_;
  std::condition_variable wake_, started_;
  std::vector<Call*> new_calls_;
  std::vector<Exchange*> new_exchanges_;
  std::atomic<int> waiting_ = 0;     // written under the mutex, as the next
  std::atomic<uint64_t> waits_ = 0;  // so far
  bool running_ = false, stop_ = false;
  bool asleep_ = false;  // the communication thread, until somebody wakes it
  std::exception_ptr start_error_;

  // Of the communication thread after its start.
  std::vector<Call*> active_calls_;
  std::vector<Exchange*> exchanges_;
  bool progress_ = false;
  bool broken_ = false;  // an exchange was dropped: its peers can no longer be answered

  // Collective calls, and the last one, which must not meet any of them.
  MPI_Comm calls_ = MPI_COMM_NULL, farewell_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::vector<std::string> hosts_;

  std::thread thread_;
};

class MpiLane final : public Lane {
 public:
  MpiLane(MpiCommunicator& owner, MPI_Comm comm) : owner_(owner), comm_(comm) {}
  ~MpiLane() override {
    if (!owner_.thread_.joinable()) return;
    try {
      owner_.await([this](MPI_Request&) { MPI_Comm_free(&comm_); });
    } catch (const std::exception& error) {
      log::debug("a lane stays open: {}", error.what());
    }
  }

  void send(int peer, const float* data, size_t floats) override {
    for_pieces(floats, [&](size_t begin, int count, MPI_Request& request) {
      check(MPI_Isend(data + begin, count, MPI_FLOAT, peer, 0, comm_, &request), "MPI_Isend");
    });
  }
  void receive(int peer, float* data, size_t floats) override {
    for_pieces(floats, [&](size_t begin, int count, MPI_Request& request) {
      check(MPI_Irecv(data + begin, count, MPI_FLOAT, peer, 0, comm_, &request), "MPI_Irecv");
    });
  }
  void all_reduce_sum(float* data, size_t floats) override {
    for_pieces(floats, [&](size_t begin, int count, MPI_Request& request) {
      check(MPI_Iallreduce(MPI_IN_PLACE, data + begin, count, MPI_FLOAT, MPI_SUM, comm_, &request),
            "MPI_Iallreduce");
    });
  }
  void all_reduce_sum_blocking(float* data, size_t floats) override {
    if (floats > INT_MAX)
      convoy::fail(ExitCode::kFault, "all_reduce_sum_blocking: too many floats");
    check(MPI_Allreduce(MPI_IN_PLACE, data, static_cast<int>(floats), MPI_FLOAT, MPI_SUM, comm_),
          "MPI_Allreduce");
  }
  bool finished() override {
    if (requests_.empty()) return true;
    int over = 0;
    check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &over,
                      MPI_STATUSES_IGNORE),
          "MPI_Testall");
    if (!over) return false;
    requests_.clear();
    owner_.progress_ = true;
    return true;
  }

 private:
  template <typename Begin>
  void for_pieces(size_t floats, Begin begin_piece) {
    constexpr size_t kPiece = kMessageBytes / sizeof(float);
    for (size_t begin = 0; begin < floats; begin += kPiece)
      begin_piece(begin, static_cast<int>(std::min(kPiece, floats - begin)),
                  requests_.emplace_back(MPI_REQUEST_NULL));
  }

  MpiCommunicator& owner_;
  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
};

std::vector<std::unique_ptr<Lane>> MpiCommunicator::open_lanes(int count) {
  std::vector<std::unique_ptr<Lane>> lanes;
  for (int i = 0; i < count; ++i) {
    MPI_Comm comm = MPI_COMM_NULL;
    await([&](MPI_Request&) { check(MPI_Comm_dup(calls_, &comm), "MPI_Comm_dup"); });
    lanes.push_back(std::make_unique<MpiLane>(*this, comm));
  }
  return lanes;
}

void MpiCommunicator::initialise() {
  int initialised = 0;
  MPI_Initialized(&initialised);
  if (initialised) fail(ExitCode::kFault, "a second MPI communicator in one process");
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED)
    fail(ExitCode::kFault, "this MPI cannot be used from a process with threads");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);  // the copies below inherit it
  check(MPI_Comm_dup(MPI_COMM_WORLD, &calls_), "MPI_Comm_dup");
  check(MPI_Comm_dup(MPI_COMM_WORLD, &farewell_), "MPI_Comm_dup");
  MPI_Comm_rank(calls_, &rank_);
  MPI_Comm_size(calls_, &size_);

  MPI_Comm host = MPI_COMM_NULL;
  check(MPI_Comm_split_type(calls_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host),
        "MPI_Comm_split_type");
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_size(host, &local_size_);
  MPI_Comm_free(&host);

  char name[MPI_MAX_PROCESSOR_NAME] = "";
  int length = 0;
  check(MPI_Get_processor_name(name, &length), "MPI_Get_processor_name");
  std::vector<char> names(sizeof name * static_cast<size_t>(size_));
  check(MPI_Allgather(name, sizeof name, MPI_CHAR, names.data(), sizeof name, MPI_CHAR, calls_),
        "MPI_Allgather");
  for (size_t r = 0; r < static_cast<size_t>(size_); ++r)
    hosts_.emplace_back(names.data() + r * sizeof name);
}

void MpiCommunicator::complete(Call& call, std::exception_ptr error) {
  // Under the lock to the end: the call lives on the stack of the thread this wakes.
  const std::lock_guard lock(mutex_);
  call.error = std::move(error);
  call.done = true;
  call.over.notify_one();
}

bool MpiCommunicator::poll(Call& call) {
  if (broken_ && !call.even_when_broken) {
    complete(call, std::make_exception_ptr(Error(
                       ExitCode::kFault, "the ranks can no longer talk after an earlier error")));
    return true;
  }
  try {
    if (call.begin) {
      call.begin(call.request);
      call.begin = nullptr;
    }
    int over = 0;
    check(MPI_Test(&call.request, &over, MPI_STATUS_IGNORE), "MPI_Test");
    if (!over) return false;
    complete(call, nullptr);
  } catch (...) {
    complete(call, std::current_exception());
  }
  progress_ = true;
  return true;
}

bool MpiCommunicator::poll(Exchange& exchange) {
  if (broken_) {
    exchange.fail(std::make_exception_ptr(
        Error(ExitCode::kFault, "the ranks can no longer talk after an earlier error")));
    return true;
  }
  try {
    const Progress made = exchange.advance();
    progress_ = progress_ || made != Progress::kNone;
    return made == Progress::kOver;
  } catch (...) {
    exchange.fail(std::current_exception());
    return true;
  }
}

void MpiCommunicator::run() {
  // Signals belong to the program's other threads; libraries' threads born here inherit the mask.
  sigset_t signals;
  sigfillset(&signals);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&signals, fault);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  std::exception_ptr error;
  try {
    initialise();
  } catch (...) {
    error = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    running_ = !error;
    start_error_ = error;
    started_.notify_one();
  }
  if (error) return;

  microseconds pause = kShortestPause;
  Clock::time_point last_event = Clock::now();
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      const auto is_news = [this] {
        return stop_ || !new_calls_.empty() || !new_exchanges_.empty();
      };
      if (active_calls_.empty() && exchanges_.empty() && !wake_.wait_for(lock, kLinger, is_news)) {
        asleep_ = true;
        wake_.wait(lock, is_news);
        asleep_ = false;
      }
      if (progress_ || is_news()) {
        pause = kShortestPause;
        last_event = Clock::now();
      } else if (waiting_ > 0 && Clock::now() - last_event < kLongestSpin) {
        lock.unlock();
        sched_yield();
        lock.lock();
      } else {
        const int waiting = waiting_;
        wake_.wait_for(lock, pause, [&] { return is_news() || waiting_ > waiting; });
        if (waiting_ > waiting) last_event = Clock::now();
        pause = std::min(2 * pause, kLongestPause);
      }
      if (stop_) break;
      active_calls_.insert(active_calls_.end(), new_calls_.begin(), new_calls_.end());
      exchanges_.insert(exchanges_.end(), new_exchanges_.begin(), new_exchanges_.end());
      new_calls_.clear();
      new_exchanges_.clear();
    }
    progress_ = false;
    std::erase_if(exchanges_, [this](Exchange* exchange) { return poll(*exchange); });
    std::erase_if(active_calls_, [this](Call* call) { return poll(*call); });
  }
  MPI_Comm_free(&calls_);
  MPI_Comm_free(&farewell_);
  MPI_Finalize();
}

int MpiCommunicator::finish(int exit_code, const std::string& message,
                            const std::function<void()>& end_job) noexcept {
  Farewell mine{.exit_code = exit_code};
  std::strncpy(mine.message, message.c_str(), sizeof mine.message - 1);
  std::vector<Farewell> all(static_cast<size_t>(size_));
  Call call;
  call.begin = [&](MPI_Request& request) {
    check(MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, farewell_,
                         &request),
          "MPI_Iallgather");
  };
  hand_over(call);
  {
    std::unique_lock lock(mutex_);
    begin_wait();
    const auto done = [&] { return call.done; };
    if (message.empty()) {
      call.over.wait(lock, done);
    } else {
      call.over.wait_for(lock, kGrace, done);
    }
    --waiting_;
    const bool together = call.done && !call.error;
    lock.unlock();
    // The call stays on the communication thread's list: abort() does not return.
    if (!together && !message.empty() && end_job) end_job();
    if (!together)
      abort(exit_code, message.empty() ? "the ranks lost each other at the end" : message);
  }

  if (rank_ == 0)
    for (size_t first = 0; first < all.size(); ++first) {
      const std::string text = all[first].message;
      std::string ranks;
      size_t same = 0;
      bool earlier = text.empty();
      for (size_t r = 0; r < all.size(); ++r) {
        if (text != all[r].message) continue;
        earlier = earlier || r < first;
        ranks += fmt::format("{}{}", same++ == 0 ? "" : ", ", r);
      }
      if (earlier) continue;
      if (same == all.size()) {
        log::error("{}", text);
      } else {
        log::error("from rank{} {} of {}: {}", same > 1 ? "s" : "", ranks, size_, text);
      }
    }
  for (const Farewell& farewell : all) exit_code = std::max(exit_code, farewell.exit_code);
  stop();
  return exit_code;
}

void MpiCommunicator::abort(int exit_code, const std::string& message) noexcept {
  log::error("{}", message);
  Call call;
  call.begin = [&](MPI_Request&) { MPI_Abort(MPI_COMM_WORLD, exit_code); };
  call.even_when_broken = true;
  hand_over(call);
  // If that thread hangs inside MPI, an exit without MPI_Finalize makes mpirun end the others.
  std::this_thread::sleep_for(kAbortTime);
  _exit(exit_code);
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator() {
  return std::make_unique<MpiCommunicator>();
}

}  // namespace convoy::comm
