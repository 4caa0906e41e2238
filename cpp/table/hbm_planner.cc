#include "table/hbm_planner.h"

#include <algorithm>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kAhead = 16;  // prefetched
constexpr size_t kOccurrencesPerTask = 1 << 16;
constexpr size_t kRowsPerTask = 1 << 13;
// Of fewer rows a wake-up of the threads would cost more than it saves.
constexpr size_t kRowsOfThreads = 1 << 15;

}  // namespace

// What a row brings to the device: the count of dram's policy, which goes on counting, or else the
// one that it left with.
uint8_t HbmPlanner::uses_of(const LayoutTier& tier, SlotIndex dram) {
  const EvictionPolicy* policy = tier.hbm->policy.get();
  if (policy == nullptr || !policy->counts_uses()) return 0;
  return tier.policy != nullptr ? tier.directory[dram].frequency
                                : tier.hbm->place(dram).uses(policy->halvings());
}

void HbmPlanner::unpin_in_dram(LayoutId layout, std::span<const SlotIndex> dram,
                               ThreadPool& threads) {
  LayoutTier& tier = tiers_.layout(layout);
  const size_t tasks = tasks_of(dram.size());
  if (found_.size() < tasks) found_.resize(tasks);
  for_parts(dram.size(), threads, [&](size_t task, size_t begin, size_t end) {
    Found& found = found_[task];
    found.unpinned = 0;
    found.parked.clear();
    for (size_t i = begin; i < end; ++i) {
      tier.directory.prefetch(dram[std::min(i + kAhead, end - 1)]);
      if (!SlotDirectory::unpin_uncounted(tier.directory[dram[i]])) continue;
      ++found.unpinned;
      if (!tier.awaits_disowning(dram[i])) found.parked.push_back(dram[i]);
    }
  });
  slots_.clear();
  for (const Found& found : std::span(found_).first(tasks)) {
    tier.directory.count_unpinned(found.unpinned);
    slots_.insert(slots_.end(), found.parked.begin(), found.parked.end());
  }
  if (tier.policy != nullptr) tier.policy->park_many(slots_, threads);
}

size_t HbmPlanner::tasks_of(size_t rows) {
  const size_t of_task = rows < kRowsOfThreads ? kRowsOfThreads : kRowsPerTask;
  return (rows + of_task - 1) / of_task;
}

// f(task, begin, end) for parts of [0, rows).
template <class F>
void HbmPlanner::for_parts(size_t rows, ThreadPool& threads, F f) {
  const size_t of_task = rows < kRowsOfThreads ? kRowsOfThreads : kRowsPerTask;
  threads.run(tasks_of(rows),
              [&](size_t task) { f(task, task * of_task, std::min((task + 1) * of_task, rows)); });
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
  const bool has_policy = hbm.policy != nullptr;  // nothing else reads marks
  const size_t end = range.first + range.count;
  for (size_t u = range.first; u < end; ++u) {
    hbm.prefetch_place(slots[std::min(u + 2 * kAhead, end - 1)]);
    if (const HbmTier::Place ahead = hbm.place(slots[std::min(u + kAhead, end - 1)]);
        ahead.is_on_device()) {
      hbm.directory.prefetch(ahead.slot());
      if (has_policy) hbm.directory.prefetch_mark(ahead.slot());
    }
    HbmTier::Place& place = hbm.place(slots[u]);
    if (place.is_none()) {
      found.missing.push_back(static_cast<uint32_t>(u));
    } else if (place.is_on_device()) {
      const SlotIndex s = place.slot();
      found.pinned += SlotDirectory::pin_uncounted(hbm.directory[s]);
      if (has_policy) hbm.directory.mark(s) = plan.acquired.mark_base + static_cast<uint32_t>(u);
      plan.places[u] = s.value;
      ++found.hits;
    } else {
      place.add_plan();
      found.in_dram.push_back(static_cast<uint32_t>(u));
    }
  }
}

