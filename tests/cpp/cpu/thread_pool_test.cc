#include "cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace octavo::cpu {
namespace {

TEST(ThreadPool, RunsEachTaskOnce) {
  ThreadPool pool(3);
  for (const int64_t num_tasks : {0, 1, 2, 3, 7, 1000}) {
    std::vector<std::atomic<int>> runs(num_tasks);
    pool.parallel_for(num_tasks, [&](int64_t task, int thread) {
      ASSERT_LT(thread, pool.num_threads());
      runs[task].fetch_add(1);
    });
    for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
  }
}

// Address space for a few stacks, then no more.
[[noreturn]] void start_too_many_threads() {
  rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = rlim_t{256} << 20;
  setrlimit(RLIMIT_AS, &limit);
  try {
    ThreadPool pool(1000);
  } catch (const std::system_error&) {
    std::exit(0);
  }
  std::exit(1);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kHasSanitizer = true;  // which needs more address space
#else
constexpr bool kHasSanitizer = false;
#endif

TEST(ThreadPool, ThreadThatCannotStartIsAnError) {
  if (kHasSanitizer) GTEST_SKIP() << "sanitizers need more address space";
  EXPECT_EXIT(start_too_many_threads(), testing::ExitedWithCode(0), "");
}

TEST(ThreadPool, ManyRowsAreOneRunAThread) {
  const ThreadPool pool(2);
  EXPECT_EQ(pool.rows_per_task(63, 8), 8);
  EXPECT_EQ(pool.rows_per_task(64, 8), 32);
  EXPECT_EQ(pool.rows_per_task(500, 8), 256);  // a multiple of 16
  EXPECT_EQ(pool.rows_per_task(500, 300), 300);
}

TEST(ThreadPool, RunsMoreTasksThanATicketHolds) {
  ThreadPool pool(2);
  constexpr int64_t kTasks = 200'001;
  std::vector<uint8_t> runs(kTasks);
  pool.parallel_for(kTasks, [&](int64_t task, int) { ++runs[task]; });
  EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), kTasks);
}

// What the tasks of one loop wrote is there for the caller and for the next loop.
TEST(ThreadPool, LoopsFollowEachOther) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64);
  for (int64_t loop = 0; loop < 20'000; ++loop) {
    pool.parallel_for(std::ssize(values), [&](int64_t task, int) { values[task] += task; });
  }
  for (int64_t i = 0; i < std::ssize(values); ++i) EXPECT_EQ(values[i], 20'000 * i);
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> started{0};
    // Each task waits for the other, so one thread alone could not end the loop.
    pool.parallel_for(2, [&](int64_t, int) {
      started.fetch_add(1);
      while (started.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(started.load(), 2);
  }
}

TEST(ThreadPool, GivesEachThreadANumberOfItsOwn) {
  ThreadPool pool(3);
  std::vector<std::atomic<int>> inside(3);
  std::atomic<bool> overlapped{false};
  pool.parallel_for(3000, [&](int64_t, int thread) {
    if (inside[thread].fetch_add(1) != 0) overlapped = true;
    inside[thread].fetch_sub(1);
  });
  EXPECT_FALSE(overlapped.load());
}

// Memory may run short in any of the threads.
TEST(ThreadPool, ThrowsToTheCallerWhatATaskThrew) {
  for (const int num_threads : {1, 3}) {
    ThreadPool pool(num_threads);
    for (int64_t bad = 0; bad < 50; ++bad) {
      std::atomic<int> num_inside{0};
      const auto body = [&](int64_t task, int) {
        num_inside.fetch_add(1);
        const bool throws = task % 50 == bad;
        if (!throws) std::this_thread::yield();
        num_inside.fetch_sub(1);
        if (throws) throw std::bad_alloc();
      };
      EXPECT_THROW(pool.parallel_for(100, body), std::bad_alloc);
      EXPECT_EQ(num_inside.load(), 0);
      std::atomic<int> num_runs{0};
      pool.parallel_for(20, [&](int64_t, int) { num_runs.fetch_add(1); });
      EXPECT_EQ(num_runs.load(), 20);
    }
  }
}

TEST(ThreadPool, TakesEveryCoreUnlessTold) {
  EXPECT_GE(ThreadPool(0).num_threads(), 1);
  EXPECT_EQ(ThreadPool(1).num_threads(), 1);
}

}  // namespace
}  // namespace octavo::cpu
