// Checkpoints: whole or not there.
#include "trainer/checkpoints/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/base/file_size_limit.h"
#include "trainer/base/file_calls.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::TempFolder;
using test::write_file;

// A state whose tensors point into its own memory.
struct TestState {
  std::vector<float> weight, mean, momentum, average;
  std::vector<int64_t> tracked = {7};

  explicit TestState(float value)
      : weight{value, 2, 3, 4}, mean{0.5f, value}, momentum{value, 0, 0, 1}, average{1, 1, 1, 1} {}

  CheckpointState at(uint64_t step, bool with_ema = true) const {
    CheckpointState state;
    state.facts = {
        step, "jobdigest", "name: \"a\"\n", "datadigest", {"cpu", "avx2", "l", "b", "c"}, 60000,
        128,  {},          std::nullopt};
    state.model.tensors = {
        {"conv.weight", StoredType::kF32, {2, 2}, std::as_bytes(std::span(weight))},
        {"bn.running_mean", StoredType::kF32, {2}, std::as_bytes(std::span(mean))},
        {"bn.num_batches_tracked", StoredType::kI64, {}, std::as_bytes(std::span(tracked))}};
    state.optimizer.tensors = {
        {"momentum.conv.weight", StoredType::kF32, {2, 2}, std::as_bytes(std::span(momentum))}};
    if (with_ema)
      state.ema.tensors = {
          {"conv.weight", StoredType::kF32, {2, 2}, std::as_bytes(std::span(average))}};
    return state;
  }
};

std::string checkpoint(const std::string& out, uint64_t step) {
  return fmt::format("{}/checkpoints/step-{:010d}", out, step);
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// The folder of what find_newest() loads, which is what lies there.
std::optional<std::string> newest_in(const std::string& out) {
  const std::optional<LoadedCheckpoint> loaded = find_newest(out);
  if (!loaded) return std::nullopt;
  EXPECT_EQ(state_digest(loaded->state), verify_checkpoint(loaded->folder).digest);
  return loaded->folder;
}

Error error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ExitCode::kDone, "");
}

// Collects log lines while it lives.
class LogLines {
 public:
  LogLines() {
    text().clear();
    log::set_sink([](log::Level, const std::string& line) { text() += line + "\n"; });
  }
  ~LogLines() { log::set_sink(nullptr); }
  static std::string& text() {
    static std::string lines;
    return lines;
  }
};

TEST(Checkpoint, LoadsWhatWasSaved) {
  const TempFolder out;
  const TestState memory(1);
  CheckpointState state = memory.at(1234);
  state.facts.plateau = {2, 0.25, 1};
  state.facts.top1 = 0.875;
  state.facts.confirmed_by_ranks = 3;
  state.facts.skipped = {.ranges = {{5, 8}, {20, 21}}, .skips = 3};
  state.facts.plans = "forward x \"y\" = 9:1=2\nproduct = none\n";
  const std::string path = save_checkpoint(out.path(), state);
  EXPECT_EQ(path, checkpoint(out.path(), 1234));
  EXPECT_EQ(names_in(path),
            (std::vector<std::string>{"ema.safetensors", "manifest.txtpb", "model.safetensors",
                                      "optimizer.safetensors"}));
  EXPECT_EQ(names_in(out.path("checkpoints")).size(), 1u);

  const CheckpointState loaded = load_checkpoint(path);
  EXPECT_EQ(loaded.facts.step, 1234u);
  EXPECT_EQ(loaded.facts.job_digest, "jobdigest");
  EXPECT_EQ(loaded.facts.job, "name: \"a\"\n");
  EXPECT_EQ(loaded.facts.dataset_digest, "datadigest");
  EXPECT_EQ(loaded.facts.fingerprint, state.facts.fingerprint);
  EXPECT_EQ(loaded.facts.dataset_size, 60000u);
  EXPECT_EQ(loaded.facts.global_batch, 128u);
  EXPECT_EQ(loaded.facts.plateau, state.facts.plateau);
  EXPECT_EQ(loaded.facts.top1, 0.875);
  EXPECT_EQ(loaded.facts.confirmed_by_ranks, 3u);
  EXPECT_EQ(loaded.facts.skipped, state.facts.skipped);
  EXPECT_EQ(loaded.facts.plans, state.facts.plans);
  ASSERT_EQ(loaded.model.tensors.size(), 3u);
  EXPECT_EQ(loaded.model.tensors[0].name, "conv.weight");
  EXPECT_EQ(loaded.model.tensors[0].shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(std::memcmp(loaded.model.tensors[0].bytes.data(), memory.weight.data(), 16), 0);
  EXPECT_EQ(std::memcmp(loaded.optimizer.tensors[0].bytes.data(), memory.momentum.data(), 16), 0);
  EXPECT_EQ(std::memcmp(loaded.ema.tensors[0].bytes.data(), memory.average.data(), 16), 0);

  const VerifiedCheckpoint verified = verify_checkpoint(path);
  EXPECT_EQ(verified.digest, state_digest(state));
  EXPECT_EQ(verified.facts.step, 1234u);
  EXPECT_EQ(verified.bytes, fs::file_size(path + "/model.safetensors") +
                                fs::file_size(path + "/optimizer.safetensors") +
                                fs::file_size(path + "/ema.safetensors"));
}

TEST(Checkpoint, AFreshPlateauAndNoAverageSurvive) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(1, false));
  EXPECT_FALSE(fs::exists(path + "/ema.safetensors"));
  const CheckpointState loaded = load_checkpoint(path);
  EXPECT_TRUE(loaded.ema.tensors.empty());
  EXPECT_EQ(loaded.facts.plateau, PlateauState{});  // best error: infinity
  EXPECT_EQ(loaded.facts.top1, std::nullopt);
  EXPECT_EQ(loaded.facts.plans, "");  // as in checkpoints from before that field
}

