#include "trainer/evaluation/probabilities.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace convoy::trainer {

bool add_softmax(std::span<const float> logits, std::span<double> sum) {
  if (!std::ranges::all_of(logits, [](float v) { return std::isfinite(v); })) return false;
  const auto largest = static_cast<double>(*std::ranges::max_element(logits));
  double total = 0;
  for (const float v : logits) total += std::exp(static_cast<double>(v) - largest);
  for (size_t k = 0; k < logits.size(); ++k)
    sum[k] += std::exp(static_cast<double>(logits[k]) - largest) / total;
  return true;
}

ProbabilitySums::ProbabilitySums(uint64_t images, int64_t classes)
    : classes_(static_cast<size_t>(classes)),
      round_(images * classes_, 0.0),
      sum_(images * classes_, 0.0) {}

std::span<double> ProbabilitySums::round(uint64_t i) {
  return std::span(round_).subspan(i * classes_, classes_);
}

// All ranks but one hold zeros, whose bits are zeros: the sum of the bits, as whole numbers, is the
// one rank's number.
void ProbabilitySums::end_round(comm::Communicator& communicator, int looks) {
  static_assert(std::bit_cast<int64_t>(0.0) == 0);
  if (communicator.size() > 1) {
    constexpr size_t kBlock = size_t{1} << 20;
    std::vector<int64_t> bits;
    for (size_t begin = 0; begin < round_.size(); begin += kBlock) {
      const std::span<double> block =
          std::span(round_).subspan(begin, std::min(kBlock, round_.size() - begin));
      bits.clear();
      for (const double v : block) bits.push_back(std::bit_cast<int64_t>(v));
      communicator.all_reduce_sum(bits);
      for (size_t i = 0; i < block.size(); ++i) block[i] = std::bit_cast<double>(bits[i]);
    }
  }
  for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += round_[i];
  std::ranges::fill(round_, 0.0);
  looks_ += looks;
}

std::vector<double> ProbabilitySums::mean(uint64_t i) const {
  std::vector<double> out(classes_);
  for (size_t k = 0; k < classes_; ++k) out[k] = sum_[i * classes_ + k] / looks_;
  return out;
}

}  // namespace convoy::trainer
