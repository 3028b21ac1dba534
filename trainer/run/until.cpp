#include "trainer/run/until.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::trainer {
namespace {

constexpr int64_t kMostSeconds = int64_t{3650} * 86400;

[[noreturn]] void refuse(std::string_view text, const char* why) {
  fail(
      ExitCode::kUsage,
      "--until {}: {}; write a moment such as 2026-11-25T18:00 (local time; with a Z: UTC), a time "
      "from now such as +90m or +2h30m, or job",
      printable(text), why);
}

// "2026-11-25T18:00[:30][Z]"; nothing where it is no such text or no such day.
std::optional<int64_t> parse_moment(std::string_view text) {
  const bool utc = text.ends_with('Z');
  if (utc) text.remove_suffix(1);
  constexpr std::string_view kShape = "dddd-dd-ddTdd:dd:dd";
  if (text.size() != kShape.size() && text.size() != kShape.size() - 3) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i)
    if (kShape[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != kShape[i])
      return std::nullopt;
  const auto number = [&](size_t at, size_t digits) {
    int value = 0;
    std::from_chars(text.data() + at, text.data() + at + digits, value);
    return value;
  };
  struct tm parts = {};
  parts.tm_year = number(0, 4) - 1900;
  parts.tm_mon = number(5, 2) - 1;
  parts.tm_mday = number(8, 2);
  parts.tm_hour = number(11, 2);
  parts.tm_min = number(14, 2);
  parts.tm_sec = text.size() == kShape.size() ? number(17, 2) : 0;
  parts.tm_isdst = -1;
  const struct tm asked = parts;
  const time_t seconds = utc ? timegm(&parts) : mktime(&parts);
  // The library turns the 31st of February into a day of March.
  if (asked.tm_mon != parts.tm_mon || asked.tm_mday != parts.tm_mday || asked.tm_hour > 23 ||
      asked.tm_min > 59 || asked.tm_sec > 59)
    return std::nullopt;
  return seconds;
}

// "2h30m"; nothing where it is no such text.
std::optional<int64_t> parse_duration(std::string_view text) {
  int64_t sum = 0;
  if (text.empty()) return std::nullopt;
  while (!text.empty()) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end == text.data() || end == text.data() + text.size() ||
        value < 0 || value > kMostSeconds)
      return std::nullopt;
    constexpr std::pair<char, int64_t> kUnits[] = {{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};
    const auto* unit = std::ranges::find(kUnits, *end, &std::pair<char, int64_t>::first);
    if (unit == std::end(kUnits)) return std::nullopt;
    sum += value * unit->second;
    if (sum > kMostSeconds) return std::nullopt;
    text.remove_prefix(static_cast<size_t>(end + 1 - text.data()));
  }
  return sum > 0 ? std::optional(sum) : std::nullopt;
}

bool all_digits(std::string_view text) {
  return !text.empty() && text.size() < 19 &&
         text.find_first_not_of("0123456789") == std::string_view::npos;
}

std::optional<double> end_of_job(double now, const comm::Environment& environment,
                                 const AskSlurm& ask) {
  if (const char* end = environment("SLURM_JOB_END_TIME"); end && all_digits(end))
    return static_cast<double>(std::stoll(end)) - now;
  const char* job = environment("SLURM_JOB_ID");
  if (!job)
    fail(ExitCode::kUsage,
         "--until job: this is no Slurm job (SLURM_JOB_ID is not set); write a moment or +90m");
  // Goes into a command's arguments.
  const std::string answer = all_digits(job) ? ask(job) : "";
  if (const auto moment = parse_moment(answer)) return static_cast<double>(*moment) - now;
  log::warning(
      "--until job: Slurm does not say when job {} ends (squeue: \"{}\"); the run stops at a "
      "signal",
      printable(job), printable(answer));
  return std::nullopt;
}

// What the child writes until it closes its end, at most `limit` later.
std::string read_all(int fd, std::chrono::seconds limit) {
  std::string text;
  const auto end = Clock::now() + limit;
  for (char piece[256]; text.size() < 4096;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&wait, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return "";
    const ssize_t got = ::read(fd, piece, sizeof piece);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(piece, static_cast<size_t>(got));
  }
  return text;
}

}  // namespace

Until parse_until(std::string_view text) {
  if (text == "job") return {.kind = Until::Kind::kJobEnd};
  if (text.starts_with('+')) {
    const auto seconds = parse_duration(text.substr(1));
    if (!seconds) refuse(text, "is no time from now");
    return {.kind = Until::Kind::kAfter, .seconds = *seconds};
  }
  const auto moment = parse_moment(text);
  if (!moment) refuse(text, "is no moment");
  return {.kind = Until::Kind::kMoment, .moment = *moment};
}

std::string ask_squeue(const std::string& job) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string arguments[] = {"squeue", "-h", "-j", job, "-o", "%e"};
  char* argv[std::size(arguments) + 1] = {};
  for (size_t i = 0; i < std::size(arguments); ++i) argv[i] = arguments[i].data();
  pid_t child = 0;
  const int failed = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  std::string answer;
  if (failed == 0) {
    answer = read_all(ends[0], std::chrono::seconds(20));
    if (answer.empty()) ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  ::close(ends[0]);
  return answer.substr(0, answer.find('\n'));
}

std::optional<double> seconds_left(const Until& until, double now, double running,
                                   const comm::Environment& environment, const AskSlurm& ask) {
  switch (until.kind) {
    case Until::Kind::kAfter:
      return static_cast<double>(until.seconds) - running;
    case Until::Kind::kJobEnd:
      return end_of_job(now, environment, ask);
    case Until::Kind::kMoment:
      break;
  }
  const double left = static_cast<double>(until.moment) - now;
  if (left <= 0)
    fail(ExitCode::kUsage, "--until: that moment was {:.0f} s ago; give a later one", -left);
  return left;
}

void Deadline::note_step(double seconds) {
  steps_[next_++ % kSteps] = seconds;
}

void Deadline::note_save(double seconds) {
  if (seconds > 0) save_seconds_ = seconds;
}

void Deadline::note_evaluation(double seconds) {
  evaluation_seconds_ = seconds;
}

double Deadline::step_seconds() const {
  return *std::ranges::max_element(steps_);
}

double Deadline::evaluation_seconds() const {
  return evaluation_seconds_ > 0 ? evaluation_seconds_ : evaluation_steps_ * step_seconds();
}

bool Deadline::last_step(Clock::time_point now, Next next) const {
  double steps = 2, saves = 2;
  if (next == Next::kEvaluation) saves = 3;
  if (next == Next::kEndOfTraining) steps = 1;
  double needed = steps * step_seconds() + saves * save_seconds_;
  if (next != Next::kStep) needed += evaluation_seconds();
  return std::chrono::duration<double>(until_ - now).count() < needed;
}

std::string Deadline::reason(Clock::time_point now, Next next) const {
  std::string text = fmt::format("in {:.1f} s; a step takes {:.2f} s, a save {:.1f} s",
                                 std::chrono::duration<double>(until_ - now).count(),
                                 step_seconds(), save_seconds_);
  if (next != Next::kStep) text += fmt::format(", an evaluation {:.1f} s", evaluation_seconds());
  return text;
}

}  // namespace convoy::trainer
