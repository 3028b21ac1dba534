#include "trainer/checkpoints/checkpoint.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <random>

#include "ops/core/clock.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "proto/checkpoint.pb.h"
#include "trainer/base/file.h"
#include "trainer/base/file_calls.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kFormat = 1;
constexpr const char* kManifest = "manifest.txtpb";
constexpr size_t kMaxManifestBytes = size_t{8} << 20;
constexpr size_t kMaxNameBytes = size_t{1} << 20, kNameOverhead = 16;  // of class names
constexpr std::string_view kTrailer = "# SHA-256 of the lines above: ";
constexpr std::string_view kTemporary = ".tmp", kDeleting = ".deleting";
constexpr std::string_view kBad = "bad-", kTrial = "trial";

// The lists of a state by the name of their file.
struct ListRow {
  const char* name;
  TensorList CheckpointState::*list;
  bool required;
};
constexpr ListRow kLists[] = {{"model", &CheckpointState::model, true},
                              {"optimizer", &CheckpointState::optimizer, true},
                              {"ema", &CheckpointState::ema, false}};

std::string file_name(const ListRow& row) {
  return fmt::format("{}.safetensors", row.name);
}

bool present(const ListRow& row, const CheckpointState& state) {
  return row.required || !(state.*row.list).tensors.empty();
}

// The folder is no checkpoint, or a damaged one. Other errors (no memory, no permission, a manifest
// of a later layout) say nothing about that and must never make us rename it.
class NotWhole : public Error {
 public:
  using Error::Error;
};

fs::path checkpoints_dir(const std::string& out_dir) {
  return fs::path(out_dir) / "checkpoints";
}

std::string folder_name(uint64_t step) {
  return fmt::format("step-{:010d}", step);
}

std::optional<uint64_t> step_of(const std::string& name) {
  constexpr std::string_view kPrefix = "step-";
  uint64_t step = 0;
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
  if (folder_name(step) != name) return std::nullopt;
  return step;
}

// Names in OUT/checkpoints/, sorted; none where there is no such folder.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error)
    fail(ExitCode::kIo, "{}: cannot list: {}", printable(folder.string()), error.message());
  std::sort(names.begin(), names.end());
  return names;
}

// NAME.<pid>-<number><ending>: of this process alone. A life that was stopped past its lease and
// goes on, on this machine or another one, must not touch what its successor is writing.
fs::path name_of_our_own(const fs::path& path, std::string_view ending) {
  static const uint32_t number = std::random_device()();
  return fmt::format("{}.{}-{:08x}{}", path.string(), ::getpid(), number, ending);
}

// What a save or a deletion left when it was killed.
void remove_leftovers(const fs::path& folder) {
  for (const std::string& name : names_in(folder)) {
    const bool ours =
        name.starts_with("step-") || name.starts_with(kBad) || name.starts_with(kTrial);
    if (ours && (name.ends_with(kTemporary) || name.ends_with(kDeleting)))
      remove_tree(folder / name);
  }
}

// Renames a folder, so that its name is free on the disk as well, and removes it.
void remove_checkpoint(const fs::path& folder) {
  const std::string deleting = folder.string() + std::string(kDeleting);
  remove_tree(deleting);
  rename_path(folder, deleting);
  sync_folder(folder.parent_path());  // else the removal could come to the disk first
  remove_tree(deleting);
}

// A folder in one that is there; its name is not on the disk yet.
void new_folder(const fs::path& path) {
  if (sys::mkdir(path) != 0)
    fail(ExitCode::kIo, "{}: cannot create the folder: {}", printable(path.string()), errno_text());
}

// Renames a folder to the first free NAME.<word>-<n> and returns that.
std::string set_aside(const fs::path& folder, std::string_view word) {
  for (int n = 1;; ++n) {
    const std::string target = fmt::format("{}.{}-{}", folder.string(), word, n);
    if (fs::exists(fs::symlink_status(target))) continue;
    rename_path(folder, target);
    sync_folder(folder.parent_path());
    return target;
  }
}

