// Every instruction set's kernels give the bits of the baseline's: on ordinary numbers, infinities,
// NaN and denormals.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "ops/batch_norm_kernels.h"
#include "ops/core/digest_term.h"
#include "ops/core/random.h"
#include "ops/digest_kernels.h"
#include "ops/elementwise_kernels.h"
#include "ops/local_response_norm_kernels.h"
#include "ops/optim/optimizer_kernels.h"
#include "ops/pool_kernels.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace convoy::ops {
namespace {

// The tables of one element type, for one instruction set.
template <typename T>
struct Tables {
  const char* isa;
  const BatchNormKernels<T>* batch_norm;
  const ElementwiseKernels<T>* elementwise;
  const PoolKernels<T>* pool;
  const LocalResponseNormKernels<T>* local_response_norm;
};

// Those that this processor can run; the baseline is the first.
template <typename T>
std::vector<Tables<T>> tables();
#define TABLES(isa, suffix)                                                      \
  {                                                                              \
#isa, &isa::batch_norm_kernels_##suffix, &isa::elementwise_kernels_##suffix, \
        &isa::pool_kernels_##suffix, &isa::local_response_norm_kernels_##suffix  \
  }
#if defined(__x86_64__)
#define ALL_TABLES(suffix)                                                              \
  {                                                                                     \
    TABLES(isa_baseline, suffix), TABLES(isa_avx2, suffix), TABLES(isa_avx512, suffix), \
        TABLES(isa_avx512_bf16, suffix)                                                 \
  }
#else
#define ALL_TABLES(suffix) \
  { TABLES(isa_baseline, suffix) }
#endif
template <typename T>
std::vector<Tables<T>> runnable(std::vector<Tables<T>> all) {
  all.resize(std::min(all.size(), static_cast<size_t>(cpu_isa()) + 1));
  return all;
}
template <>
std::vector<Tables<float>> tables() {
  return runnable<float>(ALL_TABLES(fp32));
}
template <>
std::vector<Tables<Bfloat16>> tables() {
  return runnable<Bfloat16>(ALL_TABLES(bf16));
}

// Two results are the same if their bits are, or both are NaN: which of two NaNs an addition hands
// on depends on the order of its operands, which the compiler chooses.
bool same(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
}
bool same(Bfloat16 a, Bfloat16 b) {
  return a.bits == b.bits || (std::isnan(to_float(a)) && std::isnan(to_float(b)));
}
template <typename T>
bool same(T a, T b) {
  return a == b;
}

// What one call of a kernel wrote, whatever its types.
class Outputs {
 public:
  template <typename T>
  void add(const std::vector<T>& values) {
    std::vector<float> f;
    for (const T& v : values) {
      if constexpr (std::is_same_v<T, Bfloat16>)
        f.push_back(to_float(v));
      else
        f.push_back(static_cast<float>(v));  // bytes and masks are exact too
    }
    values_.push_back(f);
  }
  void expect_same(const Outputs& baseline, const std::string& what) const {
    ASSERT_EQ(values_.size(), baseline.values_.size()) << what;
    for (size_t o = 0; o < values_.size(); ++o)
      for (size_t i = 0; i < values_[o].size(); ++i)
        ASSERT_TRUE(same(values_[o][i], baseline.values_[o][i]))
            << what << ", output " << o << " [" << i << "]: " << values_[o][i] << ", baseline "
            << baseline.values_[o][i];
  }

 private:
  std::vector<std::vector<float>> values_;
};

// Where numbers come from. kAnyBits: every 32-bit pattern is as likely as another, so one in 256
// is an infinity or NaN and one in 256 a denormal.
enum class Draw { kOrdinary, kAnyBits };

uint32_t random_word(uint64_t stream, size_t i) {
  return random4(11, Purpose::kSyntheticData, stream, i)[0];
}

template <typename T>
std::vector<T> random_vector(Draw draw, uint64_t stream, size_t n) {
  std::vector<T> out(n);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t word = random_word(stream, i);
    float v;
    std::memcpy(&v, &word, sizeof v);
    if (draw == Draw::kOrdinary) v = 4 * uniform_float(word) - 2;
    if constexpr (std::is_same_v<T, Bfloat16>)
      out[i] = to_bfloat16(v);
    else
      out[i] = v;
  }
  return out;
}

