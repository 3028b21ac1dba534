#include "trainer/evaluation/accuracy.h"

#include <cstdlib>

#include "ops/core/error.h"

namespace convoy::trainer {

std::string to_text(const Accuracy& a) {
  return fmt::format("top-1 {:.2f} % ({} of {} images), top-5 {:.2f} %, loss {:.4f}",
                     100 * a.top1_share(), a.top1, a.images, 100 * a.top5_share(), a.loss);
}

// Slices travel as text, doubles in hexadecimal: exact, and a few bytes.
Accuracy sum_of_slices(comm::Communicator& communicator, const std::vector<ops::LossResult>& mine) {
  std::string text;
  for (const ops::LossResult& s : mine)
    text += fmt::format("{:a} {} {} {}\n", s.loss_sum, s.count, s.top1, s.top5);
  const std::vector<std::string> all = communicator.all_gather(text);
  Accuracy out;
  double loss = 0;
  std::vector<const char*> next;
  for (const std::string& t : all) next.push_back(t.c_str());
  // Slice k is line k / ranks of rank k % ranks.
  for (size_t k = 0; *next[k % all.size()] != '\0'; ++k) {
    const char*& at = next[k % all.size()];
    char* end = nullptr;
    loss += std::strtod(at, &end);
    out.images += std::strtoull(end, &end, 10);
    out.top1 += std::strtoull(end, &end, 10);
    out.top5 += std::strtoull(end, &end, 10);
    at = end + 1;
  }
  out.loss = loss / static_cast<double>(out.images);
  return out;
}

}  // namespace convoy::trainer
