#include "table/lookahead.h"

#include <algorithm>
#include <tuple>

namespace te {
namespace {

// The window takes at most this part of the budget, or so much where the budget is small.
constexpr uint64_t kBudgetPart = 8;
constexpr uint64_t kSmallWindowBytes = 1 << 20;
constexpr size_t kWordAhead = 32;  // prefetched
constexpr size_t kRowAhead = 8;    // likewise

template <class Id>
void append_rows(const FeatureInput& feature, const Table& table, std::vector<RowId>& rows) {
  const auto* ids = static_cast<const Id*>(feature.ids);
  for (size_t i = 0; i < feature.ids_count; ++i) {
    const auto id = static_cast<int64_t>(ids[i]);
    const bool is_row = static_cast<uint64_t>(id) < table.config.rows && id != feature.padding_id;
    rows.push_back(is_row ? RowId(table.first_row.value + static_cast<uint64_t>(id))
                          : RowId::none());
  }
}

}  // namespace

bool Lookahead::is_useful() const {
  if (tiers_.config().policy != "lookahead") return false;
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    const LayoutTier& tier = tiers_.layout(LayoutId(static_cast<uint16_t>(l)));
    if (tier.policy != nullptr || (tier.hbm != nullptr && tier.hbm->policy != nullptr)) return true;
  }
  return false;
}

bool Lookahead::has_room(size_t lookups) const {
  const uint64_t dram_bytes = tiers_.dram_bytes();
  const uint64_t budget = dram_bytes != 0 ? dram_bytes : tiers_.config().hbm_bytes;
  const uint64_t allowed = std::max<uint64_t>(budget / kBudgetPart, kSmallWindowBytes);
  const size_t all = window_.lookups() + lookups;
  return LookaheadWindow::memory_bytes_for(all) + WantedBlocks::memory_bytes_for(all) <= allowed;
}

uint32_t Lookahead::push(std::span<const FeatureInput> features) {
  rows_.clear();
  for (const FeatureInput& feature : features) {
    const Table& table = tiers_.table(feature.table);
    feature.ids_are_64 ? append_rows<int64_t>(feature, table, rows_)
                       : append_rows<int32_t>(feature, table, rows_);
  }
  first_uses_.clear();
  const uint32_t batch = window_.push(rows_, first_uses_);
  expect_first_uses(batch);
  charge();
  return batch;
}

// Rows come table by table, so those of a layout are told in a few calls. The others are on ssd, or
// have never been written.
void Lookahead::expect_first_uses(uint32_t batch) {
  slots_.clear();
  LayoutId layout;
  const auto tell = [&] {
    if (slots_.empty()) return;
    batches_.assign(slots_.size(), batch);
    expect(layout, slots_, batches_);
    slots_.clear();
  };
  const Table* table = nullptr;
  for (size_t i = 0; i < first_uses_.size(); ++i) {
    const size_t ahead = std::min(i + kWordAhead, first_uses_.size() - 1);
    tiers_.index().prefetch(window_.row_of(first_uses_[ahead]));
    const RowId row = window_.row_of(first_uses_[i]);
    if (table == nullptr || row < table->first_row ||
        row.value >= table->first_row.value + table->config.rows) {
      table = &tiers_.table_of(row);
      tell();
      layout = table->layout;
    }
    const LocationWord word = tiers_.index().get(row);
    if (word.is_slot()) slots_.push_back(word.slot_index());
    if (word.is_block()) wanted_.add(word.block_address(), first_uses_[i]);
  }
  tell();
}

// The rows in slots of a layout in dram, and those of them that are on the device.
void Lookahead::expect(LayoutId layout, std::span<const SlotIndex> slots,
                       std::span<const uint32_t> batches) {
  LayoutTier& tier = tiers_.layout(layout);
  if (tier.policy != nullptr) tier.policy->expect(slots, batches);
  if (tier.hbm == nullptr || tier.hbm->policy == nullptr) return;
  device_slots_.clear();
  device_batches_.clear();
  for (size_t i = 0; i < slots.size(); ++i) {
    tier.hbm->prefetch_place(slots[std::min(i + kRowAhead, slots.size() - 1)]);
    const HbmTier::Place place = tier.hbm->place(slots[i]);
    if (!place.is_on_device()) continue;
    device_slots_.push_back(place.slot());
    device_batches_.push_back(batches[i]);
  }
  tier.hbm->policy->expect(device_slots_, device_batches_);
}

