// WriteBehind: blocks that have left their writer and are on their way to the disk.
//
// The store's worker writes them while steps go on; until that is booked they are read from here,
// and their segment stays open. A write that failed stays too, readable, and is tried again at
// every `settle` until it succeeds. Thread-safety: none, as LogStore. Ownership: owns the memory of
// the blocks and keeps it for reuse; holds their files. Invariant: at most kPendingMax writes are
// under way. Cost: a list of a few entries; a full list makes its writer wait for the oldest.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "base/types.h"
#include "io/io_worker.h"
#include "log/segment_table.h"
#include "log/store_context.h"

namespace te {

class WriteBehind {
 public:
  static constexpr size_t kPendingMax = 8;

  WriteBehind(StoreContext& context, SegmentTable& table, SegmentFiles& files);
  ~WriteBehind();

  AlignedBuffer take_buffer(size_t bytes);
  // Blocks [begin, end) of the memory that is submitted.
  struct Piece {
    uint32_t begin = 0;
    uint32_t end = 0;
  };
  // Writes pieces of `memory`, which holds blocks of one segment from `first` on, and takes the
  // memory. On error nothing has changed.
  Status submit(AlignedBuffer& memory, BlockAddress first, uint32_t blocks,
                std::span<const Piece> pieces);
  // The run at `block`, if it is here.
  const std::byte* find(BlockAddress block) const;
  // Books the writes that have ended.
  Status settle();
  // Waits for all; ok only if all have succeeded.
  Status drain();

 private:
  struct Pending {
    IoWorker::Job job;
    AlignedBuffer memory;
    BlockAddress first;
    uint32_t blocks = 0;
    SegmentId segment;
  };

  Status settle(Pending& pending);

  StoreContext& context_;
  SegmentTable& table_;
  SegmentFiles& files_;
  std::vector<std::unique_ptr<Pending>> pending_;  // oldest first
  std::vector<std::unique_ptr<Pending>> idle_;
  std::vector<AlignedBuffer> buffers_;
};

}  // namespace te
