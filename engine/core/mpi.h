// What engine/core/ranks.cpp needs of MPI: mpi_real.cpp in a build with it, mpi_none.cpp in others. Only for ranks.cpp.
#pragma once
#include <cstdint>
#include <string>

namespace bcq::mpi {

std::string version();  // of the library; empty in a build without
void start();           // of a process that mpirun or srun started
void end();
int rank();
int size();
int machine_rank_count();  // ranks that may use the same cores of this machine, this one included
int most(int x);           // over all ranks
void broadcast(void* bytes, int64_t n, int from);
[[noreturn]] void abort(int code);

}  // namespace bcq::mpi
