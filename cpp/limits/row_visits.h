// The loops that MemoryLimits times over rows, a variant for each instruction set. Internal
// to limits/. Thread-safety: pure functions; pieces of an order may run at once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace te {

// Rows in random order.
struct RowVisit {
  std::byte* base;
  size_t row_bytes;  // a multiple of 4
  const uint32_t* order;
  size_t count;
  // See MemoryLimits::Prefetch.
  size_t ahead_rows;
  int cache_level;
};

// Of the pieces [begin, end) of an order; what they return is there to be used.
struct RowVisits {
  uint64_t (*gather)(const RowVisit& rows, size_t begin, size_t end);
  uint64_t (*update)(const RowVisit& rows, size_t begin, size_t end);
};

const RowVisits& row_visits_baseline();
#if defined(__x86_64__)
const RowVisits& row_visits_avx2();
const RowVisits& row_visits_avx512();
#endif

}  // namespace te
