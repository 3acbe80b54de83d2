// What this machine's arithmetic can do at most, measured on the spot.
#pragma once

namespace bcq {

// Multiply-adds per second of all threads together, from registers alone, by the instructions of the kernels in use;
// 0 where the kernels are plain C++, which has no such limit of its own. Some milliseconds each.
double float_peak();
double int8_peak();

}  // namespace bcq
