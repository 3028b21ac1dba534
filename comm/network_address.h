// The addresses by which processes of other hosts can reach this one, and plain TCP sockets on
// them. Nothing here blocks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace convoy::comm {

struct NetworkAddress {
  std::string interface;  // "eth0"
  std::string text;       // "10.0.0.3", "fd00::3"
  int prefix_bits = 0;    // of its network
  bool loopback = false;
};

// Those of all interfaces that are up, without link-local ones. Throws Error (kIo).
std::vector<NetworkAddress> own_addresses();

// Those that `wanted` names: an interface ("eth0"), an address, a network ("10.0.0.0/8"), or
// several of them with commas; "": all but loopback. Throws Error (kBadJob) where none fits, naming
// what there is on `host`.
std::vector<NetworkAddress> choose_addresses(const std::vector<NetworkAddress>& own,
                                             const std::string& wanted, const std::string& host);

// In the order in which they should be tried: those in a network of our own first.
std::vector<std::string> order_addresses(std::vector<std::string> offered,
                                         std::span<const NetworkAddress> own);

// Owns a socket or another descriptor; closes it. Move only.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket& operator=(Socket&& other) noexcept;
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void close();

 private:
  int fd_;
};

// Non-blocking, on a free port of all interfaces, or of loopback alone. Throws Error (kIo).
Socket listen_on_free_port(bool loopback_only);
uint16_t port_of(const Socket& listener);

// Begins to connect; writable when that is over, and error_of() says how. An empty socket, with
// errno set, where it cannot even begin.
Socket begin_to_connect(const std::string& address, uint16_t port);
int error_of(const Socket& socket);

// An empty socket where nobody is waiting. `from` becomes "10.0.0.3 port 4711".
Socket accept_from(const Socket& listener, std::string& from);

}  // namespace convoy::comm
