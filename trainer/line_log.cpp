#include "trainer/line_log.h"

#include <fcntl.h>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/file.h"

namespace convoy::trainer {
namespace {

std::unique_ptr<File> open_log(const std::string& path) {
  return std::make_unique<File>(path, O_WRONLY | O_CREAT | O_APPEND);
}

}  // namespace

LineLog::LineLog(std::string path) : path_(std::move(path)), file_(open_log(path_)) {}

LineLog::~LineLog() {
  if (lost_ > 0)
    log::warning("{}: the last {} line(s) could not be written", printable(path_), lost_);
}

void LineLog::write(const std::string& line) {
  const std::lock_guard lock(mutex_);
  try {
    append(line + "\n");
    if (lost_ > 0) log::warning("{}: written again; {} line(s) were lost", printable(path_), lost_);
    lost_ = 0;
  } catch (const Error& e) {
    if (lost_++ == 0) log::error("{}; the run goes on without this line", e.what());
  }
}

uint64_t LineLog::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

void LineLog::append(const std::string& bytes) {
  if (!file_ || file_->removed()) {
    file_.reset();
    file_ = open_log(path_);
  }
  const uint64_t size = file_->size();
  try {
    file_->write(bytes.data(), bytes.size());
  } catch (const Error&) {
    file_->truncate(size);  // no half line
    throw;
  }
}

}  // namespace convoy::trainer
