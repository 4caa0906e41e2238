// Tiers: where every row is. The location words, and per layout the slots, their bytes and the
// eviction policy, over the log. The state that planner, mover and executor share; the only place
// that knows both slots and blocks.
//
// Invariants: a row's location word names its slot while it has one; that slot's `home` is its live
// copy in the log, if any. A row without slot and block has its initial value. During
// Planner::acquire the words of rows that are being fetched hold provisional slot numbers; nothing
// else runs then. Thread-safety: none; the engine's mutex guards it. Ownership: owns arenas,
// directories, policies, log.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "base/types.h"
#include "cache/eviction_policy.h"
#include "cache/resident_rows.h"
#include "cache/slot_directory.h"
#include "log/log_store.h"
#include "log/row_index.h"
#include "rows/kernels.h"
#include "table/budget.h"
#include "table/config.h"
#include "table/hbm_tier.h"
#include "table/lookup_sample.h"

namespace te {

struct Table {
  TableConfig config;
  LayoutId layout;
  RowId first_row;
  PhiloxKey key;
  uint64_t step = 0;           // updates so far
  SlotIndex first_slot;        // where every row has a slot of its own: that of row 0
  uint64_t resident_rows = 0;  // likewise: rows that stand in theirs
};

struct LayoutTier {
  // `hbm_slots`: of the device that lie in front of those in dram, if that is this processor.
  LayoutTier(const RowLayout& row_layout, uint64_t rows, uint32_t slots_max, uint32_t stride_bytes,
             uint32_t hbm_slots);

  std::byte* data(SlotIndex s) const {
    return arena.data() + (uint64_t{hbm_slots_here} + s.value) * stride_bytes;
  }
  ArenaView view() const { return {data(SlotIndex(0)), stride_bytes, layout}; }
  // By the places of hbm_tier.h.
  ArenaView device_view() const { return {arena.data(), stride_bytes, layout}; }
  // Gives the memory of rows in slots [begin, end) back; and all there is about these slots.
  void discard(uint32_t begin, uint32_t end);
  void give_back(uint32_t begin, uint32_t end);

  // Whether a slot is still its row's own, in tables that had room for all rows before.
  bool is_own(SlotIndex s) const {
    return own_from != SlotIndex::none().value && s.value >= own_from;
  }
  // Likewise, and its row has not been used since: Tiers::disown will make it a candidate.
  bool awaits_disowning(SlotIndex s) const { return is_own(s) && directory.mark(s) < own_mark_end; }

  const RowLayout layout;
  const uint64_t rows;  // of all tables with this layout
  const uint32_t stride_bytes;
  const uint32_t hbm_slots_here;
  SlotDirectory directory;
  uint32_t own_from = SlotIndex::none().value;  // none: no slot is anybody's own
  uint32_t own_mark_end = 0;
  std::vector<SlotIndex> stranded;  // all that are (SlotDirectory::stranded), and some that were
  size_t rescue_next = 0;           // of them: where Mover::rescue goes on
  ReservedMemory arena;
  uint64_t dirty_rows = 0;
  std::unique_ptr<EvictionPolicy> policy;  // null: every row has room, nothing is ever evicted
  std::unique_ptr<HbmTier> hbm;            // null: no hbm tier
};

// The application's part of a store's metadata blob; empty if the blob is not one of ours.
std::string app_metadata_of(const std::string& blob);

class Tiers final : public RowOwner {
 public:
  // Checks the configuration, builds the tiers, creates or opens the store.
  static Result<std::unique_ptr<Tiers>> create(const EngineConfig& config);

  std::vector<Table>& tables() { return tables_; }
  size_t tables_count() const { return tables_.size(); }
  Table& table(TableId t) { return tables_[t.value]; }
  const Table& table(TableId t) const { return tables_[t.value]; }
  LayoutTier& layout(LayoutId l) { return *layouts_[l.value]; }
  LayoutTier& layout_of(TableId t) { return layout(table(t).layout); }
  size_t layouts() const { return layouts_.size(); }
  // What the store calls a layout: those that differ only in who has their slots are one there.
  LayoutId stored_layout(LayoutId l) const { return stored_layouts_[l.value]; }
  uint64_t total_rows() const { return total_rows_; }
  RowIndex& index() { return *index_; }
  // Location words, the store's list of what has changed that no index tells, the ids of batches to
  // come, the sample of past lookups, and what an hbm tier takes here: transfer buffers and all
  // about its slots.
  uint64_t metadata_bytes() const {
    return index_->memory_bytes() + changes_bytes_ + lookahead_bytes_ + LookupSample::kBytes +
           config_.pinned_bytes + hbm_directory_bytes_;
  }
  bool has_hbm() const { return config_.hbm_bytes != 0; }
  void set_lookahead_bytes(uint64_t bytes) { lookahead_bytes_ = bytes; }
  uint64_t lookahead_bytes() const { return lookahead_bytes_; }
  // What the slot limits were derived from: a growing index is charged a little ahead.
  uint64_t index_bytes_charged(uint64_t dram_bytes) const {
    return metadata_bytes() + (index_->is_direct() ? 0 : index_headroom_bytes(dram_bytes));
  }
  uint64_t index_bytes_charged() const { return index_bytes_charged(dram_target_bytes_); }
  // The budget; 0: every row may be in dram. A smaller one, the target, is reached bit by bit
  // (resizer.h, which sets these), and this is what it has come to.
  uint64_t dram_bytes() const { return dram_bytes_; }
  void set_dram_bytes(uint64_t bytes) { dram_bytes_ = bytes; }
  uint64_t dram_target_bytes() const { return dram_target_bytes_; }
  void set_dram_target_bytes(uint64_t bytes) { dram_target_bytes_ = bytes; }
  bool is_resizing() const { return is_resizing_; }
  void set_resizing(bool is_resizing) { is_resizing_ = is_resizing; }
  // The budget from which on no row ever leaves.
  uint64_t dram_bytes_for_all() const {
    return dram_bytes_for_all_rows(
        demands_, LookupSample::kBytes + config_.pinned_bytes + hbm_directory_bytes_);
  }
  // An error if a budget does not hold all shares, with a row of each other layout.
  Status check_shares(uint64_t dram_bytes) const;
  // What is charged to it at the present limits.
  uint64_t dram_bytes_charged(uint64_t index_bytes) const;
  LogStore* log() { return log_.get(); }
  const EngineConfig& config() const { return config_; }
  std::span<const LayoutDemand> demands() const { return demands_; }
  // Of a store of these tables at `path`.
  LogOptions log_options(const std::string& path) const;
  // Gives back the store and the memory of the arenas; nothing else may be called afterwards.
  void close();

