#include "comm/shared_exchange.h"

#include <algorithm>

#include "comm/arithmetic.h"
#include "ops/core/cache_line.h"

namespace convoy::comm {
namespace {

constexpr size_t kLineWords = kCacheLineBytes / sizeof(uint64_t);
constexpr uint64_t kSlots = 2;
// All slots of a bucket together, as long as blocks do not become small: what goes through them
// shall stay in the caches.
constexpr size_t kSlotFloats = size_t{256} << 10;
constexpr size_t kLeastBlockFloats = size_t{4} << 10;
// What is summed and then copied stays in the first-level cache.
constexpr size_t kPieceFloats = size_t{2} << 10;

}  // namespace

SharedExchange::Layout::Layout(std::span<const WorkerRange> map, size_t floats) {
  const int workers = map.back().end;
  size_t most_nodes = 0;
  for (const WorkerRange& hosted : map) {
    first_node.push_back(nodes.size());
    const std::vector<WorkerRange> own = nodes_of(hosted, workers);
    nodes.insert(nodes.end(), own.begin(), own.end());
    most_nodes = std::max(most_nodes, own.size());
  }
  first_node.push_back(nodes.size());
  // A slot for every node in every chunk, its owner's unused, and one for each chunk's root.
  const size_t ranks = map.size();
  const size_t slots = kSlots * ranks * (nodes.size() + 1);
  const size_t chunk = (floats + ranks - 1) / ranks + kCacheLineFloats;  // at most
  block_floats = std::min(std::max(kLeastBlockFloats, kSlotFloats / slots), chunk);
  block_floats = round_up(block_floats, kCacheLineFloats);
  blocks = (chunk + block_floats - 1) / block_floats;
  rank_lines = kCounters + (1 + most_nodes + kLineWords - 1) / kLineWords;
  bytes = ranks * rank_lines * kCacheLineBytes + slots * block_floats * sizeof(float);
}

SharedExchange::SharedExchange(std::span<const WorkerRange> map, int rank, size_t floats,
                               const SharedMemory& shared, std::byte* piece)
    : layout_(map, floats),
      rank_(rank),
      floats_(floats),
      sums_(make_plan(map, rank, ScheduleKind::kShared).rounds[0].sums),
      shared_(shared),
      piece_(piece),
      taken_(map.size()),
      places_(static_cast<size_t>(map.back().end)) {}

std::atomic<uint64_t>& SharedExchange::counter(int rank, Counter which) const {
  const size_t line = static_cast<size_t>(rank) * layout_.rank_lines + which;
  return *reinterpret_cast<std::atomic<uint64_t>*>(piece_ + line * kCacheLineBytes);
}

std::atomic<uint64_t>& SharedExchange::place(int rank, size_t which) const {
  return *(&counter(rank, kCounters) + which);
}

uint64_t SharedExchange::offset_of(const float* data) const {
  const auto offset =
      reinterpret_cast<uintptr_t>(data) - reinterpret_cast<uintptr_t>(shared_.data());
  return offset < shared_.size() ? offset : 0;
}

float* SharedExchange::node_slot(size_t node, int owner, uint64_t block) const {
  const size_t chunks = static_cast<size_t>(ranks());
  const size_t slot =
      ((block % kSlots) * chunks + static_cast<size_t>(owner)) * (layout_.nodes.size() + 1) + node;
  return reinterpret_cast<float*>(piece_ + chunks * layout_.rank_lines * kCacheLineBytes) +
         slot * layout_.block_floats;
}

float* SharedExchange::root_slot(int rank, uint64_t block) const {
  return node_slot(layout_.nodes.size(), rank, block);
}

size_t SharedExchange::begin_of(int rank, uint64_t block) const {
  return std::min(chunk_begin(floats_, ranks(), rank) + block * layout_.block_floats,
                  chunk_begin(floats_, ranks(), rank + 1));
}

bool SharedExchange::others_have(Counter which, uint64_t blocks) const {
  for (int rank = 0; rank < ranks(); ++rank)
    if (rank != rank_ && counter(rank, which).load(std::memory_order_acquire) < blocks)
      return false;
  return true;
}

void SharedExchange::begin(std::span<float* const> nodes, float* result) {
  if (result_) base_ += layout_.blocks;
  offered_ = summed_ = 0;
  std::fill(taken_.begin(), taken_.end(), 0);
  own_nodes_.assign(nodes.begin(), nodes.end());
  result_ = result;
  result_shared_ = offset_of(result) > 0;
  nodes_shared_ = true;
  place(rank_, 0).store(offset_of(result), std::memory_order_relaxed);
  for (size_t i = 0; i < nodes.size(); ++i) {
    nodes_shared_ = nodes_shared_ && offset_of(nodes[i]) > 0;
    place(rank_, 1 + i).store(offset_of(nodes[i]), std::memory_order_relaxed);
  }
}

bool SharedExchange::offer() {
  if (offered_ == layout_.blocks) return false;
  const uint64_t block = base_ + offered_;
  if (nodes_shared_) {
    offered_ = layout_.blocks;
  } else {
    if (block >= kSlots && !others_have(kSummed, block - kSlots + 1)) return false;
    const size_t first = layout_.first_node[static_cast<size_t>(rank_)];
    for (int step = 1; step < ranks(); ++step) {
      const int owner = (rank_ + step) % ranks();
      const size_t begin = begin_of(owner, offered_), end = end_of(owner, offered_);
      for (size_t i = 0; i < own_nodes_.size(); ++i)
        if (offset_of(own_nodes_[i]) == 0)
          copy(node_slot(first + i, owner, block), own_nodes_[i] + begin, end - begin);
    }
    ++offered_;
  }
  counter(rank_, kOffered).store(base_ + offered_, std::memory_order_release);
  return true;
}

bool SharedExchange::sum() {
  const uint64_t block = base_ + summed_;
  if (summed_ == layout_.blocks || !others_have(kOffered, block + 1)) return false;
  bool into_slot = false;
  for (int rank = 0; rank < ranks(); ++rank)
    into_slot = into_slot || (rank != rank_ && place(rank, 0).load(std::memory_order_relaxed) == 0);
  if (into_slot && block >= kSlots && !others_have(kTaken, block - kSlots + 1)) return false;
  const size_t block_begin = begin_of(rank_, summed_), block_end = end_of(rank_, summed_);
  for (size_t begin = block_begin; begin < block_end; begin += kPieceFloats) {
    const size_t end = std::min(begin + kPieceFloats, block_end);
    sum_piece(begin, end, block_begin, block);
    if (into_slot)
      copy(root_slot(rank_, block) + (begin - block_begin), result_ + begin, end - begin);
    for (int step = 1; step < ranks(); ++step) {
      const int peer = (rank_ + step) % ranks();
      if (const uint64_t offset = place(peer, 0).load(std::memory_order_relaxed))
        copy(at(offset) + begin, result_ + begin, end - begin);
    }
  }
  ++summed_;
  counter(rank_, kSummed).store(block + 1, std::memory_order_release);
  return true;
}

// Floats [begin, end) of the root into the result.
void SharedExchange::sum_piece(size_t begin, size_t end, size_t block_begin, uint64_t block) {
  for (int rank = 0; rank < ranks(); ++rank) {
    const size_t first = layout_.first_node[static_cast<size_t>(rank)];
    const size_t last = layout_.first_node[static_cast<size_t>(rank) + 1];
    for (size_t i = first; i < last; ++i) {
      float*& data = places_[static_cast<size_t>(layout_.nodes[i].begin)];
      if (rank == rank_) {
        data = own_nodes_[i - first] + begin;
      } else if (const uint64_t offset =
                     place(rank, 1 + i - first).load(std::memory_order_relaxed)) {
        data = at(offset) + begin;
      } else {
        data = node_slot(i, rank_, block) + (begin - block_begin);
      }
    }
  }
  float* const root = result_ + begin;
  for (const Sum& each : sums_) {
    // Into the place of the left child, which nobody else reads.
    float*& left = places_[static_cast<size_t>(each.node.begin)];
    float* const to = &each == &sums_.back() ? root : left;
    add(to, left, places_[static_cast<size_t>(split_of(each.node))], end - begin);
    left = to;
  }
  // A tree of one node needs no sum.
  if (places_[0] != root) copy(root, places_[0], end - begin);
}

bool SharedExchange::take(int peer) {
  uint64_t& taken = taken_[static_cast<size_t>(peer)];
  const uint64_t there = counter(peer, kSummed).load(std::memory_order_acquire) - base_;
  if (taken >= there) return false;
  if (result_shared_) taken = there;
  for (; taken < there; ++taken) {
    const size_t begin = begin_of(peer, taken);
    copy(result_ + begin, root_slot(peer, base_ + taken), end_of(peer, taken) - begin);
  }
  return true;
}

Progress SharedExchange::advance() {
  Progress made = Progress::kNone;
  for (bool again = true; again;) {
    again = offer();
    again = sum() || again;
    uint64_t least = layout_.blocks;
    bool took = false;
    for (int step = 1; step < ranks(); ++step) {
      const int peer = (rank_ + step) % ranks();
      took = take(peer) || took;
      least = std::min(least, taken_[static_cast<size_t>(peer)]);
    }
    if (took) counter(rank_, kTaken).store(base_ + least, std::memory_order_release);
    again = again || took;
    if (again) made = Progress::kSome;
    if (summed_ == layout_.blocks && least == layout_.blocks) return Progress::kOver;
  }
  return made;
}

}  // namespace convoy::comm
