// Winograd's kernels against the reference, and that no bit of theirs depends on threads, on the
// instruction set or on how a batch is cut.
#include "ops/winograd_kernels.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "ops/onednn.h"
#include "ops/winograd_cpu.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

template <typename T>
struct Table {
  const char* isa;
  const WinogradKernels<T>* kernels;
};
// The tables of one tile that this processor can run; the baseline has none.
template <typename T>
struct Tile {
  const char* name;
  std::vector<Table<T>> tables;
};
template <typename T>
std::vector<Tile<T>> tiles();
#if defined(__x86_64__)
#define CONVOY_TILE(name, T, table)                                                             \
  Tile<T> {                                                                                     \
    name, of_this_processor<T>({&isa_avx2::table, &isa_avx512::table, &isa_avx512_bf16::table}) \
  }
template <typename T>
std::vector<Table<T>> of_this_processor(const std::vector<const WinogradKernels<T>*>& kernels) {
  std::vector<Table<T>> all;
  if (cpu_isa() >= Isa::kAvx2) all.push_back({"avx2", kernels[0]});
  if (cpu_isa() >= Isa::kAvx512) all.push_back({"avx512", kernels[1]});
  if (cpu_isa() >= Isa::kAvx512Bf16) all.push_back({"avx512_bf16", kernels[2]});
  return all;
}
template <>
std::vector<Tile<float>> tiles() {
  return {CONVOY_TILE("4x4", float, winograd_kernels_4x4_fp32)};
}
template <>
std::vector<Tile<Bfloat16>> tiles() {
  return {CONVOY_TILE("4x4", Bfloat16, winograd_kernels_4x4_bf16),
          CONVOY_TILE("7x4", Bfloat16, winograd_kernels_7x4_bf16),
          CONVOY_TILE("7x7", Bfloat16, winograd_kernels_7x7_bf16)};
}
#else
template <typename T>
std::vector<Tile<T>> tiles() {
  return {};
}
#endif
template <typename T>
bool none() {
  return tiles<T>().empty() || tiles<T>()[0].tables.empty();
}

// One more panel than fits, narrow last panels, blocks that end within a row, odd sizes, images
// smaller than a tile, long sums, more channels than a gradient takes at once; per tile one of
// which a block has as many tiles as it may and ends within a row.
const WinogradShape kShapes[] = {
    {.n = 2, .h = 8, .w = 8, .c = 64, .k = 64},   {.n = 3, .h = 7, .w = 7, .c = 16, .k = 16},
    {.n = 1, .h = 5, .w = 9, .c = 32, .k = 48},   {.n = 3, .h = 1, .w = 1, .c = 16, .k = 32},
    {.n = 1, .h = 1, .w = 6, .c = 48, .k = 16},   {.n = 1, .h = 23, .w = 2, .c = 16, .k = 80},
    {.n = 3, .h = 14, .w = 11, .c = 16, .k = 96}, {.n = 1, .h = 3, .w = 4, .c = 144, .k = 16},
    {.n = 2, .h = 21, .w = 30, .c = 16, .k = 16}, {.n = 1, .h = 8, .w = 6, .c = 2048, .k = 16},
    {.n = 1, .h = 3, .w = 3, .c = 272, .k = 288}, {.n = 2, .h = 34, .w = 33, .c = 32, .k = 48},
    {.n = 1, .h = 56, .w = 32, .c = 16, .k = 16}, {.n = 1, .h = 98, .w = 32, .c = 16, .k = 48},
    {.n = 1, .h = 98, .w = 56, .c = 16, .k = 16},
};

std::string describe(const WinogradShape& s) {
  return fmt::format("[{}, {}, {}, {}] to {}", s.n, s.c, s.h, s.w, s.k);
}

template <typename T>
constexpr DType kType = DType::kFloat32;
template <>
constexpr DType kType<Bfloat16> = DType::kBfloat16;

float as_float(float v) {
  return v;
}
float as_float(Bfloat16 v) {
  return to_float(v);
}

// As the type has them.
template <typename T>
std::vector<float> uniform(int64_t n, uint64_t stream) {
  std::vector<float> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = round_to(kType<T>, random_value(3, stream, i));
  return v;
}

template <typename T>
struct Data {
  explicit Data(const WinogradShape& s)
      : x(uniform<T>(s.n * s.h * s.w * s.c, 0)),
        dy(uniform<T>(s.n * s.h * s.w * s.k, 1)),
        w(uniform<T>(s.k * s.c * 9, 2)),
        bias(uniform<float>(s.k, 3)) {}
  std::vector<float> x, dy, w, bias;
};

struct Results {
  std::vector<float> y, dx, dw, db;
  bool operator==(const Results&) const = default;  // false where there is a NaN
};

