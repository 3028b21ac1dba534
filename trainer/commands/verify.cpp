// convoy verify: is a checkpoint, or every checkpoint of a run, whole? Did the run use every sample
// once? Or, of a dataset: is every image whole (verify_dataset.h)?
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/verify_dataset.h"
#include "trainer/job/job.h"
#include "trainer/job/limits.h"
#include "trainer/records/ledger.h"
#include "trainer/records/lives.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;
using nlohmann::ordered_json;

// The checkpoint and the line of the ledger that leads to it must be of the same run.
void expect_same_terms(const LedgerText& ledger, const CheckpointFacts& facts) {
  for (const LedgerPiece& piece : surviving_path(ledger.records)) {
    if (facts.step <= piece.first || facts.step > piece.end) continue;
    const LedgerTerms& there = piece.record->terms;
    const Job job = parse_job(facts.job, "the checkpoint's job", {}, "");
    // With windows the digest is over the shards' sizes, too.
    const bool windows = job.data.shuffle == Job::Data::Shuffle::kWindow;
    const LedgerTerms here{
        .dataset_size = facts.dataset_size,
        .global_batch = facts.global_batch,
        .seed = job.seed,
        .dataset_digest = facts.dataset_digest,
        .windows = windows ? data::Windows{there.windows.shards, job.data.window_shards}
                           : data::Windows{}};
    if (there == here) return;
    fail(ExitCode::kFault,
         "ledger: steps {} to {} are of another run: {} samples, batch {}, seed {}, data {}, "
         "windows "
         "of {} shards; the checkpoint of step {} says {}, {}, {}, {}, {}",
         piece.first, piece.end - 1, there.dataset_size, there.global_batch, there.seed,
         printable(there.dataset_digest.substr(0, 12)), there.windows.window, facts.step,
         here.dataset_size, here.global_batch, here.seed,
         printable(here.dataset_digest.substr(0, 12)), here.windows.window);
  }
}

std::string to_text(const LedgerProof& proof) {
  std::string text = fmt::format(
      "ledger: steps {} to {} consumed exactly their {} stream positions ({} lives, {} records, "
      "{:.1f} "
      "s)\n",
      proof.first, proof.end, proof.positions, proof.lives, proof.records, proof.seconds);
  text += fmt::format("  {} whole epoch(s): each of the {} samples exactly once\n",
                      proof.whole_epochs, proof.samples);
  if (proof.skipped_epochs > 0)
    text += fmt::format(
        "  {} epoch(s) with steps that were passed over: each of the {} samples at most once\n",
        proof.skipped_epochs, proof.samples);
  if (proof.last_epoch_samples + proof.last_epoch_skipped > 0)
    text += fmt::format("  epoch {} is under way: {} of {} samples, each once{}\n",
                        proof.last_epoch + 1, proof.last_epoch_samples, proof.samples,
                        proof.last_epoch_skipped > 0
                            ? fmt::format("; {} were passed over", proof.last_epoch_skipped)
                            : "");
  if (proof.first > 0)
    text +=
        fmt::format("  not proven: steps 0 to {}: {}\n", proof.first, printable(proof.unrecorded));
  for (const uint64_t step : proof.changed_at)
    text +=
        fmt::format("  from step {} on, with other data, batch or seed (--allow-change)\n", step);
  if (!proof.substituted.empty())
    text += fmt::format(
        "  {} sample(s) were bad and replaced, the first at position {}: {} by {} ({})\n",
        proof.substituted.size(), proof.substituted.front().position,
        proof.substituted.front().sample, proof.substituted.front().substitute,
        printable(proof.substituted.front().reason));
  for (const SkippedRange& s : proof.skipped)
    text +=
        fmt::format("  steps {} to {} trained nothing: {}\n", s.first, s.end, printable(s.reason));
  return text;
}

