#include "comm/network_address.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>

#include "ops/core/error.h"

namespace convoy::comm {
namespace {

// The bytes of an address: 4 or 16; none: it is no address.
std::vector<uint8_t> bytes_of(const std::string& text) {
  std::vector<uint8_t> bytes(16);
  if (inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1) return bytes;
  bytes.resize(4);
  if (inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) return bytes;
  return {};
}

bool in_network(const std::string& address, const std::string& network, int bits) {
  const std::vector<uint8_t> a = bytes_of(address), n = bytes_of(network);
  if (a.empty() || a.size() != n.size() || bits < 0) return false;
  for (int bit = 0; bit < std::min(bits, static_cast<int>(8 * a.size())); ++bit) {
    const auto byte = static_cast<size_t>(bit / 8);
    if (((a[byte] ^ n[byte]) >> (7 - bit % 8) & 1) != 0) return false;
  }
  return true;
}

bool is_wanted(const NetworkAddress& address, const std::string& wanted) {
  if (wanted == address.interface || wanted == address.text) return true;
  const size_t slash = wanted.find('/');
  if (slash == std::string::npos) return false;
  int bits = -1;
  std::from_chars(wanted.data() + slash + 1, wanted.data() + wanted.size(), bits);
  return in_network(address.text, wanted.substr(0, slash), bits);
}

std::string text_of(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET)
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof text);
  else
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text,
              sizeof text);
  return text;
}

int bits_of(const sockaddr* mask) {
  if (!mask) return 0;
  int bits = 0;
  for (const uint8_t byte : bytes_of(text_of(mask))) bits += std::popcount(byte);
  return bits;
}

bool is_link_local(const sockaddr* address) {
  if (address->sa_family == AF_INET)
    return ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 16 == 0xa9fe;
  const in6_addr& a = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  return IN6_IS_ADDR_LINKLOCAL(&a) || IN6_IS_ADDR_MULTICAST(&a);
}

// A socket address with its length.
struct Endpoint {
  sockaddr_storage storage{};
  socklen_t bytes = 0;

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

std::optional<Endpoint> endpoint(const std::string& address, uint16_t port) {
  const std::vector<uint8_t> bytes = bytes_of(address);
  Endpoint e;
  if (bytes.size() == 4) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    std::memcpy(&in.sin_addr, bytes.data(), bytes.size());
    std::memcpy(&e.storage, &in, e.bytes = sizeof in);
  } else if (bytes.size() == 16) {
    sockaddr_in6 in{};
    in.sin6_family = AF_INET6;
    in.sin6_port = htons(port);
    std::memcpy(&in.sin6_addr, bytes.data(), bytes.size());
    std::memcpy(&e.storage, &in, e.bytes = sizeof in);
  } else {
    return std::nullopt;
  }
  return e;
}

// An option that is an improvement: an older kernel may not know it.
void set(const Socket& socket, int level, int option, int value) {
  setsockopt(socket.fd(), level, option, &value, sizeof value);
}

// What connections of the watchdog need: no delay, and after an outage of the network the next try
// within a second. TCP doubles its pause after each try: behind 7 s without network, 12.6 s without
// a heartbeat.
void prepare(const Socket& socket) {
  constexpr int kRtoMaxMs = 44;  // TCP_RTO_MAX_MS of Linux 6.15, which older headers lack
  set(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set(socket, IPPROTO_TCP, kRtoMaxMs, 1000);
}

bool try_listen(Socket& socket, const std::string& address) {
  std::optional<Endpoint> at = endpoint(address, 0);
  socket = Socket(::socket(at->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return false;
  // One socket for IPv4 too.
  if (at->storage.ss_family == AF_INET6) set(socket, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  return bind(socket.fd(), at->get(), at->bytes) == 0 && listen(socket.fd(), SOMAXCONN) == 0;
}

}  // namespace

std::vector<NetworkAddress> own_addresses() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) fail(ExitCode::kIo, "getifaddrs: {}", errno_text());
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, freeifaddrs);
  std::vector<NetworkAddress> own;
  for (const ifaddrs* at = list; at; at = at->ifa_next) {
    if (!at->ifa_addr || (at->ifa_flags & IFF_UP) == 0) continue;
    const int family = at->ifa_addr->sa_family;
    if ((family != AF_INET && family != AF_INET6) || is_link_local(at->ifa_addr)) continue;
    own.push_back({.interface = at->ifa_name,
                   .text = text_of(at->ifa_addr),
                   .prefix_bits = bits_of(at->ifa_netmask),
                   .loopback = (at->ifa_flags & IFF_LOOPBACK) != 0});
  }
  return own;
}

