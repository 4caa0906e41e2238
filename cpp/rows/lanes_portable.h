// The native vectors of a processor with 128-bit registers (SSE2, or emulated by the compiler), in
// GCC's vector extension. The other lanes_*.h offer the same names with the same bits. Included by
// lanes.h only.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "rows/lanes_first.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace te {
namespace {

constexpr const char* kIsaName = "baseline";
constexpr size_t kNativeBytes = 16;
constexpr uint32_t kChunkBlocks = 4;  // blocks of 16 columns whose sums are kept in registers

typedef float NativeFloats __attribute__((vector_size(16)));
typedef int32_t NativeInts __attribute__((vector_size(16)));
typedef uint32_t NativeWords __attribute__((vector_size(16)));
typedef uint64_t NativeLongs __attribute__((vector_size(16)));
typedef uint16_t NativeHalves __attribute__((vector_size(8)));

TE_INLINE NativeFloats native_sqrt(NativeFloats v) {
#if defined(__SSE2__)
  return (NativeFloats)_mm_sqrt_ps(v);
#else
  for (int i = 0; i < 4; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// The 64-bit products of the low 32 bits of each lane.
TE_INLINE NativeLongs native_multiply_low(NativeLongs a, NativeLongs b) {
#if defined(__SSE2__)
  return (NativeLongs)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

TE_INLINE NativeWords native_widen(NativeHalves v) {
  return __builtin_convertvector(v, NativeWords);
}
// Of values below 2^16.
TE_INLINE NativeHalves native_narrow(NativeWords v) {
  return __builtin_convertvector(v, NativeHalves);
}

// IEEE binary16 to binary32; a signalling NaN becomes quiet and keeps its payload.
TE_INLINE NativeFloats native_from_half(NativeHalves v) {
  const auto half = (NativeInts)native_widen(v);
  const NativeInts magnitude = half & 0x7fff;
  const NativeInts normal = (magnitude << 13) + ((127 - 15) << 23);
  const NativeInts special = (magnitude << 13) | 0x7f800000 | ((magnitude > 0x7c00) & 0x400000);
  const auto subnormal = (NativeInts)(__builtin_convertvector(magnitude, NativeFloats) * 0x1p-24f);
  NativeInts bits = magnitude < 0x400 ? subnormal : normal;
  bits = magnitude >= 0x7c00 ? special : bits;
  return (NativeFloats)((NativeWords)bits | (NativeWords)(half & 0x8000) << 16);
}

// binary32 to binary16, to nearest even; a NaN becomes quiet and keeps the top of its payload.
TE_INLINE NativeHalves native_to_half(NativeFloats v) {
  const auto sign = (NativeInts)((NativeWords)v >> 16 & 0x8000);
  const auto magnitude = (NativeInts)((NativeWords)v & 0x7fffffff);
  const NativeInts nan = (magnitude >> 13 & 0x3ff) | 0x7e00;
  const NativeInts normal = ((magnitude - ((112 << 23) - 0xfff) + (magnitude >> 13 & 1)) >> 13);
  // The last place of 0.5f is that of the subnormals: the addition rounds, to nearest even.
  const NativeInts subnormal = (NativeInts)((NativeFloats)magnitude + 0.5f) - 0x3f000000;
  NativeInts half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? NativeInts{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? nan : half;
  return native_narrow((NativeWords)(half | sign));
}

// The first `count` <= 4 elements; the rest reads as zero and is not touched.
TE_INLINE NativeFloats native_load_first_floats(const std::byte* from, uint32_t count) {
  return load_first<NativeFloats>(from, count * 4);
}
TE_INLINE void native_store_first_floats(std::byte* to, NativeFloats v, uint32_t count) {
  store_first(to, v, count * 4);
}
TE_INLINE NativeHalves native_load_first_halves(const std::byte* from, uint32_t count) {
  return load_first<NativeHalves>(from, count * 2);
}
TE_INLINE void native_store_first_halves(std::byte* to, NativeHalves v, uint32_t count) {
  store_first(to, v, count * 2);
}

}  // namespace
}  // namespace te
