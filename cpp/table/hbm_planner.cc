#include "table/hbm_planner.h"

#include <algorithm>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kAhead = 16;  // prefetched
constexpr size_t kOccurrencesPerTask = 1 << 15;

}  // namespace

// The device's policy begins with what dram's knows of a row; that goes on counting.
void HbmPlanner::enter(LayoutTier& tier, SlotIndex s, SlotIndex dram) {
  if (tier.policy == nullptr) return;
  Slot& slot = tier.directory[dram];
  tier.directory.pin(slot);
  tier.hbm->directory[s].frequency = slot.frequency;
}

void HbmPlanner::unpin_in_dram(LayoutId layout, std::span<const SlotIndex> dram) {
  LayoutTier& tier = tiers_.layout(layout);
  if (tier.policy == nullptr) return;
  slots_.clear();
  for (size_t i = 0; i < dram.size(); ++i) {
    tier.directory.prefetch(dram[std::min(i + kAhead, dram.size() - 1)]);
    if (tier.directory.unpin(tier.directory[dram[i]])) slots_.push_back(dram[i]);
  }
  tier.policy->park(slots_);
}

// Rows that are on the device, or used in dram by another plan, are pinned where they are. By
// threads that work on different ranges, and so on different rows.
void HbmPlanner::find(Plan& plan, size_t r) {
  const UniqueRange& range = plan.acquired.ranges[r];
  Found& found = found_[r];
  found.missing.clear();
  found.in_dram.clear();
  found.pinned = found.hits = 0;
  HbmTier& hbm = *tiers_.layout(range.layout).hbm;
  const SlotIndex* slots = plan.acquired.slots.data();
  const size_t end = range.first + range.count;
  for (size_t u = range.first; u < end; ++u) {
    hbm.prefetch_place(slots[std::min(u + 2 * kAhead, end - 1)]);
    if (const HbmTier::Place ahead = hbm.place(slots[std::min(u + kAhead, end - 1)]);
        ahead.is_on_device()) {
      hbm.directory.prefetch(ahead.slot());
      hbm.directory.prefetch_mark(ahead.slot());
    }
    HbmTier::Place& place = hbm.place(slots[u]);
    if (place.is_none()) {
      found.missing.push_back(static_cast<uint32_t>(u));
    } else if (place.is_on_device()) {
      const SlotIndex s = place.slot();
      found.pinned += SlotDirectory::pin_uncounted(hbm.directory[s]);
      hbm.directory.mark(s) = plan.acquired.mark_base + static_cast<uint32_t>(u);
      plan.places[u] = s.value;
      ++found.hits;
    } else {
      ++place.bits;
      found.in_dram.push_back(static_cast<uint32_t>(u));
    }
  }
}

void HbmPlanner::find_all(Plan& plan, ThreadPool& threads) {
  const std::vector<UniqueRange>& ranges = plan.acquired.ranges;
  if (found_.size() < ranges.size()) found_.resize(ranges.size());
  threads.run(ranges.size(), [&](size_t r) { find(plan, r); });
  missing_.resize(tiers_.layouts());
  for (auto& missing : missing_) missing.clear();
  for (size_t r = 0; r < ranges.size(); ++r) {
    const Found& found = found_[r];
    tiers_.layout(ranges[r].layout).hbm->directory.count_pinned(found.pinned);
    stats_.rows_hit += found.hits;
    for (uint32_t u : found.in_dram) place_in_dram(plan, ranges[r].layout, u);
    std::vector<uint32_t>& missing = missing_[ranges[r].layout.value];
    missing.insert(missing.end(), found.missing.begin(), found.missing.end());
  }
}

void HbmPlanner::take_victims(LayoutId layout, size_t count, HbmMoves& moves) {
  LayoutTier& tier = tiers_.layout(layout);
  HbmTier& hbm = *tier.hbm;
  slots_.clear();
  hbm.policy->pop_victims(count, slots_);
  TE_CHECK(slots_.size() == count);
  hbm.policy->evicted(slots_);
  dram_.clear();
  for (size_t i = 0; i < slots_.size(); ++i) {
    const SlotIndex s = slots_[i];
    hbm.prefetch(slots_[std::min(i + kAhead, slots_.size() - 1)]);
    const SlotIndex dram = hbm.dram_of[slots_[std::min(i + kAhead / 2, slots_.size() - 1)].value];
    hbm.prefetch_place(dram);
    tier.directory.prefetch(dram);
    moves.after = std::max(moves.after, hbm.released_at[s.value]);
    if (hbm.directory[s].dirty != 0) {  // pinned in dram until it has come there
      moves.spill_from.push_back(s);
      moves.spill_to.push_back(hbm.dram_of[s.value]);
    } else {
      dram_.push_back(hbm.dram_of[s.value]);
    }
    hbm.release(s);
  }
  unsettled_ += moves.spill_from.size();
  stats_.rows_spilled += moves.spill_from.size();
  unpin_in_dram(layout, dram_);
}

