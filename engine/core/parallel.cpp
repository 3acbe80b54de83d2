#include "engine/core/parallel.h"

#include <cblas.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <exception>
#include <fstream>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "engine/core/check.h"

extern "C" {
void* blas_memory_alloc(int);  // of OpenBLAS, which has no header for them
void blas_memory_free(void*);
}

namespace bcq {
namespace {

using Clock = std::chrono::steady_clock;

// The cores this process may run on.
int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                       : static_cast<int>(std::thread::hardware_concurrency());
}

int& thread_count() {
  static int n =
      default_threads("/", std::getenv("OMP_NUM_THREADS"), available_cores(), std::getenv("OMP_THREAD_LIMIT"));
  return n;
}

// Whether value != old within some microseconds, spent awake: the next product of a network comes soon.
template <class T>
bool changes_soon(const std::atomic<T>& value, T old) {
  constexpr auto kAwake = std::chrono::microseconds(50);
  const auto begin = Clock::now();
  do {
    for (int turn = 0; turn < 64; ++turn) {
      if (value.load(std::memory_order_acquire) != old) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  } while (Clock::now() - begin < kAwake);
  return false;
}

// Sleeps until value != old: other programs want the core.
template <class T>
void sleep_until_change(const std::atomic<T>& value, T old) {
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

// The processor time a thread has had.
Clock::duration time_of(clockid_t clock) {
  timespec t{};
  ::clock_gettime(clock, &t);
  return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

// One parallel_for. Threads may look at it when it is over, but then there is no item left to take.
struct Work {
  // Consecutive items. A thread takes those of its own share, the same in every loop over as many items where all
  // threads join, and then what others have left.
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };

  // Of items [first, end).
  Work(const std::function<void(int64_t)>& b, int64_t first, int64_t end, int threads)
      : body(b), n(end - first), team(threads), shares(static_cast<size_t>(threads)) {
    for (int i = 0; i < team; ++i) {
      Share& share = shares[static_cast<size_t>(i)];
      share.next.store(first + n * i / team, std::memory_order_relaxed);
      share.end = first + n * (i + 1) / team;
    }
  }
  const std::function<void(int64_t)>& body;
  const int64_t n;
  const int team;                           // threads that may join, the caller among them
  std::atomic<int> cpu = ::sched_getcpu();  // the caller's; -1: unknown
  std::vector<Share> shares;
  std::atomic<int> joined = 1;
  std::atomic<int64_t> done = 0;
  std::atomic<uint32_t> finished = 0;
  Clock::time_point finished_at;
  std::mutex failing;
  std::exception_ptr failure;

  // `thread` 0 is the caller.
  void run(int thread) {
    for (int i = 0; i < team; ++i) {
      Share& share = shares[static_cast<size_t>((thread + i) % team)];
      for (int64_t item; (item = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
        if (thread == 0) cpu.store(::sched_getcpu(), std::memory_order_relaxed);
        run_item(item);
      }
    }
  }
  bool is_on_callers_core() const {
    const int callers = cpu.load(std::memory_order_relaxed);
    return callers >= 0 && callers == ::sched_getcpu();
  }

  void run_item(int64_t i) {
    try {
      body(i);
    } catch (...) {
      const std::lock_guard lock(failing);
      if (!failure) failure = std::current_exception();
    }
    if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < n) return;
    finished_at = Clock::now();
    finished.store(1);  // sequentially consistent: whether somebody sleeps is looked at afterwards
    finished.notify_all();
  }
};

thread_local bool in_parallel = false;
std::atomic<Clock::time_point> alone_until{};  // loops do not share their items out before then

// The threads beside the caller. They live as long as the program.
class Pool {
 public:
  static Pool& instance() {
    static Pool* const pool = new Pool;  // never destroyed: its threads may outlive static objects
    return *pool;
  }
  // A forked child has none of the threads, and mutexes as they stood: it computes alone.
  Pool() {
    ::pthread_atfork(nullptr, nullptr, [] { in_parallel = true; });
  }

  // Items [first, end). False, with nothing done, when another thread has work under way, or the caller is better off
  // alone.
  bool run(int64_t first, int64_t end, int team, const std::function<void(int64_t)>& body) {
    const std::unique_lock busy(caller_, std::try_to_lock);
    if (!busy) return false;
    const auto begin = Clock::now();
    if (begin < alone_until.load(std::memory_order_relaxed)) return false;
    grow(team - 1);
    const auto work = std::make_shared<Work>(body, first, end, team);
    publish(work);
    in_parallel = true;
    work->run(0);
    in_parallel = false;
    if (!changes_soon(work->finished, 0U)) wait_for_others(*work, begin);
    publish(nullptr);
    if (const std::exception_ptr failure = std::exchange(work->failure, nullptr)) std::rethrow_exception(failure);
    return true;
  }

 private:
  static constexpr int kTimes = 16;
  struct alignas(64) Helper {
    std::atomic<clockid_t> clock = CLOCK_MONOTONIC;  // of its processor time; this one if the system has none
    std::atomic<const Work*> work = nullptr;         // that it is in
    std::optional<Clock::duration> time;             // it had when the caller began to wait for it
  };

  // A thread that lost its core in the middle of an item is waited for. Where the loop, which began at `begin`, took
  // longer for that than it would have taken the caller alone, the caller works alone for a while: kTimes as long, and
  // twice as many times where it soon happens again, until looking whether the core is back costs little.
  void wait_for_others(const Work& work, Clock::time_point begin) {
    for (Helper& helper : helpers_) {
      helper.time.reset();
      if (helper.work.load() == &work) helper.time = time_of(helper.clock);
    }
    const auto asleep = Clock::now();
    sleep_until_change(work.finished, 0U);
    const Clock::duration waited = work.finished_at - asleep;
    Clock::duration without_core = waited;
    for (const Helper& helper : helpers_)  // the last to end was at work, or without a core, all the time
      if (helper.time) without_core = std::min(without_core, waited - (time_of(helper.clock) - *helper.time));
    if (without_core <= (work.team - 1) * (asleep - begin)) return;
    times_ = begin - alone_until.load() < 10 * alone_ ? std::min(2 * times_, 8 * kTimes) : kTimes;
    alone_ = std::min<Clock::duration>(times_ * without_core, std::chrono::seconds(1));
    alone_until = work.finished_at + alone_;
  }

  void publish(std::shared_ptr<Work> work) {
    const bool wakes = work != nullptr;
    {
      const std::lock_guard lock(current_mutex_);
      current_ = std::move(work);
    }
    if (!wakes) return;
    epoch_.fetch_add(1);
    epoch_.notify_all();
  }

  void grow(int size) {
    while (static_cast<int>(helpers_.size()) < size) {
      Helper& helper = helpers_.emplace_back();
      try {
        std::thread([this, &helper, thread = static_cast<int>(helpers_.size())] { serve(helper, thread); }).detach();
      } catch (...) {  // the machine gives no more: those there are do the work
        return helpers_.pop_back();
      }
    }
  }

  void serve(Helper& self, int thread) {
    in_parallel = true;
    clockid_t clock;
    if (::pthread_getcpuclockid(::pthread_self(), &clock) == 0) self.clock = clock;
    std::shared_ptr<Work> work;
    bool in_the_way = false;  // it can only take time from the caller
    bool was_elsewhere = false;
    int sat_out = 0;  // times in a row
    for (uint32_t seen = 0;;) {
      if (in_the_way || !changes_soon(epoch_, seen)) sleep_until_change(epoch_, seen);
      do {
        seen = epoch_.load(std::memory_order_acquire);
        {
          const std::lock_guard lock(current_mutex_);
          work = current_;
        }
        // Beside other programs it may have woken on the caller's core. It looks again later, but joins at the latest
        // after 32 ms: a thread may be moved only while it works. And some systems have one number for all cores.
        const bool here = work && work->is_on_callers_core();
        was_elsewhere = was_elsewhere || (work && !here);
        in_the_way = here && was_elsewhere && sat_out < 8;
        if (work) sat_out = in_the_way ? sat_out + 1 : 0;
        if (in_the_way) std::this_thread::sleep_for(std::chrono::milliseconds(4));
      } while (in_the_way);
      in_the_way = sat_out > 0;
      if (!work) continue;
      if (work->joined.fetch_add(1, std::memory_order_relaxed) < work->team) {
        self.work = work.get();
        work->run(1 + (thread - 1) % (work->team - 1));
        self.work = nullptr;
      }
      in_the_way = work->is_on_callers_core();
      work.reset();
    }
  }

  std::mutex caller_, current_mutex_;
  std::shared_ptr<Work> current_;
  std::atomic<uint32_t> epoch_ = 0;
  std::deque<Helper> helpers_;
  Clock::duration alone_{};  // how long the caller last worked alone
  int times_ = kTimes;       // as many times as what it had waited
};

std::mutex blas_mutex;
int blas_users = 0, blas_threads = 1, blas_buffers = 0;

// OpenBLAS takes a buffer of 128 MB for every thread that calls it, keeps it, and tries for ever where there is no room
// for one. So there are as many as `threads` from here on, or there is an exception. Its table of buffers has an end;
// Debian's holds more than these.
constexpr int kMostBlasBuffers = 128;
void make_blas_buffers(int threads) {
  const size_t size = static_cast<size_t>(threads - blas_buffers) * ((128 << 20) + (1 << 16));
  void* const room = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  ::munmap(room, size);
  std::vector<void*> buffers(static_cast<size_t>(threads));
  for (void*& buffer : buffers) buffer = blas_memory_alloc(0);
  for (void* const buffer : buffers) blas_memory_free(buffer);
  blas_buffers = threads;
}

}  // namespace

int default_threads(const std::string& root, const char* omp_num_threads, int cores, const char* omp_thread_limit) {
  const auto number = [](const char* text) {  // 0 where it is none
    const long n = text ? std::strtol(text, nullptr, 10) : 0;
    return n >= 1 && n <= kMostThreads ? static_cast<int>(n) : 0;
  };
  const int limit = number(omp_thread_limit) > 0 ? number(omp_thread_limit) : std::numeric_limits<int>::max();
  if (const int asked = number(omp_num_threads); asked > 0) return std::min(asked, limit);
  int most = std::min(std::max(1, cores), limit);
  const auto limit_by = [&](const std::string& group) {
    double quota = 0, period = 0;
    if (!(std::ifstream(group + "/cpu.max") >> quota >> period)) {  // also where it says "max"
      std::ifstream(group + "/cpu.cfs_quota_us") >> quota;
      std::ifstream(group + "/cpu.cfs_period_us") >> period;
    }
    if (quota > 0 && period > 0) most = std::min(most, static_cast<int>(std::ceil(quota / period)));
  };
  const std::string version2 = root + "sys/fs/cgroup", version1 = version2 + "/cpu";
  limit_by(version2);
  limit_by(version1);
  // The process's group in each hierarchy: "0::/a/b", or "4:cpu,cpuacct:/a/b" in version 1. The groups above limit,
  // too.
  std::ifstream file(root + "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) continue;
    for (std::string group = line.substr(second + 1); group.size() > 1; group.resize(group.rfind('/')))
      limit_by((controllers == ",," ? version2 : version1) + group);
  }
  return most;
}

void set_threads(int n) {
  require_usage(n >= 1 && n <= kMostThreads, "the number of threads must be 1 to %d, got %d", kMostThreads, n);
  thread_count() = n;
  alone_until = Clock::time_point{};
}

int threads() { return thread_count(); }

OneBlasThread::OneBlasThread() {
  const std::lock_guard lock(blas_mutex);
  if (const int n = std::min(threads(), kMostBlasBuffers); blas_buffers < n) make_blas_buffers(n);
  if (blas_users++ > 0) return;
  blas_threads = openblas_get_num_threads();
  if (blas_threads != 1) openblas_set_num_threads(1);
}
OneBlasThread::~OneBlasThread() {
  const std::lock_guard lock(blas_mutex);
  if (--blas_users == 0 && blas_threads != 1) openblas_set_num_threads(blas_threads);
}

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  for (int64_t i = 0; i < n; ++i) {  // what cannot be shared out now may be so after an item
    const int team = static_cast<int>(std::min<int64_t>(threads(), n - i));
    if (team > 1 && !in_parallel && Pool::instance().run(i, n, team, body)) return;
    body(i);
  }
}

}  // namespace bcq
