#include "engine/nn/ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/core/check.h"
#include "engine/gemm/gemm_float.h"
#include "engine/gemm/gemm_packed.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

void require_shape(bool ok, const char* op, const Shape& a, const Shape& b) {
  require(ok, "%s: shapes %s and %s do not fit", op, to_string(a), to_string(b));
}
void require_shape(bool ok, const char* op, const Tensor& a, const Tensor& b) {
  require_shape(ok, op, a.shape, b.shape);
}

}  // namespace

Tensor linear(Tape* tape, const Tensor& x, const Weight& weight, const Tensor& bias, int window_bits) {
  require_shape(x.dim(-1) == weight.dim(1), "linear", x.shape, weight.shape());
  Shape shape = x.shape;
  shape.back() = weight.dim(0);
  Tensor y = Tensor::uninitialized(shape);
  if (weight.packed())
    weight.packed()->multiply(x.data, x.rows(), bias.data, y.data, window_bits);
  else
    linear_float(x, weight, bias, y);
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) {  // y = x Wᵀ  =>  dx = dy W
      Tensor dx = Tensor::uninitialized(x.shape);
      Buffer<float> copy;
      linear_rows({.x = with_row_stride(dy, copy),
                   .rows = dy.rows(),
                   .w = weight.values(),
                   .transposed = false,
                   .y = dx.data,
                   .y_stride = dx.dim(-1)});
      tape->add_to_grad(x, dx);
    });
  return y;
}

Tensor matmul(Tape* tape, const Tensor& a, const Tensor& b, bool transpose_b) {
  const int64_t N = a.dim(2), K = a.dim(3), M = transpose_b ? b.dim(2) : b.dim(3);
  require_shape(a.dim(0) == b.dim(0) && a.dim(1) == b.dim(1) && K == (transpose_b ? b.dim(3) : b.dim(2)), "matmul", a,
                b);
  Tensor y = Tensor::uninitialized({a.dim(0), a.dim(1), N, M});
  const int64_t heads = a.dim(0) * a.dim(1);
  parallel_for(heads, [&](int64_t h) {
    const float* right = b.data + h * M * K;
    const FloatPanels panels(transpose_b ? row_major(right, K).transposed() : row_major(right, M), K, M);
    gemm_float({row_major(a.data + h * N * K, K), N, panels.view(), K, M, y.data + h * N * M, M});
  });
  if (tape && (a.slot >= 0 || b.slot >= 0))
    tape->record(y, [=](const Tensor& dy) {
      float* da = a.slot >= 0 ? tape->grad(a).data : nullptr;
      float* db = b.slot >= 0 ? tape->grad(b).data : nullptr;
      parallel_for(heads, [&](int64_t h) {
        const Matrix g = row_major(dy.data + h * N * M, M), left = row_major(a.data + h * N * K, K);
        const Matrix right = row_major(b.data + h * M * K, transpose_b ? K : M);
        // y = a bᵀ: da = dy b, db = dyᵀ a.   y = a b: da = dy bᵀ, db = aᵀ dy.
        const auto add_to = [](float* to, const Matrix& x, int64_t rows, const Matrix& z, int64_t depth, int64_t n) {
          gemm_float({x, rows, FloatPanels(z, depth, n).view(), depth, n, to, n, to, n});
        };
        if (da) add_to(da + h * N * K, g, N, transpose_b ? right : right.transposed(), M, K);
        if (db && transpose_b) add_to(db + h * M * K, g.transposed(), M, left, N, K);
        if (db && !transpose_b) add_to(db + h * M * K, left.transposed(), K, g, N, M);
      });
    });
  return y;
}

Tensor add(Tape* tape, const Tensor& a, const Tensor& b) {
  require_shape(a.shape == b.shape, "add", a, b);
  Tensor y = Tensor::uninitialized(a.shape);
  for_chunks(y.size(), [&](int64_t i, int64_t e) { kernels().add(a.data + i, b.data + i, y.data + i, e - i); });
  if (tape)
    tape->record(y, [=](const Tensor& dy) {
      tape->add_to_grad(a, dy);
      tape->add_to_grad(b, dy);
    });
  return y;
}

Tensor scale(Tape* tape, const Tensor& x, float s) {
  Tensor y = Tensor::uninitialized(x.shape);
  for_chunks(y.size(), [&](int64_t i, int64_t e) { kernels().scale(x.data + i, s, y.data + i, e - i); });
  if (tape && x.slot >= 0) tape->record(y, [=](const Tensor& dy) { tape->add_to_grad(x, scale(nullptr, dy, s)); });
  return y;
}

