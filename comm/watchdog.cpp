#include "comm/watchdog.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "comm/heartbeat.h"
#include "comm/launch.h"
#include "comm/network_address.h"
#include "comm/presence.h"
#include "ops/core/clock.h"
#include "ops/core/log.h"

namespace convoy::comm {
namespace {

using Time = Clock::time_point;

// A connection says who it is within this time, or is dropped.
constexpr double kGreetingSeconds = 5;
constexpr size_t kMostStrangers = 1024, kMostAddresses = 16;
constexpr int kStrangersSaidAloud = 5;
// What waits to be sent on a connection; a peer that takes nothing is silent, and its memory
// bounded.
constexpr size_t kMostUnsent = size_t{4} << 20;
// An attempt to connect again is given up after this time, because TCP's own waits grow too long.
constexpr double kReconnectSeconds = 1;
// Rounds over all addresses when the ranks first connect.
constexpr int kRounds = 2;
// How long the last words may take: goodbyes and verdicts on the wire, and a line on standard
// error.
constexpr double kFlushSeconds = 0.5;
constexpr std::chrono::milliseconds kHeadStart{300};
// Who says nothing leaves later: mpirun ends the others at once, and the one that speaks may notice
// up to two heartbeats after it.
constexpr std::chrono::milliseconds kQuietDelay{2000};
constexpr std::chrono::seconds kLastWords{3}, kAnswer{10};
// How long mpirun may take to end when we have left.
constexpr int kLauncherSeconds = 6;

double seconds_between(Time from, Time to) {
  return std::chrono::duration<double>(to - from).count();
}

Clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// A connection with what was received and not understood yet, and what could not be sent yet.
struct Link {
  Socket socket;
  std::string in, out;
  std::string from;
  int rank = -1;  // of the other side, once it has proved it
  Time since;

  explicit operator bool() const { return static_cast<bool>(socket); }

  // False: the other side is gone.
  bool receive() {
    char buffer[16384];
    for (;;) {
      const ssize_t n = recv(socket.fd(), buffer, sizeof buffer, 0);
      if (n > 0) in.append(buffer, static_cast<size_t>(n));
      if (n == 0) return false;
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
      if (in.size() > kMostUnsent) return true;
    }
  }
  bool send(std::string_view bytes) {
    out += bytes;
    return flush();
  }
  bool flush() {
    while (!out.empty()) {
      const ssize_t n = ::send(socket.fd(), out.data(), out.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return (errno == EAGAIN || errno == EWOULDBLOCK) && out.size() < kMostUnsent;
      out.erase(0, static_cast<size_t>(n));
    }
    return true;
  }
};

// What a rank with others below it offers them: "PORT ADDRESS ADDRESS ..."; "!CODE TEXT": its
// error.
struct Offer {
  uint16_t port = 0;
  std::vector<std::string> addresses;

  static Offer from(const std::string& text) {
    Offer offer;
    std::istringstream in(text);
    in >> offer.port;
    for (std::string address; in >> address;) offer.addresses.push_back(address);
    return offer;
  }
};

struct Known {
  RankState state;  // as it was when it was received
  Time received;
};

// A warning that comes when its reason lasts, and then not soon again. Told once a window.
class Persistent {
 public:
  bool is_due(bool reason) {
    constexpr int kLasts = 2, kQuiet = 10;
    if (quiet_ > 0) --quiet_;
    windows_ = reason ? windows_ + 1 : 0;
    if (windows_ < kLasts || quiet_ > 0) return false;
    quiet_ = kQuiet;
    return true;
  }