std::string manifest_text(const CheckpointFacts& facts, const std::string& digest,
                          const std::map<std::string, FileRecord>& files) {
  proto::Manifest manifest;
  manifest.set_format(kFormat);
  manifest.set_step(facts.step);
  manifest.set_job_digest(facts.job_digest);
  manifest.set_job(facts.job);
  manifest.set_dataset_digest(facts.dataset_digest);
  proto::Fingerprint& fingerprint = *manifest.mutable_fingerprint();
  fingerprint.set_device(facts.fingerprint.device);
  fingerprint.set_instruction_set(facts.fingerprint.instruction_set);
  fingerprint.set_libraries(facts.fingerprint.libraries);
  fingerprint.set_build(facts.fingerprint.build);
  fingerprint.set_caches(facts.fingerprint.caches);
  manifest.set_state_digest(digest);
  for (const auto& [name, record] : files) {
    proto::File& file = *manifest.add_file();
    file.set_name(name);
    file.set_bytes(record.bytes);
    file.set_sha256(record.sha256);
  }
  manifest.set_dataset_size(facts.dataset_size);
  manifest.set_global_batch(facts.global_batch);
  manifest.set_plateau_drops(facts.plateau.drops);
  manifest.set_plateau_best_error(facts.plateau.best_error);
  manifest.set_plateau_evaluations_since(facts.plateau.evaluations_since);
  if (facts.top1) manifest.set_top1(*facts.top1);
  if (facts.confirmed_by_ranks > 0) manifest.set_confirmed_by_ranks(facts.confirmed_by_ranks);
  size_t name_bytes = 0;
  for (const std::string& name : facts.class_names) name_bytes += name.size() + kNameOverhead;
  if (name_bytes <= kMaxNameBytes)
    for (const std::string& name : facts.class_names) manifest.add_class_name(name);
  for (const auto& [begin, end] : facts.skipped.ranges) {
    proto::SkippedRange& range = *manifest.add_skipped();
    range.set_begin(begin);
    range.set_end(end);
  }
  manifest.set_skips(facts.skipped.skips);
  for (size_t begin = 0; begin < facts.plans.size();) {
    const size_t end = std::min(facts.plans.find('\n', begin), facts.plans.size());
    manifest.add_plan(facts.plans.substr(begin, end - begin));
    begin = end + 1;
  }
  if (!facts.imported_from.empty()) manifest.set_imported_from(facts.imported_from);
  std::string text;
  if (!google::protobuf::TextFormat::PrintToString(manifest, &text))
    fail(ExitCode::kFault, "the manifest cannot be written as text");
  return fmt::format("{}{}{}\n", text, kTrailer, sha256_hex(text));
}

struct ManifestContents {
  CheckpointFacts facts;
  std::string state_digest;
  std::map<std::string, FileRecord> files;
};

// Keeps the parser from writing to standard error.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int, const std::string& message) override {
    if (text.empty()) text = fmt::format("line {}: {}", line + 1, message);
  }
  std::string text;
};

// not_found where nothing is there. Throws ReadError where the system does not say.
fs::file_type type_of(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  if (type != fs::file_type::none) return type;
  if (error == std::errc::too_many_symbolic_link_levels) return fs::file_type::not_found;
  throw ReadError(error.value(),
                  fmt::format("{}: cannot look: {}", printable(path.string()), error.message()));
}

