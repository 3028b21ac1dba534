// The emulated GPU ends the program where a kernel forgets begin_kernel().
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/emulated_gpu/emulated_gpu.h"

namespace convoy::emulated_gpu {
namespace {

void run(const std::function<void()>& kernel) {
  launch(2, 4, 0, nullptr, kernel);
  cudaDeviceSynchronize();
}

TEST(BeginKernel, IsCalledByEveryThread) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  run([] { begin_kernel(); });
  EXPECT_DEATH(run([] {}), "does not call begin_kernel");
  EXPECT_DEATH(run([] {
                 if (threadIdx.x == 3) return;
                 begin_kernel();
               }),
               "thread 3 of block . of 2 has not");
}

TEST(BeginKernel, IsCalledBeforeThreadsMeet) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(run([] {
                 __syncthreads();
                 begin_kernel();
               }),
               "does not call begin_kernel");
}

}  // namespace
}  // namespace convoy::emulated_gpu
