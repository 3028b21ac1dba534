// R25: a crash at any call of a save. The calls of one save are recorded; for every prefix of them
// every folder that a file system may leave is built, and the newest checkpoint in it loaded.
//
// What a crash may leave: of a file that was not synced since it was written nothing, all, half,
// zeros, or half and zeros; of the changes to a folder that was not synced since (a name made,
// renamed or removed) any subset. A rename inside one folder is one change, as on every journaling
// file system; one between two folders is two.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>

#include "ops/core/error.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/checkpoints/test_state.h"
#include "trainer/base/file_calls.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using test::LogLines;
using test::names_in;
using test::read_file;
using test::TempFolder;
using test::TestState;

struct Recorded {
  FileCall::Kind kind;
  std::string path, to, data;  // paths from the run's folder on
  int flags;
};

// Records what succeeds below a folder.
class Recorder : public FileHook {
 public:
  explicit Recorder(std::string root) : root_(std::move(root)) { set_file_hook(this); }
  ~Recorder() override { set_file_hook(nullptr); }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  Verdict before(const FileCall&) override { return {}; }
  void after(const FileCall& call, int64_t result) override {
    if (result < 0 || !call.path.starts_with(root_)) return;
    const auto inside = [&](const std::string& path) {
      return path.size() > root_.size() ? path.substr(root_.size() + 1) : "";
    };
    Recorded recorded{call.kind, inside(call.path), call.to ? inside(*call.to) : "", "",
                      call.flags};
    if (call.kind == FileCall::Kind::kWrite)
      recorded.data.assign(static_cast<const char*>(call.data), static_cast<size_t>(result));
    calls.push_back(std::move(recorded));
  }

  std::vector<Recorded> calls;

 private:
  const std::string root_;
};

// A file system that knows what is on the disk and what is only in memory.
class CrashDisk {
 public:
  using Tree = std::map<std::string, std::string>;  // path -> contents; a folder's path ends in '/'

  // All of a folder, on the disk.
  explicit CrashDisk(const fs::path& folder) { import(folder, 0); }

  void apply(const Recorded& call) {
    switch (call.kind) {
      case FileCall::Kind::kOpen:
        if ((call.flags & O_CREAT) != 0) open(call.path, (call.flags & O_TRUNC) != 0);
        break;
      case FileCall::Kind::kWrite:
        nodes_.at(find(call.path)).contents += call.data;
        break;
      case FileCall::Kind::kSync:
        sync(find(call.path));
        break;
      case FileCall::Kind::kMkdir:
        change(call.path, add({.folder = true}));
        break;
      case FileCall::Kind::kUnlink:
      case FileCall::Kind::kRmdir:
        change(call.path, kNone);
        break;
      case FileCall::Kind::kRename:
        rename(call.path, call.to);
        break;
      case FileCall::Kind::kRead:
      case FileCall::Kind::kClose:
        break;
      case FileCall::Kind::kTruncate:
        throw std::logic_error("no checkpoint is cut");
    }
  }

  // Calls `visit` with every tree that a crash now may leave.
  void crash(const std::function<void(const Tree&)>& visit) const {
    ASSERT_LE(pending_.size(), 14u);
    for (uint32_t subset = 0; subset < (1u << pending_.size()); ++subset) {
      std::vector<std::map<std::string, int>> names;
      for (const Node& node : nodes_) names.push_back(node.on_disk);
      for (size_t i = 0; i < pending_.size(); ++i)
        if ((subset >> i & 1) != 0)
          make(pending_[i], names[static_cast<size_t>(pending_[i].folder)]);
      Tree tree;
      expand(names, 0, "", tree, {}, visit);
    }
  }

 private:
  static constexpr int kNone = -1;
  struct Node {
    bool folder = false;
    std::string contents, synced;
    std::map<std::string, int> names, on_disk;  // of a folder
  };
  // Names of one folder that change together.
  struct Change {
    int folder;
    std::vector<std::pair<std::string, int>> names;
  };

