#include "ops/onednn.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <string_view>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/packing_kernels.h"

namespace convoy::ops::onednn {
namespace {

using dnnl::memory;
using tag = memory::format_tag;

const dnnl::primitive_attr& caller_owns_scratch() {
  static const dnnl::primitive_attr attr = [] {
    dnnl::primitive_attr a;
    a.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    return a;
  }();
  return attr;
}

dnnl::stream& stream() {
  thread_local dnnl::stream instance(engine());
  return instance;
}

// Every lane makes its own primitives, some of them more than once; a warning is said once.
bool first_time(const std::string& name) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  return said.insert(name).second;
}

// Runs `make` and turns oneDNN's "unimplemented" into an error that names the layer.
template <typename Make>
auto create(const char* what, const std::string& name, DType type, Make make) {
  try {
    auto descriptor = make();
    if (std::string_view(descriptor.impl_info_str()).starts_with("ref") && first_time(name))
      log::warning("{} \"{}\": oneDNN has only its slow reference ({}) for this shape in {}", what,
                   name, descriptor.impl_info_str(), name_of(type));
    return descriptor;
  } catch (const dnnl::error& e) {
    fail(ExitCode::kBadJob,
         "{} \"{}\": oneDNN has no {} implementation on this processor ({}); use precision FP32",
         what, name, name_of(type), e.what());
  }
}

memory::desc weights_any(const ConvolutionShape& s, DType type) {
  const auto t = to_dnnl(type);
  if (s.groups == 1) return {{s.y.c, s.x.c, s.kernel_h, s.kernel_w}, t, tag::any};
  return {{s.groups, s.y.c / s.groups, s.x.c / s.groups, s.kernel_h, s.kernel_w}, t, tag::any};
}

memory::desc bias_fp32(int64_t channels) {
  return {{channels}, memory::data_type::f32, tag::x};
}

dnnl::primitive_attr convolution_attributes(const ConvolutionShape& s) {
  dnnl::primitive_attr attr;  // a copy of another would share its post-ops
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops after;
  // The sum lets oneDNN keep its fastest implementations, which a binary addition does not (2.6).
  if (s.residual) after.append_sum(1.0f);
  if (s.relu) after.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
  attr.set_post_ops(after);
  return attr;
}

dnnl::convolution_forward::primitive_desc convolution_hint(const ConvolutionShape& s) {
  const memory::dims strides = {s.stride, s.stride}, pads = {s.padding, s.padding};
  const auto kind = dnnl::prop_kind::forward_training;
  const auto algorithm = dnnl::algorithm::convolution_direct;
  return create("conv2d", s.name, s.type, [&] {
    const auto d = s.bias ? dnnl::convolution_forward::desc(
                                kind, algorithm, nhwc(s.x, s.type), weights_any(s, s.type),
                                bias_fp32(s.y.c), nhwc(s.y, s.type), strides, pads, pads)
                          : dnnl::convolution_forward::desc(kind, algorithm, nhwc(s.x, s.type),
                                                            weights_any(s, s.type),
                                                            nhwc(s.y, s.type), strides, pads, pads);
    return dnnl::convolution_forward::primitive_desc(d, convolution_attributes(s), engine());
  });
}

// [N, C, 1, 1] is described with two dimensions: inner products of flat features are faster so.
bool is_flat(const LinearShape& s) {
  return s.x.h == 1 && s.x.w == 1;
}

memory::desc features(const LinearShape& s) {
  if (is_flat(s)) return {{s.x.n, s.x.c}, to_dnnl(s.type), tag::nc};
  return nhwc(s.x, s.type);
}

memory::desc linear_weights(const LinearShape& s, DType type, bool any) {
  if (is_flat(s)) return {{s.out_features, s.x.c}, to_dnnl(type), any ? tag::any : tag::oi};
  return {{s.out_features, s.x.c, s.x.h, s.x.w}, to_dnnl(type), any ? tag::any : tag::oihw};
}

memory::desc linear_output(const LinearShape& s, DType type) {
  return {{s.x.n, s.out_features}, to_dnnl(type), tag::nc};
}

dnnl::inner_product_forward::primitive_desc linear_hint(const LinearShape& s, DType y_type) {
  const auto kind = dnnl::prop_kind::forward_training;
  return create("linear", s.name, s.type, [&] {
    const auto weights = linear_weights(s, s.type, true);
    const auto d = s.bias ? dnnl::inner_product_forward::desc(kind, features(s), weights,
                                                              bias_fp32(s.out_features),
                                                              linear_output(s, y_type))
                          : dnnl::inner_product_forward::desc(kind, features(s), weights,
                                                              linear_output(s, y_type));
    return dnnl::inner_product_forward::primitive_desc(d, caller_owns_scratch(), engine());
  });
}

// Arguments of a forward primitive, with or without a bias.
template <typename Descriptor>
WeightedKernel forward_kernel(const Descriptor& pd, const dnnl::primitive& primitive, bool bias) {
  std::vector<Kernel::Argument> arguments = {{DNNL_ARG_SRC, pd.src_desc()},
                                             {DNNL_ARG_WEIGHTS, pd.weights_desc()}};
  if (bias) arguments.push_back({DNNL_ARG_BIAS, pd.bias_desc()});
  arguments.push_back({DNNL_ARG_DST, pd.dst_desc()});
  return {Kernel(primitive, arguments, pd.scratchpad_desc()), pd.weights_desc()};
}

template <typename Descriptor>
WeightedKernel backward_data_kernel(const Descriptor& pd, const dnnl::primitive& primitive) {
  return {Kernel(primitive,
                 {{DNNL_ARG_DIFF_SRC, pd.diff_src_desc()},
                  {DNNL_ARG_WEIGHTS, pd.weights_desc()},
                  {DNNL_ARG_DIFF_DST, pd.diff_dst_desc()}},
                 pd.scratchpad_desc()),
          pd.weights_desc()};
}

template <typename Descriptor>
WeightedKernel backward_weights_kernel(const Descriptor& pd, const dnnl::primitive& primitive,
                                       bool bias) {
  std::vector<Kernel::Argument> arguments = {{DNNL_ARG_DIFF_WEIGHTS, pd.diff_weights_desc()}};
  if (bias) arguments.push_back({DNNL_ARG_DIFF_BIAS, pd.diff_bias_desc()});
  arguments.push_back({DNNL_ARG_SRC, pd.src_desc()});
  arguments.push_back({DNNL_ARG_DIFF_DST, pd.diff_dst_desc()});
  return {Kernel(primitive, arguments, pd.scratchpad_desc()), pd.diff_weights_desc()};
}

// The layouts that PackingKernels write: blocks of one or two dimensions within others.
bool is_blocked(const memory::desc& m, std::initializer_list<std::pair<int, int64_t>> inner,
                int64_t k_stride, int64_t c_stride) {
  const dnnl_blocking_desc_t& blocks = m.data.format_desc.blocking;
  if (m.data.format_kind != dnnl_blocked || m.data.offset0 != 0 || m.data.extra.flags != 0 ||
      blocks.inner_nblks != static_cast<int>(inner.size()) || blocks.strides[0] != k_stride ||
      blocks.strides[1] != c_stride)
    return false;
  int i = 0;
  for (const auto& [dimension, size] : inner) {
    if (blocks.inner_idxs[i] != dimension || blocks.inner_blks[i] != size) return false;
    ++i;
  }
  return true;
}

template <typename T>
std::function<void(void*, const void*)> own_packing(const PackingKernels<T>& kernels,
                                                    const memory::desc& packed, int threads) {
  const int64_t k = packed.data.dims[0], c = packed.data.dims[1];
  const auto& inner = packed.data.format_desc.blocking.inner_blks;
  const bool pairs = sizeof(T) == sizeof(Bfloat16);
  // The same memory as a convolution's and as a linear layer's.
  for (const int64_t block : {inner[0], inner[1]}) {
    const bool convolution = pairs ? is_blocked(packed, {{0, block}, {1, 2}}, c * block, 2 * block)
                                   : is_blocked(packed, {{0, block}}, c * block, block);
    const bool linear =
        pairs ? is_blocked(packed, {{1, 8}, {0, block}, {1, 2}}, c * block, 16 * block)
              : is_blocked(packed, {{1, 16}, {0, block}}, c * block, 16 * block);
    if ((convolution || linear) && block % kPackingChannels == 0)
      return [=, &kernels](void* to, const void* w) {
        kernels.forward(static_cast<T*>(to), static_cast<const float*>(w), k, c, block, threads);
      };
  }
  if (k % kPackingChannels == 0 &&
      (pairs ? is_blocked(packed, {{0, 8}, {1, 16}, {0, 2}}, 256, 16 * k)
             : is_blocked(packed, {{0, 16}, {1, 16}}, 256, 16 * k)))
    return [=, &kernels](void* to, const void* w) {
      kernels.backward(static_cast<T*>(to), static_cast<const float*>(w), k, c, threads);
    };
  return {};
}

// Null where the kernels of our own do not write this layout.
std::function<void(void*, const void*)> own_packing(const memory::desc& parameters,
                                                    const memory::desc& packed, int threads) {
  const auto& d = packed.data;
  const int64_t k = d.dims[0], c = d.dims[1];
  const bool convolution =
      d.ndims == 4 && d.dims[2] == 1 && d.dims[3] == 1 &&
      parameters == memory::desc({k, c, 1, 1}, memory::data_type::f32, tag::oihw);
  const bool linear =
      d.ndims == 2 && parameters == memory::desc({k, c}, memory::data_type::f32, tag::oi);
  if (!(convolution || linear) || c % kPackingChannels != 0 || cpu_isa() < Isa::kAvx512) return {};
  if (packed.data_type() == memory::data_type::f32)
    return own_packing(packing_kernels_fp32(), packed, threads);
  if (packed.data_type() == memory::data_type::bf16)
    return own_packing(packing_kernels_bf16(), packed, threads);
  return {};
}

}  // namespace

