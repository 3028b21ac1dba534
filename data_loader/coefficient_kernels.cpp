#include "data_loader/coefficient_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define CONVOY_INLINE [[gnu::always_inline]] static inline

namespace convoy::data::CONVOY_ISA {
namespace {

// How 8 numbers of w bits are taken apart: number i lies in byte[i] and the next one, times
// `factor` moves it to the highest bits of 16.
struct Unpacking {
  uint8_t byte[16][8][2];  // for a shuffle of bytes: two for each number
  uint16_t factor[16][8];
  uint8_t shift[16];
};
constexpr Unpacking make_unpacking() {
  Unpacking out{};
  for (int w = 1; w < 16; ++w) {
    if (!is_width(w)) continue;  // such a group is read as zeros
    out.shift[w] = static_cast<uint8_t>(16 - w);
    for (int i = 0; i < kGroup; ++i) {
      const int bit = i * w;
      out.byte[w][i][0] = static_cast<uint8_t>(bit / 8);
      out.byte[w][i][1] = static_cast<uint8_t>(bit / 8 + 1);
      out.factor[w][i] = static_cast<uint16_t>(1 << (16 - w - bit % 8));
    }
  }
  return out;
}
alignas(64) constexpr Unpacking kUnpacking = make_unpacking();

CONVOY_INLINE uint64_t load_little_endian(const uint8_t* p) {
  uint64_t x;
  __builtin_memcpy(&x, p, sizeof x);
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
  x = __builtin_bswap64(x);
#endif
  return x;
}

#if defined(__AVX2__)
CONVOY_INLINE __m128i load(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
// Reads 16 bytes.
CONVOY_INLINE __m128i unpack(const uint8_t* p, uint32_t w) {
  const __m128i pairs = _mm_shuffle_epi8(load(p), load(kUnpacking.byte[w]));
  return _mm_sra_epi16(_mm_mullo_epi16(pairs, load(kUnpacking.factor[w])),
                       _mm_cvtsi32_si128(kUnpacking.shift[w]));
}
CONVOY_INLINE void unpack_to(int16_t* out, const uint8_t* p, uint32_t w) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), unpack(p, w));
}
#else
CONVOY_INLINE void unpack_to(int16_t* out, const uint8_t* p, uint32_t w) {
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t pair = p[kUnpacking.byte[w][i][0]] | p[kUnpacking.byte[w][i][1]] << 8;
    out[i] = static_cast<int16_t>(
        static_cast<int16_t>(static_cast<uint16_t>(pair * kUnpacking.factor[w][i])) >>
        kUnpacking.shift[w]);
  }
}
#endif

// The first coefficients of all blocks; what is behind them, or nullptr.
CONVOY_INLINE const uint8_t* decode_first_ones(const CoefficientRow& row) {
  const uint8_t* p = row.begin;
  uint16_t before = 0;
  for (int i = 0; i < row.blocks; i += kGroup) {
    if (p >= row.end || !is_width(*p)) return nullptr;
    const uint32_t w = *p++;
    int16_t* const numbers = row.first_ones + i;
    unpack_to(numbers, p, w);
    for (int k = 0; k < kGroup; ++k) {
      before = static_cast<uint16_t>(before + static_cast<uint16_t>(numbers[k]));
      numbers[k] = static_cast<int16_t>(before);
    }
    p += w;
  }
  return p <= row.end ? p : nullptr;
}

struct Header {
  uint32_t groups = 0;
  uint32_t widths = 0;  // 4 bits each; 0 behind the last group
  uint32_t bytes = 0;   // of itself
  uint32_t data = 0;    // bytes of all groups
};

CONVOY_INLINE Header read_header(const uint8_t* p) {
  const uint64_t x = load_little_endian(p);
  Header header;
  header.groups = static_cast<uint32_t>(x & 15);
  header.widths = static_cast<uint32_t>(x >> 4 & ((uint64_t{1} << (4 * (header.groups & 15))) - 1));
  header.bytes = 1 + header.groups / 2;
  const uint32_t pairs = (header.widths & 0x0f0f0f0f) + (header.widths >> 4 & 0x0f0f0f0f);
  header.data = pairs * 0x01010101u >> 24;
  return header;
}

#if defined(__AVX512BW__)

// The place of each coefficient behind the first one, turned round: where a place's comes from.
struct Sources {
  uint16_t group_place[2][kBlock / 2];
};
constexpr Sources make_sources() {
  Sources out{};
  for (int k = 0; k < kBlock; ++k) {
    const int place = kBlockPlaces.zigzag[k];
    // The first one's is replaced.
    out.group_place[place / 32][place % 32] = static_cast<uint16_t>(k > 0 ? k - 1 : kBlock - 1);
  }
  return out;
}
alignas(64) constexpr Sources kSources = make_sources();

CONVOY_INLINE __m512i four_groups(const uint8_t*& p, uint32_t widths) {
  __m128i group[4];
  for (int i = 0; i < 4; ++i, widths >>= 4) {
    group[i] = unpack(p, widths & 15);
    p += widths & 15;
  }
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(group[0]), group[1], 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(group[2]), group[3], 1);
  // Not by _mm512_inserti64x4(), of which GCC 12 thinks that it reads something undefined.
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
}

CONVOY_INLINE void decode_block(int16_t* out, const uint8_t* p, const Header& header) {
  const __m512i low = four_groups(p, header.widths & 0xffff);
  const __m512i high =
      header.groups > 4 ? four_groups(p, header.widths >> 16) : _mm512_setzero_si512();
  for (const auto& sources : kSources.group_place) {
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(low, _mm512_load_si512(sources), high));
    out += kBlock / 2;
  }
}

#else

CONVOY_INLINE void decode_block(int16_t* out, const uint8_t* p, const Header& header) {
  __builtin_memset(out, 0, kBlock * sizeof *out);
  uint32_t widths = header.widths;
  for (uint32_t g = 0; g < header.groups; ++g, widths >>= 4) {
    int16_t numbers[kGroup];
    unpack_to(numbers, p, widths & 15);
    p += widths & 15;
    const uint8_t* const places = &kBlockPlaces.zigzag[1 + size_t{kGroup} * g];
    const int count = g + 1 < kMaxGroups ? kGroup : kGroup - 1;
    for (int k = 0; k < count; ++k) out[places[k]] = numbers[k];
  }
}

#endif

const uint8_t* decode(const CoefficientRow& row) {
  const uint8_t* p = decode_first_ones(row);
  if (p == nullptr) return nullptr;
  for (int i = 0; i < row.last; ++i) {
    if (p >= row.end) return nullptr;
    const Header header = read_header(p);
    if (header.groups > kMaxGroups) return nullptr;
    p += header.bytes;
    if (i >= row.first) {
      const int n = i - row.first;
      const ptrdiff_t at = static_cast<ptrdiff_t>(n / row.h) * row.step + n % row.h;
      int16_t* const out = row.out + at * kBlock;
      if (!row.dc_only) decode_block(out, p, header);
      out[0] = row.first_ones[i];
      row.is_more[at] = header.groups != 0 && !row.dc_only ? 1 : 0;
    }
    p += header.data;
  }
  return p <= row.end ? p : nullptr;
}

}  // namespace

const CoefficientKernels coefficient_kernels = {decode};

}  // namespace convoy::data::CONVOY_ISA
