#include "engine/nn/rotary.h"

#include <cmath>

#include "engine/core/check.h"
#include "engine/nn/ops.h"

namespace bcq {

std::vector<float> rotary_frequencies(const Rotary& r, int64_t d) {
  const auto factor = static_cast<float>(r.factor), low = static_cast<float>(r.low),
             original = static_cast<float>(r.original), range = static_cast<float>(r.high - r.low);
  std::vector<float> frequencies;
  for (int64_t c = 0; c < d; c += 2) {
    const float exponent = static_cast<float>(c) / static_cast<float>(d);
    const float f = 1.f / static_cast<float>(std::pow(r.theta, static_cast<double>(exponent)));
    if (r.scaling == Rotary::Scaling::None) {
      frequencies.push_back(f);
    } else if (r.scaling == Rotary::Scaling::Linear) {
      frequencies.push_back(f / factor);
    } else {
      const float wavelength = static_cast<float>(2 * M_PI) * (1.f / f);
      const float mix = (original * (1.f / wavelength) - low) / range;
      const bool slow = wavelength > static_cast<float>(r.original / r.low);
      const bool fast = wavelength < static_cast<float>(r.original / r.high);
      frequencies.push_back(slow ? f / factor : fast ? f : (1.f - mix) * f / factor + mix * f);
    }
  }
  return frequencies;
}

Tensor rotary_angles(const std::vector<float>& frequencies, int64_t first, int64_t T) {
  const auto half = static_cast<int64_t>(frequencies.size());
  Tensor angles = Tensor::uninitialized({T, 2 * half});
  for_rows(angles, [&](int64_t t) {
    float *cosine = angles.data + t * 2 * half, *sine = cosine + half;
    for (int64_t c = 0; c < half; ++c) {
      const auto angle = static_cast<double>(static_cast<float>(first + t) * frequencies[at(c)]);
      cosine[c] = static_cast<float>(std::cos(angle));
      sine[c] = static_cast<float>(std::sin(angle));
    }
  });
  return angles;
}

Tensor rotate(const Tensor& x, const Tensor& angles) {
  const int64_t T = angles.dim(0), d = angles.dim(1), half = d / 2, D = x.dim(2);
  require(x.dim(1) == T && D % d == 0, "rotate: shapes %s and %s do not fit", to_string(x.shape),
          to_string(angles.shape));
  Tensor y = Tensor::uninitialized(x.shape);
  for_rows(x, [&](int64_t r) {
    const float *cosine = angles.data + r % T * d, *sine = cosine + half;
    for (int64_t at = r * D; at < (r + 1) * D; at += d) {
      const float *low = x.data + at, *high = low + half;
      for (int64_t c = 0; c < half; ++c) {
        y[at + c] = low[c] * cosine[c] - high[c] * sine[c];
        y[at + half + c] = high[c] * cosine[c] + low[c] * sine[c];
      }
    }
  });
  return y;
}

}  // namespace bcq
