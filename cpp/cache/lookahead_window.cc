#include "cache/lookahead_window.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kRowsAhead = 16;  // places of the table, prefetched
constexpr size_t kRingMin = 1024;
constexpr size_t kTableMin = 1024;
// Low bits of uses would begin to repeat; long before that the table is built anew.
constexpr uint64_t kTableAgeMax = uint64_t{1} << 30;

}  // namespace

// The ring doubles, and the table, so that it is at most half full of the window's rows.
void LookaheadWindow::make_room(size_t lookups) {
  const size_t needed = this->lookups() + lookups;
  if (needed > rows_.size()) {
    const size_t size = std::max(std::bit_ceil(needed), kRingMin);
    Zeros<RowId> rows(size);
    Zeros<uint32_t> next(size);
    for (uint64_t use = begin_; use < end_; ++use) {
      rows[use & (size - 1)] = rows_[use & (rows_.size() - 1)];
      next[use & (size - 1)] = next_[use & (next_.size() - 1)];
    }
    rows_ = std::move(rows);
    next_ = std::move(next);
  }
  const bool is_full = (entries_ + lookups) * 3 > table_.size() * 2;
  if (is_full || end_ - table_built_ > kTableAgeMax) build_table(needed);
}

// From the rows that the window holds; `entries` is how many may come to be in it.
void LookaheadWindow::build_table(size_t entries) {
  const size_t wanted = std::max(std::bit_ceil(entries * 2), kTableMin);
  if (wanted > table_.size()) {
    table_ = Zeros<uint32_t>(wanted);
  } else {
    std::fill_n(&table_[0], table_.size(), 0);
  }
  table_shift_ = 64 - std::countr_zero(table_.size());
  entries_ = 0;
  table_built_ = end_;
  for (size_t b = 0; b < batches_.size(); ++b) {
    const uint64_t end = b + 1 < batches_.size() ? batches_[b + 1].begin : end_;
    for (uint64_t use = batches_[b].begin; use < end; ++use) {
      const RowId row = rows_[use & (rows_.size() - 1)];
      if (row.is_none()) continue;
      uint32_t& entry = table_[find(row)];
      const uint32_t age = entry - 1 - static_cast<uint32_t>(batches_[b].begin);
      if (entry != 0 && age < end - batches_[b].begin) continue;  // its first use in the batch
      entries_ += entry == 0;
      entry = static_cast<uint32_t>(use) + 1;
    }
  }
}

// The row's entry, or the free one where it would be.
size_t LookaheadWindow::find(RowId row) const {
  for (size_t at = place_of(row);; at = (at + 1) & (table_.size() - 1)) {
    // An entry from before the window is this row's or another's: it tells nothing, and is left.
    const Use use = table_[at] - 1;
    if (table_[at] == 0 || (holds(use) && row_of(use) == row)) return at;
  }
}

LookaheadWindow::Use LookaheadWindow::last_use(RowId row) const {
  return lookups() == 0 ? kNoUse : table_[find(row)] - 1;  // 0: free, hence none
}

uint32_t LookaheadWindow::batch_of(Use use) const {
  const uint64_t number = begin_ + (use - static_cast<uint32_t>(begin_));
  const auto after = std::upper_bound(batches_.begin(), batches_.end(), number,
                                      [](uint64_t n, const Batch& b) { return n < b.begin; });
  return first_ + static_cast<uint32_t>(after - batches_.begin()) - 1;
}

uint32_t LookaheadWindow::push(std::span<const RowId> rows, std::vector<Use>& first_uses) {
  make_room(rows.size());
  const uint32_t batch = end();
  const uint64_t begin = end_;
  batches_.push_back({begin});
  const size_t mask = rows_.size() - 1;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows_[(begin + i) & mask] = rows[i];
    next_[(begin + i) & mask] = 0;
  }
  end_ += rows.size();
  for (size_t i = 0; i < rows.size(); ++i) {
    __builtin_prefetch(&table_[place_of(rows[std::min(i + kRowsAhead, rows.size() - 1)])], 1);
    if (rows[i].is_none()) continue;
    uint32_t& entry = table_[find(rows[i])];
    const Use use = static_cast<Use>(begin + i);
    if (entry == 0) {
      ++entries_;
      first_uses.push_back(use);
    } else {
      const Use before = entry - 1;
      if (before - static_cast<Use>(begin) < rows.size()) continue;  // of this batch
      next_[before & mask] = batch;
    }
    entry = use + 1;
  }
  return batch;
}

uint32_t LookaheadWindow::next_use(uint32_t batch, size_t position) const {
  if (!contains(batch)) return 0;
  return next_[(batches_[batch - first_].begin + position) & (next_.size() - 1)];
}

uint32_t LookaheadWindow::finish(uint32_t batch) {
  if (contains(batch)) batches_[batch - first_].is_over = true;
  while (!batches_.empty() && batches_.front().is_over) {
    batches_.pop_front();
    ++first_;
    begin_ = batches_.empty() ? end_ : batches_.front().begin;
  }
  return first_ - 1;
}

void LookaheadWindow::clear() {
  first_ = end();
  batches_.clear();
  begin_ = end_;
}

uint64_t LookaheadWindow::memory_bytes_for(size_t lookups) {
  const uint64_t ring = std::max(std::bit_ceil(lookups), kRingMin);
  const uint64_t table = std::max(std::bit_ceil(lookups * 2), kTableMin);
  return ring * (sizeof(RowId) + sizeof(uint32_t)) + table * sizeof(uint32_t);
}

uint64_t LookaheadWindow::memory_bytes() const {
  return rows_.bytes() + next_.bytes() + table_.bytes() + batches_.size() * sizeof(Batch);
}

}  // namespace te