const dnnl::engine& engine() {
  static const dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

memory::data_type to_dnnl(DType type) {
  switch (type) {
    case DType::kFloat32:
      return memory::data_type::f32;
    case DType::kBfloat16:
      return memory::data_type::bf16;
    case DType::kFloat16:
      return memory::data_type::f16;
    case DType::kUint8:
      return memory::data_type::u8;
    case DType::kInt32:
      return memory::data_type::s32;
  }
  return memory::data_type::undef;
}

memory::desc nhwc(const Shape& s, DType type) {
  return {{s.n, s.c, s.h, s.w}, to_dnnl(type), tag::nhwc};
}

std::string version() {
  const auto* v = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", v->major, v->minor, v->patch);
}

std::string instruction_set() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "sse41";
    case dnnl::cpu_isa::avx:
      return "avx";
    case dnnl::cpu_isa::avx2:
      return "avx2";
    case dnnl::cpu_isa::avx2_vnni:
      return "avx2_vnni";
    case dnnl::cpu_isa::avx512_core:
      return "avx512_core";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "avx512_core_vnni";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "avx512_core_bf16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "avx512_core_amx";
    default:
      return fmt::format("isa-{:#x}", static_cast<unsigned>(dnnl::get_effective_cpu_isa()));
  }
}

bool multiplies_by_amx() {
  return instruction_set() == "avx512_core_amx";
}

