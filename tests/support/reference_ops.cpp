#include "tests/support/reference_ops.h"

#include <cmath>
#include <limits>

namespace convoy::reference {
namespace {

Array like(const Array& a) {
  return Array(a.shape);
}

// Calls body(n, h, w, c) for every element of a shape, in memory order.
template <typename Body>
void for_each(const Shape& s, Body body) {
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t h = 0; h < s.h; ++h)
      for (int64_t w = 0; w < s.w; ++w)
        for (int64_t c = 0; c < s.c; ++c) body(n, h, w, c);
}

// Calls body(n, k, p, q, c, i, j, weight index) for every multiplication of a convolution.
template <typename Body>
void for_each_product(const ops::Conv2d& s, const Shape& x, const Shape& y, Body body) {
  const int64_t group_in = x.c / s.groups, group_out = y.c / s.groups;
  for_each(y, [&](int64_t n, int64_t p, int64_t q, int64_t k) {
    for (int64_t r = 0; r < s.kernel; ++r)
      for (int64_t t = 0; t < s.kernel; ++t) {
        const int64_t i = p * s.stride - s.padding + r, j = q * s.stride - s.padding + t;
        if (i < 0 || i >= x.h || j < 0 || j >= x.w) continue;
        for (int64_t c = 0; c < group_in; ++c)
          body(n, k, p, q, k / group_out * group_in + c, i, j,
               static_cast<size_t>(((k * group_in + c) * s.kernel + r) * s.kernel + t));
      }
  });
}

void forward_of(const ops::Conv2d& s, Node& node) {
  if (s.batch_norm) {  // one after the other
    ops::Conv2d plain = s;
    plain.batch_norm.reset();
    Node conv, batch_norm;
    conv.x = {node.x[0]};
    conv.parameters = {node.parameters.begin() + 2, node.parameters.end()};
    forward(plain, conv);
    batch_norm.x = node.x;
    batch_norm.x[0] = conv.y;
    batch_norm.parameters = {node.parameters[0], node.parameters[1]};
    batch_norm.running = node.running;
    batch_norm.training = node.training;
    forward(*s.batch_norm, batch_norm);
    node.y = batch_norm.y;
    return;
  }
  const auto& w = node.parameters[0];
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t k) {
    node.y.at(n, p, q, k) = s.bias ? node.parameters[1][static_cast<size_t>(k)] : 0.0;
  });
  for_each_product(s, node.x[0].shape, node.y.shape,
                   [&](int64_t n, int64_t k, int64_t p, int64_t q, int64_t c, int64_t i, int64_t j,
                       size_t at) { node.y.at(n, p, q, k) += node.x[0].at(n, i, j, c) * w[at]; });
}

void backward_of(const ops::Conv2d& s, Node& node) {
  const auto& w = node.parameters[0];
  for_each_product(
      s, node.x[0].shape, node.y.shape,
      [&](int64_t n, int64_t k, int64_t p, int64_t q, int64_t c, int64_t i, int64_t j, size_t at) {
        node.dx[0].at(n, i, j, c) += node.dy.at(n, p, q, k) * w[at];
        node.gradients[0][at] += node.dy.at(n, p, q, k) * node.x[0].at(n, i, j, c);
      });
  if (!s.bias) return;
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t k) {
    node.gradients[1][static_cast<size_t>(k)] += node.dy.at(n, p, q, k);
  });
}

// Per channel: the mean and the biased variance that y is normalised by.
struct Moments {
  std::vector<double> mean, variance;
};

Moments batch_moments(const Array& x) {
  const auto channels = static_cast<size_t>(x.shape.c);
  const auto count = static_cast<double>(x.shape.rows());
  Moments m{std::vector<double>(channels), std::vector<double>(channels)};
  for_each(x.shape, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
    m.mean[static_cast<size_t>(c)] += x.at(n, h, w, c) / count;
  });
  for_each(x.shape, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
    const double d = x.at(n, h, w, c) - m.mean[static_cast<size_t>(c)];
    m.variance[static_cast<size_t>(c)] += d * d / count;
  });
  return m;
}

Moments running_moments(const Node& node, size_t channels) {
  const auto middle = node.running.begin() + static_cast<std::ptrdiff_t>(channels);
  return {{node.running.begin(), middle}, {middle, node.running.end()}};
}