Tensor scale_channels(Tape* tape, const Tensor& x, const Tensor& gamma) {
  if (gamma.empty()) return x;
  const int64_t n = x.dim(-1);
  require_shape(gamma.size() == n, "scale_channels", x, gamma);
  Tensor y = Tensor::uninitialized(x.shape);
  for_rows(x, [&](int64_t r) {
    for (int64_t c = 0; c < n; ++c) y[r * n + c] = x[r * n + c] * gamma[c];
  });
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) { tape->add_to_grad(x, scale_channels(nullptr, dy, gamma)); });
  return y;
}

Tensor concat(Tape* tape, const std::vector<Tensor>& parts) {
  Shape shape = parts[0].shape;
  shape.back() = 0;
  for (const Tensor& part : parts) {
    require_shape(part.rows() == parts[0].rows(), "concat", parts[0], part);
    shape.back() += part.dim(-1);
  }
  Tensor y = Tensor::uninitialized(shape);
  // f(piece of a row of a part, where it is in y)
  const auto for_pieces = [width = shape.back(), parts](auto f) {
    int64_t begin = 0;
    for (const Tensor& part : parts) {
      for_rows(part, [&](int64_t r) { f(part, r * part.dim(-1), r * width + begin); });
      begin += part.dim(-1);
    }
  };
  for_pieces(
      [&](const Tensor& part, int64_t from, int64_t to) { std::copy_n(part.data + from, part.dim(-1), y.data + to); });
  if (tape)
    tape->record(y, [=](const Tensor& dy) {
      for_pieces([&](const Tensor& part, int64_t from, int64_t to) {
        if (part.slot < 0) return;
        float* dx = tape->grad(part).data + from;
        kernels().add(dx, dy.data + to, dx, part.dim(-1));
      });
    });
  return y;
}

Tensor softmax(Tape* tape, const Tensor& x) {
  Tensor y = x.clone();
  const int64_t n = x.dim(-1);
  for_rows(y, [&](int64_t r) { kernels().softmax(y.data + r * n, n); });
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) {  // dx = y (dy - sum(dy y))
      Tensor& dx = tape->grad(x);
      for_rows(y, [&](int64_t r) {
        const float *p = y.data + r * n, *g = dy.data + r * n;
        const float mean = static_cast<float>(kernels().dot(p, g, n));
        for (int64_t i = 0; i < n; ++i) dx[r * n + i] += p[i] * (g[i] - mean);
      });
    });
  return y;
}

namespace {

Tensor map(void (*kernel)(const float*, float*, int64_t), const Tensor& x) {
  Tensor y = Tensor::uninitialized(x.shape);
  for_chunks(y.size(), [&](int64_t b, int64_t e) { kernel(x.data + b, y.data + b, e - b); });
  return y;
}

}  // namespace

void (*gelu_kernel(Gelu form))(const float*, float*, int64_t) {
  return form == Gelu::Erf ? kernels().gelu_erf : form == Gelu::Tanh ? kernels().gelu_tanh : kernels().gelu_quick;
}

namespace {

double gelu_slope(double x, Gelu form) {
  if (form == Gelu::Erf) {  // Phi(x) + x phi(x)
    const double cdf = 0.5 * (1 + std::erf(x * M_SQRT1_2));
    return cdf + x * (std::exp(-0.5 * x * x) * (0.5 * M_2_SQRTPI * M_SQRT1_2));
  }
  // Both approximations are x s(u), s(u) = 1 / (1 + exp(-u)).
  constexpr double kTwice = 2 * 0.7978845608028654;
  const double u = form == Gelu::Quick ? 1.702 * x : kTwice * (x + 0.044715 * x * x * x);
  const double du = form == Gelu::Quick ? 1.702 : kTwice * (1 + 3 * 0.044715 * x * x), s = 1 / (1 + std::exp(-u));
  return s + x * s * (1 - s) * du;
}

}  // namespace

Tensor gelu(Tape* tape, const Tensor& x, Gelu form) {
  Tensor y = map(gelu_kernel(form), x);
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) {
      Tensor& dx = tape->grad(x);
      for_chunks(x.size(), [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i) dx[i] += dy[i] * static_cast<float>(gelu_slope(x[i], form));
      });
    });
  return y;
}

