// LogStore: the ssd tier. Append-only segments of checksummed blocks that hold rows of several
// layouts.
//
// The store does not know where each row's newest copy is: location words do (log/row_index.h), and
// they belong to the caller, who reaches them through RowOwner. The store counts live bytes per
// segment, so every copy that becomes obsolete must be announced by `retire`. Thread-safety: none,
// but wait_for_reclaim; the engine's mutex guards it. Ownership: holds its files, its buffers and
// an exclusive lock on the directory. Invariants: a block that was handed out is never rewritten in
// place; segments that the last manifest refers to stay on disk until the next manifest is in
// place, so the directory always opens as the last `checkpoint`. Cost: docs/ARCHITECTURE.md, file
// format: docs/FORMAT.md.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "base/status.h"
#include "base/types.h"
#include "io/io_engine.h"

namespace te {

struct LogOptions {
  std::string path;             // directory; created if absent
  uint64_t capacity_bytes = 0;  // limit on segment files together, at least 4; 0 = only the disk's
  uint64_t total_rows = 0;      // row ids are below this; decides their width on disk
  std::vector<uint32_t> layout_row_bytes;  // row size of each LayoutId
  uint32_t block_bytes = 4096;             // power of two, >= 4096
  uint32_t segment_bytes = 1 << 20;        // multiple of block_bytes
  uint32_t read_buffer_bytes = 4 << 20;    // staging for reads in flight
  uint32_t changes_max = 1 << 20;  // rows put that no index tells; beyond, the next tells all
  // So many rows are told in so short a time (about 15 ns each) that changes need not be written
  // down between checkpoints.
  uint64_t rows_told_at_once = uint64_t{1} << 21;
  // Indexes are merged where there are so many, or where they tell of more changed rows than half
  // of the first one's and this.
  uint32_t indexes_max = 16;
  uint64_t changes_free = 4096;
  bool read_only = false;  // open: takes no lock and changes no file; only get_many may be called
  // open: not the last checkpoint, but the newest copy of every row that is on the disk; the caller
  // makes a checkpoint of what it got.
  bool newest = false;
  bool background_io = true;  // false: every write is done when the call returns
  // Segments may take this times what all rows take that were ever written, packed into blocks.
  double space_bound_ratio = 1.45;
};

// What the caller knows about rows; the reclaimer and the checkpoint ask it.
class RowOwner {
 public:
  virtual ~RowOwner() = default;
  // Whether the copy of `row` in `block` is the one that counts (a row dirty in dram has none).
  virtual bool is_live(LayoutId layout, RowId row, BlockAddress block) const = 0;
  // Rows that were changed since their last put, or never put: they have no copy that counts, and
  // space is kept for them all the same.
  virtual uint64_t rows_without_copy(LayoutId layout) const = 0;
  // The copy moved; `from` is retired by the store itself.
  virtual void relocated(LayoutId layout, RowId row, BlockAddress from, BlockAddress to) = 0;
  // Calls f(layout, row, block) for every row with a live copy, in ascending order of row.
  using RowVisitor = FunctionRef<void(LayoutId, RowId, BlockAddress)>;
  virtual void visit_rows(RowVisitor f) const = 0;
};

struct RowRead {
  RowId row;
  BlockAddress block;
  std::byte* destination = nullptr;  // layout_row_bytes bytes
};

// Totals since open, except where "now" is said.
struct LogStats {
  uint64_t rows_read = 0;
  uint64_t rows_from_write_buffer = 0;  // part of rows_read
  uint64_t blocks_read = 0;             // for rows_read
  uint64_t read_bytes = 0;
  uint64_t rows_written = 0;
  uint64_t row_written_bytes = 0;  // payload given to put_many
  uint64_t written_bytes = 0;      // to segment files, by put_many and the reclaimer together
  uint64_t checkpoint_written_bytes = 0;
  uint64_t rows_reclaimed = 0;  // copied by the reclaimer
  uint64_t segments_reclaimed = 0;
  uint64_t reclaim_read_bytes = 0;
  uint64_t segments_now = 0;          // files in use, pinned ones included
  uint64_t segments_pinned_now = 0;   // reclaimed, kept for the last manifest
  uint64_t segments_damaged_now = 0;  // that the reclaimer could not read, and leaves alone
  uint64_t segments_spare_now = 0;    // files beyond those: reserved space, not written yet
  uint64_t used_bytes_now = 0;        // segment files in use, pinned ones excluded
  uint64_t live_bytes_now = 0;        // copies that count, in bytes of their share of a block
};

// A segment that holds rows, or has held some.
struct SegmentInfo {
  SegmentId segment;
  uint32_t blocks_used = 0;
  uint32_t live_bytes = 0;
};

// Blocks [block, block + blocks) of a segment that cannot be read, or without any: rows that are
// not where they should be.
struct SegmentFault {
  SegmentId segment;
  uint32_t block = 0;
  uint32_t blocks = 0;
  std::string what;
  std::vector<RowId> rows;  // live rows that are lost with it
};

class LogStore {
 public:
  // Creates a store in a directory that has none. kAlreadyExists if it has one.
  static Result<std::unique_ptr<LogStore>> create(const LogOptions& options,
                                                  std::unique_ptr<IoEngine> io);
  // Takes a row of an index; false if the owner has it already, from a newer one.
  using RowRestorer = FunctionRef<bool(LayoutId, RowId, BlockAddress)>;
  // Opens the store as of its last checkpoint. `options` must describe the same rows
  // (kInvalidArgument names the first difference); block and segment size are the store's own, see
  // options(). `on_row` gets every row of the index files, the newest file first; `metadata` the
  // blob of that checkpoint. Files that the checkpoint does not refer to are deleted. After an
  // error, `on_row` may have seen some rows, and no file was changed.
  static Result<std::unique_ptr<LogStore>> open(const LogOptions& options,
                                                std::unique_ptr<IoEngine> io, RowRestorer on_row,
                                                std::string* metadata);
  // Only reads the metadata blob of the last checkpoint; takes no lock.
  static Result<std::string> read_metadata(const std::string& path);
  static bool exists(const std::string& path);
  ~LogStore();

