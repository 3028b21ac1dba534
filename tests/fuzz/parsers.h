// Every parser of bytes from outside, behind one function each, for the fuzzers (fuzz_target.cpp)
// and for the plain test that replays their corpus (fuzz_corpus_test.cpp). To add one: a row in
// parsers.cpp, a first input in make_seeds.cpp, a folder of that name in tests/fuzz/corpus/.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace convoy::fuzz {

struct Parser {
  const char* name;
  // Parses the bytes. A refusal (Error with the exit code of bad input and a message that may be
  // printed) and a success that holds together are both well; everything else is thrown.
  // One thread at a time; keeps temporary files until the process ends.
  void (*feed)(std::string_view bytes);
  size_t max_bytes;  // of inputs that a fuzzer makes up
};

std::span<const Parser> parsers();

// nullptr where there is none of this name.
const Parser* find_parser(std::string_view name);

}  // namespace convoy::fuzz
