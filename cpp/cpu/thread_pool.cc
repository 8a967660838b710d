#include "cpu/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <utility>

namespace octavo::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the gap between two loops of a forward pass, shorter than the gap between two steps
// that a busy HTTP worker on the same core would notice.
constexpr std::chrono::microseconds kSpin{50};

std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) cores.push_back(core);
    }
  }
  if (cores.empty()) cores.push_back(0);
  return cores;
}

// A refusal (a sandbox, a core taken away since) costs speed, not correctness.
void pin(std::thread& thread, int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
}

// Spins until holds() or the time is up; returns holds().
template <typename Condition>
bool spin_until(const Condition& holds) {
  constexpr int kChecksPerClockRead = 32;
  const Clock::time_point deadline = Clock::now() + kSpin;
  do {
    for (int i = 0; i < kChecksPerClockRead; ++i) {
      if (holds()) return true;
      _mm_pause();
    }
  } while (Clock::now() < deadline);
  return holds();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  const std::vector<int> cores = allowed_cores();
  if (num_threads <= 0) num_threads = static_cast<int>(cores.size());
  workers_.reserve(num_threads - 1);
  try {
    for (int thread = 1; thread < num_threads; ++thread) {
      workers_.emplace_back([this, thread] { work(thread); });
      if (num_threads <= static_cast<int>(cores.size())) pin(workers_.back(), cores[thread]);
    }
  } catch (...) {
    stop();  // no destructor runs, and that of a running thread would end the process
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true);
  wake_count_.fetch_add(1);
  wake_count_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

int64_t ThreadPool::rows_per_task(int64_t rows, int64_t least) const {
  constexpr int64_t kManyRows = 32;  // a thread
  constexpr int64_t kMultiple = 16;
  if (rows < kManyRows * num_threads()) return least;
  const int64_t run = (rows + num_threads() - 1) / num_threads();
  return std::max(least, (run + kMultiple - 1) / kMultiple * kMultiple);
}

void ThreadPool::run(int64_t num_tasks, const void* context, Invoke invoke) {
  if (workers_.empty() || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) invoke(context, task, 0);
    return;
  }
  context_.store(context, std::memory_order_relaxed);
  invoke_.store(invoke, std::memory_order_relaxed);
  num_done_.store(0, std::memory_order_relaxed);
  const uint32_t loop = unpack(ticket_.load(std::memory_order_relaxed)).loop + 1;
  ticket_.store(pack({loop, static_cast<uint16_t>(num_tasks), 0}));  // seq_cst: before num_asleep_
  if (num_asleep_.load() > 0) {
    wake_count_.fetch_add(1);
    wake_count_.notify_all();
  }
  while (run_one_task(0)) {
  }
  wait_for_tasks(static_cast<uint32_t>(num_tasks));
  if (has_failed_.load(std::memory_order_relaxed)) rethrow_failure();
}

void ThreadPool::rethrow_failure() {
  has_failed_.store(false, std::memory_order_relaxed);
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

// Claims and runs the next task of the loop in progress, if one is left. The context read before
// the claim belongs to the claimed loop: it cannot end, nor the next begin, with this task open.
bool ThreadPool::run_one_task(int thread) {
  uint64_t bits = ticket_.load(std::memory_order_acquire);
  while (true) {
    const Ticket ticket = unpack(bits);
    if (ticket.next >= ticket.num_tasks) return false;
    const void* context = context_.load(std::memory_order_relaxed);
    const Invoke invoke = invoke_.load(std::memory_order_relaxed);
    if (ticket_.compare_exchange_weak(bits, bits + 1, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
      // An exception ends the caller's loop, not the thread: it would take the process along, and
      // the caller may not leave while others still work on what is its.
      try {
        invoke(context, ticket.next, thread);
      } catch (...) {
        if (!has_failed_.exchange(true)) failure_ = std::current_exception();
      }
      if (num_done_.fetch_add(1, std::memory_order_acq_rel) + 1 == ticket.num_tasks) {
        num_done_.notify_one();
      }
      return true;
    }
  }
}

void ThreadPool::wait_for_tasks(uint32_t num_tasks) {
  uint32_t done = 0;
  const auto all_done = [&] {
    done = num_done_.load(std::memory_order_acquire);
    return done == num_tasks;
  };
  if (spin_until(all_done)) return;
  while (!all_done()) num_done_.wait(done, std::memory_order_acquire);
}

void ThreadPool::work(int thread) {
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (run_one_task(thread)) continue;
    if (!spin_until([this] { return has_task(); })) sleep_until_task();
  }
}

bool ThreadPool::has_task() const {
  const Ticket ticket = unpack(ticket_.load());
  return ticket.next < ticket.num_tasks || stopping_.load();
}

// Announces itself before it looks once more: run() publishes the loop before it counts sleepers,
// so one of the two sees the other.
void ThreadPool::sleep_until_task() {
  const uint32_t seen = wake_count_.load();
  num_asleep_.fetch_add(1);
  if (!has_task()) wake_count_.wait(seen);
  num_asleep_.fetch_sub(1);
}

}  // namespace octavo::cpu
