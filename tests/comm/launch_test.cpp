// What the launchers' variables mean, and the CPU set.
#include "comm/launch.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <stdexcept>
#include <thread>

#include "comm/communicator.h"
#include "ops/core/error.h"

namespace convoy::comm {
namespace {

Launch launch_of(const std::map<std::string, std::string>& variables) {
  return detect_launch([&](const char* name) {
    const auto at = variables.find(name);
    return at == variables.end() ? nullptr : at->second.c_str();
  });
}

TEST(Launch, WithoutALauncherThereIsOneRank) {
  const Launch launch = launch_of({{"HOME", "/"}, {"SLURM_JOB_ID", "7"}});
  EXPECT_EQ(launch.launcher, "");
  EXPECT_EQ(communicator_for(launch), "local");
  EXPECT_NO_THROW(check_world(launch, 1));
}

TEST(Launch, LaunchersThatConnectRanksUseMpi) {
  EXPECT_EQ(launch_of({{"OMPI_COMM_WORLD_SIZE", "3"}}).ranks, 3);
  EXPECT_EQ(launch_of({{"PMI_RANK", "0"}, {"PMI_SIZE", "5"}}).ranks, 5);
  const Launch pmix =
      launch_of({{"PMIX_RANK", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_STEP_NUM_TASKS", "2"}});
  EXPECT_EQ(pmix.ranks, 2);
  EXPECT_EQ(communicator_for(pmix), "mpi");
  EXPECT_NO_THROW(check_world(pmix, 2));
  EXPECT_EQ(communicator_for(launch_of({{"OMPI_COMM_WORLD_SIZE", "1"}})), "mpi");
}

TEST(Launch, TasksThatDoNotFindEachOtherAreRefusedWithTheRemedy) {
  // srun without an interface for MPI: refused before MPI starts.
  const Launch slurm = launch_of({{"SLURM_NTASKS", "4"}});
  try {
    communicator_for(slurm);
    FAIL() << "four tasks that are alone were accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("srun --mpi=pmix"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("4 ranks"), std::string::npos);
  }
  EXPECT_THROW(check_world(launch_of({{"PMI_SIZE", "4"}}), 1), Error);
  EXPECT_EQ(communicator_for(launch_of({{"SLURM_NTASKS", "1"}})), "local");
}

// scaling.sh measures mpirun -n 1 inside an allocation of several tasks.
TEST(Launch, TheNearestLauncherCounts) {
  const Launch launch = launch_of({{"OMPI_COMM_WORLD_SIZE", "1"}, {"SLURM_NTASKS", "4"}});
  EXPECT_EQ(launch.ranks, 1);
  EXPECT_NO_THROW(check_world(launch, 1));
}

TEST(Launch, NumbersThatAreNoneAreNotBelieved) {
  EXPECT_EQ(launch_of({{"SLURM_NTASKS", "4(x2)"}}).launcher, "");
  EXPECT_EQ(launch_of({{"PMI_SIZE", "-3"}}).ranks, 0);
}

TEST(CpuSet, IsWhatTheKernelAllows) {
  std::thread([] {
    const CpuSet before = cpu_set();
    ASSERT_GE(before.count, 1);
    EXPECT_EQ(cpu_set_warning(before, before.count), "");
    cpu_set_t one;
    CPU_ZERO(&one);
    const int cpu = std::stoi(before.list);
    CPU_SET(static_cast<size_t>(cpu), &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    const CpuSet after = cpu_set();
    EXPECT_EQ(after.count, 1);
    EXPECT_EQ(after.list, std::to_string(cpu));
  }).join();
}

// In threads of their own: what they keep to is theirs.
TEST(CpuSet, AThreadKeepsToTheCpusNearAGpu) {
  const auto kept = [](const std::string& list, int least) {
    std::string now, of_child;
    std::thread([&] {
      now = stay_near(list, least).list;
      std::thread([&] { of_child = cpu_set().list; }).join();
    }).join();
    EXPECT_EQ(of_child, now);
    return now;
  };
  const CpuSet all = cpu_set();
  const std::string one = std::to_string(std::stoi(all.list));
  EXPECT_EQ(kept(one, 1), one);
  EXPECT_EQ(kept(one + ",4000-4100", 0), one);
  EXPECT_EQ(kept("0-5000", all.count), all.list);
  EXPECT_EQ(kept(one, 2), all.list);          // too few
  EXPECT_EQ(kept("4000-4100", 0), all.list);  // none of ours
  EXPECT_EQ(cpu_set().list, all.list);
}

TEST(CpuSet, TooSmallASetIsSaidWithTheRemedy) {
  EXPECT_EQ(cpu_set_warning({4, "0-3"}, 4), "");
  const std::string warning = cpu_set_warning({1, "5"}, 4);
  EXPECT_NE(warning.find("1 CPU (5)"), std::string::npos) << warning;
  EXPECT_NE(warning.find("wants 4 threads"), std::string::npos) << warning;
  EXPECT_NE(warning.find("--bind-to none"), std::string::npos) << warning;
}

TEST(CpuSet, RanksThatShareCpusAreCounted) {
  const auto warning = [](std::initializer_list<RankCpus> ranks) {
    return host_warning("nodeA", std::vector<RankCpus>(ranks));
  };
  EXPECT_EQ(warning({{{2, "0-1"}, 2}, {{2, "2-3"}, 2}}), "");
  EXPECT_EQ(warning({{{4, "0-3"}, 2}, {{4, "0-3"}, 2}}), "");  // the same CPUs, but enough
  EXPECT_EQ(warning({{{4, "0-3"}, 3}, {{4, "0-3"}, 0}}), "");  // a rank that only evaluates
  const std::string same = warning({{{4, "0-2,8"}, 2}, {{4, "0-2,8"}, 3}});
  EXPECT_NE(same.find("2 ranks on nodeA compute with 5 threads in all on 4 CPUs (0-2,8)"),
            std::string::npos)
      << same;
  const std::string overlap = warning({{{2, "0-1"}, 2}, {{2, "1-2"}, 2}});
  EXPECT_NE(overlap.find("4 threads in all on 3 CPUs (0-2)"), std::string::npos) << overlap;
  const std::string one = warning({{{1, "7"}, 1}, {{1, "7"}, 1}});
  EXPECT_NE(one.find("on 1 CPU (7)"), std::string::npos) << one;
  // cpu_set_warning says this on the rank.
  EXPECT_EQ(warning({{{1, "7"}, 2}, {{1, "7"}, 1}}), "");
}

TEST(Communicator, UnknownNamesAreRefusedWithTheKnownOnes) {
  try {
    make_communicator("nccl2");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("\"nccl2\"; there are: local, mpi"), std::string::npos)
        << error.what();
  }
}

// R5. A launcher that starts a rank, from a thread which ends if `from_a_thread`, and lives on. The
// rank holds the pipe's writing end until it leaves.
class LauncherOfOne {
 public:
  explicit LauncherOfOne(bool from_a_thread) {
    int ends[2] = {-1, -1};
    if (pipe(ends) != 0) throw std::runtime_error("pipe");
    launcher_ = fork();
    if (launcher_ == 0) {
      close(ends[0]);
      const auto start = [&] {
        if (fork() != 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(200));  // until the rank has asked
          return;
        }
        alarm(60);  // it must not outlive a test that fails
        leave_with_launcher({"mpirun", 2});
        [[maybe_unused]] const ssize_t told = write(ends[1], "+", 1);
        for (;;) pause();
      };
      if (from_a_thread)
        std::thread(start).join();
      else
        start();
      close(ends[1]);
      for (;;) pause();
    }
    close(ends[1]);
    read_ = ends[0];
    char begun = 0;
    EXPECT_EQ(read(read_, &begun, 1), 1);
  }
  ~LauncherOfOne() {
    kill_launcher();
    close(read_);
  }
  void kill_launcher() {
    if (launcher_ <= 0) return;
    kill(launcher_, SIGKILL);
    waitpid(launcher_, nullptr, 0);
    launcher_ = 0;
  }
  bool rank_leaves_within(int milliseconds) const {
    pollfd end{read_, POLLIN, 0};
    return poll(&end, 1, milliseconds) == 1;
  }

 private:
  pid_t launcher_ = 0;
  int read_ = -1;
};

TEST(Launch, R5ARankLeavesWhenItsLauncherIsKilled) {
  for (const bool from_a_thread : {false, true}) {
    LauncherOfOne launcher(from_a_thread);
    // The end of the launcher's thread is not that of the launcher.
    EXPECT_FALSE(launcher.rank_leaves_within(500)) << from_a_thread;
    launcher.kill_launcher();
    EXPECT_TRUE(launcher.rank_leaves_within(20000)) << from_a_thread;
  }
}

}  // namespace
}  // namespace convoy::comm
