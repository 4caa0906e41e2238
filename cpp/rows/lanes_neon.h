// The native vectors of AArch64, which every such processor has, and the operations that plain C++
// cannot spell or that compilers turn into one element at a time. Included by lanes.h only;
// lanes_portable.h says what each function must do.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "rows/lanes_first.h"

namespace te {
namespace {

constexpr const char* kIsaName = "baseline";
constexpr size_t kNativeBytes = 16;
constexpr uint32_t kChunkBlocks = 4;  // 16 of the 32 registers hold sums

typedef float NativeFloats __attribute__((vector_size(16)));
typedef int32_t NativeInts __attribute__((vector_size(16)));
typedef uint32_t NativeWords __attribute__((vector_size(16)));
typedef uint64_t NativeLongs __attribute__((vector_size(16)));
typedef uint16_t NativeHalves __attribute__((vector_size(8)));

TE_INLINE NativeFloats native_sqrt(NativeFloats v) {
  return (NativeFloats)vsqrtq_f32((float32x4_t)v);
}

TE_INLINE NativeLongs native_multiply_low(NativeLongs a, NativeLongs b) {
  return (NativeLongs)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}

TE_INLINE NativeWords native_widen(NativeHalves v) { return (NativeWords)vmovl_u16((uint16x4_t)v); }
TE_INLINE NativeHalves native_narrow(NativeWords v) {
  return (NativeHalves)vmovn_u32((uint32x4_t)v);
}

TE_INLINE NativeFloats native_from_half(NativeHalves v) {
  return (NativeFloats)vcvt_f32_f16((float16x4_t)v);
}
TE_INLINE NativeHalves native_to_half(NativeFloats v) {
  return (NativeHalves)vcvt_f16_f32((float32x4_t)v);
}

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
