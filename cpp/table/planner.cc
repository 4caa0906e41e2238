#include "table/planner.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <utility>

#include "cache/row_hash.h"
#include "table/batch_check.h"
#include "table/threads.h"

namespace te {
namespace {

// Outputs that are kept without a backward must not pin slots for ever (pins count to 65,535).
constexpr size_t kWaitingPlansMax = 4096;
constexpr size_t kSlotAhead = 16;  // prefetched
// What batches cost for the lookup sample, in rough lookups that are pooled without a plan (1 to 10
// ns): the call, a lookup that is planned; and to watch, beside one a row, a batch and a row that
// is sampled.
constexpr uint64_t kBatchWork = 1024;
constexpr uint64_t kPlannedWork = 8;
constexpr uint64_t kBatchCost = 128;
constexpr uint64_t kSampledCost = 32;

}  // namespace

// Numbers for the marks of so many rows.
uint32_t Planner::take_marks(size_t rows) {
  if (rows > std::numeric_limits<uint32_t>::max() - mark_next_) restart_marks();
  return std::exchange(mark_next_, mark_next_ + static_cast<uint32_t>(rows));
}

// The numbers start again: no slot may carry a mark from before.
void Planner::restart_marks() {
  mark_next_ = 1;
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    LayoutTier& tier = tiers_.layout(LayoutId(static_cast<uint16_t>(l)));
    forget_marks(tier.directory, tier.policy.get(), tier.own_from);
    tier.own_mark_end = mark_next_;
    if (tier.hbm == nullptr) continue;
    forget_marks(tier.hbm->directory, tier.hbm->policy.get(), SlotIndex::none().value);
  }
}

// Those of slots below `end` become candidates anew.
void Planner::forget_marks(SlotDirectory& directory, EvictionPolicy* policy, uint32_t end) {
  slots_.clear();
  for (uint32_t i = 0; i < directory.ever_used(); ++i) {
    const SlotIndex s(i);
    if (directory[s].row.is_none()) continue;  // its mark is the directory's
    directory.mark(s) = 0;
    if (directory[s].pins == 0 && i < end) slots_.push_back(s);
  }
  if (policy == nullptr) return;
  policy->clear();
  policy->park(slots_);
}

void Planner::revoke_all() {
  while (revoke_one()) {
  }
}

bool Planner::revoke_one() {
  Plan* plan = nullptr;
  if (!waiting_.empty()) {
    plan = waiting_.front();
    waiting_.erase(waiting_.begin());
  } else if (!ready_.empty()) {
    plan = ready_.back();
    ready_.pop_back();
  } else {
    return false;
  }
  hbm_.release(*plan, thread_pool());
  unpin(plan->acquired);
  plan->state = Plan::State::kRevoked;
  ++stats_.plans_revoked;
  return true;
}

uint64_t Planner::bytes_for(const Acquisition& acquired) const {
  std::vector<uint32_t> slots(tiers_.layouts(), 0);
  for (const UniqueRange& range : acquired.ranges)
    slots[range.layout.value] += static_cast<uint32_t>(range.count);
  return dram_bytes_for_slots(tiers_.demands(), slots, tiers_.metadata_bytes(), true);
}

Status Planner::too_large(const Acquisition& acquired) const {
  TableId largest;
  size_t largest_rows = 0;
  for (const UniqueRange& range : acquired.ranges) {
    if (largest_rows >= range.before + range.count) continue;
    largest_rows = range.before + range.count;
    largest = range.table;
  }
  const uint64_t index_bytes = tiers_.metadata_bytes() - LookupSample::kBytes;
  const uint64_t bytes = bytes_for(acquired);
  const uint64_t budget = tiers_.dram_target_bytes();
  const std::string index = index_bytes < budget / 4
                                ? ""
                                : "; location words and changes of all rows written so far take " +
                                      std::to_string(index_bytes) + " bytes";
  return Status(StatusCode::kBudgetExceeded,
                "table '" + tiers_.table(largest).config.name + "': this batch needs " +
                    std::to_string(largest_rows) + " rows of it at once; all " +
                    std::to_string(acquired.uniques) + " rows of the batch take " +
                    std::to_string(bytes) + " bytes of dram, the budget is " +
                    std::to_string(budget) + ": raise dram or use a smaller batch" + index);
}

