// Replays every input that the fuzzers keep (tests/fuzz/corpus/, regressions among them) through
// every parser, without a fuzzer: R49 and R50 for any compiler. CONVOY_FUZZ_CORPUS adds a folder,
// e.g. of the units that a fuzzer called slow.
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <set>

#include "ops/core/log.h"
#include "tests/fuzz/parsers.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_folder.h"

namespace convoy::fuzz {
namespace {

namespace fs = std::filesystem;

// Of the processor, so that a loaded machine does not count; R50: no hang over 1 s.
constexpr double kMaxSeconds = test::kSanitized ? 10 : 1;

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files.push_back(entry.path());
  return files;
}

void replay(const std::vector<fs::path>& files, const Parser& parser) {
  for (const fs::path& file : files) {
    const std::string bytes = test::read_file(file.string());
    const std::clock_t start = std::clock();
    try {
      parser.feed(bytes);
    } catch (const std::exception& error) {
      ADD_FAILURE() << parser.name << ": " << file << ": " << error.what();
    }
    EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, kMaxSeconds)
        << parser.name << ": " << file;
  }
}

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const Parser& parser : parsers()) out.emplace_back(parser.name);
  return out;
}

class FuzzCorpus : public testing::TestWithParam<std::string> {
 protected:
  void TearDown() override { log::set_sink(nullptr); }
};

TEST_P(FuzzCorpus, EveryFileOfEveryParser) {
  const std::vector<fs::path> files = files_below(CONVOY_CORPUS);
  ASSERT_GT(files.size(), parsers().size());
  const Parser& parser = *find_parser(GetParam());
  replay(files, parser);
  if (const char* more = std::getenv("CONVOY_FUZZ_CORPUS")) replay(files_below(more), parser);
}

INSTANTIATE_TEST_SUITE_P(Parsers, FuzzCorpus, testing::ValuesIn(names()),
                         [](const auto& row) { return row.param; });

TEST(FuzzCorpusFolders, EveryParserHasOne) {
  std::set<std::string> folders;
  for (const auto& entry : fs::directory_iterator(CONVOY_CORPUS)) {
    folders.insert(entry.path().filename().string());
    EXPECT_FALSE(fs::is_empty(entry.path())) << entry.path();
  }
  const std::vector<std::string> all = names();
  EXPECT_EQ(folders, std::set<std::string>(all.begin(), all.end()));
}

}  // namespace
}  // namespace convoy::fuzz
