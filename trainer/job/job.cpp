#include "trainer/job/job.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <array>
#include <concepts>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "proto/job.pb.h"
#include "trainer/base/file.h"
#include "trainer/job/graph_text.h"
#include "trainer/job/job_mistakes.h"
#include "trainer/job/job_text.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr size_t kMaxFileBytes = size_t{1} << 20;

// ---- The struct's fields by their names in the proto: one list for both directions. ----

void fields(Job::Data::Train& t, auto&& visit) {
  visit("crop", t.crop);
  visit("size", t.size);
  visit("area_min", t.area_min);
  visit("area_max", t.area_max);
  visit("ratio_min", t.ratio_min);
  visit("ratio_max", t.ratio_max);
  visit("scale_min", t.scale_min);
  visit("scale_max", t.scale_max);
  visit("pad", t.pad);
  visit("flip", t.flip);
  visit("pca_jitter", t.pca_jitter);
  visit("brightness", t.brightness);
  visit("contrast", t.contrast);
  visit("saturation", t.saturation);
  visit("hue", t.hue);
}

void fields(Job::Data::Eval& e, auto&& visit) {
  visit("resize", e.resize);
  visit("size", e.size);
}

void fields(Job::Data& d, auto&& visit) {
  visit("format", d.format);
  visit("path", d.path);
  visit("classes", d.classes);
  visit("train", d.train);
  visit("eval", d.eval);
  visit("mean_subtraction", d.mean_subtraction);
  visit("mean", d.mean);
  visit("std", d.std);
  visit("bad_sample", d.bad_sample);
  visit("max_pixels", d.max_pixels);
  visit("synthetic_samples", d.synthetic_samples);
  visit("apply_exif_orientation", d.apply_exif_orientation);
  visit("follow_links", d.follow_links);
  visit("shuffle", d.shuffle);
  visit("window_shards", d.window_shards);
  visit("only_classes", d.only_classes);
  visit("images_per_class", d.images_per_class);
}

void fields(Job::Model& m, auto&& visit) {
  visit("name", m.name);
  visit("stride_in_first_conv", m.stride_in_first_conv);
  visit("shortcut", m.shortcut);
  visit("zero_init_residual", m.zero_init_residual);
  visit("batch_norm_momentum", m.batch_norm_momentum);
  visit("batch_norm_epsilon", m.batch_norm_epsilon);
  visit("dropout", m.dropout);
  visit("label_smoothing", m.label_smoothing);
  visit("graph", m.graph);
}

void fields(Job::Optimizer::Group& g, auto&& visit) {
  visit("pattern", g.pattern);
  visit("learning_rate_factor", g.learning_rate_factor);
  visit("weight_decay_factor", g.weight_decay_factor);
}

void fields(Job::Optimizer& o, auto&& visit) {
  visit("kind", o.kind);
  visit("learning_rate", o.learning_rate);
  visit("linear_scaling", o.linear_scaling);
  visit("base_batch", o.base_batch);
  visit("momentum", o.momentum);
  visit("nesterov", o.nesterov);
  visit("weight_decay", o.weight_decay);
  visit("decay_batch_norm_and_bias", o.decay_batch_norm_and_bias);
  visit("trust_coefficient", o.trust_coefficient);
  visit("lars_epsilon", o.lars_epsilon);
  visit("clip_norm", o.clip_norm);
  visit("ema_decay", o.ema_decay);
  visit("group", o.group);
}

void fields(Job::Schedule& s, auto&& visit) {
  visit("kind", s.kind);
  visit("milestones", s.milestones);
  visit("gamma", s.gamma);
  visit("warmup_epochs", s.warmup_epochs);
  visit("warmup_start_factor", s.warmup_start_factor);
  visit("end_factor", s.end_factor);
  visit("power", s.power);
  visit("patience", s.patience);
  visit("threshold", s.threshold);
}

void fields(Job::Evaluation& e, auto&& visit) {
  visit("every_epochs", e.every_epochs);
  visit("batch", e.batch);
}

void fields(Job::Checkpoint& c, auto&& visit) {
  visit("every_steps", c.every_steps);
  visit("every_minutes", c.every_minutes);
  visit("keep", c.keep);
  visit("keep_best", c.keep_best);
  visit("keep_every_steps", c.keep_every_steps);
  visit("lease_seconds", c.lease_seconds);
}

void fields(Job::Reduction& r, auto&& visit) {
  visit("order", r.order);
  visit("bucket_mib", r.bucket_mib);
}

void fields(Job::Logging& l, auto&& visit) {
  visit("every_steps", l.every_steps);
  visit("samples", l.samples);
  visit("batch_digests", l.batch_digests);
  visit("gradients", l.gradients);
}