// Makes sure that every layout has free or unpinned slots for its missing rows.
Status Planner::reserve(std::span<const uint32_t> missing, const Acquisition& acquired,
                        Pressure pressure) {
  std::vector<uint32_t>& needed = needed_;
  needed.resize(missing.size());
  for (;;) {
    uint64_t most = 0;
    for (size_t l = 0; l < missing.size(); ++l) {
      const uint64_t slots =
          uint64_t{tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned()} +
          missing[l];
      most = std::max(most, slots);
      needed[l] = static_cast<uint32_t>(slots);
    }
    if (most < RowFinder::kProvisionalSlot) {
      auto room = mover_.make_room(needed, false);
      if (!room) return room.status();
      if (room.value()) return Status::ok();
    }
    if (pressure == Pressure::kRefuse || !revoke_one()) return too_large(acquired);
  }
}

Status Planner::take_victims(LayoutId layout, size_t missing) {
  LayoutTier& tier = tiers_.layout(layout);
  const size_t free_slots = tier.directory.free_slots();
  if (missing <= free_slots) return Status::ok();
  slots_.clear();
  tier.policy->pop_victims(missing - free_slots, slots_);
  TE_CHECK(slots_.size() == missing - free_slots);
  return spill(layout);
}

Status Planner::spill(LayoutId layout) {
  LayoutTier& tier = tiers_.layout(layout);
  rows_.clear();
  for (SlotIndex s : slots_) rows_.push_back(tier.directory[s].row);
  Status spilled = mover_.spill(layout, slots_);
  if (spilled) {
    lookahead_.left(rows_);
  } else {
    tier.policy->park(slots_);
  }
  return spilled;
}

// As many as are used before the rows that would leave for them. So no row is read that would not
// be read otherwise (Cao, Felten, Karlin, Li, "A Study of Integrated Prefetching and Caching
// Strategies", SIGMETRICS 1995: do no harm), and theirs are read for nothing.
Status Planner::piggyback(Plan& plan) {
  const std::span<const Lookahead::Companion> all = lookahead_.companions(plan);
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    const LayoutId layout = all[begin].layout;
    while (end < all.size() && all[end].layout == layout) ++end;
    if (tiers_.layout(layout).policy == nullptr) continue;  // all of them have room anyway
    Status done = piggyback(layout, all.subspan(begin, end - begin), plan);
    if (done.code() == StatusCode::kNoSpace) break;  // a later batch says so, if it needs space
    TE_RETURN_IF_ERROR(std::move(done));
  }
  return Status::ok();
}

Status Planner::piggyback(LayoutId layout, std::span<const Lookahead::Companion> rows, Plan& plan) {
  LayoutTier& tier = tiers_.layout(layout);
  const uint32_t mark = take_marks(rows.size());
  size_t count = std::min<size_t>(tier.directory.free_slots(), rows.size());
  slots_.clear();
  size_t unexpected = 0;  // victims of no known use, which come first
  for (; count < rows.size(); ++count) {
    const uint32_t next_use = tier.policy->victim_next_use();
    if (rows[count].batch >= next_use) break;
    tier.policy->pop_victims(1, slots_);
    unexpected += next_use == EvictionPolicy::kNoKnownUse;
  }
  std::sort(
      slots_.begin(), slots_.begin() + static_cast<ptrdiff_t>(unexpected),
      [&](SlotIndex a, SlotIndex b) { return tier.directory.mark(a) < tier.directory.mark(b); });
  TE_RETURN_IF_ERROR(spill(layout));
  slots_.clear();
  for (size_t i = 0; i < count; ++i) {
    Fill fill;
    fill.row = rows[i].row;
    // The reclaimer may have made room for the victims, and moved the row.
    fill.from = tiers_.index().get(fill.row).block_address();
    fill.layout = layout;
    fill.table = tiers_.table_id_of(fill.row);
    fill.slot = tiers_.take_slot(fill.table, fill.row, fill.from);
    tier.directory.mark(fill.slot) = mark + static_cast<uint32_t>(i);
    tier.directory.pin(tier.directory[fill.slot]);
    slots_.push_back(fill.slot);
    plan.piggybacked.push_back(fill);
    plan.piggybacked_for.push_back(rows[i].batch);
  }
  tier.policy->admit(slots_);
  stats_.piggybacked_rows += count;
  return Status::ok();
}

