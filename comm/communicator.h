// The ranks of a job, and how they talk. One object per process, made at the start of a subcommand
// that runs on several ranks and ended by finish() or abort().
//
// The collective calls block their caller; every rank makes the same ones in the same order, from
// one thread at a time. Exchanges run in the background meanwhile (reducers use them). Any
// call may throw Error (kRecoverable) when the library reports a lost peer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace convoy::comm {

// A line between all ranks for the transfers of one exchange: transfers of different lanes never
// mix, those of one lane between two ranks match in the order in which both begin them. The memory
// stays the caller's and must live until finished() says true. Any size; only an Exchange uses a
// lane, in advance(). Destroy lanes before Communicator::finish.
class Lane {
 public:
  virtual ~Lane() = default;
  virtual void send(int peer, const float* data, size_t floats) = 0;
  virtual void receive(int peer, float* data, size_t floats) = 0;
  // In place, over all ranks, in the library's own order: bits depend on the number of ranks.
  virtual void all_reduce_sum(float* data, size_t floats) = 0;
  // The same by the library's blocking call, over when it returns: what benchmarks compare with.
  // The communication thread hears nothing meanwhile, an abort neither.
  virtual void all_reduce_sum_blocking(float* data, size_t floats) = 0;
  // All transfers begun on this lane are over. Never blocks.
  virtual bool finished() = 0;
};

enum class Progress { kNone, kSome, kOver };

// Background work of the communication thread, made of transfers.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // Begins what can begin. When all is over, the communicator forgets the exchange without touching
  // it again. Called often, on one thread.
  virtual Progress advance() = 0;
  // A transfer failed: the exchange will never be over. Called instead of a further advance(); an
  // exchange that another thread has ended meanwhile may hear it, too.
  virtual void fail(std::exception_ptr error) = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Among the ranks on this host.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;
  // Name of the host of every rank.
  virtual const std::vector<std::string>& hosts() const = 0;
  const std::string& host() const { return hosts()[static_cast<size_t>(rank())]; }

  virtual void barrier() = 0;
  // Replaces the text on all ranks by the root's; sizes may differ before.
  virtual void broadcast(std::string& text, int root) = 0;
  virtual void broadcast(std::vector<std::byte>& bytes, int root) = 0;
  // Every rank's text, in order of rank. At most 2 GiB in all.
  virtual std::vector<std::string> all_gather(const std::string& text) = 0;
  // In place. Sums of floating-point numbers are a Reducer's, because their order counts.
  virtual void all_reduce_sum(std::span<int64_t> values) = 0;
  // The largest of the ranks' numbers.
  virtual int64_t all_reduce_max(int64_t value) = 0;

  // Collective.
  virtual std::vector<std::unique_ptr<Lane>> open_lanes(int count) = 0;
  // Runs the exchange in the background, within a fraction of a millisecond or as soon as somebody
  // waits; returns at once (a communicator of one rank: when it is over). It must live until it is
  // over or dropped.
  virtual void start(Exchange& exchange) = 0;
  // Forgets an exchange that is not over. What its peers still send cannot be taken back, so
  // nothing but abort() or a failed finish() may follow.
  virtual void drop(Exchange& exchange) = 0;
  // Between these two a caller waits for an exchange: the communication thread spins instead of
  // pausing between polls. Any thread; calls nest.
  virtual void enter_wait() = 0;
  virtual void leave_wait() = 0;
  // 0 while no thread of this process waits for other ranks, in a collective call or between the
  // two above; else a number that every new wait changes. Any thread, never blocks.
  virtual uint64_t waiting() const = 0;

  // Ends this process's part in the job. Every rank calls it. Return the result from main() at
  // once, with all output flushed before: mpirun kills the others as soon as one has left with
  // non-zero. Without a message it is an orderly end: waits until all ranks are here. With a
  // message this rank has failed: if all ranks come within two seconds (they found the same error,
  // or the others are done), all leave together and each distinct message is logged once; else this
  // rank's is logged and the whole job aborted. All ranks get the largest of their exit codes, so
  // that mpirun returns it too. Destroy Reducers first. Never throws.
  // `end_job`: called in place of the abort, where something else ends all ranks better; where it
  // returns, the abort follows.
  virtual int finish(int exit_code, const std::string& message = "",
                     const std::function<void()>& end_job = nullptr) noexcept = 0;
  // Logs the message and ends all ranks of the job now, without waiting for any; mpirun returns
  // exit_code. Any thread. A communicator of several ranks that is destroyed before finish() does
  // this.
  [[noreturn]] virtual void abort(int exit_code, const std::string& message) noexcept = 0;
};

// By name: "local" (one rank, no library) or "mpi". Throws Error (kUsage) for another name. From
// then on log lines name the rank where there are several.
std::unique_ptr<Communicator> make_communicator(std::string_view name);

// The one for how this process was started (launch.h). Throws Error (kUsage) when a launcher meant
// several ranks and they do not find each other.
std::unique_ptr<Communicator> make_communicator();

}  // namespace convoy::comm
