// What a micro-kernel of integer products is handed: some rows and columns of a tile.
#pragma once
#include <cstdint>

namespace bcq {

// c[r, j] = from[r, j] + sums over steps of bytes of row r and of the panel's columns.
struct Int8Part {
  const uint8_t* a;
  int64_t a_stride;
  const int8_t* panel;
  int64_t steps;
  const int32_t* from;
  int64_t from_stride;
  int32_t* c;
  int64_t c_stride;
};

}  // namespace bcq