void Planner::let_go_of_piggybacked(Plan& plan) {
  for (size_t i = 0; i < plan.piggybacked.size(); ++i) {
    const Fill& fill = plan.piggybacked[i];
    LayoutTier& tier = tiers_.layout(fill.layout);
    if (!tier.directory.unpin(tier.directory[fill.slot])) continue;  // a later plan has it
    if (lookahead_.is_over(plan.piggybacked_for[i])) {
      tier.policy->park({&fill.slot, 1});
    } else {
      tier.policy->expect({&fill.slot, 1}, {&plan.piggybacked_for[i], 1});
    }
  }
  plan.piggybacked.clear();
  plan.piggybacked_for.clear();
}

Status Planner::commit(Acquisition& acquired, Pressure pressure, bool may_repack) {
  if (acquired.fills.empty()) return Status::ok();
  std::vector<uint32_t>& missing = missing_;
  missing.assign(tiers_.layouts(), 0);
  for (const Fill& fill : acquired.fills) ++missing[fill.layout.value];
  Status status = reserve(missing, acquired, pressure);
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
    tier.directory.mark(fill.slot) = acquired.mark_base + fill.unique;
    acquired.slots[fill.unique] = fill.slot;
    if (tier.policy == nullptr) continue;
    tier.directory.pin(tier.directory[fill.slot]);
    tier.policy->admit({&fill.slot, 1});
  }
  return Status::ok();
}

void Planner::unpin(Acquisition& acquired) {
  if (tiers_.every_row_fits()) return;  // nothing is ever evicted, so nothing was pinned
  for (const UniqueRange& range : acquired.ranges) {
    LayoutTier& tier = tiers_.layout(range.layout);
    slots_.clear();
    on_device_.clear();
    const size_t end = range.first + range.count;
    for (size_t u = range.first; u < end; ++u) {
      const SlotIndex ahead = acquired.slots[std::min(u + kSlotAhead, end - 1)];
      if (!ahead.is_none()) tier.directory.prefetch(ahead);
      const SlotIndex s = acquired.slots[u];
      if (s.is_none()) continue;
      if (tier.directory.unpin(tier.directory[s])) {
        if (!tier.awaits_disowning(s)) slots_.push_back(s);
      } else if (tier.hbm != nullptr && tier.hbm->holds(s)) {
        on_device_.push_back(s);
      }
    }
    tier.policy->park(slots_);
    tier.policy->used(on_device_);
  }
}

Status Planner::plan(std::span<const FeatureInput> features, bool will_update, Plan& plan,
                     ThreadPool& threads, Pressure pressure) {
  TE_RETURN_IF_ERROR(lay_out_batch(features, tiers_, plan));
  const uint32_t mark_base = plan.acquired.mark_base = take_marks(plan.occurrences);
  TE_RETURN_IF_ERROR(finder_.find(features, will_update, plan, threads));
  // A batch that is let in while the budget becomes smaller may need its slots when it is.
  if (tiers_.is_resizing() && bytes_for(plan.acquired) > tiers_.dram_target_bytes()) {
    unpin(plan.acquired);
    return too_large(plan.acquired);
  }
  TE_RETURN_IF_ERROR(commit(plan.acquired, pressure, pressure == Pressure::kRevokePlans));
  if (plan.acquired.mark_base != mark_base) follow_slots(plan);  // repacked
  plan.state = Plan::State::kPlanned;
  finder_.finish(plan, threads);
  if (plan.window_batch != 0) {
    lookahead_.note_first_uses(plan);
    if (Status done = piggyback(plan); !done) {
      abandon(plan);
      return done;
    }
  }
  return Status::ok();
}

