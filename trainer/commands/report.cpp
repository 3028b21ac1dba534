// convoy report: the lives of a run, and where its wall time went; figures of what runs wrote.
#include <time.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "trainer/base/file.h"
#include "trainer/base/text.h"
#include "trainer/commands/commands.h"
#include "trainer/pictures/run_plots.h"
#include "trainer/records/lives.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;
using nlohmann::ordered_json;

// A life that was heard of so lately may be under way.
constexpr double kSilence = 60;

std::string local_time(double seconds) {
  const auto moment = static_cast<time_t>(seconds);
  struct tm parts = {};
  char text[32] = "?";
  if (localtime_r(&moment, &parts)) (void)strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

// "0:52", "3:04:05"; below ten seconds "3.2 s".
std::string time_text(double seconds) {
  return seconds < 9.95 ? fmt::format("{:.1f} s", seconds) : duration(seconds);
}

bool may_run(const Life& life, bool last, double now) {
  return last && !life.ended() && now - (life.started + life.elapsed) < kSilence;
}

std::string ending(const Life& life, bool running) {
  if (running) return "running";
  if (!life.ended()) return "killed";
  return fmt::format("{}{}{}", *life.exit_code, life.reason.empty() ? "" : " ",
                     printable(life.reason, 100));
}

void print_table(const std::vector<Life>& lives, double now) {
  size_t host_width = 4, step_width = 5;
  const auto steps = [](const Life& life) {
    return life.began ? fmt::format("{}-{}", life.first_step, life.last_step) : std::string("-");
  };
  for (const Life& life : lives) {
    host_width = std::max(host_width, printable(life.host, 24).size());
    step_width = std::max(step_width, steps(life).size());
  }
  std::cout << fmt::format("life  started              {:<{}}  ranks  {:<{}}  {:>8}  end\n", "host",
                           host_width, "steps", step_width, "time");
  for (const Life& life : lives) {
    const bool running = may_run(life, &life == &lives.back(), now);
    std::cout << fmt::format("{:>4}  {}  {:<{}}  {:>5}  {:<{}}  {:>8}  {}\n", life.number,
                             local_time(life.started), printable(life.host, 24), host_width,
                             life.ranks, steps(life), step_width, time_text(life.elapsed),
                             ending(life, running));
  }
}

void print_goodput(const Goodput& sum, uint64_t total_steps) {
  constexpr std::pair<Phase, const char*> kRows[] = {
      {Phase::kUseful, "steps done for the first time"},
      {Phase::kWaiting, "of such steps: for input and for other ranks"},
      {Phase::kRecomputed, "steps done again after a kill"},
      {Phase::kEvaluating, "evaluations"},
      {Phase::kSaving, "checkpoints, as far as steps waited for them"},
      {Phase::kStarting, "until the first step of a life"},
  };
  const auto row = [&](const char* name, double seconds, const char* what) {
    std::cout << fmt::format("  {:<11} {:>9}  {:>5.1f} %  {}\n", name, time_text(seconds),
                             sum.wall > 0 ? 100 * seconds / sum.wall : 0.0, what);
  };
  std::cout << fmt::format("\nstep {} of {}; wall time {}:\n", sum.steps, total_steps,
                           time_text(sum.wall));
  for (const auto& [phase, what] : kRows)
    row(name_of(phase), sum.seconds[static_cast<size_t>(phase)], what);
  row("lost", sum.lost, "unfinished steps, and up to 30 s before a kill");
  row("down", sum.down, "no life");
}

ordered_json to_json(const Life& life, bool running) {
  ordered_json object = {{"life", life.number},
                         {"started", life.started},
                         {"elapsed", life.elapsed},
                         {"host", printable(life.host)},
                         {"version", printable(life.version)},
                         {"ranks", life.ranks},
                         {"workers", life.workers},
                         {"job", printable(life.job)},
                         {"first_step", life.first_step},
                         {"last_step", life.last_step},
                         {"end", running        ? "running"
                                 : life.ended() ? "ended"
                                                : "killed"}};
  if (life.ended()) {
    object["exit_code"] = *life.exit_code;
    object["reason"] = printable(life.reason, 1000);
  }
  for (size_t i = 0; i < kPhases; ++i)
    object["seconds"][name_of(static_cast<Phase>(i))] = life.seconds[i];
  return object;
}

ordered_json to_json(const Goodput& sum) {
  ordered_json object = {{"wall", sum.wall}};
  for (size_t i = 0; i < kPhases; ++i) object[name_of(static_cast<Phase>(i))] = sum.seconds[i];
  object["lost"] = sum.lost;
  object["down"] = sum.down;
  return object;
}

struct Figure {
  std::string kind, out;
  std::vector<std::string> labels;
  PlotOptions options;
};

std::string label_of(const std::string& run) {
  const std::filesystem::path path(run);
  return (path.has_filename() ? path : path.parent_path()).filename();
}

// What goes with --plot; runs have not been looked at.
void check(const po::variables_map& values, const std::vector<std::string>& runs,
           const Figure& figure) {
  if (figure.kind.empty()) {
    refuse_given(values, {"out", "label", "title", "panel", "step"}, "--plot");
    if (runs.size() != 1)
      fail(ExitCode::kUsage, "{} runs: several are for --plot; give one", runs.size());
    return;
  }
  if (figure.kind != "errors" && figure.kind != "gradients" && figure.kind != "responses")
    fail(ExitCode::kUsage, "--plot {}: there are errors, gradients and responses",
         printable(figure.kind));
  refuse_given(values, {"json"}, "the table, not for --plot, which draws an SVG");
  if (figure.kind == "errors")
    refuse_given(values, {"step"},
                 "--plot gradients and responses; errors are drawn over all steps");
  else
    refuse_given(values, {"panel"}, "--plot errors");
  expect_end("--out", figure.out, {".svg"});
  if (!figure.labels.empty() && figure.labels.size() != runs.size())
    fail(ExitCode::kUsage, "--label is given {} time(s) for {} run(s)", figure.labels.size(),
         runs.size());
  if (figure.options.panels.size() > runs.size())
    fail(ExitCode::kUsage, "--panel is given {} times for {} run(s)", figure.options.panels.size(),
         runs.size());
}

int draw(const std::vector<std::string>& runs, const Figure& figure) {
  std::vector<PlottedRun> plotted;
  for (size_t i = 0; i < runs.size(); ++i)
    plotted.push_back({runs[i], figure.labels.empty() ? label_of(runs[i]) : figure.labels[i]});
  std::string svg;
  if (figure.kind == "errors")
    svg = plot_errors(plotted, figure.options);
  else if (figure.kind == "gradients")
    svg = plot_gradients(plotted, figure.options);
  else
    svg = plot_responses(plotted, figure.options);
  if (figure.out.empty())
    std::cout << svg << std::flush;
  else
    rewrite_file(figure.out, svg);
  return 0;
}

}  // namespace