void HbmPlanner::place_missing(Plan& plan, LayoutId layout) {
  const std::vector<uint32_t>& missing = missing_[layout.value];
  if (missing.empty()) return;
  LayoutTier& tier = tiers_.layout(layout);
  HbmTier& hbm = *tier.hbm;
  HbmMoves& moves = plan.moves[layout.value];
  const size_t unused = hbm.slots() - hbm.directory.pinned();
  const size_t placed = std::min(missing.size(), unused);
  const size_t free_slots = hbm.directory.free_slots();
  if (placed > free_slots) take_victims(layout, placed - free_slots, moves);
  for (size_t i = 0; i < placed; ++i) {
    const uint32_t u = missing[i];
    const SlotIndex dram = plan.acquired.slots[u];
    const SlotIndex s = hbm.take(plan.acquired.rows[u], dram);
    moves.after = std::max(moves.after, hbm.released_at[s.value]);
    hbm.directory.mark(s) = plan.acquired.mark_base + u;
    hbm.directory.pin(hbm.directory[s]);
    plan.places[u] = s.value;
    moves.fill_from.push_back(dram);
    moves.fill_to.push_back(s);
  }
  if (hbm.policy != nullptr) hbm.policy->admit(moves.fill_to);
  for (size_t i = 0; i < placed; ++i) {
    tier.directory.prefetch(moves.fill_from[std::min(i + kAhead, placed - 1)]);
    enter(tier, moves.fill_to[i], moves.fill_from[i]);
  }
  for (size_t i = placed; i < missing.size(); ++i) {
    hbm.place(plan.acquired.slots[missing[i]]).bits = HbmTier::Place::kInDram + 1;
    place_in_dram(plan, layout, missing[i]);
  }
  stats_.rows_filled += placed;
}

void HbmPlanner::place_in_dram(Plan& plan, LayoutId layout, uint32_t unique) const {
  const LayoutTier& tier = tiers_.layout(layout);
  const SlotIndex dram = plan.acquired.slots[unique];
  std::vector<SlotIndex>& in_dram = plan.in_dram[layout.value];
  const auto position = static_cast<uint32_t>(in_dram.size());
  plan.places[unique] = tier.hbm->slots() + (tiers_.config().hbm_on_host ? dram.value : position);
  in_dram.push_back(dram);
}

void HbmPlanner::stage(Plan& plan, ThreadPool& threads) {
  TE_CHECK(!plan.is_staged);
  plan.places.resize(plan.acquired.slots.size());
  plan.in_dram.resize(tiers_.layouts());
  for (auto& in_dram : plan.in_dram) in_dram.clear();
  plan.moves.resize(tiers_.layouts());
  for (HbmMoves& moves : plan.moves) moves.clear();
  find_all(plan, threads);
  for (size_t l = 0; l < tiers_.layouts(); ++l)
    place_missing(plan, LayoutId(static_cast<uint16_t>(l)));
  for (const auto& in_dram : plan.in_dram) stats_.rows_in_dram += in_dram.size();
  const size_t tasks = (plan.occurrences + kOccurrencesPerTask - 1) / kOccurrencesPerTask;
  threads.run(tasks, [&](size_t task) {
    const size_t end = std::min((task + 1) * kOccurrencesPerTask, plan.occurrences);
    for (size_t i = task * kOccurrencesPerTask; i < end; ++i) {
      const uint32_t u = plan.acquired.unique_of[i];
      plan.occurrence_slots[i] = u == kPaddingSlot ? kPaddingSlot : plan.places[u];
    }
  });
  plan.is_staged = true;
}

