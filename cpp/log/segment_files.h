// SegmentFiles: the open files of segments, at most so many at once.
//
// A store has more segments than a process may have open files; the least recently acquired one is
// closed. A file that was written through the page cache is synced before it is closed, so that no
// write-back error is lost between. Thread-safety: none. Ownership: owns the open files. Invariant:
// an acquired file stays open until `open_max() - 1` others have been acquired, a held one until it
// is released, even if that makes more than `open_max()`. Cost: an open() where the file is not
// open yet.
#pragma once

#include <list>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "io/io_engine.h"
#include "log/directory.h"

namespace te {

class SegmentFiles {
 public:
  SegmentFiles(StoreDirectory& directory, IoEngine& io, bool read_only);
  ~SegmentFiles();

  std::string path(SegmentId id) const { return directory_.segment(id); }
  Result<uint64_t> disk_free_bytes() const { return directory_.free_bytes(); }
  // A new file with `bytes` reserved on the disk; nothing is left behind on failure.
  Status create(SegmentId id, uint64_t bytes);
  Result<IoFile*> acquire(SegmentId id);
  // Keeps the file open from acquire to release, as often as it is held.
  Result<IoFile*> hold(SegmentId id);
  void release(SegmentId id);
  // Whether one more file may be held; those that are held are not closed to make room.
  bool has_room() const { return held_ < open_max_; }
  Status remove(SegmentId id);
  // Of a file that had to be closed: what was written to it may be lost.
  const Status& sync_failure() const { return sync_failure_; }

 private:
  struct Entry {
    SegmentId id;
    IoFile file;
    uint32_t holds = 0;
  };
  using Iterator = std::list<Entry>::iterator;

  Iterator* find(SegmentId id);
  Status sync_file(const IoFile& file);
  Status make_room();
  void close(Iterator entry);
  Status insert(SegmentId id, IoFile file);

  StoreDirectory& directory_;
  IoEngine& io_;
  Status sync_failure_;
  const size_t open_max_;
  const IoFile::Mode mode_;
  std::list<Entry> recent_;  // most recently acquired first
  size_t held_ = 0;
  std::vector<Iterator> places_;  // of each segment; recent_.end() where its file is not open
};

}  // namespace te