  // Whether all rows fit. Then nothing is ever evicted, every row has a slot of its own, and only
  // rows that are not in theirs yet need their location word.
  bool every_row_fits() const { return every_row_fits_; }
  SlotIndex own_slot(const Table& table, RowId row) const {
    return SlotIndex(table.first_slot.value +
                     static_cast<uint32_t>(row.value - table.first_row.value));
  }
  // With every_row_fits: which rows stand in their slots.
  const ResidentRows& resident() const { return resident_; }
  // From now on rows may have to leave; no plan uses any. What slots hold is not touched here:
  // `disown` makes their rows candidates for eviction, so many slots at a call, and the others
  // free; false if there are no more to look at. `mark`: plans that come have higher ones.
  void begin_evicting(uint32_t mark);
  bool disown(LayoutId layout, uint32_t slots);
  // Gives a row without a slot one, clean and not pinned; there must be a free one.
  SlotIndex take_slot(TableId table, RowId row, BlockAddress home);
  // Frees a slot: its row is then in its home block, or was never written.
  void release_slot(LayoutId layout, SlotIndex s);

  // The table that a row belongs to.
  const Table& table_of(RowId row) const;
  TableId table_id_of(RowId row) const {
    return TableId(static_cast<uint32_t>(&table_of(row) - tables_.data()));
  }
  Table& table_of(RowId row) { return const_cast<Table&>(std::as_const(*this).table_of(row)); }
  // Writes the initial value of a row.
  void initialise(const Table& table, RowId row, std::byte* destination) const;
  // The slot's bytes are about to differ from those on ssd. In a store that is only read they are
  // simply given up with the slot (rows that a lookup renormalises).
  void mark_dirty(LayoutId layout, Slot& slot) {
    if (slot.dirty != 0 || log_ == nullptr || config_.ssd_read_only) return;
    slot.dirty = 1;
    ++layouts_[layout.value]->dirty_rows;
    if (slot.home.is_none()) return;
    log_->retire(stored_layout(layout), slot.home);
    slot.home = BlockAddress::none();
  }
  // What the store keeps beside rows: update counts and the application's text.
  std::string checkpoint_metadata() const;

  // Of the log, whose layouts are stored_layout's.
  bool is_live(LayoutId stored, RowId row, BlockAddress block) const override;
  uint64_t rows_without_copy(LayoutId stored) const override;
  void relocated(LayoutId stored, RowId row, BlockAddress from, BlockAddress to) override;
  void visit_rows(RowVisitor f) const override;

 private:
  explicit Tiers(const EngineConfig& config)
      : config_(config), dram_bytes_(config.dram_bytes), dram_target_bytes_(config.dram_bytes) {}
  Status build_tables();
  LayoutId layout_for(const TableConfig& config, std::vector<RowLayout>& row_layouts);
  Status build_layouts(std::span<const RowLayout> row_layouts);
  Status build_index();
  uint32_t slots_to_reserve(const LayoutDemand& demand, uint64_t slots, uint64_t hbm_slots) const;
  void set_limits();
  Status open_log();
  Status restore_metadata(const std::string& blob);

  const EngineConfig config_;
  std::vector<Table> tables_;
  std::vector<std::unique_ptr<LayoutTier>> layouts_;
  std::vector<LayoutDemand> demands_;
  std::vector<LayoutId> stored_layouts_;
  uint64_t total_rows_ = 0;
  uint64_t dram_bytes_;
  uint64_t dram_target_bytes_;
  bool is_resizing_ = false;
  bool every_row_fits_ = false;
  ResidentRows resident_;
  std::unique_ptr<RowIndex> index_;
  uint64_t changes_bytes_ = 0;
  uint64_t lookahead_bytes_ = 0;
  uint64_t hbm_directory_bytes_ = 0;
  std::unique_ptr<LogStore> log_;
};

}  // namespace te
