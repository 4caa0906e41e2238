// ChangeList: the copies that were put since the last checkpoint, which is what its index has to
// tell.
//
// Thread-safety: none. Cost: 16 bytes a change; sorted when it is full. Where a row stands twice,
// the later copy counts. A list that more rows have changed than it holds says so, and the next
// index is a whole one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/types.h"

namespace te {

class ChangeList {
 public:
  struct Change {
    RowId row;
    BlockAddress block;
    LayoutId layout;
  };

  explicit ChangeList(size_t changes_max) : changes_max_(changes_max) {}

  void add(LayoutId layout, RowId row, BlockAddress block) {
    if (is_incomplete_) return;
    if (changes_.size() >= changes_max_) {
      sort(changes_);
      if (changes_.size() > changes_max_ / 2) return give_up();
    }
    changes_.push_back({row, block, layout});
  }
  void give_up() {
    is_incomplete_ = true;
    changes_ = {};
  }
  bool is_incomplete() const { return is_incomplete_; }
  size_t size() const { return changes_.size(); }
  // The changes so far, not sorted; it starts anew.
  std::vector<Change> take() {
    is_incomplete_ = false;
    return std::exchange(changes_, {});
  }
  // By row, each once.
  static void sort(std::vector<Change>& changes) {
    std::stable_sort(changes.begin(), changes.end(),
                     [](const Change& a, const Change& b) { return a.row < b.row; });
    size_t kept = 0;
    for (size_t i = 0; i < changes.size(); ++i) {
      if (i + 1 < changes.size() && changes[i + 1].row == changes[i].row) continue;
      changes[kept++] = changes[i];
    }
    changes.resize(kept);
  }

 private:
  const size_t changes_max_;
  std::vector<Change> changes_;
  bool is_incomplete_ = false;
};

}  // namespace te
