#include "ops/cpu_device.h"
#include "ops/digest_kernels.h"
#include "ops/digester.h"

namespace convoy::ops {
namespace {

class DigesterCpu final : public Digester {
 public:
  DigesterCpu(CpuDevice& device, const std::vector<DigestRange>& ranges, Parallel parallel)
      : Digester(ranges.size()),
        threads_(device.threads()),
        parallel_(std::move(parallel)),
        blocks_(cut_digest_blocks(ranges)),
        first_(first_blocks(blocks_, ranges.size())),
        sums_(blocks_.size()) {}

  void run(size_t first, size_t last) override {
    const size_t from = first_.at(first), count = first_.at(last) - from;
    const DigestKernels& kernels = digest_kernels();
    parallel_([&](int part, int parts) {
      const auto border = [&](int p) {
        return from + count * static_cast<size_t>(p) / static_cast<size_t>(parts);
      };
      const size_t begin = border(part), end = border(part + 1);
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
      for (size_t b = begin; b < end; ++b)
        sums_[b] = kernels.digest(blocks_[b].data, blocks_[b].index, blocks_[b].floats);
    });
  }

  std::vector<uint64_t> result() override {
    std::vector<uint64_t> digests(count(), 0);
    for (size_t b = 0; b < blocks_.size(); ++b) digests[blocks_[b].range] += sums_[b];
    return digests;
  }

 private:
  int threads_;
  Parallel parallel_;
  std::vector<DigestBlock> blocks_;
  std::vector<size_t> first_;  // blocks of the ranges
  std::vector<uint64_t> sums_;
};

}  // namespace

std::unique_ptr<Digester> CpuDevice::make_digester(const std::vector<DigestRange>& ranges,
                                                   Parallel parallel) {
  return std::make_unique<DigesterCpu>(*this, ranges, std::move(parallel));
}

}  // namespace convoy::ops