 private:
  int windows_ = 0, quiet_ = 0;
};

// To connect to the rank above.
struct Attempt {
  Link link;
  size_t candidate = 0;
  bool connected = false;
  std::string why;  // the last failure of each address
};

}  // namespace

class Watchdog::Impl {
 public:
  Impl(Communicator& communicator, const WatchdogConfig& config)
      : communicator_(communicator),
        config_(config),
        rank_(communicator.rank()),
        size_(communicator.size()),
        hosts_(communicator.hosts()),
        table_(static_cast<size_t>(size_)),
        wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (!wake_) fail(ExitCode::kIo, "eventfd: {}", errno_text());
    if (size_ > 1) {
      exchange_nonce();
      exchange_addresses();
    }
    const Time now = Clock::now();
    for (Known& known : table_) known.received = now;
    heard_parent_ = now;
    if (rank_ > 0) begin_attempt(0);
    thread_ = std::thread([this] { run(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake();
    if (thread_.joinable()) thread_.join();
  }

  Presence& presence() { return presence_; }

  // Collective: all ranks are connected, or all throw.
  void expect_all_connected() {
    if (size_ == 1) return;
    std::string failure;
    {
      std::unique_lock lock(mutex_);
      connected_.wait(lock, [this] { return is_root() || is_connected_ || gave_up_; });
      failure = failure_;
    }
    const std::vector<std::string> failures = communicator_.all_gather(failure);
    const auto is_failure = [](const std::string& text) { return !text.empty(); };
    const auto first = std::ranges::find_if(failures, is_failure);
    if (first == failures.end()) return;
    const auto others = std::ranges::count_if(failures, is_failure) - 1;
    fail(
        ExitCode::kIo,
        "{}{}; name a network that connects these hosts in watchdog.interface, or let the firewall "
        "pass TCP between them",
        *first, others > 0 ? fmt::format(" (and {} ranks more cannot)", others) : "");
  }

  [[noreturn]] void ask(ExitCode code, const std::string& text) {
    {
      const std::lock_guard lock(mutex_);
      if (asked_.text.empty())
        asked_ = {.exit_code = static_cast<int>(code), .culprits = {rank_}, .text = text};
    }
    wake();
    // The watchdog's thread ends the process.
    std::this_thread::sleep_for(kAnswer);
    _exit(static_cast<int>(code));
  }

 private:
  bool is_root() const { return rank_ == 0; }
  int parent() const { return tree_parent(rank_, config_.fan_out); }
  const std::string& host(int rank) const { return hosts_[static_cast<size_t>(rank)]; }
  Known& known(int rank) { return table_[static_cast<size_t>(rank)]; }
  bool is_below(int rank, int ancestor) const {
    while (rank > ancestor) rank = tree_parent(rank, config_.fan_out);
    return rank == ancestor;
  }
  std::string name(int rank) const {
    return fmt::format("rank {} on {}", rank, printable(host(rank)));
  }
  // Seconds of silence after which something is done about it, long before a verdict.
  double notable() const { return std::max(2.0, 3 * config_.heartbeat); }

  void wake() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(wake_.fd(), &one, sizeof one);
  }

  // ---- How the ranks find each other: on the caller's thread ----

  void exchange_nonce() {
    if (is_root()) nonce_ = Nonce::random();
    std::string bytes = nonce_.bytes();
    communicator_.broadcast(bytes, 0);
    nonce_ = Nonce::from(bytes);
  }

  // Every rank offers what the ranks below it need; errors are everybody's.
  void exchange_addresses() {
    std::string offer;
    const std::vector<NetworkAddress> own = own_addresses();
    try {
      offer = own_offer(own);
    } catch (const Error& error) {
      offer = fmt::format("!{} {}", static_cast<int>(error.code()), error.what());
    }
    const std::vector<std::string> offers = communicator_.all_gather(offer);
    for (const std::string& text : offers)
      if (text.starts_with('!'))
        throw Error(static_cast<ExitCode>(std::atoi(text.c_str() + 1)),
                    text.substr(text.find(' ') + 1));
    if (is_root()) return;
    const Offer theirs = Offer::from(offers[static_cast<size_t>(parent())]);
    port_ = theirs.port;
    candidates_ = order_addresses(theirs.addresses, own);
    if (host(parent()) == host(rank_))
      candidates_.insert(candidates_.begin(), {"127.0.0.1", "::1"});
  }

  std::string own_offer(const std::vector<NetworkAddress>& own) {
    const int first = rank_ * config_.fan_out + 1;
    if (first >= size_) return "";
    bool same_host = true;
    for (int child = first; child < std::min(size_, first + config_.fan_out); ++child)
      same_host = same_host && host(child) == host(rank_);
    std::vector<NetworkAddress> chosen = choose_addresses(own, config_.interface, host(rank_));
    listener_ = listen_on_free_port(same_host && config_.interface.empty());
    chosen.resize(std::min(chosen.size(), kMostAddresses));
    std::string offer = std::to_string(port_of(listener_));
    for (const NetworkAddress& address : chosen) offer += " " + address.text;
    return offer;
  }

  // ---- All below: the watchdog's thread ----

  void run() {
    sigset_t signals;
    sigfillset(&signals);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&signals, fault);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);

