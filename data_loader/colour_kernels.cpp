// Plain loops over blocks of a fixed size, which the compiler turns into each instruction set's
// vectors: integers, and for hues floats of which every operation is rounded alike everywhere.
#include "data_loader/colour_kernels.h"

#define CONVOY_INLINE [[gnu::always_inline]] static inline

// Products count bytes of a block.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace convoy::data::CONVOY_ISA {
namespace {

constexpr int kBlock = 64;  // pixels
constexpr int32_t kHalf = 1 << (kFactorBits - 1);
constexpr int32_t kRed = 19589, kGreen = 38470, kBlue = 7471;  // 0.2989, 0.587, 0.114

CONVOY_INLINE uint8_t clamped(int32_t x) {
  x = x < 0 ? 0 : x;
  return static_cast<uint8_t>(x > 255 ? 255 : x);
}

// body(block) for each 64 pixels; the last ones in a copy that is filled up with zeros.
template <typename Body>
CONVOY_INLINE void for_blocks(uint8_t* bytes, size_t n, const Body& body) {
  constexpr size_t kBytes = 3 * kBlock;
  for (; n >= kBytes; n -= kBytes, bytes += kBytes) body(bytes);
  if (n == 0) return;
  uint8_t last[kBytes] = {};
  for (size_t i = 0; i < n; ++i) last[i] = bytes[i];
  body(last);
  for (size_t i = 0; i < n; ++i) bytes[i] = last[i];
}

void add(uint8_t* rgb, size_t n, const int amounts[3]) {
  int16_t amount[3 * kBlock];
  for (int i = 0; i < 3 * kBlock; ++i) amount[i] = static_cast<int16_t>(amounts[i % 3]);
  for_blocks(
      rgb, 3 * n, [&](uint8_t * x) __attribute__((always_inline)) {
        for (int i = 0; i < 3 * kBlock; ++i) {
          int16_t sum = static_cast<int16_t>(x[i] + amount[i]);
          sum = sum < 0 ? int16_t{0} : sum;
          x[i] = static_cast<uint8_t>(sum > 255 ? int16_t{255} : sum);
        }
      });
}

void scale(uint8_t* bytes, size_t n, int32_t factor, int32_t offset) {
  for_blocks(
      bytes, n, [&](uint8_t * x) __attribute__((always_inline)) {
        for (int i = 0; i < 3 * kBlock; ++i)
          x[i] = clamped((x[i] * factor + offset + kHalf) >> kFactorBits);
      });
}

uint64_t grey_sum(const uint8_t* rgb, size_t n) {
  constexpr size_t kMostBlocks = 256;  // whose sums fit into 16 bits
  uint64_t sums[3] = {};
  size_t i = 0;
  while (i + kBlock <= n) {
    uint16_t columns[3 * kBlock] = {};
    for (size_t k = 0; k < kMostBlocks && i + kBlock <= n; ++k, i += kBlock, rgb += 3 * kBlock)
      for (int c = 0; c < 3 * kBlock; ++c) columns[c] = static_cast<uint16_t>(columns[c] + rgb[c]);
    for (int c = 0; c < 3 * kBlock; ++c) sums[c % 3] += columns[c];
  }
  for (; i < n; ++i, rgb += 3)
    for (int c = 0; c < 3; ++c) sums[c] += rgb[c];
  return sums[0] * kRed + sums[1] * kGreen + sums[2] * kBlue;
}

void saturate(uint8_t* rgb, size_t n, int32_t factor) {
  constexpr int kShift = kGreyBits - 8;  // a grey of 16 bits times 15 fits into 31
  const int32_t rest = (1 << kFactorBits) - factor;
  for_blocks(
      rgb, 3 * n, [&](uint8_t * x) __attribute__((always_inline)) {
        for (int k = 0; k < kBlock; ++k) {
          const int32_t r = x[3 * k], g = x[3 * k + 1], b = x[3 * k + 2];
          const int32_t grey = (r * kRed + g * kGreen + b * kBlue + (1 << (kShift - 1))) >> kShift;
          const int32_t part = ((grey * rest + 128) >> 8) + kHalf;
          x[3 * k] = clamped((r * factor + part) >> kFactorBits);
          x[3 * k + 1] = clamped((g * factor + part) >> kFactorBits);
          x[3 * k + 2] = clamped((b * factor + part) >> kFactorBits);
        }
      });
}

// Vectors of the compiler's (?: by element), for what it does not make into vectors itself. As wide
// as the registers: it takes wider ones apart into single elements.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

CONVOY_INLINE Floats smaller(Floats a, Floats b) {
  return a < b ? a : b;
}
CONVOY_INLINE Floats larger(Floats a, Floats b) {
  return a > b ? a : b;
}
CONVOY_INLINE Floats load(const int32_t* p) {
  Ints v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Floats);
}
CONVOY_INLINE void store(int32_t* p, Floats v) {
  const Ints rounded = __builtin_convertvector(v + 0.5f, Ints);
  __builtin_memcpy(p, &rounded, sizeof rounded);
}

// HSV's way back, V - V S clamp(min(k, 4 - k), 0, 1) with k = (5, 3, 1) + hue modulo 6; V is the
// largest of the three and V S its distance to the smallest.
CONVOY_INLINE Floats channel(Floats hue, float offset, Floats largest, Floats range) {
  Floats k = hue + offset;
  k = k >= 6.0f ? k - 6.0f : k;
  const Floats part = larger(smaller(k, 4.0f - k), Floats{});
  return largest - range * smaller(part, Floats{} + 1.0f);
}

void turn_hue(uint8_t* rgb, size_t n, float sixths) {
  for_blocks(
      rgb, 3 * n, [&](uint8_t * x) __attribute__((always_inline)) {
        int32_t red[kBlock], green[kBlock], blue[kBlock];
        for (int i = 0; i < kBlock; ++i) {
          red[i] = x[3 * i];
          green[i] = x[3 * i + 1];
          blue[i] = x[3 * i + 2];
        }
        for (int i = 0; i < kBlock; i += kLanes) {
          const Floats r = load(red + i), g = load(green + i), b = load(blue + i);
          const Floats largest = larger(larger(r, g), b);
          const Floats range = largest - smaller(smaller(r, g), b);
          const Floats divisor = range > 0.0f ? range : Floats{} + 1.0f;
          const Floats difference = largest == r ? g - b : largest == g ? b - r : r - g;
          const Floats base = largest == r   ? Floats{}
                              : largest == g ? Floats{} + 2.0f
                                             : Floats{} + 4.0f;
          Floats hue = base + difference / divisor + sixths;  // -4 ... 8
          hue = hue < 0.0f ? hue + 6.0f : hue;
          hue = hue >= 6.0f ? hue - 6.0f : hue;
          store(red + i, channel(hue, 5.0f, largest, range));
          store(green + i, channel(hue, 3.0f, largest, range));
          store(blue + i, channel(hue, 1.0f, largest, range));
        }
        for (int i = 0; i < kBlock; ++i) {
          x[3 * i] = static_cast<uint8_t>(red[i]);
          x[3 * i + 1] = static_cast<uint8_t>(green[i]);
          x[3 * i + 2] = static_cast<uint8_t>(blue[i]);
        }
      });
}

}  // namespace

const ColourKernels colour_kernels = {add, scale, grey_sum, saturate, turn_hue};

}  // namespace convoy::data::CONVOY_ISA
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
