// Threads: how many there are by default, in folders that look like a machine's /proc and /sys; and OpenBLAS on one.
#include <cblas.h>
#include <doctest/doctest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "engine/core/check.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;
using namespace std::chrono_literals;

namespace {

// A machine of 8 cores with these files.
int threads_of(const std::map<std::string, std::string>& files, const char* omp_num_threads = nullptr) {
  const Folder root;
  for (const auto& [path, text] : files) {
    std::filesystem::create_directories(std::filesystem::path(root.file(path)).parent_path());
    write_text(root.file(path), text);
  }
  return default_threads(root.path + "/", omp_num_threads, 8);
}

bool skipped_on_one_core() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool one = ::sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < 2;
  if (one) MESSAGE("skipped: there is one core");
  return one;
}

// Whether `attempt` succeeds within seconds: other threads join a loop only where they have a core.
template <class F>
bool succeeds(F attempt) {
  for (const auto begin = std::chrono::steady_clock::now(); std::chrono::steady_clock::now() - begin < 10s;) {
    set_threads(2);
    if (attempt()) return true;
  }
  return false;
}

// A loop whose first item that another thread runs ends so much later than all others; whether there was such an item.
bool waits(std::chrono::milliseconds late) {
  const auto self = std::this_thread::get_id();
  std::atomic<int> elsewhere = 0;
  parallel_for(8, [&](int64_t) {
    if (std::this_thread::get_id() != self && elsewhere++ == 0) std::this_thread::sleep_for(late);
  });
  return elsewhere > 0;
}

}  // namespace

TEST_CASE("threads: by default the cores, at most a cgroup's quota, rounded up") {
  const std::string cgroup = "sys/fs/cgroup";
  CHECK(threads_of({}) == 8);
  // version 2, seen from inside a container
  for (const auto& [text, want] : std::map<std::string, int>{{"max 100000\n", 8},
                                                             {"200000 100000\n", 2},
                                                             {"150000 100000\n", 2},
                                                             {"10000 100000\n", 1},
                                                             {"9900000 100000\n", 8},
                                                             {"nonsense\n", 8},
                                                             {"100000 0\n", 8}})
    CHECK(threads_of({{"proc/self/cgroup", "0::/\n"}, {cgroup + "/cpu.max", text}}) == want);
  // version 2, a group below the root: the tightest of those above it counts
  const std::string group = "proc/self/cgroup", line = "0::/user.slice/job\n";
  CHECK(threads_of({{group, line}, {cgroup + "/user.slice/job/cpu.max", "300000 100000"}}) == 3);
  CHECK(threads_of({{group, line},
                    {cgroup + "/user.slice/job/cpu.max", "max 100000"},
                    {cgroup + "/user.slice/cpu.max", "250000 50000"}}) == 5);
  CHECK(threads_of({{group, line}, {cgroup + "/other/cpu.max", "100000 100000"}}) == 8);
  // version 1
  const std::string lines = "5:memory:/job\n4:cpuset:/set\n3:cpu,cpuacct:/job\n";
  const auto v1 = [&](const std::string& folder, const std::string& quota) {
    return threads_of({{group, lines},
                       {cgroup + "/cpu" + folder + "/cpu.cfs_quota_us", quota},
                       {cgroup + "/cpu" + folder + "/cpu.cfs_period_us", "100000\n"}});
  };
  CHECK(v1("/job", "-1\n") == 8);
  CHECK(v1("/job", "350000\n") == 4);
  CHECK(v1("", "100000\n") == 1);
  CHECK(v1("/set", "100000\n") == 8);  // of another hierarchy
}

TEST_CASE("threads: OMP_NUM_THREADS stands, if it is a number") {
  const std::map<std::string, std::string> quota = {{"sys/fs/cgroup/cpu.max", "200000 100000"}};
  CHECK(threads_of(quota, "5") == 5);
  CHECK(threads_of(quota, "1,4") == 1);
  CHECK(threads_of(quota, "16") == 16);
  for (const char* none : {"", "0", "-3", "many"}) CHECK(threads_of(quota, none) == 2);
  CHECK(default_threads("/nowhere/", "5", 8, "3") == 3);  // and OMP_THREAD_LIMIT
  CHECK(default_threads("/nowhere/", nullptr, 8, "3") == 3);
  CHECK(default_threads("/nowhere/", "2", 8, "3") == 2);
  CHECK(default_threads("/nowhere/", nullptr, 8, "none") == 8);
  CHECK(default_threads("/nowhere/", "65537", 8) == 8);  // more than --threads takes
  CHECK(default_threads("/nowhere/", "4294967297", 8) == 8);
}

