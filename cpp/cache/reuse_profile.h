// ReuseProfile: what a slot is worth that holds a row which was used so often, and last so long
// ago.
//
// Rows are sampled by hash and followed whether they are resident or not, so what the policy does
// cannot hide what would have happened. For each level (half an octave of the number of uses,
// decayed) and age since the last use there is a hazard: uses over the time that rows spent there,
// of the last twenty refreshes or so. The worth of a row is the largest ratio, over all times that
// one may wait, of the probability of a use by then to the time that the slot is held for it: the
// index of Gittins (J. R. Stat. Soc. B 41(2), 1979), close to the hit density of LHD (Beckmann,
// Chen, Cidon, NSDI 2018). A row that is in none of the batches known ahead will not be used before
// the end of that window: its slot earns nothing until then, and its gap is as much longer. So one
// number weighs frequency against age, and differently for popularities that stay, drift or come in
// bursts, and for every length of the window. Times are marks of the directory.
// Thread-safety: none. Cost: a multiplication a use, a look-up a sampled use, a pass over the
// sample each few thousand uses. Memory: 12 bytes for each of eight rows a slot, at most 192 KiB,
// and 3 KiB.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "base/types.h"
#include "cache/row_hash.h"

namespace te {

class ReuseProfile {
 public:
  static constexpr size_t kLevels = 11;
  static constexpr uint8_t kFrequencyMax = 63;
  static constexpr size_t kLevelsPerHalving = 2;
  static size_t level(uint8_t frequency) {
    if (frequency < 2) return 0;
    const auto octave = static_cast<size_t>(std::bit_width(frequency)) - 2;
    return 2 * octave + 1 + (frequency >> octave & 1);
  }

  // Slots of the cache: the scale of all times. The sample starts anew where its size changes.
  void set_limit(uint32_t limit);
  // The row was used by the plan with this mark, and has this level since.
  void use(RowId row, uint32_t mark, size_t level) {
    const uint64_t hash = row_hash(row);
    if (is_sampled(hash)) follow(hash, mark, level);
  }
  // Whether `use` would do anything for the row.
  bool is_followed(RowId row) const { return is_sampled(row_hash(row)); }
  // `uses` more have been told. Now and then the worths are worked out anew, for a window of that
  // many marks.
  void advance(size_t uses, uint32_t now, uint32_t window);
  // All frequencies are halved.
  void halve();
  // Marks start again.
  void forget_times();

  // Uses per time in which an eighth of the slots are used.
  float worth(size_t level, uint32_t age) const {
    return worth_[level][bucket(uint64_t{age} + window_)];
  }
  // The least age at which every level is worth as much as at this one.
  uint32_t same_worth_from(uint32_t age) const;

 private:
  // Half-octaves of the age. A row that is older than all of them is no longer followed.
  static constexpr size_t kBuckets = 24;
  struct Followed {
    uint32_t key_high = 0;  // of the hash, of which the lowest bits give way to the level
    uint32_t key_low = 0;   // both 0: a free place
    uint32_t last = 0;      // mark of the last use

    bool is_free() const { return (key_high | key_low) == 0; }
    size_t level() const { return key_low & 15; }
    uint64_t hash() const { return uint64_t{key_high} << 32 | (key_low & ~15u); }
  };
  using Table = std::array<std::array<float, kBuckets>, kLevels>;

  size_t bucket(uint64_t age) const;
  bool is_sampled(uint64_t hash) const { return (hash >> 8 & 0xffffff) < threshold_; }
  size_t home(uint64_t hash) const { return hash >> shift_; }
  void follow(uint64_t hash, uint32_t mark, size_t level);
  void remove(size_t place);
  void thin_out(uint32_t now);
  void observe(uint32_t now);
  void estimate();

  uint32_t limit_ = 1;
  uint64_t unit_ = 1;  // marks, of the times below
  uint32_t window_ = 0;
  uint32_t threshold_ = 0;
  std::vector<Followed> followed_;  // open addressing, at most 3/4 full
  size_t count_ = 0;
  int shift_ = 64;
  size_t uses_ = 0;  // since the last refresh
  uint32_t refreshed_at_ = 0;
  Table uses_seen_{};
  Table time_spent_{};  // rows x units
  Table worth_{};
};

}  // namespace te
