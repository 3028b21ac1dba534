// Threads that fill a bounded ring of batches in order: the machinery under Loader and EvalLoader.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "data_loader/loader.h"
#include "data_loader/sample_maker.h"
#include "ops/core/tensor.h"

namespace convoy::data {

// Batches 0 ... batches - 1 are made in that order, image by image; batch k lies in slot k % slots
// and k + slots waits until k is released. Threads share one batch, so the first one is ready soon.
class BatchRing {
 public:
  struct Config {
    uint64_t batches = 0;
    int batch_size = 0;
    ImageShape shape;
    int threads = 1;       // 0: acquire() makes the batch
    int slots = 1;         // at least as many as are held at once
    int group = 1;         // consecutive images that one thread takes at once
    bool profile = false;  // whether LoaderStats::times are kept
    PinMemory pin = {};

    // Of the pixels of all slots.
    uint64_t bytes() const {
      return static_cast<uint64_t>(slots) * static_cast<uint64_t>(batch_size) * shape.bytes();
    }
  };
  // Makes image i of batch k: pixels at `out`, and batch.labels[i], sample_ids[i], epochs[i].
  using MakeImage =
      std::function<void(uint8_t* out, Batch& batch, uint64_t k, int i, SampleScratch&)>;
  // Names batch k: step and worker.
  using BeginBatch = std::function<void(Batch& batch, uint64_t k)>;

  BatchRing(const Config& config, BeginBatch begin, MakeImage make);
  ~BatchRing();  // waits for the images that threads are making right now
  BatchRing(const BatchRing&) = delete;
  BatchRing& operator=(const BatchRing&) = delete;

  // Blocks until batch k is ready; each k once. Rethrows the error of its first bad image.
  const Batch& acquire(uint64_t k);
  void release(const Batch& batch);
  // Batch k if acquire() would return it at once; else null.
  const Batch* peek(uint64_t k) const;
  // Every acquire() that waits, and every later one, throws this error; the first one stays. A bad
  // image does the same: whoever waits for a batch behind it must not wait for ever.
  void stop(std::exception_ptr error);

  const Config& config() const { return config_; }
  LoaderStats stats() const;  // all but `substituted`
  std::optional<InProgress> in_progress(const Dataset& dataset) const;

 private:
  enum class State { kFree, kFilling, kReady, kHeld };
  struct Slot {
    Batch batch;
    AlignedBuffer pixels;
    std::shared_ptr<void> pinned;  // pixels are
    State state = State::kFree;
    uint64_t number = 0;  // the batch that it holds, or will hold next
    int left = 0;         // images to be made
    int error_at = 0;     // image that failed; the first one wins, whichever thread was faster
    std::exception_ptr error;
  };
  using Lock = std::unique_lock<std::mutex>;

  void work(std::stop_token stop);
  void make_batches(Lock& lock, const std::stop_token& stop, SampleScratch& scratch);
  void begin(Slot& slot);
  void stop_locked(std::exception_ptr error);
  // Makes images [first, first + n) with the lock let go, then books them.
  void fill(Lock& lock, Slot& slot, int first, int n, SampleScratch& scratch);

  const Config config_;
  const BeginBatch begin_;
  const MakeImage make_;

  mutable std::mutex mutex_;           // guards all below
  std::condition_variable_any work_;   // a slot became free
  std::condition_variable_any ready_;  // a batch became ready, or with threads = 0 a slot free
  std::vector<Slot> slots_;
  uint64_t next_batch_ = 0;  // the next image that a thread takes
  int next_image_ = 0;
  LoaderStats stats_;
  int ready_slots_ = 0;
  std::vector<const SampleScratch*> scratches_;  // of all threads, and of callers that are filling
  std::exception_ptr stopped_;
  std::vector<std::jthread> threads_;  // last: they stop before what they use is gone
};

// Slots for loaders. One for each lane that holds a batch, and behind it either the one that this
// lane holds next or, where batches are small or threads many, room for four images a thread: then
// one image that takes long keeps nobody waiting but those who want its batch.
int ring_slots(int threads, int lanes, int batch);
// Config::group for images of this dataset: raw pixels cost about a microsecond each, so threads
// take several at once.
int group_size(const Dataset& dataset);

}  // namespace convoy::data
