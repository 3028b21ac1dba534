#include "tests/end_to_end/program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kLimit{CONVOY_RUN_LIMIT};
// Between the end of mpirun and that of the processes it has killed.
constexpr std::chrono::seconds kGrace{5};
constexpr std::chrono::milliseconds kPoll{2};

bool wait_for(std::chrono::milliseconds limit, const std::function<bool()>& condition) {
  for (const auto end = Clock::now() + limit; !condition();) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(kPoll);
  }
  return true;
}

// Arguments or environment of a process, with blanks in place of the zeros between them.
std::string process_text(const fs::path& process, const char* what) {
  std::string text = read_file((process / what).string());
  for (char& c : text)
    if (c == '\0') c = ' ';
  return text;
}

struct Process {
  pid_t pid = 0;
  std::string command, environment;
};

// Processes with `marker` in their environment. One that has ended but is not reaped has none.
std::vector<Process> processes_with(const std::string& marker) {
  std::vector<Process> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string environment = fmt::format(" {}", process_text(entry.path(), "environ"));
    if (environment.find(marker) == std::string::npos) continue;
    found.push_back({std::stoi(name), process_text(entry.path(), "cmdline"), environment});
  }
  return found;
}

}  // namespace

std::string Outcome::all() const {
  return fmt::format("exit code {}{}\n--- standard output\n{}--- standard error\n{}--- left\n{}",
                     exit_code, in_time ? "" : " (killed: too late)", out, err, left_running);
}

std::string program() {
  const char* given = std::getenv("CONVOY_TEST_PROGRAM");
  return given ? given : CONVOY_PROGRAM;
}

