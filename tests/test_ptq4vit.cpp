// BasePTQ and PTQ4ViT: numbers of the official classes on inputs that a formula gives, the
// grids' formulas, gradients block by block against the whole network, and what bits mean.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"
#include "quant/bias_comp.h"
#include "quant/ptq4vit.h"
#include "tests/ptq4vit.h"
#include "tests/quantize.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// The formulas of the inputs, in double.
double u(int64_t k) { return static_cast<double>((7919 * k) % 1000) / 500 - 1; }
double v(int64_t offset, int64_t i) { return u(offset + i) * (1 + 0.5 * u(3 * offset + i / 7)); }

template <class F>
Tensor fill(Shape shape, F f) {
  Tensor t(std::move(shape));
  for (int64_t i = 0; i < t.size(); ++i) t[i] = static_cast<float>(f(i));
  return t;
}
double cube(double x) { return x * x * x; }

Tensor softmaxed(Tensor x) {
  for (int64_t r = 0; r < x.rows(); ++r) kernels().softmax(x.data + r * x.dim(-1), x.dim(-1));
  return x;
}

Layer make_layer(Role role, Tensor weight = {}, Tensor bias = {}) {
  Layer layer;
  layer.name = "layer";
  layer.role = role;
  layer.weight = std::move(weight);
  layer.bias.loaded = std::move(bias);
  return layer;
}

Operands make_data(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& g) {
  return {a, b, layer.product({Precision::Float}, a, b), squared(g.clone())};
}

const std::vector<float>& steps(const Grid& grid) { return as<Uniform>(grid).scale; }

// The candidates behind chosen steps; `first` are the steps of multiplier 1.
std::vector<int> indices(const std::vector<float>& chosen, const std::vector<float>& first, double alpha = 0.01) {
  std::vector<int> found;
  for (size_t i = 0; i < chosen.size(); ++i)
    found.push_back(static_cast<int>(std::lround((chosen[i] / first[i] - alpha) / ((1.2 - alpha) / 100))));
  return found;
}

void check_close(const std::vector<float>& got, const std::vector<double>& want, double tolerance) {
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(want[i]).epsilon(tolerance));
}

// The 4-bit cases of the official classes: B = 2, T = 5, in = 8, out = 6.
struct Golden {
  Tensor x = fill({2, 5, 8}, [](int64_t i) { return 3 * cube(u(1 + i)); });
  Tensor weight = fill({6, 8}, [](int64_t i) { return cube(u(2001 + i)); });
  Tensor bias = fill({6}, [](int64_t i) { return u(3001 + i); });
  Tensor g = fill({2, 5, 6}, [](int64_t i) { return u(4001 + i); });
};

}  // namespace

TEST_CASE("ptq4vit: golden linear with one row block") {
  const Golden in;
  Layer layer = make_layer(Role::Proj, in.weight, in.bias);
  calibrate_layer(layer, make_data(layer, in.x, {}, in.g), PtqOptions{4, 4});
  check_close(steps(right_grid(layer)), {0.1181803}, 1e-6);
  check_close(steps(layer.left_grid()), {0.4293383}, 1e-6);
  CHECK(indices(steps(right_grid(layer)), {0.1309477f}) == std::vector<int>{75});
  CHECK(indices(steps(layer.left_grid()), {0.3928431f}) == std::vector<int>{91});
  CHECK(same_bits(layer.weight_in(Precision::Fake).values(), fake_quantize(right_grid(layer), layer.weight.values())));
}

TEST_CASE("ptq4vit: golden linear with three row blocks") {
  const Golden in;
  Layer layer = make_layer(Role::QKV, in.weight, in.bias);
  calibrate_layer(layer, make_data(layer, in.x, {}, in.g), PtqOptions{4, 4});
  check_close(steps(right_grid(layer)), {0.1199149, 0.1194952, 0.1431127}, 1e-6);
  CHECK(indices(steps(right_grid(layer)), {0.1121643f, 0.1143167f, 0.1309477f}) == std::vector<int>{89, 87, 91});
  CHECK(indices(steps(layer.left_grid()), {0.3928431f}) == std::vector<int>{91});
}