TEST(Checkpoint, TheDigestIsOfTheStateAlone) {
  const TestState memory(1);
  const std::string digest = state_digest(memory.at(1));
  EXPECT_EQ(state_digest(memory.at(2)), digest);  // facts are no part of it
  CheckpointState reordered = memory.at(1);
  std::reverse(reordered.model.tensors.begin(), reordered.model.tensors.end());
  EXPECT_EQ(state_digest(reordered), digest);
  EXPECT_NE(state_digest(memory.at(1, false)), digest);  // the average is

  const auto changed = [&](auto change) {
    CheckpointState state = memory.at(1);
    change(state);
    return state_digest(state);
  };
  EXPECT_NE(changed([](auto& s) { s.model.tensors[0].shape = {4}; }), digest);
  EXPECT_NE(changed([](auto& s) { s.model.tensors[0].name = "conv.weighu"; }), digest);
  EXPECT_NE(changed([](auto& s) { s.model.tensors[0].type = StoredType::kI32; }), digest);
  EXPECT_NE(changed([](auto& s) { std::swap(s.model.tensors, s.optimizer.tensors); }), digest);
  TestState other(1);
  other.momentum[3] = 2;
  EXPECT_NE(state_digest(other.at(1)), digest);
  other = TestState(1);
  other.mean[1] = 2;
  EXPECT_NE(state_digest(other.at(1)), digest);
}

// The digest spelt out by hand, so that no later program changes it unseen.
TEST(Checkpoint, TheDigestHasAFixedForm) {
  CheckpointState state;
  const std::vector<uint8_t> data = {'x', 'y'};
  state.model.tensors = {{"w", StoredType::kU8, {1, 2}, std::as_bytes(std::span(data))}};
  state.optimizer.tensors = {{"m", StoredType::kU8, {2}, std::as_bytes(std::span(data))}};
  EXPECT_EQ(state_digest(state), sha256_hex("model 1 w U8 [1,2] 2\nxyoptimizer 1 m U8 [2] 2\nxy"));
}

TEST(Checkpoint, TheManifestCarriesItsOwnChecksum) {
  const TempFolder out;
  const std::string text =
      read_file(save_checkpoint(out.path(), TestState(1).at(1)) + "/manifest.txtpb");
  const size_t last = text.rfind("# SHA-256 of the lines above: ");
  ASSERT_NE(last, std::string::npos);
  EXPECT_EQ(text.substr(last + 30), sha256_hex(text.substr(0, last)) + "\n");
}

