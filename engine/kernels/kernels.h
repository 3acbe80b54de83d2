// The vectorised loops of the engine, chosen once at run time.
//
// Each loop is written once, in kernels_impl.h, as plain C++ over fixed lanes, and
// compiled four times: for the baseline, for AVX2, for AVX2 with AVX-VNNI and for
// AVX-512. A fifth set is the last of these with AMX's products of bytes. Lanes and the order of sums are part of the
// definition and FP contraction is off, so all give the same bits; tests assert it. Only POD types cross this header:
// code compiled with -mavx512f must not share inline functions with the rest.
#pragma once
#include <cstdint>

namespace bcq {

// The shape integer products are cut into (engine/gemm/gemm_int8.h): rows of a tile of sums, most rows of a call,
// columns of a panel.
constexpr int kInt8Rows = 14, kInt8Block = 4 * kInt8Rows;
constexpr int64_t kInt8Panel = 32;

// Depths that are multiplied at a time. Codes that are cut for sums in 16 bits (Int8Panels::cut_outliers) are listed
// run by run: what was cut off the code at this depth of a run.
constexpr int64_t kInt8Run = 512;
static constexpr int64_t int8_runs(int64_t groups) { return (4 * groups + kInt8Run - 1) / kInt8Run; }
struct Int8Outlier {
  uint16_t depth;
  int16_t excess;
};

// The same of float products (engine/gemm/gemm_float.h), and the depths after which a sum begins again from 0.
constexpr int kFloatRows = 14;
constexpr int64_t kFloatPanel = 32, kFloatRun = 512;

// c[r, j] = start[r, j] + sum over k of a[r, k] panel[k, j] for `rows` rows and j in [0, columns); the sum by fused
// multiply-adds in the order of k, kFloatRun of them from 0 at a time.
struct FloatTile {
  int rows;
  const float* a;  // value (r, k) is a[r a_stride + k a_step]
  int64_t a_stride, a_step;
  const float* panel;  // [depth, kFloatPanel]
  int64_t depth, columns;
  const float* start;  // null for zeros, or c
  int64_t start_stride;
  float* c;
  int64_t c_stride;
  // What the next tiles read, for kernels that fetch it into the second cache meanwhile: rows, a_stride apart and with
  // an a_step of 1, and depths of a panel; none where it is 0.
  const float* next_a = nullptr;
  int64_t next_rows = 0;
  const float* next_panel = nullptr;
  int64_t next_depths = 0;
};

// c[r, j] = start[j] + sum over k of a[r, k] panel[k / 4, j, k % 4] for `rows` rows, j in [0, kInt8Panel) and k in
// [0, 4 groups), and so on for further panels: exact. With outliers, panel[k / 4, j, k % 4] is short of a code by what
// they say of (k, j).
struct Int8Tile {
  int rows;  // at most kInt8Block
  const uint8_t* a;
  int64_t a_stride;
  const int8_t* panel;  // [groups, kInt8Panel, 4]
  int64_t groups;
  const int32_t* start;  // null for zeros
  int32_t* c;
  int64_t c_stride;
  int most = 128;                        // no code of the panels is larger in magnitude
  int64_t panels = 1, panel_stride = 0;  // bytes from one to the next
  // Of column j in run i of panel p: outliers[starts[n]] to outliers[starts[n + 1]], an even number, with n = (p runs +
  // i) kInt8Panel + j. Not null: four codes of a column at depths 8 m + {0, 1, 4, 5} or 8 m + {2, 3, 6, 7} add up to
  // 128 at most over those above 0, and to -128 at least over those below. Null: they need not.
  const int32_t* outlier_starts = nullptr;
  const Int8Outlier* outliers = nullptr;
  // What the next tiles read, for kernels that fetch it into the second cache meanwhile.
  const uint8_t* next_a = nullptr;
  const int8_t* next_panel = nullptr;
  int64_t next_a_bytes = 0, next_panel_bytes = 0;
};

// Rows of a packed weight, in blocks of kInt8Panel, and a token as their product reads them: engine/gemm/gemm_packed.h.
struct PackedRows {
  int bits;                 // 1..8
  int64_t chunks;           // of 32 columns
  const uint32_t* words;    // [blocks, chunks, bits, kInt8Panel]
  int64_t groups;           // that share a scale and a zero point
  const int32_t* ends;      // [groups] quads at which they end
  const float* scale;       // [blocks, groups, kInt8Panel], or null:
  const uint16_t* scale16;  // the same as 16-bit floats
  const uint8_t* zero;      // [blocks, groups, kInt8Panel]
};
constexpr int kTokenLimbs = 3;
struct PackedToken {
  float unit;            // 2^e
  const uint8_t* limbs;  // [kTokenLimbs] rows of int8_t, the lowest limb first,
  int64_t stride;        // so far apart
  const int32_t* sums;   // [groups, kTokenLimbs] of each group's limbs
};
// One group's part of the products of `blocks` blocks of rows with some tokens, in the floating-point steps of
// packed_product: y[t, i] += scale_i sum_p 256^p (sums[t, p, i] - (zero_i - half) limb_sums[t, p]), half = 2^(bits - 1)
struct PackedSums {
  int64_t blocks, group, tokens;
  int limbs;                 // 2 or 3
  const int32_t* sums;       // [tokens, limbs, rows] of limbs times (codes - half)
  const int32_t* limb_sums;  // [tokens, groups, limbs]; null if the sums are over codes less their zero points
  float* y;                  // [tokens, rows]
  int64_t stride;            // from row to row of sums and of y
};

struct Kernels {
  const char* name;  // "plain", "avx2", "avx-vnni", "avx512", "amx"