// Denormals are not flushed in the thread that runs a test, whatever a CpuDevice did before.
class KernelsTest : public ::testing::Test {
 protected:
#if defined(__x86_64__)
  void SetUp() override {
    control_ = _mm_getcsr();
    _mm_setcsr(control_ & ~0x8040u);  // flush to zero, denormals are zero
  }
  void TearDown() override {
    _mm_setcsr(control_);
  }

 private:
  unsigned control_ = 0;
#endif
};

// Calls body(tables, draw, outputs) for each draw, and compares every instruction set's outputs.
template <typename T, typename Body>
void compare_tables(const std::string& what, Body body) {
  for (const Draw draw : {Draw::kOrdinary, Draw::kAnyBits}) {
    Outputs baseline;
    for (const Tables<T>& t : tables<T>()) {
      Outputs out;
      body(t, draw, out);
      if (t.isa == tables<T>()[0].isa)
        baseline = out;
      else
        out.expect_same(baseline,
                        what + " " + t.isa + (draw == Draw::kAnyBits ? ", any bits" : ""));
    }
  }
}

constexpr int kChannels[] = {1, 3, 8, 15, 16, 17, 24, 32, 33, 64, 100, 272};

template <typename T>
void compare_batch_norm() {
  for (const int64_t c : kChannels) {
    const int64_t rows = 300;  // a block of 256 and a short one
    const auto n = static_cast<size_t>(rows * c), channels = static_cast<size_t>(c);
    const size_t words = static_cast<size_t>(rows) * ((channels + 15) / 16);
    compare_tables<T>(fmt::format("batch_norm, {} channels", c), [&](const Tables<T>& t, Draw draw,
                                                                     Outputs& out) {
      const auto x = random_vector<T>(draw, 0, n), residual = random_vector<T>(draw, 1, n);
      const auto dy0 = random_vector<T>(draw, 2, n), dy1 = random_vector<T>(draw, 3, n);
      const auto mean = random_vector<float>(Draw::kOrdinary, 4, channels);
      const auto a = random_vector<float>(Draw::kOrdinary, 5, channels);
      const auto b = random_vector<float>(Draw::kOrdinary, 6, channels);
      const auto k = random_vector<float>(Draw::kOrdinary, 7, channels);
      std::vector<uint16_t> mask(words);
      for (size_t i = 0; i < words; ++i) mask[i] = static_cast<uint16_t>(random_word(8, i));

      std::vector<float> partial(2 * 2 * channels);
      t.batch_norm->statistics(partial.data(), x.data(), mean.data(), rows, c, 1);
      out.add(partial);
      for (const bool relu : {false, true})
        for (const T* r : {static_cast<const T*>(nullptr), residual.data()})
          for (const bool with_mask : {false, true}) {
            if (with_mask && !relu) continue;
            std::vector<T> y(n);
            std::vector<uint16_t> written(words);
            t.batch_norm->normalise(y.data(), with_mask ? written.data() : nullptr, x.data(), r,
                                    mean.data(), a.data(), b.data(), rows, c, relu, 1);
            out.add(y);
            out.add(written);
          }
      for (const uint16_t* m :
           {static_cast<const uint16_t*>(nullptr), std::as_const(mask).data()}) {
        for (const T* second : {static_cast<const T*>(nullptr), dy1.data()})
          for (const bool stored : {false, true}) {
            std::vector<T> g(n);
            t.batch_norm->backward_sums(partial.data(), stored ? g.data() : nullptr, dy0.data(),
                                        second, m, x.data(), mean.data(), rows, c, 1);
            out.add(partial);
            out.add(g);
          }
        std::vector<T> dx(n);
        t.batch_norm->backward_apply(dx.data(), dy0.data(), m, x.data(), mean.data(), a.data(),
                                     b.data(), k.data(), rows, c, 1);
        out.add(dx);
      }
    });
  }
}