    Time next_beat = Clock::now();
    window_start_ = last_seen_ = next_beat;
    while (!over_) {
      wait_for_events(next_beat);
      forgive_own_gap();
      handle_events();
      if (take_requests()) return;
      const Time now = Clock::now();
      if (over_ || now < next_beat) continue;
      next_beat = now + duration_of(config_.heartbeat);
      tick(now);
    }
  }

  // Every connection that there is.
  template <typename Body>
  void for_each_link(Body body) {
    for (Link& link : strangers_) body(link);
    for (auto& [rank, link] : children_) body(link);
    if (parent_link_) body(parent_link_);
    if (attempt_) body(attempt_->link);
  }

  void wait_for_events(Time until) {
    polled_.clear();
    polled_.push_back({wake_.fd(), POLLIN, 0});
    if (listener_) polled_.push_back({listener_.fd(), POLLIN, 0});
    for_each_link([&](Link& link) {
      const bool writes =
          !link.out.empty() || (attempt_ && &link == &attempt_->link && !attempt_->connected);
      polled_.push_back(
          {link.socket.fd(), static_cast<short>(writes ? POLLIN | POLLOUT : POLLIN), 0});
    });
    const double seconds = std::clamp(seconds_between(Clock::now(), until), 0.0, 1.0);
    ::poll(polled_.data(), polled_.size(), static_cast<int>(seconds * 1e3) + 1);
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t drained = ::read(wake_.fd(), &count, sizeof count);
  }

  // What this process slept through (stopped, suspended) is nobody's silence.
  void forgive_own_gap() {
    const Time now = Clock::now();
    const Clock::duration gap = now - last_seen_;
    last_seen_ = now;
    const double seconds = std::chrono::duration<double>(gap).count();
    if (seconds < notable()) return;
    for (Known& known : table_) known.received += gap;
    heard_parent_ += gap;
    asked_parent_.reset();
    if (parent_closed_) *parent_closed_ += gap;
    window_start_ = now;
    window_.clear();
    if (is_root())
      log::warning(
          "this rank stood still for {:.1f} s (stopped, or its host is overloaded), now it "
          "is back",
          seconds);
  }

  // Sockets say "not ready" for themselves, so all of them are asked.
  void handle_events() {
    if (listener_) greet();
    for (auto at = strangers_.begin(); at != strangers_.end();)
      at = hear_stranger(*at) ? std::next(at) : strangers_.erase(at);
    for (auto at = children_.begin(); at != children_.end() && !over_;)
      at = hear_child(at->second) ? std::next(at) : children_.erase(at);
    if (parent_link_ && !over_) hear_parent();
    if (attempt_ && !over_) advance_attempt();
  }

  void greet() {
    std::string from;
    for (int i = 0; i < 64; ++i) {
      Socket socket = accept_from(listener_, from);
      if (!socket) return;
      if (strangers_.size() >= kMostStrangers) strangers_.pop_front();
      Link& link = strangers_.emplace_back();
      link.socket = std::move(socket);
      link.from = from;
      link.since = Clock::now();
    }
  }

  void drop_stranger(const Link& link, const char* why) {
    if (++strangers_dropped_ <= kStrangersSaidAloud)
      log::warning("watchdog: dropped a connection from {}: {}{}", link.from, why,
                   strangers_dropped_ == kStrangersSaidAloud ? " (more are not said)" : "");
  }

  // False: it is gone, or has become a child.
  bool hear_stranger(Link& link) {
    const bool open = link.receive();
    if (link.rank < 0 && link.in.size() >= kGreetingBytes) {
      const std::optional<int> rank =
          read_greeting(std::string_view(link.in).substr(0, kGreetingBytes), nonce_.child);
      if (!rank || *rank <= 0 || *rank >= size_ || tree_parent(*rank, config_.fan_out) != rank_) {
        drop_stranger(link, "it is none of this job");
        return false;
      }
      link.in.erase(0, kGreetingBytes);
      link.rank = *rank;
      if (!link.send(greeting(rank_, nonce_.parent))) return false;
    }
    // Its first frame shows that it has our answer and means this connection.
    if (link.rank >= 0 && !link.in.empty()) {
      Link& child = children_[link.rank];
      child = std::move(link);
      Known& k = known(child.rank);
      if (k.state.closed >= 0) log::warning("{} is connected again", name(child.rank));
      k.state.closed = -1;
      return false;
    }
    if (!open) {
      if (link.rank < 0) drop_stranger(link, "it closed before it said who it is");
      return false;
    }
    if (seconds_since(link.since) < kGreetingSeconds) return true;
    if (link.rank < 0) drop_stranger(link, "it did not say who it is");
    return false;
  }