void fields(Job::Watchdog& w, auto&& visit) {
  visit("start_seconds", w.start_seconds);
  visit("input_seconds", w.input_seconds);
  visit("compute_seconds", w.compute_seconds);
  visit("reduce_seconds", w.reduce_seconds);
  visit("save_seconds", w.save_seconds);
  visit("silence_seconds", w.silence_seconds);
  visit("heartbeat_seconds", w.heartbeat_seconds);
  visit("interface", w.interface);
  visit("straggler_factor", w.straggler_factor);
  visit("straggler_seconds", w.straggler_seconds);
}

void fields(Job::NonFinite& n, auto&& visit) {
  visit("policy", n.policy);
  visit("max_skips", n.max_skips);
}

void fields(Job::Checks& c, auto&& visit) {
  visit("replicas_every_steps", c.replicas_every_steps);
  visit("recompute_every_steps", c.recompute_every_steps);
  visit("max_roll_backs", c.max_roll_backs);
}

void fields(Job::Mixing& m, auto&& visit) {
  visit("mixup_alpha", m.mixup_alpha);
  visit("cutmix_alpha", m.cutmix_alpha);
}

void fields(Job::Transfer::Unfreeze& u, auto&& visit) {
  visit("epoch", u.epoch);
  visit("pattern", u.pattern);
}

void fields(Job::Transfer& t, auto&& visit) {
  visit("init_from", t.init_from);
  visit("freeze", t.freeze);
  visit("train_last_blocks", t.train_last_blocks);
  visit("unfreeze", t.unfreeze);
  visit("start_anew", t.start_anew);
  visit("init_sha256", t.init_sha256);
}

void fields(Job::Gpu& g, auto&& visit) {
  visit("autotune", g.autotune);
  visit("graphs", g.graphs);
  visit("overlap", g.overlap);
  visit("merge", g.merge);
}

void fields(Job& j, auto&& visit) {
  visit("name", j.name);
  visit("data", j.data);
  visit("model", j.model);
  visit("workers", j.workers);
  visit("batch_per_worker", j.batch_per_worker);
  visit("threads_per_worker", j.threads_per_worker);
  visit("precision", j.precision);
  visit("seed", j.seed);
  visit("epochs", j.epochs);
  visit("stop_after_steps", j.stop_after_steps);
  visit("optimizer", j.optimizer);
  visit("schedule", j.schedule);
  visit("evaluation", j.evaluation);
  visit("checkpoint", j.checkpoint);
  visit("reduction", j.reduction);
  visit("log", j.log);
  visit("watchdog", j.watchdog);
  visit("non_finite", j.non_finite);
  visit("checks", j.checks);
  visit("mixing", j.mixing);
  visit("transfer", j.transfer);
  visit("gpu", j.gpu);
}

template <typename T>
concept Group = requires(T& t) {
  fields(t, [](const char*, auto&) {});
};

template <typename T>
concept GroupList = requires(T& t) {
  t.emplace_back();
  requires Group<typename T::value_type>;
};

struct FromProto {
  const Message& message;

  template <typename T>
  void operator()(const char* name, T& value) const {
    const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    const auto* reflection = message.GetReflection();
    if constexpr (Group<T>)
      fields(value, FromProto{reflection->GetMessage(message, field)});
    else if constexpr (std::same_as<T, std::vector<double>>)
      for (int i = 0; i < reflection->FieldSize(message, field); ++i)
        value.push_back(reflection->GetRepeatedDouble(message, field, i));
    else if constexpr (std::same_as<T, std::vector<uint32_t>>)
      for (int i = 0; i < reflection->FieldSize(message, field); ++i)
        value.push_back(reflection->GetRepeatedUInt32(message, field, i));
    else if constexpr (std::same_as<T, std::vector<std::string>>)
      for (int i = 0; i < reflection->FieldSize(message, field); ++i)
        value.push_back(reflection->GetRepeatedString(message, field, i));
    else if constexpr (GroupList<T>)
      for (int i = 0; i < reflection->FieldSize(message, field); ++i)
        fields(value.emplace_back(), FromProto{reflection->GetRepeatedMessage(message, field, i)});
    else if constexpr (std::is_enum_v<T>)
      value = static_cast<T>(reflection->GetEnumValue(message, field));
    else if constexpr (std::same_as<T, bool>)
      value = reflection->GetBool(message, field);
    else if constexpr (std::same_as<T, uint32_t>)
      value = reflection->GetUInt32(message, field);
    else if constexpr (std::same_as<T, uint64_t>)
      value = reflection->GetUInt64(message, field);
    else if constexpr (std::same_as<T, double>)
      value = reflection->GetDouble(message, field);
    else
      value = reflection->GetString(message, field);
  }
};

