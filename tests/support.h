// What the tests share: seeded random tensors, distances, finite differences, folders that clean up
// after themselves, and a safetensors writer that also writes what the engine's own
// refuses (16-bit floats, values that are not finite).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <typeinfo>
#include <vector>

#include "data/image/image.h"
#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/tensor.h"
#include "engine/file/file.h"
#include "engine/file/safetensors.h"
#include "engine/nn/layer.h"
#include "engine/nn/ops.h"

namespace bcq::test {

// The tests, and so the programs, are built with a sanitizer that maps terabytes of addresses.
inline bool sanitized() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return true;
#elif defined(__has_feature)
  return __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
  return false;
#endif
}

// Uniform in [-size, size).
inline Tensor random(Shape shape, uint32_t seed, double size = 1) {
  std::mt19937 bits(seed);
  Tensor t(std::move(shape));
  for (int64_t i = 0; i < t.size(); ++i)
    t[i] = static_cast<float>(size * (static_cast<double>(bits()) / 2147483648.0 - 1.0));
  return t;
}

inline std::vector<double> doubles(const Tensor& t) { return {t.data, t.data + t.size()}; }

inline double max_abs(const std::vector<double>& v) {
  double m = 0;
  for (const double x : v) m = std::max(m, std::abs(x));
  return m;
}

// What relative_error() may be between float32 sums of up to some 100 terms, here and in the reference.
inline constexpr double kTight = 1e-5;
// Largest difference over the largest magnitude of the reference; infinite for NaN or another size.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(got[i] - want[i]);
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  const double size = max_abs(want);
  return worst == 0 ? 0 : worst / (size > 0 ? size : 1);
}
inline double relative_error(const Tensor& got, const std::vector<double>& want) {
  return relative_error(doubles(got), want);
}
inline double relative_error(const Tensor& got, const Tensor& want) {
  return got.shape == want.shape ? relative_error(doubles(got), doubles(want)) : INFINITY;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape == b.shape && std::memcmp(a.data, b.data, static_cast<size_t>(a.size()) * sizeof(float)) == 0;
}

// The number of threads for the rest of a scope.
struct Threads {
  explicit Threads(int n) : before(threads()) { set_threads(n); }
  ~Threads() { set_threads(before); }
  int before;
};

// f() with one and with two threads gives the same bits.
inline bool same_on_two_threads(const std::function<Tensor()>& f) {
  Tensor one, two;
  {
    const Threads t(1);
    one = f();
  }
  {
    const Threads t(2);
    two = f();
  }
  return same_bits(one, two);
}

// A network from one tensor to another.
using Function = std::function<Tensor(Tape*, const Tensor&)>;

inline double weighted_sum(const Tensor& y, const Tensor& g) {
  double sum = 0;
  for (int64_t i = 0; i < y.size(); ++i) sum += static_cast<double>(y[i]) * g[i];
  return sum;
}

// dL/dx of L = sum(g y(x)) by the tape.
inline Tensor tape_gradient(const Function& f, const Tensor& x, const Tensor& g) {
  Tape tape;
  Tensor watched = x.clone();
  tape.watch(watched);
  tape.backward(f(&tape, watched), g);
  return tape.grad(watched).clone();
}

// The largest difference to central differences over the largest gradient. With steps of 2^-6 and
// values around 1 the rounding of float forward passes contributes about 1e-5, the cubic term 1e-4.
inline double gradient_error(const Function& f, const Tensor& x, uint32_t seed) {
  const Threads one(1);  // thousands of passes over a handful of values
  const Tensor g = random(f(nullptr, x).shape, seed);
  const Tensor dx = tape_gradient(f, x, g);
  if (dx.shape != x.shape) return INFINITY;
  std::vector<double> want;
  const float step = 1.f / 64;
  for (int64_t i = 0; i < x.size(); ++i) {
    Tensor up = x.clone(), down = x.clone();
    up[i] += step;
    down[i] -= step;
    want.push_back((weighted_sum(f(nullptr, up), g) - weighted_sum(f(nullptr, down), g)) /
                   (static_cast<double>(up[i]) - down[i]));
  }
  return relative_error(dx, want);
}

inline Image load_image(const std::string& path) { return decode_image(read_file(path), path); }

// Entry b of the first dimension, kept as a batch of one.
inline Tensor sample(const Tensor& x, int64_t b) { return x.slice(b, b + 1).clone(); }

// Quantize a layer to these grids; the weight of a linear one is rounded to the right one.
inline void set_grids(Layer& layer, const Grid& left, const Grid& right) {
  Weight rounded;
  if (layer.is_linear() && !is_identity(right)) rounded = fake_quantize(right, layer.weight.values());
  layer.quantize({left, right, rounded, nullptr, nullptr});
}
// The grid of a layer's right operand: identity where it stays float.
inline const Grid& right_grid(const Layer& layer) {
  static const Grid identity;
  return layer.quantized ? layer.quantized->right : identity;
}

// A grid as the kind it has to be. Error when it is another.
template <class Kind>
const Kind& as(const Grid& grid) {
  const Kind* kind = grid.as<Kind>();
  require(kind && typeid(*kind) == typeid(Kind), "a grid of the kind %s", grid.name());
  return *kind;
}

// The message of the exception f() throws as an E; "" when it throws none.
template <class E>
std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}
inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// An empty folder, removed with what is in it.
struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "bcq-test-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("mkdtemp failed");
    path = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}
inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// float to half, round to nearest even; of finite values within the range of half.
inline uint16_t to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double a = std::abs(static_cast<double>(x));
  if (a == 0) return sign;
  const int exponent = std::max(std::ilogb(a), -14);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(a, 10 - exponent)));  // may carry to 2048
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
}

// A safetensors file of float tensors, as F32 or as F16, whatever their values.
inline void write_raw(const std::string& path, const std::map<std::string, Tensor>& tensors, bool half = false,
                      const std::map<std::string, std::string>& metadata = {}) {
  std::string header = "{", data;
  for (const auto& [name, t] : tensors) {
    const size_t begin = data.size();
    for (int64_t i = 0; i < t.size(); ++i) {
      const uint16_t h = half ? to_half(t[i]) : uint16_t{0};
      data.append(half ? reinterpret_cast<const char*>(&h) : reinterpret_cast<const char*>(t.data + i), half ? 2 : 4);
    }
    header += (header.size() > 1 ? "," : "") + ("\"" + name + "\":{\"dtype\":\"") + (half ? "F16" : "F32") +
              "\",\"shape\":" + to_string(t.shape) + ",\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(data.size()) + "]}";
  }
  if (!metadata.empty()) {
    std::string entries;
    for (const auto& [key, value] : metadata)
      entries += (entries.empty() ? "\"" : ",\"") + key + "\":\"" + value + "\"";
    header += (header.size() > 1 ? "," : "") + ("\"__metadata__\":{" + entries + "}");
  }
  header += "}";
  while (header.size() % 8) header += ' ';
  const uint64_t length = header.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), 8);
  out << header << data;
}

// Every tensor of a file, by name.
inline std::map<std::string, Tensor> read_all(const std::string& path) {
  const SafeTensors file = SafeTensors::open(path);
  std::map<std::string, Tensor> tensors;
  for (const auto& entry : file.tensors()) tensors[entry.first] = file.get(entry.first).clone();
  return tensors;
}

}  // namespace bcq::test
