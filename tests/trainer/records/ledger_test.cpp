// The ledger: what it records, what it proves, and what it says of a line that lies.
#include "trainer/records/ledger.h"

#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <iostream>
#include <thread>

#include "data_loader/sampler.h"
#include "ops/core/error.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/base/file_size_limit.h"
#include "tests/trainer/base/torn_write.h"

namespace convoy::trainer {
namespace {

using data::kNoSubstitute;
using test::FileSizeLimit;
using test::read_file;
using test::TempFolder;

constexpr uint64_t kSamples = 23, kWorkers = 2, kPerWorker = 3, kBatch = kWorkers * kPerWorker;
const LedgerTerms kTerms{
    .dataset_size = kSamples, .global_batch = kBatch, .seed = 5, .dataset_digest = "digest"};

// What a loader delivers of one step and worker.
data::Batch batch_of(uint64_t step, int worker, const LedgerTerms& terms = kTerms) {
  const data::Sampler sampler(terms.seed, terms.dataset_size, terms.windows);
  data::Batch batch;
  batch.step = step;
  batch.worker = worker;
  batch.size = static_cast<int>(terms.global_batch / kWorkers);
  for (int i = 0; i < batch.size; ++i) {
    const data::StreamPoint point = sampler.at((step * kWorkers + static_cast<uint64_t>(worker)) *
                                                   static_cast<uint64_t>(batch.size) +
                                               static_cast<uint64_t>(i));
    batch.sample_ids.push_back(point.sample);
    batch.epochs.push_back(point.epoch);
    batch.substitutes.push_back(kNoSubstitute);
  }
  return batch;
}

uint64_t number_of(uint64_t step, const LedgerTerms& terms = kTerms) {
  const data::Sampler sampler(terms.seed, terms.dataset_size, terms.windows);
  uint64_t sum = 0;
  for (uint64_t p = step * terms.global_batch; p < (step + 1) * terms.global_batch; ++p)
    sum += sample_mark(p, sampler.at(p).epoch, sampler.at(p).sample);
  return sum;
}

LedgerRecord record_of(uint64_t first, uint64_t end, uint64_t life = 1,
                       const LedgerTerms& terms = kTerms) {
  LedgerRecord record;
  record.life = life;
  record.first = first;
  record.end = end;
  record.terms = terms;
  for (uint64_t step = first; step < end; ++step) record.numbers.push_back(number_of(step, terms));
  return record;
}

LedgerText ledger_of(std::vector<LedgerRecord> records) {
  return {.records = std::move(records), .damaged = {}, .whole_bytes = 0};
}

// The error of a proof, "" where it holds.
std::string flaw(const LedgerText& ledger, uint64_t end) {
  try {
    prove(ledger, end, 2);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kFault);
    return error.what();
  }
}

uint64_t sample_at(uint64_t position) {
  return data::Sampler(kTerms.seed, kSamples).at(position).sample;
}

// Runs of years compare with what is written now.
TEST(SampleMark, StaysWhatItIs) {
  EXPECT_EQ(sample_mark(0, 0, 0), 0x46eb417eef907ec4u);
  EXPECT_EQ(sample_mark(1, 2, 3, 4), 0xde59611246bc83f8u);
}

TEST(SampleMark, DependsOnEachNumber) {
  const uint64_t mark = sample_mark(7, 1, 5, 3);
  for (const uint64_t other :
       {sample_mark(8, 1, 5, 3), sample_mark(7, 2, 5, 3), sample_mark(7, 1, 6, 3),
        sample_mark(7, 1, 5, 2), sample_mark(7, 1, 5), sample_mark(1, 7, 5, 3)}) {
    EXPECT_NE(other, mark);
    EXPECT_GT(std::popcount(other ^ mark), 12);  // half of 64 in the mean
  }
}

TEST(LedgerText, ARecordComesBackAsItWas) {
  LedgerRecord record = record_of(4, 9, 3);
  record.substituted = {{25, sample_at(25), 7, "a/b \"c\".jpg: \n torn"}};
  record.skipped = {{5, 7, "roll-back: loss nan"}};
  const LedgerText text = parse_ledger(to_line(record) + "\n");
  ASSERT_EQ(text.records.size(), 1u);
  EXPECT_TRUE(text.damaged.empty());
  const LedgerRecord& back = text.records[0];
  EXPECT_EQ(back.life, 3u);
  EXPECT_EQ(back.first, 4u);
  EXPECT_EQ(back.end, 9u);
  EXPECT_EQ(back.terms, record.terms);
  EXPECT_EQ(back.numbers, record.numbers);
  ASSERT_EQ(back.substituted.size(), 1u);
  EXPECT_EQ(back.substituted[0].position, 25u);
  EXPECT_EQ(back.substituted[0].reason, record.substituted[0].reason);
  ASSERT_EQ(back.skipped.size(), 1u);
  EXPECT_EQ(back.skipped[0].end, 7u);
  EXPECT_EQ(back.skipped[0].reason, "roll-back: loss nan");
}

TEST(LedgerText, EveryPrefixHasTheWholeLinesOnly) {
  const std::string first = to_line(record_of(0, 2)) + "\n";
  const std::string text = first + to_line(record_of(2, 4)) + "\n";
  for (size_t bytes = 0; bytes <= text.size(); ++bytes) {
    const LedgerText ledger = parse_ledger(text.substr(0, bytes));
    const size_t whole = (bytes >= first.size()) + (bytes == text.size());
    ASSERT_EQ(ledger.records.size(), whole) << bytes;
    ASSERT_TRUE(ledger.damaged.empty()) << bytes;
    ASSERT_EQ(ledger.whole_bytes, bytes == text.size() ? bytes : whole * first.size());
  }
}

TEST(LedgerText, EveryFlippedBitIsFound) {
  const std::string line = to_line(record_of(0, 2));
  for (size_t i = 0; i < line.size() * 8; ++i) {
    std::string text = line + "\n" + to_line(record_of(2, 4)) + "\n";
    text[i / 8] = static_cast<char>(text[i / 8] ^ (1 << (i % 8)));
    const LedgerText ledger = parse_ledger(text);
    ASSERT_GE(ledger.damaged.size(), 1u) << i;
    ASSERT_EQ(ledger.records.size(), 1u) << i;
    ASSERT_NE(flaw(ledger, 4).find("fails at step 0, position 0: no whole line holds steps 0 to 1"),
              std::string::npos)
        << flaw(ledger, 4);
  }
}

// R50.
TEST(LedgerText, HostileRecordsAreRefused) {
  const std::string good =
      R"({"ledger":1,"life":1,"first":0,"end":1,"samples":23,"batch":6,"seed":5,"dataset":"d","steps":"0000000000000000"})";
  EXPECT_EQ(parse_record(good).numbers.size(), 1u);
  const auto refused = [](const std::string& text) {
    try {
      parse_record(text);
      return false;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      return error.code() == ExitCode::kFault || error.code() == ExitCode::kBadData;
    }
  };
  const std::pair<const char*, const char*> changes[] = {
      {"\"ledger\":1", "\"ledger\":3"},
      {"\"seed\"", "\"window\":1,\"seed\""},
      {"\"seed\"", "\"window\":0,\"shards\":[[1,23]],\"seed\""},
      {"\"seed\"", "\"window\":1,\"shards\":[[1,22]],\"seed\""},
      {"\"seed\"", "\"window\":1,\"shards\":[[9999999,23]],\"seed\""},
      {"\"seed\"", "\"window\":1,\"shards\":[[10000001,0],[1,23]],\"seed\""},
      {"\"ledger\":1", "\"ledger\":\"1\""},
      {"\"life\":1", "\"life\":-1"},
      {"\"life\":1", "\"life\":1e400"},
      {"\"first\":0", "\"first\":1"},
      {"\"first\":0", "\"firs\":0"},
      {"\"end\":1", "\"end\":18446744073709551615"},
      {"\"end\":1", "\"end\":1000000000000"},
      {"\"end\":1", "\"end\":2"},
      {"\"samples\":23", "\"samples\":0"},
      {"\"samples\":23", "\"samples\":9223372036854775807"},
      {"\"batch\":6", "\"batch\":0"},
      {"\"batch\":6", "\"batch\":1e99"},
      {"\"seed\":5", "\"seed\":5.5"},
      {"\"dataset\":\"d\"", "\"dataset\":7"},
      {"\"0000000000000000\"", "\"000000000000000\""},
      {"\"0000000000000000\"", "\"000000000000000g\""},
      {"\"0000000000000000\"", "[0]"},
      {"\"steps\"", "\"substituted\":{},\"steps\""},
      {"\"steps\"", "\"substituted\":[[6,0,0,\"\"]],\"steps\""},
      {"\"steps\"", "\"substituted\":[[1,0,0,\"\"],[1,0,0,\"\"]],\"steps\""},
      {"\"steps\"", "\"substituted\":[[1,0,0]],\"steps\""},
      {"\"steps\"", "\"skipped\":[[0,2,\"\"]],\"steps\""},
      {"\"steps\"", "\"skipped\":[[1,1,\"\"]],\"steps\""},
      {"\"steps\"", "\"unrecorded\":\"\",\"steps\""},
  };
  for (const auto& [from, to] : changes) {
    std::string text = good;
    text.replace(text.find(from), std::string_view(from).size(), to);
    EXPECT_TRUE(refused(text)) << text;
  }
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("null"), std::string("{"),
        std::string(100000, '['), std::string("\0{}", 3), good + good})
    EXPECT_TRUE(refused(text));
}

