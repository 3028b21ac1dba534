// Runs the real program, alone or under mpirun, and says how it ended and what it left running; and
// the folder that most of its tests share: a job, data, and the runs made of them.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/tiny_images.h"

namespace convoy::test {

using Arguments = std::vector<std::string>;

constexpr int kAlone = 0;  // as a number of ranks: without mpirun

struct Outcome {
  int exit_code = -1;  // 128 + n where signal n ended it
  bool in_time = true;
  std::string out, err;
  std::string left_running;  // command lines of processes that outlived it

  // All of the above as one text, for messages of assertions.
  std::string all() const;
};

// The one that is tested: convoy, or what CONVOY_TEST_PROGRAM names.
std::string program();

// A program under way. Its processes are known by a variable of their environment; all are gone
// when finish() or the destructor returns.
class Running {
 public:
  // `convoy ARGUMENTS` on `ranks` ranks, started by mpirun or by the script (cluster/mpirun.sh)
  // that CONVOY_TEST_LAUNCHER names; caches go into the folder.
  Running(const TempFolder& folder, const Arguments& arguments, int ranks);
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  // Waits until `condition` holds; false where the program ends first or a run's time is over
  // (CONVOY_RUN_LIMIT in tests/CMakeLists.txt).
  bool wait_until(const std::function<bool()>& condition);
  // The process that was started: mpirun, or the program itself.
  pid_t pid() const { return pid_; }
  // The process of a rank under mpirun; 0 where there is none.
  pid_t pid_of_rank(int rank) const;
  // Standard error up to now.
  std::string err_so_far() const;
  // Waits for the end, or until a run's time is over: then everything is killed and in_time is
  // false.
  Outcome finish();

 private:
  bool ended();
  void kill_all();

  std::string marker_, out_path_, err_path_;
  pid_t pid_ = 0;
  int status_ = 0;
  bool ended_ = false;
};

Outcome run(const TempFolder& folder, const Arguments& arguments, int ranks = kAlone);

std::vector<std::string> lines_of(const std::string& text);
// Lines of the text that contain the words.
int lines_with(const std::string& text, std::string_view words);

// IDX files of grey images of 12 x 12 in FOLDER/NAME. Labels are i % classes; each class has its
// own brightness.
struct IdxSizes {
  int train = 235, val = 50, classes = 4;
};
std::string make_idx(const TempFolder& folder, const std::string& name, const IdxSizes& sizes);

// A folder with a job (job.txtpb) and, once they are made, data and runs: the run NAME lies in
// run-NAME.
class Runs {
 public:
  explicit Runs(std::string_view job) { folder_.write("job.txtpb", job); }

  const TempFolder& folder() const { return folder_; }
  std::string out(const std::string& name) const { return folder_.path("run-" + name); }
  std::string checkpoint(const std::string& name, int step) const;
  // `convoy train` of that run with these data, or in any folder.
  Arguments train(const std::string& name, const Arguments& more = {},
                  const std::string& data = "data") const;
  Arguments train_in(const std::string& out_dir, const Arguments& more = {},
                     const std::string& data = "data") const;
  static Arguments until(int step) { return {"--set", fmt::format("stop_after_steps={}", step)}; }

  Outcome run(const Arguments& arguments, int ranks = kAlone) const;
  // Through a shell: `line` with "$@" in place of the program and its arguments, on every rank.
  Outcome run_by(const std::string& line, const Arguments& arguments, int ranks = kAlone) const;
  // What a command with --json prints, which must succeed: one object.
  nlohmann::json output_of(const Arguments& arguments) const;
  nlohmann::json verified(const std::string& path) const;
  // Of the newest checkpoint of a run, or of a checkpoint.
  std::string digest(const std::string& path) const { return verified(path)["digest"]; }
  // What all programs started here have said so far on standard error.
  std::string said() const;

  // The lines of OUT/metrics.jsonl, which must all be objects.
  std::vector<nlohmann::json> metrics(const std::string& name) const;
  // Those of its steps, in order, and the last one; none: 0.
  std::vector<int> steps_of(const std::string& name) const;
  int step_of(const std::string& name) const;

 protected:
  TempFolder folder_;
};

// A test with such a folder of its own.
class RunTest : public testing::Test, protected Runs {
 protected:
  using Runs::Runs;
  // Also for the programs that are started: faults may be asked for.
  static void allow_faults();
};

}  // namespace convoy::test