// Every file of a checkpoint: cut, one bit changed at several places, emptied, longer, gone. Each
// is found, named, set aside, and the checkpoint before it is used.
TEST(Checkpoint, EveryDamageIsNamedAndTheOneBeforeIsUsed) {
  const TempFolder base;
  const TestState memory(1);
  const std::string first = save_checkpoint(base.path(), memory.at(100));
  const std::string second = save_checkpoint(base.path(), memory.at(200));
  size_t cases = 0;
  for (const std::string& name : names_in(second)) {
    const std::string whole = read_file(second + "/" + name);
    std::vector<std::pair<std::string, std::string>> damages = {
        {"cut by one", whole.substr(0, whole.size() - 1)},
        {"cut in half", whole.substr(0, whole.size() / 2)},
        {"empty", ""},
        {"longer", whole + "x"}};
    for (size_t position = 0; position < whole.size(); position += 1 + whole.size() / 40) {
      std::string flipped = whole;
      flipped[position] = static_cast<char>(flipped[position] ^ 0x04);
      damages.emplace_back(fmt::format("bit at {}", position), flipped);
    }
    damages.emplace_back("missing", "");
    for (const auto& [what, bytes] : damages) {
      SCOPED_TRACE(name + ": " + what);
      ++cases;
      const TempFolder out;
      fs::copy(base.path("checkpoints"), out.path("checkpoints"), fs::copy_options::recursive);
      const std::string damaged = checkpoint(out.path(), 200);
      if (what == "missing")
        fs::remove(damaged + "/" + name);
      else
        write_file(damaged + "/" + name, bytes);

      const Error error = error_of([&] { verify_checkpoint(damaged); });
      const bool no_checkpoint = name == "manifest.txtpb" && what == "missing";
      EXPECT_EQ(error.code(), no_checkpoint ? ExitCode::kBadData : ExitCode::kFault);
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      error_of([&] { load_checkpoint(damaged); });

      const LogLines log;
      EXPECT_EQ(newest_in(out.path()), checkpoint(out.path(), 100));
      EXPECT_NE(log.text().find(name), std::string::npos) << log.text();
      EXPECT_NE(log.text().find("step-0000000200.damaged-1"), std::string::npos) << log.text();
      EXPECT_EQ(names_in(out.path("checkpoints")),
                (std::vector<std::string>{"step-0000000100", "step-0000000200.damaged-1"}));
    }
  }
  EXPECT_GT(cases, 100u);
}

TEST(Checkpoint, TwoFilesExchangedAreFound) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(1));
  fs::rename(path + "/ema.safetensors", path + "/x");
  fs::rename(path + "/optimizer.safetensors", path + "/ema.safetensors");
  fs::rename(path + "/x", path + "/optimizer.safetensors");
  EXPECT_EQ(error_of([&] { verify_checkpoint(path); }).code(), ExitCode::kFault);
}

// R26, on a checkpoint of some size: each file in place, and back.
TEST(Checkpoint, R26ABitAtEvery1000thByteAndInEveryByteOfTheManifest) {
  const TempFolder out(TempFolder::memory());
  TestState memory(1);
  memory.weight.assign(20000, 0.5f);
  const auto large = [&](uint64_t step) {
    CheckpointState state = memory.at(step);
    state.model.tensors[0].shape = {20000};
    state.model.tensors[0].bytes = std::as_bytes(std::span(memory.weight));
    return state;
  };
  const std::string first = save_checkpoint(out.path(), large(100));
  memory.weight[0] = 1;
  const std::string second = save_checkpoint(out.path(), large(200));
  size_t cases = 0;
  for (const std::string& name : names_in(second)) {
    std::string bytes = read_file(second + "/" + name);
    const size_t apart = name == "manifest.txtpb" ? 1 : 1000;
    for (size_t at = 0; at < bytes.size(); at += apart) {
      SCOPED_TRACE(fmt::format("{}: bit at byte {}", name, at));
      ++cases;
      const char before = bytes[at];
      bytes[at] = static_cast<char>(before ^ (1 << at % 8));
      write_file(second + "/" + name, bytes);
      const Error error = error_of([&] { verify_checkpoint(second); });
      EXPECT_EQ(error.code(), ExitCode::kFault);
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      const LogLines log;
      EXPECT_EQ(load_newest(out.path()).folder, first);
      bytes[at] = before;
    }
    write_file(second + "/" + name, bytes);
    verify_checkpoint(second);
  }
  EXPECT_GT(cases, 900u);
}

TEST(Checkpoint, R26AFileOfAnotherRunIsFound) {
  const TempFolder ours, theirs;
  save_checkpoint(ours.path(), TestState(1).at(1));
  const std::string path = save_checkpoint(ours.path(), TestState(1).at(2));
  const std::string other = save_checkpoint(theirs.path(), TestState(3).at(2));
  for (const std::string& name : names_in(path)) {
    SCOPED_TRACE(name);
    const std::string before = read_file(path + "/" + name);
    fs::copy_file(other + "/" + name, path + "/" + name, fs::copy_options::overwrite_existing);
    // The average is the same in both.
    if (read_file(path + "/" + name) == before) continue;
    const LogLines log;
    EXPECT_EQ(error_of([&] { verify_checkpoint(path); }).code(), ExitCode::kFault);
    EXPECT_EQ(load_newest(ours.path()).folder, checkpoint(ours.path(), 1));
    write_file(path + "/" + name, before);
  }
  verify_checkpoint(path);
}

