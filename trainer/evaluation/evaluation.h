// Evaluation in full: the probabilities of every image, as the mean over looks (ten crops, scales)
// and networks. Each image once, on any number of ranks, with the same bits.
//
// How scores are averaged. Ten crops (Krizhevsky et al. 2012) and several networks: the mean of the
// softmax probabilities, as there. Within one scale of dense evaluation: the mean of the map of
// class scores, before the softmax (Simonyan and Zisserman 2015, section 3.2), which for a network
// that ends in a global average pool is the same as pooling its features. Over scales: the mean of
// the softmax probabilities, as Simonyan and Zisserman do it (section 4.2); He et al. 2015 say only
// that scores are averaged. Probabilities, because then one rule holds for crops, scales and
// networks, and a network or a scale whose scores are larger does not count for more.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "data_loader/dataset.h"
#include "data_loader/eval_loader.h"
#include "trainer/evaluation/accuracy.h"
#include "trainer/evaluation/classifier.h"
#include "trainer/evaluation/predictions.h"

namespace convoy::trainer {

struct EvaluationConfig {
  bool ten_crop = false;
  std::vector<int> scales;  // shorter sides of dense evaluation, in pixels; empty: none
  size_t top = 5;           // guesses of each prediction; at least 5
  int data_threads = 1;
  std::vector<int32_t> class_of_label;                       // see data::EvalLoaderConfig
  std::function<void(uint64_t done, uint64_t of)> progress;  // images times looks; may be empty
};

class Evaluation {
 public:
  // All but `networks` and `config` must outlive it, and what the networks borrow. Throws Error:
  // kBadData where the set is empty or the networks have different numbers of classes, kBadJob
  // where their looks cannot fit into memory (of scales, which depend on the images, run() says
  // it).
  Evaluation(comm::Communicator& communicator, comm::Watchdog& watchdog,
             std::vector<ImageNetwork> networks, const data::Dataset& dataset,
             const EvaluationConfig& config);

  // Collective; the accuracy is the same on every rank. `each`, on all ranks or none: called on
  // rank 0 with every image in the order of the dataset. Without it one network that looks once, at
  // the centre, as in training, gives its losses and counts alone: with the same bits, but no
  // probabilities are kept and scores that are not finite are no error. The watchdog hears of each
  // slice; the step is what its lines say. Throws Error: kBadJob where a network cannot be made
  // dense, or has no memory for it.
  Accuracy run(Engine::Weights weights, uint64_t step,
               const std::function<void(const Prediction&)>& each = {});

  // Looks at each image.
  int looks() const;

 private:
  // Images of one shape, cut into slices.
  struct Group {
    data::ImageShape shape;
    int batch = 1;
    std::vector<uint64_t> images;  // empty: all of the dataset
  };
  struct Pass;  // a range of images whose sums fit into memory

  bool is_plain() const { return networks_.size() == 1 && looks() == 1 && config_.scales.empty(); }
  std::vector<data::Looks> rounds(const ImageNetwork& network) const;
  std::vector<Group> groups(const ImageNetwork& network, const data::Looks& looks,
                            Pass& pass) const;
  void measure(Pass& pass) const;
  // Of the looks that have one shape.
  static Group one_group(const ImageNetwork& network, const data::Looks& looks);
  // All but the slices.
  data::EvalLoaderConfig loader_config(const ImageNetwork& network, const data::Looks& looks,
                                       const Group& group) const;
  // The largest of the groups.
  void expect_memory(const ImageNetwork& network, const data::Looks& looks,
                     const std::vector<Group>& groups) const;
  // Of this rank's slices. `pass`: where probabilities are added to; nullptr: nowhere.
  std::vector<ops::LossResult> compute(const ImageNetwork& network, const data::Looks& looks,
                                       const Group& group, Engine::Weights weights, Pass* pass);
  int32_t label(uint64_t image) const;
  void note_progress(uint64_t images);

  comm::Communicator& communicator_;
  comm::Watchdog& watchdog_;
  const std::vector<ImageNetwork> networks_;
  const data::Dataset& dataset_;
  const EvaluationConfig config_;
  std::mutex mutex_;               // of config_.progress
  uint64_t done_ = 0, total_ = 0;  // images times looks of all networks
};

}  // namespace convoy::trainer