TEST_CASE("ptq4vit: golden linear after GELU") {
  Golden in;
  kernels().gelu_erf(in.x.data, in.x.data, in.x.size());
  Layer layer = make_layer(Role::Fc2, in.weight, in.bias);
  calibrate_layer(layer, make_data(layer, in.x, {}, in.g), PtqOptions{4, 4});
  const auto& a = as<TwinGelu>(layer.left_grid());
  CHECK(indices(steps(right_grid(layer)), {0.1309477f}) == std::vector<int>{76});
  CHECK(indices({a.pos}, {0.3479578f}) == std::vector<int>{83});
  check_close(steps(right_grid(layer)), {0.1197386}, 1e-6);
  check_close({a.pos, a.neg}, {0.3471575, 0.0212464}, 2e-6);
}

TEST_CASE("ptq4vit: golden query-key product") {
  const Tensor q = fill({2, 2, 4, 3}, [](int64_t i) { return 2 * u(5001 + i); });
  const Tensor kt = fill({2, 2, 3, 4}, [](int64_t i) { return u(6001 + i); });  // [S, H, d, M], as the product reads it
  Tensor k({2, 2, 4, 3});
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t d = 0; d < 3; ++d)
      for (int64_t m = 0; m < 4; ++m) k[(h * 4 + m) * 3 + d] = kt[(h * 3 + d) * 4 + m];
  Layer layer = make_layer(Role::QK);
  const Tensor g = fill({2, 2, 4, 4}, [](int64_t i) { return u(7001 + i); });
  calibrate_layer(layer, make_data(layer, q, k, g), PtqOptions{4, 4});
  CHECK(indices(steps(layer.left_grid()), {0.2533333f, 0.2650667f}) == std::vector<int>{75, 81});
  CHECK(indices(steps(right_grid(layer)), {0.1266667f, 0.1325333f}) == std::vector<int>{98, 99});
  CHECK(as<Uniform>(layer.left_grid()).along == 1);
}

TEST_CASE("ptq4vit: golden product after softmax") {
  const Tensor a = softmaxed(fill({2, 2, 4, 4}, [](int64_t i) { return 4 * u(8001 + i); }));
  const Tensor b = fill({2, 2, 4, 3}, [](int64_t i) { return u(9001 + i); });
  const Tensor g = fill({2, 2, 4, 3}, [](int64_t i) { return u(10001 + i); });
  Layer layer = make_layer(Role::AV);
  calibrate_layer(layer, make_data(layer, a, b, g), PtqOptions{4, 4});
  CHECK(as<TwinSoftmax>(layer.left_grid()).split == std::ldexp(1.f, -19));
  CHECK(indices(steps(right_grid(layer)), {0.1266667f, 0.1325333f}) == std::vector<int>{89, 72});
  const Tensor q = fake_quantize(layer.left_grid(), a);
  check_close({q[0], q[1], q[2], q[3]}, {0.5714305, 0.2857162, 0.1428591, 0.1428591}, 1e-6);
}

TEST_CASE("ptq4vit: gradients that vanish do not decide") {
  const Golden in;
  Layer zero = make_layer(Role::QKV, in.weight, in.bias), plain = zero;
  Operands data = make_data(zero, in.x, {}, Tensor({2, 5, 6}));
  calibrate_layer(zero, data, PtqOptions{4, 4});
  data.g2 = {};
  calibrate_layer(plain, data, PtqOptions{4, 4});
  CHECK(steps(right_grid(zero)) == steps(right_grid(plain)));
  CHECK(steps(zero.left_grid()) == steps(plain.left_grid()));
  CHECK(steps(zero.left_grid())[0] > 0.1f);
}

TEST_CASE("ptq4vit: a part without values gets a usable step") {
  Golden in;
  std::fill_n(in.weight.data, 16, 0.f);
  Layer layer = make_layer(Role::QKV, in.weight, in.bias);
  calibrate_layer(layer, make_data(layer, in.x, {}, in.g), PtqOptions{4, 4});
  CHECK(steps(right_grid(layer))[0] == doctest::Approx(1).epsilon(0.01));
  CHECK(kernels().all_finite(layer.weight_in(Precision::Fake).values().data, layer.weight.size()));
  CHECK(layer.weight_in(Precision::Fake).values()[3] == 0);
}

