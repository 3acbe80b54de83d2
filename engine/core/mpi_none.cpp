// A build without MPI: make MPI=1 has mpi_real.cpp.
#include <cstdlib>

#include "engine/core/mpi.h"

namespace bcq::mpi {

std::string version() { return ""; }
void start() {}
void end() {}
int rank() { return 0; }
int size() { return 1; }
int machine_rank_count() { return 1; }
int most(int x) { return x; }
void broadcast(void*, int64_t, int) {}
void abort(int code) { std::exit(code); }

}  // namespace bcq::mpi
