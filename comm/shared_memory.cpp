#include "comm/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <random>

namespace convoy::comm {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

std::unique_ptr<SharedMemory> SharedMemory::open(Communicator& communicator, size_t bytes) {
  if (communicator.size() == 1 || communicator.local_size() != communicator.size()) return nullptr;
  // A file without a name: it goes when the last process does, however that dies. Its first word
  // is a number that no other process's file would hold, should a rank see other processes than
  // rank 0 does.
  constexpr size_t kSecretBytes = sizeof(uint64_t);
  std::string where;
  std::random_device random;
  const uint64_t secret = (uint64_t{random()} << 32) | random() | 1;
  const bool root = communicator.rank() == 0;
  const FileDescriptor own(root ? memfd_create("convoy", MFD_CLOEXEC) : -1);
  if (own.get() >= 0 && ftruncate(own.get(), static_cast<off_t>(bytes + kSecretBytes)) == 0 &&
      pwrite(own.get(), &secret, kSecretBytes, static_cast<off_t>(bytes)) == kSecretBytes)
    where = fmt::format("/proc/{}/fd/{}", getpid(), own.get());
  std::string expected = std::to_string(secret);
  communicator.broadcast(where, 0);
  communicator.broadcast(expected, 0);

  std::unique_ptr<SharedMemory> memory;
  const FileDescriptor file(where.empty() ? -1 : ::open(where.c_str(), O_RDWR | O_CLOEXEC));
  uint64_t found = 0;
  if (file.get() >= 0 &&
      pread(file.get(), &found, kSecretBytes, static_cast<off_t>(bytes)) == kSecretBytes &&
      std::to_string(found) == expected) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (at != MAP_FAILED) madvise(at, bytes, MADV_HUGEPAGE);  // where the system has them for this
    if (at != MAP_FAILED) memory.reset(new SharedMemory(static_cast<std::byte*>(at), bytes));
  }
  // Also keeps rank 0's file open until all have looked.
  int64_t able[1] = {memory != nullptr};
  communicator.all_reduce_sum(able);
  if (able[0] != communicator.size()) memory.reset();
  return memory;
}

SharedMemory::~SharedMemory() {
  munmap(data_, bytes_);
}

}  // namespace convoy::comm