TEST(LedgerPath, LaterLinesReplaceEarlierOnes) {
  const std::vector<LedgerRecord> records = {record_of(0, 5), record_of(5, 10), record_of(10, 15),
                                             record_of(8, 12, 2), record_of(12, 13, 2)};
  const std::vector<LedgerPiece> path = surviving_path(records);
  ASSERT_EQ(path.size(), 4u);
  EXPECT_EQ(path[1].first, 5u);
  EXPECT_EQ(path[1].end, 8u);
  EXPECT_EQ(path[2].first, 8u);
  EXPECT_EQ(path[3].end, 13u);
  EXPECT_EQ(flaw(ledger_of(records), 13), "");
  EXPECT_NE(flaw(ledger_of(records), 14).find("fails at step 13, position 78"), std::string::npos);
}

TEST(LedgerProof, CountsEpochs) {
  // 14 steps of 6 are 84 positions: 3 epochs of 23 and 15 samples.
  const LedgerProof proof =
      prove(ledger_of({record_of(0, 6), record_of(6, 9, 2), record_of(8, 20, 3)}), 14, 2);
  EXPECT_EQ(proof.positions, 84u);
  EXPECT_EQ(proof.whole_epochs, 3u);
  EXPECT_EQ(proof.last_epoch, 3u);
  EXPECT_EQ(proof.last_epoch_samples, 15u);
  EXPECT_EQ(proof.lives, 3u);
  EXPECT_EQ(proof.records, 3u);
  const LedgerProof even = prove(ledger_of({record_of(0, 23)}), 23, 1);
  EXPECT_EQ(even.whole_epochs, 6u);
  EXPECT_EQ(even.last_epoch_samples, 0u);
}

