// Checkpointer: makes the state of a store durable as one atomic step, and brings it back.
//
// Order, each step durable before the next: segment data, index file, manifest under a temporary
// name, directory, rename, directory. Until the rename the old checkpoint is what opens, after it
// the new one; files of neither are deleted only once the rename is durable. Thread-safety: none.
// Invariant: after an error the store goes on, with the old checkpoint, except after a failed sync:
// the system may have dropped what it could not write, so no later checkpoint is trusted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "log/directory.h"
#include "log/log_store.h"
#include "log/manifest.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/writer.h"

namespace te {

class Checkpointer {
 public:
  Checkpointer(StoreContext& context, StoreDirectory& directory, SegmentTable& table,
               WriteBehind& behind, SegmentWriter& outside, SegmentWriter& survivors);

  Status write(const RowOwner& owner, const std::string& metadata);
  // Rebuilds the segment table from a manifest and its index, then deletes what neither names.
  Status restore(const Manifest& manifest, RowOwner::RowVisitor on_row);
  // Deletes leftovers of a store that was never finished.
  Status clear_directory();

 private:
  Status write_blocks();
  Result<IndexSummary> write_index(const RowOwner& owner, uint64_t checkpoint);
  Status write_manifest(const Manifest& manifest);
  Status restore_segments(const Manifest& manifest,
                          const std::vector<StoreDirectory::Entry>& entries);
  Status restore_rows(const Manifest& manifest, RowOwner::RowVisitor on_row);
  Status discard_unreferenced(const Manifest& manifest,
                              const std::vector<StoreDirectory::Entry>& entries);

  StoreContext& context_;
  StoreDirectory& directory_;
  SegmentTable& table_;
  WriteBehind& behind_;
  SegmentWriter& outside_;
  SegmentWriter& survivors_;
  uint64_t checkpoint_last_ = 0;            // number of the last attempt
  std::vector<std::string> indexes_stale_;  // index files to delete after the next checkpoint
  Status sync_failure_;
};

}  // namespace te
