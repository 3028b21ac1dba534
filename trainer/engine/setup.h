// From a checked job to the things that run: datasets, input normalisation, graph, engine settings.
// The one place where the job's words are turned into those of ops, comm and data_loader.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "data_loader/dataset.h"
#include "data_loader/eval_loader.h"
#include "data_loader/loader.h"
#include "data_loader/sampler.h"
#include "ops/graph.h"
#include "ops/image_input.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/engine/engine.h"
#include "trainer/job/job.h"

namespace convoy::trainer {

// Where indexes, means, plans and kernels are kept between runs: CONVOY_CACHE,
// XDG_CACHE_HOME/convoy or ~/.cache/convoy, created if need be; "" where none can be.
std::string cache_folder();

std::unique_ptr<data::Dataset> open_split(const Job& job, data::Split split);
data::TrainTransform train_transform(const Job& job);
data::EvalTransform eval_transform(const Job& job);
data::BadSample bad_sample_policy(const Job& job);
// What the job says of batches; which workers and steps, threads and lanes are the caller's.
data::LoaderConfig loader_config(const Job& job);
// Likewise; which slices, threads and lanes are the caller's.
data::EvalLoaderConfig eval_loader_config(const Job& job);
// data.window_shards, 0 where all samples are shuffled as one.
uint64_t window_shards(const Job& job);
// data.shuffle, for the training set as open_split() opened it.
data::Windows windows_of(const Job& job, const data::Dataset& train);
comm::WatchdogConfig watchdog_config(const Job& job);
// "file /x/y.JPEG" for the watchdog's line; "" where nothing is in progress.
std::string file_in_progress(const std::optional<data::InProgress>& progress);

// What is subtracted and divided by before the first layer.
struct Normalisation {
  std::vector<float> mean_image;  // PER_PIXEL: [H, W, C] in units of [0, 1]; else empty
};
// Fills in what the job leaves to the dataset (classes, sizes, means), so that the job's text says
// everything that evaluation will need. Rank 0 computes means, all get them. `data_threads`,
// `progress`: for that, see data::StatisticsConfig.
Normalisation resolve(Job& job, const data::Dataset& train, comm::Communicator& communicator,
                      int data_threads, const std::function<void()>& progress);

ops::ImageInput image_input(const Job& job, const Normalisation& normalisation,
                            const data::ImageShape& shape, int64_t batch);
ops::Graph graph_of(const Job& job, const data::ImageShape& shape);
// What inference runs of it, also for images that are too small for auxiliary classifiers.
ops::Graph inference_graph_of(const Job& job, const data::ImageShape& shape);
DType precision_type(Job::Precision precision);

EngineConfig engine_config(const Job& job, const std::string& device, int gpu,
                           const ops::ImageInput& input, int lanes);

// Keeps this thread, and those that it will start, on the CPUs near the rank's GPU, if these are
// enough for all ranks whose GPUs are near them, each with its part of the host's. Returns how many
// it can use then (usable_cpus()).
int stay_near_gpu(const comm::Communicator& communicator, const std::string& device);

// The device, instruction set, libraries and build of this process.
Fingerprint fingerprint(const std::string& device, int gpu);

}  // namespace convoy::trainer
