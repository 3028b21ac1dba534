// The exchange that turns every rank's nodes of the reduction tree into the root on all ranks, as a
// list: a pure function of the worker map. The same tree is evaluated by every kind of schedule, so
// all give the same bits.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "comm/reduction_tree.h"

namespace convoy::comm {

enum class ScheduleKind {
  // Every rank owns one chunk: nodes go to the owners of their chunks, the owners finish the tree,
  // the roots are gathered. Two hops, any map.
  kAllToAll,
  // Recursive halving and doubling (Rabenseifner 2004): 2 log2 R hops of large messages whose
  // pairing
  // is the tree. Needs every rank to host one node and R to be a power of two.
  kHalving,
  // Few ranks of one host: as kAllToAll, but through memory that they share (shared_exchange.h).
  kShared,
};

// A bucket of n floats is cut into `chunks` pieces: chunk c is [chunk_begin(n, chunks, c),
// chunk_begin(n, chunks, c + 1)), borders at multiples of 16 floats, so small buckets have empty
// ones.
size_t chunk_begin(size_t floats, int chunks, int chunk);

// Chunks [first, last) of a node, sent to or received from `peer`.
struct Transfer {
  int peer = 0;
  WorkerRange node;
  int first = 0, last = 0;
};

// Chunks [first, last) of a node from those of its two children, left + right.
struct Sum {
  WorkerRange node;
  int first = 0, last = 0;
};

// Sends and receives go on at once; the sums follow in order when all of them are finished.
// Messages between two ranks match in the order in which both lists name them.
struct Round {
  std::vector<Transfer> sends, receives;
  std::vector<Sum> sums;
};

// What one rank does. A rank starts with nodes_of(what it hosts) and ends with all chunks of the
// root.
struct Plan {
  int chunks = 1;
  std::vector<Round> rounds;  // as many on every rank; none where there is one rank
};

bool halving_fits(std::span<const WorkerRange> map);

// The kind that is used where nobody asks for one and ranks must send: halving from 16 ranks on
// where it fits.
ScheduleKind choose_schedule(std::span<const WorkerRange> map);

// kShared has the plan of kAllToAll. Throws Error (kFault) for kHalving where it does not fit.
Plan make_plan(std::span<const WorkerRange> map, int rank, ScheduleKind kind);

// Floats sent by all ranks together, divided by what a ring all-reduce of one bucket sends,
// 2 (R - 1) n. 1 is the least that is usual; 1 also for one rank.
double redundancy(std::span<const WorkerRange> map, ScheduleKind kind);

}  // namespace convoy::comm
