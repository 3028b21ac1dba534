// A job of one rank, without any library.
#include <unistd.h>

#include <cstdlib>

#include "comm/communicator.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::comm {
namespace {

class LocalLane final : public Lane {
 public:
  void send(int peer, const float*, size_t) override { refuse(peer); }
  void receive(int peer, float*, size_t) override { refuse(peer); }
  void all_reduce_sum(float*, size_t) override {}
  void all_reduce_sum_blocking(float*, size_t) override {}
  bool finished() override { return true; }

 private:
  [[noreturn]] static void refuse(int peer) {
    convoy::fail(ExitCode::kFault, "the local communicator has no rank {}", peer);
  }
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator() {
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    hosts_ = {name};
  }

  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  const std::vector<std::string>& hosts() const override { return hosts_; }

  void barrier() override {}
  void broadcast(std::string&, int) override {}
  void broadcast(std::vector<std::byte>&, int) override {}
  std::vector<std::string> all_gather(const std::string& text) override { return {text}; }
  void all_reduce_sum(std::span<int64_t>) override {}
  int64_t all_reduce_max(int64_t value) override { return value; }

  std::vector<std::unique_ptr<Lane>> open_lanes(int count) override {
    std::vector<std::unique_ptr<Lane>> lanes;
    for (int i = 0; i < count; ++i) lanes.push_back(std::make_unique<LocalLane>());
    return lanes;
  }
  void start(Exchange& exchange) override {
    while (exchange.advance() != Progress::kOver) {
    }
  }
  void drop(Exchange&) override {}
  void enter_wait() override {}
  void leave_wait() override {}
  uint64_t waiting() const override { return 0; }

  int finish(int exit_code, const std::string& message,
             const std::function<void()>& /*end_job*/) noexcept override {
    if (!message.empty()) log::error("{}", message);
    return exit_code;
  }
  void abort(int exit_code, const std::string& message) noexcept override {
    log::error("{}", message);
    _exit(exit_code);
  }

 private:
  std::vector<std::string> hosts_;
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() {
  return std::make_unique<LocalCommunicator>();
}

}  // namespace convoy::comm
