#include "table/mover.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace te {
namespace {

// Initial values are computed in parallel, this many rows a task.
constexpr size_t kFreshRowsPerTask = 128;
// Where the disk is full: what is reclaimed before the next try; several segments, at least.
constexpr uint32_t kChunksPerTry = 1024;

}  // namespace

Status Mover::append_dirty(LayoutId layout, std::span<const SlotIndex> dirty) {
  if (dirty.empty()) return Status::ok();
  LayoutTier& tier = tiers_.layout(layout);
  rows_.clear();
  data_.clear();
  for (SlotIndex s : dirty) {
    rows_.push_back(tier.directory[s].row);
    data_.push_back(tier.data(s));
  }
  blocks_.resize(dirty.size());
  LogStore& log = *tiers_.log();
  const LayoutId stored = tiers_.stored_layout(layout);
  Status put = log.put_many(stored, rows_, data_, blocks_);
  while (put.code() == StatusCode::kNoSpace) {  // as long as the reclaimer finds some
    const uint64_t before = log.stats().segments_reclaimed;
    TE_RETURN_IF_ERROR(log.reclaim(tiers_, kChunksPerTry));
    if (log.stats().segments_reclaimed == before) break;
    put = log.put_many(stored, rows_, data_, blocks_);
  }
  TE_RETURN_IF_ERROR(std::move(put));
  for (size_t i = 0; i < dirty.size(); ++i) {
    Slot& slot = tier.directory[dirty[i]];
    slot.home = blocks_[i];
    slot.dirty = 0;
    --tier.dirty_rows;
  }
  return Status::ok();
}

Status Mover::spill(LayoutId layout, std::span<const SlotIndex> victims) {
  LayoutTier& tier = tiers_.layout(layout);
  dirty_.clear();
  for (SlotIndex s : victims) {
    if (tier.directory[s].dirty != 0) dirty_.push_back(s);
  }
  TE_RETURN_IF_ERROR(append_dirty(layout, dirty_));
  stats_.spills_written += dirty_.size();
  stats_.spills_dropped += victims.size() - dirty_.size();
  tier.policy->evicted(victims);
  for (SlotIndex s : victims) tiers_.release_slot(layout, s);
  return Status::ok();
}

void Mover::initialise(std::span<const Fill* const> fills, ThreadPool& threads) const {
  const size_t tasks = (fills.size() + kFreshRowsPerTask - 1) / kFreshRowsPerTask;
  threads.run(tasks, [&](size_t task) {
    const size_t last = std::min((task + 1) * kFreshRowsPerTask, fills.size());
    for (size_t i = task * kFreshRowsPerTask; i < last; ++i) {
      const Fill& fill = *fills[i];
      tiers_.initialise(tiers_.table(fill.table), fill.row,
                        tiers_.layout(fill.layout).data(fill.slot));
    }
  });
}

// The slot, and not the fill, knows the row's block: it may have moved since it was planned.
Status Mover::fill(std::span<Plan* const> plans, bool overwrite, ThreadPool& threads,
                   std::unique_lock<std::mutex>& owner_lock) {
  fresh_.clear();
  stored_.resize(tiers_.layouts());
  for (auto& stored : stored_) stored.clear();
  const auto sort = [&](const std::vector<Fill>& fills) {
    for (const Fill& fill : fills) {
      if (tiers_.layout(fill.layout).directory[fill.slot].home.is_none()) {
        fresh_.push_back(&fill);
      } else if (!overwrite) {
        stored_[tiers_.stored_layout(fill.layout).value].push_back(&fill);
      }
    }
  };
  for (const Plan* plan : plans) {
    sort(plan->acquired.fills);
    sort(plan->piggybacked);
  }
  stats_.fills_initialised += fresh_.size();
  if (!fresh_.empty()) {
    owner_lock.unlock();
    initialise(fresh_, threads);
    owner_lock.lock();
  }
  for (size_t l = 0; l < stored_.size(); ++l) {
    if (stored_[l].empty()) continue;
    reads_.clear();
    for (const Fill* fill : stored_[l]) {
      const LayoutTier& tier = tiers_.layout(fill->layout);
      reads_.push_back({fill->row, tier.directory[fill->slot].home, tier.data(fill->slot)});
    }
    stats_.fills_read += reads_.size();
    TE_RETURN_IF_ERROR(
        tiers_.log()->get_many(LayoutId(static_cast<uint16_t>(l)), reads_, &owner_lock));
  }
  return Status::ok();
}

