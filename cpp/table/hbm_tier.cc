#include "table/hbm_tier.h"

#include <algorithm>

namespace te {

HbmTier::HbmTier(uint32_t slots, uint32_t dram_slots_max, uint64_t rows,
                 const std::string& policy_name)
    : directory(slots),
      dram_of(slots),
      released_at(slots, 0),
      place_memory_(uint64_t{std::max(dram_slots_max, 1u)} * sizeof(Place)),
      places_(reinterpret_cast<Place*>(place_memory_.data())) {
  directory.set_limit(slots);
  if (slots >= rows) return;
  policy = make_eviction_policy(policy_name, directory, rows, PolicyOf::kDevice);
  policy->set_limit(slots);
}

void HbmTier::enter(SlotIndex s, RowId row, SlotIndex dram) {
  Slot& slot = directory[s];
  slot = Slot();
  slot.row = row;
  slot.pins = 1;
  dram_of[s.value] = dram;
  place(dram) = Place::on_device(s);
}

void HbmTier::leave(SlotIndex s) {
  const bool counts = policy != nullptr && policy->counts_uses();
  place(dram_of[s.value]) =
      counts ? Place::none(directory[s].frequency, policy->halvings()) : Place();
}

void HbmTier::release(SlotIndex s) {
  Slot& slot = directory[s];
  if (slot.dirty != 0) --dirty_rows;
  leave(s);
  directory.release(s);
}

}  // namespace te
