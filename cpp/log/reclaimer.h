// Reclaimer: gives the space of obsolete rows back. Greedy: the segment with the fewest live bytes.
//
// Rosenblum and Ousterhout, "The design and implementation of a log-structured file system", 1992,
// describe the scheme; greedy with survivors in a stream of their own was best in our simulations
// (docs/ARCHITECTURE.md). The victim is read a chunk at a time by the store's worker; what a call
// does itself is to move the live rows of chunks that have arrived. Thread-safety: none, but
// wait_for_chunk. Ownership: owns its read buffer, allocated at the first use. Invariant: a row
// moves completely or not at all, so any error leaves every row readable. Cost: per segment one
// sequential read of its blocks and one write of its live rows; nothing at all if it has none.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "io/io_worker.h"
#include "log/segment_files.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/writer.h"

namespace te {

class Reclaimer {
 public:
  Reclaimer(StoreContext& context, SegmentTable& table, SegmentFiles& files,
            SegmentWriter& survivors);
  ~Reclaimer();
  // How urgent: nothing to do; used space is close to its bound; over it, or puts wait for space.
  using Need = LogStore::Need;
  Need need(const RowOwner& owner) const;
  // See LogStore::rows_bytes.
  uint64_t rows_bytes(const RowOwner& owner) const;
  bool is_at_work() const { return !victim_.is_none(); }
  // Works until nothing asks for it, nothing is worth it, survivors find no space, the next chunk
  // has not arrived and `wait` is false, or `chunks_max` chunks are done; then the next is being
  // read. Lack of space is not an error here: the next put reports it. A victim that cannot be read
  // is an error once, and then left alone.
  Status reclaim(RowOwner& owner, uint32_t chunks_max, bool wait);
  // See LogStore::take_chunks_owed.
  uint32_t take_chunks_owed(const RowOwner& owner);
  // Until the chunk that is being read has arrived. Any thread may wait while others use the store.
  void wait_for_chunk();
  // Forgets the victim at hand; its rows that have not moved stay where they are.
  void abandon();

 private:
  SegmentId choose_victim() const;
  // Starts on a victim; false if there is none.
  Result<bool> begin();
  Status read_chunk();
  Status rescue_chunk(RowOwner& owner);
  Status rescue_run(RowOwner& owner, const std::byte* run, BlockAddress block, LayoutId layout);
  const char* check_rescued(const std::byte* run, BlockAddress block, uint32_t blocks_left) const;
  Status finish_victim();

  StoreContext& context_;
  SegmentTable& table_;
  SegmentFiles& files_;
  SegmentWriter& survivors_;
  const uint64_t slack_bytes_;
  const uint32_t fill_bytes_;  // of a segment that is packed as well as any
  AlignedBuffer buffer_;
  IoWorker::Job job_;
  SegmentId victim_;           // none: idle
  uint32_t chunk_first_ = 0;   // its block where the chunk at hand begins
  uint32_t chunk_blocks_ = 0;  // 0: none is being read
  bool is_damaged_ = false;    // the last error was the victim's own
};

}  // namespace te