// R28: nothing is written that says which is the newest, and nothing that says so is believed.
TEST(Checkpoint, R28AStrayLatestIsNotLookedAtAndLinksNeverLeadADeletionOutside) {
  const TempFolder out, elsewhere;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(5));
  save_checkpoint(elsewhere.path(), TestState(2).at(9));
  for (const std::string& folder : {out.path(), out.path("checkpoints")}) {
    fs::create_symlink("nowhere", folder + "/latest");
    fs::create_symlink("newest", folder + "/newest");
    fs::create_symlink(checkpoint(elsewhere.path(), 9), folder + "/last");
  }
  EXPECT_EQ(newest_in(out.path()), path);

  // Links under a step's name: one to nothing, one to itself; both are set aside.
  fs::create_symlink("nowhere", checkpoint(out.path(), 7));
  fs::create_symlink("step-0000000008", checkpoint(out.path(), 8));
  const LogLines log;
  EXPECT_EQ(newest_in(out.path()), path);
  EXPECT_NE(log.text().find("step-0000000007.damaged-1"), std::string::npos) << log.text();
  EXPECT_NE(log.text().find("step-0000000008.damaged-1"), std::string::npos) << log.text();

  // One to a whole checkpoint is one, and deleting it deletes the link.
  fs::create_symlink(checkpoint(elsewhere.path(), 9), checkpoint(out.path(), 9));
  EXPECT_EQ(newest_in(out.path()), checkpoint(out.path(), 9));
  save_checkpoint(out.path(), TestState(1).at(10));
  apply_retention(out.path(), {1, false, 0});
  EXPECT_FALSE(fs::exists(fs::symlink_status(checkpoint(out.path(), 9))));
  verify_checkpoint(checkpoint(elsewhere.path(), 9));
}

// R31: kept for a look, never for a resume.
TEST(Checkpoint, R31ABadStateIsKeptApartOneAtATime) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(5));
  for (const uint64_t step : {uint64_t{7}, uint64_t{8}}) {
    TestState bad(std::numeric_limits<float>::quiet_NaN());
    const std::string apart = save_apart(out.path(), bad.at(step));
    EXPECT_EQ(apart, fmt::format("{}/checkpoints/bad-step-{:010d}", out.path(), step));
    EXPECT_EQ(verify_checkpoint(apart).digest, state_digest(bad.at(step)));
    EXPECT_EQ(newest_in(out.path()), path);
    EXPECT_EQ(load_newest(out.path()).folder, path);
    EXPECT_EQ(checkpoints_at(out.path()), std::vector<std::string>{path});
    apply_retention(out.path(), {1, false, 0});
    EXPECT_EQ(names_in(out.path("checkpoints")),
              (std::vector<std::string>{fs::path(apart).filename(), "step-0000000005"}));
  }
}

TEST(Checkpoint, ATrialSaveLeavesNothing) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(5));
  const TrialSave trial = trial_save(out.path(), TestState(2).at(6));
  EXPECT_GT(trial.bytes, 0u);
  EXPECT_GT(trial.save_seconds, 0);
  EXPECT_GT(trial.load_seconds, 0);
  EXPECT_EQ(names_in(out.path("checkpoints")), std::vector<std::string>{"step-0000000005"});
  // One that was killed is removed by the next life.
  fs::copy(path, out.path("checkpoints/trial.tmp"));
  fs::copy(path, out.path("checkpoints/trial.71-0123abcd.tmp"));
  fs::copy(path, out.path("checkpoints/trial.71-0123abcd.deleting"));
  EXPECT_EQ(newest_in(out.path()), path);
  EXPECT_EQ(names_in(out.path("checkpoints")), std::vector<std::string>{"step-0000000005"});
  // Or by the trial of the next life, which has no checkpoint to look for.
  fs::copy(path, checkpoint(out.path(), 9) + ".71-0123abcd.tmp");
  trial_save(out.path(), TestState(2).at(6));
  EXPECT_EQ(names_in(out.path("checkpoints")), std::vector<std::string>{"step-0000000005"});
}

TEST(Checkpoint, AFolderUnderAnotherStepsNameIsSetAside) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(1));
  fs::rename(path, checkpoint(out.path(), 2));
  verify_checkpoint(checkpoint(out.path(), 2));  // whole in itself
  const LogLines log;
  EXPECT_EQ(error_of([&] { load_newest(out.path()); }).code(), ExitCode::kFault);
  EXPECT_EQ(newest_in(out.path()), std::nullopt);
  EXPECT_NE(log.text().find("manifest is of step 1"), std::string::npos) << log.text();
}

