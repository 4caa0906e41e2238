#include "table/planner.h"

#include <algorithm>
#include <string>

#include "table/batch_check.h"

namespace te {
namespace {

// Slot numbers from here on stand for "the n-th fill of this acquisition".
constexpr uint32_t kProvisionalSlot = 0x60000000u;
// How many ids ahead the location word, and the slot behind it, are prefetched.
constexpr size_t kWordAhead = 32;
constexpr size_t kSlotAhead = 16;

// Outputs that are kept without a backward must not pin slots for ever (pins count to 65,535).
constexpr size_t kWaitingPlansMax = 4096;

template <class Id>
auto ids_of(const FeatureInput& input, const Table& table, size_t first) {
  const Id* ids = static_cast<const Id*>(input.ids);
  const uint64_t base = table.first_row.value;
  const int64_t padding = input.padding_id;
  return [=](size_t position) {
    const int64_t id = ids[position - first];
    return id == padding ? RowId::none() : RowId(base + static_cast<uint64_t>(id));
  };
}

// Where the rows of a batch are, by their location words.
class FoundSlots {
 public:
  FoundSlots(const RowIndex& index, const SlotDirectory& directory)
      : index_(index), directory_(directory) {}
  void prefetch_word(RowId row) const { index_.prefetch(row); }
  void prefetch_slot(RowId row) const {
    if (const SlotIndex s = find(row); !s.is_none()) directory_.prefetch(s);
  }
  SlotIndex find(RowId row) const {  // none: not in dram
    const LocationWord word = index_.get(row);
    return word.is_slot() ? word.slot_index() : SlotIndex::none();
  }

 private:
  const RowIndex& index_;
  const SlotDirectory& directory_;
};

// The same where every row has a slot of its own.
class OwnSlots {
 public:
  OwnSlots(const Tiers& tiers, TableId table, const SlotDirectory& directory)
      : tiers_(tiers), table_(tiers.table(table)), directory_(directory) {}
  void prefetch_word(RowId) const {}
  void prefetch_slot(RowId row) const { directory_.prefetch(tiers_.own_slot(table_, row)); }
  SlotIndex find(RowId row) const {
    return tiers_.resident().contains(row) ? tiers_.own_slot(table_, row) : SlotIndex::none();
  }

 private:
  const Tiers& tiers_;
  const Table& table_;
  const SlotDirectory& directory_;
};

}  // namespace

void Planner::begin(Acquisition& acquired, size_t positions) {
  if (++sequence_ == 0) restart_stamps();
  acquired.sequence = sequence_;
  acquired.ranges.clear();
  acquired.fills.clear();
  acquired.rows.clear();
  acquired.slots.clear();
  acquired.unique_of.resize(positions);
  acquired.hits = 0;
}

// After 2^32 plans the numbers start again at 1: no slot may carry a stamp from before.
void Planner::restart_stamps() {
  sequence_ = 1;
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    LayoutTier& tier = tiers_.layout(LayoutId(static_cast<uint16_t>(l)));
    slots_.clear();
    for (uint32_t i = 0; i < tier.directory.ever_used(); ++i) {
      Slot& slot = tier.directory[SlotIndex(i)];
      if (slot.row.is_none()) continue;
      slot.stamp = 0;
      if (slot.pins == 0) slots_.push_back(SlotIndex(i));
    }
    if (tier.policy == nullptr) continue;
    tier.policy->clear();
    tier.policy->park(slots_);
  }
}

template <class RowAt>
void Planner::acquire(TableId table, size_t first, size_t count, RowAt row_at,
                      Acquisition& acquired) {
  const SlotDirectory& directory = tiers_.layout_of(table).directory;
  if (tiers_.every_row_fits()) {
    acquire_with(OwnSlots(tiers_, table, directory), table, first, count, row_at, acquired);
  } else {
    acquire_with(FoundSlots(tiers_.index(), directory), table, first, count, row_at, acquired);
  }
}