TEST(LedgerProof, ThreadsAgree) {
  const LedgerTerms terms{
      .dataset_size = 50021, .global_batch = 1000, .seed = 1, .dataset_digest = ""};
  const LedgerText ledger = ledger_of({record_of(0, 120, 1, terms)});
  for (const int threads : {1, 2, 3, 7}) {
    const LedgerProof proof = prove(ledger, 120, threads);
    EXPECT_EQ(proof.whole_epochs, 2u);
    EXPECT_EQ(proof.last_epoch_samples, 120000u - 2 * 50021);
  }
}

// What windows of shards consumed is proven, too, and is not what a full shuffle consumes.
TEST(LedgerProof, KnowsWindowsOfShards) {
  LedgerTerms terms{.dataset_size = 5003, .global_batch = 100, .seed = 1, .dataset_digest = "d"};
  terms.windows = {.shards = {1000, 1000, 3, 2000, 1000}, .window = 2};
  const LedgerRecord record = record_of(0, 120, 1, terms);
  const LedgerText ledger = parse_ledger(to_line(record) + "\n");
  ASSERT_EQ(ledger.records.size(), 1u) << ledger.damaged.front();
  EXPECT_EQ(ledger.records[0].terms, terms);
  for (const int threads : {1, 3}) EXPECT_EQ(prove(ledger, 120, threads).whole_epochs, 2u);
  LedgerText other = ledger;
  other.records[0].terms.windows.window = 3;
  EXPECT_NE(flaw(other, 120), "");
  other.records[0].terms.windows = {};
  EXPECT_NE(flaw(other, 120), "");
  // Shards that are not those of the dataset.
  std::string line = to_line(record);
  line = line.substr(0, line.rfind(",\"check\"")) + "}";
  EXPECT_EQ(parse_record(line).terms, terms);
  const size_t at = line.find("[1,3]");
  ASSERT_NE(at, std::string::npos) << line.substr(0, 300);
  EXPECT_THROW(parse_record(line.replace(at, 5, "[2,3]")), Error);
}

