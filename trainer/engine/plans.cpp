#include "trainer/engine/plans.h"

#include <filesystem>
#include <memory>
#include <string_view>
#include <system_error>

#include "data_loader/files.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/decisions.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;

// A cache that has grown beyond it begins anew.
constexpr size_t kMostCacheBytes = size_t{4} << 20;

// How this program chooses: another number where what nobody prescribes would be decided otherwise,
// so that a cache from before it changes no result.
constexpr int kRules = 2;

constexpr size_t kMostKernels = 1000;  // of 0.2 MB; likewise

bool is_kernel(const std::string& name) {
  constexpr size_t kLength = std::string_view("kernel-0123456789abcdef.txt").size();
  return name.size() == kLength && name.starts_with("kernel-") && name.ends_with(".txt");
}

void make_room_for_kernel(const std::string& folder) {
  std::error_code error;  // another process may do the same
  std::vector<fs::path> kernels;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (is_kernel(it->path().filename().string())) kernels.push_back(it->path());
  if (kernels.size() < kMostKernels) return;
  for (const fs::path& kernel : kernels) fs::remove(kernel, error);
}

// A file of the cache: PATH of what is kept for a target, and what lies there behind its line.
std::string path_of(const std::string& folder, const char* kind, const std::string& target) {
  return fmt::format("{}/{}-{}.txt", folder, kind, sha256_hex(target).substr(0, 16));
}
std::optional<std::string> read_for(const std::string& path, const std::string& target) {
  const std::string text = data::read_cache(path), head = target + "\n";
  if (!text.starts_with(head)) return std::nullopt;
  return text.substr(head.size());
}
bool write_for(const std::string& path, const std::string& target, const std::string& content) {
  return data::write_cache(path, fmt::format("{}\n{}", target, content));
}

// Of both, the newer choice stays.
std::string merged(const std::string& old, const std::string& more) {
  Choices choices = parse_choices(more);
  choices.merge(parse_choices(old));
  return to_text(choices);
}

// Without what a library is said not to have: that it says itself, each time.
std::string known(const std::string& plans) {
  Choices choices = parse_choices(plans);
  std::erase_if(choices, [](const auto& each) { return each.second.engine == Choice::kNone; });
  return to_text(choices);
}

// What rank 0 decides at the start of a run.
void decide_first(ops::Device& device, const PlanConfig& config,
                  const std::function<void()>& decide) {
  const auto tune_and_decide = [&] {
    device.tune(config.tune);
    decide();
    device.tune(false);
  };
  if (config.cache_folder.empty()) return tune_and_decide();
  const std::string target =
      fmt::format("{}; rules {}{}", plan_target(device.instruction_set(), device.libraries()),
                  kRules, config.tune ? ", measured" : "");
  const std::string path = path_of(config.cache_folder, "plans", target);
  const std::string cached = read_plans(path, target).value_or("");
  device.prescribe(known(cached), Refused::kReplace);
  tune_and_decide();
  const std::string plans = device.decisions(), all = merged(cached, plans);
  if (all != cached) write_plans(path, target, all.size() <= kMostCacheBytes ? all : plans);
}

}  // namespace

void agree_on_plans(comm::Communicator& communicator, ops::Device& device, const PlanConfig& config,
                    const std::function<void()>& decide) {
  if (!config.cache_folder.empty())
    device.keep_kernels(kernel_store(config.cache_folder,
                                     plan_target(device.instruction_set(), device.libraries())));
  std::string plans;
  if (communicator.rank() == 0) {
    if (config.stored) {
      device.prescribe(*config.stored, config.refused);
      decide();
    } else {
      decide_first(device, config, decide);
    }
    plans = device.decisions();
  }
  communicator.broadcast(plans, 0);
  device.prescribe(plans, Refused::kStop);
}

std::string plan_target(const std::string& instruction_set, const std::string& libraries) {
  return fmt::format("{}; {}", instruction_set, libraries);
}

std::optional<std::string> read_plans(const std::string& path, const std::string& target) {
  std::optional<std::string> plans = read_for(path, target);
  try {
    if (plans) parse_choices(*plans);
  } catch (const Error&) {
    return std::nullopt;
  }
  return plans;
}

void write_plans(const std::string& path, const std::string& target, const std::string& plans) {
  write_for(path, target, plans);
}

KernelStore kernel_store(const std::string& folder, const std::string& target) {
  const auto target_of = [target](const std::string& name) { return target + "\n" + name; };
  return {.read =
              [=](const std::string& name) {
                const std::string whole = target_of(name);
                return read_for(path_of(folder, "kernel", whole), whole).value_or("");
              },
          .write =
              [=, writes = std::make_shared<bool>(true)](const std::string& name,
                                                         const std::string& kernel) {
                if (!*writes) return;
                make_room_for_kernel(folder);
                const std::string whole = target_of(name);
                *writes = write_for(path_of(folder, "kernel", whole), whole, kernel);
              }};
}

std::vector<std::string> changed_plans(const std::string& before, const std::string& after) {
  std::vector<std::string> changed;
  const Choices now = parse_choices(after);
  for (const auto& [name, choice] : parse_choices(before))
    if (const auto found = now.find(name); found != now.end() && found->second != choice)
      changed.push_back(fmt::format("{}: {} -> {}", name, to_text(choice), to_text(found->second)));
  return changed;
}

}  // namespace convoy::trainer