void HbmPlanner::release(Plan& plan) {
  if (!plan.is_staged) return;
  plan.is_staged = false;
  ++releases_;
  for (const UniqueRange& range : plan.acquired.ranges) {
    HbmTier& hbm = *tiers_.layout(range.layout).hbm;
    slots_.clear();
    const size_t end = range.first + range.count;
    for (size_t u = range.first; u < end; ++u) {
      const uint32_t ahead = plan.places[std::min(u + kAhead, end - 1)];
      if (ahead < hbm.slots()) hbm.prefetch(SlotIndex(ahead));
      const uint32_t place = plan.places[u];
      if (place >= hbm.slots()) {
        HbmTier::Place& in_dram = hbm.place(plan.acquired.slots[u]);
        if (--in_dram.bits == HbmTier::Place::kInDram) in_dram = HbmTier::Place();
        continue;
      }
      const SlotIndex s(place);
      hbm.released_at[s.value] = releases_;
      if (hbm.directory.unpin(hbm.directory[s])) slots_.push_back(s);
    }
    if (hbm.policy != nullptr) hbm.policy->park(slots_);
  }
}

void HbmPlanner::mark_dirty(const Plan& plan, const UniqueRange& range) {
  LayoutTier& tier = tiers_.layout(range.layout);
  HbmTier& hbm = *tier.hbm;
  for (size_t u = range.first; u < range.first + range.count; ++u) {
    const uint32_t ahead = plan.places[std::min(u + kAhead, range.first + range.count - 1)];
    if (ahead < hbm.slots()) hbm.directory.prefetch(SlotIndex(ahead));
    const uint32_t place = plan.places[u];
    if (place >= hbm.slots()) {
      tiers_.mark_dirty(range.layout, tier.directory[plan.acquired.slots[u]]);
    } else if (uint8_t& dirty = hbm.directory[SlotIndex(place)].dirty; dirty == 0) {
      dirty = 1;
      ++hbm.dirty_rows;
    }
  }
}

void HbmPlanner::take_dirty(LayoutId layout, std::vector<SlotIndex>& from,
                            std::vector<SlotIndex>& to) {
  HbmTier& hbm = *tiers_.layout(layout).hbm;
  for (uint32_t i = 0; i < hbm.directory.ever_used() && hbm.dirty_rows != 0; ++i) {
    if (!take_dirty(hbm, SlotIndex(i))) continue;
    from.push_back(SlotIndex(i));
    to.push_back(hbm.dram_of[i]);
  }
}

bool HbmPlanner::take_dirty(HbmTier& hbm, SlotIndex s) {
  Slot& slot = hbm.directory[s];
  if (slot.row.is_none() || slot.dirty == 0) return false;
  slot.dirty = 0;
  --hbm.dirty_rows;
  ++unsettled_;
  ++stats_.rows_spilled;
  return true;
}

void HbmPlanner::settle(LayoutId layout, std::span<const SlotIndex> dram, bool left) {
  LayoutTier& tier = tiers_.layout(layout);
  TE_CHECK(unsettled_ >= dram.size());
  unsettled_ -= dram.size();
  for (size_t i = 0; i < dram.size(); ++i) {
    tier.directory.prefetch(dram[std::min(i + kAhead, dram.size() - 1)]);
    tiers_.mark_dirty(layout, tier.directory[dram[i]]);
  }
  if (left) unpin_in_dram(layout, dram);
}

void HbmPlanner::drop_unused() {
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    const LayoutId layout(static_cast<uint16_t>(l));
    HbmTier& hbm = *tiers_.layout(layout).hbm;
    dram_.clear();
    for (uint32_t i = 0; i < hbm.directory.ever_used(); ++i) {
      const SlotIndex s(i);
      const Slot& slot = hbm.directory[s];
      if (slot.row.is_none() || slot.pins != 0 || slot.dirty != 0) continue;
      dram_.push_back(hbm.dram_of[i]);
      if (hbm.policy != nullptr) hbm.policy->evicted({&s, 1});
      hbm.release(s);
    }
    unpin_in_dram(layout, dram_);
  }
}

uint64_t HbmPlanner::dirty_rows() const {
  uint64_t rows = 0;
  for (size_t l = 0; l < tiers_.layouts() && tiers_.has_hbm(); ++l)
    rows += tiers_.layout(LayoutId(static_cast<uint16_t>(l))).hbm->dirty_rows;
  return rows;
}

}  // namespace te