double measure_gemm(DType type, int64_t n) {
  const memory::desc any({n, n}, to_dnnl(type), tag::any);
  const dnnl::matmul::primitive_desc pd({any, any, any}, caller_owns_scratch(), engine());
  Kernel kernel(dnnl::matmul(pd),
                {{DNNL_ARG_SRC, pd.src_desc()},
                 {DNNL_ARG_WEIGHTS, pd.weights_desc()},
                 {DNNL_ARG_DST, pd.dst_desc()}},
                pd.scratchpad_desc());
  const AlignedBuffer a(pd.src_desc().get_size()), b(pd.weights_desc().get_size()),
      c(pd.dst_desc().get_size()), scratch(kernel.scratch_bytes());
  double best_seconds = 1e30;
  for (int run = 0; run < 5; ++run) {
    const auto start = Clock::now();
    kernel.run({a.data(), b.data(), c.data()}, scratch.data());
    best_seconds = std::min(best_seconds, seconds_since(start));
  }
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
         best_seconds;
}

Kernel::Kernel(const dnnl::primitive& primitive, const std::vector<Argument>& arguments,
               const memory::desc& scratchpad)
    : primitive_(primitive), scratch_bytes_(scratchpad.get_size()) {
  for (const Argument& a : arguments) {
    memories_.emplace_back(a.memory, engine(), nullptr);
    arguments_.emplace(a.index, memories_.back());
  }
  if (scratch_bytes_ > 0) {
    memories_.emplace_back(scratchpad, engine(), nullptr);
    arguments_.emplace(DNNL_ARG_SCRATCHPAD, memories_.back());
  }
}

