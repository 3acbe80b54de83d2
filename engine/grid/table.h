// Any 2^bits levels among the values of an 8-bit grid: a table of 256 bytes behind the 8-bit codes. Which levels are
// best is found in quant/ranges.h.
#pragma once
#include <array>

#include "engine/grid/grid.h"

namespace bcq {

// x̂ = s (T[u] - z), u = clamp(round(x / s) + z, 0, 255), and T[u] the level nearest to u, the lower one of two. One
// table, or one for each of several equal, consecutive parts of dimension `along`.
// Integer form: u8 codes T[u] with offset z; signed codes T[u] - z where they fit in 8 bits.
class Table final : public GridKind {
 public:
  struct Levels {
    float scale;
    int32_t zero;             // 0 to 255
    std::vector<uint8_t> of;  // rising
    std::array<uint8_t, 256> nearest = {};
  };

  // levels: 1 to 2^bits codes of the 8-bit grid of this scale and zero point, in any order.
  Table(int bits, float scale, int32_t zero, std::vector<uint8_t> levels);
  // The tables of parts, each with one unit.
  Table(int along, const std::vector<Table>& parts);
  static Grid read(const Fields& fields);

  int along = 0;
  std::vector<Levels> parts;

  const char* name() const override { return "table"; }
  Fields describe() const override;
  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double parameter_bits() const override;  // the table: 8 bits a level
  int64_t units() const override { return static_cast<int64_t>(parts.size()); }
  int axis() const override { return along; }
  Grid unit(int64_t u) const override { return Table{bits, at(u).scale, at(u).zero, at(u).of}; }
  int planes() const override { return 1; }
  float plane_scale(int, int64_t unit) const override { return at(unit).scale; }
  int32_t offset(int64_t unit) const override { return at(unit).zero; }
  void code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t stride) const override;
  bool is_signed() const override;
  void code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const override;

 private:
  const Levels& at(int64_t unit) const { return parts[static_cast<size_t>(unit)]; }
};

}  // namespace bcq