TEST(Checkpoint, WhatIsNoCheckpointSaysSo) {
  const TempFolder out;
  const std::pair<std::string, const char*> cases[] = {
      {out.path("none"), "not a checkpoint: no such folder"},
      {out.path(), "not a checkpoint: it has no manifest.txtpb"}};
  for (const auto& [path, expected] : cases) {
    const Error error = error_of([&, dir = path] { verify_checkpoint(dir); });
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
  }
  const std::tuple<std::string, ExitCode, const char*> newest[] = {
      {out.path("none"), ExitCode::kIo, "none: no such folder: No such file or directory"},
      {out.write("file", ""), ExitCode::kBadData, "file: is no folder"},
      {out.path(), ExitCode::kBadData, "nor a run with checkpoints"}};
  for (const auto& [path, code, expected] : newest) {
    const Error error = error_of([&, dir = path] { load_newest(dir); });
    EXPECT_EQ(error.code(), code);
    EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
  }
  EXPECT_EQ(newest_in(out.path()), std::nullopt);
  EXPECT_EQ(newest_in(out.path("none")), std::nullopt);
  EXPECT_TRUE(list_checkpoints(out.path()).empty());
}

// Changes a manifest's text and gives it a checksum that fits.
void rewrite_manifest(const std::string& dir, const std::string& from, const std::string& to) {
  std::string body = read_file(dir + "/manifest.txtpb");
  body = body.substr(0, body.rfind("# SHA-256"));
  body.replace(body.find(from), from.size(), to);
  write_file(dir + "/manifest.txtpb",
             body + "# SHA-256 of the lines above: " + sha256_hex(body) + "\n");
}

TEST(Checkpoint, TheStatesDigestIsComparedAsWell) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(1));
  rewrite_manifest(path, state_digest(TestState(1).at(1)), state_digest(TestState(2).at(1)));
  const Error error = error_of([&] { verify_checkpoint(path); });
  EXPECT_EQ(error.code(), ExitCode::kFault);
  EXPECT_NE(std::string(error.what()).find("the state's digest is"), std::string::npos)
      << error.what();
}

// A manifest of a later program must be refused, not treated as damaged.
TEST(Checkpoint, ALaterFormatIsRefusedAndLeftAlone) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(1));
  rewrite_manifest(path, "format: 1", "format: 2 a_field_of_the_future: 3");
  const Error error = error_of([&] { find_newest(out.path()); });
  EXPECT_EQ(error.code(), ExitCode::kBadData);
  EXPECT_NE(std::string(error.what()).find("later Convoy"), std::string::npos) << error.what();
  EXPECT_TRUE(fs::exists(path));
}

// Calls of one kind on paths that hold `where` fail, the first `times` of them.
class Refused : public FileHook {
 public:
  Refused(FileCall::Kind kind, std::string where, int error, int times = 1 << 30)
      : kind_(kind), where_(std::move(where)), error_(error), times_(times) {
    set_file_hook(this);
  }
  ~Refused() override { set_file_hook(nullptr); }
  Refused(const Refused&) = delete;
  Refused& operator=(const Refused&) = delete;

  Verdict before(const FileCall& call) override {
    if (call.kind != kind_ || call.path.find(where_) == std::string::npos || times_ == 0) return {};
    --times_;
    return {.error = error_};
  }

 private:
  const FileCall::Kind kind_;
  const std::string where_;
  const int error_;
  int times_;
};
constexpr auto kRead = FileCall::Kind::kRead, kOpen = FileCall::Kind::kOpen;

// R26: a bad sector is neither a reason not to start nor damage that a rename would make final.
TEST(Checkpoint, R26ABadSectorUnderTheNewestLeadsToTheOneBeforeAndRenamesNothing) {
  const TempFolder out;
  const std::string first = save_checkpoint(out.path(), TestState(1).at(100));
  const std::string second = save_checkpoint(out.path(), TestState(2).at(200));
  const std::vector<std::string> both = names_in(out.path("checkpoints"));
  for (const std::string& name : names_in(second)) {
    SCOPED_TRACE(name);
    const std::string file = second + "/" + name;
    {
      const Refused bad(kRead, file, EIO);
      const LogLines log;
      EXPECT_EQ(error_of([&] { verify_checkpoint(second); }).code(), ExitCode::kIo);
      EXPECT_EQ(error_of([&] { load_newest(second); }).code(), ExitCode::kIo);
      EXPECT_EQ(load_newest(out.path()).folder, first);
      EXPECT_NE(log.text().find(file + ": read 0 of"), std::string::npos) << log.text();
      log.text().clear();
      EXPECT_EQ(find_newest(out.path())->folder, first);
      EXPECT_NE(log.text().find(file + ": read 0 of"), std::string::npos) << log.text();
      EXPECT_NE(log.text().find("it keeps its name"), std::string::npos) << log.text();
    }
    {
      const Refused once(kRead, file, EIO, 1);
      const LogLines log;
      EXPECT_EQ(find_newest(out.path())->folder, second);
      EXPECT_NE(log.text().find("trying once more"), std::string::npos) << log.text();
    }
    EXPECT_EQ(names_in(out.path("checkpoints")), both);
  }
  // Where nothing can be read, the run must not begin anew.
  const Refused bad(kRead, "/checkpoints", EIO);
  const LogLines log;
  const Error error = error_of([&] { find_newest(out.path()); });
  EXPECT_EQ(error.code(), ExitCode::kIo);
  EXPECT_NE(std::string(error.what()).find("step-0000000200"), std::string::npos) << error.what();
  EXPECT_EQ(names_in(out.path("checkpoints")), both);
}