  // False: the connection is over.
  bool hear_child(Link& link) {
    const bool open = link.receive() && link.flush();
    Frame frame;
    for (;;) {
      const Read read = take_frame(link.in, size_, frame);
      if (read == Read::kMore) break;
      if (read == Read::kBad || !hear(frame, link.rank)) {
        log::warning("{} sent what makes no sense: hung up", name(link.rank));
        known(link.rank).state.closed = 0;
        return false;
      }
      if (over_) return true;
      if (frame.type == FrameType::kBye) return false;
    }
    if (open) return true;
    Known& k = known(link.rank);
    k = {aged(k, Clock::now()), Clock::now()};
    k.state.closed = 0;
    return false;
  }

  bool hear(const Frame& frame, int child) {
    switch (frame.type) {
      case FrameType::kBeats:
        for (const Beat& beat : frame.beats) {
          if (!is_below(beat.rank, child)) return false;
          note(beat, beat.rank == child);
        }
        return true;
      case FrameType::kVerdict:
        if (is_root())
          decide(frame.verdict);
        else if (parent_link_)
          parent_link_.send(encode(frame));
        return true;
      case FrameType::kBye:
        // All leave together, so those below it do as well.
        for (int rank = child; rank < size_; ++rank)
          if (is_below(rank, child)) known(rank).state.left = true;
        return true;
      case FrameType::kEcho:
        children_[child].send(encode(frame));
        return true;
    }
    return false;
  }

  void note(const Beat& beat, bool direct) {
    Known& k = known(beat.rank);
    const double before = direct ? aged(k, Clock::now()).silence : k.state.silence;
    const double silence = std::max(notable(), 3.0);
    if (is_root() && before > silence && beat.state.silence < silence)
      log::warning("{}: no heartbeat for {:.1f} s, now it is back", name(beat.rank), before);
    k = {beat.state, Clock::now()};
  }

  void hear_parent() {
    const bool open = parent_link_.receive() && parent_link_.flush();
    Frame frame;
    Read read = Read::kMore;
    while ((read = take_frame(parent_link_.in, size_, frame)) == Read::kFrame) {
      heard_parent_ = Clock::now();
      if (frame.type == FrameType::kBye) parent_left_ = true;
      if (frame.type == FrameType::kEcho && asked_parent_) {
        answering_ += seconds_since(*asked_parent_);
        ++answers_;
        asked_parent_.reset();
      }
      if (frame.type == FrameType::kVerdict) {
        pass_on(frame.verdict);
        return;
      }
    }
    if (open && read != Read::kBad) return;
    parent_link_ = Link();
    asked_parent_.reset();
    if (!parent_left_ && !parent_closed_) parent_closed_ = Clock::now();
  }

  // ---- The connection to the rank above ----

  void begin_attempt(size_t candidate) {
    if (!attempt_) attempt_.emplace();
    for (; candidate < kRounds * candidates_.size(); ++candidate) {
      const std::string& address = candidates_[candidate % candidates_.size()];
      attempt_->link = Link();
      attempt_->link.socket = begin_to_connect(address, port_);
      attempt_->link.since = Clock::now();
      attempt_->candidate = candidate;
      attempt_->connected = false;
      if (attempt_->link) return;
      note_failure(address, errno_text());
    }
    give_up_attempt();
  }

  void note_failure(const std::string& address, const std::string& why) {
    if (attempt_->candidate < candidates_.size())
      attempt_->why += fmt::format("{}{}: {}", attempt_->why.empty() ? "" : ", ", address, why);
  }

  void next_attempt(const std::string& why) {
    note_failure(candidates_[attempt_->candidate % candidates_.size()], why);
    begin_attempt(attempt_->candidate + 1);
  }

  // When it is not the first, the next heartbeat begins anew.
  void give_up_attempt() {
    const std::string why = candidates_.empty() ? "it offers no address" : attempt_->why;
    attempt_.reset();
    const std::lock_guard lock(mutex_);
    if (is_connected_) return;
    failure_ = fmt::format("{} cannot reach {} on TCP port {}: {}", name(rank_), name(parent()),
                           port_, why);
    gave_up_ = true;
    connected_.notify_all();
  }

