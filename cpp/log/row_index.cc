#include "log/row_index.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace te {

// Open addressing with linear probing; a word of 0 marks an empty entry. At most 3/4 full.
struct RowIndex::Map {
  struct __attribute__((packed)) Entry {
    uint16_t key;
    uint32_t word;
  };
  static constexpr uint32_t kCapacityMin = 8;
  static constexpr uint32_t kCapacityMax = 32768;  // 196 KB; the next step is a dense region

  explicit Map(uint32_t capacity) : entries(new Entry[capacity]()), mask(capacity - 1) {}

  uint32_t home(uint16_t key) const { return key * 0x9E3779B1u >> (32 - std::countr_one(mask)); }
  uint32_t find(uint16_t key) const {  // the entry of key, or the empty one where it would go
    uint32_t i = home(key);
    while (entries[i].word != 0 && entries[i].key != key) i = (i + 1) & mask;
    return i;
  }
  bool is_full() const { return (count + 1) * 4 > (mask + 1) * 3; }
  uint64_t memory_bytes() const { return sizeof(Map) + uint64_t{mask + 1} * sizeof(Entry); }

  // Empties entry i and moves later entries of the same run back, so that probes never meet a gap.
  void erase(uint32_t i) {
    --count;
    for (uint32_t j = (i + 1) & mask; entries[j].word != 0; j = (j + 1) & mask) {
      const uint32_t want = home(entries[j].key);
      if (((j - want) & mask) < ((j - i) & mask)) continue;  // its home lies after the gap
      entries[i] = entries[j];
      i = j;
    }
    entries[i].word = 0;
  }

  std::unique_ptr<Entry[]> entries;
  uint32_t mask;
  uint32_t count = 0;
};

RowIndex::RowIndex(uint64_t total_rows, uint64_t direct_bytes_max) : total_rows_(total_rows) {
  if (total_rows * 4 <= direct_bytes_max) {
    direct_memory_ = ReservedMemory(std::max<uint64_t>(total_rows, 1) * 4);
    direct_ = reinterpret_cast<uint32_t*>(direct_memory_.data());
    memory_bytes_ = total_rows * 4;
  } else {
    regions_.resize((total_rows + kRegionRows - 1) >> kRegionBits);
    memory_bytes_ = regions_.size() * sizeof(Region);
  }
}

RowIndex::~RowIndex() = default;

LocationWord RowIndex::get_from_region(RowId row) const {
  const Region& region = regions_[row.value >> kRegionBits];
  const auto key = static_cast<uint16_t>(row.value);
  if (region.dense) return LocationWord::from_bits(region.dense[key]);
  if (!region.map) return LocationWord::never_written();
  return LocationWord::from_bits(region.map->entries[region.map->find(key)].word);
}

void RowIndex::set_in_region(RowId row, LocationWord word) {
  Region& region = regions_[row.value >> kRegionBits];
  const auto key = static_cast<uint16_t>(row.value);
  if (region.dense) {
    region.dense[key] = word.bits();
    return;
  }
  if (!region.map) {
    if (word.is_never_written()) return;
    region.map = std::make_unique<Map>(Map::kCapacityMin);
    memory_bytes_ += region.map->memory_bytes();
  }
  uint32_t i = region.map->find(key);
  if (region.map->entries[i].word != 0) {
    if (word.is_never_written()) {
      region.map->erase(i);
    } else {
      region.map->entries[i].word = word.bits();
    }
    return;
  }
  if (word.is_never_written()) return;
  if (region.map->is_full()) {
    grow(region);
    if (region.dense) {
      region.dense[key] = word.bits();
      return;
    }
    i = region.map->find(key);
  }
  region.map->entries[i] = {key, word.bits()};
  ++region.map->count;
}

void RowIndex::grow(Region& region) {
  const std::unique_ptr<Map> old = std::move(region.map);
  const uint32_t capacity = old->mask + 1;
  memory_bytes_ -= old->memory_bytes();
  if (capacity == Map::kCapacityMax) {
    region.dense = std::make_unique<uint32_t[]>(kRegionRows);
    memory_bytes_ += uint64_t{kRegionRows} * 4;
    for (uint32_t i = 0; i < capacity; ++i) {
      if (old->entries[i].word != 0) region.dense[old->entries[i].key] = old->entries[i].word;
    }
    return;
  }
  region.map = std::make_unique<Map>(capacity * 2);
  memory_bytes_ += region.map->memory_bytes();
  for (uint32_t i = 0; i < capacity; ++i) {
    if (old->entries[i].word == 0) continue;
    region.map->entries[region.map->find(old->entries[i].key)] = old->entries[i];
    ++region.map->count;
  }
}

void RowIndex::visit(RowId first, RowId end, FunctionRef<void(RowId, LocationWord)> f) const {
  if (direct_ != nullptr) {
    for (uint64_t row = first.value; row < end.value; ++row) {
      if (direct_[row] != 0) f(RowId(row), LocationWord::from_bits(direct_[row]));
    }
    return;
  }
  std::vector<std::pair<uint16_t, uint32_t>> sorted;
  for (uint64_t r = first.value >> kRegionBits; r << kRegionBits < end.value; ++r) {
    const Region& region = regions_[r];
    const uint64_t base = r << kRegionBits;
    const auto give = [&](uint64_t row, uint32_t word) {
      if (row >= first.value && row < end.value) f(RowId(row), LocationWord::from_bits(word));
    };
    if (region.dense) {
      for (uint32_t key = 0; key < kRegionRows; ++key) {
        if (region.dense[key] != 0) give(base + key, region.dense[key]);
      }
    } else if (region.map) {
      sorted.clear();
      for (uint32_t i = 0; i <= region.map->mask; ++i) {
        const Map::Entry entry = region.map->entries[i];
        if (entry.word != 0) sorted.emplace_back(entry.key, entry.word);
      }
      std::sort(sorted.begin(), sorted.end());
      for (const auto& [key, word] : sorted) give(base + key, word);
    }
  }
}

}  // namespace te
