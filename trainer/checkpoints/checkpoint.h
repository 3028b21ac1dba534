// Checkpoints (docs of the layout: proto/checkpoint.proto). OUT/checkpoints/step-0000001234/ holds
// model.safetensors, optimizer.safetensors, ema.safetensors (if there is one) and manifest.txtpb.
// A folder of that name is whole: it is written under a temporary name, every file is synced, the
// manifest is last, and a rename makes it appear. Nothing in it is per rank.
//
// All of it is called on one rank and on one thread at a time, by the holder of the OutputLock; to
// save in the background there is trainer/checkpoints/checkpoint_writer.h. Only load_checkpoint and
// verify_checkpoint change nothing on disk and may run anywhere.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "trainer/base/safetensors.h"
#include "trainer/job/lr_schedule.h"
#include "trainer/job/skipped_steps.h"

namespace convoy::trainer {

// What the bits depend on beside the job; words as in proto/checkpoint.proto.
struct Fingerprint {
  std::string device, instruction_set, libraries, build, caches;

  bool operator==(const Fingerprint&) const = default;
};

struct CheckpointFacts {
  uint64_t step = 0;  // optimizer steps done
  std::string job_digest;
  std::string job;  // the job's full text, to_text()
  std::string dataset_digest;
  Fingerprint fingerprint;
  uint64_t dataset_size = 0;
  uint64_t global_batch = 0;
  PlateauState plateau;
  std::optional<double> top1;  // of an evaluation made at this very step, 0 to 1
  // Ranks whose replicas had the same digest when this was saved, at this very step; 0: not known.
  uint32_t confirmed_by_ranks = 0;
  SkippedSteps skipped;
  std::string plans;  // lines of ops/decisions.h; "": of a CPU, or not known
  // The file of weights that `convoy import` made this of; empty: it is of a run. Nothing trains on
  // from it.
  std::string imported_from;
  std::vector<std::string> class_names;  // by label; empty: not known
};

struct CheckpointState {
  CheckpointFacts facts;
  TensorList model;      // weights and batch norm's running state, torchvision's names
  TensorList optimizer;  // momentum, loss scale, ...
  TensorList ema;        // empty: none
};

// SHA-256 over the tensors of model, optimizer and (where there is one) EMA, in this order, each
// list in the order of its names: list, name, type, shape and bytes of each tensor. The facts are
// not part of it. This is what `convoy verify` prints.
std::string state_digest(const CheckpointState& state);

// Writes OUT/checkpoints/step-<step>/ and returns its path. When it returns, that checkpoint loads
// after any crash; when it throws, nothing of it is left (as far as the system lets us) and what
// stood before stands. A whole folder of the same digest that is already there stays and takes our
// manifest; one that differs is set aside as step-N.replaced-<n>, a damaged one as
// step-N.damaged-<n> (n counts up from 1). `expect_ours` is called before a name is given or
// changed and throws where another job has taken the folder over. Throws Error (kIo) with path and
// numbers when the system refuses (no space, no permission).
std::string save_checkpoint(
    const std::string& out_dir, const CheckpointState& state,
    const std::function<void()>& expect_ours = [] {});

// The same for a state that must not be used, e.g. one that is not finite: OUT/checkpoints/
// bad-step-<step>/, which no resume looks at, one at a time (an earlier one is removed first). The
// path can be given to load_checkpoint and `convoy verify`.
std::string save_apart(const std::string& out_dir, const CheckpointState& state);

struct TrialSave {
  uint64_t bytes = 0;  // of all tensor files
  double save_seconds = 0, load_seconds = 0;
};
// Writes a checkpoint under a name that nothing loads, reads it back, compares the digests and
// removes it, and leftovers as find_newest does. Throws as save_checkpoint; kFault where another
// state is read than was written.
TrialSave trial_save(const std::string& out_dir, const CheckpointState& state);

struct VerifiedCheckpoint {
  CheckpointFacts facts;
  std::string digest;  // state_digest, recomputed
  uint64_t bytes = 0;  // of all tensor files
};

// Recomputes every length, checksum and the state digest. Throws Error naming the file: kBadData
// where `dir` is not a checkpoint (missing, empty, no manifest, or of a newer format), kFault where
// it is damaged, kIo where the system refuses to read.
VerifiedCheckpoint verify_checkpoint(const std::string& dir);

// Reads a checkpoint, with every check of verify_checkpoint and its errors.
CheckpointState load_checkpoint(const std::string& dir);

// CheckpointFacts::imported_from of the checkpoint in `dir`, by its manifest alone; empty as well
// where that cannot be read.
std::string imported_from(const std::string& dir);

struct LoadedCheckpoint {
  std::string folder;
  CheckpointState state;
};
// The checkpoint at `path`, or the newest whole one of the run there. Changes nothing on disk.
//
// Which errors lead to an older checkpoint is the same here and in find_newest: damage, and a disk
// that twice does not give back what it holds. Each is named in the log. Any other error (a newer
// format, no permission, no memory) says nothing about the checkpoint and is thrown. Where none is
// left, throws the last damage, or the newest checkpoint's error of the disk.
LoadedCheckpoint load_newest(const std::string& path);

// The newest whole checkpoint of the run in `out_dir`; nullopt where there is none. Newer ones that
// are damaged are renamed step-N.damaged-<n>; those that the disk does not give back keep their
// names. Leftovers of saves and deletions that were killed are removed. Throws as load_newest, but
// damage is never thrown.
std::optional<LoadedCheckpoint> find_newest(const std::string& out_dir);

// Folders of OUT/checkpoints/ that carry a step's name, oldest first; their contents are not looked
// at.
std::vector<std::string> list_checkpoints(const std::string& out_dir);

// `path` itself where it is a checkpoint, else those of the run there, oldest first; at least one.
// Throws Error (kBadData) where it is neither.
std::vector<std::string> checkpoints_at(const std::string& path);

struct RetentionPolicy {
  uint32_t keep = 3;              // newest; at least 1 is kept
  bool keep_best = true;          // highest top1; of equals the newest
  uint64_t keep_every_steps = 0;  // steps divisible by it; 0: none
};

struct CheckpointEntry {
  uint64_t step = 0;
  std::optional<double> top1;
};

// The steps to delete, rising.
std::vector<uint64_t> which_to_delete(std::vector<CheckpointEntry> list,
                                      const RetentionPolicy& policy);

// Deletes what the policy does not keep (rename, then remove). A folder whose manifest cannot be
// read is neither counted nor touched, nor is one of a step after `newest`, the last one that was
// saved: it lay there unread when the run went on from an older one. Throws Error (kIo).
void apply_retention(const std::string& out_dir, const RetentionPolicy& policy,
                     uint64_t newest = UINT64_MAX);

}  // namespace convoy::trainer
