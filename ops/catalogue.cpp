#include "ops/catalogue.h"

namespace convoy::ops {
namespace {

struct Kind {
  std::string operator()(const Conv2d& s) const {
    return s.batch_norm ? "Conv2d+" + (*this)(*s.batch_norm) : "Conv2d";
  }
  std::string operator()(const BatchNorm& s) const {
    return std::string("BatchNorm") + (s.shortcut ? "+BatchNorm" : "") +
           (s.residual ? "+Add" : "") + (s.relu ? "+ReLU" : "") + (s.pool ? "+MaxPool" : "");
  }
  std::string operator()(const Relu&) const { return "ReLU"; }
  std::string operator()(const Add&) const { return "Add"; }
  std::string operator()(const MaxPool&) const { return "MaxPool"; }
  std::string operator()(const AvgPool&) const { return "AvgPool"; }
  std::string operator()(const GlobalAvgPool&) const { return "GlobalAvgPool"; }
  std::string operator()(const Linear&) const { return "Linear"; }
  std::string operator()(const Dropout&) const { return "Dropout"; }
  std::string operator()(const Concat&) const { return "Concat"; }
  std::string operator()(const Subsample&) const { return "Subsample"; }
  std::string operator()(const LocalResponseNorm&) const { return "LocalResponseNorm"; }
  std::string operator()(const Sigmoid&) const { return "Sigmoid"; }
  std::string operator()(const Multiply&) const { return "Multiply"; }
  std::string operator()(const AdaptiveAvgPool&) const { return "AdaptiveAvgPool"; }
};

}  // namespace

std::string kind_of(const OpSpec& spec) {
  return std::visit(Kind{}, spec);
}

}  // namespace convoy::ops