int report_command(const Arguments& arguments) {
  std::vector<std::string> runs;
  bool json = false;
  Figure figure;
  uint64_t step = 0;
  po::options_description options("Options");
  options.add_options()("run", po::value(&runs)->required(),
                        "the folder of a run; for --plot one or several")(
      "json", po::bool_switch(&json), "one JSON object on standard output in place of the table")(
      "plot", po::value(&figure.kind),
      "an SVG in place of the table: errors (training thin, test bold, over the steps), gradients "
      "(norms layer by layer), responses (standard deviation behind each batch norm); the last two "
      "of runs of train --log-gradients")(
      "out", po::value(&figure.out),
      "FILE.svg, replaced if it is there; standard output without it")(
      "label", po::value(&figure.labels)->composing(),
      "what a run is called in the figure, one for each; its folder's name without it")(
      "title", po::value(&figure.options.title), "of the figure")(
      "panel", po::value(&figure.options.panels)->composing(),
      "errors: the title of a panel; given several times, the runs are shared out among them")(
      "step", po::value(&step),
      "gradients, responses: the record nearest to it; the last without it");
  const auto values = parse_options(
      arguments, options, "report RUN... [OPTIONS]",
      "Prints a line for each life (start) of the run and how it ended, and what the wall time of "
      "all went\n"
      "into; the parts sum to it.\n",
      "run...");
  if (!values) return 0;
  if (values->count("step") > 0) figure.options.step = step;
  check(*values, runs, figure);
  if (!figure.kind.empty()) return draw(runs, figure);
  const std::string run = runs[0];
  expect_folder(run);
  const LivesText text = read_lives(run);
  if (text.lives.empty())
    fail(ExitCode::kBadData, "{}: has no lives.jsonl: no run, or one of an older Convoy",
         printable(run));
  const double now = unix_now();
  const Goodput sum = goodput(text.lives);
  if (json) {
    ordered_json out = {{"lives", ordered_json::array()},
                        {"steps", sum.steps},
                        {"total_steps", text.lives.back().total_steps},
                        {"unreadable_lines", text.unreadable},
                        {"seconds", to_json(sum)}};
    for (const Life& life : text.lives)
      out["lives"].push_back(to_json(life, may_run(life, &life == &text.lives.back(), now)));
    std::cout << out.dump(2) << std::endl;
    return 0;
  }
  uint64_t total_steps = 0;
  for (const Life& life : text.lives)
    if (life.began) total_steps = life.total_steps;
  print_table(text.lives, now);
  print_goodput(sum, total_steps);
  if (text.unreadable > 0)
    std::cout << fmt::format("{} line(s) of lives.jsonl could not be read\n", text.unreadable);
  return 0;
}

}  // namespace convoy::trainer