void Kernel::run(std::initializer_list<const void*> pointers, void* scratch) {
  size_t i = 0;
  for (const void* p : pointers) memories_[i++].set_data_handle(const_cast<void*>(p));
  if (scratch_bytes_ > 0) memories_[i].set_data_handle(scratch);
  primitive_.execute(stream(), arguments_);
  stream().wait();
}

Kernel make_reorder(const memory::desc& src, const memory::desc& dst) {
  const dnnl::reorder::primitive_desc pd(engine(), src, engine(), dst, caller_owns_scratch());
  return Kernel(dnnl::reorder(pd), {{DNNL_ARG_FROM, src}, {DNNL_ARG_TO, dst}},
                pd.scratchpad_desc());
}

WeightedKernel make_convolution_forward(const ConvolutionShape& s) {
  const auto pd = convolution_hint(s);
  return forward_kernel(pd, dnnl::convolution_forward(pd), s.bias);
}

WeightedKernel make_convolution_backward_data(const ConvolutionShape& s) {
  const memory::dims strides = {s.stride, s.stride}, pads = {s.padding, s.padding};
  const auto pd = create("conv2d", s.name, s.type, [&] {
    const dnnl::convolution_backward_data::desc d(dnnl::algorithm::convolution_direct,
                                                  nhwc(s.x, s.type), weights_any(s, s.type),
                                                  nhwc(s.y, s.type), strides, pads, pads);
    return dnnl::convolution_backward_data::primitive_desc(d, caller_owns_scratch(), engine(),
                                                           convolution_hint(s));
  });
  return backward_data_kernel(pd, dnnl::convolution_backward_data(pd));
}

// A 1 x 1 convolution's dw [K, C] is the product dy^T [K, N H W] x [N H W, C], and a matrix product
// writes it as parameters are kept. Worth it where weights are large: measured on 2.6.3,
// ResNet-50's last two stages, bf16 (where there is no kernel of our own, weight_gradient_cpu.h),
// the product is 5 to 20 % faster than the convolution and what packs its result into OIHW is
// saved; with fewer channels the convolution is faster.
bool is_large_product(const ConvolutionShape& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.stride == 1 && s.padding == 0 && s.groups == 1 &&
         !s.bias && s.x.c * s.y.c >= int64_t{1} << 18;
}

WeightedKernel make_product_backward_weights(const ConvolutionShape& s) {
  const memory::dim rows = s.x.n * s.x.h * s.x.w;
  const auto t = to_dnnl(s.type);
  const memory::desc dy_transposed({s.y.c, rows}, t, memory::dims{1, s.y.c});
  const memory::desc x({rows, s.x.c}, t, tag::ab);
  const memory::desc dw({s.y.c, s.x.c}, memory::data_type::f32, tag::ab);
  const auto pd = create("conv2d", s.name, s.type, [&] {
    return dnnl::matmul::primitive_desc({dy_transposed, x, dw}, caller_owns_scratch(), engine());
  });
  return {Kernel(dnnl::matmul(pd),
                 {{DNNL_ARG_DST, dw}, {DNNL_ARG_WEIGHTS, x}, {DNNL_ARG_SRC, dy_transposed}},
                 pd.scratchpad_desc()),
          parameter_layout(s)};
}

