// A file of lines that a run appends to: metrics, samples, lives, the ledger. Half a line is never
// left in front of another one, and a file that was removed is made again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace convoy::trainer {

class File;

// Any thread; `head` is called on the thread that appends.
class LineLog {
 public:
  // Opens for appending. Throws Error (kIo): at the start of a run a refusal costs nothing.
  // `head`: whole lines with which a file begins that was removed and is made again.
  explicit LineLog(
      std::string path, std::function<std::string()> head = [] { return std::string(); });
  ~LineLog();
  LineLog(const LineLog&) = delete;
  LineLog& operator=(const LineLog&) = delete;

  // Appends the line and a newline by one write(2): whole or not at all. A full disk, a removed
  // folder or an I/O error costs lines, never the run: where it fails, the line is lost and the
  // result false; the log names the first failure, and the number of lines lost once writing works
  // again. Never throws on I/O.
  bool write(const std::string& line);
  // Lines lost since the last one that was written.
  uint64_t lost() const;

  // Appends whole lines, each with its newline: all or nothing. With `sync` they and the file's
  // name are on the disk when this returns. Throws Error (kIo).
  void append(const std::string& lines, bool sync);
  // What was written is on the disk. False where that failed, which the log says.
  bool sync();
  // Cuts what comes after the first `bytes`. Throws Error (kIo).
  void cut(uint64_t bytes);

 private:
  bool gone() const;
  void add(std::string bytes, bool sync);

  const std::string path_;
  const std::function<std::string()> head_;
  mutable std::mutex mutex_;         // guards all below
  std::unique_ptr<File> file_;       // nullptr: could not be made again
  std::optional<uint64_t> torn_at_;  // what follows is half a line that could not be cut
  bool head_is_due_ = false, name_is_new_ = true;
  uint64_t lost_ = 0;
};

}  // namespace convoy::trainer