Tensor relu(const Tensor& x) { return map(kernels().relu, x); }

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  require_shape(gate.shape == up.shape, "swiglu", gate, up);
  Tensor y = Tensor::uninitialized(gate.shape);
  for_chunks(y.size(), [&](int64_t i, int64_t e) { kernels().swiglu(gate.data + i, up.data + i, y.data + i, e - i); });
  return y;
}

Tensor layer_norm(Tape* tape, const Tensor& x, const Tensor& gamma, const Tensor& beta, float eps) {
  require_shape(x.dim(-1) == gamma.size() && x.dim(-1) == beta.size(), "layer_norm", x, gamma);
  Tensor y = Tensor::uninitialized(x.shape);
  const int64_t n = x.dim(-1);
  for_rows(x, [&](int64_t r) { kernels().layer_norm(x.data + r * n, gamma.data, beta.data, eps, n, y.data + r * n); });
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) {
      // With g = gamma dy and u = (x - mean) / sigma:  dx = (g - mean(g) - u mean(g u)) / sigma
      Tensor& dx = tape->grad(x);
      for_rows(x, [&](int64_t r) {
        const float *xr = x.data + r * n, *dr = dy.data + r * n;
        double mean = 0, var = 0, mean_g = 0, mean_gu = 0;
        for (int64_t i = 0; i < n; ++i) mean += xr[i];
        mean /= static_cast<double>(n);
        for (int64_t i = 0; i < n; ++i) var += (xr[i] - mean) * (xr[i] - mean);
        const double inv = 1 / std::sqrt(var / static_cast<double>(n) + eps);
        for (int64_t i = 0; i < n; ++i) {
          const double g = static_cast<double>(gamma[i]) * dr[i];
          mean_g += g;
          mean_gu += g * (xr[i] - mean) * inv;
        }
        mean_g /= static_cast<double>(n);
        mean_gu /= static_cast<double>(n);
        for (int64_t i = 0; i < n; ++i)
          dx[r * n + i] += static_cast<float>(
              inv * (static_cast<double>(gamma[i]) * dr[i] - mean_g - (xr[i] - mean) * inv * mean_gu));
      });
    });
  return y;
}

Tensor rms_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, float eps) {
  require_shape(x.dim(-1) == gamma.size() && x.dim(-1) == beta.size(), "rms_norm", x, gamma);
  Tensor y = Tensor::uninitialized(x.shape);
  const int64_t n = x.dim(-1);
  for_rows(x, [&](int64_t r) { kernels().rms_norm(x.data + r * n, gamma.data, beta.data, eps, n, y.data + r * n); });
  return y;
}

Tensor prepend_tokens(Tape* tape, const Tensor& x, const Tensor& tokens, const Tensor& positions) {
  const int64_t B = x.dim(0), N = x.dim(1), D = x.dim(2), K = tokens.dim(0);
  require_shape(tokens.dim(-1) == D && positions.size() == (K + N) * D, "prepend_tokens", x, positions);
  Tensor y = Tensor::uninitialized({B, K + N, D});
  for (int64_t b = 0; b < B; ++b) {
    float* out = y.data + b * (K + N) * D;
    kernels().add(tokens.data, positions.data, out, K * D);
    kernels().add(x.data + b * N * D, positions.data + K * D, out + K * D, N * D);
  }
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) {
      Tensor& dx = tape->grad(x);
      for (int64_t b = 0; b < B; ++b)
        kernels().add(dx.data + b * N * D, dy.data + (b * (K + N) + K) * D, dx.data + b * N * D, N * D);
    });
  return y;
}

Tensor select_token(Tape* tape, const Tensor& x, int64_t index) {
  return gather_rows(tape, x, {index}, {x.dim(0), x.dim(2)});
}

Tensor mean_tokens(Tape* tape, const Tensor& x) {
  const int64_t B = x.dim(0), N = x.dim(1), D = x.dim(2);
  Tensor y({B, D});
  for (int64_t b = 0; b < B; ++b) {
    float* out = y.data + b * D;
    for (int64_t n = 0; n < N; ++n) kernels().add(out, x.data + (b * N + n) * D, out, D);
  }
  y = scale(nullptr, y, 1.f / static_cast<float>(N));
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) {
      Tensor& dx = tape->grad(x);
      const Tensor share = scale(nullptr, dy, 1.f / static_cast<float>(N));
      for (int64_t r = 0; r < B * N; ++r) kernels().add(dx.data + r * D, share.data + r / N * D, dx.data + r * D, D);
    });
  return y;
}

