// A disk that takes a few bytes of a write, then no more, and does not cut them off again at once.
#pragma once

#include <cerrno>
#include <string>

#include "trainer/base/file_calls.h"

namespace convoy::test {

// While it lives: the next write to a path that holds `where` is torn, and what follows of it and
// the next cut fail. Then the disk works again.
class TornWrite : public trainer::FileHook {
 public:
  explicit TornWrite(std::string where) : where_(std::move(where)) { set_file_hook(this); }
  ~TornWrite() override { trainer::set_file_hook(nullptr); }
  TornWrite(const TornWrite&) = delete;
  TornWrite& operator=(const TornWrite&) = delete;

  Verdict before(const trainer::FileCall& call) override {
    using Kind = trainer::FileCall::Kind;
    if (call.path.find(where_) == std::string::npos) return {};
    if (call.kind == Kind::kWrite && ++writes_ <= 2)
      return writes_ == 1 ? Verdict{.most = 9} : Verdict{.error = ENOSPC};
    if (call.kind == Kind::kTruncate && ++cuts_ == 1) return {.error = EIO};
    return {};
  }
  // The first cut failed and another one was made.
  bool was_cut_again() const { return cuts_ > 1; }

 private:
  const std::string where_;
  int writes_ = 0, cuts_ = 0;
};

}  // namespace convoy::test
