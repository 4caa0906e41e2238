#include "table/row_finder.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <utility>

#include "table/batch_check.h"

namespace te {
namespace {

// How many ids ahead the location word, and the mark behind it, are prefetched.
constexpr size_t kWordAhead = 112;
constexpr size_t kMarkAhead = 64;
// Tasks hold at least so many ids.
constexpr size_t kTaskIds = 4096;
// A feature is cut where it has more ids than this and more than its share of the batch.
constexpr size_t kPartIds = 16384;
constexpr size_t kPartsOfBatch = 16;

// Where the rows of a batch are, by their location words.
class FoundSlots {
 public:
  static constexpr bool kMayBeEvicted = true;
  FoundSlots(Tiers& tiers, TableId table)
      : index_(tiers.index()),
        directory_(tiers.layout_of(table).directory),
        first_row_(tiers.table(table).first_row.value) {}
  void prefetch(uint64_t far, uint64_t near) const {
    index_.prefetch(row(far));
    if (const SlotIndex s = find(near); !s.is_none()) {
      directory_.prefetch_mark(s);
      directory_.prefetch(s);
    }
  }
  RowId row(uint64_t id) const { return RowId(first_row_ + id); }
  SlotIndex find(uint64_t id) const {  // none: not in dram
    const LocationWord word = index_.get(row(id));
    return word.is_slot() ? word.slot_index() : SlotIndex::none();
  }

 private:
  const RowIndex& index_;
  const SlotDirectory& directory_;
  const uint64_t first_row_;
};

// The same where every row has a slot of its own.
class OwnSlots {
 public:
  static constexpr bool kMayBeEvicted = false;
  OwnSlots(Tiers& tiers, TableId table)
      : marks_(tiers.layout_of(table).directory.marks()),
        resident_(tiers.resident()),
        first_row_(tiers.table(table).first_row.value),
        first_slot_(tiers.table(table).first_slot.value),
        all_stand_(tiers.table(table).resident_rows == tiers.table(table).config.rows) {}
  void prefetch(uint64_t, uint64_t near) const {
    __builtin_prefetch(&marks_[first_slot_ + static_cast<uint32_t>(near)], 1);
  }
  RowId row(uint64_t id) const { return RowId(first_row_ + id); }
  SlotIndex find(uint64_t id) const {
    if (!all_stand_ && !resident_.contains(row(id))) return SlotIndex::none();
    return SlotIndex(first_slot_ + static_cast<uint32_t>(id));
  }