namespace {

// Inputs of one case of the fixture; see the "inputs" entry of the file.
struct Case {
  Role role;
  Tensor weight, bias, a, b, g;
};

Tensor activations(const Shape& shape) {
  return fill(shape, [](int64_t i) { return 3 * cube(v(100, i)); });
}
Tensor weights(int64_t out, int64_t in) {
  return fill({out, in}, [](int64_t i) { return cube(v(2000, i)); });
}
Tensor biases(int64_t out) {
  return fill({out}, [](int64_t i) { return v(3000, i); });
}
Tensor gradients(const Shape& shape) {
  return fill(shape, [](int64_t i) { return v(4000, i); });
}

Tensor attention_rows(const Shape& shape) {
  Tensor a(shape);
  const int64_t n = shape.back();
  for (int64_t r = 0; r < a.rows(); ++r) {
    double sum = 0;
    for (int64_t pass = 0; pass < 2; ++pass)
      for (int64_t i = r * n; i < (r + 1) * n; ++i) {
        const double e = 1 + v(6000, i), weight = e * e * e * e + 0.001;
        if (pass == 0) sum += weight;
        if (pass == 1) a[i] = static_cast<float>(weight / sum);
      }
  }
  return a;
}

Case case_of(const std::string& op) {
  if (op == "patch")
    return {Role::Patch, weights(24, 48),      biases(24), unfold_patches(activations({4, 3, 12, 12}), 4),
            {},          gradients({4, 9, 24})};
  if (op == "qkv")
    return {Role::QKV, weights(72, 24), biases(72), activations({4, 10, 24}), {}, gradients({4, 10, 72})};
  if (op == "proj")
    return {Role::Proj, weights(24, 24), biases(24), activations({4, 10, 24}), {}, gradients({4, 10, 24})};
  if (op == "fc2") {
    const Tensor x = fill({4, 10, 48}, [](int64_t i) {
      const double t = v(100, i);
      return t > 0 ? 3 * cube(t) : -0.07 * (t * t);
    });
    return {Role::Fc2, weights(24, 48), biases(24), x, {}, gradients({4, 10, 24})};
  }
  if (op == "reduction")
    return {Role::Reduction, weights(12, 24), {}, activations({4, 10, 24}), {}, gradients({4, 10, 12})};
  if (op == "head") return {Role::Head, weights(16, 24), biases(16), activations({7, 24}), {}, gradients({7, 16})};
  const Tensor right = fill({4, 3, 10, 8}, [](int64_t i) { return 2 * v(5000, i); });
  if (op == "matmul1") return {Role::QK, {}, {}, activations({4, 3, 10, 8}), right, gradients({4, 3, 10, 10})};
  REQUIRE(op == "matmul2");
  return {Role::AV, {}, {}, attention_rows({4, 3, 10, 10}), right, gradients({4, 3, 10, 8})};
}

}  // namespace

// The compensation of a quantized layer, each half of the samples a batch.
Tensor fitted(const Layer& layer, const Operands& data) {
  RunningMean error(BcShape::Position);
  const int64_t n = data.a.dim(0), half = n / 2;
  for (const auto& [first, last] : {std::pair{int64_t{0}, half}, std::pair{half, n}}) {
    const Tensor a = data.a.slice(first, last), b = data.b.empty() ? data.b : data.b.slice(first, last);
    error.update(data.y.slice(first, last), layer.product({Precision::Fake}, a, b));
  }
  return error.mean();
}

TEST_CASE("ptq4vit: every operation, preset and width as the official code chooses and compensates") {
  const json fixture = read_json("tests/fixtures/ptq4vit_official.json");
  for (const json& want : fixture.at("cases")) {
    const std::string op = want.at("op");
    const int bits = want.at("bits");
    CAPTURE(op);
    CAPTURE(bits);
    const Case in = case_of(op);
    Layer layer = make_layer(in.role, in.weight, in.bias);
    const bool base = want.at("preset") == "base_ptq";
    const Operands data = make_data(layer, in.a, in.b, in.g);
    calibrate_layer(layer, data, base ? base_ptq(bits, bits) : PtqOptions{bits, bits});
    check_close(scales_of(layer.left_grid()), want.at("a").get<std::vector<double>>(), 2e-6);
    check_close(scales_of(right_grid(layer)), want.at("b").get<std::vector<double>>(), 2e-6);
    const std::vector<double> bias = doubles(fitted(layer, data));
    double sum = 0, squares = 0;
    for (const double x : bias) sum += x, squares += x * x;
    const double tolerance = 1e-4 * max_abs(bias);
    const auto first = want.at("bc").get<std::vector<double>>();
    for (size_t i = 0; i < first.size(); ++i) CHECK(std::abs(bias[i] - first[i]) < tolerance);
    CHECK(std::abs(sum - want.at("bc_sum").get<double>()) < tolerance * std::sqrt(static_cast<double>(bias.size())));
    CHECK(squares == doctest::Approx(want.at("bc_squares").get<double>()).epsilon(1e-4));
  }
  CHECK(fixture.at("cases").size() == 48);
}

