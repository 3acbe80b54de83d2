// Grids: what values a quantized operand may hold, how a float is rounded to them, and the integer codes they have.
//
// A family of grids is one file: classes derived from GridKind with their rounding, their integer form, their storage
// cost and their description, and rows in registry.cpp. Which grid an operand gets is decided in quant/. All rounding
// is half to even.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

class Grid;

// What a report states of a grid and what it can be made of again: names and numbers.
using Fields = std::map<std::string, std::variant<int64_t, float, std::vector<float>>>;

// One kind of grid. Immutable once a Grid holds it.
class GridKind {
 public:
  explicit GridKind(int b) : bits(b) {}
  virtual ~GridKind() = default;
  GridKind(const GridKind&) = default;
  GridKind& operator=(const GridKind&) = default;

  int bits;  // of a code

  virtual const char* name() const = 0;  // its row in the registry
  virtual Fields describe() const = 0;
  // y = x rounded to the grid, of the same shape. Error when the grid does not fit that shape.
  virtual void fake_quantize(const Tensor& x, Tensor& y) const = 0;
  // Bits needed to store values of this shape: their codes and the parameters of the grid.
  virtual double storage_bits(const Shape& shape) const {
    return static_cast<double>(numel(shape)) * bits + parameter_bits();
  }
  virtual double parameter_bits() const { return 0; }

  // Units: the equal, consecutive parts of dimension axis() that have parameters of their own. Heads are those of
  // operands [B, H, N, d] (axis 1), blocks of rows those of a weight [out, in] (axis 0).
  virtual int64_t units() const { return 1; }
  virtual int axis() const { return 0; }
  virtual Grid unit(int64_t u) const;  // the grid of one of them

  // The integer form of a left operand: x̂ = Σ_p plane_scale(p, unit) (u_p - offset(unit)) + constant(unit) with u8
  // codes u_p in one or two planes. No planes: there is none.
  virtual int planes() const { return 0; }
  virtual float plane_scale(int plane, int64_t unit) const;
  virtual int32_t offset(int64_t) const { return 0; }
  virtual float constant(int64_t) const { return 0; }
  // x[0..n) to codes in each plane, the planes `stride` bytes apart. NaN becomes some code.
  virtual void code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t stride) const;

  // That of a right operand: x̂ = plane_scale(0, unit) v with s8 codes v.
  virtual bool is_signed() const { return false; }
  virtual void code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const;

  // What a weight on this grid is stored as: x̂ = plane_scale(0, unit) (u - zero_point(unit)), u from 0 to 2^bits - 1.
  virtual bool has_zero_points() const { return false; }
  virtual int32_t zero_point(int64_t unit) const;
};

constexpr int kInt8Bits = 8;  // most that codes of integer products have

// Not quantized.
struct Identity {};

// Any kind of grid, or none.
class Grid {
 public:
  Grid(Identity = {}) {}
  template <class Kind>
  requires std::is_base_of_v<GridKind, Kind> Grid(Kind kind) : kind_(std::make_shared<const Kind>(std::move(kind))) {}

  bool is_identity() const { return kind_ == nullptr; }
  const GridKind* operator->() const { return kind_.get(); }  // not of the identity
  template <class Kind>
  const Kind* as() const {  // null when it is of another kind
    return dynamic_cast<const Kind*>(kind_.get());
  }
  template <class Kind>
  bool is() const {
    return as<Kind>() != nullptr;
  }

  std::string name() const { return kind_ ? kind_->name() : "float"; }
  Fields describe() const { return kind_ ? kind_->describe() : Fields{}; }
  bool has_codes() const { return kind_ && kind_->planes() > 0; }        // as a left operand
  bool has_signed_codes() const { return kind_ && kind_->is_signed(); }  // as a right one
  bool is_along(int axis) const;  // whether it has one unit, or its units lie along this axis
  Grid unit(int64_t u) const;     // the grid of one unit; itself when it has one

 private:
  std::shared_ptr<const GridKind> kind_;
};

inline bool is_identity(const Grid& grid) { return grid.is_identity(); }

// x rounded to the grid, in the shape of x; x itself for Identity. No gradients.
Tensor fake_quantize(const Grid& grid, const Tensor& x);

// Bits needed to store values of this shape on this grid; 32 bits a value for Identity.
double storage_bits(const Grid& grid, const Shape& shape);

// The grid of this name (registry.cpp) with these fields, as name() and describe() gave them. InputError when there is
// no such grid or a field is missing or of another type.
Grid read_grid(const std::string& name, const Fields& fields);

}  // namespace bcq
