// What runs have written, as figures: errors over steps (He et al. 2015, arXiv:1512.03385, figures
// 1 and 6), gradient norms layer by layer, the spread of responses (figure 7).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace convoy::trainer {

struct PlottedRun {
  std::string folder, label;
};

struct PlotOptions {
  std::string title;
  // Titles of panels that share the runs out evenly, in order; empty: one panel of all.
  std::vector<std::string> panels;
  std::optional<uint64_t>
      step;  // of gradients and responses: the record nearest to it; else the last
};

// Each throws Error (kBadData) where a run has nothing of the kind.
// Thin: training error (of augmented images, averaged over some steps); bold: test error.
std::string plot_errors(const std::vector<PlottedRun>& runs, const PlotOptions& options);
// L2 norm of each weight's gradient: of the first step that was logged, and of the chosen one.
std::string plot_gradients(const std::vector<PlottedRun>& runs, const PlotOptions& options);
// Left in the order of the layers, right by size, as figure 7.
std::string plot_responses(const std::vector<PlottedRun>& runs, const PlotOptions& options);

}  // namespace convoy::trainer