// Memory that starts as NaN, between guard zones.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : n_(static_cast<size_t>(n)), memory_((n_ + 2 * kGuard) * sizeof(T)) {
    std::memset(memory_.data(), 0xff, (n_ + 2 * kGuard) * sizeof(T));
  }
  explicit Guarded(const std::vector<float>& values)
      : Guarded(static_cast<int64_t>(values.size())) {
    for (size_t i = 0; i < n_; ++i)
      if constexpr (std::is_same_v<T, float>)
        data()[i] = values[i];
      else
        data()[i] = to_bfloat16(values[i]);
  }
  ~Guarded() {
    for (size_t i = 0; i < kGuard; ++i) {
      EXPECT_TRUE(std::isnan(as_float(memory_.as<T>()[i]))) << "written before its begin";
      EXPECT_TRUE(std::isnan(as_float(data()[n_ + i]))) << "written behind its end";
    }
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() const { return memory_.as<T>() + kGuard; }
  std::vector<float> values() const {
    std::vector<float> v(n_);
    for (size_t i = 0; i < n_; ++i) v[i] = as_float(data()[i]);
    return v;
  }

 private:
  static constexpr size_t kGuard = 64;
  size_t n_;
  AlignedBuffer memory_;
};

// All three passes, `step` images at a time.
template <typename T>
Results run(const WinogradKernels<T>& kernels, const WinogradShape& s, const Data<T>& data,
            int threads, int64_t step) {
  const Guarded<float> u(kernels.weight_floats(s.c, s.k)), du(kernels.weight_floats(s.c, s.k));
  const Guarded<float> u_backward(kernels.weight_floats(s.k, s.c));
  kernels.pack(u.data(), data.w.data(), s.c, s.k, threads);
  kernels.pack_backward(u_backward.data(), data.w.data(), s.k, s.c, threads);
  const int64_t pixels = s.h * s.w;
  const Guarded<T> x(data.x), dy(data.dy), y(s.n * pixels * s.k), dx(s.n * pixels * s.c);
  const Guarded<float> dw(s.k * s.c * 9), db(s.k);
  for (int64_t n = 0; n < s.n; n += step) {
    WinogradShape part = s;
    part.n = std::min(step, s.n - n);
    WinogradShape turned = part;
    std::swap(turned.c, turned.k);
    const T* part_x = x.data() + n * pixels * s.c;
    const T* part_dy = dy.data() + n * pixels * s.k;
    const Guarded<float> forward(kernels.forward_scratch(part, threads));
    kernels.forward(y.data() + n * pixels * s.k, part_x, u.data(), {.bias = data.bias.data()}, part,
                    forward.data(), threads);
    const Guarded<float> backward(kernels.forward_scratch(turned, threads));
    kernels.forward(dx.data() + n * pixels * s.c, part_dy, u_backward.data(), {}, turned,
                    backward.data(), threads);
    if (!kernels.add_gradient) continue;
    const Guarded<float> gradient(kernels.gradient_scratch(part, threads));
    kernels.add_gradient(du.data(), db.data(), part_x, part_dy, part, n == 0, gradient.data(),
                         threads);
  }
  if (!kernels.add_gradient) return {y.values(), dx.values(), {}, {}};
  kernels.unpack_gradient(dw.data(), du.data(), s.c, s.k, threads);
  return {y.values(), dx.values(), dw.values(), db.values()};
}

template <typename T>
class Winograd : public testing::Test {};
using Types = testing::Types<float, Bfloat16>;
TYPED_TEST_SUITE(Winograd, Types);

TYPED_TEST(Winograd, EqualsReference) {
  using T = TypeParam;
  if (none<T>()) GTEST_SKIP() << "SKIPPED: no fused multiply-add";
  for (const WinogradShape& s : kShapes) {
    const Data<T> data(s);
    const Conv2d spec = {.out_channels = s.k, .kernel = 3, .padding = 1, .bias = true};
    reference::Node node;
    node.x.emplace_back(Shape{s.n, s.c, s.h, s.w},
                        std::vector<double>(data.x.begin(), data.x.end()));
    node.parameters = {{data.w.begin(), data.w.end()}, {data.bias.begin(), data.bias.end()}};
    reference::forward(spec, node);
    node.dy = reference::Array(node.y.shape, {data.dy.begin(), data.dy.end()});
    reference::backward(spec, node);
    for (const Tile<T>& tile : tiles<T>())
      for (const auto& table : tile.tables)
        for (const int64_t step : {s.n, int64_t{1}}) {
          SCOPED_TRACE(fmt::format("{} {} {}, {} images at a time", tile.name, table.isa,
                                   describe(s), step));
          const Results out = run(*table.kernels, s, data, 1, step);
          expect_close("y", out.y, node.y.v, kType<T>);
          expect_close("dx", out.dx, node.dx[0].v, kType<T>);
          if (!table.kernels->add_gradient) continue;
          expect_close("dw", out.dw, node.gradients[0], DType::kFloat32);
          expect_close("db", out.db, node.gradients[1], DType::kFloat32);
        }
  }
}