// The run that went on from the one before comes by its step again, with other saves before it.
TEST(Checkpoint, R26ARunGoesOnBesideACheckpointThatCannotBeRead) {
  const TempFolder out;
  save_checkpoint(out.path(), TestState(1).at(100));
  const std::string second = save_checkpoint(out.path(), TestState(2).at(200));
  const Refused bad(kRead, second + "/model.safetensors", EIO, 2 + 2 + 2);  // each time twice
  const LogLines log;
  ASSERT_EQ(find_newest(out.path())->state.facts.step, 100u);
  const std::string between = save_checkpoint(out.path(), TestState(3).at(150));
  apply_retention(out.path(), {1, false, 0}, 150);
  EXPECT_EQ(find_newest(out.path())->folder, between);
  EXPECT_EQ(save_checkpoint(out.path(), TestState(2).at(200)), second);
  EXPECT_TRUE(fs::exists(second + ".unreadable-1"));
  apply_retention(out.path(), {1, false, 0}, 200);
  EXPECT_EQ(names_in(out.path("checkpoints")),
            (std::vector<std::string>{"step-0000000200", "step-0000000200.unreadable-1"}));
  EXPECT_EQ(find_newest(out.path())->folder, second);
}

// What says nothing about the checkpoint never leads to an older one.
TEST(Checkpoint, OtherErrorsThanDamageAreThrownByBothWaysToLoad) {
  const TempFolder out;
  save_checkpoint(out.path(), TestState(1).at(100));
  const std::string second = save_checkpoint(out.path(), TestState(2).at(200));
  const std::vector<std::string> both = names_in(out.path("checkpoints"));
  const auto expect_thrown = [&](ExitCode code, const char* words) {
    for (const auto& load : {std::function<void()>([&] { find_newest(out.path()); }),
                             std::function<void()>([&] { load_newest(out.path()); })}) {
      const Error error = error_of(load);
      EXPECT_EQ(error.code(), code);
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
    EXPECT_EQ(names_in(out.path("checkpoints")), both);
  };
  {
    const Refused denied(kOpen, second + "/manifest", EACCES);
    expect_thrown(ExitCode::kIo, "Permission denied");
  }
  {
    const Refused no_memory(kRead, second + "/model", ENOMEM);
    expect_thrown(ExitCode::kIo, "Cannot allocate memory");
  }
  rewrite_manifest(second, "format: 1", "format: 2");
  expect_thrown(ExitCode::kBadData, "later Convoy");
}

TEST(Checkpoint, LeftoversOfKilledSavesAreNoCheckpointsAndAreRemoved) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(5));
  fs::copy(path, checkpoint(out.path(), 9) + ".tmp");  // as Convoy named them once
  fs::copy(path, checkpoint(out.path(), 9) + ".71-0123abcd.tmp");
  fs::copy(path, out.path("checkpoints/bad-step-0000000009.71-0123abcd.tmp"));
  fs::copy(path, checkpoint(out.path(), 1) + ".deleting");
  out.write("checkpoints/notes.txt", "a user's own");
  EXPECT_EQ(list_checkpoints(out.path()), (std::vector<std::string>{path}));
  EXPECT_EQ(newest_in(out.path()), path);
  EXPECT_EQ(names_in(out.path("checkpoints")),
            (std::vector<std::string>{"notes.txt", "step-0000000005"}));
}

