// The exact sum of one bucket among ranks of one host, through memory that they share. As in the
// all-to-all schedule, rank r owns chunk r and finishes the tree there; but a chunk goes in blocks
// that stay in the caches, and owners sum what the others have put into the shared memory without
// copying it out. The same tree, so the same bits.
//
// Block k of a bucket, on every rank:
//   offer   copies its nodes' block k of every other rank's chunk into slots of its own;
//   sum     when all have offered k: the root's block k of its own chunk, into the result and
//   slots; take    copies the others' roots into the result as they come.
// Slots are double: block k + 2 takes the place of block k once all who read it have gone on. A
// node that lies in shared memory itself needs no offer, and a result there no take: owners read
// the one and write the other in place.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/schedule.h"
#include "comm/shared_memory.h"

namespace convoy::comm {

// Any thread, one at a time: the caller locks.
class SharedExchange {
 public:
  // Where things lie in a bucket's piece of the shared memory.
  struct Layout {
    Layout(std::span<const WorkerRange> map, size_t floats);

    size_t block_floats = 0;
    uint64_t blocks = 0;             // of every chunk; the last may be empty
    std::vector<size_t> first_node;  // of each rank, among all nodes in order
    std::vector<WorkerRange> nodes;
    size_t rank_lines = 0;  // cache lines of counters and places of a rank
    size_t bytes = 0;       // a multiple of 64
  };

  // `piece`: layout.bytes of `shared`, which must outlive this, zeroed, aligned to 64; at the same
  // place on all ranks.
  SharedExchange(std::span<const WorkerRange> map, int rank, size_t floats,
                 const SharedMemory& shared, std::byte* piece);

  // This rank's nodes, in order, lie here; they are scratch until the exchange is over. The sum
  // goes to `result`, which may be the first node's place. Not while an exchange is under way.
  void begin(std::span<float* const> nodes, float* result);
  // Never blocks. kOver: the sum is here.
  Progress advance();

 private:
  // Blocks that a rank has done since construction, over all turns; a cache line each.
  enum Counter : size_t { kOffered, kSummed, kTaken, kCounters };

  std::atomic<uint64_t>& counter(int rank, Counter which) const;
  // Where a rank's result (which = 0) and its nodes (from 1) lie, from the beginning of the shared
  // memory; 0 for what is not there. Of this turn once the rank has offered something.
  std::atomic<uint64_t>& place(int rank, size_t which) const;
  uint64_t offset_of(const float* data) const;
  float* at(uint64_t offset) const { return reinterpret_cast<float*>(shared_.data() + offset); }
  // Blocks are counted over all turns here. The slot of a block of a node of another rank in
  // `owner`'s chunk; of the root in a rank's.
  float* node_slot(size_t node, int owner, uint64_t block) const;
  float* root_slot(int rank, uint64_t block) const;
  bool others_have(Counter which, uint64_t blocks) const;
  int ranks() const { return static_cast<int>(layout_.first_node.size()) - 1; }
  // Floats of block k of this turn of a rank's chunk.
  size_t begin_of(int rank, uint64_t block) const;
  size_t end_of(int rank, uint64_t block) const { return begin_of(rank, block + 1); }

  bool offer();
  bool sum();
  bool take(int peer);
  void sum_piece(size_t begin, size_t end, size_t block_begin, uint64_t block);

  const Layout layout_;
  const int rank_;
  const size_t floats_;
  const std::vector<Sum> sums_;  // that make the root, in order
  const SharedMemory& shared_;
  std::byte* const piece_;

  uint64_t base_ = 0;  // blocks of the turns before
  uint64_t offered_ = 0, summed_ = 0;
  std::vector<uint64_t> taken_;  // by rank
  std::vector<float*> own_nodes_;
  float* result_ = nullptr;
  bool nodes_shared_ = false, result_shared_ = false;
  std::vector<float*> places_;  // by first worker of a node: where its block lies
};

}  // namespace convoy::comm