TEST_CASE("ptq4vit: the twin grids are their formulas") {
  const Tensor x = random({7, 33}, 3, 1.5);
  const Tensor gelu = fake_quantize(TwinGelu{4, 0.17f, 0.02f}, x);
  Tensor p = random({7, 33}, 4, 0.5);
  for (int64_t i = 0; i < p.size(); ++i) p[i] += 0.5f;
  const float split = 0.125f, m = 7;
  const Tensor overlapping = fake_quantize(TwinSoftmax{4, split, true}, p);
  const Tensor disjoint = fake_quantize(TwinSoftmax{4, split, false}, p);
  for (int64_t i = 0; i < x.size(); ++i) {
    const float pos = std::clamp(std::nearbyint(x[i] / 0.17f), 0.f, 7.f) * 0.17f;
    const float neg = std::clamp(std::nearbyint(x[i] / 0.02f), -8.f, 0.f) * 0.02f;
    CHECK(gelu[i] == pos + neg);
    const float step = split / m;
    const float high = std::nearbyint(std::clamp(p[i], split, 1.f) * m) / m;
    const float low = std::nearbyint(std::clamp(p[i], 0.f, split) / step) * step;
    CHECK(overlapping[i] == high + low);
    CHECK(disjoint[i] == (p[i] < split ? low : std::nearbyint(p[i] * m) / m));
  }
}

TEST_CASE("ptq4vit: which grid goes where") {
  const auto model = tiny();
  quantize_ptq(*model, tiny_images(3), PtqOptions{6, 5}, kSilent, kQuiet);
  for (const Layer* layer : model->all_layers()) {
    CAPTURE(layer->name);
    CHECK(is_identity(layer->left_grid()) == (layer->role == Role::Patch));
    CHECK(layer->left_grid().is<TwinSoftmax>() == (layer->role == Role::AV));
    CHECK(layer->left_grid().is<TwinGelu>() == (layer->role == Role::Fc2));
    const auto& b = as<Uniform>(right_grid(*layer));
    CHECK(b.bits == (layer->is_linear() ? 6 : 5));
    CHECK(b.scale.size() == (layer->role == Role::Patch                        ? 24u
                             : !layer->is_linear() || layer->role == Role::QKV ? 3u
                                                                               : 1u));
    CHECK(layer->quantized->weight.empty() == !layer->is_linear());
  }
  quantize_ptq(*model, tiny_images(3), base_ptq(6, 6), kSilent, kQuiet);
  for (const Layer* layer : model->all_layers()) {
    CAPTURE(layer->name);
    CHECK(layer->left_grid().is<Uniform>() == (layer->role != Role::Patch));
    if (layer->role == Role::Patch) CHECK(steps(right_grid(*layer)).size() == 1);
    if (layer->role == Role::AV) CHECK(steps(layer->left_grid()).size() == 3);
  }
}

