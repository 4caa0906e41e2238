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

  // Where the row in a slot of dram is used: nowhere yet (0), in a slot of the device, or in dram
  // by a number of plans.
  struct Place {
    static constexpr uint32_t kInDram = 0x80000000;
    uint32_t bits = 0;
    bool is_none() const { return bits == 0; }
    bool is_on_device() const { return bits != 0 && bits < kInDram; }
    SlotIndex slot() const { return SlotIndex(bits - 1); }
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
