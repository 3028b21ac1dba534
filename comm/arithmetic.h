// What the reduction does to memory: sums and copies of floats.
#pragma once

#include <cstddef>

namespace convoy::comm {

// sum = left + right; sum is one of the two or apart from both. Denormals count as zero, whatever
// thread this is.
void add(float* sum, const float* left, const float* right, size_t floats);

// Like memcpy, which here takes an instruction (rep movsb) that is several times slower on Zen 4
// for some distances of the two addresses.
void copy(float* to, const float* from, size_t floats);

}  // namespace convoy::comm
