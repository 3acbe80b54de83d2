#include "engine/core/ranks.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "engine/core/check.h"
#include "engine/core/mpi.h"
#include "engine/core/parallel.h"

namespace bcq {
namespace {

int own_rank = 0, rank_count = 1, alone = 0, threads_at_most = 0, sharing_cores = 1;
bool started = false;
std::string phase = "evaluation";
std::map<std::string, int64_t> received;

// How many ranks those that start them say there are: Open MPI's mpirun, PMI and Slurm with PMIx.
int announced_ranks() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const char* n = std::getenv(name)) return std::atoi(n);
  const char* n = std::getenv("SLURM_NTASKS");
  return std::getenv("PMIX_RANK") && n ? std::atoi(n) : 1;
}

}  // namespace

std::string mpi_version() { return mpi::version().empty() ? "none" : mpi::version(); }

int rank() { return alone > 0 ? 0 : own_rank; }
int ranks() { return alone > 0 ? 1 : rank_count; }

void start_ranks(bool shares_work) {
  const int announced = announced_ranks();
  if (announced <= 1) return;
  require_usage(mpi_version() != "none", "it was started as %d ranks, and this build has no MPI: make MPI=1",
                announced);
  mpi::start();
  started = true;
  own_rank = mpi::rank();
  rank_count = mpi::size();
  require_usage(shares_work || rank_count == 1,
                "it does not share out its work over ranks: start it once, without mpirun");
  sharing_cores = mpi::machine_rank_count();
  if (own_rank > 0) require(std::freopen("/dev/null", "w", stdout) != nullptr, "/dev/null cannot be opened");
}

void require_same_in_ranks(const std::string& facts) {
  for (int r = 0; r < ranks(); ++r) {
    std::string others = r == rank() ? facts : "";
    share(others, r);
    require_usage(others == facts, "results would depend on the rank: rank %d has %s, rank %d %s", r, others, rank(),
                  facts);
  }
}

void end_ranks() {
  if (started) mpi::end();
}

void abandon_ranks(int code, const std::function<void()>& say) {
  // One after the other, so that the first one to speak ends the rest.
  if (own_rank > 0) std::this_thread::sleep_for(std::chrono::milliseconds(2000 + 200 * std::min(own_rank, 50)));
  say();
  mpi::abort(code);
}

int threads_of_rank(int all) { return std::max(1, all / sharing_cores); }
int most_threads() { return std::max(threads_at_most, threads()); }
void agree_on_threads() { threads_at_most = started ? mpi::most(threads()) : threads(); }

Alone::Alone() { ++alone; }
Alone::~Alone() { --alone; }

void wait_for_ranks() {
  if (ranks() > 1) mpi::most(0);
}

void broadcast(void* bytes, int64_t n, int from) {
  if (ranks() == 1 || n == 0) return;
  mpi::broadcast(bytes, n, from);
  if (from != own_rank) received[phase] += n;
}

ReceivedFor::ReceivedFor(std::string name) : before_(std::exchange(phase, std::move(name))) {}
ReceivedFor::~ReceivedFor() { phase = before_; }
const std::map<std::string, int64_t>& received_bytes() { return received; }

}  // namespace bcq