TEST_CASE("ptq4vit: the grids of the choices between code and paper") {
  const auto model = tiny();
  PtqOptions o{5, 5};
  o.softmax_twin = SoftmaxTwin::Clean;
  o.gelu_twin = GeluTwin::Aligned;
  o.head_intervals = o.channel_conv = false;
  o.quantize_pixels = true;
  quantize_ptq(*model, tiny_images(3), o, kSilent, kQuiet);
  for (const Layer* layer : model->all_layers()) {
    CAPTURE(layer->name);
    if (layer->role == Role::Patch) CHECK(steps(layer->left_grid()).size() == 1);
    if (!layer->is_linear()) CHECK(steps(right_grid(*layer)).size() == 1);
    if (layer->role == Role::QK) CHECK(steps(layer->left_grid()).size() == 1);
    if (layer->role == Role::Patch) CHECK(steps(right_grid(*layer)).size() == 1);
    if (layer->role == Role::AV) CHECK_FALSE(as<TwinSoftmax>(layer->left_grid()).official);
    if (layer->role == Role::Fc2) {
      const auto& grid = as<TwinGelu>(layer->left_grid());
      int exponent = 0;
      CHECK(std::frexp(grid.pos / grid.neg, &exponent) == 0.5f);  // a power of two
      CHECK(grid.pos >= grid.neg);
    }
  }
  o.softmax_twin = SoftmaxTwin::None;
  o.gelu_twin = GeluTwin::None;
  quantize_ptq(*model, tiny_images(3), o, kSilent, kQuiet);
  for (const Layer* layer : model->all_layers()) CHECK(layer->left_grid().is<Uniform>());
}

TEST_CASE("ptq4vit: 16 bits are nearly float, fewer are not") {
  const auto model = tiny();
  const Tensor images = tiny_images(4);
  const Batch batch{images, {}, 0, 0};
  const Tensor exact = model->forward({}, batch);
  double before = 0;
  for (const int bits : {16, 8, 4}) {
    PtqOptions options{bits, bits};
    options.softmax_twin = SoftmaxTwin::Clean;  // the official grid adds its split to large values at any width
    quantize_ptq(*model, images, options, kSilent, kQuiet);
    const double error = relative_error(model->forward({Precision::Fake, nullptr, nullptr}, batch), exact);
    if (bits == 16) CHECK(error < 1e-3);
    CHECK(error > 4 * before);
    before = error;
  }
}

TEST_CASE("ptq4vit: 32 bits leave an operand float") {
  const auto model = tiny();
  quantize_ptq(*model, tiny_images(2), PtqOptions{32, 8}, kSilent, kQuiet);
  for (const Layer* layer : model->all_layers()) {
    CHECK((!layer->quantized || layer->quantized->weight.empty()));
    CHECK(is_identity(right_grid(*layer)) == layer->is_linear());
    CHECK(is_identity(layer->left_grid()) == (layer->role == Role::Patch));
  }
  quantize_ptq(*model, tiny_images(2), PtqOptions{8, 32}, kSilent, kQuiet);
  for (const Layer* layer : model->all_layers()) {
    CHECK(is_identity(layer->left_grid()));
    CHECK(is_identity(right_grid(*layer)) == !layer->is_linear());
  }
}

TEST_CASE("ptq4vit: what cannot be done is refused") {
  const auto model = tiny();
  const Tensor images = tiny_images(1);
  for (const int bits : {-1, 0, 1, 17, 31, 33}) {
    CHECK_THROWS_AS(quantize_ptq(*model, images, PtqOptions{bits, 8}, kSilent, kQuiet), UsageError);
    CHECK_THROWS_AS(quantize_ptq(*model, images, PtqOptions{8, bits}, kSilent, kQuiet), UsageError);
  }
  CHECK_THROWS_AS(quantize_ptq(*model, Tensor({0, 3, 12, 12}), PtqOptions{8, 8}, kSilent, kQuiet), UsageError);
  CHECK_THROWS_AS(quantize_ptq(*load_model("tests/fixtures/opt_tiny"), images, PtqOptions{8, 8}, kSilent, kQuiet),
                  UsageError);
  PtqOptions options{8, 8};
  options.eq_alpha = 0;
  CHECK_THROWS_AS(quantize_ptq(*model, images, options, kSilent, kQuiet), UsageError);

  Tensor broken = images.clone();
  broken[5] = NAN;
  const auto message = message_of<Error>([&] { quantize_ptq(*model, broken, PtqOptions{8, 8}, kSilent, kQuiet); });
  CHECK(contains(message, "patch_embed.proj"));
  const Golden in;
  Layer layer = make_layer(Role::Proj, in.weight, in.bias);
  Operands data = make_data(layer, in.x, {}, in.g);
  data.y[3] = INFINITY;
  CHECK(contains(message_of<Error>([&] { calibrate_layer(layer, data, PtqOptions{4, 4}); }), "layer"));
}
