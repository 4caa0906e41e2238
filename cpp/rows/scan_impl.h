// Kernels that look at values and seldom change them: all_finite and renorm. Included by
// variant_impl.h only.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "rows/kernels.h"
#include "rows/lanes.h"
#include "rows/sums_impl.h"

namespace te {
namespace {

// ---- all_finite: an element is not finite if all bits of its exponent are set.

template <class Bits>
TE_INLINE size_t first_not_finite(const std::byte* values, Bits exponent, size_t begin,
                                  size_t end) {
  constexpr size_t kStretch = 1024;
  for (size_t at = begin; at < end; at += kStretch) {
    const size_t count = end - at < kStretch ? end - at : kStretch;
    const std::byte* from = values + at * sizeof(Bits);
    const auto is_bad = [&](size_t i) {
      Bits bits;
      std::memcpy(&bits, from + i * sizeof(Bits), sizeof(bits));
      return static_cast<Bits>((bits & exponent) == exponent);
    };
    Bits any = 0;
    for (size_t i = 0; i < count; ++i) any |= is_bad(i);
    if (any == 0) continue;
    for (size_t i = 0; i < count; ++i) {
      if (is_bad(i) != 0) return at + i;
    }
  }
  return end;
}

bool all_finite(const void* values, DType dtype, size_t begin, size_t end, size_t* position) {
  const auto* bytes = static_cast<const std::byte*>(values);
  size_t found = end;
  if (dtype == DType::kF32) {
    found = first_not_finite<uint32_t>(bytes, 0x7f800000, begin, end);
  } else if (dtype == DType::kF16) {
    found = first_not_finite<uint16_t>(bytes, 0x7c00, begin, end);
  } else {
    found = first_not_finite<uint16_t>(bytes, 0x7f80, begin, end);
  }
  if (found < end) *position = found;
  return found >= end;
}

// ---- renorm. Norms 1, 2 and inf take sixteen values, one a lane, over the blocks in order, then
// combine the lanes; any other norm is computed in double, column after column.

constexpr float kInfinity = __builtin_inff();

TE_INLINE Floats larger(Floats a, Floats b) {  // NaN where either is
  for (uint32_t p = 0; p < kParts; ++p) {
    const NativeFloats& x = b.part[p];
    const auto wins = (x > a.part[p]) | (x != x);
    a.part[p] = wins ? x : a.part[p];
  }
  return a;
}

TE_INLINE float largest_lane(Floats v) {
  float largest = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    const float x = v.part[l / kNativeLanes][l % kNativeLanes];
    if (x > largest || x != x) largest = x;
  }
  return largest;
}

template <DType kType>
float general_norm(const std::byte* row, uint32_t dim, double norm_type) {
  double sum = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    const double x = load_one<kType>(row, c);
    sum += norm_type == 0 ? (x != 0 ? 1 : 0) : pow(x < 0 ? -x : x, norm_type);
  }
  return static_cast<float>(norm_type == 0 ? sum : pow(sum, 1 / norm_type));
}

template <DType kType>
TE_INLINE float row_norm(const std::byte* row, uint32_t dim, float norm_type) {
  if (norm_type != 1 && norm_type != 2 && norm_type != kInfinity) {
    return general_norm<kType>(row, dim, norm_type);
  }
  Floats lanes = splat(0);
  for_blocks(dim, [&]<bool kTail>(uint32_t column, uint32_t columns) {
    const Floats v = load<kType, kTail>(row + column * size_t{kElementBytes<kType>}, columns);
    lanes = norm_type == 2   ? lanes + v * v
            : norm_type == 1 ? lanes + magnitude(v)
                             : larger(lanes, magnitude(v));
  });
  if (norm_type == kInfinity) return largest_lane(lanes);
  return norm_type == 2 ? __builtin_sqrtf(sum_lanes(lanes)) : sum_lanes(lanes);
}

template <DType kType>
void renorm_rows(const ArenaView& arena, const uint32_t* slots, float max_norm, float norm_type,
                 uint8_t* changed, size_t begin, size_t end) {
  const uint32_t dim = arena.layout.dim;
  const uint32_t bytes = dim * kElementBytes<kType>;
  const size_t ahead = rows_far_ahead(bytes);
  for (size_t i = begin; i < end; ++i) {
    const size_t next = i + ahead < end ? i + ahead : end - 1;
    prefetch_far(reinterpret_cast<uintptr_t>(arena.base) + slots[next] * arena.stride_bytes, bytes);
    std::byte* row = arena.base + slots[i] * arena.stride_bytes;
    const float norm = row_norm<kType>(row, dim, norm_type);
    if (!(norm > max_norm)) continue;
    const Floats factor = splat(static_cast<float>(double{max_norm} / (double{norm} + 1e-7)));
    for_blocks(dim, [&]<bool kTail>(uint32_t column, uint32_t columns) {
      std::byte* at = row + column * size_t{kElementBytes<kType>};
      store<kType, kTail>(at, load<kType, kTail>(at, columns) * factor, columns);
    });
    changed[i] = 1;
  }
}

void renorm(const ArenaView& arena, const uint32_t* slots, float max_norm, float norm_type,
            uint8_t* changed, size_t begin, size_t end) {
  for_dtype(arena.layout.dtype, [&]<DType kType>() {
    renorm_rows<kType>(arena, slots, max_norm, norm_type, changed, begin, end);
  });
}

}  // namespace
}  // namespace te