// Tasks of consecutive ranges, small ones together.
template <class F>
void HbmPlanner::for_ranges(const Plan& plan, ThreadPool& threads, F f) {
  const std::vector<UniqueRange>& ranges = plan.acquired.ranges;
  if (found_.size() < ranges.size()) found_.resize(ranges.size());
  size_t all_rows = 0;
  for (const UniqueRange& range : ranges) all_rows += range.count;
  const size_t rows_per_task = all_rows < kRowsOfThreads ? kRowsOfThreads : kRowsPerTask;
  groups_.assign(1, 0);
  size_t rows = 0;
  for (size_t r = 0; r < ranges.size(); ++r) {
    rows += ranges[r].count;
    if (rows < rows_per_task && r + 1 < ranges.size()) continue;
    groups_.push_back(r + 1);
    rows = 0;
  }
  threads.run(groups_.size() - 1, [&](size_t group) {
    for (size_t r = groups_[group]; r < groups_[group + 1]; ++r) f(r);
  });
}

void HbmPlanner::find_all(Plan& plan, ThreadPool& threads) {
  const std::vector<UniqueRange>& ranges = plan.acquired.ranges;
  for_ranges(plan, threads, [&](size_t r) { find(plan, r); });
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

// So many slots, in slots_: free ones, then those of victims, whose rows are still in them. How
// many are free.
size_t HbmPlanner::choose_slots(HbmTier& hbm, size_t count) {
  const size_t free_slots = std::min<size_t>(count, hbm.directory.free_slots());
  slots_.clear();
  for (size_t i = 0; i < free_slots; ++i)
    slots_.push_back(hbm.directory.take(RowId(0), BlockAddress::none()));
  if (slots_.size() == count) return free_slots;
  // All at once: until it is told that rows leave, the policy knows that it has given their slots.
  hbm.policy->pop_victims(count - free_slots, slots_);
  TE_CHECK(slots_.size() == count);
  hbm.policy->evicted(std::span(slots_).subspan(free_slots));
  return free_slots;
}

// Missing rows [begin, end) get the slots chosen for them. By threads that work on different ones.
void HbmPlanner::replace(Plan& plan, LayoutId layout, size_t begin, size_t end, size_t free_slots,
                         Replaced& replaced) {
  const std::vector<uint32_t>& missing = missing_[layout.value];
  LayoutTier& tier = tiers_.layout(layout);
  HbmTier& hbm = *tier.hbm;
  HbmMoves& moves = plan.moves[layout.value];
  replaced = {};
  for (size_t i = begin; i < end; ++i) {
    const size_t ahead = std::min(i + kAhead, end - 1);
    hbm.prefetch(slots_[ahead]);
    hbm.directory.prefetch_mark(slots_[ahead]);
    const size_t near = std::min(i + kAhead / 2, end - 1);
    hbm.prefetch_place(plan.acquired.slots[missing[near]]);
    tier.directory.prefetch(plan.acquired.slots[missing[near]]);
    if (near >= free_slots) hbm.prefetch_place(hbm.dram_of[slots_[near].value]);
    const SlotIndex s = slots_[i];
    replaced.after = std::max(replaced.after, hbm.released_at[s.value]);
    if (i >= free_slots) {
      const SlotIndex before = hbm.dram_of[s.value];
      hbm.leave(s);
      if (hbm.directory[s].dirty != 0) {  // pinned in dram until it has come there
        replaced.spill_from.push_back(s);
        replaced.spill_to.push_back(before);
      } else {
        replaced.clean.push_back(before);
      }
    }
    const uint32_t u = missing[i];
    const SlotIndex dram = plan.acquired.slots[u];
    const uint8_t uses = uses_of(tier, dram);
    hbm.enter(s, plan.acquired.rows[u], dram);
    hbm.directory[s].frequency = uses;
    // Pinned also where nothing leaves dram: the budget may become smaller.
    replaced.pinned += SlotDirectory::pin_uncounted(tier.directory[dram]) ? 1 : 0;
    hbm.directory.mark(s) = plan.acquired.mark_base + u;
    plan.places[u] = s.value;
    moves.fill_from[i] = dram;
    moves.fill_to[i] = s;
  }
}

void HbmPlanner::replace_all(Plan& plan, LayoutId layout, size_t count, ThreadPool& threads) {
  LayoutTier& tier = tiers_.layout(layout);
  HbmTier& hbm = *tier.hbm;
  HbmMoves& moves = plan.moves[layout.value];
  const size_t free_slots = choose_slots(hbm, count);
  moves.fill_from.resize(count);
  moves.fill_to.resize(count);
  const size_t tasks = tasks_of(count);
  replaced_.resize(std::max(replaced_.size(), tasks));
  for_parts(count, threads, [&](size_t task, size_t begin, size_t end) {
    replace(plan, layout, begin, end, free_slots, replaced_[task]);
  });
  hbm.directory.count_pinned(static_cast<uint32_t>(count));
  const auto append = [](std::vector<SlotIndex>& to, const std::vector<SlotIndex>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  dram_.clear();
  for (const Replaced& replaced : std::span(replaced_).first(tasks)) {
    moves.after = std::max(moves.after, replaced.after);
    tier.directory.count_pinned(replaced.pinned);
    append(moves.spill_from, replaced.spill_from);
    append(moves.spill_to, replaced.spill_to);
    append(dram_, replaced.clean);
  }
  hbm.dirty_rows -= moves.spill_from.size();
  unsettled_ += moves.spill_from.size();
  stats_.rows_spilled += moves.spill_from.size();
  unpin_in_dram(layout, dram_, threads);
}

void HbmPlanner::place_missing(Plan& plan, LayoutId layout, ThreadPool& threads) {
  const std::vector<uint32_t>& missing = missing_[layout.value];
  if (missing.empty()) return;
  LayoutTier& tier = tiers_.layout(layout);
  HbmTier& hbm = *tier.hbm;
  HbmMoves& moves = plan.moves[layout.value];
  const size_t unused = hbm.slots() - hbm.directory.pinned();
  const size_t placed = std::min(missing.size(), unused);
  replace_all(plan, layout, placed, threads);
  if (hbm.policy != nullptr) hbm.policy->admit(moves.fill_to);
  for (size_t i = placed; i < missing.size(); ++i) {
    const SlotIndex dram = plan.acquired.slots[missing[i]];
    hbm.place(dram) = HbmTier::Place::in_dram(uses_of(tier, dram));
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
    place_missing(plan, LayoutId(static_cast<uint16_t>(l)), threads);
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

void HbmPlanner::release(Plan& plan, ThreadPool& threads) {
  if (!plan.is_staged) return;
  plan.is_staged = false;
  ++releases_;
  for_ranges(plan, threads, [&](size_t r) { unpin(plan, r); });
  parked_.resize(tiers_.layouts());
  for (auto& parked : parked_) parked.clear();
  for (size_t r = 0; r < plan.acquired.ranges.size(); ++r) {
    const LayoutId layout = plan.acquired.ranges[r].layout;
    tiers_.layout(layout).hbm->directory.count_unpinned(found_[r].unpinned);
    std::vector<SlotIndex>& parked = parked_[layout.value];
    parked.insert(parked.end(), found_[r].parked.begin(), found_[r].parked.end());
  }
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    EvictionPolicy* policy = tiers_.layout(LayoutId(static_cast<uint16_t>(l))).hbm->policy.get();
    if (policy != nullptr) policy->park_many(parked_[l], threads);
  }
}

// By threads that work on different ranges.
void HbmPlanner::unpin(Plan& plan, size_t r) {
  const UniqueRange& range = plan.acquired.ranges[r];
  Found& found = found_[r];
  found.parked.clear();
  found.unpinned = 0;
  HbmTier& hbm = *tiers_.layout(range.layout).hbm;
  const size_t end = range.first + range.count;
  for (size_t u = range.first; u < end; ++u) {
    const uint32_t ahead = plan.places[std::min(u + kAhead, end - 1)];
    if (ahead < hbm.slots()) hbm.prefetch_release(SlotIndex(ahead));
    const uint32_t place = plan.places[u];
    if (place >= hbm.slots()) {
      hbm.place(plan.acquired.slots[u]).remove_plan(hbm.policy->halvings());
      continue;
    }
    const SlotIndex s(place);
    hbm.released_at[s.value] = releases_;
    if (!SlotDirectory::unpin_uncounted(hbm.directory[s])) continue;
    ++found.unpinned;
    if (hbm.policy != nullptr) found.parked.push_back(s);
  }
}

void HbmPlanner::mark_dirty(const Plan& plan, std::span<const uint8_t> features,
                            ThreadPool& threads) {
  const std::vector<UniqueRange>& ranges = plan.acquired.ranges;
  for_ranges(plan, threads, [&](size_t r) {
    found_[r].dirtied = features[ranges[r].feature] != 0 ? mark_dirty(plan, ranges[r]) : 0;
  });
  for (size_t r = 0; r < ranges.size(); ++r) {
    LayoutTier& tier = tiers_.layout(ranges[r].layout);
    tier.hbm->dirty_rows += found_[r].dirtied;
    if (features[ranges[r].feature] == 0 || plan.in_dram[ranges[r].layout.value].empty()) continue;
    for (size_t u = ranges[r].first; u < ranges[r].first + ranges[r].count; ++u) {
      if (plan.places[u] >= tier.hbm->slots())
        tiers_.mark_dirty(ranges[r].layout, tier.directory[plan.acquired.slots[u]]);
    }
  }
}

// Rows of a range on the device; how many were clean. By threads that work on different ranges.
uint32_t HbmPlanner::mark_dirty(const Plan& plan, const UniqueRange& range) {
  HbmTier& hbm = *tiers_.layout(range.layout).hbm;
  uint32_t dirtied = 0;
  for (size_t u = range.first; u < range.first + range.count; ++u) {
    const uint32_t ahead = plan.places[std::min(u + kAhead, range.first + range.count - 1)];
    if (ahead < hbm.slots()) hbm.directory.prefetch(SlotIndex(ahead));
    if (plan.places[u] >= hbm.slots()) continue;
    uint8_t& dirty = hbm.directory[SlotIndex(plan.places[u])].dirty;
    dirtied += dirty == 0 ? 1 : 0;
    dirty = 1;
  }
  return dirtied;
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

void HbmPlanner::settle(LayoutId layout, std::span<const SlotIndex> dram, bool left,
                        ThreadPool& threads) {
  LayoutTier& tier = tiers_.layout(layout);
  TE_CHECK(unsettled_ >= dram.size());
  unsettled_ -= dram.size();
  for (size_t i = 0; i < dram.size() && tiers_.log() != nullptr; ++i) {
    tier.directory.prefetch(dram[std::min(i + kAhead, dram.size() - 1)]);
    tiers_.mark_dirty(layout, tier.directory[dram[i]]);
  }
  if (left) unpin_in_dram(layout, dram, threads);
}

void HbmPlanner::drop_unused(ThreadPool& threads) {
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
    unpin_in_dram(layout, dram_, threads);
  }
}

void HbmPlanner::take_stranded(LayoutId layout, size_t rows, std::vector<SlotIndex>& from,
                               std::vector<SlotIndex>& to) {
  LayoutTier& tier = tiers_.layout(layout);
  HbmTier& hbm = *tier.hbm;
  for (SlotIndex dram : tier.stranded) {
    if (from.size() == rows) return;
    if (!hbm.holds(dram)) continue;
    const SlotIndex s = hbm.place(dram).slot();
    if (hbm.directory[s].pins != 0 || !take_dirty(hbm, s)) continue;
    from.push_back(s);
    to.push_back(dram);
  }
}

void HbmPlanner::drop_stranded(ThreadPool& threads) {
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    const LayoutId layout(static_cast<uint16_t>(l));
    const std::vector<SlotIndex>& stranded = tiers_.layout(layout).stranded;
    if (!stranded.empty()) drop_unused(layout, stranded, threads);
  }
}

void HbmPlanner::drop_unused(LayoutId layout, std::span<const SlotIndex> dram,
                             ThreadPool& threads) {
  HbmTier& hbm = *tiers_.layout(layout).hbm;
  dram_.clear();
  for (SlotIndex d : dram) {
    if (!hbm.holds(d)) continue;
    const SlotIndex s = hbm.place(d).slot();
    if (hbm.directory[s].pins != 0 || hbm.directory[s].dirty != 0) continue;
    dram_.push_back(d);
    if (hbm.policy != nullptr) hbm.policy->evicted({&s, 1});
    hbm.release(s);
  }
  unpin_in_dram(layout, dram_, threads);
}

uint64_t HbmPlanner::dirty_rows() const {
  uint64_t rows = 0;
  for (size_t l = 0; l < tiers_.layouts() && tiers_.has_hbm(); ++l)
    rows += tiers_.layout(LayoutId(static_cast<uint16_t>(l))).hbm->dirty_rows;
  return rows;
}

}  // namespace te
