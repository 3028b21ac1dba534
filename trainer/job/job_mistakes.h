// The mistakes in a job: all are collected, each with its place, and said at once.
#pragma once

#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>

namespace convoy::trainer {

struct Job;

class Mistakes {
 public:
  // What was set by --set stands there, without a line.
  static constexpr const char* kSet = "--set";

  // `source`: the file, as messages name it.
  explicit Mistakes(std::string source) : source_(std::move(source)) {}

  // A place in the file; both count from 0.
  std::string at(int line, int column) const;
  // Remembers where `key` was set, for the checks that compare several keys.
  void remember(const std::string& key, const std::string& where) { origin_[key] = where; }
  void add(const std::string& where, const std::string& key, const std::string& what);
  // Whether further ones are counted, but not said: their texts need not be made.
  bool full() const;
  // The file could not be followed to its end: what it leaves out is no mistake.
  void unreadable() { readable_ = false; }
  // A check over the values of `keys`; silent where one of them was wrong in itself or the file
  // could not be read to its end. Reports at the first of the keys that somebody set.
  void require(bool holds, std::initializer_list<const char*> keys, const std::string& what);

  // Throws Error (kBadJob) with a line for every mistake.
  void throw_if_any() const;

 private:
  std::string source_;
  std::map<std::string, std::string, std::less<>> origin_;
  std::set<std::string, std::less<>> bad_;
  std::string text_;
  size_t count_ = 0;
  bool readable_ = true;
};

// The values' ranges, and what they mean together.
void check(const Job& job, std::string_view device, Mistakes& mistakes);

}  // namespace convoy::trainer
