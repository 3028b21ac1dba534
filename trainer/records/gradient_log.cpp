#include "trainer/records/gradient_log.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "trainer/base/file.h"
#include "trainer/base/line_log.h"
#include "trainer/records/metrics.h"

namespace convoy::trainer {
namespace {

using nlohmann::json;

std::string path_of(const std::string& out_dir) {
  return (std::filesystem::path(out_dir) / "gradients.jsonl").string();
}

// Six digits are more than a picture shows.
std::string numbers(const std::vector<double>& values) {
  std::string text = "[";
  for (const double v : values)
    text += fmt::format("{}{}", text.size() > 1 ? "," : "",
                        std::isfinite(v) ? fmt::format("{:.6g}", v) : std::string("null"));
  return text + "]";
}

std::string names(const std::vector<std::string>& list) {
  return json(list).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::vector<double> numbers_of(const json& line, const char* key) {
  std::vector<double> out;
  for (const json& v : line.at(key))
    out.push_back(v.is_number() ? v.get<double>() : std::numeric_limits<double>::quiet_NaN());
  return out;
}

GradientRecord record_of(const json& line) {
  GradientRecord r;
  line.at("step").get_to(r.step);
  line.at("epoch").get_to(r.epoch);
  LayerStatistics& l = r.layers;
  line.at("weights").get_to(l.weights);
  line.at("batch_norms").get_to(l.batch_norms);
  l.gradient_norm = numbers_of(line, "gradient_norm");
  l.gradient_rms = numbers_of(line, "gradient_rms");
  l.weight_norm = numbers_of(line, "weight_norm");
  l.weight_rms = numbers_of(line, "weight_rms");
  l.response_std = numbers_of(line, "response_std");
  return r;
}

}  // namespace

std::string to_json(const GradientRecord& record) {
  const LayerStatistics& l = record.layers;
  return fmt::format(
      "{{\"step\":{},\"epoch\":{:.6g},\"weights\":{},\"gradient_norm\":{},\"gradient_rms\":{},"
      "\"weight_norm\":{},\"weight_rms\":{},\"batch_norms\":{},\"response_std\":{}}}",
      record.step, record.epoch, names(l.weights), numbers(l.gradient_norm),
      numbers(l.gradient_rms), numbers(l.weight_norm), numbers(l.weight_rms), names(l.batch_norms),
      numbers(l.response_std));
}

GradientLog::GradientLog(const std::string& out_dir, uint64_t step) {
  keep_lines_until(path_of(out_dir), step);
  log_ = std::make_unique<LineLog>(path_of(out_dir));
}

GradientLog::~GradientLog() = default;

void GradientLog::write(const GradientRecord& record) {
  log_->write(to_json(record));
}

std::vector<GradientRecord> read_gradients(const std::string& run) {
  expect_folder(run);
  const std::string path = path_of(run);
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    fail(ExitCode::kBadData, "{}: no such file; train with --log-gradients N", printable(path));
  std::vector<GradientRecord> records;
  for_each_line(path, [&](const json& line) { records.push_back(record_of(line)); });
  if (records.empty()) fail(ExitCode::kBadData, "{}: holds no record", printable(path));
  return records;
}

}  // namespace convoy::trainer