template <class Slots, class RowAt>
void Planner::acquire_with(const Slots& slots, TableId table, size_t first, size_t count,
                           RowAt row_at, Acquisition& acquired) {
  const LayoutId layout = tiers_.table(table).layout;
  SlotDirectory& directory = tiers_.layout(layout).directory;
  size_t uniques = acquired.rows.size();
  const size_t unique_first = uniques;
  acquired.rows.resize(uniques + count, uniques);
  acquired.slots.resize(uniques + count, uniques);
  missing_positions_.clear();
  for (size_t i = first; i < first + count; ++i) {
    if (i + kWordAhead < first + count) {
      if (const RowId ahead = row_at(i + kWordAhead); !ahead.is_none()) slots.prefetch_word(ahead);
      if (const RowId ahead = row_at(i + kSlotAhead); !ahead.is_none()) slots.prefetch_slot(ahead);
    }
    const RowId row = row_at(i);
    if (row.is_none()) {
      acquired.unique_of[i] = kPaddingSlot;
      continue;
    }
    const SlotIndex s = slots.find(row);
    if (s.is_none()) {
      missing_positions_.push_back(i);
      continue;
    }
    Slot& slot = directory[s];
    if (slot.stamp != acquired.sequence) {
      slot.stamp = acquired.sequence;
      slot.unique = static_cast<uint32_t>(uniques);
      directory.pin(slot);
      acquired.rows[uniques] = row;
      acquired.slots[uniques++] = s;
    }
    acquired.unique_of[i] = slot.unique;
    ++acquired.hits;
  }
  acquired.rows.resize(uniques, uniques);
  acquired.slots.resize(uniques, uniques);
  if (!missing_positions_.empty()) dedupe_missing(table, row_at, acquired);
  acquired.ranges.push_back({table, layout, unique_first, acquired.rows.size() - unique_first});
}

void Planner::dedupe_missing(TableId table, FunctionRef<RowId(size_t)> row_at,
                             Acquisition& acquired) {
  RowIndex& index = tiers_.index();
  const size_t fills_first = acquired.fills.size();
  const LayoutId layout = tiers_.table(table).layout;
  for (size_t i : missing_positions_) {
    const RowId row = row_at(i);
    const LocationWord word = index.get(row);
    if (word.is_slot()) {
      acquired.unique_of[i] = acquired.fills[word.slot_index().value - kProvisionalSlot].unique;
      continue;
    }
    const auto unique = static_cast<uint32_t>(acquired.rows.size());
    const BlockAddress from = word.is_block() ? word.block_address() : BlockAddress::none();
    index.set(row, LocationWord::slot(
                       SlotIndex(kProvisionalSlot + static_cast<uint32_t>(acquired.fills.size()))));
    acquired.fills.push_back({row, SlotIndex::none(), from, layout, table, unique});
    acquired.rows.push_back(row);
    acquired.slots.push_back(SlotIndex::none());
    acquired.unique_of[i] = unique;
  }
  for (size_t i = fills_first; i < acquired.fills.size(); ++i) {
    const Fill& fill = acquired.fills[i];
    index.set(fill.row,
              fill.from.is_none() ? LocationWord::never_written() : LocationWord::block(fill.from));
  }
}

bool Planner::revoke_one() {
  Plan* plan = nullptr;
  if (!waiting_.empty()) {
    plan = waiting_.front();
    waiting_.pop_front();
  } else if (!ready_.empty()) {
    plan = ready_.back();
    ready_.pop_back();
  } else {
    return false;
  }
  unpin(plan->acquired);
  plan->state = Plan::State::kRevoked;
  ++stats_.plans_revoked;
  return true;
}

Status Planner::too_large(const Acquisition& acquired) const {
  const UniqueRange* largest = nullptr;
  std::vector<uint32_t> slots(tiers_.layouts(), 0);
  for (const UniqueRange& range : acquired.ranges) {
    slots[range.layout.value] += static_cast<uint32_t>(range.count);
    if (largest == nullptr || range.count > largest->count) largest = &range;
  }
  const uint64_t index_bytes = tiers_.index().memory_bytes();
  const uint64_t bytes = dram_bytes_for_slots(tiers_.demands(), slots, index_bytes, true);
  const uint64_t budget = tiers_.config().dram_bytes;
  const std::string index = index_bytes < budget / 4
                                ? ""
                                : "; the location words of all rows written so far take " +
                                      std::to_string(index_bytes) + " bytes";
  return Status(StatusCode::kBudgetExceeded,
                "table '" + tiers_.table(largest->table).config.name + "': this batch needs " +
                    std::to_string(largest->count) + " rows of it at once; all " +
                    std::to_string(acquired.rows.size()) + " rows of the batch take " +
                    std::to_string(bytes) + " bytes of dram, the budget is " +
                    std::to_string(budget) + ": raise dram or use a smaller batch" + index);
}