  // Float rows.
  void (*layer_norm)(const float* x, const float* gamma, const float* beta, float eps, int64_t n, float* y);
  void (*rms_norm)(const float* x, const float* gamma, const float* beta, float eps, int64_t n, float* y);
  void (*softmax)(float* x, int64_t n);                     // in place, max subtracted
  void (*gelu_erf)(const float* x, float* y, int64_t n);    // 0.5 x (1 + erf(x / sqrt 2))
  void (*gelu_tanh)(const float* x, float* y, int64_t n);   // 0.5 x (1 + tanh(0.79788456 x (1 + 0.044715 x^2)))
  void (*gelu_quick)(const float* x, float* y, int64_t n);  // x / (1 + exp(-1.702 x))
  void (*relu)(const float* x, float* y, int64_t n);
  void (*swiglu)(const float* gate, const float* up, float* y, int64_t n);  // gate / (1 + exp(-gate)) up
  void (*add)(const float* a, const float* b, float* y, int64_t n);         // y may be a or b
  void (*scale)(const float* x, float s, float* y, int64_t n);
  double (*sum_exp)(const float* x, float max, int64_t n);  // sum of exp(x - max)

  // Fake quantization; rounding is half to even everywhere.
  // y = delta * clamp(round(x / delta), lo, hi)
  void (*fake_uniform)(const float* x, float* y, int64_t n, float delta, float lo, float hi);
  // y = pos * clamp(round(x / pos), 0, m-1) + neg * clamp(round(x / neg), -m, 0)   (PTQ4ViT, post-GELU)
  void (*fake_twin_gelu)(const float* x, float* y, int64_t n, float pos, float neg, float m);
  // official: round(clip(x,t,1) M) / M + (t / M) round(clip(x,0,t) M / t)
  // clean:    x < t ? (t / M) clamp(round(x M / t), 0, M) : round(x M) / M         (PTQ4ViT, softmax)
  void (*fake_twin_softmax)(const float* x, float* y, int64_t n, float split, float m, bool official);

