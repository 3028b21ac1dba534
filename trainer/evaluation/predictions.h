// What a classifier said of images, and what follows from that: counts, accuracy per class,
// confusion, calibration. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace convoy::trainer {

struct Guess {
  int32_t label = 0;       // class
  double probability = 0;  // 0 to 1
};

struct Prediction {
  uint64_t image = 0;      // its number in the dataset
  int32_t label = 0;       // its true class; -1: not known
  double loss = 0;         // -log of the true class's probability
  std::vector<Guess> top;  // the most probable first; of equals the lower class
  bool right() const { return top[0].label == label; }
  bool among(size_t k) const;  // the true class is among the first k
};

// `k` guesses, or one for each class where there are fewer.
Prediction predict(uint64_t image, int32_t label, std::span<const double> probabilities, size_t k);

// Counts of images by true and predicted class. Takes memory for the pairs that occur.
class Confusion {
 public:
  explicit Confusion(size_t classes) : classes_(classes), images_(classes, 0) {}

  void add(const Prediction& p);
  size_t classes() const { return classes_; }
  // Of images of class t, how many were taken for class p.
  uint64_t at(size_t t, size_t p) const;
  uint64_t images(size_t t) const { return images_[t]; }
  uint64_t correct(size_t t) const { return at(t, t); }
  // The wrong class that images of class t are taken for most often (of equals the lowest); t
  // itself where there is none.
  size_t mistaken_for(size_t t) const;

 private:
  size_t classes_;
  std::vector<uint64_t> images_;
  std::map<std::pair<size_t, size_t>, uint64_t> counts_;
};

// Guo et al. 2017 (arXiv:1706.04599, section 2): the mean over images of |accuracy - confidence| of
// their bin, the bins being equal intervals of the first guess's probability.
class Calibration {
 public:
  static constexpr size_t kBins = 15;
  struct Bin {
    uint64_t images = 0, correct = 0;
    double probability = 0;  // sum
  };

  void add(const Prediction& p);
  double error() const;  // 0 to 1; 0 without images
  const std::vector<Bin>& bins() const { return bins_; }

 private:
  std::vector<Bin> bins_ = std::vector<Bin>(kBins);
};

// One line of CSV for each true class, one column for each predicted one, names in front (RFC
// 4180); or one JSON object {"classes": [...], "matrix": [[...], ...]}.
std::string to_csv(const Confusion& confusion, const std::vector<std::string>& names);
std::string to_json(const Confusion& confusion, const std::vector<std::string>& names);

// {"class":3,"name":"cat","probability":0.93}, the most probable first; names may be fewer.
std::string to_json(const std::vector<Guess>& top, const std::vector<std::string>& names);

// "cat", or "class 3" where it has no name.
std::string name_of(int32_t label, const std::vector<std::string>& names);

// The `count` most confident wrong ones among those seen, the most confident first, of equals the
// lower number.
class WorstMistakes {
 public:
  explicit WorstMistakes(size_t count) : count_(count) {}
  void add(const Prediction& p);
  const std::vector<Prediction>& list() const { return list_; }

 private:
  size_t count_;
  std::vector<Prediction> list_;
};

}  // namespace convoy::trainer
