// Digests on CUDA: a block of threads takes a piece of a tensor, a second launch sums the pieces of
// each. Bytes per float: 4.
#include <cstring>

#include "ops/core/cuda_kernel.h"
#include "ops/core/digest_term.h"
#include "ops/cuda_device.h"
#include "ops/digester.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// The sum of the threads' values, for thread 0.
__device__ uint64_t sum_over_block(uint64_t value) {
  __shared__ uint64_t sums[kThreads];
  sums[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}

__global__ void digest_blocks_kernel(uint64_t* sums, const DigestBlock* blocks) {
  const DigestBlock block = blocks[blockIdx.x];
  uint64_t sum = 0;
  for (int64_t i = threadIdx.x; i < block.floats; i += kThreads) {
    uint32_t bits;
    memcpy(&bits, block.data + i, sizeof bits);
    sum += digest_term(block.index + static_cast<uint64_t>(i), bits);
  }
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// first[r]: the first block of range r.
__global__ void digest_ranges_kernel(uint64_t* digests, const uint64_t* sums, const size_t* first) {
  uint64_t sum = 0;
  for (size_t b = first[blockIdx.x] + threadIdx.x; b < first[blockIdx.x + 1]; b += kThreads)
    sum += sums[b];
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) digests[blockIdx.x] = sum;
}

class DigesterCuda final : public Digester {
 public:
  DigesterCuda(CudaDevice& device, const std::vector<DigestRange>& ranges)
      : Digester(ranges.size()), device_(device) {
    const std::vector<DigestBlock> blocks = cut_digest_blocks(ranges);
    first_ = first_blocks(blocks, ranges.size());
    blocks_ = device.allocate(blocks.size() * sizeof(DigestBlock));
    first_memory_ = device.allocate(first_.size() * sizeof(size_t));
    sums_ = device.allocate(blocks.size() * sizeof(uint64_t));
    digests_ = device.allocate(ranges.size() * sizeof(uint64_t));
    device.upload(blocks_.data.get(), blocks.data(), blocks_.bytes);
    device.upload(first_memory_.data.get(), first_.data(), first_memory_.bytes);
  }

  void run(size_t first, size_t last) override {
    device_.use();
    const size_t block = first_.at(first);
    uint64_t* const sums = static_cast<uint64_t*>(sums_.data.get());
    launch(&digest_blocks_kernel, static_cast<int64_t>(first_.at(last) - block), kThreads,
           device_.stream(), sums + block,
           static_cast<const DigestBlock*>(blocks_.data.get()) + block);
    launch(&digest_ranges_kernel, static_cast<int64_t>(last - first), kThreads, device_.stream(),
           static_cast<uint64_t*>(digests_.data.get()) + first, static_cast<const uint64_t*>(sums),
           static_cast<const size_t*>(first_memory_.data.get()) + first);
  }

  std::vector<uint64_t> result() override {
    std::vector<uint64_t> digests(count());
    device_.download(digests.data(), digests_.data.get(), digests_.bytes);
    return digests;
  }

 private:
  CudaDevice& device_;
  std::vector<size_t> first_;  // blocks of the ranges
  DeviceMemory blocks_, first_memory_, sums_, digests_;
};

}  // namespace

std::unique_ptr<Digester> CudaDevice::make_digester(const std::vector<DigestRange>& ranges,
                                                    Parallel) {
  return std::make_unique<DigesterCuda>(*this, ranges);
}

}  // namespace convoy::ops