WeightedKernel make_convolution_backward_weights(const ConvolutionShape& s) {
  if (is_large_product(s)) return make_product_backward_weights(s);
  const memory::dims strides = {s.stride, s.stride}, pads = {s.padding, s.padding};
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto pd = create("conv2d", s.name, s.type, [&] {
    const auto dw = weights_any(s, DType::kFloat32);
    const auto d =
        s.bias ? dnnl::convolution_backward_weights::desc(algorithm, nhwc(s.x, s.type), dw,
                                                          bias_fp32(s.y.c), nhwc(s.y, s.type),
                                                          strides, pads, pads)
               : dnnl::convolution_backward_weights::desc(algorithm, nhwc(s.x, s.type), dw,
                                                          nhwc(s.y, s.type), strides, pads, pads);
    return dnnl::convolution_backward_weights::primitive_desc(d, caller_owns_scratch(), engine(),
                                                              convolution_hint(s));
  });
  return backward_weights_kernel(pd, dnnl::convolution_backward_weights(pd), s.bias);
}

memory::desc parameter_layout(const ConvolutionShape& s) {
  if (s.groups == 1)
    return {{s.y.c, s.x.c, s.kernel_h, s.kernel_w}, memory::data_type::f32, tag::oihw};
  return {{s.groups, s.y.c / s.groups, s.x.c / s.groups, s.kernel_h, s.kernel_w},
          memory::data_type::f32,
          tag::goihw};
}

WeightedKernel make_linear_forward(const LinearShape& s) {
  const auto pd = linear_hint(s, s.y_type);
  return forward_kernel(pd, dnnl::inner_product_forward(pd), s.bias);
}

WeightedKernel make_linear_backward_data(const LinearShape& s) {
  const auto pd = create("linear", s.name, s.type, [&] {
    const dnnl::inner_product_backward_data::desc d(features(s), linear_weights(s, s.type, true),
                                                    linear_output(s, s.type));
    return dnnl::inner_product_backward_data::primitive_desc(d, caller_owns_scratch(), engine(),
                                                             linear_hint(s, s.type));
  });
  return backward_data_kernel(pd, dnnl::inner_product_backward_data(pd));
}

WeightedKernel make_linear_backward_weights(const LinearShape& s) {
  const auto pd = create("linear", s.name, s.type, [&] {
    const auto dw = linear_weights(s, DType::kFloat32, true);
    const auto d =
        s.bias
            ? dnnl::inner_product_backward_weights::desc(features(s), dw, bias_fp32(s.out_features),
                                                         linear_output(s, s.type))
            : dnnl::inner_product_backward_weights::desc(features(s), dw, linear_output(s, s.type));
    return dnnl::inner_product_backward_weights::primitive_desc(d, caller_owns_scratch(), engine(),
                                                                linear_hint(s, s.type));
  });
  return backward_weights_kernel(pd, dnnl::inner_product_backward_weights(pd), s.bias);
}

memory::desc parameter_layout(const LinearShape& s) {
  return linear_weights(s, DType::kFloat32, false);
}

PackedWeights::PackedWeights(const memory::desc& parameters, const memory::desc& packed,
                             int threads) {
  if (parameters == packed) return;
  bytes_ = packed.get_size();
  own_ = own_packing(parameters, packed, threads);
  if (own_) return;
  reorder_ = make_reorder(parameters, packed);
  if (reorder_.scratch_bytes() > 0)
    fail(ExitCode::kFault, "oneDNN: a weight reorder wants {} bytes of scratch memory",
         reorder_.scratch_bytes());
}

void PackedWeights::pack(const void* parameters) {
  if (!reorder_ && !own_) {
    direct_ = parameters;
    return;
  }
  if (memory_.size() == 0) memory_ = AlignedBuffer(bytes_);
  if (own_)
    own_(memory_.data(), parameters);
  else
    reorder_.run({parameters, memory_.data()}, nullptr);
}

}  // namespace convoy::ops::onednn
