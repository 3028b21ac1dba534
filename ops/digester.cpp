#include "ops/digester.h"

#include <algorithm>

namespace convoy::ops {

std::vector<DigestBlock> cut_digest_blocks(const std::vector<DigestRange>& ranges) {
  std::vector<DigestBlock> blocks;
  for (size_t r = 0; r < ranges.size(); ++r)
    for (size_t begin = 0; begin < ranges[r].floats; begin += kDigestBlock)
      blocks.push_back(
          {.data = ranges[r].data + begin,
           .index = begin,
           .floats = static_cast<int64_t>(std::min(kDigestBlock, ranges[r].floats - begin)),
           .range = r});
  return blocks;
}

std::vector<size_t> first_blocks(const std::vector<DigestBlock>& blocks, size_t ranges) {
  std::vector<size_t> first;
  size_t block = 0;
  for (size_t r = 0; r <= ranges; ++r) {
    while (block < blocks.size() && blocks[block].range < r) ++block;
    first.push_back(block);
  }
  return first;
}

}  // namespace convoy::ops