template <typename T>
void compare_elementwise() {
  for (const size_t n : {1, 15, 16, 17, 1000, 40000})
    compare_tables<T>(fmt::format("elementwise, {} elements", n), [&](const Tables<T>& t, Draw draw,
                                                                      Outputs& out) {
      const auto size = static_cast<int64_t>(n);
      const auto a = random_vector<T>(draw, 0, n), b = random_vector<T>(draw, 1, n);
      std::vector<T> y(n);
      std::vector<uint16_t> mask((n + 15) / 16);
      t.elementwise->relu(y.data(), nullptr, a.data(), size, 1);
      out.add(y);
      t.elementwise->relu(y.data(), mask.data(), a.data(), size, 1);
      out.add(y);
      out.add(mask);
      t.elementwise->keep(y.data(), b.data(), mask.data(), 1.25f, size, 1);
      out.add(y);
      t.elementwise->add(y.data(), a.data(), b.data(), size, 1);
      out.add(y);
      t.elementwise->multiply(y.data(), a.data(), b.data(), size, 1);
      out.add(y);
      for (const float sign : {1.0f, -1.0f}) {
        t.elementwise->sigmoid(y.data(), a.data(), sign, size, 1);
        out.add(y);
        t.elementwise->sigmoid_backward(y.data(), b.data(), a.data(), sign, size, 1);
        out.add(y);
      }
      std::vector<uint8_t> pixels(2 * n);
      for (size_t i = 0; i < pixels.size(); ++i)
        pixels[i] = static_cast<uint8_t>(random_word(2, i));
      std::vector<T> x(2 * n);
      t.elementwise->normalise(x.data(), pixels.data(), random_vector<float>(draw, 3, n).data(),
                               random_vector<float>(draw, 4, n).data(), 2, size, 1);
      out.add(x);
    });
}

template <typename T>
void compare_pool() {
  // The usual windows, which the kernels know as constants, and another one.
  const auto compare = [](int64_t c, int64_t kernel, int64_t stride, int64_t padding) {
    PoolGeometry g = {.n = 2, .c = c, .h = 7, .w = 6};
    g.kernel = kernel;
    g.stride = stride;
    g.padding = padding;
    g.p = (g.h + 2 * padding - kernel) / stride + 1;
    g.q = (g.w + 2 * padding - kernel) / stride + 1;
    const auto n = static_cast<size_t>(g.n * g.h * g.w * c);
    const auto m = static_cast<size_t>(g.n * g.p * g.q * c);
    compare_tables<T>(
        fmt::format("pool {}/{}, {} channels", kernel, stride, c),
        [&](const Tables<T>& t, Draw draw, Outputs& out) {
          const auto x = random_vector<T>(draw, 0, n), dy = random_vector<T>(draw, 1, m);
          std::vector<T> y(m), dx(n);
          std::vector<uint8_t> place(m);
          t.pool->max_forward(y.data(), nullptr, x.data(), g, 1);
          out.add(y);
          t.pool->max_forward(y.data(), place.data(), x.data(), g, 1);
          out.add(y);
          out.add(place);
          t.pool->max_backward(dx.data(), dy.data(), place.data(), g, 1);
          out.add(dx);
          for (const bool include_pad : {false, true}) {
            t.pool->avg_forward(y.data(), x.data(), g, include_pad, 1);
            out.add(y);
            t.pool->avg_backward(dx.data(), dy.data(), g, include_pad, 1);
            out.add(dx);
          }
          const std::vector<float> per_row(static_cast<size_t>(g.p), 1 / 3.0f);
          const std::vector<float> per_column(static_cast<size_t>(g.q), 0.5f);
          t.pool->adaptive_forward(y.data(), x.data(), per_row.data(), per_column.data(), g, 1);
          out.add(y);
          t.pool->adaptive_backward(dx.data(), dy.data(), per_row.data(), per_column.data(), g, 1);
          out.add(dx);
        });
  };
  for (const int64_t c : kChannels) {
    compare(c, 3, 2, 1);
    compare(c, 3, 1, 1);
    compare(c, 2, 2, 0);
    compare(c, 3, 3, 1);
  }
}

