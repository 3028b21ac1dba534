#include "data_loader/tar.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "data_loader/files.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

// The fields of a header: ustar's, whose first hundred and more bytes all kinds of tar share.
struct Field {
  size_t at, bytes;
};
constexpr Field kName{0, 100}, kMode{100, 8}, kUid{108, 8}, kGid{116, 8}, kSize{124, 12},
    kTime{136, 12}, kChecksum{148, 8}, kMagic{257, 8}, kMajor{329, 8}, kMinor{337, 8},
    kPrefix{345, 155};
constexpr size_t kType = 156;

// Long names and pax headers are kept in memory; more is no name.
constexpr uint64_t kMaxExtension = uint64_t{1} << 20;

std::string_view text_of(std::string_view header, Field field) {
  const std::string_view text = header.substr(field.at, field.bytes);
  return text.substr(0, std::min(text.find('\0'), text.size()));
}

// The sum of the header's bytes with the checksum's own as blanks.
uint64_t checksum_of(std::string_view header, bool is_signed) {
  int64_t sum = 0;
  for (size_t i = 0; i < kTarBlock; ++i) {
    const char byte = i >= kChecksum.at && i < kChecksum.at + kChecksum.bytes ? ' ' : header[i];
    sum += is_signed ? int64_t{static_cast<signed char>(byte)}
                     : int64_t{static_cast<unsigned char>(byte)};
  }
  return static_cast<uint64_t>(sum);
}

// Octal digits with blanks around, or GNU's base 256 with the first bit set. False where it is
// neither or needs more than 63 bits.
bool number_of(std::string_view header, Field field, uint64_t& value) {
  std::string_view text = header.substr(field.at, field.bytes);
  value = 0;
  if ((static_cast<uint8_t>(text[0]) & 0x80) != 0) {
    if (static_cast<uint8_t>(text[0]) != 0x80) return false;  // negative, or 2^88 and more
    for (const char c : text.substr(1)) {
      if (value >> 55 != 0) return false;
      value = value << 8 | static_cast<uint8_t>(c);
    }
    return true;
  }
  while (!text.empty() && text[0] == ' ') text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\0')) text.remove_suffix(1);
  for (const char c : text) {
    if (c < '0' || c > '7' || value >> 60 != 0) return false;
    value = value << 3 | static_cast<uint64_t>(c - '0');
  }
  return true;
}

// "..", or a name that begins at the root.
bool leads_outside(std::string_view name) {
  if (name.starts_with('/')) return true;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return true;
    begin = end + 1;
  }
  return false;
}

class Lister {
 public:
  Lister(int fd, uint64_t bytes, const std::string& path) : fd_(fd), bytes_(bytes), path_(path) {}

  TarListing run(const std::function<void(const TarMember&, const ReadMember&)>& visit) {
    while (next_header()) {
      TarMember member{.header = first_header_};
      const uint64_t size = size_of_member();
      const char type = header_[kType];
      member.offset = at_ + kTarBlock;
      member.bytes = size;
      // A link's or a folder's size is not that of data behind it.
      const bool has_data = type < '1' || type > '6';
      if (has_data && size > bytes_ - member.offset)
        refuse(at_, fmt::format("the member of {} bytes goes beyond the end ({} bytes): it is cut "
                                "off",
                                size, bytes_));
      at_ = member.offset + (has_data ? size + tar_padding(size) : 0);
      if (take_extension(type, member)) continue;
      if (type == 'S' || is_sparse_)
        refuse(member.header, "a sparse file; pack it without (tar without --sparse)");
      member.name = name_of_member();
      forget_extensions();
      if (type != '0' && type != '\0' && type != '7') {
        ++listing_.skipped;
        continue;
      }
      if (leads_outside(member.name))
        refuse(member.header, fmt::format("the name \"{}\" leads outside", printable(member.name)));
      // Old tar: a folder is a file whose name ends in a slash.
      if (member.name.ends_with('/')) {
        ++listing_.skipped;
        continue;
      }
      visit(member, [&](size_t most) {
        return std::string(view(member.offset, std::min<uint64_t>(most, member.bytes)));
      });
    }
    return listing_;
  }

 private:
  [[noreturn]] void refuse(uint64_t at, const std::string& what) const {
    fail(ExitCode::kBadData, "{}, byte {}: {}", printable(path_), at, what);
  }

  // Bytes of the file, out of a window: headers and small members lie side by side.
  std::string_view view(uint64_t at, uint64_t bytes) {
    if (at < window_at_ || at + bytes > window_at_ + window_.size()) {
      constexpr uint64_t kWindow = 4096;
      window_.resize(std::min(std::max(bytes, kWindow), bytes_ - at));
      window_at_ = at;
      read_at(fd_, path_, at, window_.data(), window_.size());
    }
    return std::string_view(window_).substr(at - window_at_, bytes);
  }

  // The header at at_; false at the end of the archive.
  bool next_header() {
    if (at_ + kTarBlock > bytes_)
      refuse(at_, fmt::format("it ends in the middle ({} bytes, no mark of its end): it is cut off",
                              bytes_));
    header_ = view(at_, kTarBlock);
    if (header_.find_first_not_of('\0') == std::string::npos) return false;
    uint64_t sum = 0;
    if (!number_of(header_, kChecksum, sum) ||
        (sum != checksum_of(header_, false) && sum != checksum_of(header_, true)))
      refuse(at_, "no tar header (its checksum is another)");
    if (!is_extended_) first_header_ = at_;
    return true;
  }

  uint64_t size_of_member() {
    uint64_t size = 0;
    if (!number_of(header_, kSize, size)) refuse(at_, "a size that is no number of bytes");
    const char type = header_[kType];
    if (pax_size_ && type != 'x' && type != 'g' && type != 'L' && type != 'K') return *pax_size_;
    return size;
  }