void forward_of(const ops::BatchNorm& s, Node& node) {
  const auto channels = static_cast<size_t>(node.y.shape.c);
  Moments m;
  if (node.training && !s.frozen) {
    m = batch_moments(node.x[0]);
    const auto count = static_cast<double>(node.y.shape.rows());
    node.statistics = m.mean;
    for (const double v : m.variance) node.statistics.push_back(v * count / (count - 1));
  } else {
    m = running_moments(node, channels);
  }
  for_each(node.y.shape, [&](int64_t n, int64_t h, int64_t w, int64_t channel) {
    const auto c = static_cast<size_t>(channel);
    double v = (node.x[0].at(n, h, w, channel) - m.mean[c]) / std::sqrt(m.variance[c] + s.epsilon) *
                   node.parameters[0][c] +
               node.parameters[1][c];
    if (s.residual) v += node.x[1].at(n, h, w, channel);
    if (s.relu && v < 0) v = 0;
    node.y.at(n, h, w, channel) = v;
  });
}

// Ioffe and Szegedy, section 3, by the chain rule: first through the affine map, then variance,
// then mean.
void backward_of(const ops::BatchNorm& s, Node& node) {
  const auto channels = static_cast<size_t>(node.y.shape.c);
  const auto count = static_cast<double>(node.y.shape.rows());
  if (s.frozen) {
    const Moments running = running_moments(node, channels);
    for_each(node.y.shape, [&](int64_t n, int64_t h, int64_t w, int64_t channel) {
      const auto c = static_cast<size_t>(channel);
      const bool passes = !s.relu || node.y.at(n, h, w, channel) > 0;
      const double g = passes ? node.dy.at(n, h, w, channel) : 0.0;
      if (s.residual) node.dx[1].at(n, h, w, channel) = g;
      node.dx[0].at(n, h, w, channel) =
          g * node.parameters[0][c] / std::sqrt(running.variance[c] + s.epsilon);
    });
    return;
  }
  const Moments m = batch_moments(node.x[0]);
  std::vector<double> dvariance(channels), dmean(channels), sum_centred(channels);
  Array dxhat = like(node.y);
  for_each(node.y.shape, [&](int64_t n, int64_t h, int64_t w, int64_t channel) {
    const auto c = static_cast<size_t>(channel);
    const double inv_std = 1 / std::sqrt(m.variance[c] + s.epsilon);
    const double centred = node.x[0].at(n, h, w, channel) - m.mean[c];
    const bool passes = !s.relu || node.y.at(n, h, w, channel) > 0;
    const double g = passes ? node.dy.at(n, h, w, channel) : 0.0;
    if (s.residual) node.dx[1].at(n, h, w, channel) = g;
    node.gradients[0][c] += g * centred * inv_std;
    node.gradients[1][c] += g;
    dxhat.at(n, h, w, channel) = g * node.parameters[0][c];
    dvariance[c] += dxhat.at(n, h, w, channel) * centred * -0.5 * inv_std * inv_std * inv_std;
    dmean[c] -= dxhat.at(n, h, w, channel) * inv_std;
    sum_centred[c] += centred;
  });
  for_each(node.y.shape, [&](int64_t n, int64_t h, int64_t w, int64_t channel) {
    const auto c = static_cast<size_t>(channel);
    const double inv_std = 1 / std::sqrt(m.variance[c] + s.epsilon);
    const double centred = node.x[0].at(n, h, w, channel) - m.mean[c];
    const double whole_dmean = dmean[c] - dvariance[c] * 2 * sum_centred[c] / count;
    node.dx[0].at(n, h, w, channel) = dxhat.at(n, h, w, channel) * inv_std +
                                      dvariance[c] * 2 * centred / count + whole_dmean / count;
  });
}

void forward_of(const ops::Relu&, Node& node) {
  for (size_t i = 0; i < node.y.v.size(); ++i)
    node.y.v[i] = node.x[0].v[i] > 0 ? node.x[0].v[i] : 0;
}
void backward_of(const ops::Relu&, Node& node) {
  for (size_t i = 0; i < node.y.v.size(); ++i) node.dx[0].v[i] = node.y.v[i] > 0 ? node.dy.v[i] : 0;
}

void forward_of(const ops::Add&, Node& node) {
  for (size_t i = 0; i < node.y.v.size(); ++i) node.y.v[i] = node.x[0].v[i] + node.x[1].v[i];
}
void backward_of(const ops::Add&, Node& node) {
  node.dx[0] = node.dx[1] = node.dy;
}

