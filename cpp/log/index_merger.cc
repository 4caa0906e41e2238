#include "log/index_merger.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace te {
namespace {

constexpr uint64_t kNoRegion = std::numeric_limits<uint64_t>::max();

uint64_t region_of(RowId row) { return row.value >> IndexWriter::kRegionBits; }

// The rows of one region: later ones replace earlier ones.
class Region {
 public:
  Region() : words_(IndexWriter::kRegionRows), layouts_(IndexWriter::kRegionRows) {}
  void put(LayoutId layout, RowId row, BlockAddress block) {
    const auto place = static_cast<size_t>(row.value % IndexWriter::kRegionRows);
    words_[place] = LocationWord::block(block);
    layouts_[place] = layout;
    first_ = std::min(first_, place);
    end_ = std::max(end_, place + 1);
  }
  // Hands its rows out, ascending, and is empty again.
  void give(uint64_t region, RowOwner::RowVisitor f) {
    for (size_t place = first_; place < end_; ++place) {
      if (words_[place].is_never_written()) continue;
      f(layouts_[place], RowId(region * IndexWriter::kRegionRows + place),
        words_[place].block_address());
      words_[place] = LocationWord::never_written();
    }
    first_ = words_.size();
    end_ = 0;
  }

 private:
  std::vector<LocationWord> words_;
  std::vector<LayoutId> layouts_;
  size_t first_ = IndexWriter::kRegionRows;  // rows lie in [first_, end_)
  size_t end_ = 0;
};

}  // namespace

Status merge_indexes(std::span<IndexReader> oldest_first,
                     std::span<const ChangeList::Change> changes, RowOwner::RowVisitor f) {
  Region rows;
  for (;;) {
    uint64_t region = changes.empty() ? kNoRegion : region_of(changes.front().row());
    for (const IndexReader& index : oldest_first) {
      if (index.has_section()) region = std::min(region, index.region());
    }
    if (region == kNoRegion) return Status::ok();
    const auto put = [&](LayoutId layout, RowId row, BlockAddress block) {
      rows.put(layout, row, block);
    };
    for (IndexReader& index : oldest_first) {
      while (index.has_section() && index.region() == region)
        TE_RETURN_IF_ERROR(index.take_section(put));
    }
    while (!changes.empty() && region_of(changes.front().row()) == region) {
      const ChangeList::Change& change = changes.front();
      rows.put(change.layout(), change.row(), change.block());
      changes = changes.subspan(1);
    }
    rows.give(region, f);
  }
}

}  // namespace te
