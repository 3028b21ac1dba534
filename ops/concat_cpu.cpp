// Concat on the CPU: a strided copy of each input's rows.
#include <cstring>

#include "ops/concat.h"
#include "ops/cpu_device.h"

namespace convoy::ops {
namespace {

class ConcatCpu final : public Op {
 public:
  explicit ConcatCpu(const OpConfig& c)
      : rows_(c.y.rows()), y_bytes_(static_cast<size_t>(c.y.c) * size_of(c.type)) {
    for (const Shape& x : c.x) x_bytes_.push_back(static_cast<size_t>(x.c) * size_of(c.type));
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    size_t offset = 0;
    for (size_t i = 0; i < x_bytes_.size(); offset += x_bytes_[i++])
      for (int64_t row = 0; row < rows_; ++row)
        std::memcpy(at(m.y, row, y_bytes_) + offset, at(m.x[i], row, x_bytes_[i]), x_bytes_[i]);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    size_t offset = 0;
    for (size_t i = 0; i < x_bytes_.size(); offset += x_bytes_[i++])
      if (m.dx[i])
        for (int64_t row = 0; row < rows_; ++row)
          std::memcpy(at(m.dx[i], row, x_bytes_[i]), at(m.dy[0], row, y_bytes_) + offset,
                      x_bytes_[i]);
  }

 private:
  static char* at(void* base, int64_t row, size_t row_bytes) {
    return static_cast<char*>(base) + static_cast<size_t>(row) * row_bytes;
  }

  int64_t rows_;
  size_t y_bytes_;
  std::vector<size_t> x_bytes_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice&, const Concat&, const OpConfig& config) {
  return std::make_unique<ConcatCpu>(config);
}

}  // namespace convoy::ops