ManifestContents read_manifest(const fs::path& dir) {
  const std::string path = (dir / kManifest).string();
  const auto absent = [&](const std::string& what) {
    throw NotWhole(ExitCode::kBadData,
                   fmt::format("{}: not a checkpoint: {}", printable(dir.string()), what));
  };
  if (type_of(dir) != fs::file_type::directory) absent("no such folder");
  const fs::file_type type = type_of(path);
  if (type == fs::file_type::not_found) absent(fmt::format("it has no {}", kManifest));
  // Opening a FIFO would wait for its writer.
  if (type != fs::file_type::regular) absent(fmt::format("its {} is no file", kManifest));
  const std::string text = read_text(path, kMaxManifestBytes);
  const auto damaged = [&](const std::string& what) {
    throw NotWhole(ExitCode::kFault, fmt::format("{}: damaged: {}", printable(path), what));
  };
  const size_t trailer = text.rfind(kTrailer);
  if (trailer == std::string::npos) damaged("its last line, the checksum, is missing");
  const std::string_view body = std::string_view(text).substr(0, trailer);
  if (text.substr(trailer) != fmt::format("{}{}\n", kTrailer, sha256_hex(body)))
    damaged("its text does not match its own checksum");

  proto::Manifest manifest;
  google::protobuf::TextFormat::Parser parser;
  FirstError first;
  parser.RecordErrorsTo(&first);
  parser.AllowUnknownField(true);  // those of a later program, reported by `format` below
  if (!parser.ParseFromString(std::string(body), &manifest)) damaged(printable(first.text));
  if (manifest.format() > kFormat)
    fail(ExitCode::kBadData,
         "{}: written by a later Convoy (format {}, this one reads {}); use that one",
         printable(path), manifest.format(), kFormat);

  ManifestContents contents;
  CheckpointFacts& facts = contents.facts;
  facts.step = manifest.step();
  facts.job_digest = manifest.job_digest();
  facts.job = manifest.job();
  facts.dataset_digest = manifest.dataset_digest();
  facts.fingerprint = {manifest.fingerprint().device(), manifest.fingerprint().instruction_set(),
                       manifest.fingerprint().libraries(), manifest.fingerprint().build(),
                       manifest.fingerprint().caches()};
  facts.dataset_size = manifest.dataset_size();
  facts.global_batch = manifest.global_batch();
  facts.plateau = {manifest.plateau_drops(), manifest.plateau_best_error(),
                   manifest.plateau_evaluations_since()};
  if (manifest.has_top1()) facts.top1 = manifest.top1();
  facts.confirmed_by_ranks = manifest.confirmed_by_ranks();
  for (const proto::SkippedRange& range : manifest.skipped()) {
    if (range.begin() >= range.end())
      damaged(fmt::format("skipped steps [{}, {})", range.begin(), range.end()));
    facts.skipped.ranges.emplace_back(range.begin(), range.end());
  }
  facts.skipped.skips = manifest.skips();
  for (const std::string& plan : manifest.plan()) facts.plans += plan + "\n";
  facts.imported_from = manifest.imported_from();
  facts.class_names.assign(manifest.class_name().begin(), manifest.class_name().end());
  contents.state_digest = manifest.state_digest();
  for (const proto::File& file : manifest.file())
    contents.files[file.name()] = {file.bytes(), file.sha256()};
  for (const ListRow& row : kLists)
    if (row.required && !contents.files.contains(file_name(row)))
      damaged(fmt::format("it does not list {}", file_name(row)));
  return contents;
}

// One list of a checkpoint, compared with the manifest's record of its file.
TensorList read_list(const std::string& path, const FileRecord& expected) {
  const auto damaged = [&](const std::string& what) {
    throw NotWhole(ExitCode::kFault, fmt::format("{}: damaged: {}", printable(path), what));
  };
  const fs::file_type type = type_of(path);
  if (type == fs::file_type::not_found) damaged("it is missing, but the manifest lists it");
  if (type != fs::file_type::regular) damaged("it is no file");
  std::error_code error;
  const uint64_t bytes = fs::file_size(path, error);
  if (!error && bytes != expected.bytes)
    damaged(fmt::format("it has {} bytes, the manifest says {}", bytes, expected.bytes));
  try {
    FileRecord found;
    TensorList list = read_safetensors(path, nullptr, &found);
    if (found.sha256 != expected.sha256)
      damaged(fmt::format("its SHA-256 is {}, the manifest says {}", found.sha256,
                          printable(expected.sha256)));
    return list;
  } catch (const Error& problem) {
    if (problem.code() != ExitCode::kBadData) throw;
    throw NotWhole(ExitCode::kFault, fmt::format("damaged: {}", problem.what()));
  }
}

struct Loaded {
  CheckpointState state;
  VerifiedCheckpoint verified;
  std::map<std::string, FileRecord> files;
};

