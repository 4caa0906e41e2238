// HbmTier: the slots of one layout on the device, and which rows have one.
//
// A row on the device keeps its slot in dram, pinned, so that it has a place to go back to; the
// bytes there are older while the device's slot is dirty. Everything but the bytes of rows is here,
// on the host. Numbers: plans of an engine with an hbm tier name places as the device sees them:
// p < slots() is slot p of the device. The others are rows that found no room there: p - slots() is
// their slot in dram if the device is this processor, else a position in Plan::in_dram.
// Invariants: a slot of the device holds a row, and `dram_of` names that row's slot in dram, which
// `place` leads back from; a row that a plan uses where it lies in dram stays there until no plan
// does. Thread-safety: none; the engine's mutex guards it. Cost: 32 bytes a slot and what the
// policy takes, and 4 bytes a slot in dram.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/types.h"
#include "cache/eviction_policy.h"
#include "cache/slot_directory.h"

namespace te {

struct HbmTier {
  static constexpr uint32_t kBytesPerSlot =
      SlotDirectory::kBytesPerSlot + EvictionPolicy::kBytesPerSlotMax + 12;

  // `policy_name`: as make_eviction_policy; `rows`: of the layout.
  HbmTier(uint32_t slots, uint32_t dram_slots_max, uint64_t rows, const std::string& policy_name);

  uint32_t slots() const { return directory.slots_max(); }

  // Where the row in a slot of dram is used: in a slot of the device, in dram by a number of plans,
  // or nowhere. Away from the device it keeps about how often it was used: a count that is halved
  // as often as those of rows there have been since it left. Read while dram has no policy, whose
  // counts would be better.
  class Place {
   public:
    static Place none(uint8_t uses, uint32_t halvings) {
      return Place(kNone | uint32_t{uses} << kUsesAt | (halvings & kHalvingsMax));
    }
    static Place on_device(SlotIndex s) { return Place(s.value + 1); }
    static Place in_dram(uint8_t uses) { return Place(kInDram | uint32_t{uses} << kUsesAt | 1); }

    Place() = default;  // nowhere, never used
    bool is_none() const { return bits_ == 0 || (bits_ & kNone) == kNone; }
    bool is_on_device() const { return bits_ != 0 && bits_ < kInDram; }
    SlotIndex slot() const { return SlotIndex(bits_ - 1); }
    // In dram: one plan more uses it, or one less. With the last one the row is nowhere.
    void add_plan() { ++bits_; }
    void remove_plan(uint32_t halvings) {
      if ((--bits_ & kPlansMax) == 0)
        *this = none(static_cast<uint8_t>(std::min(kept_uses() + 1, kUsesMax)), halvings);
    }
    // Of a row that is nowhere.
    uint8_t uses(uint32_t halvings) const {
      const uint32_t since = (halvings - bits_) & kHalvingsMax;
      return bits_ == 0 ? 0 : static_cast<uint8_t>(kept_uses() >> std::min(since, 6u));
    }

   private:
    static constexpr uint32_t kInDram = 0x80000000, kNone = 0xc0000000;
    static constexpr uint32_t kUsesAt = 24, kUsesMax = 63;
    static constexpr uint32_t kPlansMax = (1u << kUsesAt) - 1, kHalvingsMax = kPlansMax;

    explicit Place(uint32_t bits) : bits_(bits) {}
    uint32_t kept_uses() const { return bits_ >> kUsesAt & kUsesMax; }
    uint32_t bits_ = 0;
  };
  Place& place(SlotIndex dram) { return places_[dram.value]; }
  void prefetch_place(SlotIndex dram) const { __builtin_prefetch(&places_[dram.value], 1); }
  // All about a slot of the device.
  void prefetch(SlotIndex s) const {
    directory.prefetch(s);
    __builtin_prefetch(&dram_of[s.value], 1);
    __builtin_prefetch(&released_at[s.value], 1);
  }
  void prefetch_release(SlotIndex s) const {
    directory.prefetch(s);
    __builtin_prefetch(&released_at[s.value], 1);
  }
  // Whether the row of a slot in dram has one on the device too.
  bool holds(SlotIndex dram) const { return places_[dram.value].is_on_device(); }

  // Slot `s`, which was taken from the directory or whose row is leaving, holds a row from now on,
  // clean and pinned. The number of pinned slots follows. By threads that work on different slots.
  void enter(SlotIndex s, RowId row, SlotIndex dram);
  // Its row leaves it.
  void leave(SlotIndex s);
  void release(SlotIndex s);
  // Gives the memory about slots of dram [begin, end) back, which hold no row.
  void discard_places(uint32_t begin, uint32_t end) {
    place_memory_.discard(begin * sizeof(Place), end * sizeof(Place));
  }

  SlotDirectory directory;
  std::unique_ptr<EvictionPolicy> policy;  // null: every row of the layout has room
  std::vector<SlotIndex> dram_of;          // by slot of the device
  // By slot of the device: the number of the last release of a plan that used it (see HbmPlanner).
  std::vector<uint64_t> released_at;
  uint64_t dirty_rows = 0;

 private:
  ReservedMemory place_memory_;
  Place* places_;
};

}  // namespace te