std::vector<NetworkAddress> choose_addresses(const std::vector<NetworkAddress>& own,
                                             const std::string& wanted, const std::string& host) {
  std::vector<NetworkAddress> chosen;
  std::istringstream pieces(wanted);
  if (wanted.empty())
    std::ranges::copy_if(own, std::back_inserter(chosen),
                         [](const NetworkAddress& a) { return !a.loopback; });
  for (std::string piece; std::getline(pieces, piece, ',');)
    for (const NetworkAddress& a : own)
      if (is_wanted(a, piece)) chosen.push_back(a);
  if (!chosen.empty() || wanted.empty()) return chosen;
  std::string there;
  for (const NetworkAddress& a : own)
    there +=
        fmt::format("{}{} {}/{}", there.empty() ? "" : ", ", a.interface, a.text, a.prefix_bits);
  fail(ExitCode::kBadJob,
       "watchdog.interface is \"{}\", but {} has no such interface, address or network; it has: {}",
       printable(wanted), printable(host), there.empty() ? "none" : there);
}

std::vector<std::string> order_addresses(std::vector<std::string> offered,
                                         std::span<const NetworkAddress> own) {
  std::stable_partition(offered.begin(), offered.end(), [&](const std::string& address) {
    return std::ranges::any_of(own, [&](const NetworkAddress& a) {
      return !a.loopback && in_network(address, a.text, a.prefix_bits);
    });
  });
  return offered;
}

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this == &other) return *this;
  close();
  fd_ = other.fd_;
  other.fd_ = -1;
  return *this;
}

void Socket::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Socket listen_on_free_port(bool loopback_only) {
  Socket socket;
  if (try_listen(socket, loopback_only ? "127.0.0.1" : "::")) return socket;
  if (try_listen(socket, loopback_only ? "::1" : "0.0.0.0")) return socket;
  fail(ExitCode::kIo, "the watchdog cannot listen on a TCP port: {}", errno_text());
}

uint16_t port_of(const Socket& listener) {
  Endpoint e;
  e.bytes = sizeof e.storage;
  if (getsockname(listener.fd(), e.get(), &e.bytes) != 0)
    fail(ExitCode::kIo, "getsockname: {}", errno_text());
  return ntohs(e.storage.ss_family == AF_INET
                   ? reinterpret_cast<sockaddr_in*>(&e.storage)->sin_port
                   : reinterpret_cast<sockaddr_in6*>(&e.storage)->sin6_port);
}

Socket begin_to_connect(const std::string& address, uint16_t port) {
  std::optional<Endpoint> to = endpoint(address, port);
  if (!to) {
    errno = EINVAL;
    return Socket();
  }
  Socket socket(::socket(to->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return socket;
  prepare(socket);
  if (connect(socket.fd(), to->get(), to->bytes) == 0 || errno == EINPROGRESS) return socket;
  const int error = errno;
  socket.close();
  errno = error;
  return socket;
}

int error_of(const Socket& socket) {
  int error = 0;
  socklen_t bytes = sizeof error;
  return getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 ? error : errno;
}

Socket accept_from(const Socket& listener, std::string& from) {
  Endpoint e;
  e.bytes = sizeof e.storage;
  Socket socket(accept4(listener.fd(), e.get(), &e.bytes, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!socket) return socket;
  prepare(socket);
  from = fmt::format("{} port {}", text_of(e.get()),
                     ntohs(e.storage.ss_family == AF_INET
                               ? reinterpret_cast<sockaddr_in*>(&e.storage)->sin_port
                               : reinterpret_cast<sockaddr_in6*>(&e.storage)->sin6_port));
  return socket;
}

}  // namespace convoy::comm