void Planner::note(Plan& plan) {
  note(plan, cost_of(plan, plan.acquired.uniques), kBatchWork + kPlannedWork * plan.lookups);
}

void Planner::note(Plan& plan, uint64_t cost, uint64_t work) {
  if (std::exchange(plan.is_noted, true)) return;
  if (!plan.is_watched) return sample_.pass(work);
  sample_.begin_batch();
  for (const SampledRange& range : plan.sampled_ranges)
    sample_.note(plan.sampled.span().subspan(range.first, range.count));
  sample_.end_batch(cost);
}

uint64_t Planner::cost_of(const Plan& plan, size_t hashed) {
  return kBatchCost + hashed + kSampledCost * sampled_rows(plan);
}

size_t Planner::sampled_rows(const Plan& plan) {
  size_t rows = 0;
  if (!plan.is_watched) return rows;
  for (const SampledRange& range : plan.sampled_ranges) rows += range.count;
  return rows;
}

void Planner::count(Plan& plan) {
  note(plan);
  ++stats_.plans;
  stats_.lookups += plan.lookups;
  stats_.lookup_hits += plan.acquired.hits;
  stats_.unique_rows += plan.acquired.uniques;
  stats_.missing_rows += plan.acquired.fills.size();
}

// Rows that have a slot are pinned, the others become fills; then as any batch. Where this fails,
// the rows have no slots.
Status Planner::place_again(Acquisition& acquired) {
  acquired.mark_base = take_marks(acquired.unique_of.size());
  acquired.fills.clear();
  for (const UniqueRange& range : acquired.ranges) {
    SlotDirectory& directory = tiers_.layout(range.layout).directory;
    for (size_t u = range.first; u < range.first + range.count; ++u) {
      const LocationWord word = tiers_.index().get(acquired.rows[u]);
      if (word.is_slot()) {
        acquired.slots[u] = word.slot_index();
        directory.mark(acquired.slots[u]) = acquired.mark_base + static_cast<uint32_t>(u);
        directory.pin(directory[acquired.slots[u]]);
      } else {
        acquired.slots[u] = SlotIndex::none();
        acquired.fills.push_back({acquired.rows[u], SlotIndex::none(), BlockAddress::none(),
                                  range.layout, range.table, static_cast<uint32_t>(u)});
      }
    }
  }
  return commit(acquired, Pressure::kRevokePlans, false);
}

// The slots of all occurrences, where rows have got other slots.
void Planner::follow_slots(Plan& plan) {
  for (size_t i = 0; i < plan.occurrences; ++i) {
    const uint32_t unique = plan.acquired.unique_of[i];
    if (unique != kPaddingSlot) plan.occurrence_slots[i] = plan.acquired.slots[unique].value;
  }
}

Status Planner::repack(Acquisition& acquired) {
  std::vector<uint32_t> needed;
  for (size_t l = 0; l < tiers_.layouts(); ++l)
    needed.push_back(tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned());
  for (const UniqueRange& range : acquired.ranges)
    needed[range.layout.value] += static_cast<uint32_t>(range.count);
  auto room = mover_.make_room(needed, true);
  if (!room) return room.status();
  return room.value() ? place_again(acquired) : too_large(acquired);
}

Status Planner::reacquire(Plan& plan) {
  TE_CHECK(plan.state == Plan::State::kRevoked);
  Status placed = place_again(plan.acquired);
  if (placed.code() == StatusCode::kBudgetExceeded) placed = repack(plan.acquired);
  TE_RETURN_IF_ERROR(std::move(placed));
  follow_slots(plan);
  plan.state = Plan::State::kPlanned;
  return Status::ok();
}

