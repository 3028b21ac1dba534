#include "trainer/records/metrics.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "trainer/base/file.h"
#include "trainer/base/line_log.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

// Far above the metrics of a run of months: a line is about 200 bytes.
constexpr size_t kMaxMetricsBytes = size_t{1} << 31;

// The lines of `text` that a run which goes on after `step` keeps.
std::string lines_until(const std::string& text, uint64_t step) {
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // torn
    const std::string_view line(text.data() + begin, end - begin);
    const auto object = nlohmann::json::parse(line, nullptr, false);
    if (object.is_object() && object.contains("step") && object["step"].is_number_unsigned() &&
        object["step"].get<uint64_t>() <= step)
      kept.append(line).append("\n");
    begin = end + 1;
  }
  return kept;
}

// The one Progress that lives on a terminal, for the log's sink: a plain function.
Progress* live_progress = nullptr;

constexpr std::string_view kEraseLine = "\r\x1b[K";
constexpr std::chrono::milliseconds kRedraw{100};

}  // namespace

std::string to_json(const MetricsLine& line) {
  nlohmann::ordered_json object = nlohmann::ordered_json::object();
  const auto add = [&](const char* name, const auto& value) {
    if (value) object[name] = *value;  // nlohmann writes NaN and infinities as null
  };
  add("time", line.time);
  add("step", line.step);
  add("epoch", line.epoch);
  add("train_loss", line.train_loss);
  add("train_top1", line.train_top1);
  add("learning_rate", line.learning_rate);
  add("images_per_second", line.images_per_second);
  add("input_wait_share", line.input_wait_share);
  add("reduce_wait_share", line.reduce_wait_share);
  add("gradient_norm", line.gradient_norm);
  add("loss_scale", line.loss_scale);
  add("top1", line.top1);
  add("top5", line.top5);
  add("loss", line.loss);
  add("images", line.images);
  add("correct", line.correct);
  add("ema_top1", line.ema_top1);
  add("ema_top5", line.ema_top5);
  add("event", line.event);
  add("detail", line.detail);
  // Bytes that are not UTF-8 (a path in `detail`) become U+FFFD.
  return object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void for_each_line(const std::string& path,
                   const std::function<void(const nlohmann::json& line)>& visit) {
  constexpr size_t kMostSaid = 60;
  const std::string text = read_text(path, kMaxMetricsBytes);
  for (size_t begin = 0, number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // torn
    const std::string_view line(text.data() + begin, end - begin);
    const auto refuse = [&](const std::string& why) {
      fail(ExitCode::kBadData, "{}: line {}: {}: {}", printable(path), number, why,
           printable(line, kMostSaid));
    };
    const auto object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object()) refuse("is no JSON object");
    try {
      visit(object);
    } catch (const nlohmann::json::exception& error) {
      refuse(printable(error.what()));
    }
    begin = end + 1;
  }
}

void keep_lines_until(const std::string& path, uint64_t step) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return;
  const std::string text = read_text(path, kMaxMetricsBytes);
  const std::string kept = lines_until(text, step);
  if (kept != text) rewrite_file(path, kept);
}

MetricsWriter::MetricsWriter(const std::string& out_dir, uint64_t step) {
  const std::string path = (std::filesystem::path(out_dir) / "metrics.jsonl").string();
  keep_lines_until(path, step);
  log_ = std::make_unique<LineLog>(path);
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::write(MetricsLine line) {
  if (!line.time) line.time = unix_now();
  log_->write(to_json(line));
}

std::string to_line(const ProgressState& state) {
  std::string line = fmt::format("step {}/{} | epoch {:.2f}/{}", state.step, state.total_steps,
                                 state.epoch, state.epochs);
  if (state.loss) line += fmt::format(" | loss {:.3f}", *state.loss);
  if (state.top1) line += fmt::format(" | top-1 {:.1f} %", 100 * *state.top1);
  if (state.images_per_second > 0)
    line += fmt::format(" | {:.{}f} images/s", state.images_per_second,
                        state.images_per_second < 10 ? 1 : 0);
  line += fmt::format(" | data wait {:.0f} %", 100 * state.input_wait_share);
  if (state.seconds_left && std::isfinite(*state.seconds_left) && *state.seconds_left >= 0)
    line += " | ETA " + duration(*state.seconds_left);
  return line;
}

std::string to_line(const std::string& what, uint64_t done, uint64_t total, double seconds,
                    const std::string& more) {
  constexpr size_t kWidth = 24;
  const double share = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  const auto filled = static_cast<size_t>(share * kWidth);
  std::string bar(filled, '=');
  if (filled < kWidth) bar += '>';
  bar.resize(kWidth, ' ');
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  std::string line = fmt::format("{} [{}] {}/{} images", what, bar, done, total);
  if (rate > 0)
    line += fmt::format(" | {:.0f}/s | ETA {}", rate,
                        duration(static_cast<double>(total - done) / rate));
  return line + more;
}

Progress::Progress(std::chrono::milliseconds interval, int fd)
    : interval_(interval), fd_(fd), terminal_(::isatty(fd) == 1) {
  if (!terminal_) return;
  live_progress = this;
  log::set_sink(&Progress::print_log_line);
}

Progress::~Progress() {
  finish();
}

void Progress::update(const ProgressState& state) {
  update(to_line(state));
}

void Progress::update(std::string line) {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  last_ = std::move(line);
  last_is_printed_ = false;
  const auto now = Clock::now();
  if (printed_at_ && now - *printed_at_ < (terminal_ ? kRedraw : interval_)) return;
  printed_at_ = now;
  last_is_printed_ = true;
  print(terminal_ ? live_line() : *last_ + "\n");
}

void Progress::finish() {
  // First the sink: it takes the log's lock and then ours, so we must not hold ours here.
  if (terminal_ && live_progress == this) {
    log::set_sink(nullptr);
    live_progress = nullptr;
  }
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  finished_ = true;
  if (!last_) return;
  if (terminal_)
    print(live_line() + "\n");
  else if (!last_is_printed_)
    print(*last_ + "\n");
}

void Progress::print_log_line(log::Level, const std::string& line) {
  Progress& self = *live_progress;
  const std::lock_guard lock(self.mutex_);
  self.print(fmt::format("{}{}\n{}", kEraseLine, line, self.last_ ? self.live_line() : ""));
}

void Progress::print(const std::string& bytes) const {
  [[maybe_unused]] const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
}

std::string Progress::live_line() const {
  winsize size{};
  const size_t width = ::ioctl(fd_, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col : 80;
  return std::string(kEraseLine) + last_->substr(0, width - 1);
}

}  // namespace convoy::trainer
