#include "engine/core/parallel.h"

#include <cblas.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <new>

#include "engine/core/check.h"

namespace bcq {
namespace {

int& thread_count() {
  static int n = default_threads("/", std::getenv("OMP_NUM_THREADS"), omp_get_num_procs());
  return n;
}

std::mutex blas_mutex;
int blas_users = 0, blas_threads = 1, blas_buffers = 0;

// OpenBLAS takes a buffer of 128 MB for every thread that calls it, and tries for ever where there is no room for one.
void require_room_for_buffers(int n) {
  const size_t size = static_cast<size_t>(n) * ((128 << 20) + (1 << 16));
  void* const room = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  ::munmap(room, size);
}

}  // namespace

int default_threads(const std::string& root, const char* omp_num_threads, int cores) {
  const int asked = omp_num_threads ? std::atoi(omp_num_threads) : 0;
  if (asked > 0) return asked;
  int most = std::max(1, cores);
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
  require_usage(n >= 1, "the number of threads must be at least 1, got %d", n);
  thread_count() = n;
}

int threads() { return thread_count(); }

OneBlasThread::OneBlasThread() {
  const std::lock_guard lock(blas_mutex);
  if (blas_buffers < threads()) {
    require_room_for_buffers(threads() - blas_buffers);
    blas_buffers = threads();
  }
  if (blas_users++ > 0) return;
  blas_threads = openblas_get_num_threads();
  if (blas_threads != 1) openblas_set_num_threads(1);
}
OneBlasThread::~OneBlasThread() {
  const std::lock_guard lock(blas_mutex);
  if (--blas_users == 0 && blas_threads != 1) openblas_set_num_threads(blas_threads);
}

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  const int team = static_cast<int>(std::min<int64_t>(threads(), n));
  if (team <= 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int64_t i = 0; i < n; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(bcq_parallel_failure)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace bcq