ordered_json to_json(const LedgerProof& proof) {
  ordered_json object = {{"first_step", proof.first},
                         {"end_step", proof.end},
                         {"positions", proof.positions},
                         {"samples", proof.samples},
                         {"skipped_positions", proof.skipped_positions},
                         {"whole_epochs", proof.whole_epochs},
                         {"skipped_epochs", proof.skipped_epochs},
                         {"last_epoch", proof.last_epoch},
                         {"last_epoch_samples", proof.last_epoch_samples},
                         {"last_epoch_skipped", proof.last_epoch_skipped},
                         {"changed_at", proof.changed_at},
                         {"substituted", ordered_json::array()},
                         {"skipped", ordered_json::array()},
                         {"lives", proof.lives},
                         {"records", proof.records},
                         {"seconds", proof.seconds}};
  if (proof.first > 0) object["unrecorded"] = printable(proof.unrecorded);
  for (const SubstitutedSample& s : proof.substituted)
    object["substituted"].push_back({{"position", s.position},
                                     {"sample", s.sample},
                                     {"substitute", s.substitute},
                                     {"reason", printable(s.reason)}});
  for (const SkippedRange& s : proof.skipped)
    object["skipped"].push_back(
        {{"first_step", s.first}, {"end_step", s.end}, {"reason", printable(s.reason)}});
  return object;
}

[[noreturn]] void fail_unrecorded(uint64_t end, const std::string& why) {
  fail(ExitCode::kFault,
       "ledger: steps 0 to {} are not proven: {}; --allow-unrecorded takes that as it is", end - 1,
       why);
}

// Nothing where the run has no ledger, as one of a Convoy without ledgers.
std::optional<LedgerProof> prove_run(const std::string& run, const CheckpointFacts& newest,
                                     int threads, bool allow_unrecorded) {
  const LedgerText ledger = read_ledger(run);
  if (ledger.records.empty() && ledger.damaged.empty()) {
    // A Convoy that tells its lives keeps a ledger.
    if (newest.step > 0 && !allow_unrecorded && !read_lives(run).lives.empty())
      fail_unrecorded(newest.step, "the run has no ledger any more");
    return std::nullopt;
  }
  const LedgerProof proof = prove(ledger, newest.step, threads);
  if (proof.lost && !allow_unrecorded) fail_unrecorded(proof.first, printable(proof.unrecorded));
  expect_same_terms(ledger, newest);
  return proof;
}

int verify_run(const std::string& dir, int threads, bool allow_unrecorded, bool json) {
  const std::vector<std::string> folders = checkpoints_at(dir);
  const bool is_run = folders.front() != dir;
  VerifiedCheckpoint newest;
  for (const std::string& folder : folders) newest = verify_checkpoint(folder);
  std::optional<LedgerProof> proof;
  if (is_run) proof = prove_run(dir, newest.facts, threads, allow_unrecorded);
  if (json) {
    ordered_json out = {{"checkpoint", folders.back()},
                        {"step", newest.facts.step},
                        {"digest", newest.digest},
                        {"bytes", newest.bytes},
                        {"checkpoints", folders.size()},
                        {"job_digest", newest.facts.job_digest},
                        {"dataset_digest", newest.facts.dataset_digest}};
    if (is_run) out["ledger"] = proof ? to_json(*proof) : ordered_json(nullptr);
    std::cout << out.dump(2) << std::endl;
  } else {
    std::cout << fmt::format("{}: whole ({} checkpoint(s) checked)\nstep {}\ndigest {}\n",
                             printable(folders.back()), folders.size(), newest.facts.step,
                             newest.digest);
    if (proof)
      std::cout << to_text(*proof);
    else if (is_run)
      std::cout << "ledger: none (not there, or no steps yet): which samples were used is not "
                   "proven\n";
  }
  return 0;
}

