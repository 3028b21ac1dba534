#include "trainer/job.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <initializer_list>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "proto/job.pb.h"
#include "trainer/file.h"
#include "trainer/text.h"

namespace convoy::trainer {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::io::Tokenizer;

constexpr size_t kMaxFileBytes = size_t{1} << 20;
constexpr size_t kMaxProblems = 50;

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
}

void fields(Job::Reduction& r, auto&& visit) {
  visit("order", r.order);
  visit("bucket_mib", r.bucket_mib);
}

void fields(Job::Logging& l, auto&& visit) {
  visit("every_steps", l.every_steps);
  visit("samples", l.samples);
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
}

template <typename T>
concept Group = requires(T& t) {
  fields(t, [](const char*, auto&) {});
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

// Every field is set, so that the text shows all effective values.
proto::Job to_proto(Job job) {
  proto::Job message;
  fields(job, ToProto{message});
  return message;
}

// ---- Names ----

std::string join(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

// "data", "data.path", ...: every group and field below `type`.
void list_keys(const google::protobuf::Descriptor* type, const std::string& prefix,
               std::vector<std::string>& keys) {
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    const std::string key = join(prefix, field->name());
    keys.push_back(key);
    if (field->message_type()) list_keys(field->message_type(), key, keys);
  }
}

// The nearest key, by its whole path or, one edit dearer, by its last word alone ("learning_rate"
// at the top of the file).
std::string nearest_key(std::string_view key) {
  key = key.substr(0, 100);  // the cost is a product of lengths, and the key comes from outside
  const auto last = [](std::string_view path) { return path.substr(path.rfind('.') + 1); };
  std::vector<std::string> keys;
  list_keys(proto::Job::descriptor(), "", keys);
  std::string best;
  size_t best_distance = std::numeric_limits<size_t>::max();
  for (const std::string& candidate : keys) {
    const size_t distance =
        std::min(edit_distance(key, candidate), edit_distance(last(key), last(candidate)) + 1);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

// ---- Mistakes ----

constexpr const char* kSet = "--set";  // the place of what was set there

// Where a value came from, and what is wrong with it. Everything is collected; nothing is thrown
// before the end.
class Problems {
 public:
  explicit Problems(std::string source) : source_(std::move(source)) {}

  std::string at(int line, int column) const {
    return fmt::format("{}:{}:{}", source_, line + 1, column + 1);
  }
  // Remembers where `key` was set, for the checks that compare several keys.
  void remember(const std::string& key, const std::string& where) { origin_[key] = where; }
  // Where `key` was set in the file or the command line, if it was.
  const std::string* origin(const std::string& key) const {
    const auto found = origin_.find(key);
    return found == origin_.end() ? nullptr : &found->second;
  }

  void add(const std::string& where, const std::string& key, const std::string& what) {
    if (!key.empty()) bad_.insert(key);
    if (++count_ > kMaxProblems) return;
    const std::string_view between = where == kSet ? " " : ": ";
    text_ += fmt::format("\n  {}{}{}: {}", where, key.empty() ? "" : between, printable(key), what);
  }
  void unreadable() { readable_ = false; }

  // A check over the values of `keys`; silent where one of them was wrong in itself or the file
  // could not be read to its end. Reports at the first of the keys that somebody set.
  void require(bool holds, std::initializer_list<const char*> keys, const std::string& what) {
    if (holds || !readable_) return;
    const std::string* where = &source_;
    const char* named = *keys.begin();
    for (const char* key : keys) {
      if (bad_.contains(key)) return;
      if (where == &source_ && origin(key)) {
        where = origin(key);
        named = key;
      }
    }
    add(*where, named, what);
  }

  void throw_if_any() const {
    if (count_ == 0) return;
    std::string more;
    if (count_ > kMaxProblems) more = fmt::format("\n  ... and {} more", count_ - kMaxProblems);
    fail(ExitCode::kBadJob, "{}: {} mistake{} in the job:{}{}", source_, count_,
         count_ == 1 ? "" : "s", text_, more);
  }

 private:
  std::string source_;
  std::map<std::string, std::string> origin_;
  std::set<std::string, std::less<>> bad_;
  std::string text_;
  size_t count_ = 0;
  bool readable_ = true;
};

// ---- One value ----

// A value as written: in the file its text tells what it is, on the command line it may be any.
struct Value {
  enum class Kind { kWord, kNumber, kQuoted, kCommandLine };
  Kind kind;
  std::string text;
};

template <typename T>
bool parse_whole(const std::string& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

// Sets (or appends to) a field; returns what is wrong, empty when all is well.
std::string set_value(Message& message, const FieldDescriptor* field, const Value& value) {
  const auto* reflection = message.GetReflection();
  const bool quoted = value.kind == Value::Kind::kQuoted;
  const std::string shown =
      quoted ? fmt::format("the text \"{}\"", printable(value.text)) : printable(value.text);
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      if (!quoted && value.kind != Value::Kind::kCommandLine)
        return fmt::format("expects a text in quotes, not {}", shown);
      if (value.text.find('\0') != std::string::npos) return "holds a zero byte";
      reflection->SetString(&message, field, value.text);
      return "";
    case FieldDescriptor::CPPTYPE_BOOL: {
      const std::string word = quoted ? "" : lower(value.text);
      if (word != "true" && word != "false" && word != "1" && word != "0")
        return fmt::format("expects true or false, not {}", shown);
      reflection->SetBool(&message, field, word == "true" || word == "1");
      return "";
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      std::string known;
      for (int i = 0; i < field->enum_type()->value_count(); ++i) {
        const auto* candidate = field->enum_type()->value(i);
        if (!quoted && lower(candidate->name()) == lower(value.text)) {
          reflection->SetEnum(&message, field, candidate);
          return "";
        }
        known += (i ? ", " : "") + candidate->name();
      }
      return fmt::format("expects one of {}, not {}", known, shown);
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      uint32_t number = 0;
      if (quoted || !parse_whole(value.text, number))
        return fmt::format("expects a whole number from 0 to {}, not {}",
                           std::numeric_limits<uint32_t>::max(), shown);
      reflection->SetUInt32(&message, field, number);
      return "";
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t number = 0;
      if (quoted || !parse_whole(value.text, number))
        return fmt::format("expects a whole number from 0 to {}, not {}",
                           std::numeric_limits<uint64_t>::max(), shown);
      reflection->SetUInt64(&message, field, number);
      return "";
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double number = 0;
      if (quoted || !parse_whole(value.text, number) || !std::isfinite(number))
        return fmt::format("expects a finite number, not {}", shown);
      number += 0.0;  // -0 is 0
      if (field->is_repeated())
        reflection->AddDouble(&message, field, number);
      else
        reflection->SetDouble(&message, field, number);
      return "";
    }
    default:
      fail(ExitCode::kFault, "job.proto: field {} has a type that job.cpp does not read",
           field->full_name());
  }
}

// ---- The file ----

// Reads protobuf's text format. google::protobuf::TextFormat stops at the first value that is
// wrong; this walks on to the end, so that every mistake is named, and stops only where the text
// itself cannot be followed (a bracket or a colon is missing).
class TextReader : google::protobuf::io::ErrorCollector {
 public:
  TextReader(std::string_view text, Problems& problems)
      : problems_(problems),
        stream_(text.data(), static_cast<int>(text.size())),
        tokens_(&stream_, this) {
    tokens_.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
    tokens_.set_allow_f_after_float(true);
  }

  void read(proto::Job& job) {
    tokens_.Next();
    try {
      read_fields(job, "", "");
    } catch (const Unreadable&) {
      problems_.unreadable();
    }
  }

 private:
  struct Unreadable {};

  void AddError(int line, int column, const std::string& message) override {
    problems_.add(problems_.at(line, column), "", message);
    problems_.unreadable();
  }

  const Tokenizer::Token& token() { return tokens_.current(); }
  bool at_end() { return token().type == Tokenizer::TYPE_END; }
  std::string here() { return problems_.at(token().line, token().column); }
  bool is(std::string_view symbol) {
    return token().type == Tokenizer::TYPE_SYMBOL && token().text == symbol;
  }
  bool take(std::string_view symbol) {
    if (!is(symbol)) return false;
    tokens_.Next();
    return true;
  }
  std::string found() {
    if (at_end()) return "the end of the file";
    return fmt::format("\"{}\"", printable(token().text, 60));
  }
  [[noreturn]] void unreadable(const std::string& expected) {
    problems_.add(here(), "", fmt::format("expected {}, found {}", expected, found()));
    throw Unreadable{};
  }

  // Fields up to `closing` ("" is the end of the file). The depth is that of the schema.
  void read_fields(Message& message, const std::string& prefix, std::string_view closing) {
    std::map<std::string, int> seen;
    while (closing.empty() ? !at_end() : !is(closing)) {
      if (token().type != Tokenizer::TYPE_IDENTIFIER)
        unreadable(closing.empty() ? "a key" : fmt::format("a key or \"{}\"", closing));
      const std::string name = token().text, key = join(prefix, name), where = here();
      const int line = token().line;
      const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
      tokens_.Next();
      const bool colon = take(":");
      const bool group = is("{") || is("<");
      if (!colon && !group) unreadable(fmt::format("\":\" or \"{{\" after {}", printable(key)));
      if (!field) {
        problems_.add(where, key, fmt::format("unknown key; the nearest is {}", nearest_key(key)));
        skip_value();
      } else if (const auto [first, fresh] = seen.try_emplace(name, line);
                 !fresh && !field->is_repeated()) {
        problems_.add(where, key,
                      fmt::format("set a second time; the first is in line {}", first->second + 1));
        skip_value();
      } else if (field->message_type()) {
        problems_.remember(key, where);
        if (group) {
          const std::string end = is("{") ? "}" : ">";
          tokens_.Next();
          read_fields(*message.GetReflection()->MutableMessage(&message, field), key, end);
          tokens_.Next();
        } else {
          problems_.add(where, key, fmt::format("is a group of fields: {} {{ ... }}", name));
          skip_value();
        }
      } else if (group) {
        problems_.add(where, key, fmt::format("is one value, not a group: {}: ...", name));
        skip_value();
      } else {
        problems_.remember(key, where);
        read_values(message, field, key);
      }
      if (!take(",")) take(";");
    }
  }

  void read_values(Message& message, const FieldDescriptor* field, const std::string& key) {
    if (field->is_repeated() && take("[")) {
      if (take("]")) return;
      do read_value(message, field, key);
      while (take(","));
      if (!take("]")) unreadable("\",\" or \"]\"");
    } else if (is("[")) {
      problems_.add(here(), key, "is one value, not a list");
      skip_value();
    } else {
      read_value(message, field, key);
    }
  }

  void read_value(Message& message, const FieldDescriptor* field, const std::string& key) {
    const std::string where = here();
    const std::string wrong = set_value(message, field, take_value());
    if (!wrong.empty()) problems_.add(where, key, wrong);
  }

  Value take_value() {
    const bool negative = take("-");
    Value value{Value::Kind::kWord, token().text};
    if (token().type == Tokenizer::TYPE_STRING && !negative) {
      value = {Value::Kind::kQuoted, ""};
      for (; token().type == Tokenizer::TYPE_STRING; tokens_.Next())  // adjacent strings are one
        Tokenizer::ParseStringAppend(token().text, &value.text);
      return value;
    }
    if (token().type == Tokenizer::TYPE_INTEGER) {  // decimal, 0x hexadecimal or 0 octal
      uint64_t number = 0;
      value.kind = Value::Kind::kNumber;
      if (Tokenizer::ParseInteger(token().text, std::numeric_limits<uint64_t>::max(), &number))
        value.text = std::to_string(number);
    } else if (token().type == Tokenizer::TYPE_FLOAT) {
      value.kind = Value::Kind::kNumber;
      if (value.text.back() == 'f' || value.text.back() == 'F') value.text.pop_back();
    } else if (token().type != Tokenizer::TYPE_IDENTIFIER) {
      unreadable("a value");
    }
    if (negative) value.text.insert(value.text.begin(), '-');
    tokens_.Next();
    return value;
  }

  // Steps over the value of a key that cannot be used: a list, a group however deep, or one value.
  void skip_value() {
    if (!is("{") && !is("<") && !is("[")) {
      take_value();
      return;
    }
    size_t depth = 0;
    do {
      if (at_end()) unreadable("a closing bracket");
      if (is("{") || is("<") || is("[")) ++depth;
      if (is("}") || is(">") || is("]")) --depth;
      tokens_.Next();
    } while (depth > 0);
  }

  Problems& problems_;
  google::protobuf::io::ArrayInputStream stream_;
  Tokenizer tokens_;
};

// ---- The command line ----

void apply_set(proto::Job& job, const std::string& set, Problems& problems) {
  const size_t equals = set.find('=');
  const std::string key = set.substr(0, equals);
  if (equals == std::string::npos || key.empty()) {
    problems.add(kSet, set, "expects key=value, e.g. optimizer.learning_rate=0.1");
    return;
  }
  Message* message = &job;
  const FieldDescriptor* field = nullptr;
  for (size_t begin = 0; begin <= key.size();) {
    const size_t end = std::min(key.find('.', begin), key.size());
    if (field) {
      message = field->message_type() ? message->GetReflection()->MutableMessage(message, field)
                                      : nullptr;
    }
    field = message ? message->GetDescriptor()->FindFieldByName(key.substr(begin, end - begin))
                    : nullptr;
    if (!field) {
      problems.add(kSet, key, fmt::format("unknown key; the nearest is {}", nearest_key(key)));
      return;
    }
    begin = end + 1;
  }
  if (field->message_type()) {
    problems.add(kSet, key,
                 "is a group of fields; set one of them, e.g. " + key + "." +
                     field->message_type()->field(0)->name());
    return;
  }
  problems.remember(key, kSet);
  const std::string value = set.substr(equals + 1);
  std::vector<std::string> elements = {value};
  if (field->is_repeated()) {
    message->GetReflection()->ClearField(message, field);
    elements.clear();
    for (size_t begin = 0; !value.empty() && begin <= value.size();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      elements.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  for (const std::string& element : elements) {
    const std::string wrong = set_value(*message, field, {Value::Kind::kCommandLine, element});
    if (!wrong.empty()) problems.add(kSet, key, wrong);
  }
}

// ---- What values mean together ----

void check(const Job& job, std::string_view device, Problems& problems) {
  const auto whole = [&](const char* key, uint64_t value, uint64_t min, uint64_t max) {
    problems.require(value >= min && value <= max, {key},
                     fmt::format("is {}; it must be from {} to {}", value, min, max));
  };
  const auto number = [&](const char* key, double value, bool inside, const char* interval) {
    problems.require(inside, {key}, fmt::format("is {}; it must be {}", value, interval));
  };
  const auto not_negative = [&](const char* key, double value) {
    number(key, value, value >= 0, "at least 0");
  };
  const auto positive = [&](const char* key, double value) {
    number(key, value, value > 0, "above 0");
  };
  const auto below_one = [&](const char* key, double value) {
    number(key, value, value >= 0 && value < 1, "at least 0 and below 1");
  };
  const auto share = [&](const char* key, double value) {
    number(key, value, value >= 0 && value <= 1, "from 0 to 1");
  };

  problems.require(!job.model.name.empty(), {"model.name"},
                   "is missing; `convoy model list` shows the names");
  whole("workers", job.workers, 0, 65536);
  whole("batch_per_worker", job.batch_per_worker, 1, 65536);
  whole("threads_per_worker", job.threads_per_worker, 0, 1024);
  whole("epochs", job.epochs, 1, 1000000);
  problems.require(device != "cpu" || (job.precision != Job::Precision::kTf32 &&
                                       job.precision != Job::Precision::kFp16),
                   {"precision"}, "TF32 and FP16 need --device cuda; on cpu use FP32 or BF16");

  const Job::Data& data = job.data;
  const Job::Data::Train& train = data.train;
  using Crop = Job::Data::Train::Crop;
  problems.require(!data.path.empty() || data.format == Job::Data::Format::kSynthetic,
                   {"data.path"}, "is missing; give the dataset's folder here or with --data");
  whole("data.classes", data.classes, 0, 1u << 20);
  problems.require(train.size > 0 || data.format != Job::Data::Format::kImageFolder,
                   {"data.train.size", "data.format"},
                   "is 0, but the images of a folder have no common size; give one, e.g. 224");
  whole("data.train.size", train.size, 0, 8192);
  number("data.train.area_min", train.area_min, train.area_min > 0 && train.area_min <= 1,
         "above 0 and at most 1");
  number("data.train.area_max", train.area_max, train.area_max > 0 && train.area_max <= 1,
         "above 0 and at most 1");
  problems.require(train.area_min <= train.area_max, {"data.train.area_min", "data.train.area_max"},
                   fmt::format("area_min {} is above area_max {}", train.area_min, train.area_max));
  positive("data.train.ratio_min", train.ratio_min);
  positive("data.train.ratio_max", train.ratio_max);
  problems.require(
      train.ratio_min <= train.ratio_max, {"data.train.ratio_min", "data.train.ratio_max"},
      fmt::format("ratio_min {} is above ratio_max {}", train.ratio_min, train.ratio_max));
  whole("data.train.scale_min", train.scale_min, 1, 8192);
  whole("data.train.scale_max", train.scale_max, 1, 8192);
  problems.require(
      train.scale_min <= train.scale_max, {"data.train.scale_min", "data.train.scale_max"},
      fmt::format("scale_min {} is above scale_max {}", train.scale_min, train.scale_max));
  problems.require(train.crop != Crop::kScaleAndCrop || train.size <= train.scale_min,
                   {"data.train.size", "data.train.scale_min"},
                   fmt::format("a crop of {} pixels does not fit into a shorter side of scale_min "
                               "{}",
                               train.size, train.scale_min));
  whole("data.train.pad", train.pad, 0, 8192);
  whole("data.eval.resize", data.eval.resize, 0, 8192);
  whole("data.eval.size", data.eval.size, 0, 8192);
  const uint32_t eval_size = data.eval.size ? data.eval.size : train.size;
  problems.require(data.eval.resize == 0 || eval_size <= data.eval.resize,
                   {"data.eval.resize", "data.eval.size", "data.train.size"},
                   fmt::format("evaluation crops {} pixels from a shorter side of {}; make "
                               "data.eval.resize at least as large, or 0",
                               eval_size, data.eval.resize));
  problems.require(data.mean.size() == data.std.size(), {"data.mean", "data.std"},
                   fmt::format("mean has {} values and std {}", data.mean.size(), data.std.size()));
  problems.require(std::all_of(data.std.begin(), data.std.end(), [](double s) { return s > 0; }),
                   {"data.std"}, "must be above 0");
  problems.require(
      data.mean_subtraction == Job::Data::MeanSubtraction::kPerChannel || data.mean.empty(),
      {"data.mean", "data.mean_subtraction"},
      "has no effect unless data.mean_subtraction is PER_CHANNEL; leave it out");
  whole("data.max_pixels", data.max_pixels, 1, uint64_t{1} << 40);
  whole("data.synthetic_samples", data.synthetic_samples, 1, uint64_t{1} << 40);

  const Job::Model& model = job.model;
  share("model.batch_norm_momentum", model.batch_norm_momentum);
  number("model.batch_norm_epsilon", model.batch_norm_epsilon,
         model.batch_norm_epsilon > 0 && model.batch_norm_epsilon <= 1, "above 0 and at most 1");
  below_one("model.dropout", model.dropout);
  below_one("model.label_smoothing", model.label_smoothing);

  const Job::Optimizer& optimizer = job.optimizer;
  not_negative("optimizer.learning_rate", optimizer.learning_rate);
  whole("optimizer.base_batch", optimizer.base_batch, 1, 1u << 30);
  below_one("optimizer.momentum", optimizer.momentum);
  problems.require(!optimizer.nesterov || optimizer.momentum > 0,
                   {"optimizer.nesterov", "optimizer.momentum"},
                   "nesterov needs a momentum above 0");
  not_negative("optimizer.weight_decay", optimizer.weight_decay);
  positive("optimizer.trust_coefficient", optimizer.trust_coefficient);
  not_negative("optimizer.lars_epsilon", optimizer.lars_epsilon);
  not_negative("optimizer.clip_norm", optimizer.clip_norm);
  below_one("optimizer.ema_decay", optimizer.ema_decay);

  const Job::Schedule& schedule = job.schedule;
  const auto& milestones = schedule.milestones;
  problems.require(std::adjacent_find(milestones.begin(), milestones.end(),
                                      std::greater_equal<>()) == milestones.end() &&
                       (milestones.empty() || milestones.front() > 0),
                   {"schedule.milestones"},
                   fmt::format("must be above 0 and rising, not {}", fmt::join(milestones, ", ")));
  positive("schedule.gamma", schedule.gamma);
  not_negative("schedule.warmup_epochs", schedule.warmup_epochs);
  problems.require(schedule.warmup_epochs <= job.epochs, {"schedule.warmup_epochs", "epochs"},
                   fmt::format("a warm-up of {} epochs is longer than the run of {} (set "
                               "schedule.warmup_epochs too)",
                               schedule.warmup_epochs, job.epochs));
  share("schedule.warmup_start_factor", schedule.warmup_start_factor);
  share("schedule.end_factor", schedule.end_factor);
  positive("schedule.power", schedule.power);
  whole("schedule.patience", schedule.patience, 1, 1000000);
  below_one("schedule.threshold", schedule.threshold);
  problems.require(
      schedule.kind != Job::Schedule::Kind::kPlateau || job.evaluation.every_epochs > 0,
      {"evaluation.every_epochs", "schedule.kind"},
      "PLATEAU needs evaluations during the run; evaluation.every_epochs must not be 0");

  whole("evaluation.batch", job.evaluation.batch, 1, 65536);
  not_negative("checkpoint.every_minutes", job.checkpoint.every_minutes);
  whole("checkpoint.keep", job.checkpoint.keep, 1, 1000000);
  number("reduction.bucket_mib", job.reduction.bucket_mib,
         job.reduction.bucket_mib > 0 && job.reduction.bucket_mib <= 4096,
         "above 0 and at most 4096");
  whole("log.every_steps", job.log.every_steps, 1, std::numeric_limits<uint32_t>::max());
}

proto::Job read_proto(std::string_view text, Problems& problems) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // a byte order mark
  proto::Job message;
  TextReader(text, problems).read(message);
  return message;
}

// ---- Identity ----

// Keys that job.proto marks "not part of the identity"; a final dot is a whole group.
constexpr std::array<std::string_view, 6> kNotIdentity = {
    "name", "data.path", "stop_after_steps", "checkpoint.", "reduction.bucket_mib", "log."};

bool changes_result(std::string_view key) {
  return std::none_of(kNotIdentity.begin(), kNotIdentity.end(), [&](std::string_view excluded) {
    return excluded.back() == '.' ? key.starts_with(excluded) : key == excluded;
  });
}

struct KeyValue {
  std::string key, value;
};

// Every field with its value, in the order of job.proto. Numbers are written with as many digits as
// tell them apart.
void flatten(const Message& message, const std::string& prefix, std::vector<KeyValue>& out) {
  const auto* reflection = message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    const std::string key = join(prefix, field->name());
    if (field->message_type()) {
      flatten(reflection->GetMessage(message, field), key, out);
    } else if (field->is_repeated()) {
      std::vector<double> values;
      for (int j = 0; j < reflection->FieldSize(message, field); ++j)
        values.push_back(reflection->GetRepeatedDouble(message, field, j));
      out.push_back({key, fmt::format("[{}]", fmt::join(values, ", "))});
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      out.push_back({key, fmt::format("{}", reflection->GetDouble(message, field))});
    } else {
      std::string value;
      google::protobuf::TextFormat::PrintFieldValueToString(message, field, -1, &value);
      out.push_back({key, value});
    }
  }
}

std::vector<KeyValue> flatten(const Job& job) {
  std::vector<KeyValue> out;
  flatten(to_proto(job), "", out);
  return out;
}

// A job without the checks of its values: what a text says.
Job read_unchecked(std::string_view text, const std::string& source) {
  Problems problems(source);
  const proto::Job message = read_proto(text, problems);
  problems.throw_if_any();
  return from_proto(message);
}

}  // namespace

Job load_job(const std::string& path, const std::vector<std::string>& sets,
             std::string_view device) {
  std::string text;
  try {
    text = read_text(path, kMaxFileBytes);
  } catch (const Error& error) {
    fail(ExitCode::kBadJob, "{}; give the job file with --job (trainer/recipes/ has examples)",
         error.what());
  }
  return parse_job(text, path, sets, device);
}

Job parse_job(std::string_view text, const std::string& source,
              const std::vector<std::string>& sets, std::string_view device) {
  Problems problems(printable(source));
  if (text.size() > kMaxFileBytes)
    fail(ExitCode::kBadJob, "{}: has {} bytes; a job has at most {}", printable(source),
         text.size(), kMaxFileBytes);
  proto::Job message = read_proto(text, problems);
  for (const std::string& set : sets) apply_set(message, set, problems);
  Job job = from_proto(message);
  check(job, device, problems);
  problems.throw_if_any();
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
  for (const KeyValue& field : flatten(job))
    if (changes_result(field.key)) sha.update(fmt::format("{}={}\n", field.key, field.value));
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
