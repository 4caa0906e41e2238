#include "table/tiers.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "log/block.h"
#include "log/change_list.h"
#include "log/log_options.h"

namespace te {
namespace {

// Slot numbers from here on are provisional: rows that a plan is about to fetch.
constexpr uint32_t kSlotsMax = 0x60000000u;
constexpr uint32_t kMetadataVersion = 1;
constexpr uint64_t kPlacesMax = uint64_t{1} << 31;  // where a batch finds rows: hbm_tier.h
constexpr uint32_t kDramAlignment = 4;
constexpr uint32_t kHbmAlignment = 16;  // a thread of the device loads 128 bits at once
// The list of rows that changed takes at most this part of the budget, with what sorting it takes.
constexpr uint64_t kBudgetPartOfChanges = 32;

// Block addresses have 31 bits, so a store beyond 8 TiB takes larger blocks.
uint32_t block_bytes_for(uint64_t store_bytes) {
  uint64_t block = 4096;
  while (store_bytes / block >= LocationWord::kBlocksMax) block *= 2;
  return static_cast<uint32_t>(block);
}

template <class T>
void put(std::string& blob, T value) {
  blob.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <class T>
bool get(const std::string& blob, size_t* at, T* value) {
  if (blob.size() - *at < sizeof(T)) return false;
  std::memcpy(value, blob.data() + *at, sizeof(T));
  *at += sizeof(T);
  return true;
}

Status invalid(std::string message) {
  return Status(StatusCode::kInvalidArgument, std::move(message));
}

}  // namespace

LayoutTier::LayoutTier(const RowLayout& row_layout, uint64_t row_count, uint32_t slots_max,
                       uint32_t bytes_per_slot, uint32_t hbm_slots)
    : layout(row_layout),
      rows(row_count),
      stride_bytes(bytes_per_slot),
      hbm_slots_here(hbm_slots),
      directory(slots_max),
      arena((uint64_t{std::max(slots_max, 1u)} + hbm_slots) * stride_bytes) {}

void LayoutTier::discard(uint32_t begin, uint32_t end) {
  arena.discard((uint64_t{hbm_slots_here} + begin) * stride_bytes,
                (uint64_t{hbm_slots_here} + end) * stride_bytes);
}

void LayoutTier::give_back(uint32_t begin, uint32_t end) {
  discard(begin, end);
  directory.discard(begin, end);
  if (hbm != nullptr) hbm->discard_places(begin, end);
}

Result<std::unique_ptr<Tiers>> Tiers::create(const EngineConfig& config) {
  std::unique_ptr<Tiers> tiers(new Tiers(config));
  TE_RETURN_IF_ERROR(tiers->build_tables());
  TE_RETURN_IF_ERROR(tiers->build_index());
  if (!config.ssd_path.empty()) TE_RETURN_IF_ERROR(tiers->open_log());
  tiers->set_limits();
  return tiers;
}

Status Tiers::build_tables() {
  if (config_.tables.empty()) return invalid("an engine needs at least one table");
  std::vector<RowLayout> row_layouts;  // as the store numbers them
  for (const TableConfig& config : config_.tables) {
    if (config.rows > kTableRowsMax)
      return invalid("table '" + config.name + "': " + std::to_string(config.rows) +
                     " rows; at most " + std::to_string(kTableRowsMax) + " are possible");
    if (config.dim == 0 || config.dim > kDimMax)
      return invalid("table '" + config.name + "': embedding_dim " + std::to_string(config.dim) +
                     " is not in [1, " + std::to_string(kDimMax) + "]");
    const LayoutId layout = layout_for(config, row_layouts);
    if (layout.is_none()) return invalid("more than 65,534 row layouts and shares of dram");
    uint64_t& layout_rows = demands_[layout.value].rows;
    tables_.push_back({config, layout, RowId(total_rows_),
                       philox_table_key(config.seed, config.name), 0,
                       SlotIndex(static_cast<uint32_t>(layout_rows)), 0});
    layout_rows += config.rows;
    total_rows_ += config.rows;
  }
  return build_layouts(row_layouts);
}

// Tables with a share have a layout each.
LayoutId Tiers::layout_for(const TableConfig& config, std::vector<RowLayout>& row_layouts) {
  const RowLayout row_layout{config.dim, config.dtype, config_.optimizer};
  const auto found = std::find(row_layouts.begin(), row_layouts.end(), row_layout);
  const LayoutId stored(static_cast<uint16_t>(found - row_layouts.begin()));
  const double share = config_.ssd_path.empty() ? 0 : config.dram_share;
  for (size_t l = 0; l < demands_.size() && share == 0; ++l) {
    if (demands_[l].share == 0 && stored_layouts_[l] == stored)
      return LayoutId(static_cast<uint16_t>(l));
  }
  if (demands_.size() >= std::numeric_limits<uint16_t>::max()) return LayoutId::none();
  if (found == row_layouts.end()) row_layouts.push_back(row_layout);
  const uint32_t alignment = has_hbm() ? kHbmAlignment : kDramAlignment;
  demands_.push_back({0, (row_layout.row_bytes() + alignment - 1) / alignment * alignment,
                      has_hbm() ? sizeof(HbmTier::Place) : 0, share});
  stored_layouts_.push_back(stored);
  return LayoutId(static_cast<uint16_t>(demands_.size() - 1));
}

Status Tiers::build_layouts(std::span<const RowLayout> row_layouts) {
  std::vector<uint32_t> hbm_slots(demands_.size(), 0);
  if (has_hbm()) {
    hbm_slots = hbm_slots_within(demands_, config_.hbm_bytes);
    if (hbm_slots.empty()) {
      uint64_t needed = 0;
      for (const LayoutDemand& demand : demands_) needed += demand.stride_bytes;
      return Status(StatusCode::kBudgetExceeded,
                    "hbm has to hold a row of each layout, " + std::to_string(needed) +
                        " bytes; the budget is " + std::to_string(config_.hbm_bytes));
    }
  }
  for (size_t i = 0; i < demands_.size(); ++i) {
    uint64_t slots_max = demands_[i].rows;
    if (config_.dram_bytes != 0)
      slots_max = std::min(slots_max, config_.dram_bytes / demands_[i].stride_bytes + 1);
    if (slots_max >= kSlotsMax)
      return invalid(std::to_string(slots_max) + " rows in dram; at most " +
                     std::to_string(kSlotsMax - 1) + " of one layout are possible");
    // A row on the device keeps its slot in dram.
    hbm_slots[i] = std::min(hbm_slots[i], static_cast<uint32_t>(slots_max));
    if (config_.dram_bytes != 0 && demands_[i].share != 0)
      hbm_slots[i] = std::min(hbm_slots[i], share_slots(demands_[i]));
    if (hbm_slots[i] + slots_max >= kPlacesMax)
      return invalid(std::to_string(hbm_slots[i]) + " rows in hbm and " +
                     std::to_string(slots_max) + " in dram; at most " +
                     std::to_string(kPlacesMax - 1) + " of one layout are possible");
    slots_max = slots_to_reserve(demands_[i], slots_max, hbm_slots[i]);
    layouts_.push_back(std::make_unique<LayoutTier>(
        row_layouts[stored_layouts_[i].value], demands_[i].rows, static_cast<uint32_t>(slots_max),
        static_cast<uint32_t>(demands_[i].stride_bytes), config_.hbm_on_host ? hbm_slots[i] : 0));
    if (!has_hbm()) continue;
    layouts_[i]->hbm = std::make_unique<HbmTier>(hbm_slots[i], static_cast<uint32_t>(slots_max),
                                                 demands_[i].rows, config_.policy);
    hbm_directory_bytes_ += uint64_t{hbm_slots[i]} * HbmTier::kBytesPerSlot;
  }
  return Status::ok();
}

// Address space for as many slots as the budget may ever grow to: what this machine's memory holds.
uint32_t Tiers::slots_to_reserve(const LayoutDemand& demand, uint64_t slots,
                                 uint64_t hbm_slots) const {
  const auto fewest = static_cast<uint32_t>(slots);
  if (config_.ssd_path.empty()) return fewest;
  const uint64_t memory =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t most = std::min<uint64_t>(kSlotsMax - 1, kPlacesMax - 1 - hbm_slots);
  const uint64_t wanted = std::min({demand.rows, memory / demand.stride_bytes, most});
  const uint64_t slot_bytes = demand.stride_bytes + demand.slot_overhead_bytes +
                              SlotDirectory::kBytesPerSlot + EvictionPolicy::kBytesPerSlotMax;
  const bool is_possible = ReservedMemory::can_reserve((wanted + hbm_slots) * slot_bytes);
  return is_possible ? std::max(fewest, static_cast<uint32_t>(wanted)) : fewest;
}

// The index, and a policy for each layout where rows may have to leave.
Status Tiers::build_index() {
  const uint64_t all_rows_bytes = dram_bytes_for_all();
  every_row_fits_ = config_.dram_bytes == 0 || all_rows_bytes <= config_.dram_bytes;
  if (!every_row_fits_ && config_.ssd_path.empty())
    return Status(StatusCode::kBudgetExceeded,
                  "the tables need " + std::to_string(all_rows_bytes) +
                      " bytes of dram, the budget is " + std::to_string(config_.dram_bytes) +
                      " and there is no ssd tier: raise dram to that, or give ssd=te.SSD(path)");
  const uint64_t direct_bytes_max = every_row_fits_
                                        ? std::numeric_limits<uint64_t>::max()
                                        : std::max<uint64_t>(config_.dram_bytes / 16, 1 << 20);
  index_ = std::make_unique<RowIndex>(total_rows_, direct_bytes_max);
  if (every_row_fits_) {
    resident_ = ResidentRows(total_rows_);
    return Status::ok();
  }
  for (auto& tier : layouts_) {
    tier->policy = make_eviction_policy(config_.policy, tier->directory, tier->rows);
    if (tier->policy == nullptr) return invalid("unknown eviction policy '" + config_.policy + "'");
  }
  return Status::ok();
}

// That the budget holds the shares, and one slot of each other layout.
Status Tiers::check_shares(uint64_t dram_bytes) const {
  std::vector<uint32_t> slots;
  const Table* largest = nullptr;
  uint64_t largest_bytes = 0;
  for (const LayoutDemand& demand : demands_) slots.push_back(std::max(share_slots(demand), 1u));
  for (const Table& table : tables_) {
    const LayoutDemand& demand = demands_[table.layout.value];
    const uint64_t bytes = share_slots(demand) * demand.stride_bytes;
    if (bytes <= largest_bytes) continue;
    largest = &table;
    largest_bytes = bytes;
  }
  const uint64_t needed =
      dram_bytes_for_slots(demands_, slots, index_bytes_charged(dram_bytes), true);
  if (largest == nullptr || needed <= dram_bytes) return Status::ok();
  char share[32];
  std::snprintf(share, sizeof(share), "%g", largest->config.dram_share);
  return Status(StatusCode::kBudgetExceeded,
                "table '" + largest->config.name + "': dram_share " + share +
                    " of its rows takes " + std::to_string(largest_bytes) +
                    " bytes; all shares and a row of each other layout take " +
                    std::to_string(needed) + " bytes of dram, the budget is " +
                    std::to_string(dram_bytes) + ": raise dram or lower the share");
}

// After the store is open: its rows' location words are part of the budget.
void Tiers::set_limits() {
  std::vector<uint32_t> limits;
  for (size_t i = 0; i < layouts_.size(); ++i) {
    LayoutTier& tier = *layouts_[i];
    if (tier.policy == nullptr) {
      tier.directory.set_limit(tier.directory.slots_max());
      continue;
    }
    if (limits.empty()) limits = slots_within(demands_, dram_bytes_, index_bytes_charged());
    const uint32_t limit = std::min(limits[i], tier.directory.slots_max());
    tier.directory.set_limit(limit);
    tier.policy->set_limit(limit);
  }
}

LogOptions Tiers::log_options(const std::string& path) const {
  LogOptions options;
  options.path = path;
  options.total_rows = total_rows_;
  uint64_t rows_bytes = 0;
  uint64_t run_bytes = 0;
  for (size_t l = 0; l < layouts_.size(); ++l) {
    const uint32_t row_bytes = layouts_[l]->layout.row_bytes();
    const RunShape shape = make_run_shape(options.block_bytes, row_bytes, total_rows_);
    rows_bytes += layouts_[l]->rows * shape.share_bytes;
    run_bytes = std::max<uint64_t>(run_bytes, shape.run_bytes);
    if (stored_layouts_[l].value == options.layout_row_bytes.size())
      options.layout_row_bytes.push_back(row_bytes);
  }
  const double grown_ratio = std::max(2.0, config_.ssd_space_bound_ratio + 0.5);
  const uint64_t store_bytes =
      config_.ssd_capacity_bytes != 0
          ? config_.ssd_capacity_bytes
          : static_cast<uint64_t>(static_cast<double>(rows_bytes) * grown_ratio);
  options.segment_bytes = choose_segment_bytes(store_bytes, run_bytes);
  options.block_bytes = block_bytes_for(store_bytes);
  return options;
}

Status Tiers::open_log() {
  LogOptions options = log_options(config_.ssd_path);
  options.capacity_bytes = config_.ssd_capacity_bytes;
  options.space_bound_ratio = config_.ssd_space_bound_ratio;
  options.rows_told_at_once = config_.ssd_rows_told_at_once;
  options.read_only = config_.ssd_read_only;
  options.newest = config_.ssd_newest;
  const uint64_t budget =
      config_.dram_bytes != 0 ? config_.dram_bytes : dram_bytes_for_all_rows(demands_);
  const uint64_t changes = ChangeList::changes_in(budget / kBudgetPartOfChanges);
  options.changes_max = static_cast<uint32_t>(std::clamp<uint64_t>(changes, 4096, 1u << 30));
  changes_bytes_ = ChangeList::bytes_of(options.changes_max);
  if (!every_row_fits_) TE_RETURN_IF_ERROR(check_shares(config_.dram_bytes));
  auto io = config_.make_io();
  if (!io) return io.status();
  if (!config_.ssd_resume) {
    auto log = LogStore::create(options, io.take());
    if (!log) return log.status();
    log_ = log.take();
    return log_->checkpoint(*this, checkpoint_metadata());
  }
  std::string blob;
  RowId misplaced;  // told as a row of another layout than its table's
  auto log = LogStore::open(
      options, io.take(),
      [&](LayoutId layout, RowId row, BlockAddress block) {
        if (stored_layout(table_of(row).layout) != layout) {
          misplaced = row;
          return false;
        }
        if (!index_->get(row).is_never_written()) return false;
        index_->set(row, LocationWord::block(block));
        return true;
      },
      &blob);
  if (!log) return log.status();
  if (!misplaced.is_none())
    return Status(StatusCode::kCorruption, config_.ssd_path + ": row " +
                                               std::to_string(misplaced.value) +
                                               " is stored with the layout of another table");
  log_ = log.take();
  TE_RETURN_IF_ERROR(restore_metadata(blob));
  if (!every_row_fits_) TE_RETURN_IF_ERROR(check_shares(config_.dram_bytes));
  return config_.ssd_newest ? log_->checkpoint(*this, checkpoint_metadata()) : Status::ok();
}

std::string app_metadata_of(const std::string& blob) {
  size_t at = 0;
  uint32_t version = 0;
  uint32_t tables = 0;
  if (!get(blob, &at, &version) || !get(blob, &at, &tables) || version != kMetadataVersion)
    return {};
  const uint64_t steps_bytes = uint64_t{tables} * sizeof(Table::step);
  return blob.size() - at < steps_bytes ? std::string() : blob.substr(at + steps_bytes);
}

std::string Tiers::checkpoint_metadata() const {
  std::string blob;
  put(blob, kMetadataVersion);
  put(blob, static_cast<uint32_t>(tables_.size()));
  for (const Table& table : tables_) put(blob, table.step);
  blob += config_.app_metadata;
  return blob;
}

Status Tiers::restore_metadata(const std::string& blob) {
  size_t at = 0;
  uint32_t version = 0;
  uint32_t tables = 0;
  bool whole = get(blob, &at, &version) && get(blob, &at, &tables);
  if (whole && version != kMetadataVersion)
    return invalid(config_.ssd_path + ": metadata version " + std::to_string(version) +
                   ", this release reads " + std::to_string(kMetadataVersion));
  if (whole && tables != tables_.size())
    return invalid(config_.ssd_path + ": the store has " + std::to_string(tables) +
                   " tables, the model " + std::to_string(tables_.size()));
  for (Table& table : tables_) whole = whole && get(blob, &at, &table.step);
  if (!whole) return Status(StatusCode::kCorruption, config_.ssd_path + ": metadata is cut short");
  return Status::ok();
}

void Tiers::close() {
  log_.reset();
  for (auto& tier : layouts_) tier->arena = ReservedMemory();
}

uint64_t Tiers::dram_bytes_charged(uint64_t index_bytes) const {
  std::vector<uint32_t> limits;
  for (const auto& tier : layouts_) limits.push_back(tier->directory.limit());
  return dram_bytes_for_slots(demands_, limits, index_bytes, !every_row_fits_);
}

void Tiers::begin_evicting(uint32_t mark) {
  every_row_fits_ = false;
  for (auto& tier : layouts_) {
    tier->directory.leave_own_slots();
    tier->own_from = 0;
    tier->own_mark_end = mark;
    tier->policy = make_eviction_policy(config_.policy, tier->directory, tier->rows);
    TE_CHECK(tier->policy != nullptr);
    tier->policy->set_limit(tier->directory.limit());
  }
}

bool Tiers::disown(LayoutId layout, uint32_t slots) {
  LayoutTier& tier = *layouts_[layout.value];
  SlotDirectory& directory = tier.directory;
  if (tier.own_from >= directory.limit()) {
    tier.own_from = SlotIndex::none().value;
    return false;
  }
  const uint32_t end = tier.own_from + std::min(slots, directory.limit() - tier.own_from);
  std::vector<SlotIndex> candidates;
  for (const Table& table : tables_) {
    if (table.layout != layout) continue;
    const uint64_t table_end = table.first_slot.value + table.config.rows;
    const uint64_t first = std::max(table.first_slot.value, tier.own_from);
    for (uint64_t i = first; i < std::min<uint64_t>(table_end, end); ++i) {
      const SlotIndex s(static_cast<uint32_t>(i));
      if (!resident_.contains(RowId(table.first_row.value + i - table.first_slot.value))) {
        directory.add_free(s);
      } else if (directory[s].pins == 0 && tier.awaits_disowning(s)) {
        candidates.push_back(s);
      }
    }
  }
  tier.policy->park(candidates);
  tier.own_from = end;
  return true;
}

SlotIndex Tiers::take_slot(TableId table_id, RowId row, BlockAddress home) {
  Table& table = tables_[table_id.value];
  LayoutTier& tier = *layouts_[table.layout.value];
  const SlotIndex own = own_slot(table, row);
  SlotIndex s;
  if (every_row_fits_ || tier.is_own(own)) {
    s = own;
    tier.directory.take_own(s, row, home);
    resident_.add(row);
    ++table.resident_rows;
  } else {
    s = tier.directory.take(row, home);
  }
  index_->set(row, LocationWord::slot(s));
  return s;
}

void Tiers::release_slot(LayoutId layout, SlotIndex s) {
  LayoutTier& tier = *layouts_[layout.value];
  const Slot& slot = tier.directory[s];
  index_->set(slot.row,
              slot.home.is_none() ? LocationWord::never_written() : LocationWord::block(slot.home));
  if (every_row_fits_ || tier.is_own(s)) {
    resident_.remove(slot.row);
    --table_of(slot.row).resident_rows;
    tier.directory.release_own(s);
  } else {
    tier.directory.release(s);
  }
}

const Table& Tiers::table_of(RowId row) const {
  auto after = std::upper_bound(tables_.begin(), tables_.end(), row,
                                [](RowId r, const Table& t) { return r < t.first_row; });
  return *(after - 1);
}

void Tiers::initialise(const Table& table, RowId row, std::byte* destination) const {
  const uint64_t in_table = row.value - table.first_row.value;
  InitSpec init = table.config.init;
  if (static_cast<int64_t>(in_table) == table.config.zero_row)
    init = {InitSpec::Kind::kConstant, 0, 0, init.state_value};
  const LayoutTier& tier = *layouts_[table.layout.value];
  kernels().initialise(tier.layout, init, table.key, in_table, destination);
}

bool Tiers::is_live(LayoutId, RowId row, BlockAddress block) const {
  const LocationWord word = index_->get(row);
  if (word.is_block()) return word.block_address() == block;
  if (!word.is_slot()) return false;
  return layouts_[table_of(row).layout.value]->directory[word.slot_index()].home == block;
}

uint64_t Tiers::rows_without_copy(LayoutId stored) const {
  uint64_t rows = 0;
  for (size_t l = 0; l < layouts_.size(); ++l)
    if (stored_layouts_[l] == stored) rows += layouts_[l]->dirty_rows;
  return rows;
}

void Tiers::relocated(LayoutId, RowId row, BlockAddress from, BlockAddress to) {
  const LocationWord word = index_->get(row);
  if (word.is_block()) {
    TE_CHECK(word.block_address() == from);
    index_->set(row, LocationWord::block(to));
  } else {
    layouts_[table_of(row).layout.value]->directory[word.slot_index()].home = to;
  }
}

void Tiers::visit_rows(RowVisitor f) const {
  auto table = tables_.begin();
  index_->visit([&](RowId row, LocationWord word) {
    while (table + 1 != tables_.end() && row >= (table + 1)->first_row) ++table;
    const BlockAddress block =
        word.is_block() ? word.block_address()
                        : layouts_[table->layout.value]->directory[word.slot_index()].home;
    if (!block.is_none()) f(stored_layout(table->layout), row, block);
  });
}

}  // namespace te
