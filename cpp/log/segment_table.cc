#include "log/segment_table.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/check.h"

namespace te {
namespace {

bool is_used(SegmentTable::State state) {
  return state == SegmentTable::State::kOpen || state == SegmentTable::State::kSealed;
}

}  // namespace

SegmentTable::SegmentTable(StoreContext& context, SegmentFiles& files)
    : context_(context),
      files_(files),
      blocks_per_segment_(context.blocks_per_segment),
      shift_(std::has_single_bit(blocks_per_segment_) ? std::countr_zero(blocks_per_segment_) : -1),
      ids_max_(LocationWord::kBlocksMax / blocks_per_segment_),
      files_max_(context.options.capacity_bytes == 0
                     ? std::numeric_limits<uint64_t>::max()
                     : context.options.capacity_bytes / context.options.segment_bytes) {}

bool SegmentTable::holds_run(BlockAddress block, uint32_t span) const {
  const SegmentId id = segment_of(block);
  return id.value < segments_.size() && is_used(states_[id.value]) &&
         uint64_t{block_in_segment(block)} + span <= segments_[id.value].blocks_used;
}

// --- files

SegmentId SegmentTable::take_id() {
  if (!free_ids_.empty()) {
    const SegmentId id = free_ids_.back();
    free_ids_.pop_back();
    return id;
  }
  const SegmentId id(static_cast<uint32_t>(segments_.size()));
  segments_.emplace_back();
  states_.push_back(State::kFree);
  live_bytes_.push_back(0);
  return id;
}

Status SegmentTable::capacity_used_up(uint64_t count) const {
  const LogOptions& options = context_.options;
  const uint64_t held = file_count_ * options.segment_bytes;
  const uint64_t free = options.capacity_bytes - std::min(options.capacity_bytes, held);
  const uint64_t needed = count * options.segment_bytes;
  return Status(StatusCode::kNoSpace,
                options.path + ": the ssd capacity is used up: " + std::to_string(needed) +
                    " bytes of segments needed, " + std::to_string(free) + " of " +
                    std::to_string(options.capacity_bytes) + " bytes free (" +
                    std::to_string(pinned_.size() * uint64_t{options.segment_bytes}) +
                    " bytes wait for the next checkpoint)");
}

Result<SegmentId> SegmentTable::create_file() {
  if (free_ids_.empty() && segments_.size() >= ids_max_) {
    return Status(StatusCode::kNoSpace,
                  context_.options.path + ": all " + std::to_string(ids_max_) +
                      " segment numbers are in use; a store for so much needs larger blocks");
  }
  const SegmentId id = take_id();
  if (Status status = files_.create(id, context_.options.segment_bytes); !status) {
    free_ids_.push_back(id);
    return status;
  }
  set_state(id, State::kSpare);
  return id;
}

// An upper estimate: 6 bytes a row of an index, a section a region, 16 bytes a segment. For the
// next checkpoint what has changed, and a whole index beyond that, so that it leaves room for the
// one after it; a chain of indexes gives its space back only when the index that replaces it
// stands.
uint64_t SegmentTable::checkpoint_bytes() const {
  constexpr uint64_t kPerRowBytes = 6;
  constexpr uint64_t kFixedBytes = uint64_t{64} << 10;
  const uint64_t regions = (context_.options.total_rows >> 16) + context_.shapes.size();
  const auto index_bytes = [&](uint64_t rows) {
    return rows * kPerRowBytes + std::min(regions, rows) * sizeof(SectionHeader) +
           segments_.size() * sizeof(SegmentRecord) + kFixedBytes;
  };
  const ChangeList& changes = context_.changes;
  const uint64_t changed = changes.is_incomplete() ? live_rows_total_ : changes.size();
  return index_bytes(live_rows_total_) + index_bytes(std::min(changed, live_rows_total_));
}

Status SegmentTable::check_space(uint64_t count, uint32_t* shortage) const {
  if (file_count_ + count > files_max_) {
    *shortage = static_cast<uint32_t>(file_count_ + count - files_max_);
    return capacity_used_up(count);
  }
  Result<uint64_t> free = files_.disk_free_bytes();
  if (!free) return free.status();
  const uint64_t free_bytes = free.value();
  const uint64_t segment_bytes = context_.options.segment_bytes;
  const uint64_t needed_bytes = count * segment_bytes + checkpoint_bytes();
  if (needed_bytes <= free_bytes) return Status::ok();
  *shortage =
      static_cast<uint32_t>((needed_bytes - free_bytes + segment_bytes - 1) / segment_bytes);
  return Status(StatusCode::kNoSpace,
                context_.options.path + ": the disk is full: " + std::to_string(needed_bytes) +
                    " bytes needed (" + std::to_string(checkpoint_bytes()) +
                    " of them for checkpoints), " + std::to_string(free_bytes) + " free");
}

Status SegmentTable::allocate(uint32_t count, std::vector<SegmentId>& spares) {
  const uint64_t missing = kReserveSegments - reserve_.size() + count;
  TE_RETURN_IF_ERROR(check_space(missing, &shortage_));
  const size_t before = spares.size();
  for (uint64_t left = missing; left > 0; --left) {
    Result<SegmentId> id = create_file();
    if (!id) {
      for (; spares.size() > before; spares.pop_back()) return_spare(spares.back());
      if (id.status().code() == StatusCode::kNoSpace) shortage_ = static_cast<uint32_t>(missing);
      return id.status();
    }
    if (reserve_.size() < kReserveSegments) {
      reserve_.push_back(id.value());
    } else {
      spares.push_back(id.value());
    }
  }
  shortage_ = 0;
  return Status::ok();
}

Result<SegmentId> SegmentTable::allocate_for_survivors() {
  uint32_t too_few = 0;
  Status space = check_space(1, &too_few);
  // While rows from outside wait for space, what is free is theirs: the reserve is for this.
  if (shortage_ == 0 || reserve_.empty()) {
    Result<SegmentId> id = space ? create_file() : Result<SegmentId>(space);
    if (id.is_ok() || id.status().code() != StatusCode::kNoSpace || reserve_.empty()) return id;
  }
  const SegmentId reserved = reserve_.back();
  reserve_.pop_back();
  if (shortage_ > 0) ++shortage_;  // the reserve has to be made up for
  return reserved;
}

void SegmentTable::begin(SegmentId spare) {
  TE_CHECK(states_[spare.value] == State::kSpare);
  segments_[spare.value] = Segment{};
  segments_[spare.value].sequence = context_.sequence_next++;
  live_bytes_[spare.value] = 0;
  set_state(spare, State::kOpen);
}

void SegmentTable::return_spare(SegmentId spare) {
  TE_CHECK(states_[spare.value] == State::kSpare);
  (void)delete_file(spare);  // a file that stays behind is replaced when its id is used again
}

void SegmentTable::return_reserve() {
  for (SegmentId spare : reserve_) return_spare(spare);
  reserve_.clear();
}

Status SegmentTable::delete_file(SegmentId id) {
  Status status = files_.remove(id);
  set_state(id, State::kFree);
  free_ids_.push_back(id);
  if (shortage_ > 0) --shortage_;
  return status;
}

Status SegmentTable::drop(SegmentId id) {
  TE_CHECK(states_[id.value] == State::kSealed && live_bytes_[id.value] == 0);
  if (!is_needed(id)) return delete_file(id);
  set_state(id, State::kPinned);
  pinned_.push_back(id);
  return Status::ok();
}

// A file that cannot be deleted is replaced when its id is used again, as in return_spare.
void SegmentTable::end_read(SegmentId id) {
  TE_CHECK(segments_[id.value].readers > 0);
  --segments_[id.value].readers;
  if (states_[id.value] != State::kPinned || is_needed(id)) return;
  std::erase(pinned_, id);
  (void)delete_file(id);
}

void SegmentTable::set_state(SegmentId id, State state) {
  State& now = states_[id.value];
  segments_used_ += is_used(state);
  segments_used_ -= is_used(now);
  file_count_ += state != State::kFree;
  file_count_ -= now != State::kFree;
  now = state;
}

// --- the life of an open segment

void SegmentTable::run_opened(SegmentId id, uint32_t blocks_used) {
  segments_[id.value].blocks_used = blocks_used;
  ++segments_[id.value].unfinished;
}

void SegmentTable::run_closed(SegmentId id) {
  TE_CHECK(segments_[id.value].unfinished > 0);
  --segments_[id.value].unfinished;
  seal_if_complete(id);
}

void SegmentTable::leave(SegmentId id) {
  segments_[id.value].left = true;
  seal_if_complete(id);
}

void SegmentTable::seal_if_complete(SegmentId id) {
  const Segment& segment = segments_[id.value];
  if (segment.left && segment.unfinished == 0) set_state(id, State::kSealed);
}

void SegmentTable::write_ended(SegmentId id) { run_closed(id); }

void SegmentTable::write_started(SegmentId id) {
  Segment& segment = segments_[id.value];
  ++segment.unfinished;
  segment.unsynced = true;
}

std::vector<SegmentId> SegmentTable::take_unsynced(std::span<const SegmentRecord> records) {
  std::vector<SegmentId> taken;
  for (const SegmentRecord& record : records) {
    Segment& segment = segments_[record.segment];
    if (segment.unsynced) taken.push_back(SegmentId(record.segment));
    segment.unsynced = false;
  }
  return taken;
}

// --- live bytes

void SegmentTable::remove_live(BlockAddress block, uint32_t share_bytes) {
  const SegmentId id = segment_of(block);
  TE_CHECK(id.value < live_bytes_.size() && live_bytes_[id.value] >= share_bytes);
  live_bytes_[id.value] -= share_bytes;
  live_bytes_total_ -= share_bytes;
  --live_rows_total_;
}

SegmentId SegmentTable::emptiest(bool may_be_pinned) const {
  SegmentId best = SegmentId::none();
  uint32_t best_bytes = std::numeric_limits<uint32_t>::max();
  for (uint32_t i = 0; i < states_.size(); ++i) {
    if (states_[i] != State::kSealed || live_bytes_[i] >= best_bytes) continue;
    if (!may_be_pinned && segments_[i].in_manifest) continue;
    if (segments_[i].damaged) continue;
    best = SegmentId(i);
    best_bytes = live_bytes_[i];
  }
  return best;
}

// --- checkpoints

std::vector<SegmentRecord> SegmentTable::records() const {
  std::vector<SegmentRecord> records;
  for (uint32_t i = 0; i < segments_.size(); ++i) {
    if (!is_used(states_[i]) || live_bytes_[i] == 0) continue;
    records.push_back({i, segments_[i].blocks_used, segments_[i].sequence});
  }
  return records;
}

void SegmentTable::protect(std::span<const SegmentRecord> records) {
  for (const SegmentRecord& record : records) segments_[record.segment].in_manifest = true;
}

Status SegmentTable::settle(std::span<const SegmentRecord> records) {
  for (Segment& segment : segments_) segment.in_manifest = false;
  protect(records);
  Status result;
  std::erase_if(pinned_, [&](SegmentId id) {
    if (is_needed(id)) return false;  // reclaimed since that manifest was begun, or being read
    if (Status status = delete_file(id); !status && result) result = status;
    return true;
  });
  // Sealed segments without live rows are in no manifest now: nothing keeps their files.
  for (uint32_t i = 0; i < segments_.size(); ++i) {
    if (states_[i] != State::kSealed || live_bytes_[i] != 0) continue;
    if (is_needed(SegmentId(i))) continue;
    if (Status status = delete_file(SegmentId(i)); !status && result) result = status;
  }
  return result;
}

bool SegmentTable::restore(const SegmentRecord& record) {
  if (record.segment >= ids_max_ || record.blocks_used == 0 ||
      record.blocks_used > blocks_per_segment_ ||
      record.segment_sequence >= context_.sequence_next) {
    return false;
  }
  if (record.segment >= segments_.size()) {
    segments_.resize(record.segment + 1);
    states_.resize(record.segment + 1, State::kFree);
    live_bytes_.resize(record.segment + 1, 0);
  }
  const SegmentId id(record.segment);
  if (states_[id.value] != State::kFree) return false;
  Segment& segment = segments_[id.value];
  segment.sequence = record.segment_sequence;
  segment.blocks_used = record.blocks_used;
  segment.left = true;
  segment.in_manifest = true;
  set_state(id, State::kSealed);
  return true;
}

void SegmentTable::finish_restore() {
  for (uint32_t i = static_cast<uint32_t>(states_.size()); i-- > 0;) {
    if (states_[i] == State::kFree) free_ids_.push_back(SegmentId(i));
  }
}

std::vector<SegmentInfo> SegmentTable::segments() const {
  std::vector<SegmentInfo> result;
  for (uint32_t i = 0; i < segments_.size(); ++i) {
    if (is_used(states_[i]))
      result.push_back({SegmentId(i), segments_[i].blocks_used, live_bytes_[i]});
  }
  return result;
}

void SegmentTable::fill(LogStats& stats) const {
  stats.segments_now = segments_used_ + pinned_.size();
  stats.segments_pinned_now = pinned_.size();
  for (const Segment& segment : segments_) stats.segments_damaged_now += segment.damaged;
  stats.segments_spare_now = file_count_ - stats.segments_now;
  stats.used_bytes_now = used_bytes();
  stats.live_bytes_now = live_bytes_total_;
}

std::string SegmentTable::describe(BlockAddress block) const {
  return files_.path(segment_of(block)) + ": block " + std::to_string(block_in_segment(block)) +
         " (address " + std::to_string(block.value) + ")";
}

}  // namespace te
