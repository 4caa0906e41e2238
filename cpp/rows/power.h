// x^n, with + and * only: the pow of the C library differs in its last bits between versions and
// processors, and an update must be the same everywhere.
//
// Carries what a double cannot hold of each product in a second double, so that the result is as
// good as rounded once, unless it is below 2^-960, where 1 minus it is 1. Source: Dekker, "A
// floating-point technique for extending the available precision", 1971. Thread-safety: pure
// functions. Cost: about 50 operations a bit of n.
#pragma once

#include <cstdint>

namespace te {

struct DoubleDouble {
  double high;
  double low;
};

// Of numbers up to 1; needs products that are not contracted to fused multiply-add.
inline DoubleDouble product(DoubleDouble a, DoubleDouble b) {
  constexpr double kSplit = 0x1p27 + 1;
  const double a_top = a.high * kSplit - (a.high * kSplit - a.high);
  const double b_top = b.high * kSplit - (b.high * kSplit - b.high);
  const double a_rest = a.high - a_top;
  const double b_rest = b.high - b_top;
  const double high = a.high * b.high;
  double low = ((a_top * b_top - high) + a_top * b_rest + a_rest * b_top) + a_rest * b_rest;
  low += a.high * b.low + a.low * b.high;
  const double sum = high + low;
  return {sum, low - (sum - high)};
}

// For 0 <= x <= 1.
inline double power(double x, uint64_t n) {
  DoubleDouble result{1, 0};
  for (DoubleDouble square{x, 0}; n > 0; n >>= 1, square = product(square, square)) {
    if ((n & 1) != 0) result = product(result, square);
  }
  return result.high;
}

}  // namespace te