TEST(LedgerProof, NamesTheFirstStepAndPositionThatDiffers) {
  const data::Sampler sampler(kTerms.seed, kSamples);
  const auto with = [&](uint64_t step, uint64_t change) {
    LedgerRecord record = record_of(0, 10);
    record.numbers[step] += change;
    return flaw(ledger_of({record}), 10);
  };
  const auto says = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  const uint64_t p = 31;  // in step 5
  const data::StreamPoint point = sampler.at(p);
  const uint64_t mark = sample_mark(p, point.epoch, point.sample);
  says(with(5, mark), "fails at step 5, position 31");
  says(with(5, mark), fmt::format("sample {} twice", point.sample));
  says(with(5, 0 - mark), "fails at step 5, position 31");
  says(with(5, 0 - mark), fmt::format("sample {} not at all", point.sample));
  const uint64_t other = (point.sample + 1) % kSamples;
  const std::string replaced = with(5, sample_mark(p, point.epoch, other) - mark);
  says(replaced, "fails at step 5, position 31");
  says(replaced, fmt::format("sample {} in place of {}", other, point.sample));
  says(with(5, sample_mark(p, point.epoch, point.sample, other) - mark), "which is not listed");
  says(with(9, 12345), "fails at step 9, position 54");
  // The step that has the other order of samples, but of another epoch.
  LedgerRecord swapped = record_of(0, 10);
  std::swap(swapped.numbers[3], swapped.numbers[4]);
  says(flaw(ledger_of({swapped}), 10), "fails at step 3, position 18");
}

TEST(LedgerProof, GapsAreFound) {
  EXPECT_NE(flaw(ledger_of({}), 4).find("no whole line holds steps 0 to 3"), std::string::npos);
  const std::string gap = flaw(ledger_of({record_of(0, 3), record_of(5, 9)}), 9);
  EXPECT_NE(gap.find("fails at step 3, position 18: no whole line holds steps 3 to 4"),
            std::string::npos)
      << gap;
}

TEST(LedgerProof, SubstitutesAndSkippedRangeAreListed) {
  LedgerRecord record = record_of(0, 10);
  const uint64_t p = 20, sample = sample_at(p);
  record.substituted = {{p, sample, 4, "bad"}};
  record.numbers[3] += sample_mark(p, 0, sample, 4) - sample_mark(p, 0, sample);
  record.skipped = {{6, 8, "nan"}};
  record.numbers[6] = record.numbers[7] = 0;
  const LedgerProof proof = prove(ledger_of({record}), 10, 1);
  ASSERT_EQ(proof.substituted.size(), 1u);
  EXPECT_EQ(proof.substituted[0].substitute, 4u);
  ASSERT_EQ(proof.skipped.size(), 1u);
  EXPECT_EQ(proof.skipped[0].first, 6u);

  LedgerRecord not_skipped = record;
  not_skipped.skipped.clear();
  EXPECT_NE(flaw(ledger_of({not_skipped}), 10).find("fails at step 6, position 36"),
            std::string::npos);
  LedgerRecord other_sample = record;
  other_sample.substituted[0].sample = (sample + 1) % kSamples;
  EXPECT_NE(flaw(ledger_of({other_sample}), 10).find("fails at step 3, position 20"),
            std::string::npos);
}

