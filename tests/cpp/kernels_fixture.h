// What the tests of the kernels share: random inputs from one seed, an arena of rows, and a
// comparison of arrays bit for bit (two NaNs are equal whatever their payload).
#pragma once

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "rows/kernels.h"
#include "rows/reference.h"

namespace te::testing {

// SplitMix64 (Steele, Lea, Flood, 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return bits() % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  double real() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // Mostly around 1, of either sign; if `wild`, now and then tiny, huge, zero, infinite or NaN.
  float value(bool wild) {
    const auto ordinary = static_cast<float>((real() * 2 - 1) * (one_in(4) ? 100 : 1));
    if (!wild || !one_in(16)) return ordinary;
    const float special[] = {0.0f,  -0.0f,    1e-6f,     -3e-8f, 1e-40f,   7e4f,
                             -1e6f, 3.39e38f, -INFINITY, NAN,    65519.0f, -65504.0f};
    return special[below(std::size(special))];
  }
  // Dims around the widths of vectors and chunks, and some large ones.
  uint32_t dim() {
    const uint32_t chosen[] = {1, 2, 4, 8, 15, 16, 17, 32, 64, 96, 100, 128, 129, 256, 1000, 4096};
    if (one_in(2)) return chosen[below(std::size(chosen))];
    return static_cast<uint32_t>(1 + below(300));
  }
  DType dtype() { return static_cast<DType>(below(3)); }

 private:
  uint64_t state_;
};

using Bytes = std::vector<std::byte>;

inline Bytes random_values(Random& random, DType dtype, size_t count, bool wild) {
  Bytes bytes(count * dtype_bytes(dtype));
  for (size_t i = 0; i < count; ++i) {
    reference::store_nearest(bytes.data(), dtype, i, random.value(wild));
  }
  return bytes;
}

// Rows in slots; the bytes between rows are a pattern that must not change.
struct Arena {
  Bytes bytes;
  ArenaView view;
  uint32_t slots = 0;

  Arena(Random& random, RowLayout layout, uint32_t slot_count, bool wild) : slots(slot_count) {
    view.layout = layout;
    view.stride_bytes = layout.row_bytes() + 4 * random.below(8);
    bytes.assign(view.stride_bytes * slots, std::byte{0xa5});
    view.base = bytes.data();
    for (uint32_t s = 0; s < slots; ++s) {
      std::byte* row = view.base + s * view.stride_bytes;
      const Bytes weight = random_values(random, layout.dtype, layout.dim, wild);
      std::memcpy(row, weight.data(), weight.size());
      for (uint32_t i = 0; i < layout.state_floats(); ++i) {  // squares are never negative
        const float x = std::fabs(random.value(false));
        std::memcpy(row + layout.state_offset_bytes() + i * 4, &x, 4);
      }
    }
  }
  Arena(const Arena& other) : bytes(other.bytes), view(other.view), slots(other.slots) {
    view.base = bytes.data();
  }
};

inline std::string describe(const Kernels& kernels, const RowLayout& layout, uint64_t seed) {
  return std::string(kernels.isa) + " dim " + std::to_string(layout.dim) + " dtype " +
         std::to_string(static_cast<int>(layout.dtype)) + " optimizer " +
         std::to_string(static_cast<int>(layout.optimizer)) + " seed " + std::to_string(seed);
}

inline bool same_element(const void* a, const void* b, DType dtype, size_t i) {
  const size_t size = dtype_bytes(dtype);
  const auto* x = static_cast<const std::byte*>(a) + i * size;
  const auto* y = static_cast<const std::byte*>(b) + i * size;
  if (std::memcmp(x, y, size) == 0) return true;
  return std::isnan(reference::load(a, dtype, i)) && std::isnan(reference::load(b, dtype, i));
}

// Fails the test at the first element that differs.
inline void check_same(const void* got, const void* expected, DType dtype, size_t count,
                       const std::string& what) {
  for (size_t i = 0; i < count; ++i) {
    if (same_element(got, expected, dtype, i)) continue;
    BOOST_TEST_REQUIRE(false, what << ": element " << i << " is " << reference::load(got, dtype, i)
                                   << ", expected " << reference::load(expected, dtype, i));
  }
}

inline void check_same_arena(const Arena& got, const Arena& expected, const std::string& what) {
  const RowLayout& layout = expected.view.layout;
  const size_t stride = expected.view.stride_bytes;
  for (uint32_t s = 0; s < expected.slots; ++s) {
    const std::byte* a = got.bytes.data() + s * stride;
    const std::byte* b = expected.bytes.data() + s * stride;
    const std::string where = what + ", slot " + std::to_string(s);
    check_same(a, b, layout.dtype, layout.dim, where + ", weight");
    const size_t gap = layout.state_offset_bytes() - layout.weight_bytes();
    BOOST_TEST_REQUIRE(std::memcmp(a + layout.weight_bytes(), b + layout.weight_bytes(), gap) == 0,
                       where << ": bytes before the state");
    const size_t state = layout.state_offset_bytes();
    check_same(a + state, b + state, DType::kF32, layout.state_floats(), where + ", state");
    const size_t row = layout.row_bytes();
    BOOST_TEST_REQUIRE(std::memcmp(a + row, b + row, stride - row) == 0,
                       where << ": beyond the row");
  }
}

// Every variant of this machine.
template <class F>
void for_variants(const F& f) {
  const Kernels* const* variants;
  const size_t count = kernel_variants(&variants);
  for (size_t i = 0; i < count; ++i) f(*variants[i]);
}

// Calls f(begin, end) for ranges that cover [0, n): one, or several at random.
template <class F>
void in_ranges(Random& random, size_t n, const F& f) {
  for (size_t begin = 0; begin < n || begin == 0;) {
    const size_t end = random.one_in(2) ? n : begin + random.below(n - begin + 1);
    f(begin, end);
    if (end == n) return;
    begin = end;
  }
}

}  // namespace te::testing