template <typename T>
void compare_local_response_norm() {
  for (const int64_t c : kChannels) {
    const ChannelWindow w = {.c = c,
                             .before = std::min<int64_t>(2, c - 1),
                             .behind = std::min<int64_t>(3, c - 1),
                             .scale = 0.4f,
                             .beta = 0.75f,
                             .k = 1.0f};
    constexpr int64_t kRows = 7;
    const auto n = static_cast<size_t>(kRows * c);
    compare_tables<T>(fmt::format("local response norm, {} channels", c), [&](const Tables<T>& t,
                                                                              Draw draw,
                                                                              Outputs& out) {
      const auto x = random_vector<T>(draw, 0, n);
      const auto dy = random_vector<T>(draw, 1, n);
      std::vector<T> y(n);
      std::vector<float> scratch(static_cast<size_t>(local_response_norm_scratch(w)));
      t.local_response_norm->forward(y.data(), scratch.data(), x.data(), w, kRows, 1);
      out.add(y);
      t.local_response_norm->backward(y.data(), scratch.data(), dy.data(), x.data(), w, kRows, 1);
      out.add(y);
    });
  }
}

// The optimizer has one table, for fp32 parameters.
std::vector<const OptimizerKernels*> optimizer_tables() {
  std::vector<const OptimizerKernels*> all = {&isa_baseline::optimizer_kernels};
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kAvx2) all.push_back(&isa_avx2::optimizer_kernels);
  if (cpu_isa() >= Isa::kAvx512) all.push_back(&isa_avx512::optimizer_kernels);
  if (cpu_isa() >= Isa::kAvx512Bf16) all.push_back(&isa_avx512_bf16::optimizer_kernels);
#endif
  return all;
}

void compare_optimizer(Draw draw, size_t n, bool nesterov, bool with_ema) {
  const SgdFactors factors = {.gradient = 0.7f,
                              .weight_decay = 1e-4f,
                              .momentum = 0.9f,
                              .learning_rate = 0.1f,
                              .nesterov = nesterov,
                              .ema = with_ema ? 0.01f : 0.0f};
  Outputs baseline;
  for (const OptimizerKernels* t : optimizer_tables()) {
    auto w = random_vector<float>(draw, 0, n), v = random_vector<float>(draw, 1, n);
    auto ema = random_vector<float>(draw, 2, n);
    const auto g = random_vector<float>(draw, 3, n);
    const auto size = static_cast<int64_t>(n);
    t->sgd(w.data(), v.data(), with_ema ? ema.data() : nullptr, g.data(), factors, size);
    Outputs out;
    out.add(w);
    out.add(v);
    out.add(ema);
    out.add(std::vector<float>{t->squares(g.data(), size)});
    if (t == optimizer_tables()[0])
      baseline = out;
    else
      out.expect_same(baseline, fmt::format("optimizer, {} elements", n));
  }
}

TEST_F(KernelsTest, BatchNormHasTheSameBitsInEveryInstructionSet) {
  compare_batch_norm<float>();
  compare_batch_norm<Bfloat16>();
}
TEST_F(KernelsTest, ElementwiseHasTheSameBitsInEveryInstructionSet) {
  compare_elementwise<float>();
  compare_elementwise<Bfloat16>();
}
TEST_F(KernelsTest, PoolHasTheSameBitsInEveryInstructionSet) {
  compare_pool<float>();
  compare_pool<Bfloat16>();
}
TEST_F(KernelsTest, LocalResponseNormHasTheSameBitsInEveryInstructionSet) {
  compare_local_response_norm<float>();
  compare_local_response_norm<Bfloat16>();
}

TEST_F(KernelsTest, OptimizerHasTheSameBitsInEveryInstructionSet) {
  for (const Draw draw : {Draw::kOrdinary, Draw::kAnyBits})
    for (const size_t n : {1, 15, 16, 17, 100, 4096})
      for (const bool nesterov : {false, true})
        for (const bool with_ema : {false, true}) compare_optimizer(draw, n, nesterov, with_ema);
}

TEST_F(KernelsTest, DigestsAreTheSameInEveryInstructionSet) {
  std::vector<const DigestKernels*> all = {&isa_baseline::digest_kernels};
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kAvx2) all.push_back(&isa_avx2::digest_kernels);
  if (cpu_isa() >= Isa::kAvx512) all.push_back(&isa_avx512::digest_kernels);
  if (cpu_isa() >= Isa::kAvx512Bf16) all.push_back(&isa_avx512_bf16::digest_kernels);
