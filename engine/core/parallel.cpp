#include "engine/core/parallel.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <exception>

#include "engine/core/check.h"

namespace bcq {
namespace {

// GNU's OpenMP lets idle threads spin for milliseconds, which on a machine with other work takes the core
// from the thread that is waited for (measured on a busy machine: 43 s, and 2 s without spinning); as many turns as
// here bridge the gaps between the products of a single token (2.7 ms, and 2.2 ms with them). The runtime
// reads this when it starts, after constructors of this priority because it is linked statically; LLVM's
// reads its own variable later. What the user has set stands.
__attribute__((constructor(101))) void let_idle_threads_sleep() {
  setenv("GOMP_SPINCOUNT", "10000", 0);
  setenv("KMP_BLOCKTIME", "0", 0);
}

// OpenBLAS must run single-threaded inside our items, or its own splitting would
// make sums depend on the number of threads. Runs before the first use of either.
int claim_threads() {
  openblas_set_num_threads(1);
  return std::max(1, omp_get_num_procs());
}

int& thread_count() {
  static int n = claim_threads();
  return n;
}

}  // namespace

void set_threads(int n) {
  require_usage(n >= 1, "the number of threads must be at least 1, got %d", n);
  thread_count() = n;
}

int threads() { return thread_count(); }

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
