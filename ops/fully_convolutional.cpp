#include "ops/fully_convolutional.h"

#include "ops/core/error.h"
#include "ops/shape_checks.h"

namespace convoy::ops {
namespace {

// `own`: the shape that the layer sees in the network's own size; `now`: in the new one.
OpSpec sliding(const Linear& linear, const Shape& own, const Shape& now) {
  if (own.h == 1 && own.w == 1 && now.h == 1 && now.w == 1) return linear;
  expect(own.h == own.w, "its features of {} x {} are not square, so it cannot slide", own.h,
         own.w);
  return Conv2d{
      .out_channels = linear.out_features, .kernel = own.h, .stride = 1, .bias = linear.bias};
}

// A grid that is the features' own is there to make any image fit what follows; that slides now.
OpSpec sliding(const AdaptiveAvgPool& pool, const Shape& own, const Shape&) {
  const bool keeps_all = own.h == pool.h && own.w == pool.w && (own.h > 1 || own.w > 1);
  if (!keeps_all) return pool;
  return AvgPool{.kernel = 1, .stride = 1};
}

}  // namespace

Graph fully_convolutional(const Graph& whole, int64_t height, int64_t width) {
  const Graph graph = inference_graph(whole);
  const std::vector<Shape> own = infer_shapes(graph, 1);
  Graph out = graph;
  out.image.h = height;
  out.image.w = width;
  std::vector<Shape> now;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    Node& node = out.nodes[i];
    try {
      const std::vector<Shape> x = input_shapes(out, now, i, 1);
      const OpSpec& op = graph.nodes[i].op;
      if (const auto* linear = std::get_if<Linear>(&op))
        node.op = sliding(*linear, input_shapes(graph, own, i, 1)[0], x[0]);
      else if (const auto* pool = std::get_if<AdaptiveAvgPool>(&op))
        node.op = sliding(*pool, input_shapes(graph, own, i, 1)[0], x[0]);
      now.push_back(output_shape(node.op, x));
    } catch (const Error& e) {
      fail(e.code(), "images of {} x {}: {} \"{}\": {}", height, width, kind_of(graph.nodes[i].op),
           printable(node.name), e.what());
    }
  }
  if (now.back().h > 1 || now.back().w > 1)
    out.add("mean_of_the_score_map", GlobalAvgPool{}, {static_cast<int>(out.nodes.size()) - 1});
  return out;
}

}  // namespace convoy::ops