// Calls body(i, j) for the pixels inside the image of the window of output (p, q).
template <typename Spec, typename Body>
void for_each_in_window(const Spec& s, const Shape& x, int64_t p, int64_t q, Body body) {
  for (int64_t i = p * s.stride - s.padding; i < p * s.stride - s.padding + s.kernel; ++i)
    for (int64_t j = q * s.stride - s.padding; j < q * s.stride - s.padding + s.kernel; ++j)
      if (i >= 0 && i < x.h && j >= 0 && j < x.w) body(i, j);
}

void forward_of(const ops::MaxPool& s, Node& node) {
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    double largest = -std::numeric_limits<double>::infinity();
    for_each_in_window(s, node.x[0].shape, p, q, [&](int64_t i, int64_t j) {
      if (node.x[0].at(n, i, j, c) > largest) largest = node.x[0].at(n, i, j, c);
    });
    node.y.at(n, p, q, c) = largest;
  });
}
void backward_of(const ops::MaxPool& s, Node& node) {
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    bool found = false;
    for_each_in_window(s, node.x[0].shape, p, q, [&](int64_t i, int64_t j) {
      if (found || node.x[0].at(n, i, j, c) != node.y.at(n, p, q, c)) return;
      node.dx[0].at(n, i, j, c) += node.dy.at(n, p, q, c);
      found = true;
    });
  });
}

// The divisor of output (p, q).
double area(const ops::AvgPool& s, const Shape& x, int64_t p, int64_t q) {
  if (s.count_include_pad) return static_cast<double>(s.kernel * s.kernel);
  double pixels = 0;
  for_each_in_window(s, x, p, q, [&](int64_t, int64_t) { ++pixels; });
  return pixels;
}
void forward_of(const ops::AvgPool& s, Node& node) {
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    double sum = 0;
    for_each_in_window(s, node.x[0].shape, p, q,
                       [&](int64_t i, int64_t j) { sum += node.x[0].at(n, i, j, c); });
    node.y.at(n, p, q, c) = sum / area(s, node.x[0].shape, p, q);
  });
}
void backward_of(const ops::AvgPool& s, Node& node) {
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    const double part = node.dy.at(n, p, q, c) / area(s, node.x[0].shape, p, q);
    for_each_in_window(s, node.x[0].shape, p, q,
                       [&](int64_t i, int64_t j) { node.dx[0].at(n, i, j, c) += part; });
  });
}

void forward_of(const ops::GlobalAvgPool&, Node& node) {
  const Shape& x = node.x[0].shape;
  const auto pixels = static_cast<double>(x.h * x.w);
  for_each(x, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
    node.y.at(n, 0, 0, c) += node.x[0].at(n, h, w, c) / pixels;
  });
}
void backward_of(const ops::GlobalAvgPool&, Node& node) {
  const Shape& x = node.x[0].shape;
  const auto pixels = static_cast<double>(x.h * x.w);
  for_each(x, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
    node.dx[0].at(n, h, w, c) = node.dy.at(n, 0, 0, c) / pixels;
  });
}

// Calls body(i, j, pixels of the window) for the pixels of window (p, q) of a grid over x.
template <typename Body>
void for_each_in_grid(const ops::AdaptiveAvgPool& s, const Shape& x, int64_t p, int64_t q,
                      Body body) {
  const auto begin = [](int64_t o, int64_t size, int64_t windows) {
    return static_cast<int64_t>(
        std::floor(static_cast<double>(o * size) / static_cast<double>(windows)));
  };
  const auto end = [](int64_t o, int64_t size, int64_t windows) {
    return static_cast<int64_t>(
        std::ceil(static_cast<double>((o + 1) * size) / static_cast<double>(windows)));
  };
  const int64_t top = begin(p, x.h, s.h), bottom = end(p, x.h, s.h);
  const int64_t left = begin(q, x.w, s.w), right = end(q, x.w, s.w);
  for (int64_t i = top; i < bottom; ++i)
    for (int64_t j = left; j < right; ++j)
      body(i, j, static_cast<double>((bottom - top) * (right - left)));
}
void forward_of(const ops::AdaptiveAvgPool& s, Node& node) {
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    for_each_in_grid(s, node.x[0].shape, p, q, [&](int64_t i, int64_t j, double pixels) {
      node.y.at(n, p, q, c) += node.x[0].at(n, i, j, c) / pixels;
    });
  });
}
void backward_of(const ops::AdaptiveAvgPool& s, Node& node) {
  for_each(node.y.shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    for_each_in_grid(s, node.x[0].shape, p, q, [&](int64_t i, int64_t j, double pixels) {
      node.dx[0].at(n, i, j, c) += node.dy.at(n, p, q, c) / pixels;
    });
  });
}