Tensor gather_rows(Tape* tape, const Tensor& x, const std::vector<int64_t>& index, const Shape& shape) {
  const int64_t B = x.dim(0), N = x.dim(1), D = x.dim(2), M = static_cast<int64_t>(index.size());
  require(
      numel(shape) == B * M * D && std::all_of(index.begin(), index.end(), [&](int64_t i) { return 0 <= i && i < N; }),
      "gather_rows: %d indices and shape %s for %s", M, to_string(shape), to_string(x.shape));
  Tensor y = Tensor::uninitialized(shape);
  const auto row_of = [=](int64_t r) { return (r / M * N + index[at(r % M)]) * D; };  // of row r of y
  for_rows(y.reshaped({B * M, D}),
           [&](int64_t r) { std::memcpy(y.data + r * D, x.data + row_of(r), static_cast<size_t>(D) * 4); });
  if (tape && x.slot >= 0)
    tape->record(y, [=](const Tensor& dy) {
      float* dx = tape->grad(x).data;
      parallel_for(B, [&](int64_t b) {
        for (int64_t r = b * M; r < (b + 1) * M; ++r) kernels().add(dx + row_of(r), dy.data + r * D, dx + row_of(r), D);
      });
    });
  return y;
}

Tensor take(const Tensor& x, int axis, const std::vector<int64_t>& index) {
  Shape shape = x.shape;
  shape[at(axis)] = static_cast<int64_t>(index.size());
  const int64_t outer = numel({shape.begin(), shape.begin() + axis}), n = x.dim(axis);
  return gather_rows(nullptr, x.reshaped({outer, n, x.size() / outer / n}), index, shape);
}

Tensor unfold_patches(const Tensor& pixels, int64_t P) {
  const int64_t B = pixels.dim(0), C = pixels.dim(1), rows = pixels.dim(2) / P, cols = pixels.dim(3) / P;
  const int64_t width = pixels.dim(3), plane = pixels.dim(2) * width;
  Tensor y = Tensor::uninitialized({B, rows * cols, C * P * P});
  parallel_for(B * rows, [&](int64_t item) {
    const int64_t b = item / rows, r = item % rows;
    for (int64_t c = 0; c < cols; ++c) {
      float* out = y.data + (item * cols + c) * C * P * P;
      for (int64_t ch = 0; ch < C; ++ch)
        for (int64_t p = 0; p < P; ++p, out += P)
          std::memcpy(out, pixels.data + (b * C + ch) * plane + (r * P + p) * width + c * P,
                      static_cast<size_t>(P) * 4);
    }
  });
  return y;
}

Broadcast::Broadcast(const Tensor& c, const Shape& y) : c_(c), y_(y) {
  if (c.empty()) return;
  require(c.shape.size() + 1 == y.size(), "a bias of shape %s does not fit an output of shape %s", to_string(c.shape),
          to_string(y));
  for (size_t i = 0; i < c.shape.size(); ++i)
    require(c.shape[i] == 1 || c.shape[i] >= y[i + 1],
            "a bias of shape %s was fitted for fewer positions than the output %s has: use --bc channel, or no more "
            "positions than it was fitted for",
            to_string(c.shape), to_string(y));
  require(c.dim(-1) == y.back(), "a bias of shape %s does not fit an output of shape %s", to_string(c.shape),
          to_string(y));
}

const float* Broadcast::row(int64_t r) const {
  int64_t offset = 0, stride = c_.dim(-1);  // walk the dimensions of the row from the last to the first
  for (int i = c_.rank() - 2; i >= 0; --i) {
    const int64_t n = y_[at(i + 1)];
    if (c_.dim(i) != 1) offset += r % n * stride;
    r /= n;
    stride *= c_.dim(i);
  }
  return c_.data + offset;
}

void add_broadcast(Tensor& y, const Tensor& c, int64_t first) {
  const bool cut = first > 0 && c.dim(0) > 1;
  const Broadcast rows(cut ? c.slice(std::min(first, c.dim(0)), c.dim(0)) : c, y.shape);
  const int64_t n = y.dim(-1);
  for_rows(y, [&](int64_t r) { kernels().add(y.data + r * n, rows.row(r), y.data + r * n, n); });
}

}  // namespace bcq