TEST(LedgerProof, AnotherJobInTheMiddleIsSaid) {
  LedgerTerms other = kTerms;
  other.global_batch = 10;
  const LedgerProof proof = prove(ledger_of({record_of(0, 8), record_of(8, 12, 2, other)}), 12, 1);
  EXPECT_EQ(proof.changed_at, std::vector<uint64_t>{8});
  EXPECT_EQ(proof.whole_epochs, 3u);  // positions 0 to 46: two; 80 to 120: the one from 92
}

class LedgerFile : public testing::Test {
 protected:
  Ledger::Config config(uint64_t step = 0, uint64_t life = 1) const {
    return {.out_dir = folder_.path(),
            .terms = kTerms,
            .workers = kWorkers,
            .batch_per_worker = kPerWorker,
            .life = life,
            .step = step,
            .resumed_from = step > 0 ? folder_.path("checkpoints/step-1") : std::string()};
  }
  static void add(Ledger& ledger, uint64_t first, uint64_t end) {
    for (uint64_t step = first; step < end; ++step)
      for (int worker = kWorkers - 1; worker >= 0; --worker) ledger.add(batch_of(step, worker));
  }
  LedgerText text() const { return read_ledger(folder_.path()); }

  TempFolder folder_;
  std::unique_ptr<comm::Communicator> communicator_ = comm::make_communicator("local");
};

TEST_F(LedgerFile, HoldsWhatWasConsumedWhateverTheThreads) {
  Ledger ledger(config(), true);
  {
    std::vector<std::jthread> lanes;
    for (int worker = 0; worker < static_cast<int>(kWorkers); ++worker)
      lanes.emplace_back([&, worker] {
        for (uint64_t step = 0; step < 40; ++step) ledger.add(batch_of(step, worker));
      });
  }
  EXPECT_TRUE(ledger.save(*communicator_, 30, {}));  // steps 30 to 39 are of the next line
  EXPECT_TRUE(ledger.save(*communicator_, 30, {}));  // nothing new, no line
  EXPECT_TRUE(ledger.save(*communicator_, 40, {}));
  ASSERT_EQ(text().records.size(), 2u);
  EXPECT_EQ(text().records[1].first, 30u);
  EXPECT_EQ(flaw(text(), 40), "");
}

TEST_F(LedgerFile, WhatTheLoaderDeliversWronglyIsProvenWrong) {
  Ledger ledger(config(), true);
  add(ledger, 0, 3);
  data::Batch twice = batch_of(3, 0);
  twice.sample_ids[1] = twice.sample_ids[0];
  ledger.add(twice);
  ledger.add(batch_of(3, 1));
  ASSERT_TRUE(ledger.save(*communicator_, 4, {}));
  EXPECT_NE(flaw(text(), 4).find("fails at step 3, position 19"), std::string::npos)
      << flaw(text(), 4);
}

TEST_F(LedgerFile, SubstitutesComeFromTheBatchAndTheirReasonsFromTheLoader) {
  Ledger ledger(config(), true);
  data::Batch batch = batch_of(0, 1);
  batch.substitutes[2] = 9;
  ledger.add(batch_of(0, 0));
  ledger.add(batch);
  add(ledger, 1, 2);
  const std::vector<data::Substitution> said = {{5, 0, batch.sample_ids[2], 9, "x.jpg: torn"},
                                                {7, 0, 1, 2, "made, but not consumed yet"}};
  ASSERT_TRUE(ledger.save(*communicator_, 2, said));
  const LedgerProof proof = prove(text(), 2, 1);
  ASSERT_EQ(proof.substituted.size(), 1u);
  EXPECT_EQ(proof.substituted[0].position, 5u);
  EXPECT_EQ(proof.substituted[0].reason, "x.jpg: torn");
}

