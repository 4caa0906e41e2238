// ChangeList: the copies that were put since an index told where rows are, which is what the next
// has to tell.
//
// Thread-safety: none. Cost: 12 bytes a change, and half as much to sort those that are taken.
// Where a row stands twice, the later copy counts. A list that more rows have changed than it
// holds, with those that are taken, says so, and the next index is a whole one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/types.h"

namespace te {

class ChangeList {
 public:
  class Change {
   public:
    Change(LayoutId layout, RowId row, BlockAddress block)
        : row_low_(static_cast<uint32_t>(row.value)),
          row_high_(static_cast<uint16_t>(row.value >> 32)),
          layout_(layout),
          block_(block) {}
    RowId row() const { return RowId(uint64_t{row_high_} << 32 | row_low_); }
    LayoutId layout() const { return layout_; }
    BlockAddress block() const { return block_; }

   private:
    uint32_t row_low_;
    uint16_t row_high_;
    LayoutId layout_;
    BlockAddress block_;
  };
  static_assert(sizeof(Change) == 12);
  static constexpr uint64_t kRowsMax = uint64_t{1} << 48;
  // How many changes a memory of so many bytes holds, and what `changes` of them take.
  static constexpr uint64_t changes_in(uint64_t bytes) { return bytes * 2 / 3 / sizeof(Change); }
  static constexpr uint64_t bytes_of(uint64_t changes) { return changes * sizeof(Change) * 3 / 2; }

  explicit ChangeList(size_t changes_max) : changes_max_(changes_max) {}

  void add(LayoutId layout, RowId row, BlockAddress block) {
    if (is_incomplete_) return;
    if (size() >= changes_max_) return give_up();
    // Address space for all of it: growing a list of millions would copy it in the middle of a
    // step.
    if (changes_.capacity() == 0) changes_.reserve(changes_max_);
    changes_.emplace_back(layout, row, block);
  }
  void give_up() {
    is_incomplete_ = true;
    changes_ = {};
  }
  bool is_incomplete() const { return is_incomplete_; }
  size_t size() const { return changes_.size() + taken_; }
  size_t changes_max() const { return changes_max_; }
  // The changes so far, not sorted; it starts anew, and counts these until an index has told them.
  std::vector<Change> take() {
    is_incomplete_ = false;
    taken_ = changes_.size();
    return std::exchange(changes_, {});
  }
  void are_told() { taken_ = 0; }
  // The opposite of take, where no index has told of `older`.
  void put_back(std::vector<Change> older) {
    taken_ = 0;
    if (is_incomplete_ || older.empty()) return;
    older.insert(older.end(), changes_.begin(), changes_.end());
    changes_ = std::move(older);
  }
  // By row, each once.
  static void sort(std::vector<Change>& changes) {
    std::stable_sort(changes.begin(), changes.end(), [](const Change& a, const Change& b) {
      return a.row().value < b.row().value;
    });
    size_t kept = 0;
    for (size_t i = 0; i < changes.size(); ++i) {
      if (i + 1 < changes.size() && changes[i + 1].row() == changes[i].row()) continue;
      changes[kept++] = changes[i];
    }
    changes.erase(changes.begin() + static_cast<ptrdiff_t>(kept), changes.end());
  }

 private:
  const size_t changes_max_;
  std::vector<Change> changes_;
  size_t taken_ = 0;
  bool is_incomplete_ = false;
};

}  // namespace te