Status Mover::copy_rows(TableId table_id, std::span<const RowId> rows, std::byte* destination) {
  const Table& table = tiers_.table(table_id);
  LayoutTier& tier = tiers_.layout(table.layout);
  const uint32_t row_bytes = tier.layout.row_bytes();
  std::vector<RowRead> reads;
  for (RowId row : rows) {
    const LocationWord word = tiers_.index().get(row);
    if (word.is_slot()) {
      std::memcpy(destination, tier.data(word.slot_index()), row_bytes);
    } else if (word.is_block()) {
      reads.push_back({row, word.block_address(), destination});
    } else {
      tiers_.initialise(table, row, destination);
    }
    destination += row_bytes;
  }
  if (reads.empty()) return Status::ok();
  return tiers_.log()->get_many(tiers_.stored_layout(table.layout), reads);
}

Status Mover::clean() {
  constexpr size_t kBatchRows = 4096;
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    const LayoutId layout(static_cast<uint16_t>(l));
    SlotDirectory& directory = tiers_.layout(layout).directory;
    dirty_.clear();
    for (uint32_t i = 0; i < directory.ever_used(); ++i) {
      const Slot& slot = directory[SlotIndex(i)];
      if (!slot.row.is_none() && slot.dirty != 0) dirty_.push_back(SlotIndex(i));
    }
    for (size_t i = 0; i < dirty_.size(); i += kBatchRows) {
      const size_t n = std::min(kBatchRows, dirty_.size() - i);
      TE_RETURN_IF_ERROR(append_dirty(layout, std::span(dirty_).subspan(i, n)));
      if (tiers_.log() != nullptr) tiers_.log()->write_urgent_changes();
    }
  }
  return Status::ok();
}

Status Mover::copy_slots(LogStore& store) {
  constexpr size_t kBatchRows = 4096;
  TE_CHECK(tiers_.log() == nullptr);
  Status status;
  LayoutId layout;
  const auto put = [&] {
    if (rows_.empty() || !status) return;
    blocks_.resize(rows_.size());
    status = store.put_many(tiers_.stored_layout(layout), rows_, data_, blocks_);
    for (size_t i = 0; i < rows_.size() && status.is_ok(); ++i) {
      const LocationWord word = tiers_.index().get(rows_[i]);
      tiers_.layout(layout).directory[word.slot_index()].home = blocks_[i];
    }
    rows_.clear();
    data_.clear();
  };
  rows_.clear();
  data_.clear();
  for (const Table& table : tiers_.tables()) {
    put();
    layout = table.layout;
    const RowId end(table.first_row.value + table.config.rows);
    tiers_.index().visit(table.first_row, end, [&](RowId row, LocationWord word) {
      rows_.push_back(row);
      data_.push_back(tiers_.layout(layout).data(word.slot_index()));
      if (rows_.size() == kBatchRows) put();
    });
  }
  put();
  return status;
}

void Mover::forget_homes() {
  tiers_.index().visit([&](RowId row, LocationWord word) {
    tiers_.layout(tiers_.table_of(row).layout).directory[word.slot_index()].home =
        BlockAddress::none();
  });
}

// Rows in slots above the limit that are not pinned get free slots below it.
void Mover::move_down(LayoutTier& tier, std::span<const SlotIndex> from) {
  SlotDirectory& directory = tier.directory;
  moved_.clear();
  for (SlotIndex s : from) {
    const Slot old = directory[s];
    const SlotIndex to = directory.take(old.row, old.home);
    TE_CHECK(to.value < directory.limit() && old.pins == 0);
    Slot& slot = directory[to];
    directory.mark(to) = directory.mark(s);
    slot.dirty = old.dirty;
    slot.frequency = old.frequency;
    std::memcpy(tier.data(to), tier.data(s), tier.stride_bytes);
    tiers_.index().set(old.row, LocationWord::slot(to));
    moved_.push_back(to);
  }
  for (SlotIndex s : from) directory.release(s);
  tier.policy->moved(from, moved_);
}

Status Mover::lower_limit(LayoutId layout, uint32_t limit) {
  LayoutTier& tier = tiers_.layout(layout);
  SlotDirectory& directory = tier.directory;
  limit = std::max({limit, directory.pinned(), 1u});
  if (directory.used() > limit) {
    victims_.clear();
    tier.policy->pop_victims(directory.used() - limit, victims_);
    if (Status spilled = spill(layout, victims_); !spilled) {
      tier.policy->park(victims_);
      return spilled;
    }
    limit = std::max(limit, directory.used());
  }
  const uint32_t old_limit = directory.limit();
  if (limit >= old_limit) return Status::ok();
  const uint32_t end = std::min(old_limit, directory.ever_used());
  directory.set_limit(limit);
  leaving_.clear();
  // Those that a higher limit has made ordinary slots since may be stranded once more.
  std::erase_if(tier.stranded, [&](SlotIndex s) { return s.value < old_limit; });
  tier.rescue_next = 0;
  const size_t stranded_before = tier.stranded.size();
  for (uint32_t i = limit; i < end; ++i) {
    const Slot& slot = directory[SlotIndex(i)];
    if (!slot.row.is_none()) (slot.pins == 0 ? leaving_ : tier.stranded).push_back(SlotIndex(i));
  }
  move_down(tier, leaving_);
  uint32_t empty_from = limit;
  for (size_t i = stranded_before; i < tier.stranded.size(); ++i) {
    tier.discard(empty_from, tier.stranded[i].value);
    empty_from = tier.stranded[i].value + 1;
  }
  tier.discard(empty_from, old_limit);
  return Status::ok();
}