TEST_F(LedgerFile, ATornLineIsCutAndALifeGoesOn) {
  {
    Ledger ledger(config(), true);
    add(ledger, 0, 6);
    ASSERT_TRUE(ledger.save(*communicator_, 4, {}));
    ASSERT_TRUE(ledger.save(*communicator_, 6, {}));
  }
  const std::string whole = read_file(folder_.path("ledger.jsonl"));
  folder_.write("ledger.jsonl", whole + whole.substr(0, 50));
  Ledger ledger(config(4, 2), true);
  EXPECT_EQ(read_file(folder_.path("ledger.jsonl")), whole);
  add(ledger, 4, 9);
  ASSERT_TRUE(ledger.save(*communicator_, 9, {}));
  EXPECT_EQ(text().records.size(), 3u);
  EXPECT_EQ(flaw(text(), 9), "");
  EXPECT_EQ(prove(text(), 9, 1).lives, 2u);
}

// R23: nothing is lost and nothing half-written while the disk is full.
TEST_F(LedgerFile, AFullDiskIsTriedAgainWithTheNextSave) {
  Ledger ledger(config(), true);
  add(ledger, 0, 3);
  ASSERT_TRUE(ledger.save(*communicator_, 3, {}));
  const std::string before = read_file(folder_.path("ledger.jsonl"));
  add(ledger, 3, 8);
  {
    const FileSizeLimit full(before.size() + 100);
    EXPECT_FALSE(ledger.save(*communicator_, 5, {}));
  }
  EXPECT_EQ(read_file(folder_.path("ledger.jsonl")), before);
  EXPECT_TRUE(ledger.save(*communicator_, 8, {}));
  EXPECT_TRUE(text().damaged.empty());
  EXPECT_EQ(flaw(text(), 8), "");
}

TEST_F(LedgerFile, R23ATornLineThatCannotBeCutIsCutBeforeTheNext) {
  Ledger ledger(config(), true);
  add(ledger, 0, 3);
  ASSERT_TRUE(ledger.save(*communicator_, 3, {}));
  const std::string before = read_file(folder_.path("ledger.jsonl"));
  add(ledger, 3, 8);
  const test::TornWrite torn("ledger.jsonl");
  EXPECT_FALSE(ledger.save(*communicator_, 5, {}));
  EXPECT_GT(read_file(folder_.path("ledger.jsonl")).size(), before.size());
  EXPECT_TRUE(ledger.save(*communicator_, 8, {}));
  EXPECT_TRUE(torn.was_cut_again());
  EXPECT_TRUE(text().damaged.empty());
  EXPECT_EQ(flaw(text(), 8), "");
}

TEST_F(LedgerFile, GoingBackWithinALifeCountsAnew) {
  Ledger ledger(config(), true);
  add(ledger, 0, 5);
  ASSERT_TRUE(ledger.save(*communicator_, 5, {}));
  add(ledger, 5, 7);
  ledger.rewind(4);
  add(ledger, 4, 6);
  ledger.rewind(5);
  ledger.skip(5, 7, "the loss was not finite");
  add(ledger, 7, 9);
  ASSERT_TRUE(ledger.save(*communicator_, 9, {}));
  const LedgerProof proof = prove(text(), 9, 1);
  ASSERT_EQ(proof.skipped.size(), 1u);
  EXPECT_EQ(proof.skipped[0].first, 5u);
  EXPECT_EQ(proof.skipped[0].end, 7u);
}

// R29.
TEST_F(LedgerFile, AFileThatIsRemovedIsBegunAnewAndSaysSo) {
  Ledger ledger(config(), true);
  add(ledger, 0, 4);
  ASSERT_TRUE(ledger.save(*communicator_, 4, {}));
  std::filesystem::remove_all(folder_.path());
  add(ledger, 4, 6);
  {
    const test::TornWrite torn("ledger.jsonl");
    EXPECT_FALSE(ledger.save(*communicator_, 5, {}));
  }
  ASSERT_TRUE(ledger.save(*communicator_, 6, {}));
  const LedgerProof proof = prove(text(), 6, 1);
  EXPECT_EQ(proof.first, 4u);
  EXPECT_TRUE(proof.lost);
  EXPECT_EQ(proof.positions, 2 * kBatch);
  EXPECT_NE(proof.unrecorded.find("removed"), std::string::npos);
}

