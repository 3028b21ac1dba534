// trainer/engine/plans.*: files of plans, and what becomes of them when they are changed.
#include "trainer/engine/plans.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "data_loader/files.h"
#include "ops/core/digest.h"
#include "tests/support/temp_folder.h"

namespace convoy::trainer {
namespace {

const std::string kTarget = plan_target("a GPU (sm_90)", "CUDA 13.0, cuDNN 9.19.0");
const std::string kPlans = "forward x = 9:2=1\nproduct = none\n";

TEST(Plans, AreReadForWhatTheyWereMadeFor) {
  const test::TempFolder folder;
  const std::string path = folder.path("plans.txt");
  EXPECT_EQ(read_plans(path, kTarget), std::nullopt);
  write_plans(path, kTarget, kPlans);
  EXPECT_EQ(read_plans(path, kTarget), kPlans);
  EXPECT_EQ(read_plans(path, plan_target("a GPU (sm_90)", "CUDA 13.0, cuDNN 9.20.0")),
            std::nullopt);
  EXPECT_EQ(read_plans(path, plan_target("another GPU (sm_90)", "CUDA 13.0, cuDNN 9.19.0")),
            std::nullopt);
  write_plans(path, kTarget, "");
  EXPECT_EQ(read_plans(path, kTarget), "");
}

TEST(Plans, AFileThatIsNotWholeOrNoPlansIsNone) {
  const test::TempFolder folder;
  const std::string path = folder.path("plans.txt");
  write_plans(path, kTarget, kPlans);
  const std::string whole = test::read_file(path);
  for (size_t bytes = 0; bytes + 1 < whole.size(); ++bytes) {  // the last one ends the line
    test::write_file(path, whole.substr(0, bytes));
    EXPECT_EQ(read_plans(path, kTarget), std::nullopt) << bytes;
    std::string flipped = whole;
    flipped[bytes] = static_cast<char>(flipped[bytes] ^ 1);
    test::write_file(path, flipped);
    EXPECT_EQ(read_plans(path, kTarget), std::nullopt) << bytes;
  }
  // A right digest makes nothing right.
  for (const std::string& plans :
       {std::string("x\n"), std::string("a = fast\n"), std::string("a = 1\n\n"),
        std::string("\0 = 1:\n", 7), std::string("a = 99999999999999999999\n")}) {
    write_plans(path, kTarget, plans);
    EXPECT_EQ(read_plans(path, kTarget), std::nullopt) << plans;
  }
}

TEST(Plans, KernelsAreReadForWhatTheyWereMadeFor) {
  const test::TempFolder folder;
  const KernelStore store = kernel_store(folder.path(), kTarget);
  EXPECT_EQ(store.read("a = 1"), "");
  store.write("a = 1", "compiled\nfor a\n");
  store.write("b = 1", "compiled for b");
  EXPECT_EQ(store.read("a = 1"), "compiled\nfor a\n");
  EXPECT_EQ(kernel_store(folder.path(), kTarget).read("b = 1"), "compiled for b");
  EXPECT_EQ(store.read("a = 2"), "");
  EXPECT_EQ(kernel_store(folder.path(), std::string(kTarget) + "1").read("a = 1"), "");
  // Another's under the name of this one, as a whole file.
  std::map<std::string, std::string> by_text;  // path
  for (const auto& file : std::filesystem::directory_iterator(folder.path()))
    by_text[data::read_cache(file.path())] = file.path();
  ASSERT_EQ(by_text.size(), 2u);
  test::write_file(by_text.begin()->second, test::read_file(by_text.rbegin()->second));
  EXPECT_EQ(store.read("a = 1"), "");
  EXPECT_EQ(store.read("b = 1"), "compiled for b");
}

TEST(Plans, KernelsThatCannotBeKeptAreOneWarning) {
  const test::TempFolder folder;
  const KernelStore store = kernel_store(folder.path("gone"), kTarget);
  testing::internal::CaptureStderr();
  for (const char* name : {"a = 1", "b = 1", "c = 1"}) {
    store.write(name, "compiled");
    EXPECT_EQ(store.read(name), "");
  }
  const std::string said = testing::internal::GetCapturedStderr();
  const size_t first = said.find("cannot be written");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(said.find("cannot be written", first + 1), std::string::npos) << said;
}

TEST(Plans, ChangesAreThoseOfWhatBothHave) {
  EXPECT_TRUE(changed_plans(kPlans, kPlans).empty());
  EXPECT_TRUE(changed_plans("", kPlans).empty());
  EXPECT_TRUE(changed_plans(kPlans, "").empty());
  EXPECT_TRUE(changed_plans(kPlans, kPlans + "more = 3\n").empty());
  EXPECT_EQ(changed_plans(kPlans, "forward x = 9:2=2\nproduct = none\n"),
            std::vector<std::string>{"forward x: 9:2=1 -> 9:2=2"});
}

// A CPU has nothing to decide: whatever a checkpoint of a GPU says, and the cache stays empty.
TEST(Plans, OfACpuAreNone) {
  const test::TempFolder cache;
  const auto communicator = comm::make_communicator("local");
  const auto device = ops::make_device("cpu", 1);
  for (const auto& stored : {std::optional<std::string>(), std::optional<std::string>(kPlans)}) {
    int decided = 0;
    agree_on_plans(*communicator, *device,
                   {.stored = stored, .tune = true, .cache_folder = cache.path()},
                   [&] { ++decided; });
    EXPECT_EQ(decided, 1);
    EXPECT_EQ(device->decisions(), "");
  }
  EXPECT_TRUE(std::filesystem::is_empty(cache.path()));
  communicator->finish(0);
}

}  // namespace
}  // namespace convoy::trainer