void Lookahead::left(std::span<const RowId> rows) {
  if (window_.lookups() == 0) return;
  for (size_t i = 0; i < rows.size(); ++i) {
    window_.prefetch(rows[std::min(i + kRowAhead, rows.size() - 1)]);
    const LookaheadWindow::Use use = window_.last_use(rows[i]);
    if (use == LookaheadWindow::kNoUse) continue;
    const LocationWord word = tiers_.index().get(rows[i]);
    if (word.is_block()) wanted_.add(word.block_address(), use);
  }
  charge();
}

std::span<const Lookahead::Companion> Lookahead::companions(const Plan& plan) {
  companions_.clear();
  if (wanted_.is_empty()) return companions_;
  blocks_.clear();
  for (const Fill& fill : plan.acquired.fills) {
    if (!fill.from.is_none()) blocks_.push_back(fill.from);
  }
  std::sort(blocks_.begin(), blocks_.end());
  blocks_.erase(std::unique(blocks_.begin(), blocks_.end()), blocks_.end());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    wanted_.prefetch(blocks_[std::min(i + kRowAhead, blocks_.size() - 1)]);
    const BlockAddress block = blocks_[i];
    wanted_.visit(block, [&](LookaheadWindow::Use use) {
      const uint32_t batch = window_.batch_of(use);
      if (batch > plan.window_batch)
        companions_.push_back({window_.row_of(use), block, LayoutId::none(), batch});
    });
  }
  std::erase_if(companions_, [&](const Companion& c) {
    return tiers_.index().get(c.row) != LocationWord::block(c.block);
  });
  // A row may have been noted twice: when it was announced, and when it left.
  std::sort(companions_.begin(), companions_.end(), [](const Companion& a, const Companion& b) {
    return std::tie(a.row, a.batch) < std::tie(b.row, b.batch);
  });
  const auto same_row = [](const Companion& a, const Companion& b) { return a.row == b.row; };
  companions_.erase(std::unique(companions_.begin(), companions_.end(), same_row),
                    companions_.end());
  for (Companion& c : companions_) c.layout = tiers_.table_of(c.row).layout;
  std::sort(companions_.begin(), companions_.end(), [](const Companion& a, const Companion& b) {
    return std::tie(a.layout, a.batch, a.row) < std::tie(b.layout, b.batch, b.row);
  });
  return companions_;
}

void Lookahead::note_first_uses(Plan& plan) const {
  plan.first_uses.resize(plan.occurrences);
  for (size_t i = plan.occurrences; i-- > 0;) {
    const uint32_t unique = plan.acquired.unique_of[i];
    if (unique != kPaddingSlot) plan.first_uses[unique] = static_cast<uint32_t>(i);
  }
}

void Lookahead::expect_next(const Plan& plan) {
  for (const UniqueRange& range : plan.acquired.ranges) {
    batches_.resize(range.count);
    for (size_t u = 0; u < range.count; ++u)
      batches_[u] = window_.next_use(plan.window_batch, plan.first_uses[range.first + u]);
    expect(range.layout, {plan.acquired.slots.data() + range.first, range.count}, batches_);
  }
}

void Lookahead::finish(uint32_t batch) {
  const uint32_t last = window_.finish(batch);
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    LayoutTier& tier = tiers_.layout(LayoutId(static_cast<uint16_t>(l)));
    if (tier.policy != nullptr) tier.policy->finished(last);
    if (tier.hbm != nullptr && tier.hbm->policy != nullptr) tier.hbm->policy->finished(last);
  }
}

}  // namespace te
