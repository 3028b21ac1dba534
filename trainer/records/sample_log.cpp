#include "trainer/records/sample_log.h"

#include <fmt/ranges.h>

#include <bit>
#include <filesystem>
#include <fstream>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "trainer/base/file.h"

namespace convoy::trainer {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);

std::string batch_digest(const data::Batch& batch) {
  return Sha256()
      .update(batch.pixels, static_cast<size_t>(batch.size) * batch.shape.bytes())
      .update(batch.labels.data(), batch.labels.size() * sizeof(batch.labels[0]))
      .hex();
}

SampleLog::SampleLog(const std::string& out_dir, int rank, bool digests)
    : log_(fmt::format("{}/samples.rank{}.jsonl", out_dir, rank)), digests_(digests) {}

void SampleLog::write(const data::Batch& batch) {
  log_.write(fmt::format("{{\"step\":{},\"worker\":{},\"epochs\":[{}],\"samples\":[{}]{}}}",
                         batch.step, batch.worker, fmt::join(batch.epochs, ","),
                         fmt::join(batch.sample_ids, ","),
                         digests_ ? fmt::format(",\"digest\":\"{}\"", batch_digest(batch)) : ""));
}

void SampleLog::rewind(const std::string& out_dir, uint64_t step) {
  for (const auto& entry : fs::directory_iterator(out_dir)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("samples.rank") || !name.ends_with(".jsonl")) continue;
    std::string kept, line;
    for (std::ifstream in(entry.path()); std::getline(in, line);)
      if (uint64_t at = 0;
          std::sscanf(line.c_str(), "{\"step\":%lu", &at) == 1 && at < step && line.ends_with('}'))
        kept += line + "\n";
    rewrite_file(entry.path(), kept);
  }
}

}  // namespace convoy::trainer