  // The same roundings as integer codes of 8 bits, for integer products (engine/gemm/gemm_int8.h). NaN becomes the
  // lowest code. y = offset + clamp(round(x / delta), lo, hi); with an offset of 0 the bytes are those of an int8_t.
  void (*code_uniform)(const float* x, uint8_t* y, int64_t n, float delta, float lo, float hi, int offset);
  // Magnitudes of both terms of fake_twin_gelu; the second is subtracted.
  void (*code_twin_gelu)(const float* x, uint8_t* positive, uint8_t* negative, int64_t n, float pos, float neg,
                         float m);
  // Both terms of fake_twin_softmax, in steps of split / m and of 1 / m.
  void (*code_twin_softmax)(const float* x, uint8_t* low, uint8_t* high, int64_t n, float split, float m,
                            bool official);

  void (*int8_tile)(const Int8Tile& tile);
  // y = scale1 sum1 + scale2 sum2 + bias, the second term left out when sum2 is null.
  void (*from_sums)(const int32_t* sum1, const int32_t* sum2, const float* scale1, const float* scale2,
                    const float* bias, float* y, int64_t n);

  void (*float_tile)(const FloatTile& tile);

  // Reductions, accumulated in double over fixed lanes.
  double (*weighted_squared_error)(const float* a, const float* b, const float* w, int64_t n);  // sum w (a-b)^2
  double (*dot)(const float* a, const float* b, int64_t n);
  void (*accumulate)(const float* x, const float* less, double* sum, int64_t n);  // sum += x - less; less may be null
  float (*max_abs)(const float* x, int64_t n);
  bool (*all_finite)(const float* x, int64_t n);

  // Products with one token, in float over fixed lanes.
  float (*dot_float)(const float* a, const float* b, int64_t n);
  // y = sum over rows r of s[r] times row r, [rows, n] with a stride, in the order of rows
  void (*weighted_rows)(const float* s, const float* x, int64_t stride, int64_t rows, int64_t n, float* y);
  // The int8 limbs (2 or 3, the lowest first, `stride` bytes apart) of x / 2^e, each plus `offset`: 128, or 0 for bytes
  // that are those of an int8_t. Returns 2^e, for values that are not all finite NaN.
  float (*to_limbs)(const float* x, int64_t n, int limbs, int offset, uint8_t* y, int64_t stride);
  int32_t (*sum_limbs)(const uint8_t* x, int64_t n, int offset);  // of such bytes, less the offset
  // y [blocks, kInt8Panel]: products of rows with a token.
  void (*packed_product)(const PackedRows& rows, int64_t blocks, const PackedToken& x, float* y);
  // y [8 chunks, kInt8Panel, 4]: the codes of the first block, as a panel (engine/gemm/gemm_int8.h).
  void (*packed_codes)(const PackedRows& rows, uint8_t* y);
  void (*packed_sums)(const PackedRows& rows, const PackedSums& part);

  // level[i] = how many of `count` edges, bits of positive floats, are above x[i] + shift; count <= 255. NaN: 0 or
  // count.
  void (*count_edges)(const float* x, int64_t n, float shift, const int32_t* edges, int count, uint8_t* level);
  // y[i] = table[x[i]], 0 where x[i] >= size, a multiple of 16; y may be x.
  void (*look_up)(const uint8_t* table, int size, const uint8_t* x, uint8_t* y, int64_t n);

  // File types to float.
  void (*from_f16)(const uint16_t* x, float* y, int64_t n);
  void (*from_bf16)(const uint16_t* x, float* y, int64_t n);

  // As many rows as int8_tile and float_tile compute best in a call.
  int int8_rows, float_rows;
  // Whether int8_tile first sums in 16 bits, the longer the smaller the codes are: it pays to cut outliers.
  bool sums_in_16_bits;
};

// The best set this machine runs (cpuid and the OS's register state are both asked), or the one
// the environment variable BCQ_ISA names ("plain", "avx2", "avx-vnni", "avx512", "amx"; UsageError when it cannot run).
const Kernels& kernels();
// Every set this machine can run, "plain" first. For tests.
const Kernels* const* all_kernels(int* count);

}  // namespace bcq
