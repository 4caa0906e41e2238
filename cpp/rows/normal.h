// Two standard normal numbers from two random words, in double, by the Box-Muller transform.
//
// The logarithm and the cosine are evaluated here, with +, -, * and / only, because the ones of the
// C library differ in their last bits between versions and processors, and an initial value must be
// the same everywhere. Their relative error is below 4e-16. Source: Box, Muller, "A note on the
// generation of random normal deviates", 1958. Thread-safety: pure functions. `static` for the
// reason given in base/philox.h. Cost: about 60 operations a pair.
#pragma once

#include <cstdint>
#include <cstring>

namespace te {

// ln x for 2^-32 <= x <= 1: x = m * 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(s) with
// s = (m - 1) / (m + 1), |s| < 0.172, as a series in s^2.
static inline double natural_log(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  constexpr uint64_t kHalfRoot = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  const int64_t exponent = static_cast<int64_t>(bits - kHalfRoot) >> 52;
  bits -= static_cast<uint64_t>(exponent) << 52;
  double m;
  std::memcpy(&m, &bits, sizeof(m));
  const double s = (m - 1) / (m + 1);
  const double z = s * s;
  double sum = 1.0 / 23;
  for (int n = 21; n >= 3; n -= 2) sum = sum * z + 1.0 / n;
  const double log_m = 2 * s + 2 * s * (z * sum);
  return static_cast<double>(exponent) * 0x1.62e42fefa39efp-1 + log_m;
}

// cos and sin of 2 pi turn, turn in [0, 1): by quadrants to |angle| <= pi / 4, then Taylor series.
static inline void cosine_and_sine(double turn, double* cosine, double* sine) {
  const auto quadrant = static_cast<int32_t>(turn * 4 + 0.5);  // 0 to 4
  const double angle = (turn * 4 - quadrant) * 0x1.921fb54442d18p+0;
  const double z = angle * angle;
  double c = 1;
  double s = 1;
  for (int n = 18; n >= 2; n -= 2) {
    c = 1 - z * (1.0 / ((n - 1) * n)) * c;
    s = 1 - z * (1.0 / (n * (n + 1))) * s;
  }
  s *= angle;
  const double x = (quadrant & 1) != 0 ? s : c;
  const double y = (quadrant & 1) != 0 ? c : s;
  *cosine = ((quadrant + 1) & 2) != 0 ? -x : x;
  *sine = (quadrant & 2) != 0 ? -y : y;
}

static inline void normal_pair(uint32_t word0, uint32_t word1, double* first, double* second) {
  const double radius = __builtin_sqrt(-2 * natural_log((word0 + 1.0) * 0x1p-32));
  double cosine;
  double sine;
  cosine_and_sine(word1 * 0x1p-32, &cosine, &sine);
  *first = radius * cosine;
  *second = radius * sine;
}

}  // namespace te
