// 16-bit floats from 32-bit ones, rounded half to even; too large ones become infinite. (The way back is in
// engine/kernels/kernels.h.)
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace bcq {

inline uint16_t to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000;
  uint32_t a = bits & 0x7fffffff;
  if (a > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520, half-way to what would be next
  if (a < 0x38800000)                                                // below 2^-14: multiples of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::bit_cast<float>(a) * 16777216.f)));
  a += 0xfff + (a >> 13 & 1);
  return static_cast<uint16_t>(sign | (a - 0x38000000) >> 13);
}

inline uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace bcq