 private:
  const uint32_t* marks_;
  const ResidentRows& resident_;
  const uint64_t first_row_;
  const uint32_t first_slot_;
  const bool all_stand_;
};

int64_t value_at(const void* values, bool are_64, size_t i) {
  return are_64 ? static_cast<const int64_t*>(values)[i] : static_cast<const int32_t*>(values)[i];
}

int64_t id_at(const FeatureInput& feature, size_t position) {
  return value_at(feature.ids, feature.ids_are_64, position);
}

// Ids behind the last bag (include_last_offset) belong to none. The offsets may not be checked yet.
size_t used_ids(const FeatureInput& feature, const FeaturePlan& planned) {
  if (planned.bags == 0) return 0;
  if (feature.offsets == nullptr) return feature.bags * feature.bag_size;
  if (!feature.include_last_offset) return feature.ids_count;
  const int64_t end = value_at(feature.offsets, feature.offsets_are_64, planned.bags);
  return static_cast<size_t>(std::clamp<int64_t>(end, 0, static_cast<int64_t>(feature.ids_count)));
}

}  // namespace

Status RowFinder::find(std::span<const FeatureInput> features, bool will_update, Plan& plan,
                       ThreadPool& threads) {
  plan.will_update = will_update;
  plan.is_watched = sample_.is_watching();
  make_room(plan);
  cut(features, plan, threads);
  if (will_update) plan.csr_begin.resize(plan.occurrences + parts_.size());
  // Marks are all that a part changes where nothing is evicted, so there it may check its own ids.
  const bool checks_parts = tiers_.every_row_fits() && parts_.size() == features.size();
  if (!checks_parts) TE_RETURN_IF_ERROR(check_batch(features, tiers_, plan, threads));
  for (size_t f = 0; f < features.size(); ++f) {
    const FeaturePlan& feature = plan.features[f];
    if (feature.ranges > 1)
      list_positions(features[f], feature.range_first, feature.ranges, threads);
  }
  group_parts();
  std::atomic<bool> is_bad{false};
  for_parts(threads, [&](size_t p) {
    const size_t f = parts_[p].feature;
    if (checks_parts && !check_feature(features[f], tiers_, plan.features[f], plan)) {
      is_bad.store(true, std::memory_order_relaxed);
      return;
    }
    find_part(features[f], plan, p);
    if (will_update && parts_[p].missing == 0) list_occurrences(plan, p);
    if (will_update && p == plan.features[f].range_first) scale_bags(features[f], plan, f);
  });
  if (is_bad.load()) return check_batch(features, tiers_, plan, threads);
  add_up(features, plan);
  return Status::ok();
}

void RowFinder::make_room(Plan& plan) {
  plan.occurrence_slots.resize(plan.occurrences);
  plan.acquired.unique_of.resize(plan.occurrences);
  plan.acquired.rows.resize(plan.occurrences);
  plan.acquired.slots.resize(plan.occurrences);
  if (plan.is_watched) plan.sampled.resize(plan.occurrences);
  missing_.resize(plan.occurrences);
  positions_.resize(plan.occurrences);
  if (!plan.will_update) return;
  next_.resize(plan.occurrences);
  plan.csr_bags.resize(plan.occurrences);
  plan.csr_occurrences.resize(plan.occurrences);
  plan.bag_scale.resize(plan.bags);
}

// Takes the parts together, and gives missing rows their places among the unique ones.
void RowFinder::add_up(std::span<const FeatureInput> features, Plan& plan) {
  Acquisition& acquired = plan.acquired;
  acquired.uniques = acquired.hits = 0;
  acquired.fills.clear();
  size_t missing = 0;
  for (size_t p = 0; p < parts_.size(); ++p) {
    const Part& part = parts_[p];
    UniqueRange& range = acquired.ranges[p];
    FeaturePlan& feature = plan.features[part.feature];
    acquired.hits += part.hits;
    missing += part.missing;
    tiers_.layout(range.layout).directory.count_pinned(part.pinned);
    if (part.missing != 0) dedupe_missing(features[part.feature], plan, p);
    range.before = feature.uniques;
    feature.uniques += range.count;
    acquired.uniques += range.count;
  }
  plan.lookups = acquired.hits + missing;
}

void RowFinder::cut(std::span<const FeatureInput> features, Plan& plan, ThreadPool& threads) {
  parts_.clear();
  const bool may_cut = threads.threads() > 1 || !tiers_.every_row_fits();
  const size_t share_ids = std::max(kPartIds, plan.occurrences / kPartsOfBatch);
  for (size_t f = 0; f < features.size(); ++f) {
    FeaturePlan& feature = plan.features[f];
    const size_t used = used_ids(features[f], feature);
    const size_t first = feature.occurrence_first;
    for (size_t i = first + used; i < first + feature.occurrences; ++i)
      plan.acquired.unique_of[i] = plan.occurrence_slots[i] = kPaddingSlot;
    feature.range_first = parts_.size();
    feature.ranges = may_cut ? std::bit_floor(std::max<size_t>(1, used / share_ids)) : 1;
    const bool is_listed = feature.ranges > 1;
    for (size_t p = 0; p < feature.ranges; ++p)
      parts_.push_back({.feature = f, .first = first, .positions = used, .is_listed = is_listed});
  }
  plan.acquired.ranges.resize(parts_.size());
  plan.sampled_ranges.resize(parts_.size());
}

// The positions of parts that are less than their feature, ascending: every thread counts the ids
// of its pieces of the feature by share, and then puts their positions in place.
void RowFinder::list_positions(const FeatureInput& feature, size_t first_part, size_t shares,
                               ThreadPool& threads) {
  const size_t used = parts_[first_part].positions;
  const size_t first = parts_[first_part].first;
  const int share_bits = std::countr_zero(shares);
  const auto piece_begin = [&](size_t piece) { return used * piece / shares; };
  share_ends_.assign(shares * shares, 0);  // [share][piece]
  threads.run(shares, [&](size_t piece) {
    std::array<size_t, kPartsOfBatch> count{};
    for (size_t i = piece_begin(piece); i < piece_begin(piece + 1); ++i)
      ++count[share_of(id_at(feature, i), share_bits)];
    for (size_t share = 0; share < shares; ++share)
      share_ends_[share * shares + piece] = count[share];
  });
  size_t at = first;
  for (size_t share = 0; share < shares; ++share) {
    Part& part = parts_[first_part + share];
    part.first = at;
    for (size_t piece = 0; piece < shares; ++piece)
      at += std::exchange(share_ends_[share * shares + piece], at);
    part.positions = at - part.first;
  }
  threads.run(shares, [&](size_t piece) {
    std::array<size_t, kPartsOfBatch> next{};
    for (size_t share = 0; share < shares; ++share)
      next[share] = share_ends_[share * shares + piece];
    for (size_t i = piece_begin(piece); i < piece_begin(piece + 1); ++i)
      positions_[next[share_of(id_at(feature, i), share_bits)]++] = static_cast<uint32_t>(i);
  });
}

// f(part) for all of them, small ones several a task.
template <class F>
void RowFinder::for_parts(ThreadPool& threads, F f) {
  threads.run(groups_.size() - 1, [&](size_t group) {
    for (size_t p = groups_[group]; p < groups_[group + 1]; ++p) f(p);
  });
}

void RowFinder::group_parts() {
  groups_.assign(1, 0);
  size_t ids = 0;
  for (size_t p = 0; p < parts_.size(); ++p) {
    ids += parts_[p].positions;
    if (ids < kTaskIds && p + 1 < parts_.size()) continue;
    groups_.push_back(p + 1);
    ids = 0;
  }
}

void RowFinder::find_part(const FeatureInput& feature, Plan& plan, size_t p) {
  const Part& part = parts_[p];
  const auto find = [&]<class Slots>(const Slots& slots) {
    if (feature.ids_are_64) {
      part.is_listed ? find_rows<Slots, int64_t, true>(slots, feature, plan, p)
                     : find_rows<Slots, int64_t, false>(slots, feature, plan, p);
    } else {
      part.is_listed ? find_rows<Slots, int32_t, true>(slots, feature, plan, p)
                     : find_rows<Slots, int32_t, false>(slots, feature, plan, p);
    }
  };
  if (tiers_.every_row_fits()) {
    find(OwnSlots(tiers_, feature.table));
  } else {
    find(FoundSlots(tiers_, feature.table));
  }
}

template <class Slots, class Id, bool kListed>
void RowFinder::find_rows(const Slots slots, const FeatureInput& feature, Plan& plan, size_t p) {
  Part& part = parts_[p];
  Acquisition& acquired = plan.acquired;
  SlotDirectory& directory = tiers_.layout_of(feature.table).directory;
  const size_t occurrence_first = plan.features[part.feature].occurrence_first;
  const Id* __restrict ids = static_cast<const Id*>(feature.ids);
  const uint32_t* __restrict listed = positions_.data() + part.first;
  uint32_t* __restrict unique_of = acquired.unique_of.data() + occurrence_first;
  uint32_t* __restrict occurrence_slots = plan.occurrence_slots.data() + occurrence_first;
  uint32_t* __restrict missing = missing_.data() + part.first;
  uint32_t* __restrict marks = directory.marks();
  RowId* __restrict unique_rows = acquired.rows.data();
  SlotIndex* __restrict unique_slots = acquired.slots.data();
  const int64_t padding_id = feature.padding_id;
  const uint32_t base = acquired.mark_base;
  const size_t n = part.positions;
  auto unique = static_cast<uint32_t>(part.first);
  size_t padding = 0;
  size_t missed = 0;
  uint32_t pinned = 0;
  const auto id_of = [&](size_t k) { return static_cast<uint64_t>(ids[kListed ? listed[k] : k]); };
  const auto find = [&](size_t k) __attribute__((always_inline)) {
    const size_t i = kListed ? listed[k] : k;
    const uint64_t id = id_of(k);
    if (static_cast<int64_t>(id) == padding_id) [[unlikely]] {
      unique_of[i] = occurrence_slots[i] = kPaddingSlot;
      ++padding;
      return;
    }
    const SlotIndex s = slots.find(id);
    if (s.is_none()) [[unlikely]] {
      missing[missed++] = static_cast<uint32_t>(i);
      return;
    }
    // No branch, which would be guessed wrong too often: the next unique row's place is written in
    // any case, and taken if the row is new.
    const uint32_t mark = marks[s.value];
    const uint32_t is_new = mark < base ? 1 : 0;
    const uint32_t u = (unique & (0 - is_new)) | ((mark - base) & (is_new - 1));
    marks[s.value] = base + u;
    unique_rows[unique] = slots.row(id);
    unique_slots[unique] = s;
    if constexpr (Slots::kMayBeEvicted) {
      if (is_new != 0) pinned += SlotDirectory::pin_uncounted(directory[s]);
    }
    unique += is_new;
    unique_of[i] = u;
    occurrence_slots[i] = s.value;
  };
  size_t k = 0;
  for (; k + kWordAhead < n; ++k) {
    slots.prefetch(id_of(k + kWordAhead), id_of(k + kMarkAhead));
    find(k);
  }
  for (; k < n; ++k) find(k);
  part.missing = missed;
  part.pinned = pinned;
  part.hits = n - padding - missed;
  acquired.ranges[p] = {feature.table,       plan.features[part.feature].layout,
                        part.feature,        part.first,
                        unique - part.first, 0};
  plan.sampled_ranges[p] = {part.first, 0};
  if (plan.is_watched) pick_sampled(plan, p, part.first, unique);
}

void RowFinder::pick_sampled(Plan& plan, size_t p, size_t first, size_t end) const {
  SampledRange& sampled = plan.sampled_ranges[p];
  SampleArgs args;
  args.ids = plan.acquired.rows.data();
  args.is_narrow = tiers_.total_rows() <= uint64_t{1} << 32;
  args.mask = sample_.mask();
  sampled.count +=
      kernels().sample(args, first, end, plan.sampled.data() + sampled.first + sampled.count);
}

void RowFinder::dedupe_missing(const FeatureInput& feature, Plan& plan, size_t p) {
  RowIndex& index = tiers_.index();
  Acquisition& acquired = plan.acquired;
  const Part& part = parts_[p];
  UniqueRange& range = acquired.ranges[p];
  const size_t found = range.first + range.count;
  const uint64_t first_row = tiers_.table(feature.table).first_row.value;
  uint32_t* unique_of = acquired.unique_of.data() + plan.features[part.feature].occurrence_first;
  const size_t fills_first = acquired.fills.size();
  for (size_t m = 0; m < part.missing; ++m) {
    const uint32_t i = missing_[part.first + m];
    const RowId row(first_row + static_cast<uint64_t>(id_at(feature, i)));
    const LocationWord word = index.get(row);
    if (word.is_slot()) {
      const Fill& seen = acquired.fills[word.slot_index().value - kProvisionalSlot];
      unique_of[i] = seen.unique;
      continue;
    }
    const auto unique = static_cast<uint32_t>(range.first + range.count++);
    const BlockAddress from = word.is_block() ? word.block_address() : BlockAddress::none();
    const auto provisional = kProvisionalSlot + static_cast<uint32_t>(acquired.fills.size());
    index.set(row, LocationWord::slot(SlotIndex(provisional)));
    acquired.fills.push_back({row, SlotIndex::none(), from, range.layout, range.table, unique});
    acquired.rows[unique] = row;
    acquired.slots[unique] = SlotIndex::none();
    unique_of[i] = unique;
  }
  for (size_t i = fills_first; i < acquired.fills.size(); ++i) {
    const Fill& fill = acquired.fills[i];
    index.set(fill.row,
              fill.from.is_none() ? LocationWord::never_written() : LocationWord::block(fill.from));
  }
  if (plan.is_watched) pick_sampled(plan, p, found, range.first + range.count);
}

void RowFinder::finish(Plan& plan, ThreadPool& threads) {
  if (plan.acquired.fills.empty()) return;
  for_parts(threads, [&](size_t p) {
    const Part& part = parts_[p];
    const size_t first = plan.features[part.feature].occurrence_first;
    for (size_t m = 0; m < part.missing; ++m) {
      const size_t i = first + missing_[part.first + m];
      plan.occurrence_slots[i] = plan.acquired.slots[plan.acquired.unique_of[i]].value;
    }
    if (plan.will_update && part.missing != 0) list_occurrences(plan, p);
  });
}

void RowFinder::list_occurrences(Plan& plan, size_t p) {
  const FeaturePlan& feature = plan.features[parts_[p].feature];
  const PoolMode mode = tiers_.table(feature.table).config.mode;
  if (mode == PoolMode::kMax || feature.is_weighted) {
    fill_csr<true>(plan, p);
  } else {
    fill_csr<false>(plan, p);
  }
}

template <bool kByPosition>
void RowFinder::fill_csr(Plan& plan, size_t p) {
  const Part& part = parts_[p];
  const UniqueRange& range = plan.acquired.ranges[p];
  const FeaturePlan& feature = plan.features[part.feature];
  const int64_t* __restrict bag_begin = plan.bag_begin.data() + feature.begin_first;
  const uint32_t* __restrict unique_of = plan.acquired.unique_of.data() + feature.occurrence_first;
  const uint32_t* __restrict listed = positions_.data() + part.first;
  uint32_t* __restrict begin = plan.csr_begin.data() + range.first + p;
  uint32_t* __restrict next =
      next_.data();  // occurrences of each row, then where the next one goes
  uint32_t* __restrict bags = plan.csr_bags.data();
  uint32_t* __restrict occurrences = plan.csr_occurrences.data();
  std::fill_n(next + range.first, range.count, 0);
  for (size_t k = 0; k < part.positions; ++k) {
    const uint32_t u = unique_of[part.is_listed ? listed[k] : k];
    if (u != kPaddingSlot) ++next[u];
  }
  auto filled = static_cast<uint32_t>(part.first);
  for (size_t u = 0; u < range.count; ++u) {
    begin[u] = filled;
    filled += std::exchange(next[range.first + u], filled);
  }
  begin[range.count] = filled;
  uint32_t bag = 0;
  for (size_t k = 0; k < part.positions; ++k) {
    const size_t i = part.is_listed ? listed[k] : k;
    while (static_cast<size_t>(bag_begin[bag + 1]) <= i) ++bag;
    if (unique_of[i] == kPaddingSlot) continue;
    const uint32_t at = next[unique_of[i]]++;
    bags[at] = bag;
    if constexpr (kByPosition) occurrences[at] = static_cast<uint32_t>(i);
  }
}

void RowFinder::scale_bags(const FeatureInput& input, Plan& plan, size_t f) const {
  const FeaturePlan& feature = plan.features[f];
  if (tiers_.table(feature.table).config.mode != PoolMode::kMean) return;
  const int64_t* bag_begin = plan.bag_begin.data() + feature.begin_first;
  for (size_t b = 0; b < feature.bags; ++b) {
    auto size = static_cast<uint32_t>(bag_begin[b + 1] - bag_begin[b]);
    for (int64_t i = bag_begin[b]; i < bag_begin[b + 1] && input.padding_id >= 0; ++i)
      size -= id_at(input, static_cast<size_t>(i)) == input.padding_id ? 1 : 0;
    plan.bag_scale[feature.bag_first + b] = size == 0 ? 0.0f : 1.0f / static_cast<float>(size);
  }
}

}  // namespace te