// Makes sure that every layout has free or unpinned slots for its missing rows.
Status Planner::reserve(std::span<const uint32_t> missing, const Acquisition& acquired) {
  std::vector<uint32_t> needed(missing.size());
  for (;;) {
    uint64_t most = 0;
    for (size_t l = 0; l < missing.size(); ++l) {
      const uint64_t slots =
          uint64_t{tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned()} +
          missing[l];
      most = std::max(most, slots);
      needed[l] = static_cast<uint32_t>(slots);
    }
    if (most < kProvisionalSlot) {
      auto room = mover_.make_room(needed);
      if (!room) return room.status();
      if (room.value()) return Status::ok();
    }
    if (!revoke_one()) return too_large(acquired);
  }
}

Status Planner::take_victims(LayoutId layout, size_t missing) {
  LayoutTier& tier = tiers_.layout(layout);
  const size_t free_slots = tier.directory.free_slots();
  if (missing <= free_slots) return Status::ok();
  slots_.clear();
  tier.policy->pop_victims(missing - free_slots, slots_);
  TE_CHECK(slots_.size() == missing - free_slots);
  Status spilled = mover_.spill(layout, slots_);
  if (!spilled) tier.policy->park(slots_);
  return spilled;
}

Status Planner::commit(Acquisition& acquired, bool may_repack) {
  std::vector<uint32_t> missing(tiers_.layouts(), 0);
  for (const Fill& fill : acquired.fills) ++missing[fill.layout.value];
  Status status = acquired.fills.empty() ? Status::ok() : reserve(missing, acquired);
  if (status.code() == StatusCode::kBudgetExceeded && may_repack) {
    unpin(acquired);
    return repack(acquired);
  }
  for (size_t l = 0; l < missing.size() && status.is_ok(); ++l)
    status = take_victims(LayoutId(static_cast<uint16_t>(l)), missing[l]);
  if (!status) {
    unpin(acquired);
    return status;
  }
  // Nothing below can fail. Blocks are looked up again: the reclaimer may have moved them
  // meanwhile.
  for (Fill& fill : acquired.fills) {
    LayoutTier& tier = tiers_.layout(fill.layout);
    const LocationWord word = tiers_.index().get(fill.row);
    fill.from = word.is_block() ? word.block_address() : BlockAddress::none();
    fill.slot = tiers_.take_slot(fill.table, fill.row, fill.from);
    Slot& slot = tier.directory[fill.slot];
    slot.stamp = acquired.sequence;
    slot.unique = fill.unique;
    tier.directory.pin(slot);
    acquired.slots[fill.unique] = fill.slot;
    if (tier.policy) tier.policy->admit({&fill.slot, 1});
  }
  return Status::ok();
}

void Planner::unpin(Acquisition& acquired) {
  for (const UniqueRange& range : acquired.ranges) {
    LayoutTier& tier = tiers_.layout(range.layout);
    slots_.clear();
    for (size_t u = range.first; u < range.first + range.count; ++u) {
      const SlotIndex s = acquired.slots[u];
      if (!s.is_none() && tier.directory.unpin(tier.directory[s])) slots_.push_back(s);
    }
    if (tier.policy) tier.policy->park(slots_);
  }
}