bool Mover::rescue(LayoutId layout, size_t rows) {
  LayoutTier& tier = tiers_.layout(layout);
  std::vector<SlotIndex>& stranded = tier.stranded;
  leaving_.clear();
  for (size_t n = std::min(rows, stranded.size()); n > 0; --n) {
    if (tier.rescue_next >= stranded.size()) tier.rescue_next = 0;
    const SlotIndex s = stranded[tier.rescue_next];
    const Slot& slot = tier.directory[s];
    const bool has_left = s.value < tier.directory.limit() || slot.row.is_none();
    if (!has_left && slot.pins != 0) {
      ++tier.rescue_next;
      continue;
    }
    if (!has_left) leaving_.push_back(s);
    stranded[tier.rescue_next] = stranded.back();
    stranded.pop_back();
    if (stranded.empty()) break;
  }
  move_down(tier, leaving_);
  if (tier.directory.stranded() == 0) stranded.clear();
  return stranded.empty();
}

Status Mover::set_limit(LayoutId layout, uint32_t limit) {
  LayoutTier& tier = tiers_.layout(layout);
  SlotDirectory& directory = tier.directory;
  if (limit < directory.limit()) {
    uint32_t pinned_end = 0;
    for (uint32_t i = std::min(directory.ever_used(), directory.limit());
         i-- > limit && pinned_end == 0;) {
      if (directory[SlotIndex(i)].pins != 0) pinned_end = i + 1;
    }
    TE_RETURN_IF_ERROR(lower_limit(layout, std::max(limit, pinned_end)));
  } else {
    directory.set_limit(limit);
  }
  // While the budget changes its limit is that of the largest size so far.
  if (!tiers_.is_resizing()) tier.policy->set_limit(directory.limit());
  return Status::ok();
}

Result<bool> Mover::make_room(std::span<const uint32_t> needed, bool from_shares) {
  std::vector<uint32_t> limits;
  bool enough = true;
  for (size_t l = 0; l < needed.size(); ++l) {
    const SlotDirectory& directory = tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory;
    if (needed[l] > directory.slots_max()) return false;
    enough &= needed[l] <= directory.limit();
    limits.push_back(std::max(needed[l], directory.limit()));
  }
  if (enough) return true;
  const uint64_t index_bytes = tiers_.metadata_bytes();
  const auto over_bytes = [&] {
    const uint64_t wanted = dram_bytes_for_slots(tiers_.demands(), limits, index_bytes, true);
    const uint64_t budget = tiers_.dram_bytes();
    return wanted > budget ? wanted - budget : 0;
  };
  const auto take = [&](bool takes_shares) {
    for (size_t l = 0; l < limits.size(); ++l) {
      const uint64_t over = over_bytes();
      if (over == 0) return;
      const LayoutDemand& demand = tiers_.demands()[l];
      const uint32_t share = takes_shares ? 0 : share_slots(demand);
      const uint32_t to_give = limits[l] - std::min(limits[l], std::max({needed[l], share, 1u}));
      limits[l] -= std::min<uint64_t>(over / demand.stride_bytes + 1, to_give);
    }
  };
  take(false);
  if (from_shares) take(true);
  if (over_bytes() > 0) return false;
  return set_limits(limits);
}

Result<bool> Mover::set_limits(std::span<const uint32_t> limits) {
  bool lends = false;
  for (size_t l = 0; l < limits.size(); ++l) lends |= limits[l] < share_slots(tiers_.demands()[l]);
  has_lent_shares_ |= lends;
  bool reached = true;
  for (size_t l = 0; l < limits.size(); ++l) {
    const LayoutId layout(static_cast<uint16_t>(l));
    const SlotDirectory& directory = tiers_.layout(layout).directory;
    if (limits[l] >= directory.limit()) continue;
    TE_RETURN_IF_ERROR(set_limit(layout, limits[l]));
    reached &= directory.limit() == limits[l];
  }
  if (!reached) return false;
  for (size_t l = 0; l < limits.size(); ++l) {
    const LayoutId layout(static_cast<uint16_t>(l));
    if (limits[l] > tiers_.layout(layout).directory.limit())
      TE_RETURN_IF_ERROR(set_limit(layout, limits[l]));
  }
  has_lent_shares_ = lends;
  return true;
}

}  // namespace te