Running::Running(const TempFolder& folder, const Arguments& arguments, int ranks) {
  static int count = 0;
  const std::string log = folder.path(fmt::format("log-{}", count++));
  marker_ = fmt::format(" CONVOY_TEST_RUN={} ", log);
  out_path_ = log + ".out";
  err_path_ = log + ".err";
  Arguments command;
  const char* script = std::getenv("CONVOY_TEST_LAUNCHER");
  if (ranks != kAlone && script) {
    ::setenv("CONVOY", program().c_str(), 1);
    command = {script, "-n", std::to_string(ranks), "--"};
  } else {
    if (ranks != kAlone)
      command = {CONVOY_MPIEXEC,    "-n",        std::to_string(ranks),
                 "--oversubscribe", "--bind-to", "none"};
    command.push_back(program());
  }
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : command) argv.push_back(argument.data());
  argv.push_back(nullptr);

  const int in = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  const int out = ::open(out_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  const int err = ::open(err_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  ::setenv("CONVOY_TEST_RUN", log.c_str(), 1);
  ::setenv("CONVOY_CACHE", folder.path("cache").c_str(), 1);
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  // Open MPI 4.1 removes the host's session folder at the end of a run, and a run that starts at
  // that moment fails to make it: one for each.
  ::setenv("OMPI_MCA_orte_tmpdir_base", (log + ".session").c_str(), 1);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setpgid(0, 0);
    ::dup2(in, 0);
    ::dup2(out, 1);
    ::dup2(err, 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  for (const int fd : {in, out, err}) ::close(fd);
  if (pid_ < 0) throw std::runtime_error("fork: " + errno_text());
}

Running::~Running() {
  if (!ended_) kill_all();
}

bool Running::ended() {
  if (!ended_) ended_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
  return ended_;
}

void Running::kill_all() {
  if (!ended_) ::kill(pid_, SIGKILL);
  for (const Process& process : processes_with(marker_)) ::kill(process.pid, SIGKILL);
  if (!ended_) ::waitpid(pid_, &status_, 0);
  ended_ = true;
}

bool Running::wait_until(const std::function<bool()>& condition) {
  bool held = false;
  wait_for(kLimit, [&] { return (held = condition()) || ended(); });
  return held;
}

pid_t Running::pid_of_rank(int rank) const {
  const std::string variable = fmt::format(" OMPI_COMM_WORLD_RANK={} ", rank);
  for (const Process& process : processes_with(marker_))
    if (process.environment.find(variable) != std::string::npos) return process.pid;
  return 0;
}

std::string Running::err_so_far() const {
  return read_file(err_path_);
}

Outcome Running::finish() {
  Outcome outcome;
  outcome.in_time = wait_for(kLimit, [this] { return ended(); });
  if (outcome.in_time) wait_for(kGrace, [this] { return processes_with(marker_).empty(); });
  for (const Process& process : processes_with(marker_))
    outcome.left_running += process.command + "\n";
  kill_all();
  outcome.exit_code = WIFSIGNALED(status_) ? 128 + WTERMSIG(status_) : WEXITSTATUS(status_);
  outcome.out = read_file(out_path_);
  outcome.err = read_file(err_path_);
  return outcome;
}

Outcome run(const TempFolder& folder, const Arguments& arguments, int ranks) {
  return Running(folder, arguments, ranks).finish();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

int lines_with(const std::string& text, std::string_view words) {
  int n = 0;
  for (const std::string& line : lines_of(text)) n += line.find(words) != std::string::npos;
  return n;
}

std::string make_idx(const TempFolder& folder, const std::string& name, const IdxSizes& sizes) {
  constexpr int kSide = 12;
  uint64_t at = 0;
  for (const bool train : {true, false}) {
    const int n = train ? sizes.train : sizes.val;
    std::vector<uint8_t> pixels, labels;
    for (int i = 0; i < n; ++i) {
      const int label = i % sizes.classes;
      labels.push_back(static_cast<uint8_t>(label));
      for (int p = 0; p < kSide * kSide; ++p) {
        const uint32_t noise = random4(7, Purpose::kSyntheticData, at++, 0)[0];
        pixels.push_back(static_cast<uint8_t>(label * 20 + static_cast<int>(noise % 160)));
      }
    }
    const std::string prefix = name + (train ? "/train" : "/t10k");
    folder.write(prefix + "-images-idx3-ubyte", encode_idx_images(n, kSide, kSide, pixels));
    folder.write(prefix + "-labels-idx1-ubyte", encode_idx_labels(labels));
  }
  return folder.path(name);
}

std::string Runs::checkpoint(const std::string& name, int step) const {
  return fmt::format("{}/checkpoints/step-{:010}", out(name), step);
}

Arguments Runs::train(const std::string& name, const Arguments& more,
                      const std::string& data) const {
  return train_in(out(name), more, data);
}

Arguments Runs::train_in(const std::string& out_dir, const Arguments& more,
                         const std::string& data) const {
  Arguments arguments = {"train", "--job", folder_.path("job.txtpb"), "--data", folder_.path(data),
                         "--out", out_dir};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

Outcome Runs::run(const Arguments& arguments, int ranks) const {
  return test::run(folder_, arguments, ranks);
}

Outcome Runs::run_by(const std::string& line, const Arguments& arguments, int ranks) const {
  const std::string real = program();
  const std::string script =
      folder_.write("by.sh", fmt::format("#!/bin/bash\nset -- \"{}\" \"$@\"\n{}\n", real, line));
  ::chmod(script.c_str(), 0755);
  ::setenv("CONVOY_TEST_PROGRAM", script.c_str(), 1);
  Outcome outcome = run(arguments, ranks);
  ::setenv("CONVOY_TEST_PROGRAM", real.c_str(), 1);
  return outcome;
}

json Runs::output_of(const Arguments& arguments) const {
  const Outcome outcome = run(arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  json object = json::parse(outcome.out, nullptr, false);
  EXPECT_TRUE(object.is_object()) << outcome.all();
  // Whatever is asked of it, the test goes on to its end.
  return object.is_object() ? object : json{{"digest", outcome.all()}};
}

json Runs::verified(const std::string& path) const {
  return output_of({"verify", path, "--json"});
}

std::string Runs::said() const {
  std::string all;
  for (const auto& entry : fs::directory_iterator(folder_.path()))
    if (entry.path().extension() == ".err") all += read_file(entry.path().string());
  return all;
}

std::vector<json> Runs::metrics(const std::string& name) const {
  std::vector<json> lines;
  for (const std::string& line : lines_of(read_file(out(name) + "/metrics.jsonl"))) {
    lines.push_back(json::parse(line, nullptr, false));
    EXPECT_TRUE(lines.back().is_object()) << name << ": " << line;
  }
  return lines;
}

std::vector<int> Runs::steps_of(const std::string& name) const {
  std::vector<int> steps;
  for (const std::string& line : lines_of(read_file(out(name) + "/metrics.jsonl")))
    if (const json object = json::parse(line, nullptr, false); object.contains("train_loss"))
      steps.push_back(object["step"]);  // the last line may be half there
  return steps;
}

int Runs::step_of(const std::string& name) const {
  const std::vector<int> steps = steps_of(name);
  return steps.empty() ? 0 : steps.back();
}

void RunTest::allow_faults() {
  ::setenv("CONVOY_ALLOW_FAULTS", "1", 1);
}

}  // namespace convoy::test
