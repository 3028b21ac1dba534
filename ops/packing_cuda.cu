// Packing of weights on CUDA: a block of threads takes some channels of one filter, and finds out
// of which weights.
#include "ops/packing_cuda.h"

#include <utility>

#include "ops/core/cuda_kernel.h"
#include "ops/tiles_cuda.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// What a block knows of a packing.
template <typename T>
struct Packing {
  T* packed;
  float* packed32;
  const float* oihw;
  const double* scale;
  int channels, stored, area;
  int width;        // channels of a block, filter_tile_channels()
  int first_block;  // of the launch
};

// As many as an argument of a kernel may hold, which is 4 KiB.
template <typename T>
struct Packings {
  static constexpr int kMost = 64;
  Packing<T> all[kMost];
  int count;
};
static_assert(sizeof(Packings<float>) <= 4096);

// A block takes some channels of a filter.
template <typename T>
__global__ void pack_kernel(Packings<T> packings) {
  __shared__ float tile[kFilterTile];
  const auto block = static_cast<int>(blockIdx.x);
  int index = 0, end = packings.count;  // the last that begins at this block or before it
  while (index + 1 < end) {
    const int middle = (index + end) / 2;
    (packings.all[middle].first_block <= block ? index : end) = middle;
  }
  const Packing<T> p = packings.all[index];
  const int in_packing = block - p.first_block, blocks = (p.stored + p.width - 1) / p.width;
  const int64_t k = in_packing / blocks;
  const int begin = in_packing % blocks * p.width;
  const int written = p.stored - begin < p.width ? p.stored - begin : p.width;
  const int left = p.channels - begin, read = left < 0 ? 0 : left < written ? left : written;
  const float* in = p.oihw + (k * p.channels + begin) * p.area;
  const bool fits = p.width * p.area <= kFilterTile;  // else it is one channel of a huge filter
  if (fits) {
    const int thread = static_cast<int>(threadIdx.x), all = read * p.area;
    float values[kOfATile];  // all on their way before one is used
    for (int i = 0; i < kOfATile && i * kThreads < all; ++i)
      values[i] = thread + i * kThreads < all ? in[thread + i * kThreads] : 0.0f;
    for (int i = 0; i < kOfATile && i * kThreads < all; ++i)
      tile[thread + i * kThreads] = values[i];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < written * p.area; i += kThreads) {
    const int rs = i / written, c = i - rs * written;
    float v = 0.0f;
    if (c < read) v = fits ? tile[c * p.area + rs] : in[rs];
    if (p.scale) v = static_cast<float>(static_cast<double>(v) * p.scale[k]);
    const int64_t at = (k * p.area + rs) * p.stored + begin + c;
    store(p.packed + at, v);
    if (p.packed32) p.packed32[at] = load(p.packed + at);
  }
}

template <typename T>
void pack(const WeightPacking* begin, const WeightPacking* end, cudaStream_t stream) {
  Packings<T> packings{};
  int64_t blocks = 0;
  for (const WeightPacking* w = begin; w != end; ++w) {
    // Filters of one pixel lie as they are: they are one, cut into whole tiles.
    const bool is_one = w->area == 1 && w->stored == w->channels && !w->scale;
    const int64_t filters = is_one ? 1 : w->filters, joined = is_one ? w->filters : 1;
    const int64_t stored = w->stored * joined;
    packings.all[packings.count++] = {
        .packed = static_cast<T*>(w->packed),
        .packed32 = w->packed32,
        .oihw = w->oihw,
        .scale = w->scale,
        .channels = static_cast<int>(w->channels * joined),
        .stored = static_cast<int>(stored),
        .area = static_cast<int>(w->area),
        .width = static_cast<int>(filter_tile_channels(stored, w->area)),
        .first_block = static_cast<int>(blocks)};
    blocks += filters * filter_tiles(stored, w->area);
  }
  launch(&pack_kernel<T>, blocks, kThreads, stream, packings);
}

}  // namespace

void WeightPacker::run(cudaStream_t stream) {
  // Nothing stays, whatever happens: what was added may be gone the next time.
  const std::vector<WeightPacking> added = std::exchange(added_, {});
  const WeightPacking* const end = added.data() + added.size();
  for (const WeightPacking* first = added.data(); first != end;) {
    const DType type = first->type;
    const WeightPacking* last = first;
    while (last != end && last->type == type && last - first < Packings<float>::kMost) ++last;
    with_cuda_type(type, [&]<typename T>(T*) { pack<T>(first, last, stream); });
    first = last;
  }
}

}  // namespace convoy::ops
