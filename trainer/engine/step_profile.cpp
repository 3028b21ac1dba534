#include "trainer/engine/step_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace convoy::trainer {
namespace {

bool is_backward(const ops::Call& call) {
  return call.kind == ops::Call::Kind::kGatherBackward || call.kind == ops::Call::Kind::kBackward;
}

struct Other {
  const char* name;
  double seconds;
};
// What is not in a node. The rest: reading the clock, handing over gradients, waiting for a slower
// lane or for images.
std::vector<Other> others(const ProfileInput& in, double in_nodes) {
  std::vector<Other> list = {{"pixels to activations", in.seconds.input},
                             {"weights packed", in.prepare},
                             {"loss", in.seconds.loss}};
  if (in.training) {
    list.push_back({"waiting for the reduction", in.reduce_wait});
    list.push_back({"update", in.update});
  }
  double rest = in.step - in_nodes;
  for (const Other& other : list) rest -= other.seconds;
  list.push_back({"rest", rest});
  return list;
}

void add(ProfileRow& sum, const ProfileRow& row) {
  sum.seconds += row.seconds;
  sum.flops += row.flops;
  sum.bytes += row.bytes;
  sum.limit_seconds += row.limit_seconds;
}

std::string columns(const ProfileRow& row, double step) {
  return fmt::format("{:>9.3f} {:>6.1f} {:>8.0f} {:>7.1f} {:>9.3f} {:>8.0f}", 1e3 * row.seconds,
                     100 * row.seconds / step, row.flops / row.seconds / 1e9,
                     row.bytes / row.seconds / 1e9, 1e3 * row.limit_seconds,
                     100 * row.limit_seconds / row.seconds);
}

const char* direction(const ProfileRow& row) {
  return row.backward ? "backward" : "forward";
}

// The rows of one kind and direction as one, in the order of the step.
std::vector<ProfileRow> by_kind(const std::vector<ProfileRow>& rows) {
  std::vector<ProfileRow> sums;
  for (const ProfileRow& row : rows) {
    const auto same = [&](const ProfileRow& sum) {
      return sum.kind == row.kind && sum.backward == row.backward;
    };
    auto sum = std::find_if(sums.begin(), sums.end(), same);
    if (sum == sums.end())
      sum = sums.insert(sums.end(), {.name = "all", .kind = row.kind, .backward = row.backward});
    add(*sum, row);
  }
  return sums;
}

}  // namespace

std::vector<ProfileRow> profile_rows(const ProfileInput& in) {
  std::map<std::pair<bool, size_t>, ProfileRow> rows;
  for (const auto& [call, seconds] : in.seconds.calls) {
    ProfileRow& row = rows[{is_backward(call), call.node}];
    const ops::Work work = ops::work_of(in.graph, call, in.batch, in.type, in.training);
    row.name = in.graph.nodes[call.node].name;
    row.kind = ops::kind_of(in.graph.nodes[call.node].op);
    row.backward = is_backward(call);
    row.seconds += seconds;
    row.flops += work.flops;
    row.bytes += work.bytes;
    row.limit_seconds +=
        std::max(work.flops / in.flops_per_second, work.bytes / in.bytes_per_second);
  }
  std::vector<ProfileRow> list;
  for (const auto& [key, row] : rows)
    if (!row.backward) list.push_back(row);
  for (auto at = rows.rbegin(); at != rows.rend() && at->second.backward; ++at)
    list.push_back(at->second);
  return list;
}

std::string to_text(const ProfileInput& in) {
  const std::vector<ProfileRow> rows = profile_rows(in);
  size_t width = 26;
  for (const ProfileRow& row : rows) width = std::max(width, row.name.size());
  std::string text = fmt::format(
      "One step of one lane, {} samples: {:.2f} ms. Limit: {:.0f} GFLOP/s (matrix product) or "
      "{:.1f} "
      "GB/s\n(copy, read and written), whichever is slower; above 100 % the data was in the "
      "cache.\n\n{:<{}}  {:<28} {:<8} {:>9} {:>6} {:>8} {:>7} {:>9} {:>8}\n",
      in.batch, 1e3 * in.step, in.flops_per_second / 1e9, in.bytes_per_second / 1e9, "node", width,
      "kind", "", "ms", "step %", "GFLOP/s", "GB/s", "limit ms", "of limit");
  const std::string rule(width + 90, '-');
  text += rule + "\n";
  for (const ProfileRow& row : rows)
    text += fmt::format("{:<{}}  {:<28} {:<8} {}\n", row.name, width, row.kind, direction(row),
                        columns(row, in.step));
  text += rule + "\n";
  ProfileRow all;
  for (const ProfileRow& row : by_kind(rows)) {
    text += fmt::format("{:<{}}  {:<28} {:<8} {}\n", row.name, width, row.kind, direction(row),
                        columns(row, in.step));
    add(all, row);
  }
  text +=
      fmt::format("{:<{}}  {:<28} {:<8} {}\n", "all nodes", width, "", "", columns(all, in.step));
  for (const Other& other : others(in, all.seconds))
    text += fmt::format("{:<{}}  {:<28} {:<8} {:>9.3f} {:>6.1f}\n", other.name, width, "", "",
                        1e3 * other.seconds, 100 * other.seconds / in.step);
  return text;
}

nlohmann::ordered_json to_json(const ProfileInput& in) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  double in_nodes = 0;
  for (const ProfileRow& row : profile_rows(in)) {
    list.push_back({{"name", row.name},
                    {"kind", row.kind},
                    {"pass", direction(row)},
                    {"seconds", row.seconds},
                    {"flops", row.flops},
                    {"bytes", row.bytes},
                    {"limit_seconds", row.limit_seconds}});
    in_nodes += row.seconds;
  }
  nlohmann::ordered_json out = {{"samples", in.batch},
                                {"gflops_limit", in.flops_per_second / 1e9},
                                {"gigabytes_per_second_limit", in.bytes_per_second / 1e9},
                                {"nodes", list}};
  nlohmann::ordered_json other = nlohmann::ordered_json::object();
  for (const Other& o : others(in, in_nodes)) other[o.name] = o.seconds;
  out["other_seconds"] = other;
  return out;
}

}  // namespace convoy::trainer