  int add(Node node) {
    nodes_.push_back(std::move(node));
    return static_cast<int>(nodes_.size()) - 1;
  }
  void import(const fs::path& folder, int at) {
    if (at == 0) add({.folder = true});
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string text = entry.is_directory() ? "" : read_file(entry.path().string());
      const int node = add({.folder = entry.is_directory(), .contents = text, .synced = text});
      nodes_[static_cast<size_t>(at)].names[entry.path().filename()] = node;
      if (entry.is_directory()) import(entry.path(), node);
    }
    nodes_[static_cast<size_t>(at)].on_disk = nodes_[static_cast<size_t>(at)].names;
  }
  Node& node(int at) { return nodes_.at(static_cast<size_t>(at)); }
  size_t find(const std::string& path) {
    int at = 0;
    for (const fs::path& part : fs::path(path)) at = node(at).names.at(part);
    return static_cast<size_t>(at);
  }
  static void make(const Change& change, std::map<std::string, int>& names) {
    for (const auto& [name, to] : change.names) {
      names.erase(name);
      if (to != kNone) names[name] = to;
    }
  }
  void change(int folder, std::vector<std::pair<std::string, int>> names) {
    pending_.push_back({folder, std::move(names)});
    make(pending_.back(), node(folder).names);
  }
  void change(const fs::path& path, int to) {
    change(static_cast<int>(find(path.parent_path())), {{path.filename(), to}});
  }
  void rename(const fs::path& from, const fs::path& to) {
    const int moved = static_cast<int>(find(from));
    const int here = static_cast<int>(find(from.parent_path()));
    const int there = static_cast<int>(find(to.parent_path()));
    if (here == there) {
      change(here, {{from.filename(), kNone}, {to.filename(), moved}});
    } else {
      change(there, {{to.filename(), moved}});
      change(here, {{from.filename(), kNone}});
    }
  }
  void open(const fs::path& path, bool empty) {
    const auto& names = nodes_[find(path.parent_path())].names;
    if (!names.contains(path.filename()))
      change(path, add({}));
    else if (empty)
      nodes_[find(path)].contents.clear();
  }
  void sync(size_t at) {
    nodes_[at].synced = nodes_[at].contents;
    nodes_[at].on_disk = nodes_[at].names;
    std::erase_if(pending_, [&](const Change& c) { return static_cast<size_t>(c.folder) == at; });
  }

  static std::vector<std::string> leavings(const Node& node) {
    if (node.contents == node.synced) return {node.contents};
    const size_t size = node.contents.size(), half = size / 2;
    return {node.contents, node.synced, node.contents.substr(0, half), std::string(size, '\0'),
            node.contents.substr(0, half) + std::string(size - half, '\0')};
  }

  // Goes through folder `at` and those in `later`, branching at files with several leavings.
  void expand(const std::vector<std::map<std::string, int>>& names, int at, const std::string& path,
              Tree tree, std::vector<std::pair<int, std::string>> later,
              const std::function<void(const Tree&)>& visit) const {
    std::vector<std::pair<std::string, std::vector<std::string>>> open;
    for (const auto& [name, child] : names[static_cast<size_t>(at)]) {
      const Node& node = nodes_[static_cast<size_t>(child)];
      if (node.folder) {
        tree[path + name + "/"] = "";
        later.emplace_back(child, path + name + "/");
      } else {
        open.emplace_back(path + name, leavings(node));
      }
    }
    branch(names, open, 0, tree, later, visit);
  }
  void branch(const std::vector<std::map<std::string, int>>& names,
              const std::vector<std::pair<std::string, std::vector<std::string>>>& open, size_t i,
              Tree& tree, const std::vector<std::pair<int, std::string>>& later,
              const std::function<void(const Tree&)>& visit) const {
    if (i < open.size()) {
      for (const std::string& contents : open[i].second) {
        tree[open[i].first] = contents;
        branch(names, open, i + 1, tree, later, visit);
      }
    } else if (later.empty()) {
      visit(tree);
    } else {
      auto rest = later;
      const auto [at, path] = rest.back();
      rest.pop_back();
      expand(names, at, path, tree, rest, visit);
    }
  }

  std::vector<Node> nodes_;  // 0: the run's folder
  std::vector<Change> pending_;
};

