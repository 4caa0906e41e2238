// WriteBuffer: the closed blocks at the end of a segment that are not on their way to the disk yet.
//
// Thread-safety: none. Ownership: owns its memory, and passes it on with what it holds. Invariant:
// holds the consecutive blocks [first, first + used) of one segment; a block is written once. Cost:
// one sequential write a flush, or one for each piece between blocks that are still open.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "base/types.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/write_behind.h"

namespace te {

class WriteBuffer {
 public:
  WriteBuffer(StoreContext& context, SegmentTable& table, WriteBehind& behind, uint32_t blocks_max);

  void start(SegmentId segment, uint32_t first_block);
  bool has_room(uint32_t blocks) const { return blocks_used_ + blocks <= blocks_max_; }
  void extend(uint32_t blocks) { blocks_used_ += blocks; }
  bool holds(BlockAddress block) const {
    return block.value - first_address_ < blocks_used_;  // wraps, hence false, below the first
  }
  std::byte* at(BlockAddress block) {
    return memory_.data() + size_t{block.value - first_address_} * context_.options.block_bytes;
  }
  const std::byte* at(BlockAddress block) const {
    return const_cast<WriteBuffer*>(this)->at(block);
  }

  // Blocks of the buffer that are not to be written: their run is still open.
  struct Hole {
    BlockAddress block;
    uint32_t span_blocks = 0;
  };
  // Passes on everything but the holes (ascending) and goes on after the last block. On error
  // nothing has changed, and flushing again is fine.
  Status flush(std::span<const Hole> holes);

 private:
  StoreContext& context_;
  SegmentTable& table_;
  WriteBehind& behind_;
  const uint32_t blocks_max_;
  AlignedBuffer memory_;
  std::vector<WriteBehind::Piece> pieces_;
  SegmentId segment_;
  uint32_t first_block_ = 0;    // within the segment
  uint32_t first_address_ = 0;  // of that block
  uint32_t blocks_used_ = 0;
};

}  // namespace te
