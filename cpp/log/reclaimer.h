// Reclaimer: gives the space of obsolete rows back. Greedy: the segment with the fewest live bytes.
//
// Rosenblum and Ousterhout, "The design and implementation of a log-structured file system", 1992,
// describe the scheme; greedy with survivors in a stream of their own was best in our simulations
// (docs/ARCHITECTURE.md). Thread-safety: none. Ownership: owns its read buffer, allocated at the
// first use. Invariant: a row moves completely or not at all, so any error leaves every row
// readable. Cost: per segment one sequential read of its blocks and one write of its live rows;
// nothing at all if it has none.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "log/segment_files.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/writer.h"

namespace te {

class Reclaimer {
 public:
  Reclaimer(StoreContext& context, SegmentTable& table, SegmentFiles& files,
            SegmentWriter& survivors);
  // Reclaims until nothing asks for it, nothing is worth it, survivors find no space, or
  // `segments_max` segments are done. Lack of space is not an error here: the next put reports it.
  Status reclaim(RowOwner& owner, uint32_t segments_max);

 private:
  bool is_over_bound() const;
  SegmentId choose_victim() const;
  Status rescue(RowOwner& owner, SegmentId victim);
  Status read_chunk(const IoFile* file, uint32_t first_block, uint32_t blocks);
  Status rescue_run(RowOwner& owner, const std::byte* run, BlockAddress block, LayoutId layout);
  const char* check_rescued(const std::byte* run, BlockAddress block, uint32_t blocks_left) const;

  StoreContext& context_;
  SegmentTable& table_;
  SegmentFiles& files_;
  SegmentWriter& survivors_;
  const uint64_t slack_bytes_;
  const uint32_t fill_bytes_;  // of a segment that is packed as well as any
  AlignedBuffer buffer_;
  std::vector<IoRequest> requests_;
};

}  // namespace te
