#include "trainer/records/lives.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/base/line_log.h"
#include "trainer/base/version.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kNames[kPhases] = {"starting", "useful",     "recomputed",
                                         "waiting",  "evaluating", "saving"};
constexpr size_t kMaxFileBytes = size_t{1} << 31;  // heartbeats of eight years
constexpr size_t kMaxLineBytes = size_t{64} << 10;
constexpr size_t kMaxLives = 1000000;
constexpr double kMaxSeconds = 1e12;  // 30,000 years
constexpr double kHeartbeatSeconds = 30;

std::string path_of(const std::string& out_dir) {
  return (fs::path(out_dir) / "lives.jsonl").string();
}

// Values of a line; what is missing or of another type is left as it was.
class Line {
 public:
  explicit Line(const json& object) : object_(object) {}

  void read(const char* key, uint64_t& value) const {
    if (const json* v = find(key); v && v->is_number_unsigned()) value = v->get<uint64_t>();
  }
  void read(const char* key, double& value) const {
    const json* v = find(key);
    if (!v || !v->is_number()) return;
    const double number = v->get<double>();
    if (number >= 0 && number < kMaxSeconds) value = number;
  }
  void read(const char* key, std::string& value) const {
    if (const json* v = find(key); v && v->is_string()) value = v->get<std::string>();
  }

 private:
  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  const json& object_;
};

void read_state(const Line& line, Life& life) {
  line.read("step", life.last_step);
  double elapsed = life.elapsed;
  line.read("elapsed", elapsed);
  PhaseSeconds seconds = life.seconds;
  for (size_t i = 0; i < kPhases; ++i) line.read(kNames[i], seconds[i]);
  const double booked = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  if (booked > elapsed * (1 + 1e-6) + 1e-3) return;  // no life has more than its time
  life.elapsed = std::max(elapsed, booked);
  life.seconds = seconds;
}

// False where the line is none of ours.
bool read_line(std::string_view text, std::vector<Life>& lives) {
  if (text.size() > kMaxLineBytes) return false;
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return false;
  const Line line(object);
  std::string event;
  uint64_t number = 0;
  line.read("event", event);
  line.read("life", number);
  if (event == "start") {
    if (lives.size() >= kMaxLives || (!lives.empty() && number <= lives.back().number))
      return false;
    Life life;
    life.number = number;
    line.read("time", life.started);
    line.read("host", life.host);
    line.read("version", life.version);
    line.read("ranks", life.ranks);
    lives.push_back(std::move(life));
    return true;
  }
  if (lives.empty() || number != lives.back().number || lives.back().ended()) return false;
  Life& life = lives.back();
  if (event == "begin") {
    life.began = true;
    line.read("step", life.first_step);
    line.read("of", life.total_steps);
    line.read("workers", life.workers);
    line.read("job", life.job);
  } else if (event == "end") {
    uint64_t code = 256;
    line.read("exit_code", code);
    if (code > 255) return false;
    life.exit_code = static_cast<int>(code);
    line.read("reason", life.reason);
  } else if (event != "progress" && event != "heartbeat") {
    return false;
  }
  read_state(line, life);
  return true;
}

// The lines that are kept when a new life begins.
std::string thinned(const std::string& text) {
  std::vector<std::string_view> kept;
  bool last_is_progress = false;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // torn
    const std::string_view line(text.data() + begin, end - begin);
    const bool is_progress =
        line.starts_with(R"({"event":"progress")") || line.starts_with(R"({"event":"heartbeat")");
    const bool is_end = line.starts_with(R"({"event":"end")");
    if (last_is_progress && (is_progress || is_end)) kept.pop_back();
    kept.push_back(line);
    last_is_progress = is_progress;
    begin = end + 1;
  }
  std::string all;
  for (const std::string_view line : kept) all.append(line).append("\n");
  return all;
}

}  // namespace

const char* name_of(Phase phase) {
  return kNames[static_cast<size_t>(phase)];
}

LivesText parse_lives(std::string_view text) {
  LivesText all;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) break;  // being written, or torn
    if (!read_line(text.substr(begin, end - begin), all.lives)) ++all.unreadable;
    begin = end + 1;
  }
  return all;
}

LivesText read_lives(const std::string& out_dir) {
  std::error_code error;
  if (!fs::exists(path_of(out_dir), error)) return {};
  return parse_lives(read_text(path_of(out_dir), kMaxFileBytes));
}

std::vector<const Life*> idle_lives(const std::vector<Life>& lives) {
  std::vector<const Life*> idle;
  for (size_t i = lives.size(); i-- > 0;) {
    const Life& life = lives[i];
    if (life.last_step > life.first_step || life.exit_code == 0) break;
    if (life.ended()) idle.push_back(&life);
  }
  std::reverse(idle.begin(), idle.end());
  return idle;
}

int within_budget(int exit_code, size_t idle) {
  const bool again = exit_code == static_cast<int>(ExitCode::kRecoverable);
  return again && idle + 1 >= kLifeBudget ? static_cast<int>(ExitCode::kFault) : exit_code;
}

Goodput goodput(const std::vector<Life>& lives) {
  Goodput sum;
  for (size_t i = 0; i < lives.size(); ++i) {
    const Life& life = lives[i];
    double booked = 0;
    for (size_t p = 0; p < kPhases; ++p) {
      sum.seconds[p] += life.seconds[p];
      booked += life.seconds[p];
    }
    sum.lost += life.elapsed - booked;
    sum.wall += life.elapsed;
    sum.steps = std::max(sum.steps, life.last_step);
    if (i + 1 == lives.size()) break;
    // A clock that was set back must not give time back.
    const double gap = std::max(0.0, lives[i + 1].started - (life.started + life.elapsed));
    const double dying = life.ended() ? 0 : std::min(gap, kHeartbeatSeconds);
    sum.lost += dying;
    sum.down += gap - dying;
    sum.wall += gap;
  }
  return sum;
}

