// Two standard normal numbers from two random words, in double, by the Box-Muller transform.
//
// The logarithm and the cosine are evaluated here, with +, -, * and / only, because the ones of the
// C library differ in their last bits between versions and processors, and an initial value must be
// the same everywhere. Their relative error is below 4e-16. Source: Box, Muller, "A note on the
// generation of random normal deviates", 1958. Thread-safety: pure functions. `static` for the
// reason given in base/philox.h. Cost: about 60 operations a pair.
#pragma once

#include <cstdint>

namespace te {

// The integer as a double, by its place in the fraction of 2^52: instructions that every processor
// has for vectors.
static inline double double_of(uint64_t below_2_52) {
  return __builtin_bit_cast(double, below_2_52 | 0x4330000000000000) - 0x1p52;
}

// ln x for 2^-32 <= x <= 1: x = m * 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(s) with
// s = (m - 1) / (m + 1), |s| < 0.172, as a series in s^2.
static inline double natural_log(double x) {
  constexpr uint64_t kHalfRoot = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  constexpr uint64_t kBias = 64;                      // more than -e
  const auto bits = __builtin_bit_cast(uint64_t, x);
  const uint64_t biased = (bits - kHalfRoot + (kBias << 52)) >> 52;  // e + kBias
  const auto m = __builtin_bit_cast(double, bits - (biased << 52) + (kBias << 52));
  const double s = (m - 1) / (m + 1);
  const double z = s * s;
  double sum = 1.0 / 21;
#pragma GCC unroll 16
  for (int n = 19; n >= 3; n -= 2) sum = sum * z + 1.0 / n;
  const double log_m = 2 * s + 2 * s * (z * sum);
  return (double_of(biased) - kBias) * 0x1.62e42fefa39efp-1 + log_m;
}

// cos and sin of 2 pi turn, turn in [0, 1): by quadrants to |angle| <= pi / 4, then Taylor series.
static inline void cosine_and_sine(double turn, double* cosine, double* sine) {
  constexpr double kRound = 0x1.8p52;  // adding it rounds to an integer, which its last bits show
  const double shifted = turn * 4 + kRound;
  const auto quadrant = __builtin_bit_cast(uint64_t, shifted);  // modulo 4
  const double angle = (turn * 4 - (shifted - kRound)) * 0x1.921fb54442d18p+0;
  const double z = angle * angle;
  double c = 1;
  double s = 1;
#pragma GCC unroll 16
  for (int n = 18; n >= 2; n -= 2) {
    c = 1 - z * (1.0 / ((n - 1) * n)) * c;
    s = 1 - z * (1.0 / (n * (n + 1))) * s;
  }
  const auto c_bits = __builtin_bit_cast(uint64_t, c);
  const auto s_bits = __builtin_bit_cast(uint64_t, s* angle);
  const uint64_t swap = (c_bits ^ s_bits) & (0 - (quadrant & 1));
  const uint64_t cosine_sign = ((quadrant + 1) & 2) << 62;
  const uint64_t sine_sign = (quadrant & 2) << 62;
  *cosine = __builtin_bit_cast(double, c_bits ^ swap ^ cosine_sign);
  *sine = __builtin_bit_cast(double, s_bits ^ swap ^ sine_sign);
}

// The transform in two steps, so that loops over the first have no square root in them, which gcc
// would not vectorise: |pair|^2 and the direction, then the pair.
struct NormalPolar {
  double squared_radius;
  double cosine;
  double sine;
};
static inline NormalPolar normal_polar(uint32_t word0, uint32_t word1) {
  NormalPolar polar;
  polar.squared_radius = -2 * natural_log((double_of(word0) + 1) * 0x1p-32);
  cosine_and_sine(double_of(word1) * 0x1p-32, &polar.cosine, &polar.sine);
  return polar;
}
static inline void normal_pair(const NormalPolar& polar, double* first, double* second) {
  const double radius = __builtin_sqrt(polar.squared_radius);
  *first = radius * polar.cosine;
  *second = radius * polar.sine;
}

}  // namespace te
