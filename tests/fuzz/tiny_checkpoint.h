// The checkpoint whose manifest is fuzzed: two tensors, the same bytes each time.
#pragma once

#include <array>
#include <string_view>

#include "trainer/checkpoints/checkpoint.h"

namespace convoy::fuzz {

// The start of a manifest's last line.
constexpr std::string_view kManifestTrailer = "# SHA-256 of the lines above: ";

struct TinyCheckpoint {
  std::array<float, 2> weight = {1, 2}, momentum = {3, 4};

  // Borrows the arrays.
  trainer::CheckpointState state() const {
    trainer::CheckpointState state;
    state.facts = {.step = 7,
                   .job_digest = "j",
                   .job = "name: \"a\"\n",
                   .dataset_digest = "d",
                   .fingerprint = {"cpu", "avx2", "l", "b", "c"},
                   .dataset_size = 60000,
                   .global_batch = 128,
                   .plateau = {},
                   .top1 = 0.5};
    state.model.tensors = {{"w", trainer::StoredType::kF32, {2}, std::as_bytes(std::span(weight))}};
    state.optimizer.tensors = {
        {"momentum.w", trainer::StoredType::kF32, {2}, std::as_bytes(std::span(momentum))}};
    return state;
  }
};

}  // namespace convoy::fuzz