TEST_CASE("threads: OpenBLAS runs on one while somebody holds it, and as before then") {
  const int before = openblas_get_num_threads();
  openblas_set_num_threads(2);
  {
    const OneBlasThread outer;
    CHECK(openblas_get_num_threads() == 1);
    parallel_for(4, [&](int64_t) { const OneBlasThread inner; });
    CHECK(openblas_get_num_threads() == 1);
  }
  CHECK(openblas_get_num_threads() == 2);
  openblas_set_num_threads(before);
}

TEST_CASE("threads: every item runs once, whatever their number; inside and beside another loop it runs serially") {
  const int before = threads();
  for (const int team : {1, 2, 3, 8})
    for (const int64_t n : {0, 1, 2, 7, 1000}) {
      set_threads(team);
      std::vector<int> runs(static_cast<size_t>(n), 0);
      for (int repeat = 0; repeat < 20; ++repeat) parallel_for(n, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      CHECK(std::all_of(runs.begin(), runs.end(), [](int r) { return r == 20; }));
    }
  set_threads(4);
  std::atomic<int> nested = 0;
  parallel_for(6, [&](int64_t) {
    const auto self = std::this_thread::get_id();
    parallel_for(5, [&](int64_t) { nested += std::this_thread::get_id() == self; });
  });
  CHECK(nested == 30);
  std::atomic<int64_t> sum = 0;
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 100; ++repeat) parallel_for(10, [&](int64_t i) { sum += i; });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(sum == 3 * 100 * 45);
  set_threads(before);
}

TEST_CASE("threads: several work at once, and what is left of a share is taken by whoever comes") {
  if (skipped_on_one_core()) return;
  const int before = threads();
  const auto self = std::this_thread::get_id();
  for (const int64_t held : {0, 3, 4, 7})  // an item that ends last, of either share
    CHECK(succeeds([&] {
      std::atomic<int> done = 0, others = 0;
      bool last = false;
      parallel_for(8, [&](int64_t i) {
        const auto begin = std::chrono::steady_clock::now();
        while (i == held && done < 7 && std::chrono::steady_clock::now() - begin < 100ms) std::this_thread::yield();
        others += std::this_thread::get_id() != self;
        if (i == held) last = done == 7 && others > 0;
        ++done;
      });
      CHECK(done == 8);
      return last;
    }));
  set_threads(before);
}

TEST_CASE("threads: an exception of one item comes out, when all have run") {
  const int before = threads();
  set_threads(3);
  std::atomic<int> others = 0;
  const auto work = [&] {
    parallel_for(50, [&](int64_t i) {
      if (i == 17) throw InputError("seventeen");
      ++others;
    });
  };
  CHECK(message_of<InputError>(work) == "seventeen");
  CHECK(others == 49);
  parallel_for(3, [&](int64_t) { ++others; });  // and the threads go on
  CHECK(others == 52);
  set_threads(before);
}

TEST_CASE("threads: a caller that waited for a thread without a core works alone for a while, or until set_threads") {
  if (skipped_on_one_core()) return;
  const int before = threads();
  // Milliseconds after which another thread took an item of a loop of so many; -1: none did.
  const auto joined_after = [self = std::this_thread::get_id()](int64_t items) {
    const auto begin = std::chrono::steady_clock::now();
    std::atomic<int64_t> first = -1;
    parallel_for(items, [&](int64_t) {
      int64_t none = -1;
      if (std::this_thread::get_id() != self)
        first.compare_exchange_strong(none, (std::chrono::steady_clock::now() - begin) / 1ms);
      std::this_thread::sleep_for(1ms);
    });
    return first.load();
  };
  CHECK(succeeds([&] { return waits(50ms) && joined_after(1500) > 100; }));  // alone for 800 ms, and no longer
  CHECK(succeeds([&] {
    if (!waits(50ms)) return false;
    set_threads(2);
    return joined_after(50) >= 0;
  }));
  set_threads(before);
}

TEST_CASE("threads: a loop of little work runs on the caller") {
  const auto self = std::this_thread::get_id();
  for (int repeat = 0; repeat < 50; ++repeat)
    parallel_for(8, 2 * kWorkPerItem - 1, [&](int64_t) {
      CHECK(std::this_thread::get_id() == self);
      std::this_thread::yield();
    });
}

TEST_CASE("threads: a forked child works alone") {
  const int before = threads();
  set_threads(2);
  parallel_for(2, [](int64_t) {});
  const pid_t child = ::fork();
  if (child == 0) {  // its threads are gone
    int64_t sum = 0;
    std::mutex mutex;
    parallel_for(100, [&](int64_t i) {
      const std::lock_guard lock(mutex);
      sum += i;
    });
    ::_exit(sum == 4950 ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  set_threads(before);
}
