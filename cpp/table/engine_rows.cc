// Engine: rows by their ids, outside of batches: reading, writing, updating, finding them.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "table/batch_check.h"
#include "table/engine_turn.h"
#include "table/threads.h"

namespace te {
namespace {

// One update of a huge input runs in batches of at most this many rows.
constexpr size_t kBatchRowsMax = 65536;
constexpr uint64_t kPieceRows = 1 << 20;  // of a walk over all rows

}  // namespace

Status Engine::check_row_ids(TableId table, std::span<const int64_t> ids) const {
  const FeatureInput input{.table = table, .ids = ids.data(), .ids_count = ids.size()};
  return check_ids({&input, 1}, *tiers_);
}

size_t Engine::rows_per_batch(TableId table) {
  const SlotDirectory& directory = tiers_->layout_of(table).directory;
  const size_t pinned = tiers_->every_row_fits() ? 0 : directory.pinned();
  size_t limit = directory.limit();
  if (tiers_->is_resizing()) {
    const std::vector<uint32_t> limits =
        slots_within(tiers_->demands(), tiers_->dram_target_bytes(), tiers_->index_bytes_charged());
    limit = std::min<size_t>(limit, limits[tiers_->table(table).layout.value]);
  }
  const size_t room = limit - std::min(limit, pinned);
  return std::clamp<size_t>(room / 2, 1, kBatchRowsMax);
}

Status Engine::read_rows(TableId table_id, std::span<const int64_t> ids, void* weights,
                         float* state) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_RETURN_IF_ERROR(check_row_ids(table_id, ids));
  TE_RETURN_IF_ERROR(check_newest_in_dram(table_id, ids));
  turn.quiet();
  const Table& table = tiers_->table(table_id);
  const RowLayout& layout = tiers_->layout(table.layout).layout;
  constexpr size_t kRows = 32768;
  std::vector<RowId> rows;
  std::vector<std::byte> bytes(std::min(kRows, ids.size()) * layout.row_bytes());
  for (size_t first = 0; first < ids.size(); first += kRows) {
    const size_t n = std::min(kRows, ids.size() - first);
    rows.clear();
    for (size_t i = 0; i < n; ++i)
      rows.push_back(RowId(table.first_row.value + static_cast<uint64_t>(ids[first + i])));
    TE_RETURN_IF_ERROR(mover_.copy_rows(table_id, rows, bytes.data()));
    for (size_t i = 0; i < n; ++i) {
      const std::byte* row = bytes.data() + i * layout.row_bytes();
      if (weights != nullptr)
        std::memcpy(static_cast<std::byte*>(weights) + (first + i) * layout.weight_bytes(), row,
                    layout.weight_bytes());
      if (state != nullptr && layout.state_floats() > 0)
        std::memcpy(state + (first + i) * layout.state_floats(), row + layout.state_offset_bytes(),
                    layout.state_floats() * sizeof(float));
    }
  }
  return Status::ok();
}

Status Engine::write_rows(TableId table_id, std::span<const int64_t> ids, const void* weights,
                          const float* state) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_writable());
  TE_RETURN_IF_ERROR(check_row_ids(table_id, ids));
  TE_RETURN_IF_ERROR(check_newest_in_dram(table_id, ids));
  turn.quiet();
  if (!ids.empty()) TE_RETURN_IF_ERROR(planner_.make_way(table_id));
  const Table& table = tiers_->table(table_id);
  LayoutTier& tier = tiers_->layout(table.layout);
  const RowLayout& layout = tier.layout;
  const bool overwrite = weights != nullptr && (state != nullptr || layout.state_floats() == 0);
  Plan& plan = plans_.take();
  for (size_t first = 0, n = 0; first < ids.size(); first += n) {
    n = std::min(rows_per_batch(table_id), ids.size() - first);
    const FeatureInput input{
        .table = table_id, .ids = ids.data() + first, .ids_count = n, .bag_size = n, .bags = 1};
    if (Status planned = plan_locked({&input, 1}, false, plan, overwrite, turn); !planned) {
      plans_.give_back(plan);
      return planned;
    }
    for (size_t i = 0; i < n; ++i) {
      const SlotIndex s(plan.occurrence_slots[i]);
      tiers_->mark_dirty(table.layout, tier.directory[s]);
      std::byte* row = tier.data(s);
      if (weights != nullptr) {
        std::memcpy(row,
                    static_cast<const std::byte*>(weights) + (first + i) * layout.weight_bytes(),
                    layout.weight_bytes());
        std::memset(row + layout.weight_bytes(), 0,
                    layout.state_offset_bytes() - layout.weight_bytes());
      }
      if (state != nullptr && layout.state_floats() > 0)
        std::memcpy(row + layout.state_offset_bytes(), state + (first + i) * layout.state_floats(),
                    layout.state_floats() * sizeof(float));
    }
    planner_.release(plan);
  }
  plans_.give_back(plan);
  return Status::ok();
}

