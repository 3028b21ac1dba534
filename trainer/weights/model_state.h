// An engine's flat buffers as named tensors, and back: torchvision's names and OIHW order, so that
// a strict load_state_dict takes model.safetensors.
#pragma once

#include <span>

#include "trainer/checkpoints/checkpoint.h"
#include "trainer/engine/engine.h"
#include "trainer/engine/setup.h"

namespace convoy::trainer {

// Borrow the engine's memory. `step` is what num_batches_tracked says.
TensorList model_tensors(Engine& engine, uint64_t step);
// The same of flat buffers, laid out as `layout` says, that are nobody's yet.
TensorList model_tensors(const ops::ParameterLayout& layout, std::span<const float> parameters,
                         std::span<const float> running, uint64_t step);
// "momentum.<parameter>", "input.mean_image" and FP16's "loss_scale" where there is one.
TensorList optimizer_tensors(Engine& engine, const Normalisation& normalisation);
TensorList ema_tensors(Engine& engine);

// Fills the engine from a checkpoint. Throws Error (kBadData) naming the first tensor that is
// missing, too many, or of another shape. weights_only: the optimizer's state is not looked at.
void restore(Engine& engine, const CheckpointState& state, bool weights_only);
// The mean image that a checkpoint carries; empty where it has none.
Normalisation stored_normalisation(const CheckpointState& state);

}  // namespace convoy::trainer