  std::string name_of_member() const {
    std::string name = pax_path_.empty() ? long_name_ : pax_path_;
    if (name.empty()) {
      name = text_of(header_, kName);
      const std::string_view prefix = text_of(header_, kPrefix);
      const bool is_ustar = std::string_view(header_).substr(kMagic.at, 6) ==
                            std::string_view("ustar\0", 6);  // GNU's own has a blank there
      if (is_ustar && !prefix.empty()) name = fmt::format("{}/{}", prefix, name);
    }
    while (name.starts_with("./")) name.erase(0, 2);
    return name;
  }

  // True where the member was a header of the next one.
  bool take_extension(char type, const TarMember& member) {
    if (type != 'L' && type != 'K' && type != 'x' && type != 'g') return false;
    is_extended_ = true;
    if (member.bytes > kMaxExtension)
      refuse(first_header_, fmt::format("a name or extended header of {} bytes", member.bytes));
    if (type == 'x' || type == 'L') {
      const std::string text(view(member.offset, member.bytes));
      if (type == 'x')
        take_pax(text);
      else
        long_name_ = text.substr(0, text.find('\0'));
    }
    return true;
  }

  // Records "LENGTH KEY=VALUE\n".
  void take_pax(std::string_view text) {
    while (!text.empty() && text[0] != '\0') {
      uint64_t length = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
      const size_t digits = static_cast<size_t>(end - text.data());
      if (error != std::errc() || length > text.size() || length < digits + 3 ||
          text[digits] != ' ' || text[length - 1] != '\n')
        refuse(first_header_, "a damaged extended header");
      const std::string_view record = text.substr(digits + 1, length - digits - 2);
      const size_t equals = record.find('=');
      if (equals == std::string_view::npos) refuse(first_header_, "a damaged extended header");
      take_pax(record.substr(0, equals), record.substr(equals + 1));
      text.remove_prefix(length);
    }
  }

  void take_pax(std::string_view key, std::string_view value) {
    if (key == "path") {
      if (value.find('\0') != std::string_view::npos)
        refuse(first_header_, "a name with a zero byte");
      pax_path_ = value;
    }
    if (key.starts_with("GNU.sparse.")) is_sparse_ = true;
    if (key == "size") {
      uint64_t size = 0;
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), size);
      if (error != std::errc() || end != value.data() + value.size() || size >> 63 != 0)
        refuse(first_header_, "a size that is no number of bytes");
      pax_size_ = size;
    }
  }

  void forget_extensions() {
    long_name_.clear();
    pax_path_.clear();
    pax_size_.reset();
    is_sparse_ = is_extended_ = false;
  }

  const int fd_;
  const uint64_t bytes_;
  const std::string& path_;
  TarListing listing_;
  uint64_t at_ = 0, first_header_ = 0;
  std::string header_;
  std::string window_;
  uint64_t window_at_ = 0;
  std::string long_name_, pax_path_;
  std::optional<uint64_t> pax_size_;
  bool is_sparse_ = false;
  bool is_extended_ = false;  // the member has headers before its own
};

void put(std::string& header, Field field, std::string_view text) {
  std::copy(text.begin(), text.end(), header.begin() + static_cast<ptrdiff_t>(field.at));
}

// Octal digits and a zero byte.
std::string octal(uint64_t value, Field field) {
  return fmt::format("{:0{}o}", value, field.bytes - 1);
}

std::string plain_header(std::string_view prefix, std::string_view name, uint64_t bytes,
                         char type) {
  std::string header(kTarBlock, '\0');
  put(header, kName, name);
  put(header, kMode, octal(0644, kMode));
  put(header, kUid, octal(0, kUid));
  put(header, kGid, octal(0, kGid));
  put(header, kSize, octal(bytes, kSize));
  put(header, kTime, octal(0, kTime));
  header[kType] = type;
  put(header, kMagic, std::string_view("ustar\00000", 8));
  put(header, kMajor, octal(0, kMajor));
  put(header, kMinor, octal(0, kMinor));
  put(header, kPrefix, prefix);
  put(header, kChecksum, fmt::format("{:06o}{} ", checksum_of(header, false), '\0'));
  return header;
}

// A record's length counts its own digits.
std::string pax_record(std::string_view key, std::string_view value) {
  const size_t rest = key.size() + value.size() + 3;
  size_t length = rest + 1;
  while (fmt::formatted_size("{}", length) + rest != length)
    length = fmt::formatted_size("{}", length) + rest;
  return fmt::format("{} {}={}\n", length, key, value);
}

}  // namespace

TarListing list_tar(int fd, uint64_t bytes, const std::string& path,
                    const std::function<void(const TarMember&, const ReadMember&)>& visit) {
  return Lister(fd, bytes, path).run(visit);
}

std::string tar_header(std::string_view name, uint64_t bytes) {
  if (name.size() <= kName.bytes) return plain_header("", name, bytes, '0');
  // The prefix is cut at a slash.
  for (size_t slash = name.find('/'); slash <= kPrefix.bytes; slash = name.find('/', slash + 1))
    if (slash > 0 && name.size() - slash - 1 <= kName.bytes && slash + 1 < name.size())
      return plain_header(name.substr(0, slash), name.substr(slash + 1), bytes, '0');
  const std::string record = pax_record("path", name);
  return plain_header("", "pax-header", record.size(), 'x') + record +
         std::string(tar_padding(record.size()), '\0') +
         plain_header("", name.substr(0, kName.bytes), bytes, '0');
}

}  // namespace convoy::data
