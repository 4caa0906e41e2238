// How rows are read and updated in the timings of MemoryLimits. Included by row_visits_*.cc only,
// one a file that is compiled for its instruction set: narrow vectors would keep a core from asking
// for as much as the memory can give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "limits/row_visits.h"

namespace te {
namespace {

#if defined(__AVX512F__)
constexpr size_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr size_t kVectorBytes = 32;
#else
constexpr size_t kVectorBytes = 16;
#endif
constexpr size_t kLineBytes = 64;
using Vector [[gnu::vector_size(kVectorBytes)]] = uint32_t;

// No member of RowVisit: it would be compiled for whichever instruction set the linker meets first.
inline std::byte* row_at(const RowVisit& rows, size_t i) {
  return rows.base + size_t{rows.order[i]} * rows.row_bytes;
}

// To read, also what will be written: a prefetch to write goes into the first cache only.
template <int kCacheLevel>
inline void prefetch_row(const std::byte* row, size_t row_bytes) {
  for (size_t b = 0; b < row_bytes; b += kLineBytes)
    __builtin_prefetch(row + b, 0, 4 - kCacheLevel);
  // Its last line, where the row does not begin on one.
  __builtin_prefetch(row + row_bytes - 1, 0, 4 - kCacheLevel);
}

// One sum a lane, over rows: lanes are added up once, at the end.
struct Sums {
  Vector lanes = {};
  uint32_t rest = 0;

  void add(const std::byte* row, size_t row_bytes) {
    size_t b = 0;
    for (; b + kVectorBytes <= row_bytes; b += kVectorBytes) {
      Vector part;
      std::memcpy(&part, row + b, sizeof(part));
      lanes += part;
    }
    for (; b < row_bytes; b += sizeof(uint32_t)) {
      uint32_t word;
      std::memcpy(&word, row + b, sizeof(word));
      rest += word;
    }
  }
  uint64_t total() const {
    uint64_t sum = rest;
    for (size_t i = 0; i < kVectorBytes / sizeof(uint32_t); ++i) sum += lanes[i];
    return sum;
  }
};

inline void add_to(std::byte* row, size_t row_bytes, uint32_t value) {
  size_t b = 0;
  for (; b + kVectorBytes <= row_bytes; b += kVectorBytes) {
    Vector part;
    std::memcpy(&part, row + b, sizeof(part));
    part += value;
    std::memcpy(row + b, &part, sizeof(part));
  }
  for (; b < row_bytes; b += sizeof(uint32_t)) {
    uint32_t word;
    std::memcpy(&word, row + b, sizeof(word));
    word += value;
    std::memcpy(row + b, &word, sizeof(word));
  }
}

template <bool kWrites, int kCacheLevel>
uint64_t visit_with(const RowVisit& rows, size_t begin, size_t end) {
  const size_t row_bytes = rows.row_bytes;
  const size_t ahead = rows.ahead_rows;
  Sums sums;
  for (size_t i = begin; i < end; ++i) {
    if (ahead > 0 && i + ahead < rows.count)
      prefetch_row<kCacheLevel>(row_at(rows, i + ahead), row_bytes);
    if constexpr (kWrites) {
      add_to(row_at(rows, i), row_bytes, static_cast<uint32_t>(i));
    } else {
      sums.add(row_at(rows, i), row_bytes);
    }
  }
  return sums.total();
}

template <bool kWrites>
uint64_t visit(const RowVisit& rows, size_t begin, size_t end) {
  return rows.cache_level == 1 ? visit_with<kWrites, 1>(rows, begin, end)
                               : visit_with<kWrites, 2>(rows, begin, end);
}

constexpr RowVisits kVisits{visit<false>, visit<true>};

}  // namespace
}  // namespace te