#endif
  for (const uint64_t index : {uint64_t{0}, uint64_t{7}, (uint64_t{1} << 32) - 5})
    for (const size_t n : {0, 1, 7, 8, 15, 16, 17, 100, 4096}) {
      const auto x = random_vector<float>(Draw::kAnyBits, n, n);
      uint64_t expected = 0;
      for (size_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], sizeof bits);
        expected += digest_term(index + i, bits);
      }
      for (const DigestKernels* t : all)
        EXPECT_EQ(t->digest(x.data(), index, static_cast<int64_t>(n)), expected) << n;
    }
}

TEST_F(KernelsTest, TheProcessorsInstructionSetsAreThere) {
  for (size_t i = 0; i < tables<float>().size(); ++i)
    EXPECT_EQ(tables<float>()[i].isa, std::string("isa_") + name_of(static_cast<Isa>(i)));
  if (cpu_isa() != Isa::kAvx512Bf16)
    GTEST_SKIP() << "SKIPPED: this processor compares no instruction set above "
                 << name_of(cpu_isa());
}

// Stores round as to_bfloat16 does, whole vectors and single elements. y = (0 - mean) * 1 takes
// any fp32 to the store.
TEST_F(KernelsTest, StoresRoundToBfloat16) {
  std::vector<float> values;
  for (uint32_t i = 0; i < 5000; ++i) {
    const uint32_t high = random_word(0, i) & 0xffff0000u;
    // Exact, just below, on and just above the tie between two neighbours, and anything.
    for (const uint32_t low :
         {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu, random_word(1, i) & 0xffffu}) {
      const uint32_t word = high | low;
      float v;
      std::memcpy(&v, &word, sizeof v);
      values.push_back(v);
    }
  }
  for (const uint32_t word : {0x7f800000u, 0xff800000u, 0x7f7fffffu, 0xff7fffffu, 0x7f800001u,
                              0x7fc00000u, 0xffffffffu, 0u, 0x80000000u, 1u, 0x80008000u}) {
    float v;
    std::memcpy(&v, &word, sizeof v);
    values.push_back(v);
  }
  values.insert(values.end(), 7, 1.0f + 0x1p-8f);
  ASSERT_NE(values.size() % 16, 0u);
  const size_t n = values.size();
  const std::vector<uint8_t> pixels(n);
  const std::vector<float> ones(n, 1.0f);
  for (const auto& t : tables<Bfloat16>()) {
    std::vector<Bfloat16> y(n);
    t.elementwise->normalise(y.data(), pixels.data(), values.data(), ones.data(), 1,
                             static_cast<int64_t>(n), 1);
    for (size_t i = 0; i < n; ++i)
      ASSERT_TRUE(same(y[i], to_bfloat16(0.0f - values[i])))
          << t.isa << ": " << values[i] << " became " << to_float(y[i]);
  }
}

// Sums of any two bf16 numbers, in fp32, rounded once.
TEST_F(KernelsTest, AddOfBfloat16RoundsOnce) {
  std::vector<Bfloat16> a, b;
  for (uint32_t bits = 0; bits < 65536; ++bits)
    for (int i = 0; i < 4; ++i) {
      a.push_back({static_cast<uint16_t>(bits)});
      // The second one of a similar size, so that the sum has bits to round.
      b.push_back({static_cast<uint16_t>((bits & 0x7f80u) ^ (random_word(2, a.size()) & 0x81ffu))});
    }
  for (const auto& t : tables<Bfloat16>()) {
    std::vector<Bfloat16> y(a.size());
    t.elementwise->add(y.data(), a.data(), b.data(), static_cast<int64_t>(a.size()), 1);
    for (size_t i = 0; i < a.size(); ++i)
      ASSERT_TRUE(same(y[i], to_bfloat16(to_float(a[i]) + to_float(b[i]))))
          << t.isa << ": " << to_float(a[i]) << " + " << to_float(b[i]) << " became "
          << to_float(y[i]);
  }
}

}  // namespace
}  // namespace convoy::ops
