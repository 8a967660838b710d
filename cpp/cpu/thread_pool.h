// A fixed set of threads that share the tasks of one loop at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

namespace octavo::cpu {

// The calling thread works too: `num_threads - 1` workers are started, each pinned to a core of
// its own. A worker without work spins for kSpin and then sleeps, so an idle pool takes no CPU.
//
// A loop ends when its tasks are done, not when every worker has looked: a worker that sleeps or
// has lost its core delays nobody.
class ThreadPool {
 public:
  // `num_threads` <= 0 takes every core that this process may run on. Throws std::system_error.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // How many of `rows` a task of a loop over rows takes: `least`, or of many rows one run a thread.
  // Then a thread finds in its cache what it wrote of them in the loop before, as a rule, and two
  // do not write to one cache line of a row's neighbours at the same time.
  int64_t rows_per_task(int64_t rows, int64_t least) const;

  // Calls body(task, thread) for every task in [0, num_tasks), thread in [0, num_threads()), and
  // returns when all calls have returned. Tasks start in ascending order. Allocates nothing.
  // Throws what a call threw, one of them if several did, once no call runs any more; some tasks
  // may not have run then. Requires: one caller at a time, never a body.
  template <typename Body>
  void parallel_for(int64_t num_tasks, const Body& body) {
    if (num_tasks <= kMaxTasks) return run(num_tasks, &body, invoke<Body>);
    for (int64_t begin = 0; begin < num_tasks; begin += kMaxTasks) {
      const auto shifted = [&](int64_t task, int thread) { body(begin + task, thread); };
      run(std::min(kMaxTasks, num_tasks - begin), &shifted, invoke<decltype(shifted)>);
    }
  }

  // Calls body(row) for every row, in tasks of rows_per_task(rows, least).
  template <typename Body>
  void for_rows(int64_t rows, int64_t least, const Body& body) {
    const int64_t run = rows_per_task(rows, least);
    parallel_for((rows + run - 1) / run, [&](int64_t task, int) {
      const int64_t end = std::min(rows, (task + 1) * run);
      for (int64_t r = task * run; r < end; ++r) body(r);
    });
  }

 private:
  // Fits the ticket.
  static constexpr int64_t kMaxTasks = 65535;

  using Invoke = void (*)(const void* context, int64_t task, int thread);
  template <typename Body>
  static void invoke(const void* context, int64_t task, int thread) {
    (*static_cast<const Body*>(context))(task, thread);
  }

  // The loop in progress, packed so that one compare-and-swap claims a task of that very loop.
  struct Ticket {
    uint32_t loop;
    uint16_t num_tasks;
    uint16_t next;
  };
  static uint64_t pack(Ticket t) {
    return uint64_t{t.loop} << 32 | uint64_t{t.num_tasks} << 16 | t.next;
  }
  static Ticket unpack(uint64_t bits) {
    return {static_cast<uint32_t>(bits >> 32), static_cast<uint16_t>(bits >> 16),
            static_cast<uint16_t>(bits)};
  }

  void stop();
  void run(int64_t num_tasks, const void* context, Invoke invoke);
  bool run_one_task(int thread);
  void rethrow_failure();
  void wait_for_tasks(uint32_t num_tasks);
  void work(int thread);
  void sleep_until_task();
  bool has_task() const;

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> num_done_{0};
  alignas(64) std::atomic<const void*> context_{nullptr};
  std::atomic<Invoke> invoke_{nullptr};
  std::atomic<bool> has_failed_{false};
  std::exception_ptr failure_;  // of the loop in progress; written by who sets has_failed_
  alignas(64) std::atomic<uint32_t> num_asleep_{0};
  std::atomic<uint32_t> wake_count_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace octavo::cpu