  // Appends rows and says where each will be. Rows become readable at once (from the buffer). On
  // error nothing was appended that counts: the caller's location words are still right. kNoSpace
  // comes before anything is changed, and has a way out: `reclaim`, then `checkpoint` (segments
  // that the last manifest refers to go only then), then put again.
  Status put_many(LayoutId layout, std::span<const RowId> rows,
                  std::span<const std::byte* const> data, std::span<BlockAddress> out_blocks);
  // Reads rows; each wanted block is read once, however many rows it serves. kCorruption names the
  // file, the block and the row. With `owner_lock`, a lock that is held, it is opened while the
  // drive works; meanwhile everything but get_many may be called, and the rows of these blocks may
  // be moved or retired: what is read is what they held at the call.
  Status get_many(LayoutId layout, std::span<const RowRead> reads,
                  std::unique_lock<std::mutex>* owner_lock = nullptr);
  // The copy of one row in this block no longer counts.
  void retire(LayoutId layout, BlockAddress block);
  // How much something should be done soon.
  enum class Need : uint8_t { kNone, kSome, kUrgent };
  // Whether segments should be reclaimed: no; used space is close to its bound; over it, or a put
  // found no space.
  Need reclaim_need(const RowOwner& owner) const;
  // What all rows take that were ever written, packed into blocks, whether they have a copy that
  // counts or not: what the space bound is relative to.
  uint64_t rows_bytes(const RowOwner& owner) const;
  // Reclaims as long as there is need, at most `chunks_max` chunks of a segment (half a MiB each).
  // Chunks are read in the background, and at the end of a call the next one still is; without
  // `wait` the call returns when it has not arrived. Survivors that find no space end it early
  // without an error: the next put reports that.
  Status reclaim(RowOwner& owner, uint32_t chunks_max, bool wait = true);
  // For whoever puts rows, once in a while: how many chunks it should reclaim. Where the need is
  // urgent, up to eight times what was put since the last call, so that space stays bounded however
  // much is put.
  uint32_t take_chunks_owed(const RowOwner& owner);
  // Whether a segment is half reclaimed: there is something to go on with.
  bool is_reclaiming() const;
  // Until the chunk that is being read has arrived. While it waits, other threads may use the
  // store.
  void wait_for_reclaim();
  // Makes everything put so far durable and atomically the state that `open` gives: writes buffers,
  // syncs, writes an index and a manifest with `metadata`, deletes segments no longer needed. A row
  // that a checkpoint has must have a copy at every later one.
  Status checkpoint(const RowOwner& owner, const std::string& metadata);
  // The same in three steps, so that the store can be used during the second. The checkpoint is the
  // state at `begin`. With `seal`, no file that it names is written again, so that links to them
  // stay what they are. After an error of begin nothing more is to be done; end takes the status of
  // write, and gives it back.
  Status begin_checkpoint(const RowOwner& owner, const std::string& metadata, bool seal);
  Status write_checkpoint();  // by any thread, while others use the store
  Status end_checkpoint(Status written);

  // Whether so much was put that no index tells that it should be written down which rows, in a
  // store of more than rows_told_at_once: the list of them is a quarter full; almost full, and
  // beyond that the next checkpoint has to ask the owner for all rows. Then, and not while a
  // checkpoint is under way, in three steps as above. What opens stays the last checkpoint. After
  // an error there is no need until the next.
  Need changes_need() const;
  void begin_changes(bool may_merge);  // small indexes, into one
  Status write_changes();              // by any thread, while others use the store
  void end_changes(Status written);
  // The three at once where the need is urgent, for whoever puts many rows.
  void write_urgent_changes();

  // Gives reserved space back: for a store that nobody will write to.
  void trim();
  std::vector<SegmentInfo> segments() const;
  // Reads a segment of segments() and appends what is wrong with it.
  Status verify(SegmentId segment, const RowOwner& owner, std::vector<SegmentFault>& faults);
  std::string segment_path(SegmentId segment) const;

  const LogOptions& options() const;
  const IoEngine& io() const;
  LogStats stats() const;

 private:
  class Impl;
  explicit LogStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace te