Status Planner::plan(std::span<const FeatureInput> features, bool will_update, Plan& plan) {
  TE_RETURN_IF_ERROR(check_ids(features, tiers_));
  TE_RETURN_IF_ERROR(lay_out_batch(features, tiers_, plan));
  begin(plan.acquired, plan.occurrences);
  for (size_t f = 0; f < features.size(); ++f) {
    FeaturePlan& planned = plan.features[f];
    const Table& table = tiers_.table(planned.table);
    const int64_t* bag_begin = plan.bag_begin.data() + planned.begin_first;
    const size_t first = planned.occurrence_first;
    // Ids behind the last bag (include_last_offset) belong to none.
    const auto used = static_cast<size_t>(bag_begin[planned.bags]);
    for (size_t i = used; i < planned.occurrences; ++i)
      plan.acquired.unique_of[first + i] = kPaddingSlot;
    if (features[f].ids_are_64) {
      acquire(planned.table, first, used, ids_of<int64_t>(features[f], table, first),
              plan.acquired);
    } else {
      acquire(planned.table, first, used, ids_of<int32_t>(features[f], table, first),
              plan.acquired);
    }
    planned.unique_first = plan.acquired.ranges.back().first;
    planned.uniques = plan.acquired.ranges.back().count;
  }
  TE_RETURN_IF_ERROR(commit(plan.acquired, true));
  plan.state = Plan::State::kPlanned;
  plan.will_update = will_update;
  finish_occurrences(plan);
  if (will_update) build_csr(plan);
  return Status::ok();
}

void Planner::count(const Plan& plan) {
  ++stats_.plans;
  stats_.lookups += plan.lookups;
  stats_.lookup_hits += plan.acquired.hits;
  stats_.unique_rows += plan.acquired.rows.size();
  stats_.missing_rows += plan.acquired.fills.size();
}

void Planner::finish_occurrences(Plan& plan) {
  plan.occurrence_slots.resize(plan.occurrences);
  plan.lookups = 0;
  for (size_t i = 0; i < plan.occurrences; ++i) {
    const uint32_t unique = plan.acquired.unique_of[i];
    plan.lookups += unique != kPaddingSlot;
    plan.occurrence_slots[i] =
        unique == kPaddingSlot ? kPaddingSlot : plan.acquired.slots[unique].value;
  }
}

void Planner::build_csr(Plan& plan) {
  const size_t uniques = plan.acquired.rows.size();
  plan.csr_begin.resize(uniques + plan.features.size());
  plan.csr_occurrences.resize(plan.occurrences);
  plan.csr_bags.resize(plan.occurrences);
  plan.rows_in_table.resize(uniques);
  plan.bag_scale.resize(plan.bags);
  uint32_t filled = 0;
  for (size_t f = 0; f < plan.features.size(); ++f) {
    const FeaturePlan& feature = plan.features[f];
    const Table& table = tiers_.table(feature.table);
    const uint32_t* unique_of = plan.acquired.unique_of.data() + feature.occurrence_first;
    csr_next_.assign(feature.uniques, 0);
    for (size_t i = 0; i < feature.occurrences; ++i) {
      if (unique_of[i] != kPaddingSlot) ++csr_next_[unique_of[i] - feature.unique_first];
    }
    uint32_t* begin = plan.csr_begin.data() + feature.unique_first + f;
    for (size_t u = 0; u < feature.uniques; ++u) {
      begin[u] = filled;
      filled += csr_next_[u];
      csr_next_[u] = begin[u];
      plan.rows_in_table[feature.unique_first + u] =
          plan.acquired.rows[feature.unique_first + u].value - table.first_row.value;
    }
    begin[feature.uniques] = filled;
    const int64_t* bag_begin = plan.bag_begin.data() + feature.begin_first;
    for (size_t b = 0; b < feature.bags; ++b) {
      uint32_t size = 0;
      for (auto i = static_cast<size_t>(bag_begin[b]); i < static_cast<size_t>(bag_begin[b + 1]);
           ++i) {
        if (unique_of[i] == kPaddingSlot) continue;
        const uint32_t at = csr_next_[unique_of[i] - feature.unique_first]++;
        plan.csr_occurrences[at] = static_cast<uint32_t>(i);
        plan.csr_bags[at] = static_cast<uint32_t>(b);
        ++size;
      }
      plan.bag_scale[feature.bag_first + b] = size == 0 ? 0.0f : 1.0f / static_cast<float>(size);
    }
  }
}

