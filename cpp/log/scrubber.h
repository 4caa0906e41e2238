// Scrubber: reads a whole segment and says what is wrong with it.
//
// Thread-safety: none, as LogStore. Ownership: owns its read buffer. Cost: one sequential read of
// the segment, a checksum a run, a look at the location word of every row; a visit to all location
// words where something is wrong.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "log/log_store.h"
#include "log/segment_files.h"
#include "log/segment_table.h"
#include "log/store_context.h"

namespace te {

class Scrubber {
 public:
  Scrubber(StoreContext& context, SegmentTable& table, SegmentFiles& files)
      : context_(context), table_(table), files_(files) {}
  // Appends the faults of a segment; one that cannot be read at all is a fault of all its blocks.
  Status scrub(SegmentId segment, const RowOwner& owner, std::vector<SegmentFault>& faults);

 private:
  Status read(SegmentId segment);
  const char* check(SegmentId segment, uint32_t block, uint32_t* span) const;
  void note_rows(SegmentId segment, uint32_t block, const RowOwner& owner);
  void name_rows(SegmentId segment, const RowOwner& owner, std::vector<SegmentFault>& faults,
                 size_t first);

  StoreContext& context_;
  SegmentTable& table_;
  SegmentFiles& files_;
  AlignedBuffer buffer_;      // the whole segment
  std::vector<RowId> found_;  // live rows that are where the index says
  uint64_t found_bytes_ = 0;
};

}  // namespace te
