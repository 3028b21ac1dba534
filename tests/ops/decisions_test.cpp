// ops/decisions.*: choices and decisions as text, whatever the text is, and what is refused.
#include "ops/decisions.h"

#include <gtest/gtest.h>

#include "tests/support/op_tester.h"

namespace convoy {
namespace {

using ops::expect_error;

TEST(Choice, IsText) {
  for (const Choice& choice :
       {Choice{.engine = 62, .knobs = {{2, 8}, {13, 1}}}, Choice{.engine = 0, .knobs = {}},
        Choice{}, Choice{.engine = Choice::kElsewhere, .knobs = {}}})
    EXPECT_EQ(parse_choice(to_text(choice)), choice);
  EXPECT_EQ(to_text(Choice{.engine = 62, .knobs = {{2, 8}, {13, 1}}}), "62:2=8,13=1");
  EXPECT_EQ(to_text(Choice{.engine = 0, .knobs = {}}), "0");
  EXPECT_EQ(to_text(Choice{}), "none");
  EXPECT_EQ(to_text(Choice{.engine = Choice::kElsewhere, .knobs = {}}), "elsewhere");
  for (const char* text : {"", "x", "-3", "6 ", "62:", "62:2", "62:2=", "62:=8", "62:2=8,",
                           "62,2=8", "62:2=8=9", "99999999999999999999"})
    expect_error(ExitCode::kBadData, {fmt::format("\"{}\"", text), "62:2=8,13=1"},
                 [&] { parse_choice(text); });
}

TEST(Decisions, AreLinesInTheOrderOfTheNames) {
  Decisions all;
  EXPECT_EQ(all.text(), "");
  all.decide("forward b", {.engine = 3, .knobs = {{1, 2}}});
  all.decide("forward a = c", {});
  EXPECT_EQ(all.text(), "forward a = c = none\nforward b = 3:1=2\n");

  Decisions other;
  other.prescribe(all.text());
  EXPECT_EQ(other.text(), "") << "what is prescribed is decided when it is asked for";
  ASSERT_TRUE(other.prescribed("forward b"));
  EXPECT_EQ(*other.prescribed("forward b"), (Choice{.engine = 3, .knobs = {{1, 2}}}));
  ASSERT_TRUE(other.prescribed("forward a = c"));
  EXPECT_EQ(*other.prescribed("forward a = c"), Choice{});
  EXPECT_FALSE(other.prescribed("forward"));
  other.prescribe("forward b = 4");
  EXPECT_EQ(other.prescribed("forward b")->engine, 4);
  EXPECT_TRUE(other.prescribed("forward a = c")) << "the others stay";
}

TEST(Decisions, ATextThatIsNoneChangesNothing) {
  for (const std::string bad : {"x", "\n", " = 3", "a = ", "a =3", "a = 3 ", "a = 3\nb",
                                "a = 3\n\nb = 4", "a = 1e3", "a = 3:1", "a = -1", "\xff\x01"}) {
    Decisions all;
    expect_error(ExitCode::kBadData, {"no choice of an engine"},
                 [&] { all.prescribe("first = 1\n" + bad); });
    EXPECT_FALSE(all.prescribed("first")) << bad;
    EXPECT_FALSE(all.prescribed("a")) << bad;
  }
}

TEST(Decisions, WhatIsRefusedStopsOrIsForgotten) {
  Decisions all;
  all.prescribe("forward a = 3:1=2\n");
  try {
    all.refuse("forward a", "cuDNN 1.2.3", "too old");
    ADD_FAILURE() << "not thrown";
  } catch (const PlanRefused& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    EXPECT_STREQ(e.what(),
                 "cuDNN 1.2.3 refuses engine 3:1=2, which was chosen before, for forward a: too "
                 "old");
  }
  EXPECT_TRUE(all.prescribed("forward a"));
  all.prescribe("forward a = 3:1=2\n", Refused::kReplace);
  testing::internal::CaptureStderr();
  all.refuse("forward a", "cuDNN 1.2.3", "too old");
  const std::string said = testing::internal::GetCapturedStderr();
  for (const char* word : {"cuDNN 1.2.3", "3:1=2", "forward a", "too old", "another one"})
    EXPECT_NE(said.find(word), std::string::npos) << said;
  EXPECT_FALSE(all.prescribed("forward a"));
  all.prescribe("forward a = elsewhere\n");
  expect_error(ExitCode::kBadJob, {"cuDNN 1.2.3 was to leave forward a to something else", "gone"},
               [&] { all.refuse("forward a", "cuDNN 1.2.3", "gone"); });
}

}  // namespace
}  // namespace convoy
