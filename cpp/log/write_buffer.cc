#include "log/write_buffer.h"

namespace te {

WriteBuffer::WriteBuffer(StoreContext& context, SegmentTable& table, SegmentFiles& files,
                         uint32_t blocks_max)
    : context_(context),
      table_(table),
      files_(files),
      blocks_max_(blocks_max),
      memory_(size_t{blocks_max} * context.options.block_bytes) {}

void WriteBuffer::start(SegmentId segment, uint32_t first_block) {
  segment_ = segment;
  first_block_ = first_block;
  first_address_ = table_.address(segment, first_block).value;
  blocks_used_ = 0;
}

void WriteBuffer::add_piece(const IoFile* file, uint32_t begin, uint32_t end) {
  if (begin == end) return;
  const size_t block_bytes = context_.options.block_bytes;
  requests_.push_back({IoRequest::Kind::kWrite, file, (first_block_ + begin) * block_bytes,
                       memory_.data() + begin * block_bytes, (end - begin) * block_bytes});
}

Status WriteBuffer::flush(std::span<const Hole> holes) {
  if (blocks_used_ == 0) return Status::ok();
  Result<IoFile*> file = files_.acquire(segment_);
  if (!file) return file.status();
  requests_.clear();
  uint32_t begin = 0;
  for (const Hole& hole : holes) {
    const uint32_t end = hole.block.value - first_address_;
    add_piece(file.value(), begin, end);
    begin = end + hole.span_blocks;
  }
  add_piece(file.value(), begin, blocks_used_);
  if (!requests_.empty()) {
    table_.mark_unsynced(segment_);
    TE_RETURN_IF_ERROR(context_.io->run(requests_, [](size_t) {}));
    for (const IoRequest& request : requests_) context_.stats.written_bytes += request.bytes;
  }
  start(segment_, first_block_ + blocks_used_);
  return Status::ok();
}

}  // namespace te