Lives::Lives(const std::string& out_dir, const std::string& host, int ranks,
             Clock::time_point start, std::chrono::milliseconds heartbeat, uint64_t at_least)
    : start_(start), started_(unix_now() - seconds_since(start)) {
  const std::string path = path_of(out_dir);
  std::error_code error;
  if (fs::exists(path, error)) {
    const std::string text = read_text(path, kMaxFileBytes);
    const std::string kept = thinned(text);
    if (kept != text) rewrite_file(path, kept);
    before_ = parse_lives(kept).lives;
  }
  number_ = std::max(at_least, before_.empty() ? 1 : before_.back().number + 1);
  for (const Life& life : before_) furthest_ = std::max(furthest_, life.last_step);
  log_ = std::make_unique<LineLog>(path, [this] { return head_; });
  const ordered_json facts = {{"time", started_},
                              {"host", host},
                              {"pid", ::getpid()},
                              {"ranks", ranks},
                              {"version", kVersion}};
  head_ =
      line_of("start", facts.dump(-1, ' ', true, ordered_json::error_handler_t::replace)) + "\n";
  log_->append(head_, true);
  heartbeat_ = std::jthread([this, heartbeat](std::stop_token stop) {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, stop, heartbeat, [&] { return ended_; }) && !stop.stop_requested())
      if (Clock::now() - written_ >= heartbeat) append("heartbeat", state());
  });
}

Lives::~Lives() = default;

// `more`: an object's text.
std::string Lives::line_of(const char* event, const std::string& more) const {
  return fmt::format("{{\"event\":\"{}\",\"life\":{},{}", event, number_,
                     std::string_view(more).substr(1));
}

// Called under the mutex.
void Lives::append(const char* event, const std::string& more) {
  if (log_->write(line_of(event, more))) written_ = Clock::now();
}

// Of a step that is not done nothing is booked.
std::string Lives::state() const {
  const auto now = Clock::now();
  PhaseSeconds seconds = seconds_;
  if (phase_ != Phase::kUseful)
    seconds[static_cast<size_t>(phase_)] += std::chrono::duration<double>(now - since_).count();
  ordered_json object = {{"elapsed", std::chrono::duration<double>(now - start_).count()},
                         {"step", step_}};
  for (size_t i = 0; i < kPhases; ++i) object[kNames[i]] = seconds[i];
  return object.dump();
}

void Lives::book(Phase phase) {
  const auto now = Clock::now();
  seconds_[static_cast<size_t>(phase)] += std::chrono::duration<double>(now - since_).count();
  since_ = now;
}

void Lives::begin(uint64_t step, uint64_t total_steps, uint64_t workers, const std::string& job) {
  const std::lock_guard lock(mutex_);
  book(phase_);
  step_ = step;
  json object = json::parse(state());
  object.update({{"of", total_steps}, {"workers", workers}, {"job", job}});
  append("begin", object.dump());
  head_ += line_of("begin", object.dump()) + "\n";
}

void Lives::enter(Phase phase) {
  const std::lock_guard lock(mutex_);
  book(phase_);
  phase_ = phase;
}

void Lives::step_done(double waited) {
  const std::lock_guard lock(mutex_);
  ++step_;
  if (step_ <= furthest_) {
    book(Phase::kRecomputed);
    return;
  }
  const double elapsed = seconds_since(since_);
  const double waiting = std::clamp(waited, 0.0, elapsed);
  book(Phase::kUseful);
  seconds_[static_cast<size_t>(Phase::kUseful)] -= waiting;
  seconds_[static_cast<size_t>(Phase::kWaiting)] += waiting;
}

void Lives::go_to(uint64_t step) {
  const std::lock_guard lock(mutex_);
  furthest_ = std::max(furthest_, step_);
  step_ = step;
}

void Lives::progress() {
  const std::lock_guard lock(mutex_);
  if (!ended_) append("progress", state());
}

void Lives::end(int exit_code, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  ended_ = true;
  wake_.notify_all();
  if (phase_ != Phase::kUseful) book(phase_);
  json object = json::parse(state());
  object.update({{"exit_code", exit_code}, {"reason", printable(reason, 1000)}});
  append("end", object.dump(-1, ' ', true, json::error_handler_t::replace));
  log_->sync();
}

void LifeUnderWatch::begin(std::shared_ptr<Lives> lives, size_t idle) {
  const std::lock_guard lock(mutex_);
  lives_ = std::move(lives);
  idle_ = idle;
}

int LifeUnderWatch::end(int exit_code, std::string& text) {
  const int within = within_budget(exit_code, idle_);
  if (within != exit_code)
    text += fmt::format(
        " (the {} lives before, too, ended without a step, see convoy report: so this one does not "
        "ask to be run again)",
        idle_.load());
  std::shared_ptr<Lives> lives;
  {
    const std::lock_guard lock(mutex_);
    lives = lives_;
  }
  if (!lives) return within;
  // A disk that hangs may be the reason for the verdict: then this thread stays behind.
  const auto written = std::make_shared<std::promise<void>>();
  std::thread([lives, within, text, written] {
    lives->end(within, text);
    written->set_value();
  }).detach();
  written->get_future().wait_for(std::chrono::seconds(2));
  return within;
}

}  // namespace convoy::trainer
