// Pillow's resampling and the evaluation transform; see image.h.
#include "data/image/image.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "engine/core/check.h"
#include "engine/file/json.h"

namespace bcq {
namespace {

// Fixed-point weights of one axis: output begin + u is the sum of weights[u * taps + k]
// times input first[u] + k, over 2^22.
struct Axis {
  int taps = 0;
  std::vector<int> first, count;
  std::vector<int32_t> weights;
};

double bicubic_kernel(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

double bilinear_kernel(double x) { return std::max(0.0, 1.0 - std::fabs(x)); }

constexpr int kBits = 22;  // 32 - 8 - 2: room for a byte and for weights that overshoot one

// n input pixels to m output pixels, of which [begin, begin + size) are wanted.
Axis make_axis(int n, int m, int begin, int size, const std::string& interpolation) {
  const bool cubic = interpolation == "bicubic";
  require_input(cubic || interpolation == "bilinear", "interpolation \"%s\" is not supported (bicubic, bilinear)",
                interpolation);
  const double scale = static_cast<double>(n) / m;
  const double stretch = std::max(scale, 1.0);  // the antialiasing: a wider kernel when shrinking
  const double support = (cubic ? 2.0 : 1.0) * stretch;
  Axis axis;
  axis.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  axis.weights.assign(static_cast<size_t>(size) * static_cast<size_t>(axis.taps), 0);
  std::vector<double> w(static_cast<size_t>(axis.taps));
  for (int u = 0; u < size; ++u) {
    const double center = (begin + u + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(center - support + 0.5));
    const int high = std::min(n, static_cast<int>(center + support + 0.5));
    double sum = 0.0;
    for (int k = 0; k < high - low; ++k) {
      const double x = (k + low - center + 0.5) * (1.0 / stretch);
      w[at(k)] = cubic ? bicubic_kernel(x) : bilinear_kernel(x);
      sum += w[at(k)];
    }
    int32_t* out = &axis.weights[static_cast<size_t>(u) * static_cast<size_t>(axis.taps)];
    for (int k = 0; k < high - low; ++k) {
      const double v = (sum != 0.0 ? w[at(k)] / sum : w[at(k)]) * (1 << kBits);
      out[k] = static_cast<int32_t>(v < 0.0 ? v - 0.5 : v + 0.5);
    }
    axis.first.push_back(low);
    axis.count.push_back(high - low);
  }
  return axis;
}

uint8_t to_byte(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

Image black(int height, int width) {
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(height) * static_cast<size_t>(width) * 3)};
}

// Rows [row0, row0 + rows) of `in`, each resampled along its width.
Image resample_rows(const Image& in, const Axis& axis, int row0, int rows) {
  const int width = static_cast<int>(axis.first.size());
  Image out = black(rows, width);
  uint8_t* to = out.rgb.data();
  for (int y = 0; y < rows; ++y) {
    const uint8_t* row = &in.rgb[in.at(row0 + y, 0)];
    for (int u = 0; u < width; ++u, to += 3) {
      const int32_t* w = &axis.weights[static_cast<size_t>(u) * static_cast<size_t>(axis.taps)];
      const uint8_t* from = row + static_cast<size_t>(axis.first[at(u)]) * 3;
      int32_t r = 1 << (kBits - 1), g = r, b = r;
      for (int k = 0; k < axis.count[at(u)]; ++k, from += 3) {
        r += w[k] * from[0];
        g += w[k] * from[1];
        b += w[k] * from[2];
      }
      to[0] = to_byte(r);
      to[1] = to_byte(g);
      to[2] = to_byte(b);
    }
  }
  return out;
}

// Columns resampled along the height; row 0 of `in` is row `row0` of what the axis counts in.
Image resample_columns(const Image& in, const Axis& axis, int row0) {
  const int height = static_cast<int>(axis.first.size());
  const size_t stride = static_cast<size_t>(in.width) * 3;
  Image out = black(height, in.width);
  std::vector<int32_t> sum(stride);
  for (int v = 0; v < height; ++v) {
    const int32_t* w = &axis.weights[static_cast<size_t>(v) * static_cast<size_t>(axis.taps)];
    std::fill(sum.begin(), sum.end(), 1 << (kBits - 1));
    for (int k = 0; k < axis.count[at(v)]; ++k) {
      const uint8_t* row = &in.rgb[in.at(axis.first[at(v)] + k - row0, 0)];
      for (size_t x = 0; x < stride; ++x) sum[x] += w[k] * row[x];
    }
    uint8_t* to = &out.rgb[out.at(v, 0)];
    for (size_t x = 0; x < stride; ++x) to[x] = to_byte(sum[x]);
  }
  return out;
}

// The pixels of `window` to where its corner is to be, (top, left) of `out`.
void copy(const Image& in, const Region& window, Image& out, int top, int left) {
  for (int y = 0; y < window.height; ++y)
    std::copy_n(&in.rgb[in.at(window.top + y, window.left)], 3 * window.width, &out.rgb[out.at(top + y, left)]);
}

struct Size {
  double height, width;
};

// What a picture is resized to; the fractions are cut off.
Size resized(const Image& image, const ImageConfig& config) {
  using Resize = ImageConfig::Resize;
  const double H = image.height, W = image.width, a = static_cast<double>(config.resize_to[0]),
               b = static_cast<double>(config.resize_to[1]);
  const auto shortest_to = [&](double side) { return W > H ? Size{side, side * W / H} : Size{side * H / W, side}; };
  switch (config.resize) {
    case Resize::CropPct: {
      require_input(config.crop_pct > 0.0 && config.crop_pct <= 4.0, "crop_pct %g is not in (0, 4]", config.crop_pct);
      const double side = std::floor(static_cast<double>(config.height) / config.crop_pct);
      return config.crop_mode == "squash" ? Size{side, side} : shortest_to(side);
    }
    case Resize::None:
      return {H, W};
    case Resize::Exact:
      return {a, b};
    case Resize::Shortest: {  // transformers' get_size_with_aspect_ratio()
      const double shorter = std::min(H, W), longer = std::max(H, W);
      if (b == 0 || longer / shorter * a <= b) return shortest_to(a);
      const double exact = b * shorter / longer, side = std::nearbyint(exact);
      if (side == shorter) return {H, W};
      return W >= H ? Size{side, exact * W / H} : Size{exact * H / W, side};
    }
    case Resize::Within: {  // transformers' get_image_size_for_max_height_width()
      const double scale = std::min(a / H, b / W);
      return {H * scale, W * scale};
    }
  }
  throw Error("a resize that does not exist");
}

// Where the centre `size` of `have` pixels begins; negative when there are fewer.
int64_t crop_offset(int64_t have, int64_t size, bool torchvision) {
  if (have < size) return torchvision ? -((size - have) / 2) : -((size - have + 1) / 2);
  return torchvision ? std::lrint(static_cast<double>(have - size) / 2.0) : (have - size) / 2;
}

}  // namespace

Image resize(const Image& image, int height, int width, const std::string& interpolation, Region window) {
  require(image.height > 0 && image.width > 0 && height > 0 && width > 0, "resize from %d x %d to %d x %d pixels",
          image.width, image.height, width, height);
  if (window.height == 0 && window.width == 0) window = {0, 0, height, width};
  require(window.top >= 0 && window.left >= 0 && window.height > 0 && window.width > 0 &&
              window.top <= height - window.height && window.left <= width - window.width,
          "resize: window %d+%d, %d+%d is outside %d x %d", window.top, window.height, window.left, window.width,
          height, width);
  const Axis across = make_axis(image.width, width, window.left, window.width, interpolation);
  const Axis down = make_axis(image.height, height, window.top, window.height, interpolation);
  const bool resample_x = image.width != width, resample_y = image.height != height;
  // Rows of the input that the second pass will read. A pass along an unchanged side is
  // skipped, as in Pillow.
  const int row0 = resample_y ? down.first.front() : window.top;
  const int row1 = resample_y ? down.first.back() + down.count.back() : window.top + window.height;
  const Region band{row0, window.left, row1 - row0, window.width};
  Image strip = resample_x ? resample_rows(image, across, row0, row1 - row0) : black(band.height, band.width);
  if (!resample_x) copy(image, band, strip, 0, 0);
  return resample_y ? resample_columns(strip, down, row0) : strip;
}

Image resize_and_crop(const Image& image, const ImageConfig& config) {
  require_input(config.height == config.width && config.height > 0 && config.height <= 8192,
                "image size %d x %d is not supported: square, up to 8192", config.height, config.width);
  const Size exact = resized(image, config);
  require_input(exact.height >= 1 && exact.width >= 1 && exact.height < 2147483647.0 && exact.width < 2147483647.0,
                "an image of %d x %d pixels is too narrow, or becomes too large: %.0f x %.0f", image.width,
                image.height, exact.width, exact.height);
  const int size = static_cast<int>(config.height), height = static_cast<int>(exact.height),
            width = static_cast<int>(exact.width);
  require_input(config.crop != ImageConfig::Crop::None || (height == size && width == size),
                "the network takes %d x %d pixels, but this image has %d x %d, and the model's preprocessing cuts "
                "nothing out",
                size, size, width, height);
  const bool torchvision = config.crop != ImageConfig::Crop::Transformers;
  const auto top = static_cast<int>(crop_offset(height, size, torchvision)),
             left = static_cast<int>(crop_offset(width, size, torchvision));
  const Region window{std::max(top, 0), std::max(left, 0), std::min(height, size), std::min(width, size)};
  Image part = resize(image, height, width, config.interpolation, window);
  if (part.height == size && part.width == size) return part;
  Image out = black(size, size);
  copy(part, {0, 0, part.height, part.width}, out, std::max(-top, 0), std::max(-left, 0));
  return out;
}

Tensor normalise(const Image& crop, const ImageConfig& config) {
  Tensor out = Tensor::uninitialized({3, crop.height, crop.width});
  const size_t plane = static_cast<size_t>(crop.height) * static_cast<size_t>(crop.width);
  for (size_t c = 0; c < 3; ++c) {
    require_input(config.std[c] > 0.0f, "image std %g is not positive", static_cast<double>(config.std[c]));
    std::array<float, 256> value;
    for (size_t v = 0; v < 256; ++v)  // v times the double 1/255, rounded, is v / 255.0f for every byte
      value[v] = (static_cast<float>(static_cast<double>(v) * config.rescale) - config.mean[c]) / config.std[c];
    float* to = out.data + c * plane;
    for (size_t i = 0; i < plane; ++i) to[i] = value[crop.rgb[i * 3 + c]];
  }
  return out;
}

// The number a float was written as: 0.485, not 0.48500001430511475.
static json written(const float values[3]) {
  json list = json::array();
  for (int c = 0; c < 3; ++c) {
    char text[32];
    double value = 0;
    std::from_chars(text, std::to_chars(text, text + sizeof text, values[c]).ptr, value);
    list.push_back(value);
  }
  return list;
}

json to_json(const ImageConfig& config) {
  constexpr const char* kResize[] = {"crop_pct", "none", "exact", "shortest", "within"};
  constexpr const char* kCrop[] = {"torchvision", "transformers", "none"};
  json j = {{"height", config.height},
            {"width", config.width},
            {"resize", kResize[static_cast<int>(config.resize)]},
            {"interpolation", config.interpolation},
            {"crop", kCrop[static_cast<int>(config.crop)]},
            {"rescale_factor", config.rescale},
            {"mean", written(config.mean)},
            {"std", written(config.std)}};
  if (config.resize == ImageConfig::Resize::CropPct) {
    j["crop_pct"] = config.crop_pct;
    j["crop_mode"] = config.crop_mode;
  } else if (config.resize != ImageConfig::Resize::None) {
    j["resize_to"] = config.resize_to;
  }
  return j;
}

Tensor preprocess(const Image& image, const ImageConfig& config) {
  return normalise(resize_and_crop(image, config), config);
}

}  // namespace bcq
