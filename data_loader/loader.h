// Threads that read, decode and transform samples into a bounded ring of batches, in a fixed order.
//
// What a batch holds is a function of the dataset, the configuration and the batch's place alone:
// never of the number of threads, of timing, or of which workers this process hosts.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data_loader/dataset.h"
#include "data_loader/image.h"
#include "data_loader/sample_times.h"
#include "data_loader/sampler.h"
#include "data_loader/transforms.h"

namespace convoy::data {

enum class BadSample {
  kFail,        // acquire() throws the error, which names the file
  kSubstitute,  // another sample, chosen by (seed, epoch, sample) alone; for bad content, not for
                // I/O
};

// What kFail throws: the error of the decoder, and the setting that goes on without it.
BadContent with_remedy(const BadContent& bad);

constexpr uint64_t kNoSubstitute = ~uint64_t{0};

// Belongs to the loader; valid from acquire() to release().
struct Batch {
  uint64_t step = 0;  // EvalLoader: the slice
  int worker = 0;     // EvalLoader: 0
  int size = 0;       // B: samples in it, the padding of a last slice included
  ImageShape shape;
  const uint8_t* pixels = nullptr;  // [B, height, width, channels], 64-byte aligned
  std::vector<int32_t> labels;      // [B]; -1: padding (its pixels are zero)
  std::vector<uint64_t>
      sample_ids;                // [B]; the sample of the position, also where it was substituted
  std::vector<uint64_t> epochs;  // [B]; EvalLoader: 0
  // [B]; the sample that stands there in place of sample_ids', or kNoSubstitute.
  std::vector<uint64_t> substitutes;
};

struct Substitution {
  uint64_t position = 0;  // in the stream
  uint64_t epoch = 0;
  uint64_t sample = 0;      // what should have stood there
  uint64_t substitute = 0;  // what stands there
  std::string reason;       // the error's text
};

struct LoaderStats {
  double wait_seconds = 0;  // callers blocked in acquire(), summed over them; with threads = 0 this
                            // is waiting for a free slot only
  double work_seconds = 0;  // reading, decoding and transforming, summed over threads
  uint64_t samples = 0;     // made so far
  uint64_t bytes = 0;       // read for them: files, or raw pixels
  uint64_t substituted = 0;
  uint64_t acquired = 0;  // batches asked for
  uint64_t ready = 0;     // batches that lay ready when one was asked for, summed over `acquired`
  SampleTimes times;      // of work_seconds, summed over threads; with `profile` alone

  LoaderStats& operator+=(const LoaderStats& other);
  LoaderStats& operator-=(const LoaderStats& earlier);  // what came since
};

// What a thread of the loader is reading or decoding at this moment.
struct InProgress {
  std::string name;    // as Dataset::name
  double seconds = 0;  // so far, with the few samples that it took at once
};

// Asked once for the pixels of each batch that a loader holds; what it returns lives as long as
// they (a GPU reads host memory faster while it is pinned). An empty function is not called.
using PinMemory = std::function<std::shared_ptr<void>(void* memory, size_t bytes)>;

// The windows of the dataset's shards. Throws Error (kFault) where `window_shards` is not 0 and the
// dataset has none.
Windows windows_of(const Dataset& dataset, uint64_t window_shards);

struct LoaderConfig {
  TrainTransform transform;
  uint64_t seed = 1;
  // Shards in a window; 0: all samples are shuffled as one. Others need a dataset in the order
  // kByShard.
  uint64_t window_shards = 0;
  int batch_per_worker = 32;              // B
  int workers = 1;                        // W of the job
  int first_worker = 0, end_worker = 1;   // hosted here: [first_worker, end_worker)
  uint64_t first_step = 0, end_step = 0;  // [first_step, end_step)
  int threads = 1;                        // 0: acquire() makes the batch in the caller's thread
  int lanes = 0;                          // batches held at once; 0: one per hosted worker
  bool profile = false;                   // whether LoaderStats::times are kept: two clock readings
                                          // more for each part of a sample
  // Images whose files are asked for before they are read; 0: none. For encoded images, with
  // threads.
  int read_ahead = 64;
  BadSample bad_sample = BadSample::kFail;
  uint64_t max_pixels = 178956970;  // images with more are refused before memory is taken
  bool apply_exif_orientation = false;
  PinMemory pin = {};
};

// Training batches. In step s, worker w holds stream positions s * W * B + w * B + i, i in [0, B).
// The dataset must outlive the loader.
class Loader {
 public:
  // Throws Error: kBadJob or kBadData where transform and dataset do not fit.
  Loader(const Dataset& dataset, const LoaderConfig& config);
  ~Loader();  // may be called at any moment, unless a thread is inside acquire()

  // Blocks until the batch is ready. Each (step, worker) once; steps ascending for each worker.
  // Thread-safe: lanes call it at once for different workers. A lane releases a batch before it
  // acquires its next. Throws what went wrong with the first bad sample of the batch.
  const Batch& acquire(uint64_t step, int worker);
  void release(const Batch& batch);
  // The batch if it lies ready, as it will be acquired; else null, also where it would fail.
  const Batch* peek(uint64_t step, int worker) const;
  // Any thread: makes every acquire() throw this error, so that no lane waits for one that failed.
  void stop(std::exception_ptr error);

  ImageShape shape() const;  // of one sample
  LoaderStats stats() const;
  // Batches that the ring has room for, and the bytes of their pixels: all that the loader holds
  // but the dataset and, for each thread, what one image takes (SampleScratch).
  int slots() const;
  uint64_t ring_bytes() const;
  // The same of a loader that is not there yet.
  static uint64_t ring_bytes(const Dataset& dataset, const LoaderConfig& config);
  // The one that has taken longest; nullopt where no thread makes a sample. Any thread.
  std::optional<InProgress> in_progress() const;
  // All so far, in order of the stream.
  std::vector<Substitution> substitutions() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::data
