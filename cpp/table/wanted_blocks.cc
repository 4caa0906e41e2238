#include "table/wanted_blocks.h"

#include <algorithm>
#include <bit>

namespace te {
namespace {

constexpr size_t kTableMin = 256;

// Entries for as many lookups: half of the table is used, and not every lookup is a miss.
size_t table_size_for(size_t lookups) {
  return std::max(std::bit_floor(std::max<size_t>(lookups, 1)) / 2, kTableMin);
}

}  // namespace

void WantedBlocks::add(BlockAddress block, Use use) {
  if (entries_ * 2 >= table_.size() && !make_room()) return;
  insert({block.value + 1, use});
}

void WantedBlocks::insert(Entry entry) {
  size_t at = place_of(BlockAddress(entry.block - 1));
  for (; table_[at].block != 0; at = next(at)) {
    if (table_[at] == entry) return;  // a clean row has left for the block it came from
  }
  table_[at] = entry;
  ++entries_;
}

// Drops what has left the window, or doubles; not before a quarter of the window is new.
bool WantedBlocks::make_room() {
  const uint64_t pushed = window_.lookups_ever() - built_at_;
  const size_t size_max = table_size_for(window_.lookups());
  if (table_.size() >= size_max && pushed < window_.lookups() / 4) return false;
  kept_.clear();
  for (const Entry& entry : table_) {
    if (entry.block != 0 && window_.holds(entry.use)) kept_.push_back(entry);
  }
  const bool doubles = kept_.size() * 4 > table_.size() && table_.size() < size_max;
  const size_t size = std::max(doubles ? table_.size() * 2 : table_.size(), kTableMin);
  table_.assign(size, {});
  table_shift_ = 64 - std::countr_zero(size);
  entries_ = 0;
  built_at_ = window_.lookups_ever();
  for (const Entry& entry : kept_) insert(entry);
  return entries_ * 2 < table_.size();
}

uint64_t WantedBlocks::memory_bytes_for(size_t lookups) {
  return table_size_for(lookups) * sizeof(Entry) * 3 / 2;  // with make_room's scratch
}

}  // namespace te
