// Every operator there is. To add one: its files, a member here, a field in proto/graph.proto, a
// test. An op that a device lacks does not compile.
#pragma once

#include <variant>

#include "ops/add.h"
#include "ops/batch_norm.h"
#include "ops/concat.h"
#include "ops/conv2d.h"
#include "ops/dropout.h"
#include "ops/image_input.h"
#include "ops/linear.h"
#include "ops/local_response_norm.h"
#include "ops/multiply.h"
#include "ops/pool.h"
#include "ops/relu.h"
#include "ops/sigmoid.h"
#include "ops/softmax_cross_entropy.h"
#include "ops/subsample.h"

namespace convoy::ops {

using OpSpec =
    std::variant<Conv2d, BatchNorm, Relu, Add, MaxPool, AvgPool, GlobalAvgPool, Linear, Dropout,
                 Concat, Subsample, LocalResponseNorm, Sigmoid, Multiply, AdaptiveAvgPool>;

inline size_t saved_bytes(const Conv2d&, const Shape&) {
  return 0;
}
inline size_t saved_bytes(const Linear&, const Shape&) {
  return 0;
}

inline Shape output_shape(const OpSpec& spec, const std::vector<Shape>& x) {
  return std::visit([&](const auto& s) { return output_shape(s, x); }, spec);
}
inline std::vector<ParameterSpec> parameters(const OpSpec& spec, const std::vector<Shape>& x) {
  return std::visit([&](const auto& s) { return parameters(s, x); }, spec);
}
inline int64_t macs(const OpSpec& spec, const std::vector<Shape>& x) {
  return std::visit([&](const auto& s) { return macs(s, x); }, spec);
}
inline BackwardNeeds backward_needs(const OpSpec& spec) {
  return std::visit([](const auto& s) { return backward_needs(s); }, spec);
}
inline size_t saved_bytes(const OpSpec& spec, const Shape& y) {
  return std::visit([&](const auto& s) { return saved_bytes(s, y); }, spec);
}
// The input that y is written over; its memory is y's. -1: none.
inline int y_in_place(const OpSpec& spec) {
  const auto* conv = std::get_if<Conv2d>(&spec);
  return conv && conv->batch_norm && conv->batch_norm->residual ? 1 : -1;
}
// As tables print it: "Conv2d", ...; a fused node says what is in it.
std::string kind_of(const OpSpec& spec);

}  // namespace convoy::ops
