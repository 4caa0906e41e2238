// The native vectors of AVX2 with F16C and the operations that plain C++ cannot spell.
// Included by lanes.h only; lanes_portable.h says what each function must do.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "rows/lanes_first.h"

namespace te {
namespace {

constexpr const char* kIsaName = "avx2";
constexpr size_t kNativeBytes = 32;
constexpr uint32_t kChunkBlocks = 4;

typedef float NativeFloats __attribute__((vector_size(32)));
typedef int32_t NativeInts __attribute__((vector_size(32)));
typedef uint32_t NativeWords __attribute__((vector_size(32)));
typedef uint64_t NativeLongs __attribute__((vector_size(32)));
typedef uint16_t NativeHalves __attribute__((vector_size(16)));

TE_INLINE NativeFloats native_sqrt(NativeFloats v) { return (NativeFloats)_mm256_sqrt_ps(v); }

TE_INLINE NativeLongs native_multiply_low(NativeLongs a, NativeLongs b) {
  return (NativeLongs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}

TE_INLINE NativeWords native_widen(NativeHalves v) {
  return (NativeWords)_mm256_cvtepu16_epi32((__m128i)v);
}
TE_INLINE NativeHalves native_narrow(NativeWords v) {
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);  // values are below 2^16
  return (NativeHalves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

TE_INLINE NativeFloats native_from_half(NativeHalves v) {
  return (NativeFloats)_mm256_cvtph_ps((__m128i)v);
}
TE_INLINE NativeHalves native_to_half(NativeFloats v) {
  return (NativeHalves)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

TE_INLINE __m256i native_mask(uint32_t count) {
  const NativeInts lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (__m256i)(lane < static_cast<int32_t>(count));
}
TE_INLINE NativeFloats native_load_first_floats(const std::byte* from, uint32_t count) {
  return (NativeFloats)_mm256_maskload_ps(reinterpret_cast<const float*>(from), native_mask(count));
}
TE_INLINE void native_store_first_floats(std::byte* to, NativeFloats v, uint32_t count) {
  _mm256_maskstore_ps(reinterpret_cast<float*>(to), native_mask(count), v);
}
TE_INLINE NativeHalves native_load_first_halves(const std::byte* from, uint32_t count) {
  return load_first<NativeHalves>(from, count * 2);
}
TE_INLINE void native_store_first_halves(std::byte* to, NativeHalves v, uint32_t count) {
  store_first(to, v, count * 2);
}

}  // namespace
}  // namespace te
