#include "log/write_buffer.h"

namespace te {

WriteBuffer::WriteBuffer(StoreContext& context, SegmentTable& table, WriteBehind& behind,
                         uint32_t blocks_max)
    : context_(context),
      table_(table),
      behind_(behind),
      blocks_max_(blocks_max),
      memory_(size_t{blocks_max} * context.options.block_bytes) {}

void WriteBuffer::start(SegmentId segment, uint32_t first_block) {
  segment_ = segment;
  first_block_ = first_block;
  first_address_ = table_.address(segment, first_block).value;
  blocks_used_ = 0;
}

Status WriteBuffer::flush(std::span<const Hole> holes) {
  if (blocks_used_ == 0) return Status::ok();
  pieces_.clear();
  uint32_t begin = 0;
  for (const Hole& hole : holes) {
    const uint32_t end = hole.block.value - first_address_;
    if (begin < end) pieces_.push_back({begin, end});
    begin = end + hole.span_blocks;
  }
  if (begin < blocks_used_) pieces_.push_back({begin, blocks_used_});
  if (!pieces_.empty()) {
    TE_RETURN_IF_ERROR(
        behind_.submit(memory_, BlockAddress(first_address_), blocks_used_, pieces_));
    memory_ = behind_.take_buffer(size_t{blocks_max_} * context_.options.block_bytes);
  }
  start(segment_, first_block_ + blocks_used_);
  return Status::ok();
}

}  // namespace te
