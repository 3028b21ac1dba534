#include "data_loader/listing.h"

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

#include "data_loader/coefficient_file.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

bool ends_with_lower(std::string_view name, std::string_view lower) {
  if (name.size() < lower.size()) return false;
  name.remove_prefix(name.size() - lower.size());
  return std::equal(name.begin(), name.end(), lower.begin(), [](char a, char b) {
    return (a >= 'A' && a <= 'Z' ? static_cast<char>(a - 'A' + 'a') : a) == b;
  });
}

template <typename T>
bool take(std::string_view& record, T& value) {
  const auto [end, error] = std::from_chars(record.data(), record.data() + record.size(), value);
  if (error != std::errc()) return false;
  record.remove_prefix(static_cast<size_t>(end - record.data()));
  if (!record.empty()) record.remove_prefix(1);
  return true;
}

}  // namespace

bool is_image_name(std::string_view name) {
  return ends_with_lower(name, ".jpg") || ends_with_lower(name, ".jpeg") ||
         ends_with_lower(name, ".png") || ends_with_lower(name, kCoefficientSuffix);
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string_view::npos;
}

bool next_record(std::string_view& text, std::string_view& record) {
  const size_t end = text.find('\0');
  if (end == std::string_view::npos) return false;
  record = text.substr(0, end);
  text.remove_prefix(end + 1);
  return true;
}

bool take_number(std::string_view& record, uint64_t& value) {
  return take(record, value);
}
bool take_number(std::string_view& record, int64_t& value) {
  return take(record, value);
}

std::string index_path(const std::string& cache_folder, std::string_view kind,
                       const std::string& root, std::string_view terms) {
  if (cache_folder.empty()) return {};
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(root.c_str(), nullptr), &::free);
  return fmt::format(
      "{}/{}-{}.index", cache_folder, kind,
      sha256_hex(fmt::format("{}\n{}", real ? real.get() : root, terms)).substr(0, 16));
}

bool is_settled(int64_t modified_ns) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::nanoseconds(now).count() - modified_ns >= 2'000'000'000;
}

void ListingDigest::add_class(uint64_t label, uint64_t images, std::string_view name) {
  fmt::format_to(std::back_inserter(pending_), "class {} {} {}:{}\n", label, images, name.size(),
                 name);
  flush();
}

void ListingDigest::add_image(uint64_t bytes, std::string_view name) {
  constexpr size_t kPiece = 1u << 16;
  fmt::format_to(std::back_inserter(pending_), "{} {}:{}\n", bytes, name.size(), name);
  if (pending_.size() > kPiece) flush();
}

std::string ListingDigest::hex() {
  flush();
  return sha_.hex();
}

void ListingDigest::flush() {
  sha_.update(pending_);
  pending_.clear();
}

void refuse_classes(const std::string& root, const std::vector<std::string>& names,
                    const std::string& what, const std::string& remedy) {
  constexpr size_t kMostSaid = 20;
  if (names.empty()) return;
  if (names.size() == 1)
    fail(ExitCode::kBadData, "{}/{}: {}: {}", printable(root), printable(names[0]), what, remedy);
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kMostSaid); ++i)
    list += fmt::format("{}\"{}\"", i == 0 ? "" : ", ", printable(names[i]));
  if (names.size() > kMostSaid) list += fmt::format(" and {} more", names.size() - kMostSaid);
  fail(ExitCode::kBadData, "{}: {} classes: {}: {}; {}", printable(root), names.size(), list, what,
       remedy);
}

void for_each_in_parallel(size_t n, size_t threads, const std::function<void(size_t)>& body) {
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr error;
  size_t error_at = std::numeric_limits<size_t>::max();
  const auto work = [&] {
    // Items are taken in order, so none before the lowest that fails is left out.
    for (size_t i = next++; i < n; i = next++) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < error_at) {
          error = std::current_exception();
          error_at = i;
        }
        next = n;
      }
    }
  };
  {
    std::vector<std::jthread> others;
    for (size_t t = 1; t < std::min(n, threads); ++t) others.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace convoy::data