// R18: a life that was stopped in the middle of a save, past its lease, goes on when another one
// has written the same step.
TEST(Checkpoint, R18TwoLivesThatSaveTheSameStepDoNotTouchEachOthersFolders) {
  const TempFolder out;
  const std::string path = checkpoint(out.path(), 5);
  const LogLines log;
  const auto succeeded = [] { fail(ExitCode::kIo, "another job has taken this folder over"); };

  int to_child[2], to_parent[2];
  ASSERT_EQ(::pipe(to_child), 0);
  ASSERT_EQ(::pipe(to_parent), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  char byte = 0;
  if (child == 0) {  // the successor: waits with a finished temporary folder
    try {
      save_checkpoint(out.path(), TestState(2).at(5), [&] {
        if (::write(to_parent[1], &byte, 1) != 1 || ::read(to_child[0], &byte, 1) != 1) ::_exit(2);
      });
      ::_exit(0);
    } catch (...) {
      ::_exit(1);
    }
  }
  ASSERT_EQ(::read(to_parent[0], &byte, 1), 1);
  EXPECT_EQ(error_of([&] { save_checkpoint(out.path(), TestState(1).at(5), succeeded); }).code(),
            ExitCode::kIo);
  save_apart(out.path(), TestState(1).at(5));
  ASSERT_EQ(::write(to_child[1], &byte, 1), 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(verify_checkpoint(path).digest, state_digest(TestState(2).at(5)));
  for (const int fd : {to_child[0], to_child[1], to_parent[0], to_parent[1]}) ::close(fd);

  // What stands is the successor's: another state, then a damaged one.
  for (const bool damaged : {false, true}) {
    if (damaged) fs::remove(path + "/model.safetensors");
    const std::vector<std::string> before = names_in(out.path("checkpoints"));
    error_of([&] { save_checkpoint(out.path(), TestState(1).at(5), succeeded); });
    EXPECT_EQ(names_in(out.path("checkpoints")), before);
  }
}

TEST(Checkpoint, TheSameStateAgainKeepsTheFirst) {
  const TempFolder out;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(5));
  const auto before = fs::last_write_time(path + "/model.safetensors");
  const ino_t unchanged = [&] {
    struct stat info {};
    ::stat((path + "/model.safetensors").c_str(), &info);
    return info.st_ino;
  }();
  EXPECT_EQ(save_checkpoint(out.path(), TestState(1).at(5)), path);
  struct stat info {};
  ::stat((path + "/model.safetensors").c_str(), &info);
  EXPECT_EQ(info.st_ino, unchanged);
  EXPECT_EQ(fs::last_write_time(path + "/model.safetensors"), before);
  EXPECT_EQ(names_in(out.path("checkpoints")), (std::vector<std::string>{"step-0000000005"}));
}

TEST(Checkpoint, AnotherStateOrADamagedOneInItsPlaceIsSetAside) {
  const TempFolder out;
  const LogLines log;
  const std::string path = save_checkpoint(out.path(), TestState(1).at(5));
  save_checkpoint(out.path(), TestState(2).at(5));
  EXPECT_EQ(verify_checkpoint(path).digest, state_digest(TestState(2).at(5)));
  EXPECT_EQ(verify_checkpoint(path + ".replaced-1").digest, state_digest(TestState(1).at(5)));
  fs::remove(path + "/model.safetensors");
  save_checkpoint(out.path(), TestState(2).at(5));
  verify_checkpoint(path);
  EXPECT_TRUE(fs::exists(path + ".damaged-1"));
  EXPECT_NE(log.text().find("replaced-1"), std::string::npos) << log.text();
  EXPECT_NE(log.text().find("damaged-1"), std::string::npos) << log.text();
}

TEST(Checkpoint, AFolderThatCannotBeWrittenIsAnIoErrorWithItsPath) {
  const TempFolder out;
  out.write("file", "");
  const Error error = error_of([&] { save_checkpoint(out.path("file/run"), TestState(1).at(1)); });
  EXPECT_EQ(error.code(), ExitCode::kIo);
  EXPECT_NE(std::string(error.what()).find("file/run"), std::string::npos) << error.what();
}

TEST(Checkpoint, AFullDiskIsAnIoErrorWithNumbersAndLeavesNoTemporary) {
  const TempFolder out;
  save_checkpoint(out.path(), TestState(1).at(1));
  // The disk is full in the first tensor file, then in the manifest.
  const std::pair<rlim_t, const char*> cases[] = {{100, "model.safetensors: wrote 100 of "},
                                                  {300, "manifest.txtpb: wrote 300 of "}};
  for (const auto& [bytes, expected] : cases) {
    const Error error = [&, limit_bytes = bytes] {
      const test::FileSizeLimit limit(limit_bytes);
      return error_of([&] { save_checkpoint(out.path(), TestState(1).at(2)); });
    }();
    EXPECT_EQ(error.code(), ExitCode::kIo);
    const std::string message = error.what();
    EXPECT_NE(message.find(expected), std::string::npos) << message;
    EXPECT_NE(message.find("free on this file system: "), std::string::npos) << message;
  }
  EXPECT_EQ(names_in(out.path("checkpoints")), (std::vector<std::string>{"step-0000000001"}));
  EXPECT_EQ(newest_in(out.path()), checkpoint(out.path(), 1));
}

TEST(Checkpoint, AFailedSaveLeavesNoTemporary) {
  const TempFolder out;
  const TestState memory(1);
  CheckpointState state = memory.at(1);
  state.optimizer.tensors[0].shape = {3};  // the second file fails
  EXPECT_EQ(error_of([&] { save_checkpoint(out.path(), state); }).code(), ExitCode::kFault);
  EXPECT_TRUE(names_in(out.path("checkpoints")).empty());
}

TEST(Checkpoint, NamesSortByStepBeyondTenDigits) {
  const TempFolder out;
  const TestState memory(1);
  for (const uint64_t step : {uint64_t{9999999999}, uint64_t{10000000000}, uint64_t{5}})
    save_checkpoint(out.path(), memory.at(step));
  fs::create_directory(out.path("checkpoints/step-7"));
  EXPECT_EQ(list_checkpoints(out.path()),
            (std::vector<std::string>{checkpoint(out.path(), 5), checkpoint(out.path(), 9999999999),
                                      out.path("checkpoints/step-10000000000")}));
  EXPECT_EQ(newest_in(out.path()), out.path("checkpoints/step-10000000000"));
}

// Kills a process that saves again and again, at many moments: what stands is always whole.
TEST(Checkpoint, AKillAtAnyMomentLeavesWholeCheckpoints) {
  constexpr int kRounds = 12;
  const TempFolder out;
  for (int round = 0; round < kRounds; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        const TestState memory(1);
        for (uint64_t step = static_cast<uint64_t>(round) * 1000;; ++step) {
          save_checkpoint(out.path(), memory.at(step));
          apply_retention(out.path(), {2, false, 0});
        }
      } catch (...) {
        ::_exit(1);
      }
    }
    // On a slow machine every moment may come before the first save: not the last one.
    while (round == kRounds - 1 && list_checkpoints(out.path()).empty()) ::usleep(1000);
    ::usleep(static_cast<useconds_t>(2000 + 3700 * round));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the child failed by itself";
    for (const std::string& path : list_checkpoints(out.path()))
      EXPECT_NO_THROW(verify_checkpoint(path)) << path;
    find_newest(out.path());
    if (!fs::exists(out.path("checkpoints"))) continue;
    for (const std::string& name : names_in(out.path("checkpoints")))
      EXPECT_EQ(name.find('.'), std::string::npos) << name;
  }
  EXPECT_TRUE(find_newest(out.path()).has_value());
}

