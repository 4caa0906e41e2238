// The native vectors of AVX-512 (F, BW, DQ, VL) and the operations that plain C++ cannot spell.
// Included by lanes.h only; lanes_portable.h says what each function must do.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define TE_INLINE inline __attribute__((always_inline))

namespace te {
namespace {

constexpr const char* kIsaName = "avx512";
constexpr size_t kNativeBytes = 64;
constexpr uint32_t kChunkBlocks = 8;

typedef float NativeFloats __attribute__((vector_size(64)));
typedef int32_t NativeInts __attribute__((vector_size(64)));
typedef uint32_t NativeWords __attribute__((vector_size(64)));
typedef uint64_t NativeLongs __attribute__((vector_size(64)));
typedef uint16_t NativeHalves __attribute__((vector_size(32)));

// A mask of all lanes. gcc 12 warns of uninitialised values inside the intrinsics without a mask;
// with this one the instructions are the same.
constexpr __mmask16 kAll = 0xffff;

TE_INLINE NativeFloats native_sqrt(NativeFloats v) {
  return (NativeFloats)_mm512_maskz_sqrt_ps(kAll, v);
}

TE_INLINE NativeLongs native_multiply_low(NativeLongs a, NativeLongs b) {
  return (NativeLongs)_mm512_maskz_mul_epu32(static_cast<__mmask8>(kAll), (__m512i)a, (__m512i)b);
}

TE_INLINE NativeWords native_widen(NativeHalves v) {
  return (NativeWords)_mm512_maskz_cvtepu16_epi32(kAll, (__m256i)v);
}
TE_INLINE NativeHalves native_narrow(NativeWords v) {
  return (NativeHalves)_mm512_maskz_cvtepi32_epi16(kAll, (__m512i)v);
}

TE_INLINE NativeFloats native_from_half(NativeHalves v) {
  return (NativeFloats)_mm512_maskz_cvtph_ps(kAll, (__m256i)v);
}
TE_INLINE NativeHalves native_to_half(NativeFloats v) {
  return (NativeHalves)_mm512_maskz_cvtps_ph(kAll, v,
                                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// The first `count` <= 16 elements; the rest reads as zero and is not touched.
TE_INLINE __mmask16 native_mask(uint32_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}
TE_INLINE NativeFloats native_load_first_floats(const std::byte* from, uint32_t count) {
  return (NativeFloats)_mm512_maskz_loadu_ps(native_mask(count), from);
}
TE_INLINE void native_store_first_floats(std::byte* to, NativeFloats v, uint32_t count) {
  _mm512_mask_storeu_ps(to, native_mask(count), v);
}
TE_INLINE NativeHalves native_load_first_halves(const std::byte* from, uint32_t count) {
  return (NativeHalves)_mm256_maskz_loadu_epi16(native_mask(count), from);
}
TE_INLINE void native_store_first_halves(std::byte* to, NativeHalves v, uint32_t count) {
  _mm256_mask_storeu_epi16(to, native_mask(count), (__m256i)v);
}

}  // namespace
}  // namespace te
