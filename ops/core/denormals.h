// Denormal floats count as zero wherever tensors are computed: some are a hundred times slower, and
// which thread happens to add two of them must not decide whether they vanish.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace convoy {

// While it lives, the calling thread flushes denormal results to zero and reads denormals as zero.
// Elsewhere than on x86-64 it does nothing.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | kFlushToZero | kDenormalsAreZero);
  }
  ~FlushDenormals() {
    _mm_setcsr(before_);
  }
#else
  FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

  // For the rest of the thread's life.
  static void always() {
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | kFlushToZero | kDenormalsAreZero);
#endif
  }

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  unsigned before_ = 0;
};

}  // namespace convoy