void build(const CrashDisk::Tree& tree, const TempFolder& folder) {
  for (const auto& [path, contents] : tree)  // sorted: a folder before what is in it
    if (path.ends_with('/'))
      fs::create_directory(folder.path(path));
    else
      test::write_file(folder.path(path), contents);
}

struct Scenario {
  std::function<void(const std::string& out)> before;  // what stands, long on the disk
  std::function<void(const std::string& out)> save;    // succeeds at its end
  std::function<void(const std::string& out)> after;   // nothing that it does may harm
  // What is wrong with what was found after a crash; "" where all is well.
  std::function<std::string(const std::optional<LoadedCheckpoint>& found, bool saved)> wrong;
  bool may_set_aside = false;
};

struct Replay {
  size_t calls = 0, states = 0;
  std::set<std::string> wrong;
};

// `keep` says which calls the disk hears of. With `until_wrong` it ends at the first state that is.
Replay replay(
    const Scenario& scenario,
    const std::function<bool(const Recorded&)>& keep = [](const Recorded&) { return true; },
    bool until_wrong = false) {
  const LogLines quiet;
  const TempFolder out(TempFolder::memory());
  scenario.before(out.path());
  CrashDisk disk(out.path());
  std::vector<Recorded> calls;
  size_t saved_after = 0;
  {
    Recorder recorder(out.path());
    scenario.save(out.path());
    saved_after = recorder.calls.size();
    if (scenario.after) scenario.after(out.path());
    calls = std::move(recorder.calls);
  }

  Replay result;
  std::set<std::pair<bool, CrashDisk::Tree>> seen;
  const TestState next(9);
  for (size_t done = 0; !until_wrong || result.wrong.empty(); ++done) {
    const bool saved = done >= saved_after;
    disk.crash([&](const CrashDisk::Tree& tree) {
      if (until_wrong && !result.wrong.empty()) return;
      if (!seen.emplace(saved, tree).second) return;
      const TempFolder left(TempFolder::memory());
      build(tree, left);
      const auto note = [&](const std::string& what) {
        if (!what.empty())
          result.wrong.insert(fmt::format("after {} of {} calls: {}", done, calls.size(), what));
      };
      try {
        note(scenario.wrong(find_newest(left.path()), saved));
        for (const std::string& path : list_checkpoints(left.path())) verify_checkpoint(path);
        for (const std::string& name : names_in(left.path("checkpoints")))
          if (name.find('.') != std::string::npos && !scenario.may_set_aside)
            note("found in place: " + name);
        save_checkpoint(left.path(), next.at(9));  // and the run goes on
        if (find_newest(left.path())->state.facts.step != 9) note("the next save was not loaded");
      } catch (const std::exception& e) {
        note(e.what());
      }
    });
    if (done == calls.size()) break;
    if (keep(calls[done])) disk.apply(calls[done]);
  }
  result.calls = calls.size();
  result.states = seen.size();
  return result;
}

void expect_all_well(const Scenario& scenario, size_t at_least) {
  const Replay result = replay(scenario);
  for (const std::string& wrong : result.wrong) ADD_FAILURE() << wrong;
  EXPECT_GE(result.states, at_least);
  std::printf("%zu calls, %zu states\n", result.calls, result.states);
}

const TestState kOld(1), kNew(2);

std::string expect_step(const std::optional<LoadedCheckpoint>& found,
                        const CheckpointState& state) {
  if (!found) return "nothing was found";
  if (found->state.facts.step != state.facts.step)
    return fmt::format("step {} was found, not {}", found->state.facts.step, state.facts.step);
  return state_digest(found->state) == state_digest(state) ? "" : "another state was found";
}