// Where the weight of feature (c, h, w) stands in the row of output k: features count in C, H, W.
size_t weight_of(const Shape& x, int64_t k, int64_t h, int64_t w, int64_t c) {
  return static_cast<size_t>(((k * x.c + c) * x.h + h) * x.w + w);
}
void forward_of(const ops::Linear& s, Node& node) {
  const Shape& x = node.x[0].shape;
  for (int64_t k = 0; k < s.out_features; ++k) {
    for (int64_t n = 0; n < x.n; ++n)
      node.y.at(n, 0, 0, k) = s.bias ? node.parameters[1][static_cast<size_t>(k)] : 0.0;
    for_each(x, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      node.y.at(n, 0, 0, k) +=
          node.x[0].at(n, h, w, c) * node.parameters[0][weight_of(x, k, h, w, c)];
    });
  }
}
void backward_of(const ops::Linear& s, Node& node) {
  const Shape& x = node.x[0].shape;
  for (int64_t k = 0; k < s.out_features; ++k) {
    for_each(x, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      const size_t at = weight_of(x, k, h, w, c);
      node.dx[0].at(n, h, w, c) += node.dy.at(n, 0, 0, k) * node.parameters[0][at];
      node.gradients[0][at] += node.dy.at(n, 0, 0, k) * node.x[0].at(n, h, w, c);
    });
    for (int64_t n = 0; s.bias && n < x.n; ++n)
      node.gradients[1][static_cast<size_t>(k)] += node.dy.at(n, 0, 0, k);
  }
}

void forward_of(const ops::Dropout&, Node& node) {
  node.y = node.x[0];
}
void backward_of(const ops::Dropout&, Node& node) {
  node.dx[0] = node.dy;
}

void forward_of(const ops::Concat&, Node& node) {
  int64_t first = 0;
  for (const Array& x : node.x) {
    for_each(x.shape, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      node.y.at(n, h, w, first + c) = x.at(n, h, w, c);
    });
    first += x.shape.c;
  }
}
void backward_of(const ops::Concat&, Node& node) {
  int64_t first = 0;
  for (Array& dx : node.dx) {
    for_each(dx.shape, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      dx.at(n, h, w, c) = node.dy.at(n, h, w, first + c);
    });
    first += dx.shape.c;
  }
}

// Calls body(n, p, q, c) for each element of x that stays: x (n, p stride, q stride, c) is
// y (n, p, q, front + c).
template <typename Body>
void for_each_kept(const ops::Subsample& s, const Shape& x, Body body) {
  for_each(x, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
    if (h % s.stride == 0 && w % s.stride == 0) body(n, h / s.stride, w / s.stride, c);
  });
}
void forward_of(const ops::Subsample& s, Node& node) {
  const int64_t front = (s.out_channels - node.x[0].shape.c) / 2;
  for_each_kept(s, node.x[0].shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    node.y.at(n, p, q, front + c) = node.x[0].at(n, p * s.stride, q * s.stride, c);
  });
}
void backward_of(const ops::Subsample& s, Node& node) {
  const int64_t front = (s.out_channels - node.x[0].shape.c) / 2;
  for_each_kept(s, node.x[0].shape, [&](int64_t n, int64_t p, int64_t q, int64_t c) {
    node.dx[0].at(n, p * s.stride, q * s.stride, c) = node.dy.at(n, p, q, front + c);
  });
}