  void advance_attempt() {
    const bool first = !is_connected_;
    Link& link = attempt_->link;
    if (seconds_since(link.since) > (first ? config_.connect : kReconnectSeconds))
      return next_attempt(
          fmt::format("no answer in {} s", first ? config_.connect : kReconnectSeconds));
    if (!attempt_->connected) {
      pollfd writable{link.socket.fd(), POLLOUT, 0};
      if (::poll(&writable, 1, 0) <= 0) return;
      if (const int error = error_of(link.socket))
        return next_attempt(std::strerror(error));  // NOLINT(concurrency-mt-unsafe)
      attempt_->connected = true;
      if (!link.send(greeting(rank_, nonce_.child))) return next_attempt(errno_text());
    }
    const bool open = link.receive() && link.flush();
    if (link.in.size() >= kGreetingBytes) {
      const std::optional<int> rank =
          read_greeting(std::string_view(link.in).substr(0, kGreetingBytes), nonce_.parent);
      if (rank != parent()) return next_attempt("another program answers there");
      link.in.erase(0, kGreetingBytes);
      be_connected();
      return;
    }
    if (!open) next_attempt("it hung up (another program may listen there)");
  }

  void be_connected() {
    // The address that worked comes first from now on.
    std::rotate(
        candidates_.begin(),
        candidates_.begin() + static_cast<std::ptrdiff_t>(attempt_->candidate % candidates_.size()),
        candidates_.end());
    parent_link_ = std::move(attempt_->link);
    attempt_.reset();
    asked_parent_.reset();
    heard_parent_ = Clock::now();
    parent_closed_.reset();
    send_up(Clock::now());
    const std::lock_guard lock(mutex_);
    is_connected_ = true;
    connected_.notify_all();
  }

  // ---- Once every heartbeat ----

  void tick(Time now) {
    known(rank_) = {presence_.sample(communicator_.waiting()), now};
    known(rank_).state.answers = answers_;
    known(rank_).state.answering = answering_;
    if (is_root()) {
      std::vector<RankState> states;
      for (const Known& k : table_) states.push_back(aged(k, now));
      states[0].silence = 0;
      if (const auto verdict = judge(states, hosts_, config_.deadlines, config_.fan_out))
        return decide(*verdict);
      look_for_stragglers(states, now);
    } else if (is_connected_) {
      watch_parent(now);
      if (over_) return;
    }
    send_up(now);
    const std::string alive = encode({.type = FrameType::kBeats, .beats = {}, .verdict = {}});
    for (auto& [rank, link] : children_)
      if (link.out.empty()) link.send(alive);
  }

  RankState aged(const Known& k, Time now) const {
    RankState state = k.state;
    const double more = std::max(0.0, seconds_between(k.received, now));
    state.seconds += more;
    state.silence += more;
    if (state.saving >= 0) state.saving += more;
    if (state.closed >= 0) state.closed += more;
    return state;
  }

  // The states of this rank and of all below it.
  void send_up(Time now) {
    if (!parent_link_ || !parent_link_.out.empty()) return;
    Frame frame{.type = FrameType::kBeats, .beats = {}, .verdict = {}};
    for (int rank = rank_; rank < size_; ++rank)
      if (is_below(rank, rank_)) frame.beats.push_back({rank, aged(known(rank), now)});
    std::string bytes = encode(frame);
    // While it waits it has the processor for the answer, and the network is what it waits for.
    if (known(rank_).state.waits && !asked_parent_) {
      bytes += encode({.type = FrameType::kEcho, .beats = {}, .verdict = {}});
      asked_parent_ = Clock::now();
    }
    parent_link_.send(bytes);
  }

  void watch_parent(Time now) {
    if (parent_left_) return;
    const double silence = seconds_between(heard_parent_, now);
    const double closed = parent_closed_ ? seconds_between(*parent_closed_, now) : 0;
    const double deadline = config_.deadlines.silence;
    if ((deadline > 0 && silence > deadline) || closed > kClosedGrace) {
      const Verdict verdict = lost_parent(parent(), host(parent()), silence, known(rank_).state);
      for (auto& [rank, link] : children_) send_verdict(link, verdict);
      return leave(verdict, is_first_on_host(parent()));
    }
    if ((silence > notable() || parent_closed_) && !attempt_) begin_attempt(0);
  }