struct ToProto {
  Message& message;

  template <typename T>
  void operator()(const char* name, T& value) const {
    const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    const auto* reflection = message.GetReflection();
    if constexpr (Group<T>)
      fields(value, ToProto{*reflection->MutableMessage(&message, field)});
    else if constexpr (std::same_as<T, std::vector<double>>)
      for (const double element : value) reflection->AddDouble(&message, field, element);
    else if constexpr (std::same_as<T, std::vector<uint32_t>>)
      for (const uint32_t element : value) reflection->AddUInt32(&message, field, element);
    else if constexpr (std::same_as<T, std::vector<std::string>>)
      for (const std::string& element : value) reflection->AddString(&message, field, element);
    else if constexpr (GroupList<T>)
      for (auto& element : value)
        fields(element, ToProto{*reflection->AddMessage(&message, field)});
    else if constexpr (std::is_enum_v<T>)
      reflection->SetEnumValue(&message, field, static_cast<int>(value));
    else if constexpr (std::same_as<T, bool>)
      reflection->SetBool(&message, field, value);
    else if constexpr (std::same_as<T, uint32_t>)
      reflection->SetUInt32(&message, field, value);
    else if constexpr (std::same_as<T, uint64_t>)
      reflection->SetUInt64(&message, field, value);
    else if constexpr (std::same_as<T, double>)
      reflection->SetDouble(&message, field, value);
    else
      reflection->SetString(&message, field, value);
  }
};

Job from_proto(const proto::Job& message) {
  Job job;
  fields(job, FromProto{message});
  return job;
}

// What a job leaves to its model.
void fill_in_model(const proto::Job& message, Job& job) {
  const ModelEntry* model = find_model(job.model.name);
  if (!model) return;
  if (!message.model().has_dropout()) job.model.dropout = model->dropout;
  if (!message.model().has_batch_norm_epsilon())
    job.model.batch_norm_epsilon = model->batch_norm_epsilon;
}

// Every field is set, so that the text shows all effective values.
proto::Job to_proto(Job job) {
  proto::Job message;
  fields(job, ToProto{message});
  return message;
}

// ---- Identity ----

// Keys that job.proto marks "not part of the identity"; a final dot is a whole group.
constexpr std::array<std::string_view, 14> kNotIdentity = {
    "name",         "transfer.init_from",   "data.path",   "data.follow_links", "stop_after_steps",
    "checkpoint.",  "reduction.bucket_mib", "log.",        "watchdog.",         "checks.",
    "gpu.autotune", "gpu.graphs",           "gpu.overlap", "gpu.merge"};

// Groups and fields that came after the first jobs: left at their defaults they are not digested,
// so that those jobs keep their identity.
constexpr std::array<std::string_view, 15> kLaterGroups = {"non_finite.",
                                                           "mixing.",
                                                           "data.train.pca_jitter",
                                                           "data.train.brightness",
                                                           "data.train.contrast",
                                                           "data.train.saturation",
                                                           "data.train.hue",
                                                           "data.apply_exif_orientation",
                                                           "data.shuffle",
                                                           "data.window_shards",
                                                           "model.graph",
                                                           "data.only_classes",
                                                           "data.images_per_class",
                                                           "optimizer.group",
                                                           "transfer."};

bool changes_result(std::string_view key) {
  return std::none_of(kNotIdentity.begin(), kNotIdentity.end(), [&](std::string_view excluded) {
    return excluded.back() == '.' ? key.starts_with(excluded) : key == excluded;
  });
}

struct KeyValue {
  std::string key, value;
};

// One element of a list as text; a group's fields in the order of job.proto.
std::string element_text(const Message& group, const FieldDescriptor* field, int i) {
  const auto* reflection = group.GetReflection();
  std::string text;
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE)
    return fmt::format("{}", reflection->GetRepeatedDouble(group, field, i));
  if (!field->message_type()) {
    google::protobuf::TextFormat::PrintFieldValueToString(group, field, i, &text);
    return text;
  }
  for_each_field(reflection->GetRepeatedMessage(group, field, i),
                 [&](const std::string& key, const Message& inner, const FieldDescriptor* own) {
                   std::string value;
                   if (own->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE)
                     value = fmt::format("{}", inner.GetReflection()->GetDouble(inner, own));
                   else
                     google::protobuf::TextFormat::PrintFieldValueToString(inner, own, -1, &value);
                   text += fmt::format("{}{}: {}", text.empty() ? "" : " ", key, value);
                 });
  return "{" + text + "}";
}

