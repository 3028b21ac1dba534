// A file of lines that a run appends to: metrics, samples. A run outlives it: a full disk, a
// removed folder or an I/O error costs lines, never the run.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

namespace convoy::trainer {

class File;

class LineLog {
 public:
  // Opens for appending. Throws Error (kIo): at the start of a run a refusal costs nothing.
  explicit LineLog(std::string path);
  ~LineLog();
  LineLog(const LineLog&) = delete;
  LineLog& operator=(const LineLog&) = delete;

  // Appends the line and a newline by one write(2): whole or not at all. Where that fails, the line
  // is lost; the log names the first failure, and the number of lines lost once writing works
  // again. A file that was removed is made again. Any thread; never throws on I/O.
  void write(const std::string& line);
  // Lines lost since the last one that was written.
  uint64_t lost() const;

 private:
  void append(const std::string& bytes);

  const std::string path_;
  mutable std::mutex mutex_;
  std::unique_ptr<File> file_;  // nullptr: could not be made again
  uint64_t lost_ = 0;
};

}  // namespace convoy::trainer