  void look_for_stragglers(const std::vector<RankState>& states, Time now) {
    if (config_.straggler_factor <= 0 ||
        seconds_between(window_start_, now) < config_.straggler_window)
      return;
    window_start_ = now;
    constexpr uint64_t kFewestSteps = 5;
    std::vector<OwnTime> own;
    for (size_t r = 0; r < states.size() && r < window_.size(); ++r) {
      const RankState &s = states[r], &before = window_[r];
      const uint64_t steps = s.step - before.step;
      if (s.rounds == 0) {
        own.push_back({});
        continue;
      }
      if (s.step < before.step || steps < kFewestSteps) break;
      const auto of_step = [&](double later, double earlier) {
        return (later - earlier) / static_cast<double>(steps);
      };
      constexpr uint32_t kFewestAnswers = 3;
      const uint32_t answers = s.answers - before.answers;
      own.push_back({.input = of_step(s.working[0], before.working[0]),
                     .compute = of_step(s.working[1], before.working[1]),
                     .rounds = s.rounds,
                     .reduce = of_step(s.reducing, before.reducing),
                     .round_trip = answers < kFewestAnswers
                                       ? -1
                                       : (s.answering - before.answering) / answers});
    }
    const bool complete = own.size() == states.size();
    window_ = states;
    if (!complete) own.clear();
    const std::string slow_rank = straggler(own, hosts_, config_.straggler_factor);
    const std::string slow_network = slow_link(own, hosts_, config_.straggler_factor);
    if (slow_ranks_.is_due(!slow_rank.empty())) log::warning("{}", slow_rank);
    if (slow_networks_.is_due(!slow_network.empty())) log::warning("{}", slow_network);
  }

  // ---- The end ----

  // True: the thread's work is done.
  bool take_requests() {
    bool stop = false;
    {
      const std::lock_guard lock(mutex_);
      stop = stop_;
      if (!asked_.text.empty() && !over_) {
        if (!asked_at_) {
          asked_at_ = Clock::now();
          if (!is_root() && parent_link_)
            parent_link_.send(
                encode({.type = FrameType::kVerdict, .beats = {}, .verdict = asked_}));
        }
        verdict_ = asked_;
      }
    }
    if (verdict_ && !over_) {
      if (is_root()) {
        decide(*verdict_);
      } else if (seconds_since(*asked_at_) > kFlushSeconds * 4) {
        for (auto& [rank, link] : children_) send_verdict(link, *verdict_);
        leave(*verdict_, true);
      }
      return over_;
    }
    if (!stop || over_) return over_;
    const std::string bye = encode({.type = FrameType::kBye, .beats = {}, .verdict = {}});
    if (parent_link_) parent_link_.send(bye);
    for (auto& [rank, link] : children_) link.send(bye);
    flush_all();
    return true;
  }

  static void send_verdict(Link& link, const Verdict& verdict) {
    link.send(encode({.type = FrameType::kVerdict, .beats = {}, .verdict = verdict}));
  }

  void flush_all() {
    const Time start = Clock::now();
    for (;;) {
      std::vector<pollfd> unsent;
      const auto add = [&](Link& link) {
        if (link && !link.out.empty() && link.flush() && !link.out.empty())
          unsent.push_back({link.socket.fd(), POLLOUT, 0});
      };
      for (auto& [rank, link] : children_) add(link);
      add(parent_link_);
      const double left = kFlushSeconds - seconds_since(start);
      if (unsent.empty() || left <= 0) return;
      ::poll(unsent.data(), unsent.size(), static_cast<int>(left * 1e3) + 1);
    }
  }

  // Is this the lowest rank of its host, `but` left out?
  bool is_first_on_host(int but) const {
    for (int rank = 0; rank < rank_; ++rank)
      if (rank != but && host(rank) == host(rank_)) return false;
    return true;
  }

  // Rank 0's verdict: the others hear it first, because mpirun kills them as soon as we leave.
  void decide(Verdict verdict) {
    if (config_.judged) config_.judged(verdict);
    for (auto& [rank, link] : children_) send_verdict(link, verdict);
    flush_all();
    leave(verdict, true);
  }

  // One line for each host.
  void pass_on(const Verdict& verdict) {
    for (auto& [rank, link] : children_) send_verdict(link, verdict);
    flush_all();
    leave(verdict, host(rank_) != host(0) && is_first_on_host(0));
  }

