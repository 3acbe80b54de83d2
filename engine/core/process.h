// Settings of the whole process, which the library never makes by itself: a program calls this first in main().
#pragma once

namespace bcq {

// Freed memory is kept for the tensors to come, OpenBLAS runs on one thread.
// Memory that runs out inside a destructor ends the program with a message and code 1.
// Standard streams that are closed stay so: no file that is opened later takes their place.
// `argv`, if given: the program begins anew, once, so that OpenBLAS, which reads its setting when it is loaded, starts
// no threads: each takes 128 MB of address space, and where that is not to be had the program never ends.
void tune_process(char** argv = nullptr);

}  // namespace bcq
