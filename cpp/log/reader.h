// BlockReader: reads wanted rows, each block once, all in one stream of requests.
//
// Rows in the writers' memory come from there. Neighbouring wanted blocks are read together, and
// the rows of a request are copied out as it completes, which makes its place in the staging buffer
// free for the next. Thread-safety: none. Ownership: owns its staging buffer and lists, which grow
// to the largest batch seen. Cost: a sort of the batch by block; a checksum a block read.
#pragma once

#include <cstdint>
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
  BlockReader(StoreContext& context, const SegmentTable& table, SegmentFiles& files,
              const WriteBehind& behind, std::span<const SegmentWriter* const> writers);
  ~BlockReader();
  // On error the destinations are undefined.
  Status get_many(LayoutId layout, std::span<const RowRead> reads);

 private:
  // The reads of one run: [begin, end) of order_.
  struct WantedRun {
    BlockAddress block;
    uint32_t begin = 0;
    uint32_t end = 0;
  };
  // One request: the runs [begin, end) of wanted_, in one place of the staging buffer.
  struct Piece {
    uint32_t begin = 0;
    uint32_t end = 0;
    uint32_t place = 0;
    bool is_released = false;
  };

  void sort_order();
  void find_runs(LayoutId layout, std::span<const RowRead> reads);
  void serve_from_memory(const RunShape& shape, std::span<const RowRead> reads,
                         const WantedRun& wanted, const RunInMemory& memory);
  // The request of the next piece; kLater while the staging buffer is full.
  IoEngine::Next next_request(const RunShape& shape, IoRequest& request, Status* failed);
  void release(Piece& piece);
  Status serve(LayoutId layout, std::span<const RowRead> reads, const WantedRun& wanted,
               const std::byte* run) const;

  StoreContext& context_;
  const SegmentTable& table_;
  SegmentFiles& files_;
  const WriteBehind& behind_;
  const std::vector<const SegmentWriter*> writers_;
  const size_t place_bytes_;
  AlignedBuffer staging_;
  // Of the batch at hand.
  std::vector<uint64_t> order_;  // block << 32 | position in the batch
  std::vector<uint64_t> spare_order_;
  std::vector<WantedRun> wanted_;
  std::vector<Piece> pieces_;
  std::vector<uint32_t> free_places_;
  uint32_t next_wanted_ = 0;
  uint32_t in_flight_ = 0;  // pieces that hold their file
};

}  // namespace te