using Steps = std::vector<uint64_t>;

TEST(Retention, KeepsTheNewestTheBestAndTheMilestones) {
  const std::vector<CheckpointEntry> list = {{40, 0.9}, {10, 0.5}, {20, 0.9}, {30, {}},
                                             {50, 0.1}, {60, 0.2}, {70, {}}};
  EXPECT_EQ(which_to_delete(list, {2, true, 0}), (Steps{10, 20, 30, 50}));  // of equals the newest
  EXPECT_EQ(which_to_delete(list, {2, false, 0}), (Steps{10, 20, 30, 40, 50}));
  EXPECT_EQ(which_to_delete(list, {2, false, 20}), (Steps{10, 30, 50}));
  EXPECT_EQ(which_to_delete(list, {100, false, 0}), Steps{});
  EXPECT_EQ(which_to_delete(list, {0, false, 0}), (Steps{10, 20, 30, 40, 50, 60}));
  EXPECT_EQ(which_to_delete({}, {2, true, 0}), Steps{});
  EXPECT_EQ(which_to_delete({{1, {}}, {2, {}}}, {1, true, 0}), Steps{1});
}

TEST(Retention, DeletesFoldersAndLeavesTheUnreadable) {
  const TempFolder out;
  const TestState memory(1);
  for (uint64_t step = 1; step <= 5; ++step) {
    CheckpointState state = memory.at(step);
    if (step == 2) state.facts.top1 = 0.9;
    save_checkpoint(out.path(), state);
  }
  fs::remove(checkpoint(out.path(), 1) + "/manifest.txtpb");
  apply_retention(out.path(), {2, true, 0});
  EXPECT_EQ(names_in(out.path("checkpoints")),
            (std::vector<std::string>{"step-0000000001", "step-0000000002", "step-0000000004",
                                      "step-0000000005"}));
}

}  // namespace
}  // namespace convoy::trainer