TEST_F(LedgerFile, ARunWithoutALedgerSaysWhereItBegins) {
  Ledger ledger(config(5), true);
  add(ledger, 5, 8);
  ASSERT_TRUE(ledger.save(*communicator_, 8, {}));
  const LedgerProof proof = prove(text(), 8, 1);
  EXPECT_EQ(proof.first, 5u);
  EXPECT_NE(proof.unrecorded, "");
  EXPECT_TRUE(proof.lost);
  EXPECT_EQ(proof.positions, 3 * kBatch);

  // Of steps that another run trained, this one need not know.
  const TempFolder mine;
  Ledger::Config begun = config(8);
  begun.out_dir = mine.path();
  Ledger taken_over(begun, true);
  const LedgerProof taken = prove(read_ledger(mine.path()), 8, 1);
  EXPECT_EQ(taken.first, 5u);
  EXPECT_EQ(taken.unrecorded, proof.unrecorded);
  EXPECT_FALSE(taken.lost);
}

TEST(LedgerProof, EpochsWithStepsThatWerePassedOverAreCountedApart) {
  // Epochs of 23 positions, steps of 6: [0, 23), [23, 46), [46, 69), and 15 of the fourth.
  LedgerRecord record = record_of(0, 14);
  record.skipped = {{5, 6, "nan"}, {5, 7, "again"}, {12, 13, "nan"}};  // [30, 42) and [72, 78)
  for (const size_t step : {5, 6, 12}) record.numbers[step] = 0;
  const LedgerProof proof = prove(ledger_of({record}), 14, 2);
  EXPECT_EQ(proof.positions, 84u);
  EXPECT_EQ(proof.skipped_positions, 18u);
  EXPECT_EQ(proof.whole_epochs, 2u);
  EXPECT_EQ(proof.skipped_epochs, 1u);
  EXPECT_EQ(proof.last_epoch_samples, 9u);
  EXPECT_EQ(proof.last_epoch_skipped, 6u);
  // A step on the border of two epochs is of both.
  record.skipped = {{3, 4, "nan"}};  // [18, 24)
  record.numbers = record_of(0, 14).numbers;
  const LedgerProof border = prove(ledger_of({record}), 14, 2);
  EXPECT_EQ(border.whole_epochs, 1u);
  EXPECT_EQ(border.skipped_epochs, 2u);
  EXPECT_EQ(border.skipped_positions, 6u);
}

// What it costs: no assertion, the numbers go into the notes.
TEST(LedgerCost, IsPrinted) {
  constexpr uint64_t kMarks = 4000000;
  data::Batch batch = batch_of(0, 0);
  batch.size = 256;
  batch.sample_ids.assign(256, 5);
  batch.epochs.assign(256, 1);
  batch.substitutes.assign(256, kNoSubstitute);
  const TempFolder folder;
  Ledger ledger({.out_dir = folder.path(), .terms = kTerms, .workers = 2, .batch_per_worker = 256},
                false);
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t i = 0; i < kMarks / 256; ++i) ledger.add(batch);
  const std::chrono::duration<double, std::nano> add_ns = std::chrono::steady_clock::now() - start;
  const LedgerTerms terms{
      .dataset_size = 1281167, .global_batch = 256, .seed = 1, .dataset_digest = ""};
  const LedgerText text = ledger_of({record_of(0, 2000, 1, terms)});
  const double seconds = prove(text, 2000, 1).seconds;
  std::cout << fmt::format(
      "recording {:.1f} ns per sample; proving {:.0f} ns per sample and thread\n",
      add_ns.count() / kMarks, seconds * 1e9 / (2000 * 256));
  EXPECT_GT(seconds, 0);
}

}  // namespace
}  // namespace convoy::trainer
