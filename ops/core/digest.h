// SHA-256, for checkpoints, datasets, jobs and everything else that is compared by identity.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace convoy {

// Feed bytes in any pieces, read the digest once. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  Sha256& update(const void* data, size_t bytes);
  Sha256& update(std::string_view text) { return update(text.data(), text.size()); }
  // 64 hexadecimal digits. Ends this object's life: no update may follow.
  std::string hex();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

inline std::string sha256_hex(std::string_view text) {
  return Sha256().update(text).hex();
}

}  // namespace convoy