Status Engine::apply_gradients(TableId table_id, std::span<const int64_t> ids,
                               const float* gradients, const Hyperparameters& hyper, bool continues,
                               size_t* applied) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_writable());
  TE_RETURN_IF_ERROR(check_row_ids(table_id, ids));
  TE_RETURN_IF_ERROR(check_newest_in_dram(table_id, ids));
  turn.quiet();
  if (!ids.empty()) TE_RETURN_IF_ERROR(planner_.make_way(table_id));
  Table& table = tiers_->table(table_id);
  if (ids.empty() && !continues) ++table.step;
  Plan& plan = plans_.take();
  for (size_t first = 0, n = 0; first < ids.size(); first += n) {
    n = std::min(rows_per_batch(table_id), ids.size() - first);
    const FeatureInput input{
        .table = table_id, .ids = ids.data() + first, .ids_count = n, .bag_size = n, .bags = 1};
    if (Status planned = plan_locked({&input, 1}, false, plan, false, turn); !planned) {
      plans_.give_back(plan);
      return planned;
    }
    // An update that is refused does not count.
    if (first == 0 && !continues) ++table.step;
    TE_CHECK(plan.acquired.uniques == n);  // ids are distinct
    scattered_.resize(n * table.config.dim);
    for (size_t i = 0; i < n; ++i)  // from input order to the order of unique rows
      std::memcpy(scattered_.data() + plan.acquired.unique_of[i] * size_t{table.config.dim},
                  gradients + (first + i) * table.config.dim, table.config.dim * sizeof(float));
    for (const UniqueRange& range : plan.acquired.ranges)
      executor_.apply(plan.acquired, range, scattered_.data() + range.first * table.config.dim,
                      hyper, thread_pool());
    planner_.release(plan);
    if (applied != nullptr) *applied = first + n;
  }
  plans_.give_back(plan);
  return Status::ok();
}

Result<size_t> Engine::known_rows(TableId table_id, int64_t first, std::span<int64_t> ids) const {
  std::lock_guard lock(mutex_);
  TE_RETURN_IF_ERROR(check_open());
  const Table& table = tiers_->table(table_id);
  const uint64_t base = table.first_row.value;
  const uint64_t end = base + table.config.rows;
  size_t count = 0;
  // Piece by piece, as a visitor cannot stop.
  for (uint64_t at = base + static_cast<uint64_t>(first); at < end && count < ids.size();) {
    const uint64_t piece_end = std::min(end, at + kPieceRows);
    tiers_->index().visit(RowId(at), RowId(piece_end), [&](RowId row, LocationWord) {
      if (count < ids.size()) ids[count++] = static_cast<int64_t>(row.value - base);
    });
    at = piece_end;
  }
  return count;
}

Status Engine::locate(TableId table, std::span<const int64_t> ids, Tier* tiers) const {
  std::lock_guard lock(mutex_);
  TE_RETURN_IF_ERROR(check_open());
  TE_RETURN_IF_ERROR(check_row_ids(table, ids));
  const uint64_t base = tiers_->table(table).first_row.value;
  const HbmTier* hbm = tiers_->layout_of(table).hbm.get();
  for (int64_t id : ids) {
    const LocationWord word = tiers_->index().get(RowId(base + static_cast<uint64_t>(id)));
    *tiers = word.is_slot() ? Tier::kDram : word.is_block() ? Tier::kSsd : Tier::kNone;
    if (*tiers == Tier::kDram && hbm != nullptr && hbm->holds(word.slot_index()))
      *tiers = Tier::kHbm;
    ++tiers;
  }
  return Status::ok();
}

}  // namespace te