Loaded load(const std::string& dir) {
  const ManifestContents manifest = read_manifest(dir);
  Loaded loaded;
  loaded.state.facts = manifest.facts;
  loaded.verified.facts = manifest.facts;
  for (const ListRow& row : kLists) {
    const auto record = manifest.files.find(file_name(row));
    if (record == manifest.files.end()) continue;
    loaded.state.*row.list = read_list((fs::path(dir) / record->first).string(), record->second);
    loaded.verified.bytes += record->second.bytes;
  }
  loaded.files = manifest.files;
  loaded.verified.digest = state_digest(loaded.state);
  if (loaded.verified.digest != manifest.state_digest)
    throw NotWhole(
        ExitCode::kFault,
        fmt::format("{}: damaged: the state's digest is {}, {} says {}", printable(dir),
                    loaded.verified.digest, kManifest, printable(manifest.state_digest)));
  return loaded;
}

// The checkpoint of `step` in `dir`.
Loaded load_step(const std::string& dir, uint64_t step) {
  Loaded loaded = load(dir);
  if (loaded.verified.facts.step != step)
    throw NotWhole(ExitCode::kFault, fmt::format("{}: its manifest is of step {}", printable(dir),
                                                 loaded.verified.facts.step));
  return loaded;
}

// One that a run calls by its step.
CheckpointState load_named(const std::string& path) {
  return load_step(path, *step_of(fs::path(path).filename())).state;
}

// A disk may read a sector at the second try.
template <typename Read>
auto read_twice(const Read& read) {
  try {
    return read();
  } catch (const ReadError& error) {
    if (!error.of_the_disk()) throw;
    log::warning("{}; trying once more", error.what());
  }
  return read();
}

// The newest of `paths` (oldest first) that `read` gives back; see load_newest. `damaged` does with
// one what is to be done and says so. nullopt: all are damaged.
std::optional<LoadedCheckpoint> newest_of(
    const std::vector<std::string>& paths,
    const std::function<CheckpointState(const std::string&)>& read,
    const std::function<void(const std::string&, const NotWhole&)>& damaged) {
  std::exception_ptr unread;
  for (size_t i = paths.size(); i-- > 0;) {
    try {
      return LoadedCheckpoint{paths[i], read_twice([&] { return read(paths[i]); })};
    } catch (const NotWhole& damage) {
      damaged(paths[i], damage);
    } catch (const ReadError& error) {
      if (!error.of_the_disk()) throw;
      if (!unread) unread = std::current_exception();
      log::error("{}; it keeps its name, and the checkpoint before it is looked for", error.what());
    }
  }
  if (unread) std::rethrow_exception(unread);
  return std::nullopt;
}

// Makes `folder` and writes a whole checkpoint into it, the manifest last; all of it is on the disk
// but the folder's own name.
void write_folder(const fs::path& folder, const CheckpointState& state, const std::string& digest) {
  new_folder(folder);
  std::map<std::string, FileRecord> files;
  for (const ListRow& row : kLists)
    if (present(row, state))
      files[file_name(row)] = write_safetensors((folder / file_name(row)).string(),
                                                (state.*row.list).tensors, {{"format", "pt"}});
  write_text((folder / kManifest).string(), manifest_text(state.facts, digest, files));
  sync_folder(folder);
}

// The files of the checkpoint that stands there already, if it is whole and of this very state; one
// that is damaged or of another state is set aside, if the folder is still ours.
std::optional<std::map<std::string, FileRecord>> same_state_at(
    const fs::path& target, uint64_t step, const std::string& digest,
    const std::function<void()>& expect_ours) {
  if (!fs::exists(fs::symlink_status(target))) return std::nullopt;
  std::string damage;
  const char* word = "replaced";
  try {
    Loaded there = read_twice([&] { return load_step(target.string(), step); });
    if (there.verified.digest == digest) return std::move(there.files);
  } catch (const NotWhole& error) {
    damage = error.what();
    word = "damaged";
  } catch (const ReadError& error) {
    if (!error.of_the_disk()) throw;
    damage = error.what();
    word = "unreadable";
  }
  expect_ours();
  const std::string aside = set_aside(target, word);
  log::warning("{}; renamed to {}",
               damage.empty()
                   ? fmt::format("{}: holds another state of this step", printable(target.string()))
                   : damage,
               printable(aside));
  return std::nullopt;
}

