// Recovery: the newest copy of every row that has reached the disk, found by reading all segments.
//
// What a crash left after the last checkpoint is no cut: of each row it is the newest copy that was
// written, so rows are of different ages. docs/FORMAT.md, "Recovery by scan". Thread-safety: none.
// Cost: two reads of every block; 16 bytes a run. The bytes that it reads are hostile.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "log/directory.h"
#include "log/log_store.h"
#include "log/manifest.h"
#include "log/segment_files.h"
#include "log/segment_table.h"
#include "log/store_context.h"

namespace te {

class Recovery {
 public:
  Recovery(StoreContext& context, StoreDirectory& directory, SegmentFiles& files,
           SegmentTable& table)
      : context_(context), directory_(directory), files_(files), table_(table) {}
  // Fills the segment table, and tells every row's newest copy first. kCorruption if a block is
  // damaged that the last checkpoint had made durable: what it held may have no other copy.
  Status run(const Manifest& manifest, LogStore::RowRestorer on_row);

 private:
  struct Run {
    uint64_t sequence;
    BlockAddress block;
    LayoutId layout;
  };

  // Appends the runs of a segment's present use, and says what the segment is.
  Status scan(const StoreDirectory::Entry& entry, const SegmentRecord* known,
              SegmentRecord* record);
  Status tell(LogStore::RowRestorer on_row);

  StoreContext& context_;
  StoreDirectory& directory_;
  SegmentFiles& files_;
  SegmentTable& table_;
  std::vector<Run> runs_;
};

}  // namespace te
