// A network that classifies images and how it wants them; a checkpoint made into one.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "data_loader/dataset.h"
#include "data_loader/eval_loader.h"
#include "data_loader/transforms.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/engine/engine.h"
#include "trainer/engine/setup.h"
#include "trainer/job/job.h"

namespace convoy::trainer {

// What a checkpoint says, before there is a network.
struct Trained {
  std::string folder;
  CheckpointState state;
  Job job;  // of one worker; in fp32 where the device lacks the precision of training
  Normalisation normalisation;

  const CheckpointFacts& facts() const { return state.facts; }
  // Of images as the network takes them.
  int channels() const { return static_cast<int>(job.data.mean.size()); }
};

// Collective: rank 0 chooses the newest whole checkpoint at `path`, because a run that is being
// trained has a newer one every moment. Throws as load_newest().
Trained load_trained(comm::Communicator& communicator, const std::string& path,
                     const std::string& device);

// A network and how it wants its images. Borrows the engine, the job and the normalisation.
struct ImageNetwork {
  std::string name;  // for messages: a checkpoint's folder, or the job's name
  Engine& engine;
  const Job& job;
  const Normalisation& normalisation;
  data::EvalTransform transform;  // of one look in the job's evaluation
  data::ImageShape look;          // that it gives
  int64_t classes = 0;

  // For so many looks of this shape. Throws Error (kBadJob) where they do not fit.
  ops::ImageInput input(const data::ImageShape& shape, int64_t rows) const {
    return image_input(job, normalisation, shape, rows);
  }
};

// A checkpoint made ready to classify images.
class Classifier {
 public:
  // `dataset`: where images of the job's own size come from, for its shape; nullptr: images of
  // files. Collective. Throws Error (kBadData) where images and network do not fit together.
  Classifier(comm::Communicator& communicator, Trained trained, const data::Dataset* dataset,
             const std::string& device, int lanes);

  // Without its tensors.
  const Trained& trained() const { return trained_; }
  bool has_average() const { return engine_->has_ema(); }
  // Borrows from this.
  ImageNetwork network() const {
    return {trained_.folder, *engine_, trained_.job, trained_.normalisation,
            transform_,      look_,    classes_};
  }

 private:
  Trained trained_;
  data::EvalTransform transform_;
  data::ImageShape look_;
  int64_t classes_ = 0;
  std::unique_ptr<Engine> engine_;
};

// Before they are loaded and computed: warns on one rank of each host where so many slices, dealt
// out over the ranks, do not fit into its memory, and throws Error (kBadJob) where that is
// hopeless.
void expect_memory(const comm::Communicator& communicator, const ImageNetwork& network,
                   const data::Dataset& dataset, const data::EvalLoaderConfig& config,
                   uint64_t slices, std::string_view remedy);

// --classes-file: names by label, one a line. Throws Error (kBadData) where there is not one for
// each class.
std::vector<std::string> read_class_names(const std::string& path, int64_t classes);

// Lanes for classifying on the CPUs of this process; see lanes_for().
int classifying_lanes(const Job& job, const std::string& device, int cpus);

}  // namespace convoy::trainer
