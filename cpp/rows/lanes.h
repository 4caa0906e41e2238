// Lanes: sixteen columns of a row as one value, the unit in which the kernels compute.
//
// A block is 16 consecutive columns; column c is lane c % 16 of its block on every instruction set.
// A value is held in one, two or four native vectors; the header of the instruction set that the
// file is compiled for gives those. Only operations that round as IEEE 754 says are used, one
// rounding each, so all instruction sets give the same bits (payloads of NaNs excepted).
// Everything is in an anonymous namespace and inlined: the linker must never share a function
// between files that are compiled for different instruction sets. Thread-safety: values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rows/row_layout.h"

// Vectors are never passed through a real call: they are all inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "rows/lanes_avx512.h"
#elif defined(__AVX2__) && defined(__F16C__)
#include "rows/lanes_avx2.h"
#elif defined(__aarch64__)
#include "rows/lanes_neon.h"
#else
#include "rows/lanes_portable.h"
#endif

namespace te {
namespace {

constexpr uint32_t kLanes = 16;
constexpr uint32_t kNativeLanes = kNativeBytes / 4;
constexpr uint32_t kParts = kLanes / kNativeLanes;

struct Floats {
  NativeFloats part[kParts];
};
struct Words {
  NativeWords part[kParts];
};

#define TE_LANES_OPERATOR(Type, op)                                           \
  TE_INLINE Type operator op(Type a, Type b) {                                \
    for (uint32_t p = 0; p < kParts; ++p) a.part[p] = a.part[p] op b.part[p]; \
    return a;                                                                 \
  }
TE_LANES_OPERATOR(Floats, +)
TE_LANES_OPERATOR(Floats, -)
TE_LANES_OPERATOR(Floats, *)
TE_LANES_OPERATOR(Floats, /)
#undef TE_LANES_OPERATOR

TE_INLINE Floats splat(float x) {
  Floats v;
  for (uint32_t p = 0; p < kParts; ++p) v.part[p] = x - NativeFloats{};  // keeps the sign of zero
  return v;
}
TE_INLINE Words splat_word(uint32_t x) {
  Words v;
  for (uint32_t p = 0; p < kParts; ++p) v.part[p] = x + NativeWords{};
  return v;
}
TE_INLINE Floats square_root(Floats v) {
  for (uint32_t p = 0; p < kParts; ++p) v.part[p] = native_sqrt(v.part[p]);
  return v;
}
TE_INLINE Floats magnitude(Floats v) {
  for (uint32_t p = 0; p < kParts; ++p) {
    v.part[p] = (NativeFloats)((NativeWords)v.part[p] & 0x7fffffffu);
  }
  return v;
}

// ---- Across lanes: ((l + l8) + l4) + ..., that is lane l takes l + 8, then l + 4, l + 2, l + 1.

template <uint32_t kDistance, class Vector>
TE_INLINE Vector rotate_down(Vector v) {
  constexpr uint32_t m = kNativeLanes - 1;
  constexpr uint32_t d = kDistance;
  if constexpr (kNativeLanes == 16) {
    return __builtin_shufflevector(v, v, d & m, (d + 1) & m, (d + 2) & m, (d + 3) & m, (d + 4) & m,
                                   (d + 5) & m, (d + 6) & m, (d + 7) & m, (d + 8) & m, (d + 9) & m,
                                   (d + 10) & m, (d + 11) & m, (d + 12) & m, (d + 13) & m,
                                   (d + 14) & m, (d + 15) & m);
  } else if constexpr (kNativeLanes == 8) {
    return __builtin_shufflevector(v, v, d & m, (d + 1) & m, (d + 2) & m, (d + 3) & m, (d + 4) & m,
                                   (d + 5) & m, (d + 6) & m, (d + 7) & m);
  } else {
    return __builtin_shufflevector(v, v, d & m, (d + 1) & m, (d + 2) & m, (d + 3) & m);
  }
}

TE_INLINE float sum_lanes(Floats v) {
  for (uint32_t half = kParts / 2; half > 0; half /= 2) {
    for (uint32_t p = 0; p < half; ++p) v.part[p] += v.part[p + half];
  }
  NativeFloats x = v.part[0];
  if constexpr (kNativeLanes >= 16) x += rotate_down<8>(x);
  if constexpr (kNativeLanes >= 8) x += rotate_down<4>(x);
  x += rotate_down<2>(x);
  x += rotate_down<1>(x);
  return x[0];
}

// ---- Between memory and lanes.

template <DType kType>
constexpr uint32_t kElementBytes = kType == DType::kF32 ? 4 : 2;

template <DType kType>
TE_INLINE NativeFloats widen(NativeHalves v) {
  if constexpr (kType == DType::kF16) return native_from_half(v);
  return (NativeFloats)(native_widen(v) << 16);
}

// To nearest even; a NaN becomes quiet and keeps the top of its payload.
template <DType kType>
TE_INLINE NativeHalves narrow(NativeFloats v) {
  if constexpr (kType == DType::kF16) return native_to_half(v);
  const auto bits = (NativeWords)v;
  const NativeWords rounded = bits + 0x7fff + (bits >> 16 & 1);
  return native_narrow((v != v ? bits | 0x400000 : rounded) >> 16);
}

TE_INLINE uint32_t columns_of_part(uint32_t columns, uint32_t part) {
  const uint32_t before = part * kNativeLanes;
  if (columns <= before) return 0;
  return columns - before < kNativeLanes ? columns - before : kNativeLanes;
}

// A block of the row at `from`, of which the first `columns` exist if kTail, else all 16. Columns
// that do not exist read as zero.
template <DType kType, bool kTail = false>
TE_INLINE Floats load(const std::byte* from, uint32_t columns = kLanes) {
  Floats v;
  for (uint32_t p = 0; p < kParts; ++p) {
    const std::byte* at = from + p * kNativeLanes * kElementBytes<kType>;
    const uint32_t count = kTail ? columns_of_part(columns, p) : kNativeLanes;
    if constexpr (kType == DType::kF32) {
      if constexpr (kTail) {
        v.part[p] = native_load_first_floats(at, count);
      } else {
        std::memcpy(&v.part[p], at, sizeof(NativeFloats));
      }
    } else {
      NativeHalves halves;
      if constexpr (kTail) {
        halves = native_load_first_halves(at, count);
      } else {
        std::memcpy(&halves, at, sizeof(halves));
      }
      v.part[p] = widen<kType>(halves);
    }
  }
  return v;
}

template <bool kTail>
TE_INLINE void store_halves(std::byte* to, uint32_t part, NativeHalves halves, uint32_t columns) {
  std::byte* at = to + part * kNativeLanes * 2;
  if constexpr (kTail) {
    native_store_first_halves(at, halves, columns_of_part(columns, part));
  } else {
    std::memcpy(at, &halves, sizeof(halves));
  }
}

// The counterpart of load: rounds to nearest even, leaves columns that do not exist alone.
template <DType kType, bool kTail = false>
TE_INLINE void store(std::byte* to, Floats v, uint32_t columns = kLanes) {
  for (uint32_t p = 0; p < kParts; ++p) {
    if constexpr (kType != DType::kF32) {
      store_halves<kTail>(to, p, narrow<kType>(v.part[p]), columns);
    } else if constexpr (kTail) {
      native_store_first_floats(to + p * kNativeBytes, v.part[p], columns_of_part(columns, p));
    } else {
      std::memcpy(to + p * kNativeBytes, &v.part[p], sizeof(NativeFloats));
    }
  }
}

template <bool kTail>
TE_INLINE Words load_words(const uint32_t* from, uint32_t columns) {
  const Floats bits = load<DType::kF32, kTail>(reinterpret_cast<const std::byte*>(from), columns);
  Words v;
  for (uint32_t p = 0; p < kParts; ++p) v.part[p] = (NativeWords)bits.part[p];
  return v;
}
template <bool kTail>
TE_INLINE void store_words(uint32_t* to, Words v, uint32_t columns) {
  Floats bits;
  for (uint32_t p = 0; p < kParts; ++p) bits.part[p] = (NativeFloats)v.part[p];
  store<DType::kF32, kTail>(reinterpret_cast<std::byte*>(to), bits, columns);
}

// Bits of a float rounded at random to 16 bits, where `random` is uniform in [0, 2^16): up with a
// probability in proportion to the remainder. See reference.h for the cases.
template <DType kType>
TE_INLINE NativeHalves narrow_stochastic(NativeFloats v, NativeWords random) {
  const auto bits = (NativeWords)v;
  const auto magnitude = (NativeInts)(bits & 0x7fffffff);
  if constexpr (kType == DType::kBF16) {
    const NativeWords quiet = v != v ? NativeWords{} + 0x400000 : NativeWords{};
    return native_narrow((magnitude < 0x7f800000 ? bits + random : bits | quiet) >> 16);
  }
  const auto addend = (NativeInts)random;
  const NativeInts normal = ((magnitude + (addend >> 3)) >> 13) - (112 << 10);
  const NativeFloats scaled = (NativeFloats)magnitude * 0x1p40f;  // 2^16 units of the last place
  const NativeInts in_range = magnitude < 0x38800000;
  const NativeFloats small = (NativeFloats)((NativeInts)scaled & in_range);
  const NativeInts subnormal = (__builtin_convertvector(small, NativeInts) + addend) >> 16;
  const auto nearest = (NativeInts)native_widen(native_to_half(v));
  NativeInts half = in_range ? subnormal : normal;
  half |= (NativeInts)(bits >> 16 & 0x8000);
  return native_narrow((NativeWords)(magnitude >= 0x477fe000 ? nearest : half));
}

template <DType kType, bool kTail = false>
TE_INLINE void store_stochastic(std::byte* to, Floats v, Words random, uint32_t columns = kLanes) {
  for (uint32_t p = 0; p < kParts; ++p) {
    store_halves<kTail>(to, p, narrow_stochastic<kType>(v.part[p], random.part[p]), columns);
  }
}

// One element of an array.
template <DType kType>
TE_INLINE float load_one(const void* from, size_t index) {
  const std::byte* at = static_cast<const std::byte*>(from) + index * kElementBytes<kType>;
  if constexpr (kType == DType::kF32) {
    float x;
    std::memcpy(&x, at, sizeof(x));
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return widen<kType>(bits + NativeHalves{})[0];
}
template <DType kType>
TE_INLINE void store_one(void* to, size_t index, float x) {
  store<kType, true>(static_cast<std::byte*>(to) + index * kElementBytes<kType>, splat(x), 1);
}

// Calls f.template operator()<kType>().
template <class F>
TE_INLINE void for_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kF32: return f.template operator()<DType::kF32>();
    case DType::kF16: return f.template operator()<DType::kF16>();
    case DType::kBF16: return f.template operator()<DType::kBF16>();
  }
}

// Calls f.template operator()<kTail>(column, columns) for the blocks of a row, in order.
template <class F>
TE_INLINE void for_blocks(uint32_t dim, const F& f) {
  uint32_t column = 0;
  for (; column + kLanes <= dim; column += kLanes) f.template operator()<false>(column, kLanes);
  if (column < dim) f.template operator()<true>(column, dim - column);
}

}  // namespace
}  // namespace te
