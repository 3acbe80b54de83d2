// MPI, in builds with MPI=1. An error of MPI itself ends all ranks with its message, as is its default.
#define OMPI_SKIP_MPICXX  // the C interface alone
#include <mpi/mpi.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "engine/core/mpi.h"

namespace bcq::mpi {

std::string version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int n = 0;
  MPI_Get_library_version(text, &n);
  const std::string all(text);
  return all.substr(0, all.find(','));  // "Open MPI v4.1.4"
}
void start() { MPI_Init(nullptr, nullptr); }
void end() { MPI_Finalize(); }

int rank() {
  int r = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &r);
  return r;
}

int size() {
  int n = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &n);
  return n;
}

int machine_rank_count() {
  MPI_Comm machine;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  int n = 1;
  MPI_Comm_size(machine, &n);
  cpu_set_t own;
  CPU_ZERO(&own);
  ::sched_getaffinity(0, sizeof own, &own);
  std::vector<cpu_set_t> all(static_cast<size_t>(n));
  MPI_Allgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, machine);
  MPI_Comm_free(&machine);
  return static_cast<int>(
      std::count_if(all.begin(), all.end(), [&](const cpu_set_t& other) { return CPU_EQUAL(&own, &other); }));
}

int most(int x) {
  MPI_Allreduce(MPI_IN_PLACE, &x, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return x;
}

void broadcast(void* bytes, int64_t n, int from) {
  constexpr int64_t kMost = 1 << 30;  // MPI counts in int
  for (int64_t at = 0; at < n; at += kMost)
    MPI_Bcast(static_cast<char*>(bytes) + at, static_cast<int>(std::min(kMost, n - at)), MPI_BYTE, from,
              MPI_COMM_WORLD);
}

void abort(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace bcq::mpi