// Gives a finished temporary folder its name.
void publish(const fs::path& temporary, const fs::path& target) {
  rename_path(temporary, target);
  try {
    sync_folder(target.parent_path());
  } catch (...) {
    // Whether the name is on the disk is unknown: a save that fails leaves none.
    sys::rename(target, temporary);
    throw;
  }
}

// `write(temporary)` writes and publishes by way of a temporary folder, which is gone afterwards.
template <typename Write>
void by_way_of(const fs::path& temporary, const Write& write) {
  try {
    remove_tree(temporary);
    write(temporary);
    remove_tree(temporary);
  } catch (...) {
    clean_up(temporary);
    throw;
  }
}

}  // namespace

std::string state_digest(const CheckpointState& state) {
  Sha256 sha;
  for (const ListRow& row : kLists) {
    if (!present(row, state)) continue;
    std::vector<const NamedTensor*> sorted;
    for (const NamedTensor& tensor : (state.*row.list).tensors) sorted.push_back(&tensor);
    std::sort(sorted.begin(), sorted.end(),
              [](const NamedTensor* a, const NamedTensor* b) { return a->name < b->name; });
    for (const NamedTensor* tensor : sorted) {
      sha.update(fmt::format("{} {} {} {} [{}] {}\n", row.name, tensor->name.size(), tensor->name,
                             name_of(tensor->type), fmt::join(tensor->shape, ","),
                             tensor->bytes.size()));
      sha.update(tensor->bytes.data(), tensor->bytes.size());
    }
  }
  return sha.hex();
}

std::string save_checkpoint(const std::string& out_dir, const CheckpointState& state,
                            const std::function<void()>& expect_ours) {
  const fs::path folder = checkpoints_dir(out_dir);
  make_folder(folder);
  const fs::path target = folder / folder_name(state.facts.step);
  const std::string digest = state_digest(state);
  by_way_of(name_of_our_own(target, kTemporary), [&](const fs::path& temporary) {
    if (const auto files = same_state_at(target, state.facts.step, digest, expect_ours)) {
      new_folder(temporary);
      write_text((temporary / kManifest).string(), manifest_text(state.facts, digest, *files));
      expect_ours();
      rename_path(temporary / kManifest, target / kManifest);
      sync_folder(target);
      sync_folder(folder);  // of the save before nobody knows whether it came so far
    } else {
      write_folder(temporary, state, digest);
      expect_ours();
      publish(temporary, target);
    }
  });
  return target.string();
}

std::string save_apart(const std::string& out_dir, const CheckpointState& state) {
  const fs::path folder = checkpoints_dir(out_dir);
  make_folder(folder);
  for (const std::string& name : names_in(folder))
    if (name.starts_with(kBad) && !name.ends_with(kTemporary)) remove_checkpoint(folder / name);
  const fs::path target = folder / (std::string(kBad) + folder_name(state.facts.step));
  by_way_of(name_of_our_own(target, kTemporary), [&](const fs::path& temporary) {
    write_folder(temporary, state, state_digest(state));
    publish(temporary, target);
  });
  return target.string();
}

TrialSave trial_save(const std::string& out_dir, const CheckpointState& state) {
  const fs::path folder = checkpoints_dir(out_dir);
  make_folder(folder);
  remove_leftovers(folder);
  TrialSave trial;
  const fs::path target = name_of_our_own(folder / kTrial, kDeleting);
  by_way_of(target, [&](const fs::path&) {
    const auto start = Clock::now();
    const std::string digest = state_digest(state);
    by_way_of(name_of_our_own(folder / kTrial, kTemporary), [&](const fs::path& temporary) {
      write_folder(temporary, state, digest);
      publish(temporary, target);
    });
    trial.save_seconds = seconds_since(start);
    const VerifiedCheckpoint read = verify_checkpoint(target);
    trial.load_seconds = seconds_since(start) - trial.save_seconds;
    trial.bytes = read.bytes;
    if (read.digest != digest)
      fail(ExitCode::kFault, "{}: a trial save reads back as {}, but {} was written",
           printable(target.string()), read.digest, digest);
  });
  return trial;
}

