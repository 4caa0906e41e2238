// BlockReader: reads wanted rows, each block once, all in one stream of requests.
//
// Rows in the writers' memory come from there. Neighbouring wanted blocks are read together, and
// the rows of a request are copied out as it completes, which makes its place in the staging buffer
// free for the next. Thread-safety: none; while the owner's lock is open, only what belongs to the
// batch at hand is touched. Invariant: segments of a batch keep their files until it has been read.
// Ownership: owns its staging buffer and lists, which grow to the largest batch seen. Cost: a sort
// of the batch by block; a checksum a block read.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "log/segment_files.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/writer.h"

namespace te {

class BlockReader {
 public:
  BlockReader(StoreContext& context, SegmentTable& table, SegmentFiles& files,
              const WriteBehind& behind, std::span<const SegmentWriter* const> writers);
  ~BlockReader();
  // See LogStore::get_many. On error the destinations are undefined.
  Status get_many(LayoutId layout, std::span<const RowRead> reads,
                  std::unique_lock<std::mutex>* owner_lock);

 private:
  // The reads of one run: [begin, end) of order_.
  struct WantedRun {
    BlockAddress block;
    uint32_t begin = 0;
    uint32_t end = 0;
  };
  // A segment with wanted runs: those of wanted_ from the end of the segment before it.
  struct WantedSegment {
    SegmentId id;
    uint64_t sequence = 0;
    uint32_t runs_end = 0;
    const IoFile* file = nullptr;  // while it is held
  };
  // One request: the runs [begin, end) of wanted_, in one place of the staging buffer.
  struct Piece {
    uint32_t begin = 0;
    uint32_t end = 0;
    uint32_t place = 0;
    uint32_t segment = 0;  // of segments_
  };

  void sort_order();
  void find_runs(LayoutId layout, std::span<const RowRead> reads);
  void want(const WantedRun& wanted);
  void serve_from_memory(const RunShape& shape, std::span<const RowRead> reads,
                         const WantedRun& wanted, const RunInMemory& memory);
  // Opens the files of as many segments from `first` on as may be open at once, at least one; the
  // end of their range.
  Result<uint32_t> hold_files(uint32_t first);
  // Reads the runs of segments [next_segment_, segments_end).
  Status read_runs(LayoutId layout, std::span<const RowRead> reads, uint32_t segments_end);
  // The request of the next piece; kLater while the staging buffer is full.
  IoEngine::Next next_request(const RunShape& shape, uint32_t segments_end, IoRequest& request);
  Status serve(LayoutId layout, std::span<const RowRead> reads, const WantedRun& wanted,
               uint64_t sequence, const std::byte* run) const;

  StoreContext& context_;
  SegmentTable& table_;
  SegmentFiles& files_;
  const WriteBehind& behind_;
  const std::vector<const SegmentWriter*> writers_;
  const size_t place_bytes_;
  AlignedBuffer staging_;
  // Of the batch at hand.
  std::vector<uint64_t> order_;  // block << 32 | position in the batch
  std::vector<uint64_t> spare_order_;
  std::vector<WantedRun> wanted_;
  std::vector<WantedSegment> segments_;
  std::vector<Piece> pieces_;
  std::vector<uint32_t> free_places_;
  uint32_t next_wanted_ = 0;
  uint32_t next_segment_ = 0;  // that of next_wanted_
};

}  // namespace te