// Which of the things that convoy verify knows lies in the folder; nullopt: checkpoints.
std::optional<data::Recognised> dataset_at(const std::string& dir, const std::string& as) {
  if (as == "run") return std::nullopt;
  std::error_code error;
  const std::filesystem::path path(dir);
  const bool is_run = exists(path / "manifest.txtpb", error) ||
                      is_directory(path / "checkpoints", error) ||
                      exists(path / "job.txtpb", error) || exists(path / "ledger.jsonl", error);
  if (!is_directory(path, error)) return std::nullopt;  // it says so itself
  if (!as.empty() && as != "dataset") {
    if (const auto format = data::format_of(as))
      return data::Recognised{*format, as, "as --as says", true};
    fail(ExitCode::kUsage, "--as {}: there are run, dataset, {}", printable(as),
         data::format_names());
  }
  const std::vector<data::Recognised> found = data::recognise(dir);
  std::string names;
  for (const data::Recognised& one : found)
    names += fmt::format("{}{} ({})", names.empty() ? "" : ", and ", one.name, one.because);
  if (as.empty() && is_run) {
    if (found.empty() || !found.front().certain) return std::nullopt;
    fail(ExitCode::kUsage,
         "{}: holds a run or a checkpoint, and {}: say which with --as run or --as {}",
         printable(dir), names, found.front().name);
  }
  if (found.size() > 1)
    fail(ExitCode::kUsage, "{}: holds {}: say which with --as {} or --as {}", printable(dir), names,
         found[0].name, found[1].name);
  if (found.empty())
    fail(ExitCode::kBadData,
         "{}: neither a checkpoint (no manifest.txtpb) nor a run with checkpoints nor a dataset of "
         "a "
         "known format; --as FORMAT ({}) looks all the same",
         printable(dir), data::format_names());
  return found.front();
}

}  // namespace

int verify_command(const Arguments& arguments) {
  std::string dir, as;
  bool json = false, allow_unrecorded = false;
  int threads = 0, data_threads = 0;
  VerifyDatasetOptions dataset;
  po::options_description options("Options");
  options.add_options()("dir", po::value(&dir)->required(),
                        "a checkpoint, a run, or the folder of a dataset")(
      "as", po::value(&as),
      "what DIR is, where it could be several things: run, dataset, or a format of datasets "
      "(image_folder, idx, cifar ...)")("threads", po::value(&threads),
                                        "that recompute the ledger; default: all CPUs")(
      "allow-unrecorded", po::bool_switch(&allow_unrecorded),
      "exit code 0 although the ledger of steps that this run has trained is gone; they are named")(
      "data-threads", po::value(&data_threads),
      "that decode a dataset's images; default: all CPUs")(
      "max-pixels", po::value(&dataset.max_pixels),
      "of a dataset: more is bad; default: data.max_pixels' own, 178956970")(
      "follow-links", po::bool_switch(&dataset.follow_links),
      "of an image folder: links may lead out of it, as with data.follow_links")(
      "all", po::bool_switch(&dataset.all), "name every finding, not the first few of each kind")(
      "json", po::bool_switch(&json), "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options, "verify DIR [OPTIONS]",
      "Recomputes every length and checksum. The digest is a SHA-256 over weights, optimizer state "
      "and\n"
      "batch-norm state: two runs that print the same one have the same bits. Of a run all "
      "checkpoints\n"
      "are checked, and the newest one's digest is printed; then its ledger (what each step "
      "consumed,\n"
      "across all lives) is recomputed from the job's seed: each sample of each whole epoch "
      "exactly "
      "once,\n"
      "or exit code 70 and the first position and step where that fails, or that nobody has "
      "recorded.\n"
      "Epochs with steps that were passed over are counted apart.\n"
      "Of a dataset every image of both splits is decoded whole. Bad (exit code 65): truncated or "
      "damaged,\n"
      "empty, not an image, unreadable, arithmetic coding or 12 bits, too large. Odd (exit code "
      "0): "
      "grey,\n"
      "CMYK, misnamed, turned by EXIF, progressive, huge, small, the same bytes twice within a "
      "split "
      "or in\n"
      "both, under other labels, classes of very few images.\n",
      "dir");
  if (!values) return 0;
  for (const auto& [name, value] :
       {std::pair{"threads", threads}, std::pair{"data-threads", data_threads}})
    if (values->count(name) > 0 && value < 1)
      fail(ExitCode::kUsage, "--{} {}: must be at least 1", name, value);
  const int cpus = usable_cpus();
  if (const auto format = dataset_at(dir, as)) {
    dataset.path = dir;
    dataset.format = *format;
    dataset.threads = data_threads > 0 ? data_threads : cpus;
    dataset.json = json;
    return verify_dataset(dataset);
  }
  return verify_run(dir, threads > 0 ? threads : cpus, allow_unrecorded, json);
}

}  // namespace convoy::trainer
