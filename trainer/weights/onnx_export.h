// A network with its weights as an ONNX file (proto/onnx.proto), for ONNX Runtime and whatever else
// reads that. NCHW, fp32; operators of ONNX's own domain only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ops/graph.h"
#include "ops/image_input.h"
#include "trainer/base/safetensors.h"

namespace convoy::trainer {

inline constexpr int kOldestOpset = 13, kNewestOpset = 22;
// Protobuf's limit for one message is 2 GiB; the nodes and names take a part of it.
inline constexpr uint64_t kMostOnnxBytes = (uint64_t{2} << 30) - (uint64_t{16} << 20);

struct OnnxOptions {
  int opset = 17;     // of ONNX's operators: kOldestOpset ... kNewestOpset
  int64_t batch = 0;  // 0: the first dimension is called "batch" and may be any
  // Batch norms that follow a convolution directly become part of its weights, in double, rounded
  // once, as Convoy's own inference does (ops/conv2d.h).
  bool fold = false;
  bool softmax = false;  // probabilities in place of logits
  // The graph's input is pixels in 0..255, and what this says is done to them in the graph; without
  // it the input is normalised already.
  std::optional<ops::ImageInput> pixels;
  Metadata metadata;
};

// The bytes of the file. `graph`: for inference, as a model wrote it (not fused). `weights`: fp32
// by name, torchvision's shapes; initializers keep these names. One input, "input" or "pixels"
// [batch, C, H, W], and one output, "logits" or "probabilities" [batch, classes]. The same input
// gives the same bytes.
// Throws Error: kBadJob where the graph does not fit together, kBadData naming the tensor that is
// missing or of another shape or that cannot be folded, or with the number of bytes where the
// weights are more than an ONNX file holds; kUsage for an opset that is not known.
std::string onnx_model(const ops::Graph& graph, const TensorList& weights,
                       const OnnxOptions& options);

}  // namespace convoy::trainer