bool wins(const Conv2d& spec, const Shape& x, DType type) {
  const OpConfig config = {
      .x = {x}, .y = output_shape(spec, {x}), .batch = x.n, .type = type, .y_type = type};
  return winograd_wins(spec, config);
}

TEST(WinogradConv2d, IsTakenWhereItWins) {
  if (none<float>()) GTEST_SKIP() << "SKIPPED: no fused multiply-add";
  const Conv2d spec = {.out_channels = 64, .kernel = 3, .padding = 1};
  const bool bf16 = cpu_supports_bf16() && !onednn::multiplies_by_amx();
  for (const int64_t size : {56, 32, 28, 14, 8, 7}) {
    EXPECT_TRUE(wins(spec, {2, 64, size, size}, DType::kFloat32)) << size;
    EXPECT_EQ(wins(spec, {2, 64, size, size}, DType::kBfloat16), bf16) << size;
  }
  // Tiles that hang over the edge.
  EXPECT_TRUE(wins(spec, {2, 64, 6, 6}, DType::kFloat32));
  EXPECT_FALSE(wins(spec, {2, 64, 6, 6}, DType::kBfloat16));
  for (const int64_t size : {5, 3, 2, 1})
    EXPECT_FALSE(wins(spec, {2, 64, size, size}, DType::kFloat32)) << size;
  // What the kernels do not compute.
  const Shape x = {2, 64, 28, 28};
  EXPECT_FALSE(
      wins({.out_channels = 64, .kernel = 3, .stride = 2, .padding = 1}, x, DType::kFloat32));
  EXPECT_FALSE(wins({.out_channels = 64, .kernel = 3}, x, DType::kFloat32));
  EXPECT_FALSE(
      wins({.out_channels = 64, .kernel = 3, .padding = 1, .groups = 2}, x, DType::kFloat32));
  EXPECT_FALSE(wins({.out_channels = 64, .kernel = 5, .padding = 1}, x, DType::kFloat32));
  EXPECT_FALSE(wins({.out_channels = 60, .kernel = 3, .padding = 1}, x, DType::kFloat32));
  EXPECT_FALSE(wins(spec, {2, 3, 28, 28}, DType::kFloat32));
}

TEST(WinogradConv2d, TakesTheLargestTilesThatPay) {
  using enum WinogradTile;
  const auto expect = [](DType type, int64_t h, int64_t w, WinogradTile forward,
                         WinogradTile gradient) {
    const WinogradTiles tiles = winograd_tiles(type, {2, 64, h, w});
    EXPECT_TRUE(tiles.forward == forward && tiles.gradient == gradient) << h << "x" << w;
  };
  for (const int64_t size : {224, 56, 28, 14, 13}) expect(DType::kBfloat16, size, size, k7x7, k7x4);
  expect(DType::kBfloat16, 7, 7, k7x4, k7x4);
  expect(DType::kBfloat16, 7, 8, k7x4, k7x4);
  for (const int64_t size : {32, 16, 8, 4}) expect(DType::kBfloat16, size, size, k4x4, k4x4);
  expect(DType::kBfloat16, 8, 7, k4x4, k4x4);  // 7 is for rows
  for (const int64_t size : {56, 14, 7}) expect(DType::kFloat32, size, size, k4x4, k4x4);
}

TYPED_TEST(Winograd, BitsDependOnTheShapeAlone) {
  using T = TypeParam;
  if (none<T>()) GTEST_SKIP() << "SKIPPED: no fused multiply-add";
  for (const WinogradShape& s : kShapes)
    for (const auto& [name, tables] : tiles<T>()) {
      SCOPED_TRACE(fmt::format("{} {}", name, describe(s)));
      const Data<T> data(s);
      const Results expected = run(*tables[0].kernels, s, data, 1, s.n);
      for (const auto& table : tables)
        for (const int threads : {1, 2, 3, 4, 9})
          EXPECT_TRUE(run(*table.kernels, s, data, threads, s.n) == expected)
              << table.isa << ", " << threads << " threads";
      // The batch decides in which order images are summed, but only that.
      const Results one_by_one = run(*tables[0].kernels, s, data, 1, 1);
      for (const auto& table : tables)
        for (const int threads : {3, 9})
          EXPECT_TRUE(run(*table.kernels, s, data, threads, 1) == one_by_one)
              << table.isa << ", " << threads << " threads, one image at a time";
      EXPECT_TRUE(one_by_one.y == expected.y);
      EXPECT_TRUE(one_by_one.dx == expected.dx);
    }
}

}  // namespace
}  // namespace convoy::ops
