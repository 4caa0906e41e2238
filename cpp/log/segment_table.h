// SegmentTable: which segments exist, what state each is in, and how many bytes of it are live.
//
// A segment is free (no file), spare (a file nobody writes yet), open (a stream writes it), sealed
// (complete), or pinned (reclaimed, but the last manifest refers to it or it is being read). Some
// spares are the reserve: rows from outside never take them, so that the reclaimer can work when
// the disk or the capacity is full. The id of a pinned segment is not given out again before its
// file is gone. Thread-safety: none. Ownership: creates and deletes segment files. Cost: live
// accounting is one addition; choosing a victim is a scan of 1 state byte and 4 bytes a segment.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "log/format.h"
#include "log/segment_files.h"
#include "log/store_context.h"

namespace te {

class SegmentTable {
 public:
  // Segments set aside for survivors: one to write, one for what does not fit in it.
  static constexpr uint32_t kReserveSegments = 2;
  // The reserve, and one segment to write beside one to reclaim.
  static constexpr uint32_t kSegmentsMin = kReserveSegments + 2;

  enum class State : uint8_t { kFree, kSpare, kOpen, kSealed, kPinned };

  SegmentTable(StoreContext& context, SegmentFiles& files);

  // --- where a block is
  SegmentId segment_of(BlockAddress block) const {
    return SegmentId(shift_ >= 0 ? block.value >> shift_ : block.value / blocks_per_segment_);
  }
  uint32_t block_in_segment(BlockAddress block) const {
    return block.value - segment_of(block).value * blocks_per_segment_;
  }
  BlockAddress address(SegmentId id, uint32_t block) const {
    return BlockAddress(id.value * blocks_per_segment_ + block);
  }
  State state_of(BlockAddress block) const { return states_[segment_of(block).value]; }
  // A run of `span` blocks at `block` that may be read: its segment is open or sealed, and holds
  // it.
  bool holds_run(BlockAddress block, uint32_t span) const;

  // --- files
  // Spare segments for rows from outside; all of them or none. Refills the reserve first, and
  // leaves room on the disk for a checkpoint, since only a checkpoint frees pinned segments.
  Status allocate(uint32_t count, std::vector<SegmentId>& spares);
  Result<SegmentId> allocate_for_survivors();  // may take from the reserve
  void begin(SegmentId spare);                 // spare -> open
  void return_spare(SegmentId spare);          // deletes it
  void return_reserve();                       // likewise; the next `allocate` refills it
  // Segments to free before the allocation that failed last can succeed; 0 if it did not fail.
  uint32_t shortage() const { return shortage_; }
  // Deletes a segment without live rows, or pins it if the last manifest refers to it or somebody
  // reads it.
  Status drop(SegmentId id);
  // Keeps the segment's file from begin to end, as often as it is read, whatever happens to its
  // rows meanwhile.
  void begin_read(SegmentId id) { ++segments_[id.value].readers; }
  void end_read(SegmentId id);

  // --- the life of an open segment
  void run_opened(SegmentId id, uint32_t blocks_used);
  void run_closed(SegmentId id);
  void leave(SegmentId id);  // its stream moved on: sealed once its open runs are written
  void write_started(SegmentId id);
  void write_ended(SegmentId id);
  // Segments of these records whose writes may not be durable; from now on they count as such.
  std::vector<SegmentId> take_unsynced(std::span<const SegmentRecord> records);
  void set_unsynced(SegmentId id) { segments_[id.value].unsynced = true; }
  uint32_t blocks_used(SegmentId id) const { return segments_[id.value].blocks_used; }
  uint64_t sequence(SegmentId id) const { return segments_[id.value].sequence; }

  // --- live bytes
  void add_live(BlockAddress block, uint64_t rows, uint32_t share_bytes) {
    live_bytes_[segment_of(block).value] += static_cast<uint32_t>(rows * share_bytes);
    live_bytes_total_ += rows * share_bytes;
    live_rows_total_ += rows;
  }
  void remove_live(BlockAddress block, uint32_t share_bytes);  // one row
  uint32_t live_bytes(SegmentId id) const { return live_bytes_[id.value]; }
  uint64_t live_bytes_total() const { return live_bytes_total_; }
  uint64_t live_rows() const { return live_rows_total_; }
  uint64_t used_bytes() const { return uint64_t{segments_used_} * context_.options.segment_bytes; }
  // The sealed segment with the fewest live bytes, among all or those no manifest refers to. Not
  // one that was found damaged.
  SegmentId emptiest(bool may_be_pinned) const;

  void set_damaged(SegmentId id) { segments_[id.value].damaged = true; }

  // --- checkpoints
  // Records of the segments a manifest written now must name: those that hold live rows.
  std::vector<SegmentRecord> records() const;
  // Before the manifest is put in place: what it names may from now on be what `open` finds.
  void protect(std::span<const SegmentRecord> records);
  // After: only what it names is protected, and the rest of the dropped segments is deleted.
  Status settle(std::span<const SegmentRecord> records);
  // At open: a sealed segment of the manifest. False if the record makes no sense.
  bool restore(const SegmentRecord& record);
  void finish_restore();

  std::vector<SegmentInfo> segments() const;  // in use
  void fill(LogStats& stats) const;
  std::string describe(BlockAddress block) const;  // "<file>: block 3 (address 259)"

 private:
  struct Segment {
    uint64_t sequence = 0;
    uint32_t blocks_used = 0;
    uint32_t unfinished = 0;  // open runs, and writes under way
    uint32_t readers = 0;
    bool left = false;
    bool in_manifest = false;
    bool unsynced = false;
    bool damaged = false;
  };

  Result<SegmentId> create_file();
  // Whether there is room for so many new files; `shortage` gets how many too few there is room
  // for.
  Status check_space(uint64_t count, uint32_t* shortage) const;
  Status capacity_used_up(uint64_t count) const;
  uint64_t checkpoint_bytes() const;
  SegmentId take_id();
  bool is_needed(SegmentId id) const {
    return segments_[id.value].in_manifest || segments_[id.value].readers > 0;
  }
  void set_state(SegmentId id, State state);
  void seal_if_complete(SegmentId id);
  Status delete_file(SegmentId id);

  StoreContext& context_;
  SegmentFiles& files_;
  const uint32_t blocks_per_segment_;
  const int shift_;  // log2 of blocks_per_segment_, -1 if it is no power of two
  const uint32_t ids_max_;
  const uint64_t files_max_;

  std::vector<Segment> segments_;  // by SegmentId, as the next two
  std::vector<State> states_;
  std::vector<uint32_t> live_bytes_;
  std::vector<SegmentId> free_ids_;
  std::vector<SegmentId> reserve_;
  std::vector<SegmentId> pinned_;
  uint64_t file_count_ = 0;     // in any state but kFree
  uint32_t segments_used_ = 0;  // open or sealed
  uint32_t shortage_ = 0;
  uint64_t live_bytes_total_ = 0;
  uint64_t live_rows_total_ = 0;
};

}  // namespace te
