// List -> list: a network for images of another size than its own, as dense evaluation needs it
// (Simonyan and Zisserman 2015, arXiv:1409.1556, section 3.2; He et al. 2015, arXiv:1512.03385,
// section 3.4).
#pragma once

#include "ops/graph.h"

namespace convoy::ops {

// The network `graph`, which is made for images of graph.image, run over a whole image of height x
// width: what sees the whole feature map slides over it, and the map of class scores is averaged.
//
//   Linear on [C, H, W] with H = W > 1  ->  Conv2d with an H x H filter, no padding: its weight
//                                           [K, C * H * W] holds the same bytes as OIHW [K, C, H,
//                                           W]
//   Linear on [C, 1, 1]                 ->  a 1 x 1 Conv2d where there is more than one place now;
//                                           else (behind a GlobalAvgPool) it stays
//   AdaptiveAvgPool to the size that its features have anyway (as in VGG)
//                                       ->  an AvgPool of one pixel: nothing; others stay
//   the last node                       ->  a GlobalAvgPool behind it, where its scores are a map
//
// What inference does not need is left out, such as the nodes of auxiliary classifiers, which may
// want larger images. Parameters keep their names, order and number of floats: layout_within()
// says where they lie. Throws Error (kBadJob) naming the node: the image is too small, or a Linear
// sees features that are not square.
Graph fully_convolutional(const Graph& graph, int64_t height, int64_t width);

}  // namespace convoy::ops
