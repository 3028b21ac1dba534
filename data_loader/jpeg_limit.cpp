#include "data_loader/jpeg_limit.h"

#include <csetjmp>
#include <cstdio>
// jpeglib.h needs <cstdio> first.
#include <jpeglib.h>

#include "ops/core/error.h"

namespace convoy::data {

class EntropyDecoder::Impl {
 public:
  Impl() {
    jpeg_.err = jpeg_std_error(&errors_);
    errors_.error_exit = &on_error;
    errors_.emit_message = [](j_common_ptr, int) {};
    jpeg_.client_data = this;
    if (setjmp(jump_) != 0) fail(ExitCode::kFault, "libjpeg cannot be used");
    jpeg_create_decompress(&jpeg_);
    jpeg_.mem->max_memory_to_use = kMaxMemoryBytes;
  }
  ~Impl() { jpeg_destroy_decompress(&jpeg_); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  bool decode(std::span<const uint8_t> bytes) {
    if (setjmp(jump_) != 0) {
      jpeg_abort_decompress(&jpeg_);
      return false;
    }
    jpeg_mem_src(&jpeg_, bytes.data(), bytes.size());
    jpeg_read_header(&jpeg_, TRUE);
    jpeg_read_coefficients(&jpeg_);
    jpeg_abort_decompress(&jpeg_);
    return true;
  }

 private:
  // More than any image that data.max_pixels lets through needs.
  static constexpr long kMaxMemoryBytes = 1'200'000'000;

  [[noreturn]] static void on_error(j_common_ptr jpeg) {
    std::longjmp(static_cast<Impl*>(jpeg->client_data)->jump_, 1);
  }

  jpeg_decompress_struct jpeg_{};
  jpeg_error_mgr errors_{};
  std::jmp_buf jump_;
};

EntropyDecoder::EntropyDecoder() : impl_(std::make_unique<Impl>()) {}
EntropyDecoder::~EntropyDecoder() = default;

std::optional<Spent> EntropyDecoder::decode(std::span<const uint8_t> bytes) {
  Stopwatch watch(true);
  if (!impl_->decode(bytes)) return std::nullopt;
  Spent spent;
  watch.book(spent);
  return spent;
}

}  // namespace convoy::data
