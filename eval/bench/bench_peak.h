// What this machine's arithmetic can do at most, measured on the spot, and the most memory a work has had.
#pragma once

namespace bcq {

// Multiply-adds per second of all threads together, from registers alone, by the instructions of the kernels in use;
// 0 where the kernels are plain C++, which has no such limit of its own. Some milliseconds each.
double float_peak();
double int8_peak();

// The most memory in use since the last reset, of this process; Linux keeps it. The pages of a float checkpoint, a
// mapped file, are among it.
void reset_peak_memory();
double peak_memory_mb();

}  // namespace bcq
