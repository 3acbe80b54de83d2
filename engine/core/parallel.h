// Threads.
//
// The rule that makes every result independent of the number of threads: work is
// cut into items by shape alone, an item writes only what belongs to it, and sums
// that cross items are added afterwards in item order.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

namespace bcq {

constexpr int kMostThreads = 1 << 16;
void set_threads(int n);  // 1 to kMostThreads; the default is default_threads("/", ...) of this machine
int threads();

// OMP_NUM_THREADS where it is set to a positive number (the first of a list), as programs with OpenMP have it; what is
// no number, or above kMostThreads, counts as not set. Else the cores the process may use (its affinity), at most the
// CPU quota of its cgroup and of those above, version 2 (cpu.max) or 1 (cpu.cfs_quota_us), rounded up. At most
// OMP_THREAD_LIMIT, if that is set, in either case. `root`, "/" or a folder with proc/ and sys/ in it that ends in a
// slash, is for tests.
int default_threads(const std::string& root, const char* omp_num_threads, int cores,
                    const char* omp_thread_limit = nullptr);

// While one of these lives, on any thread, OpenBLAS runs on one thread: its own splitting would make sums depend on the
// number of threads. Every function that calls it holds one.
struct OneBlasThread {
  OneBlasThread();
  ~OneBlasThread();
  OneBlasThread(const OneBlasThread&) = delete;
};

// Call body(i) for i in [0, n), in any order, on all threads. The first exception is rethrown; which items have run
// by then depends on the threads. Inside a loop that other threads are in it runs serially, and so it does while
// another thread of the program is in one. Items must not wait for each other: a loop may run on the caller alone. A
// thread has a share of consecutive items, the same each time, so that what it wrote last is in its cache, and when it
// is done takes what others have left. The caller waits for items, not for threads: one that has no core when there is
// work leaves it to the others. That is what a team of OpenMP's cannot do: its barrier waits for every thread, and on a
// machine with other work that is most of the time. What remains is an item whose thread lost its core in the middle:
// where a loop took longer for that than it would have taken the caller alone, the caller works alone for a while, a
// second at most or until set_threads. A thread that wakes on the caller's core lets it work for 4 to 32 ms before it
// joins.
void parallel_for(int64_t n, const std::function<void(int64_t)>& body);

constexpr int64_t kElementsPerItem = 1 << 14;  // of element-wise work: some microseconds

// The same where the whole loop is `work` multiply-adds: below 2 kWorkPerItem, a few microseconds, the caller is done
// before others are awake, and does it alone.
constexpr int64_t kWorkPerItem = 1 << 14;
inline void parallel_for(int64_t n, int64_t work, const std::function<void(int64_t)>& body) {
  if (work >= 2 * kWorkPerItem) return parallel_for(n, body);
  for (int64_t i = 0; i < n; ++i) body(i);
}

// f(begin, end) for consecutive chunks of [0, n) elements.
template <class F>
void for_chunks(int64_t n, F f) {
  parallel_for((n + kElementsPerItem - 1) / kElementsPerItem, [&](int64_t i) {
    const int64_t begin = i * kElementsPerItem;
    f(begin, n - begin < kElementsPerItem ? n : begin + kElementsPerItem);
  });
}

// f(begin, end) for [0, n) cut into equal parts of at most `most`, one after the other.
template <class F>
void for_parts(int64_t n, int64_t most, F f) {
  const int64_t parts = (n + most - 1) / most;
  for (int64_t i = 0; i < parts; ++i) f(n * i / parts, n * (i + 1) / parts);
}

}  // namespace bcq
