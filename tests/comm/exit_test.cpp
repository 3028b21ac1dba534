// A job of several ranks ends as a whole, with one exit code and each message once.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <string>

#include "tests/support/temp_folder.h"

namespace {

struct Outcome {
  int exit_code = -1;
  std::string output;  // standard output and standard error
};

// Runs under a time limit, so that a job that hangs fails (124) instead of the whole test run.
Outcome run(const std::string& command) {
  Outcome outcome;
  std::FILE* pipe = popen(("timeout -k 5 " CONVOY_RUN_LIMIT " " + command + " 2>&1").c_str(), "r");
  if (!pipe) return outcome;
  char buffer[4096];
  while (size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) outcome.output.append(buffer, n);
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

Outcome run_ranks(int ranks, const std::string& mode) {
  const convoy::test::TempFolder session;  // tests/end_to_end/program.cpp says why
  return run("env OMPI_MCA_orte_tmpdir_base='" + session.path() +
             "' OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 '" CONVOY_MPIEXEC
             "' -n " +
             std::to_string(ranks) + " --oversubscribe --bind-to none '" CONVOY_EXIT_PROGRAM "' '" +
             mode + "'");
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Exit, AnOrderlyEndIsZero) {
  EXPECT_EQ(run("'" CONVOY_EXIT_PROGRAM "' done").exit_code, 0);
  const Outcome outcome = run_ranks(3, "done");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(outcome.output, "");
}

TEST(Exit, AnOrderlyEndWaitsForTheSlowest) {
  const Outcome outcome = run_ranks(3, "late");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count(outcome.output, "is done"), 3) << outcome.output;
}

TEST(Exit, AbortEndsAllRanksWithItsCode) {
  const Outcome outcome = run_ranks(3, "abort");
  EXPECT_EQ(outcome.exit_code, 65) << outcome.output;
  EXPECT_EQ(count(outcome.output, "rank 2: error: the odd rank gives up\n"), 1) << outcome.output;
}

TEST(Exit, ARankThatFailsAloneEndsTheOthers) {
  const Outcome outcome = run_ranks(3, "one throws");
  EXPECT_EQ(outcome.exit_code, 74) << outcome.output;
  EXPECT_EQ(count(outcome.output, "rank 2: error: the odd rank cannot read\n"), 1)
      << outcome.output;
}

TEST(Exit, ARankThatFailsWhenTheOthersAreDoneGivesItsCode) {
  const Outcome outcome = run_ranks(3, "one throws at the end");
  EXPECT_EQ(outcome.exit_code, 74) << outcome.output;
  EXPECT_EQ(count(outcome.output, "from rank 2 of 3: the odd rank cannot write\n"), 1)
      << outcome.output;
  EXPECT_EQ(count(outcome.output, "MPI_ABORT"), 0) << outcome.output;
}

TEST(Exit, AllRanksLeaveWithTheSameCode) {
  const Outcome outcome = run_ranks(3, "one throws at the end, and all say how they leave");
  EXPECT_EQ(count(outcome.output, "a rank leaves with 74\n"), 3) << outcome.output;
}

TEST(Exit, AnErrorOfAllRanksIsSaidOnceAndWithoutAnAbort) {
  const Outcome outcome = run_ranks(4, "all throw");
  EXPECT_EQ(outcome.exit_code, 78) << outcome.output;
  EXPECT_EQ(count(outcome.output, "error: the job file is bad"), 1) << outcome.output;
  EXPECT_EQ(count(outcome.output, "MPI_ABORT"), 0) << outcome.output;
}

TEST(Exit, AHandshakeErrorIsSaidOnce) {
  const Outcome outcome = run_ranks(3, "handshake");
  EXPECT_EQ(outcome.exit_code, 70) << outcome.output;
  EXPECT_EQ(count(outcome.output, "has version \"2\" where rank 0"), 1) << outcome.output;
}

TEST(Exit, ARankThatFailsWhileItSumsEndsTheOthers) {
  const Outcome outcome = run_ranks(3, "throws while summing");
  EXPECT_EQ(outcome.exit_code, 70) << outcome.output;
  EXPECT_EQ(count(outcome.output, "the odd rank fails while it sums\n"), 1) << outcome.output;
}

TEST(Exit, TasksThatDoNotFindEachOtherAreRefused) {
  for (const char* variables : {"SLURM_NTASKS=4", "PMI_SIZE=4 PMI_RANK=0"}) {
    const Outcome outcome = run("env " + std::string(variables) +
                                " OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
                                "'" CONVOY_EXIT_PROGRAM "' done");
    EXPECT_EQ(outcome.exit_code, 64) << outcome.output;
    EXPECT_EQ(count(outcome.output, "srun --mpi=pmix"), 1) << outcome.output;
  }
}

}  // namespace