VerifiedCheckpoint verify_checkpoint(const std::string& dir) {
  return load(dir).verified;
}

CheckpointState load_checkpoint(const std::string& dir) {
  return std::move(load(dir).state);
}

std::string imported_from(const std::string& dir) {
  try {
    return read_manifest(dir).facts.imported_from;
  } catch (const Error&) {
    return "";
  }
}

std::vector<std::string> list_checkpoints(const std::string& out_dir) {
  const fs::path folder = checkpoints_dir(out_dir);
  std::map<uint64_t, std::string> found;
  for (const std::string& name : names_in(folder))
    if (const auto step = step_of(name)) found[*step] = (folder / name).string();
  std::vector<std::string> paths;
  for (const auto& [step, path] : found) paths.push_back(path);
  return paths;
}

std::vector<std::string> checkpoints_at(const std::string& path) {
  std::error_code error;
  if (fs::exists(fs::path(path) / kManifest, error)) return {path};
  expect_folder(path);
  std::vector<std::string> folders = list_checkpoints(path);
  if (folders.empty())
    fail(ExitCode::kBadData, "{}: neither a checkpoint (no {}) nor a run with checkpoints",
         printable(path), kManifest);
  return folders;
}

LoadedCheckpoint load_newest(const std::string& path) {
  const std::vector<std::string> paths = checkpoints_at(path);
  auto loaded = newest_of(paths, paths.front() == path ? load_checkpoint : load_named,
                          [&](const std::string& folder, const NotWhole& damage) {
                            if (folder == paths.front()) throw damage;
                            log::warning("{}; taking the checkpoint before it", damage.what());
                          });
  return std::move(*loaded);
}

std::optional<LoadedCheckpoint> find_newest(const std::string& out_dir) {
  remove_leftovers(checkpoints_dir(out_dir));
  return newest_of(list_checkpoints(out_dir), load_named,
                   [](const std::string& path, const NotWhole& damage) {
                     const std::string aside = set_aside(path, "damaged");
                     log::warning("{}; renamed to {}, the checkpoint before it is used",
                                  damage.what(), printable(aside));
                   });
}

std::vector<uint64_t> which_to_delete(std::vector<CheckpointEntry> list,
                                      const RetentionPolicy& policy) {
  std::sort(list.begin(), list.end(),
            [](const CheckpointEntry& a, const CheckpointEntry& b) { return a.step < b.step; });
  const CheckpointEntry* best = nullptr;
  for (const CheckpointEntry& entry : list)
    if (entry.top1 && (!best || *entry.top1 >= *best->top1)) best = &entry;
  const size_t newest = std::min(list.size(), static_cast<size_t>(std::max(policy.keep, 1u)));
  std::vector<uint64_t> steps;
  for (size_t i = 0; i < list.size() - newest; ++i) {
    const bool is_best = policy.keep_best && &list[i] == best;
    const bool for_ever =
        policy.keep_every_steps != 0 && list[i].step % policy.keep_every_steps == 0;
    if (!is_best && !for_ever) steps.push_back(list[i].step);
  }
  return steps;
}

void apply_retention(const std::string& out_dir, const RetentionPolicy& policy, uint64_t newest) {
  // What an earlier deletion could not remove.
  for (const std::string& name : names_in(checkpoints_dir(out_dir)))
    if (name.starts_with("step-") && name.ends_with(kDeleting))
      remove_tree(checkpoints_dir(out_dir) / name);
  std::vector<CheckpointEntry> entries;
  for (const std::string& path : list_checkpoints(out_dir)) {
    if (*step_of(fs::path(path).filename()) > newest) break;
    try {
      const CheckpointFacts facts = read_manifest(path).facts;
      if (folder_name(facts.step) == fs::path(path).filename())
        entries.push_back({facts.step, facts.top1});
    } catch (const NotWhole&) {  // find_newest deals with it
    } catch (const ReadError& error) {
      log::warning("{}; it is not deleted", error.what());
    }
  }
  for (const uint64_t step : which_to_delete(entries, policy))
    remove_checkpoint(checkpoints_dir(out_dir) / folder_name(step));
}

}  // namespace convoy::trainer
