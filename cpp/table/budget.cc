#include "table/budget.h"

#include <algorithm>
#include <cmath>

#include "cache/eviction_policy.h"
#include "cache/slot_directory.h"

namespace te {
namespace {

uint32_t whole_slots(double wanted) {
  return static_cast<uint32_t>(std::clamp(std::floor(wanted), 1.0, 4e9));
}

std::vector<uint32_t> slots_of_fraction(std::span<const LayoutDemand> layouts, double fraction) {
  std::vector<uint32_t> slots;
  for (const LayoutDemand& layout : layouts)
    slots.push_back(whole_slots(static_cast<double>(layout.rows) * fraction));
  return slots;
}

// At `level` 0 to 1: the shares, and this fraction of the other layouts' rows. Below, to -1: one
// slot of each of those, and less and less of the shares.
std::vector<uint32_t> slots_at(std::span<const LayoutDemand> layouts, double level) {
  std::vector<uint32_t> slots = slots_of_fraction(layouts, std::max(level, 0.0));
  for (size_t l = 0; l < layouts.size(); ++l) {
    if (layouts[l].share == 0) continue;
    slots[l] = share_slots(layouts[l]);
    if (level < 0) slots[l] = whole_slots(slots[l] * (1 + level));
  }
  return slots;
}

}  // namespace

uint32_t share_slots(const LayoutDemand& layout) {
  if (layout.share == 0) return 0;
  return whole_slots(std::ceil(static_cast<double>(layout.rows) * layout.share));
}

uint64_t dram_bytes_for_slots(std::span<const LayoutDemand> layouts,
                              std::span<const uint32_t> slots, uint64_t index_bytes,
                              bool evicting) {
  const uint64_t slot_overhead =
      SlotDirectory::kBytesPerSlot + (evicting ? EvictionPolicy::kBytesPerSlotMax : 0);
  uint64_t rows_bytes = 0;
  uint64_t overhead_bytes = index_bytes;
  for (size_t i = 0; i < layouts.size(); ++i) {
    rows_bytes += slots[i] * layouts[i].stride_bytes;
    overhead_bytes += slots[i] * (slot_overhead + layouts[i].slot_overhead_bytes);
  }
  return rows_bytes +
         (overhead_bytes > kFreeOverheadBytes ? overhead_bytes - kFreeOverheadBytes : 0);
}

uint64_t dram_bytes_for_all_rows(std::span<const LayoutDemand> layouts, uint64_t fixed_bytes) {
  uint64_t rows_bytes = 0;
  uint64_t overhead_bytes = fixed_bytes;
  for (const LayoutDemand& layout : layouts) {
    rows_bytes += layout.rows * layout.stride_bytes;
    overhead_bytes +=
        layout.rows * (SlotDirectory::kBytesPerSlot + 4 + layout.slot_overhead_bytes) +
        layout.rows / 8;  // words, resident bits
  }
  return rows_bytes +
         (overhead_bytes > kFreeOverheadBytes ? overhead_bytes - kFreeOverheadBytes : 0);
}

std::vector<uint32_t> slots_within(std::span<const LayoutDemand> layouts, uint64_t dram_bytes,
                                   uint64_t index_bytes) {
  const auto fits = [&](double level) {
    return dram_bytes_for_slots(layouts, slots_at(layouts, level), index_bytes, true) <= dram_bytes;
  };
  double low = -1;
  double high = 1;
  for (int i = 0; i < 61; ++i) {
    const double middle = (low + high) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return slots_at(layouts, fits(high) ? high : low);
}

std::vector<uint32_t> hbm_slots_within(std::span<const LayoutDemand> layouts, uint64_t hbm_bytes) {
  const auto bytes_of = [&](std::span<const uint32_t> slots) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < layouts.size(); ++i) bytes += slots[i] * layouts[i].stride_bytes;
    return bytes;
  };
  double low = 0;
  double high = 1;
  if (bytes_of(slots_of_fraction(layouts, high)) <= hbm_bytes) low = high;
  for (int i = 0; i < 60 && low < high; ++i) {
    const double middle = (low + high) / 2;
    (bytes_of(slots_of_fraction(layouts, middle)) <= hbm_bytes ? low : high) = middle;
  }
  std::vector<uint32_t> slots = slots_of_fraction(layouts, low);
  if (bytes_of(slots) > hbm_bytes) slots.clear();
  return slots;
}

}  // namespace te