Status Planner::make_way(TableId table) {
  const LayoutTier& tier = tiers_.layout_of(table);
  if (tier.policy == nullptr) return Status::ok();  // every row has a slot of its own
  const SlotDirectory& directory = tier.directory;
  bool from_shares = false;
  while (directory.pinned() >= directory.limit()) {
    std::vector<uint32_t> needed;
    for (size_t l = 0; l < tiers_.layouts(); ++l)
      needed.push_back(tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned());
    ++needed[tiers_.table(table).layout.value];
    auto room = mover_.make_room(needed, from_shares);
    if (!room) return room.status();
    if (room.value() || revoke_one() || !std::exchange(from_shares, true)) continue;
    return Status(StatusCode::kBudgetExceeded,
                  "table '" + tiers_.table(table).config.name + "': all " +
                      std::to_string(directory.limit()) +
                      " rows that fit in dram belong to batches in flight; the budget is " +
                      std::to_string(tiers_.dram_target_bytes()) + " bytes");
  }
  return Status::ok();
}

void Planner::abandon(Plan& plan) {
  Acquisition& acquired = plan.acquired;
  for (const Fill& fill : acquired.fills) {
    LayoutTier& tier = tiers_.layout(fill.layout);
    // Not parked: the row leaves at once.
    if (tier.policy != nullptr) tier.directory.unpin(tier.directory[fill.slot]);
    acquired.slots[fill.unique] = SlotIndex::none();
    tiers_.release_slot(fill.layout, fill.slot);
  }
  for (const Fill& fill : plan.piggybacked) {
    SlotDirectory& directory = tiers_.layout(fill.layout).directory;
    directory.unpin(directory[fill.slot]);
    tiers_.release_slot(fill.layout, fill.slot);
  }
  plan.piggybacked.clear();
  plan.piggybacked_for.clear();
  unpin(acquired);
  plan.state = Plan::State::kReleased;
}

// Those sampled rows stay that come for the first time.
void Planner::drop_repeats(Plan& plan) {
  const size_t places = std::bit_ceil(2 * sampled_rows(plan) + 1);
  seen_.resize(places);
  std::fill_n(seen_.data(), places, RowId::none());
  const auto was_seen = [&](RowId row) {
    size_t place = row_hash(row) & (places - 1);
    while (!seen_[place].is_none() && seen_[place] != row) place = (place + 1) & (places - 1);
    return std::exchange(seen_[place], row) == row;
  };
  for (SampledRange& range : plan.sampled_ranges) {
    RowId* const rows = plan.sampled.data() + range.first;
    range.count = static_cast<size_t>(std::remove_if(rows, rows + range.count, was_seen) - rows);
  }
}

void Planner::count_resident(Plan& plan) {
  const uint64_t cost = cost_of(plan, plan.lookups);
  if (plan.is_watched) drop_repeats(plan);
  note(plan, cost, kBatchWork + plan.lookups);
  ++stats_.plans;
  stats_.lookups += plan.lookups;
  stats_.lookup_hits += plan.lookups;
}

void Planner::ready(Plan& plan) {
  let_go_of_piggybacked(plan);
  plan.state = Plan::State::kReady;
  ready_.push_back(&plan);
}

void Planner::wait(Plan& plan) {
  std::erase(ready_, &plan);
  plan.state = Plan::State::kWaiting;
  plan.was_pooled = true;
  leave_window(plan);
  waiting_.push_back(&plan);
  if (waiting_.size() > kWaitingPlansMax) revoke_one();
}

void Planner::leave_window(Plan& plan) {
  if (plan.window_batch == 0) return;
  if (plan.state != Plan::State::kRevoked && plan.state != Plan::State::kReleased)
    lookahead_.expect_next(plan);
  lookahead_.finish(std::exchange(plan.window_batch, 0));
}

void Planner::release(Plan& plan) {
  if (plan.state == Plan::State::kWaiting) std::erase(waiting_, &plan);
  if (plan.state == Plan::State::kReady) std::erase(ready_, &plan);
  leave_window(plan);
  hbm_.release(plan, thread_pool());
  if (plan.state != Plan::State::kRevoked && plan.state != Plan::State::kReleased)
    unpin(plan.acquired);
  plan.state = Plan::State::kReleased;
}

}  // namespace te
