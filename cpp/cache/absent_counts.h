// AbsentCounts: how often rows were used that have left the cache, in a memory of fixed size.
//
// A bucket, found by hash, has eight entries: ten bits tell its rows apart (one row in 130 takes
// another's count for its own), six are the count. A full bucket gives up its lowest count, and of
// equals the one that came first: so rows of many uses are remembered for long, and a row that has
// just left until seven others of its bucket have. Three entries a slot of the cache keep as few
// misses as a byte for each of 64 rows a slot, where the newest of two rows that share it wins.
// Thread-safety: none. Ownership: owns its memory, which is taken as it is first written. Cost: one
// cache miss a call.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/types.h"
#include "cache/row_hash.h"

namespace te {

class AbsentCounts {
 public:
  static constexpr uint8_t kCountMax = 63;
  static constexpr uint64_t kBytesPerRow = 2;

  // Room for about so many rows: a change of less than an eighth is not made, because it would
  // forget all.
  void set_rows(uint64_t rows) {
    const uint64_t wanted = std::max(rows / std::tuple_size_v<Bucket>, uint64_t{1});
    if (wanted <= buckets_ + buckets_ / 8 && buckets_ <= wanted + wanted / 8) return;
    buckets_ = wanted;
    memory_ = ReservedMemory(buckets_ * sizeof(Bucket));
  }

  bool touch_some(size_t bytes) { return memory_.touch_some(bytes, memory_.bytes()); }

  void put(RowId row, uint8_t count) {
    if (count == 0) return;
    Bucket& bucket = bucket_of(row);
    size_t place = 0;
    for (size_t i = 0; i < bucket.size(); ++i) {
      if ((bucket[i] & kCountMax) <= (bucket[place] & kCountMax)) place = i;
    }
    for (; place > 0; --place) bucket[place] = bucket[place - 1];  // the newest comes first
    bucket[0] = static_cast<uint16_t>(tag(row) << 6 | std::min(count, kCountMax));
  }

  // The row's count, which is forgotten; 0 if there is none.
  uint8_t take(RowId row) {
    for (uint16_t& entry : bucket_of(row)) {
      const uint8_t count = entry & kCountMax;
      if (count == 0 || entry >> 6 != tag(row)) continue;
      entry = 0;
      return count;
    }
    return 0;
  }

  void prefetch(RowId row) const { __builtin_prefetch(&bucket_of(row), 1); }

  void halve() {
    for (uint64_t b = 0; b < buckets_; ++b) {
      for (uint16_t& entry : buckets()[b]) {
        if (entry == 0) continue;  // a page that was never written stays unwritten
        entry = static_cast<uint16_t>((entry & ~unsigned{kCountMax}) | (entry & kCountMax) >> 1);
      }
    }
  }

 private:
  using Bucket = std::array<uint16_t, 8>;
  static uint32_t tag(RowId row) { return row_hash(row) & 1023; }
  Bucket* buckets() const { return reinterpret_cast<Bucket*>(memory_.data()); }
  Bucket& bucket_of(RowId row) const { return buckets()[(row_hash(row) >> 32) * buckets_ >> 32]; }

  ReservedMemory memory_;
  uint64_t buckets_ = 0;  // fewer than 2^32
};

}  // namespace te