// Steps 1 and 2 stand, 3 is saved, 1 and 2 are deleted.
Scenario save_with_retention() {
  return {.before =
              [](const std::string& out) {
                save_checkpoint(out, kOld.at(1));
                save_checkpoint(out, kOld.at(2));
              },
          .save = [](const std::string& out) { save_checkpoint(out, kNew.at(3)); },
          .after =
              [](const std::string& out) { apply_retention(out, {.keep = 1, .keep_best = false}); },
          .wrong =
              [](const std::optional<LoadedCheckpoint>& found, bool saved) {
                const std::string newest = expect_step(found, kNew.at(3));
                return saved || newest.empty() ? newest : expect_step(found, kOld.at(2));
              }};
}

TEST(Replay, R25ASaveWithADeletion) {
  expect_all_well(save_with_retention(), 60);
}

TEST(Replay, R25TheFirstSave) {
  expect_all_well(
      {.before = [](const std::string&) {},
       .save = [](const std::string& out) { save_checkpoint(out, kNew.at(3)); },
       .after = {},
       .wrong = [](const std::optional<LoadedCheckpoint>& found,
                   bool saved) { return found || saved ? expect_step(found, kNew.at(3)) : ""; }},
      40);
}

// An evaluation has come since: only the manifest changes.
TEST(Replay, R25TheSameStateAgain) {
  expect_all_well(
      {.before =
           [](const std::string& out) {
             save_checkpoint(out, kOld.at(1));
             save_checkpoint(out, kOld.at(2));
           },
       .save =
           [](const std::string& out) {
             CheckpointState state = kOld.at(2);
             state.facts.top1 = 0.5;
             save_checkpoint(out, state);
           },
       .after = {},
       .wrong =
           [](const std::optional<LoadedCheckpoint>& found, bool saved) {
             const std::string wrong = expect_step(found, kOld.at(2));
             if (!wrong.empty()) return wrong;
             return saved && !found->state.facts.top1 ? std::string("its evaluation is lost") : "";
           }},
      10);
}

TEST(Replay, R25ASaveInPlaceOfADamagedOne) {
  Scenario scenario = save_with_retention();
  scenario.before = [](const std::string& out) {
    save_checkpoint(out, kOld.at(2));
    test::write_file(save_checkpoint(out, kNew.at(3)) + "/model.safetensors", "");
  };
  scenario.may_set_aside = true;
  expect_all_well(scenario, 50);
}

// Neither a trial nor a state that is kept apart is ever taken for a checkpoint.
TEST(Replay, R25AndR31ATrialAndABadState) {
  for (const bool trial : {true, false}) {
    Scenario scenario = save_with_retention();
    scenario.save = [trial](const std::string& out) {
      if (trial)
        trial_save(out, kNew.at(3));
      else
        save_apart(out, kNew.at(3));
    };
    scenario.after = {};
    scenario.wrong = [](const std::optional<LoadedCheckpoint>& found, bool) {
      return expect_step(found, kOld.at(2));
    };
    expect_all_well(scenario, 40);
  }
}

// The same tests find what is wrong with a save that syncs less.
TEST(Replay, FindsEveryMissingSync) {
  using Kind = FileCall::Kind;
  const auto wrong = [](const std::function<bool(const Recorded&)>& keep) {
    return !replay(save_with_retention(), keep, true).wrong.empty();
  };
  for (const char* path :
       {"model.safetensors", "optimizer.safetensors", "manifest.txtpb", ".tmp", "checkpoints"})
    EXPECT_TRUE(wrong([&](const Recorded& call) {
      return call.kind != Kind::kSync || !call.path.ends_with(path);
    })) << path;
  // The last sync of all keeps a deletion from coming to the disk before its rename.
  size_t syncs = 0;
  replay(save_with_retention(), [&](const Recorded& call) {
    syncs += call.kind == Kind::kSync;
    return true;
  });
  EXPECT_TRUE(wrong([&](const Recorded& call) { return call.kind != Kind::kSync || --syncs > 0; }));
  EXPECT_FALSE(wrong([](const Recorded&) { return true; }));
}

}  // namespace
}  // namespace convoy::trainer
