// Sums of rows: the inner loops that pooled lookup and gradients share. Included by variant_impl.h
// only.
//
// A sum runs over terms in order, and starts at -0, the number that adds nothing, so it equals the
// first term, plus the second, and so on. A pass takes a chunk of columns, small enough for its
// sums to stay in registers, over all the terms; passes of different chunks do not depend on each
// other, so the width of a chunk changes nothing in the result. Each pass prefetches its own chunk
// of the rows some terms ahead. Cost: reads every row once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rows/lanes.h"

namespace te {
namespace {

// Rows all over the memory are prefetched into the second cache, far ahead: more reads of the
// memory can be under way there than into the first (measured on Zen 4: twice as many rows/s of 64
// bytes, a fifth more of 256). Rows that lie together are in a cache already.
constexpr size_t kFarAheadBytes = 8192;
constexpr size_t kFarAheadRowsMin = 4;
constexpr size_t kFarAheadRowsMax = 64;
constexpr size_t kNearAheadBytes = 4096;
constexpr size_t kNearAheadRowsMin = 2;
constexpr size_t kNearAheadRowsMax = 16;

// How many rows ahead to prefetch.
TE_INLINE size_t rows_far_ahead(size_t row_bytes) {
  const size_t rows = kFarAheadBytes / (row_bytes + 1);
  return rows < kFarAheadRowsMin   ? kFarAheadRowsMin
         : rows > kFarAheadRowsMax ? kFarAheadRowsMax
                                   : rows;
}
TE_INLINE size_t rows_near_ahead(size_t row_bytes) {
  const size_t rows = kNearAheadBytes / (row_bytes + 1);
  return rows < kNearAheadRowsMin   ? kNearAheadRowsMin
         : rows > kNearAheadRowsMax ? kNearAheadRowsMax
                                    : rows;
}

// Locality 2 is the second cache, 3 the first.
template <int kLocality>
TE_INLINE void prefetch_bytes(uintptr_t address, uint32_t bytes) {
  for (uint32_t b = 0; b < bytes; b += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + b), 0, kLocality);
  }
  // The line of the last byte, where the row does not begin on a line.
  __builtin_prefetch(reinterpret_cast<const void*>(address + bytes - 1), 0, kLocality);
}
TE_INLINE void prefetch_far(uintptr_t address, uint32_t bytes) {
  prefetch_bytes<2>(address, bytes);
}
TE_INLINE void prefetch_near(uintptr_t address, uint32_t bytes) {
  prefetch_bytes<3>(address, bytes);
}

// Calls pass.template run<kBlocks, kTail>(column, columns) for chunks that cover [0, dim). Only the
// last chunk may be kTail: one block of fewer than 16 columns.
template <class Pass>
TE_INLINE void for_chunks(uint32_t dim, const Pass& pass) {
  uint32_t column = 0;
  if constexpr (kChunkBlocks >= 8) {
    for (; column + 128 <= dim; column += 128) pass.template run<8, false>(column, 128);
  }
  for (; column + 64 <= dim; column += 64) pass.template run<4, false>(column, 64);
  if (column + 32 <= dim) {
    pass.template run<2, false>(column, 32);
    column += 32;
  }
  if (column + 16 <= dim) {
    pass.template run<1, false>(column, 16);
    column += 16;
  }
  if (column < dim) pass.template run<1, true>(column, dim - column);
}

// Sums the terms [begin, end) over a chunk; returns how many were not skipped. Terms offers:
//   kType, kScaled, kMasked            dtype of the rows; whether scale / masked are used
//   prefetch<kBytes>(i, offset_bytes)  fetches ahead of term i
//   skip(i), row(i), scale(i)          the term
//   masked(i, column, columns, value)  value, or zero in lanes that do not take part
template <uint32_t kBlocks, bool kTail, class Terms>
TE_INLINE size_t sum_terms(const Terms& terms, size_t begin, size_t end, uint32_t column,
                           uint32_t columns, Floats (&sum)[kBlocks]) {
  constexpr DType kType = Terms::kType;
  constexpr uint32_t kBlockBytes = kLanes * kElementBytes<kType>;
  const size_t offset_bytes = size_t{column} * kElementBytes<kType>;
  // Unrolled, or gcc leaves the sums in memory where a block is four vectors.
#pragma GCC unroll 8
  for (uint32_t b = 0; b < kBlocks; ++b) sum[b] = splat(-0.0f);
  size_t count = 0;
  for (size_t i = begin; i < end; ++i) {
    terms.template prefetch<kBlocks * kBlockBytes>(i, offset_bytes);
    if (terms.skip(i)) continue;
    const std::byte* row = terms.row(i) + offset_bytes;
    [[maybe_unused]] Floats scale;
    if constexpr (Terms::kScaled) scale = splat(terms.scale(i));
#pragma GCC unroll 8
    for (uint32_t b = 0; b < kBlocks; ++b) {
      Floats term = load<kType, kTail>(row + b * kBlockBytes, columns);
      if constexpr (Terms::kScaled) term = term * scale;
      if constexpr (Terms::kMasked) {
        term = terms.template masked<kTail>(i, column + b * kLanes, columns, term);
      }
      sum[b] = sum[b] + term;
    }
    ++count;
  }
  return count;
}

}  // namespace
}  // namespace te
