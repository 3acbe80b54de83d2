// Settings of the whole process, which the library never makes by itself: a program calls this first in main().
#pragma once

namespace bcq {

// Freed memory is kept for the tensors to come, OpenBLAS runs on one thread. A program that calls this function is
// linked with a constructor that also keeps OpenMP's idle threads from spinning, because GNU's OpenMP reads that
// setting before main(). What the user has set in the environment stands.
void tune_process();

}  // namespace bcq
