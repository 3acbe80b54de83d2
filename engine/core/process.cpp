#include "engine/core/process.h"

#include <cblas.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <limits>
#include <new>
#include <string_view>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace bcq {
namespace {

// Memory can run out where no exception can be thrown: nlohmann's destructor allocates.
void say_and_end() {
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::bad_alloc&) {
    constexpr std::string_view text = "out of memory\n";
    (void)!::write(2, text.data(), text.size());
    ::_exit(1);
  } catch (...) {
  }
  std::abort();
}

}  // namespace

void tune_process(char** argv) {
  std::set_terminate(say_and_end);
  for (int stream = 0; stream < 3; ++stream)
    if (::fcntl(stream, F_GETFD) < 0) (void)!::open("/dev/null", O_RDONLY);  // the lowest that is free
  if (argv && !std::getenv("OPENBLAS_NUM_THREADS")) {
    setenv("OPENBLAS_NUM_THREADS", "1", 0);
    char self[4096] = {};
    if (::readlink("/proc/self/exe", self, sizeof self - 1) > 0) ::execv(self, argv);  // or goes on as it is
  }
  openblas_set_num_threads(1);
#if defined(__GLIBC__)
  // glibc returns large freed blocks to the system, which clears their pages when a tensor asks for them again: 11 % of
  // the time of a window of 2048 tokens. Blocks up to 32 MB, the most it allows, are kept.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TOP_PAD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

}  // namespace bcq