  void leave(const Verdict& verdict, bool aloud) {
    over_ = true;
    flush_all();
    if (config_.end) {
      config_.end(verdict);
      return;
    }
    // A standard error that nobody reads must not hold us up.
    std::thread([code = verdict.exit_code] {
      std::this_thread::sleep_for(kLastWords);
      _exit(code);
    }).detach();
    if (aloud)
      log::error("{}", verdict.text);
    else
      log::debug("{}", verdict.text);
    if (size_ > 1) end_launcher_if_it_hangs(detect_launch(), kLauncherSeconds);
    if (is_root() && size_ > 1) std::this_thread::sleep_for(kHeadStart);
    if (!aloud) std::this_thread::sleep_for(kQuietDelay);
    _exit(verdict.exit_code);
  }

  Communicator& communicator_;
  const WatchdogConfig config_;
  const int rank_, size_;
  const std::vector<std::string> hosts_;
  Presence presence_;
  Nonce nonce_;
  uint16_t port_ = 0;                    // of the rank above
  std::vector<std::string> candidates_;  // its addresses

  // Of the watchdog's thread.
  std::vector<Known> table_;  // by rank; only this one and those below it are kept up to date
  Socket wake_, listener_;
  std::list<Link> strangers_;     // who has not proved yet that it belongs here
  std::map<int, Link> children_;  // by rank
  Link parent_link_;
  std::optional<Attempt> attempt_;
  Time heard_parent_, last_seen_;
  std::optional<Time> asked_parent_;  // a question that it has not answered yet
  uint32_t answers_ = 0;              // so far, and the seconds that they took
  double answering_ = 0;
  std::optional<Time> parent_closed_;
  bool parent_left_ = false;
  bool over_ = false;
  int strangers_dropped_ = 0;
  std::vector<pollfd> polled_;
  std::optional<Verdict> verdict_;  // that this rank asked for
  std::optional<Time> asked_at_;
  Time window_start_;
  std::vector<RankState> window_;  // as it was then
  Persistent slow_ranks_, slow_networks_;

  std::mutex mutex_;  // guards all below
  std::condition_variable connected_;
  bool is_connected_ = false;  // written by the thread alone
  bool gave_up_ = false;
  std::string failure_;
  bool stop_ = false;
  Verdict asked_;

  std::thread thread_;
};

Watchdog::Watchdog(Communicator& communicator, const WatchdogConfig& config)
    : impl_(std::make_unique<Impl>(communicator, config)) {
  impl_->expect_all_connected();
}
Watchdog::~Watchdog() = default;

void Watchdog::enter(Phase phase, uint64_t step, int bucket) {
  impl_->presence().enter(phase, step, bucket);
}
void Watchdog::progress() {
  impl_->presence().progress();
}
void Watchdog::set_rounds(uint32_t rounds) {
  impl_->presence().set_rounds(rounds);
}
Watchdog::Scope Watchdog::input() {
  Presence& presence = impl_->presence();
  return Scope([&presence, wait = presence.begin_input()] { presence.end_input(wait); });
}
Watchdog::Scope Watchdog::saving() {
  Presence& presence = impl_->presence();
  presence.begin_saving();
  return Scope([&presence] { presence.end_saving(); });
}
Watchdog::Scope Watchdog::describe(Phase phase, std::function<std::string()> words) {
  Presence& presence = impl_->presence();
  return Scope([&presence, phase, earlier = presence.set_words(phase, std::move(words))]() mutable {
    presence.set_words(phase, std::move(earlier));
  });
}
StartAlarm::StartAlarm(double seconds)
    : thread_([seconds](const std::stop_token& stop) {
        std::mutex mutex;
        std::condition_variable_any over;
        std::unique_lock lock(mutex);
        const auto destroyed = [&] { return stop.stop_requested(); };
        if (over.wait_for(lock, stop, std::chrono::duration<double>(seconds), destroyed)) return;
        if (destroyed()) return;
        log::error(
            "the ranks have not met within {:.0f} s: one is not there, or waits for a file or a "
            "device; run the same command again",
            seconds);
        _exit(static_cast<int>(ExitCode::kRecoverable));
      }) {}

void Watchdog::verdict(ExitCode code, const std::string& text) {
  impl_->ask(code, text);
}

}  // namespace convoy::comm
