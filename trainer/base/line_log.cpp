#include "trainer/base/line_log.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"

namespace convoy::trainer {
namespace {

std::unique_ptr<File> open_log(const std::string& path) {
  return std::make_unique<File>(path, O_WRONLY | O_CREAT | O_APPEND);
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? "." : folder;
}

}  // namespace

LineLog::LineLog(std::string path, std::function<std::string()> head)
    : path_(std::move(path)), head_(std::move(head)), file_(open_log(path_)) {}

LineLog::~LineLog() {
  if (lost_ > 0)
    log::warning("{}: the last {} line(s) could not be written", printable(path_), lost_);
}

bool LineLog::write(const std::string& line) {
  const std::lock_guard lock(mutex_);
  try {
    add(line + "\n", false);
    if (lost_ > 0) log::warning("{}: written again; {} line(s) were lost", printable(path_), lost_);
    lost_ = 0;
    return true;
  } catch (const Error& e) {
    if (lost_++ == 0) log::error("{}; the run goes on without this line", e.what());
    return false;
  }
}

uint64_t LineLog::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

void LineLog::append(const std::string& lines, bool sync) {
  const std::lock_guard lock(mutex_);
  add(lines, sync);
}

bool LineLog::sync() {
  const std::lock_guard lock(mutex_);
  try {
    if (file_) file_->sync();
    return file_ != nullptr;
  } catch (const Error& e) {
    log::warning("{}; its last line may be lost", e.what());
    return false;
  }
}

void LineLog::cut(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (file_ && file_->size() > bytes) file_->truncate(bytes);
}

// Removed, or moved away with its folder.
bool LineLog::gone() const {
  struct stat info {};
  return file_->removed() || (::stat(path_.c_str(), &info) != 0 && errno == ENOENT);
}

// Under the mutex.
void LineLog::add(std::string bytes, bool sync) {
  if (!file_ || gone()) {
    file_.reset();
    file_ = open_log(path_);
    torn_at_.reset();
    head_is_due_ = file_->size() == 0;
    name_is_new_ = true;
  }
  if (torn_at_) file_->truncate(*torn_at_);
  torn_at_.reset();
  if (head_is_due_) bytes.insert(0, head_());
  const uint64_t size = file_->size();
  try {
    file_->write(bytes.data(), bytes.size());
    if (sync) file_->sync();
    if (sync && name_is_new_) sync_folder(folder_of(path_));
  } catch (const Error&) {
    torn_at_ = size;
    try {
      file_->truncate(size);
      torn_at_.reset();
    } catch (const Error&) {  // the next call tries again
    }
    throw;
  }
  head_is_due_ = false;
  if (sync) name_is_new_ = false;
}

}  // namespace convoy::trainer
