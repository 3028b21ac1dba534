#include "comm/reducer.h"

#include "comm/gradient_reducer.h"
#include "ops/core/error.h"
#ifdef CONVOY_CUDA
#include "comm/cuda_reducer.h"
#endif

namespace convoy::comm {

std::unique_ptr<Reducer> make_reducer(Communicator& communicator, int workers,
                                      std::vector<Range> buckets, const ReducerOptions& options,
                                      void* queue) {
  if (!queue)
    return std::make_unique<GradientReducer>(communicator, workers, std::move(buckets), options);
#ifdef CONVOY_CUDA
  return make_cuda_reducer(communicator, workers, std::move(buckets), options, queue);
#else
  fail(ExitCode::kFault, "a CUDA stream in a build without CUDA");
#endif
}

}  // namespace convoy::comm
