// CPUs that a rank may use.
#include "trainer/job/limits.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <thread>

namespace convoy::trainer {
namespace {

TEST(CpuQuota, IsTimeInTime) {
  EXPECT_EQ(parse_cpu_quota("200000 100000"), 2.0);
  EXPECT_EQ(parse_cpu_quota("50000 100000"), 0.5);
  EXPECT_EQ(parse_cpu_quota("max 100000"), std::nullopt);  // cgroup v2 without a bound
  EXPECT_EQ(parse_cpu_quota("-1 100000"), std::nullopt);   // cgroup v1 without one
  EXPECT_EQ(parse_cpu_quota(" "), std::nullopt);           // no such files
}

TEST(UsableCpus, NoMoreThanTheSet) {
  EXPECT_GE(usable_cpus(), 1);
  std::thread([] {
    cpu_set_t set;
    ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    int first = 0;
    while (!CPU_ISSET(first, &set)) ++first;
    CPU_ZERO(&set);
    CPU_SET(first, &set);
    ASSERT_EQ(sched_setaffinity(0, sizeof set, &set), 0);
    EXPECT_EQ(usable_cpus(), 1);
  }).join();
}

TEST(CpuShare, RanksThatNobodyBoundShareTheirHost) {
  const int online = static_cast<int>(std::thread::hardware_concurrency());
  EXPECT_EQ(cpu_share(1, 1), 1);
  EXPECT_EQ(cpu_share(4096, 1), static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  EXPECT_EQ(cpu_share(1, 4096), 1);
  EXPECT_LE(cpu_share(online, 2), std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)) / 2));
}

}  // namespace
}  // namespace convoy::trainer
