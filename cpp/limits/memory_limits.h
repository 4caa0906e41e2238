// MemoryLimits: how fast this machine's memory is read and written: in order, and by rows in random
// order, as lookups and updates of a table do.
//
// One call is one repetition, timed on `threads` threads; the caller takes medians, and may stop
// between calls. The memory is of the kind that the arenas of the engine are (ReservedMemory, in
// huge pages where the system grants them), all of it written before. Row orders are drawn in
// advance, as a plan is. Ownership: owns the memory. Thread-safety: one caller.
//
// Bytes are those that the program names, as in STREAM (McCalpin, "Memory bandwidth and machine
// balance in current high performance computers", 1995): a line that is fetched only because part
// of it is written counts once, as written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"

namespace te {

// What one repetition did.
struct Timing {
  double seconds = 0;
  uint64_t bytes = 0;
};

class MemoryLimits {
 public:
  // Bytes counted for n bytes of an array: kRead n; kCopy 2n; kTriad 3n, a = b + s * c in double.
  // All by ordinary stores, as rows are written: none that go around the caches.
  enum class Stream : uint8_t { kRead, kCopy, kTriad };
  // kGather reads rows. kUpdate reads each, adds to it and writes it back: its bytes count once.
  enum class Access : uint8_t { kGather, kUpdate };
  // Each row is prefetched so many rows before its turn, 0: not at all. Into the second cache more
  // lines can be under way than into the first.
  struct Prefetch {
    size_t ahead_rows = 0;
    int cache_level = 1;  // 1 or 2
  };

  static constexpr size_t kArenaBytesMin = size_t{1} << 20;
  // `arena_bytes`: of all arrays together, and of all rows; at least the above.
  MemoryLimits(size_t arena_bytes, size_t threads);

  Timing stream(Stream kind, size_t threads);
  // Draws which rows `rows` visits: at most `count` different ones, of all that the arena holds.
  // `row_bytes`: a multiple of 4. Returns how many.
  size_t draw(size_t row_bytes, size_t count, uint64_t seed);
  Timing rows(Access access, Prefetch prefetch, size_t threads);

  std::span<const uint32_t> order() const { return order_; }

 private:
  ReservedMemory arena_;
  size_t row_bytes_ = 4;
  std::vector<uint32_t> order_;
  // Sums go here, so that no compiler leaves the reads out.
  uint64_t sum_ = 0;
};

}  // namespace te
