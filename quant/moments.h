// What a linear site is fed, summed up: all that the solvers for its weight and its bias know of the data.
//
// Inputs are streamed: a tensor is read when it is added, and not kept. The products of
// one window are summed in float (engine/gemm/gemm_float.h), and windows are added up in
// double in the order they come: sums depend neither on the number of threads nor on how
// windows are batched, and their error does not grow with the number of windows.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

class Moments {
 public:
  // Of several ranks, each sums up its tiles of products and of columns alone; gather() gives them to all.
  explicit Moments(int64_t columns, int rank = 0, int ranks = 1);

  // x [B, ..., n]: B windows, each one sample as in the official code, whatever its length. `other`, of the same
  // shape, or empty in every add: the same tokens as another stream has them at this site (the float network's,
  // where x is what quantized blocks before this one make of them).
  void add(const Tensor& x, const Tensor& other = {});

  // The sums of all ranks in each of them. To be called by all, once, after the last add().
  void gather();

  // What another has summed up, of the same columns and streams.
  void add(const Moments& more);

  int64_t columns() const { return n_; }
  int64_t samples() const { return samples_; }
  int64_t tokens() const { return tokens_; }
  float least() const;  // of all values that were added, and 0
  float largest() const;
  // Of each column [n]: least and largest value, and the mean of |x|.
  const std::vector<float>& column_least() const { return least_; }
  const std::vector<float>& column_largest() const { return largest_; }
  std::vector<double> mean_abs() const { return per_token(abs_sum_); }

  // Products of what was added, [n, n] row-major; m and m' are the means over all tokens when `centred`, else 0.
  // 2 / samples Σ (x - m)(x - m)ᵀ, of which the upper triangle is filled and the rest is 0. Not centred it is
  // GPTQ's Hessian, which the official code keeps as a running mean.
  std::vector<double> second(bool centred = false) const;
  std::vector<double> mean() const { return per_token(sum_); }  // m [n]
  // 2 / samples Σ (other - m')(x - m)ᵀ.
  std::vector<double> cross(bool centred = false) const;

 private:
  struct Tile {
    int64_t row, column;  // where it starts
  };
  class Panels;
  bool is_own(size_t tile) const { return static_cast<int>(tile % static_cast<size_t>(ranks_)) == rank_; }
  template <class T>
  void gather(const std::vector<Tile>& tiles, int64_t height, std::vector<T>& values) const;
  void add_products(const Panels& left, const Panels& right, std::vector<double>& into) const;
  void add_rows(const Tensor& x, std::vector<double>& into) const;
  void add_ranges(const Tensor& x);
  std::vector<double> per_token(std::vector<double> sum) const;
  std::vector<double> scaled(const std::vector<double>& product, const std::vector<double>& row_sum, bool upper,
                             bool centred) const;

  int64_t n_;
  int rank_, ranks_;
  std::vector<Tile> upper_, all_;  // of a symmetric and of any product
  int64_t samples_ = 0, tokens_ = 0;
  std::vector<float> least_, largest_;
  std::vector<double> second_, sum_, abs_sum_;
  std::vector<double> cross_, other_sum_;  // empty without another stream
};

}  // namespace bcq