// Calls body(j) for the channels whose squares are in the sum of channel c.
template <typename Body>
void for_each_around(const ops::LocalResponseNorm& s, const Shape& x, int64_t c, Body body) {
  for (int64_t j = c - s.size / 2; j < c - s.size / 2 + s.size; ++j)
    if (j >= 0 && j < x.c) body(j);
}
double response_norm(const ops::LocalResponseNorm& s, const Array& x, int64_t n, int64_t h,
                     int64_t w, int64_t c) {
  double squares = 0;
  for_each_around(s, x.shape, c,
                  [&](int64_t j) { squares += x.at(n, h, w, j) * x.at(n, h, w, j); });
  return s.k + s.alpha * squares / static_cast<double>(s.size);
}
void forward_of(const ops::LocalResponseNorm& s, Node& node) {
  const Array& x = node.x[0];
  for_each(x.shape, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
    node.y.at(n, h, w, c) = x.at(n, h, w, c) / std::pow(response_norm(s, x, n, h, w, c), s.beta);
  });
}
// By the chain rule: y_c through its numerator, then through every square in its norm.
void backward_of(const ops::LocalResponseNorm& s, Node& node) {
  const Array& x = node.x[0];
  for_each(x.shape, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
    const double norm = response_norm(s, x, n, h, w, c), dy = node.dy.at(n, h, w, c);
    node.dx[0].at(n, h, w, c) += dy * std::pow(norm, -s.beta);
    const double dnorm = dy * x.at(n, h, w, c) * -s.beta * std::pow(norm, -s.beta - 1);
    for_each_around(s, x.shape, c, [&](int64_t j) {
      node.dx[0].at(n, h, w, j) +=
          dnorm * s.alpha / static_cast<double>(s.size) * 2 * x.at(n, h, w, j);
    });
  });
}

void forward_of(const ops::Sigmoid& s, Node& node) {
  for (size_t i = 0; i < node.y.v.size(); ++i) {
    const double y = 1 / (1 + std::exp(-node.x[0].v[i]));
    node.y.v[i] = s.complement ? 1 - y : y;
  }
}
void backward_of(const ops::Sigmoid& s, Node& node) {
  for (size_t i = 0; i < node.y.v.size(); ++i) {
    const double dx = node.dy.v[i] * node.y.v[i] * (1 - node.y.v[i]);
    node.dx[0].v[i] = s.complement ? -dx : dx;
  }
}

void forward_of(const ops::Multiply&, Node& node) {
  for (size_t i = 0; i < node.y.v.size(); ++i) node.y.v[i] = node.x[0].v[i] * node.x[1].v[i];
}
void backward_of(const ops::Multiply&, Node& node) {
  for (size_t i = 0; i < node.y.v.size(); ++i) {
    node.dx[0].v[i] = node.dy.v[i] * node.x[1].v[i];
    node.dx[1].v[i] = node.dy.v[i] * node.x[0].v[i];
  }
}

}  // namespace

void forward(const ops::OpSpec& spec, Node& node) {
  std::vector<Shape> shapes;
  for (const Array& x : node.x) shapes.push_back(x.shape);
  node.y = Array(ops::output_shape(spec, shapes));
  std::visit([&](const auto& s) { forward_of(s, node); }, spec);
}

void backward(const ops::OpSpec& spec, Node& node) {
  node.dx.clear();
  for (const Array& x : node.x) node.dx.push_back(like(x));
  node.gradients.clear();
  for (const auto& p : node.parameters) node.gradients.emplace_back(p.size());
  std::visit([&](const auto& s) { backward_of(s, node); }, spec);
}

double softmax_cross_entropy(const ops::SoftmaxCrossEntropy& spec,
                             const std::vector<double>& logits, const std::vector<int32_t>& labels,
                             std::vector<double>& dlogits) {
  const auto classes = static_cast<size_t>(spec.classes);
  dlogits.assign(logits.size(), 0.0);
  double loss = 0;
  for (size_t n = 0; n < labels.size(); ++n) {
    if (labels[n] < 0) continue;
    const double* x = logits.data() + n * classes;
    double sum = 0;
    for (size_t k = 0; k < classes; ++k) sum += std::exp(x[k]);
    for (size_t k = 0; k < classes; ++k) {
      double target = spec.label_smoothing / static_cast<double>(classes);
      if (k == static_cast<size_t>(labels[n]))
        target += (1 - spec.label_smoothing) * spec.label_share;
      if (k == static_cast<size_t>(labels[n > 0 ? n - 1 : labels.size() - 1]))
        target += (1 - spec.label_smoothing) * (1 - spec.label_share);
      const double probability = std::exp(x[k]) / sum;
      loss -= target * std::log(probability);
      dlogits[n * classes + k] = (probability - target) * spec.gradient_scale * spec.loss_scale;
    }
  }
  return loss;
}

}  // namespace convoy::reference
