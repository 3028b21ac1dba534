// Keeps two jobs out of one output folder, which it creates. Two means, because neither is enough:
// flock on OUT/lock, which the system releases whenever a process ends but which not every file
// system carries from host to host; and a lease: OUT/lock names the holder and carries a counter
// that a thread of the holder raises every few seconds.
//
// A holder on this machine that has ended is succeeded at once. A holder on another machine counts
// as dead when its counter has not moved for the lease time on *our* monotonic clock: nobody's wall
// clock is trusted. A holder that was stopped for longer than that and goes on finds itself
// succeeded (lost(), expect_held()) and must not write any more.
//
// OUT/lock is one line of text, kFileBytes long:
//   pid 71 on host node7 life 3 lease 30000 ms boot <id> space <pid namespace> start <ticks> nonce
//   <hex> renewed 12
// or "free life 3" when the holder has left in good order.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

namespace convoy::trainer {

class File;

struct LeaseOptions {
  // Of other hosts the longer one of theirs and ours counts. Renewed six times in it.
  std::chrono::milliseconds lease = std::chrono::seconds(30);
  // How long a claim must stand unchanged where another host may have made one at the same moment.
  std::chrono::milliseconds settle = std::chrono::seconds(1);
  // Asked while another host's holder is watched: true ends the constructor with kRecoverable.
  std::function<bool()> give_up = [] { return false; };
};

class OutputLock {
 public:
  // Throws Error (kIo) when another process holds the folder, naming that one, or when the folder
  // cannot be written.
  explicit OutputLock(const std::string& out_dir, const LeaseOptions& options = {});
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

  // 1 for the first holder of this folder, then one more each time.
  uint64_t life() const { return life_; }
  // Another process has the folder now, as far as this one knows. Cheap; any thread.
  bool lost() const { return lost_; }
  // Looks into the file. Throws Error (kIo) naming the successor where there is one; a lock file
  // that cannot be read says nothing. Any thread.
  void expect_held();

 private:
  struct Holder;

  void take(const LeaseOptions& options);
  void watch(const std::string& seen, const Holder& holder, const LeaseOptions& options) const;
  std::string line() const;
  void write_line(std::string text) const;
  bool find_successor();
  void renew();

  const std::string out_dir_, path_;
  const std::chrono::milliseconds lease_;
  const std::string nonce_;
  uint64_t life_ = 1;
  bool network_ = false;        // other hosts may see this file system
  std::unique_ptr<File> file_;  // holds the flock, where there is one; then the renewing thread's
  uint64_t renewed_ = 0;
  bool warned_ = false;
  std::atomic<bool> lost_ = false;
  std::jthread renewer_;  // last: it stops before what it uses is gone
};

}  // namespace convoy::trainer
