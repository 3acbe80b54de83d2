#include "engine/nn/int8_layer.h"

#include <cmath>

#include "engine/nn/ops.h"

namespace bcq {
namespace {

Dequantizer make_dequantizer(const Grid& left, int64_t left_unit, const Int8Panels& right,
                             const std::function<float(int64_t c)>& right_scale) {
  Dequantizer d;
  if (const int32_t offset = left->offset(left_unit); offset != 0) d.starts = right.sums(-offset);
  const bool two_planes = left->planes() == 2;
  for (int64_t c = 0; c < right.columns(); ++c) {
    d.zeros.push_back(0.f);
    d.scale1.push_back(left->plane_scale(0, left_unit) * right_scale(c));
    if (two_planes) d.scale2.push_back(left->plane_scale(1, left_unit) * right_scale(c));
  }
  if (const float constant = left->constant(left_unit); constant != 0) {
    const std::vector<int32_t> sums = right.sums(1);
    for (int64_t c = 0; c < right.columns(); ++c)
      d.constant.push_back(constant * right_scale(c) * static_cast<float>(sums[at(c)]));
  }
  return d;
}

std::shared_ptr<const Int8Panels> code_weight(const Weight& weight, const Grid& grid) {
  const int64_t columns = weight.dim(0), depth = weight.dim(1), units = grid->units();
  auto panels = std::make_shared<Int8Panels>(columns, depth);
  parallel_for(panels->panels(), [&](int64_t p) {
    Tensor scratch;
    std::vector<int8_t> codes(static_cast<size_t>(depth));
    for (int64_t c = p * kInt8Panel; c < std::min(columns, (p + 1) * kInt8Panel); ++c) {
      grid->code_signed(weight.rows(c, c + 1, scratch), depth, c * units / columns, codes.data());
      panels->set_column(c, codes.data());
    }
  });
  panels->find_range();
  if (kernels().sums_in_16_bits) panels->cut_outliers();
  return panels;
}

}  // namespace

std::shared_ptr<const Int8Layer> make_int8(const Layer& layer, const Int8Layer* same_weight) {
  const bool linear = layer.is_linear();
  if (!layer.quantized) return nullptr;
  const Quantized& q = *layer.quantized;
  if (!q.left.has_codes() || !q.right.has_signed_codes() || !q.right.is_along(linear ? 0 : 1)) return nullptr;
  auto made = std::make_shared<Int8Layer>();
  if (!linear) return q.left.is_along(1) ? made : nullptr;
  if (q.left->units() != 1 || q.weight.empty() || layer.weight.dim(1) > kInt8MostDepth) return nullptr;
  made->weight = same_weight ? same_weight->weight : code_weight(q.weight, q.right);
  const int64_t columns = layer.weight.dim(0), units = q.right->units();
  made->dequantizer = make_dequantizer(q.left, 0, *made->weight,
                                       [&](int64_t c) { return q.right->plane_scale(0, c * units / columns); });
  return made;
}

void decode_weight(const Int8Panels& weight, const Grid& grid, int64_t begin, int64_t end, float* y) {
  std::vector<int8_t> codes(static_cast<size_t>(weight.depth()));
  for (int64_t c = begin; c < end; ++c) {
    weight.column(c, codes.data());
    const float step = grid->plane_scale(0, c * grid->units() / weight.columns());
    for (const int8_t code : codes) *y++ = step * static_cast<float>(code);
  }
}

Int8Rows code_rows(const Grid& grid, const Tensor& x) {
  const int64_t n = x.dim(-1);
  Int8Rows coded(x.rows(), n, grid->planes());
  for_rows(x, [&](int64_t r) { grid->code(x.data + r * n, n, 0, coded.row(r), coded.stride); });
  return coded;
}

float inverse_row_sum(const Grid& grid, int64_t unit, const uint8_t* codes, int64_t stride, int64_t n) {
  double sum = static_cast<double>(grid->constant(unit)) * static_cast<double>(n);
  for (int p = 0; p < grid->planes(); ++p, codes += stride) {
    int64_t plane = 0;
    for (int64_t i = 0; i < n; ++i) plane += codes[i];
    sum += static_cast<double>(grid->plane_scale(p, unit)) * static_cast<double>(plane - n * grid->offset(unit));
  }
  return sum == 0 ? 1 : static_cast<float>(1 / sum);
}

PackedHead::PackedHead(const Layer& layer, int64_t head, int64_t heads, const float* b, int64_t rows, int64_t n,
                       int64_t stride) {
  const Grid &left = layer.quantized->left, &grid = layer.quantized->right;
  const int64_t unit = head * grid->units() / heads;
  if (layer.role == Role::QK) {
    right = Int8Panels(rows, n);
    std::vector<int8_t> codes(static_cast<size_t>(n));
    for (int64_t c = 0; c < rows; ++c) {
      grid->code_signed(b + c * stride, n, unit, codes.data());
      right.set_column(c, codes.data());
    }
  } else {
    right = Int8Panels(n, rows);
    std::vector<int8_t> codes(static_cast<size_t>(4 * n));
    for (int64_t k = 0; k < rows; k += 4) {
      const int64_t some = std::min<int64_t>(4, rows - k);
      for (int64_t i = 0; i < some; ++i) grid->code_signed(b + (k + i) * stride, n, unit, codes.data() + i * n);
      right.set_group(k / 4, some, codes.data(), n);
    }
  }
  right.find_range();
  const float scale = grid->plane_scale(0, unit);
  dequantizer = make_dequantizer(left, head * left->units() / heads, right, [=](int64_t) { return scale; });
}

Tensor int8_linear(const Layer& layer, const Int8Rows& x, const Shape& shape) {
  Tensor y = Tensor::uninitialized(shape);
  int8_linear(
      layer, x, Broadcast(layer.added, shape), [&](int64_t r, int64_t c0) { return y.data + r * shape.back() + c0; },
      [](int64_t, int64_t, int64_t, const float*) {});
  return y;
}

Tensor int8_layer_product(const Layer& layer, const Tensor& x, const Tensor& rhs) {
  const Grid& left = layer.quantized->left;
  Shape shape = x.shape;
  if (layer.is_linear()) {
    shape.back() = layer.weight.dim(0);
    return int8_linear(layer, code_rows(left, x), shape);
  }
  const int64_t H = x.dim(1), N = x.dim(2), K = x.dim(3);
  shape.back() = rhs.dim(layer.role == Role::QK ? 2 : 3);
  Tensor y = Tensor::uninitialized(shape);
  const Broadcast added(layer.added, shape);
  parallel_for(x.dim(0) * H, [&](int64_t i) {
    const int64_t h = i % H, rows = rhs.dim(2), n = rhs.dim(3), M = shape[3];
    const PackedHead head(layer, h, H, rhs.data + i * rows * n, rows, n, n);
    const Int8Rows a(N, K, left->planes());
    const bool renormalized = layer.quantized->renormalized;
    const int64_t unit = h * left->units() / H;
    std::vector<float> row(static_cast<size_t>(renormalized ? K : 0));
    for (int64_t r = 0; r < N; ++r) {
      const float* from = x.data + (i * N + r) * K;
      if (renormalized) {
        std::copy_n(from, K, row.data());
        scale_to_largest(row.data(), K);
        from = row.data();
      }
      left->code(from, K, unit, a.row(r), a.stride);
    }
    gemm_int8_block(a, head.right, head.dequantizer.start(), 0, N, 0, head.right.panels(),
                    [&](int64_t r, const int32_t* sum1, const int32_t* sum2) {
                      float* out = y.data + (i * N + r) * M;
                      head.dequantizer(0, M, sum1, sum2, nullptr, out);
                      if (renormalized)
                        kernels().scale(out, inverse_row_sum(left, unit, a.row(r), a.stride, K), out, M);
                      if (!layer.added.empty()) kernels().add(out, added.row(i * N + r), out, M);
                    });
  });
  return y;
}

}  // namespace bcq
