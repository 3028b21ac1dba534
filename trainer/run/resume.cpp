#include "trainer/run/resume.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/weights/model_state.h"

namespace convoy::trainer {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Fingerprint, device, instruction_set, libraries, build, caches)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PlateauState, drops, best_error, evaluations_since)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SkippedSteps, ranges, skips)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Resume, found, step, folder, evaluated, top1, job,
                                   dataset_digest, fingerprint, plateau, skipped, plans, idle_lives,
                                   idle)

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

[[noreturn]] void refuse_import(const std::string& checkpoint, const std::string& from) {
  fail(ExitCode::kUsage,
       "{}: holds imported weights (of {}), not a run that could go on; to train from them, choose "
       "another --out and --set transfer.init_from={}/model.safetensors",
       printable(checkpoint), printable(from), printable(checkpoint));
}

// --resume DIR, whose mistakes must name it.
LoadedCheckpoint load_resume(const std::string& folder) {
  try {
    LoadedCheckpoint loaded = load_newest(folder);
    const std::string& from = loaded.state.facts.imported_from;
    if (!from.empty()) refuse_import(loaded.folder, from);
    return loaded;
  } catch (const Error& e) {
    fail(e.code(), "--resume: {}", e.what());
  }
}

std::optional<LoadedCheckpoint> load_checkpoint_to_resume(const TrainOptions& options) {
  // What --out holds comes first, so that the same command goes on after a stop.
  if (!list_checkpoints(options.out).empty()) return find_newest(options.out);
  if (options.resume != "auto" && options.resume != "never") return load_resume(options.resume);
  return std::nullopt;
}

// The first line in which two texts differ, on one line.
std::string first_difference(std::string_view before, std::string_view after) {
  constexpr size_t kMostSaid = 100;
  const auto take_line = [](std::string_view& text) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    return line;
  };
  for (int number = 1;; ++number) {
    const std::string_view a = take_line(before), b = take_line(after);
    if (a != b || (before.empty() && after.empty()))
      return fmt::format("line {}: \"{}\" -> \"{}\"", number, printable(a, kMostSaid),
                         printable(b, kMostSaid));
  }
}

// A difference of the jobs for people; a network's text has many lines.
std::string said(const JobDifference& d, const Resume& resume, const Job& job) {
  if (d.key != "model.graph") return fmt::format("{}: {} -> {}", d.key, d.old_value, d.new_value);
  const std::string before = parse_job(resume.job, "the old job", {}, "").model.graph;
  if (before.empty()) return "model.graph: a model of the list -> a network's text";
  if (job.model.graph.empty()) return "model.graph: a network's text -> a model of the list";
  return fmt::format("the network's text changed, {}", first_difference(before, job.model.graph));
}

// As the others must know it.
Resume facts_of(const LoadedCheckpoint& loaded) {
  const CheckpointFacts& f = loaded.state.facts;
  return {.found = true,
          .step = f.step,
          .folder = loaded.folder,
          .evaluated = f.top1.has_value(),
          .top1 = f.top1.value_or(0),
          .job = f.job,
          .dataset_digest = f.dataset_digest,
          .fingerprint = f.fingerprint,
          .plateau = f.plateau,
          .skipped = f.skipped,
          .plans = f.plans};
}

}  // namespace

void expect_fresh_folder(const TrainOptions& options) {
  if (options.resume == "never" && !list_checkpoints(options.out).empty())
    fail(ExitCode::kUsage,
         "--resume never: {} holds checkpoints of an earlier run; choose another --out or "
         "--resume auto",
         printable(options.out));
}

void expect_no_import(const std::string& out_dir) {
  std::error_code none;  // what is no folder is said when the run makes its own
  if (out_dir.empty() || !fs::is_directory(out_dir, none)) return;
  for (const std::string& checkpoint : list_checkpoints(out_dir))
    if (const std::string from = imported_from(checkpoint); !from.empty())
      refuse_import(checkpoint, from);
}

std::optional<CheckpointState> find_resume(comm::Communicator& communicator,
                                           const TrainOptions& options, Resume& resume) {
  std::optional<LoadedCheckpoint> loaded;
  std::string text;
  if (communicator.rank() == 0) {
    if (!options.dry_run) loaded = load_checkpoint_to_resume(options);
    Resume now = loaded ? facts_of(*loaded) : Resume();
    now.idle_lives = resume.idle_lives;
    now.idle = resume.idle;
    json::to_cbor(now, text);
  }
  communicator.broadcast(text, 0);
  resume = json::from_cbor(text);
  if (!loaded) return std::nullopt;
  return std::move(loaded->state);
}

void expect_same_run(const Resume& resume, const Job& job, const std::string& dataset_digest,
                     const Fingerprint& fingerprint, bool allow_change, bool is_root) {
  std::string changed;
  for (const JobDifference& d : differing_keys(resume.job, to_text(job))) {
    const std::string text = said(d, resume, job);
    if (d.changes_result)
      changed += (changed.empty() ? "" : "; ") + text;
    else if (is_root)
      log::info("resume with {}", text);
  }
  if (resume.dataset_digest != dataset_digest)
    changed += fmt::format("{}training set: {} -> {}", changed.empty() ? "" : "; ",
                           resume.dataset_digest.substr(0, 12), dataset_digest.substr(0, 12));
  if (!changed.empty() && !allow_change)
    fail(ExitCode::kBadJob,
         "{} was trained by another job ({}); use another --out, or --allow-change to go on with "
         "the change",
         printable(resume.folder), changed);
  if (!is_root) return;
  if (!changed.empty()) log::warning("resume with changed results: {}", changed);
  const Fingerprint& before = resume.fingerprint;
  if (before == fingerprint) return;
  log::warning(
      "resume on another machine or build: results are no longer bit for bit those of the first "
      "({}, {}, {}, {} -> {}, {}, {}, {})",
      before.instruction_set, before.libraries, before.build, before.caches,
      fingerprint.instruction_set, fingerprint.libraries, fingerprint.build, fingerprint.caches);
}

void restore_on_all(comm::Communicator& communicator, Engine& engine,
                    const std::optional<CheckpointState>& checkpoint) {
  if (checkpoint) restore(engine, *checkpoint, false);
  broadcast_state(communicator, engine);
}

void broadcast_state(comm::Communicator& communicator, Engine& engine) {
  const bool is_root = communicator.rank() == 0;
  for (const std::span<float> flat : engine.state().all()) {
    std::vector<std::byte> bytes(is_root ? flat.size_bytes() : 0);
    if (is_root && !bytes.empty()) std::memcpy(bytes.data(), flat.data(), bytes.size());
    communicator.broadcast(bytes, 0);
    if (!bytes.empty()) std::memcpy(flat.data(), bytes.data(), bytes.size());
  }
  engine.put_state();
  std::vector<std::byte> scale(sizeof(LossScale));
  std::memcpy(scale.data(), &engine.loss_scale(), scale.size());
  communicator.broadcast(scale, 0);
  std::memcpy(&engine.loss_scale(), scale.data(), scale.size());
}

}  // namespace convoy::trainer
