// The fuzzer (libFuzzer): CONVOY_FUZZ=NAME chooses the parser. tests/fuzz/run.sh runs it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/parsers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const convoy::fuzz::Parser* const parser = [] {
    const char* name = std::getenv("CONVOY_FUZZ");
    const auto* found = convoy::fuzz::find_parser(name != nullptr ? name : "");
    if (found != nullptr) return found;
    std::fputs("set CONVOY_FUZZ to one of", stderr);
    for (const auto& row : convoy::fuzz::parsers()) std::fprintf(stderr, " %s", row.name);
    std::fputs("\n", stderr);
    std::exit(64);
  }();
  parser->feed({reinterpret_cast<const char*>(data), bytes});
  return 0;
}
