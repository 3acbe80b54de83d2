// The tile of integer sums for processors with AMX, which multiply matrices of 16 rows and 64 bytes in one instruction.
// Every other kernel of this set is AVX-512's (cpu.cpp).
#include <immintrin.h>

#include "engine/kernels/int8_part.h"
#include "engine/kernels/kernels.h"

namespace bcq {

extern const Kernels kernels_avx512;

namespace {

constexpr int kTileRows = 16;            // of a tile register; its rows have 64 bytes
constexpr int64_t kTileGroups = 16;      // of four depths, a row's 64 bytes
constexpr int64_t kTileColumns = 16;     // sums of 32 bits
constexpr int64_t kRunGroups = 16 * 16;  // multiplied at a time: the rows of two tiles stay in the nearest cache

// What LDTILECFG reads. Tiles 0 to 3 are sums of two times 16 rows and two times 16 columns, 4 and 5 the rows' codes, 6
// and 7 the columns'.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig(int upper, int lower, int64_t groups) {
    const auto set = [&](int tile, int64_t n, int64_t bytes) {
      rows[tile] = static_cast<uint8_t>(n), row_bytes[tile] = static_cast<uint16_t>(n > 0 ? bytes : 0);
    };
    for (int side = 0; side < 2; ++side) set(side, upper, 64), set(2 + side, lower, 64), set(6 + side, groups, 64);
    set(4, upper, 4 * groups), set(5, lower, 4 * groups);
  }
};

// Memory that is prefetched into the second cache, an equal part of its lines beside each step.
struct LinesAhead {
  const char* from;
  int64_t bytes_of_step, due = 0, done = 0;

  LinesAhead(const void* memory, int64_t bytes, int64_t steps)
      : from(static_cast<const char*>(memory)), bytes_of_step((bytes + steps - 1) / steps) {}
  void fetch() {
    for (due += bytes_of_step; done < due; done += 64) __builtin_prefetch(from + done, 0, 2);
  }
};

// The rows of the upper tiles and, where there are any, of the lower ones; a step has the groups of the configuration.
template <bool kLower>
void amx_micro_kernel(const Int8Part& t, int upper, LinesAhead& rows, LinesAhead& panels) {
  constexpr int64_t kStep = kTileGroups * 4 * kInt8Panel, kSum = sizeof(int32_t);
  const int64_t from_stride = t.from_stride * kSum, c_stride = t.c_stride * kSum;
  const int32_t* const from_low = t.from + upper * t.from_stride;
  int32_t* const c_low = t.c + upper * t.c_stride;
  const uint8_t *high = t.a, *low = t.a + upper * t.a_stride;
  const int8_t* panel = t.panel;
  _tile_loadd(0, t.from, from_stride);
  _tile_loadd(1, t.from + kTileColumns, from_stride);
  if (kLower) {
    _tile_loadd(2, from_low, from_stride);
    _tile_loadd(3, from_low + kTileColumns, from_stride);
  }
  for (int64_t n = t.steps; n > 0; --n, high += 64, low += 64, panel += kStep) {
    rows.fetch(), panels.fetch();
    _tile_loadd(6, panel, 4 * kInt8Panel);
    _tile_loadd(4, high, t.a_stride);
    if (kLower) _tile_loadd(5, low, t.a_stride);
    _tile_loadd(7, panel + 64, 4 * kInt8Panel);
    _tile_dpbusd(0, 4, 6);
    if (kLower) _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(1, 4, 7);
    if (kLower) _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, t.c, c_stride);
  _tile_stored(1, t.c + kTileColumns, c_stride);
  if (kLower) {
    _tile_stored(2, c_low, c_stride);
    _tile_stored(3, c_low + kTileColumns, c_stride);
  }
}

}  // namespace

// Tiles stay configured, 8 KB more for the system to save when the thread is interrupted: to give them up after each
// call would take a quarter of the time of a small one.
void int8_tile_amx(const Int8Tile& t) {
  static constexpr int32_t kZeros[kInt8Panel] = {};
  __asm__ volatile("" : : : "memory");  // g++ does not know that tiles are loaded from memory
  if (t.rows < 4 || t.groups == 0 || t.panels == 0 || t.outlier_starts) return kernels_avx512.int8_tile(t);
  const int parts = (t.rows + 2 * kTileRows - 1) / (2 * kTileRows);
  const int64_t steps = parts * t.panels * ((t.groups + kTileGroups - 1) / kTileGroups);
  LinesAhead rows_ahead(t.next_a, t.next_a_bytes, steps), panels_ahead(t.next_panel, t.next_panel_bytes, steps);
  int upper_before = 0, lower_before = 0;
  int64_t wide_before = 0;
  for (int64_t g = 0, groups; g < t.groups; g += groups) {
    const int64_t left = t.groups - g, whole = left - left % kTileGroups;
    groups = whole > kRunGroups ? kRunGroups : whole > 0 ? whole : left;
    const int64_t wide = whole > 0 ? kTileGroups : left;  // groups of a step
    for (int i = 0; i < parts; ++i) {
      const int r = t.rows * i / parts, rows = t.rows * (i + 1) / parts - r;
      const int upper = rows > kTileRows ? (rows + 1) / 2 : rows, lower = rows - upper;
      if (upper != upper_before || lower != lower_before || wide != wide_before) {
        const TileConfig config(upper, lower, wide);
        __asm__ volatile("ldtilecfg %0" : : "m"(config));  // g++'s own form promises to read 8 bytes of it
        upper_before = upper, lower_before = lower, wide_before = wide;
      }
      for (int64_t p = 0; p < t.panels; ++p) {
        int32_t* const c = t.c + r * t.c_stride + p * kInt8Panel;
        const int32_t* const from = g > 0 ? c : t.start ? t.start + p * kInt8Panel : kZeros;
        const Int8Part part{t.a + r * t.a_stride + 4 * g,
                            t.a_stride,
                            t.panel + p * t.panel_stride + g * 4 * kInt8Panel,
                            groups / wide,
                            from,
                            g > 0 ? t.c_stride : 0,
                            c,
                            t.c_stride};
        (lower > 0 ? amx_micro_kernel<true> : amx_micro_kernel<false>)(part, upper, rows_ahead, panels_ahead);
      }
    }
  }
}

}  // namespace bcq
