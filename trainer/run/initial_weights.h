// Weights that a run begins with, from a file or another run (transfer.init_from).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "ops/graph.h"
#include "trainer/base/safetensors.h"
#include "trainer/engine/engine.h"
#include "trainer/job/job.h"
#include "trainer/run/resume.h"

namespace convoy::trainer {

// SHA-256 over name, type, shape and bytes of each tensor, in the order of the names.
std::string tensors_digest(const TensorList& list);

// A safetensors file, or the model of a checkpoint's folder or of a run's newest checkpoint. Throws
// Error: kBadData naming file and tensor, kIo where the system refuses.
TensorList read_weights(const std::string& path);

// What copy_weights() did.
struct WeightsTaken {
  size_t tensors = 0;              // of the file, taken
  std::string prefix;              // "module." or "model.", that all names of the file begin with
  std::vector<std::string> heads;  // nodes that start anew: "fc: 5 classes there, 10 here"
  std::vector<std::string> anew;   // parameters that transfer.start_anew left out
};

// Copies tensors of the network's names into its flat buffers, laid out as `layout` says. fp32,
// bf16 and fp16 are taken; num_batches_tracked is passed over. What is started anew (job.proto,
// Transfer) is not touched. Throws one Error (kBadData) that lists everything missing, extra or of
// another shape; then nothing was copied. `source` stands for the file in messages.
WeightsTaken copy_weights(const TensorList& from, const std::string& source,
                          const ops::Graph& graph, const ops::ParameterLayout& layout,
                          const std::vector<std::string>& start_anew, std::span<float> parameters,
                          std::span<float> running);

// Collective. At the first start of a run rank 0 reads transfer.init_from and keeps it; all ranks
// learn its digest, which becomes part of the job. A run that goes on takes the digest from its
// checkpoint's job and reads nothing. Throws Error: kBadJob where it began without, or where the
// job expects another digest.
std::optional<TensorList> find_initial_weights(comm::Communicator& communicator,
                                               const Resume& resume, Job& job);

// Collective, with the engine as at the start of a run: rank 0's weights on all ranks, the moving
// average begins with them, too. Rank 0 says what was done.
void start_from(comm::Communicator& communicator, Engine& engine, const ops::Graph& graph,
                const Job& job, const std::optional<TensorList>& weights);

}  // namespace convoy::trainer
