#include "trainer/base/fault.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::trainer {
namespace {

std::string refusal(const std::string& text) {
  try {
    parse_fault(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "";
}

class FaultsTest : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("CONVOY_ALLOW_FAULTS", "1", 1);
    log::set_level(log::Level::kError);
  }
  void TearDown() override {
    ::unsetenv("CONVOY_ALLOW_FAULTS");
    log::set_level(log::Level::kInfo);
  }
};

TEST_F(FaultsTest, TextIsReadAndRefusedByName) {
  const Fault fault =
      parse_fault("rank=2 step=40 kind=bitflip what=momentum index=7 bit=3 at=save count=4");
  EXPECT_EQ(fault.kind, FaultKind::kBitflip);
  EXPECT_EQ(fault.rank, 2);
  EXPECT_EQ(fault.step, 40u);
  EXPECT_EQ(fault.what, FaultTarget::kMomentum);
  EXPECT_EQ(fault.index, 7u);
  EXPECT_EQ(fault.bit, 3);
  EXPECT_EQ(fault.at, FaultPoint::kSave);
  EXPECT_EQ(fault.count, 4u);
  EXPECT_NE(refusal("kind=kil").find("\"kill\""), std::string::npos);
  EXPECT_NE(refusal("kind=kill rnk=1").find("\"rank\""), std::string::npos);
  EXPECT_NE(refusal("step=1").find("no kind="), std::string::npos);
  for (const char* number : {"-1", "1e400", "nan", "", "3x"})
    EXPECT_NE(refusal(fmt::format("kind=kill step={}", number)), "") << number;
  EXPECT_NE(refusal("kind=bitflip bit=32"), "");
}

TEST_F(FaultsTest, HappensOnceOnItsRankAtItsPoint) {
  Faults faults({"rank=1 step=5 kind=throw at=reduce"});
  faults.at(FaultPoint::kReduce, 5);  // no rank yet
  faults.set_rank(1);
  faults.at(FaultPoint::kReduce, 4);
  faults.at(FaultPoint::kCompute, 5);
  EXPECT_THROW(faults.at(FaultPoint::kReduce, 5), std::runtime_error);
  faults.at(FaultPoint::kReduce, 5);  // the step done again
  EXPECT_EQ(faults.change(5), nullptr);
}

TEST_F(FaultsTest, ChangesAreGivenOnce) {
  Faults faults({"rank=0 step=3 kind=nan what=gradient"});
  faults.set_rank(0);
  faults.at(FaultPoint::kCompute, 3);
  EXPECT_EQ(faults.change(2), nullptr);
  const Fault* fault = faults.change(3);
  ASSERT_NE(fault, nullptr);
  EXPECT_EQ(fault->what, FaultTarget::kGradient);
  EXPECT_EQ(faults.change(3), nullptr);
}

TEST_F(FaultsTest, MustBeAllowed) {
  ::unsetenv("CONVOY_ALLOW_FAULTS");
  EXPECT_THROW(Faults({"kind=kill"}), Error);
  Faults none({});
  none.at(FaultPoint::kStart, 0);
}

}  // namespace
}  // namespace convoy::trainer