// Every field with its value, in the order of job.proto; a list is one value. Numbers are written
// with as many digits as tell them apart.
std::vector<KeyValue> flatten(const Job& job) {
  std::vector<KeyValue> out;
  std::string list = " ";  // of groups: its fields are part of its own value
  const auto add = [&](const std::string& key, const Message& group, const FieldDescriptor* field) {
    const auto* reflection = group.GetReflection();
    if (key.starts_with(list)) return;
    if (field->message_type() && field->is_repeated()) list = key + ".";
    if (field->message_type() && !field->is_repeated()) return;
    std::string value;
    if (field->is_repeated()) {
      std::vector<std::string> values;
      for (int i = 0; i < reflection->FieldSize(group, field); ++i)
        values.push_back(element_text(group, field, i));
      value = fmt::format("[{}]", fmt::join(values, ", "));
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      value = fmt::format("{}", reflection->GetDouble(group, field));
    } else {
      google::protobuf::TextFormat::PrintFieldValueToString(group, field, -1, &value);
    }
    out.push_back({key, value});
  };
  for_each_field(to_proto(job), add);
  return out;
}

// The network of one's own in the file that model.name says.
void read_network(Job& job) {
  const ops::Graph graph = load_graph(job.model.name);
  job.model.graph = to_text(graph);
  job.model.name = graph.name.empty() ? "network" : graph.name;
}

// A job without the checks of its values: what a text says.
Job read_unchecked(std::string_view text, const std::string& source) {
  Mistakes mistakes(source);
  proto::Job message;
  read_job_text(text, message, mistakes);
  mistakes.throw_if_any();
  return from_proto(message);
}

}  // namespace

Job load_job(const std::string& path, const std::vector<std::string>& sets,
             std::string_view device) {
  std::string text;
  try {
    text = read_text(path, kMaxFileBytes);
  } catch (const ReadError& error) {
    fail(error.code(), "{}; give the job file with --job (trainer/recipes/ has examples)",
         error.what());
  } catch (const Error& error) {
    fail(ExitCode::kBadJob, "{}", error.what());
  }
  Job job = parse_job(text, path, sets, device);
  // A network that is there already may have any name.
  if (job.model.graph.empty() && job.model.name.ends_with(".txtpb")) read_network(job);
  // A run writes it and reads it again.
  if (const size_t bytes = to_text(job).size(); bytes > kMaxFileBytes)
    fail(ExitCode::kBadJob, "{}: has {} bytes as a run writes it; a job has at most {}",
         printable(path), bytes, kMaxFileBytes);
  return job;
}

Job parse_job(std::string_view text, const std::string& source,
              const std::vector<std::string>& sets, std::string_view device) {
  Mistakes mistakes(printable(source));
  if (text.size() > kMaxFileBytes)
    fail(ExitCode::kBadJob, "{}: has {} bytes; a job has at most {}", printable(source),
         text.size(), kMaxFileBytes);
  proto::Job message;
  read_job_text(text, message, mistakes);
  for (const std::string& set : sets) apply_set(set, message, mistakes);
  Job job = from_proto(message);
  fill_in_model(message, job);
  check(job, device, mistakes);
  mistakes.throw_if_any();
  return job;
}

std::string to_text(const Job& job) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseShortRepeatedPrimitives(true);
  std::string text;
  if (!printer.PrintToString(to_proto(job), &text))
    fail(ExitCode::kFault, "the job cannot be written as text");
  return text;
}

std::string identity_digest(const Job& job, std::string_view dataset_digest) {
  Sha256 sha;
  const std::vector<KeyValue> fields = flatten(job), defaults = flatten(Job());
  const auto is_default = [&](std::string_view group) {
    for (size_t i = 0; i < fields.size(); ++i)
      if (fields[i].key.starts_with(group) && changes_result(fields[i].key) &&
          fields[i].value != defaults[i].value)
        return false;
    return true;
  };
  for (const KeyValue& field : fields) {
    const auto* later = std::ranges::find_if(
        kLaterGroups, [&](auto group) { return field.key.starts_with(group); });
    if (later != kLaterGroups.end() && is_default(*later)) continue;
    if (changes_result(field.key)) sha.update(fmt::format("{}={}\n", field.key, field.value));
  }
  return sha.update("dataset=").update(dataset_digest).hex();
}

std::vector<JobDifference> differing_keys(std::string_view old_text, std::string_view new_text) {
  const std::vector<KeyValue> before = flatten(read_unchecked(old_text, "the old job"));
  const std::vector<KeyValue> after = flatten(read_unchecked(new_text, "the new job"));
  std::vector<JobDifference> differences;
  for (size_t i = 0; i < before.size(); ++i)
    if (before[i].value != after[i].value)
      differences.push_back(
          {before[i].key, before[i].value, after[i].value, changes_result(before[i].key)});
  return differences;
}

}  // namespace convoy::trainer
