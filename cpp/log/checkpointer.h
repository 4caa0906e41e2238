// Checkpointer: makes the state of a store durable as one atomic step, and brings it back.
//
// Order, each step durable before the next: segment data, index file, manifest under a temporary
// name, directory, rename, directory. Until the rename the old checkpoint is what opens, after it
// the new one; files of neither are deleted only once the rename is durable. An index tells what
// has changed since the one before; when the changes since a whole one come to half of it, the
// chain is merged into another whole one, and where there are many small ones, these into one.
// Between checkpoints, changes go to indexes of their own, which count once a manifest names them,
// so that however many there are, the list of them stays short. Where the changes are not known,
// the owner is asked for all. Thread-safety: none, but `write` and `write_changes`, which touch
// only what is at hand and the engine. Invariant: after an error the store goes on, with the old
// checkpoint, except after a failed sync: the system may have dropped what it could not write, so
// no later checkpoint is trusted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "log/directory.h"
#include "log/index_snapshot.h"
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

  // See LogStore::begin_checkpoint, and the two after it.
  Status begin(const RowOwner& owner, const std::string& metadata, bool seal);
  Status write();
  Status end(Status written);
  // See LogStore::changes_need, and the three after it.
  LogStore::Need changes_need() const;
  void begin_changes(bool may_merge);
  Status write_changes();
  void end_changes(Status written);
  // Rebuilds the segment table from a manifest and its indexes, then deletes what neither names.
  Status restore(const Manifest& manifest, LogStore::RowRestorer on_row);
  // The next checkpoint follows this one, whose indexes it does not use.
  Status go_on_after(const Manifest& manifest);
  // Deletes leftovers of a store that was never finished.
  Status clear_directory();

 private:
  // The checkpoint between begin and end, or only its index.
  struct AtHand {
    Manifest manifest;
    std::vector<ChangeList::Change> changes;  // of the last index, unless it is written already
    bool has_index = false;
    size_t merge_from = 0;
    uint64_t live_bytes = 0;
    std::vector<SegmentId> unsynced;
    bool is_synced = false;
    uint64_t written_bytes = 0;
    bool is_sync_failed = false;
  };

  void start_next();
  Status write_blocks(bool seal);
  Status sync_segments();
  bool knows_changes() const;
  size_t merge_from() const;
  size_t merge_small() const;
  std::string index_path() const;  // of the checkpoint at hand
  Status start_index(IndexWriter& writer);
  // Of all rows, in the indexes' place: from the owner, or from the indexes and the changes.
  Status write_whole_index(const RowOwner& owner);
  Status write_index();
  Status merge_indexes();
  void drop_index(uint64_t checkpoint);
  void drop_chain();
  // Of the changes, after the indexes.
  Status write_index_of_changes();
  Status write_manifest();
  Status restore_segments(const Manifest& manifest,
                          const std::vector<StoreDirectory::Entry>& entries);
  Status restore_rows(const Manifest& manifest, LogStore::RowRestorer on_row);
  Status discard_unreferenced(const Manifest& manifest,
                              const std::vector<StoreDirectory::Entry>& entries);

  StoreContext& context_;
  StoreDirectory& directory_;
  SegmentTable& table_;
  WriteBehind& behind_;
  SegmentWriter& outside_;
  SegmentWriter& survivors_;
  uint64_t checkpoint_last_ = 0;      // number of the last attempt
  std::vector<IndexRecord> indexes_;  // of the last checkpoint
  std::vector<IndexRecord> chain_;    // they, or what has replaced some, and the changes since
  bool is_changes_failed_ = false;    // since the last checkpoint
  std::vector<uint64_t> stale_;       // numbers of index files that no checkpoint needs
  AtHand at_hand_;
  Status sync_failure_;
};

}  // namespace te