Status Planner::place_again(Acquisition& acquired) {
  Acquisition again;
  begin(again, acquired.rows.size());
  for (const UniqueRange& range : acquired.ranges) {
    acquire(
        range.table, range.first, range.count, [&](size_t i) { return acquired.rows[i]; }, again);
  }
  TE_RETURN_IF_ERROR(commit(again, false));
  std::vector<uint32_t> position_of(acquired.rows.size());
  for (uint32_t u = 0; u < acquired.rows.size(); ++u) {
    position_of[again.unique_of[u]] = u;
    acquired.slots[u] = again.slots[again.unique_of[u]];
  }
  acquired.sequence = again.sequence;
  acquired.fills = std::move(again.fills);
  for (Fill& fill : acquired.fills) fill.unique = position_of[fill.unique];
  return Status::ok();
}

Status Planner::repack(Acquisition& acquired) {
  std::vector<uint32_t> needed;
  for (size_t l = 0; l < tiers_.layouts(); ++l)
    needed.push_back(tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned());
  for (const UniqueRange& range : acquired.ranges)
    needed[range.layout.value] += static_cast<uint32_t>(range.count);
  auto room = mover_.make_room(needed);
  if (!room) return room.status();
  return room.value() ? place_again(acquired) : too_large(acquired);
}

Status Planner::reacquire(Plan& plan) {
  TE_CHECK(plan.state == Plan::State::kRevoked);
  Status placed = place_again(plan.acquired);
  if (placed.code() == StatusCode::kBudgetExceeded) placed = repack(plan.acquired);
  TE_RETURN_IF_ERROR(std::move(placed));
  for (size_t i = 0; i < plan.occurrences; ++i) {
    const uint32_t unique = plan.acquired.unique_of[i];
    if (unique != kPaddingSlot) plan.occurrence_slots[i] = plan.acquired.slots[unique].value;
  }
  plan.state = Plan::State::kPlanned;
  return Status::ok();
}

Status Planner::make_way(TableId table) {
  const LayoutTier& tier = tiers_.layout_of(table);
  if (tier.policy == nullptr) return Status::ok();  // every row has a slot of its own
  const SlotDirectory& directory = tier.directory;
  while (directory.pinned() >= directory.limit()) {
    std::vector<uint32_t> needed;
    for (size_t l = 0; l < tiers_.layouts(); ++l)
      needed.push_back(tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned());
    ++needed[tiers_.table(table).layout.value];
    auto room = mover_.make_room(needed);
    if (!room) return room.status();
    if (room.value() || revoke_one()) continue;
    return Status(StatusCode::kBudgetExceeded,
                  "table '" + tiers_.table(table).config.name + "': all " +
                      std::to_string(directory.limit()) +
                      " rows that fit in dram belong to batches in flight; the budget is " +
                      std::to_string(tiers_.config().dram_bytes) + " bytes");
  }
  return Status::ok();
}

void Planner::abandon(Plan& plan) {
  Acquisition& acquired = plan.acquired;
  for (const Fill& fill : acquired.fills) {
    LayoutTier& tier = tiers_.layout(fill.layout);
    tier.directory.unpin(tier.directory[fill.slot]);  // and not parked: the row leaves at once
    acquired.slots[fill.unique] = SlotIndex::none();
    tiers_.release_slot(fill.layout, fill.slot);
  }
  unpin(acquired);
  plan.state = Plan::State::kReleased;
}

void Planner::count_resident(const Plan& plan) {
  ++stats_.plans;
  stats_.lookups += plan.lookups;
  stats_.lookup_hits += plan.lookups;
}

void Planner::ready(Plan& plan) {
  plan.state = Plan::State::kReady;
  ready_.push_back(&plan);
}

void Planner::wait(Plan& plan) {
  std::erase(ready_, &plan);
  plan.state = Plan::State::kWaiting;
  waiting_.push_back(&plan);
  if (waiting_.size() > kWaitingPlansMax) revoke_one();
}

void Planner::release(Plan& plan) {
  if (plan.state == Plan::State::kWaiting) std::erase(waiting_, &plan);
  if (plan.state == Plan::State::kReady) std::erase(ready_, &plan);
  if (plan.state != Plan::State::kRevoked && plan.state != Plan::State::kReleased)
    unpin(plan.acquired);
  plan.state = Plan::State::kReleased;
}

}  // namespace te
