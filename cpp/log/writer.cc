#include "log/writer.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace te {
namespace {

constexpr uint32_t kWriteBufferBytes = 1u << 20;

// A buffer holds at least one run of every layout.
uint32_t choose_buffer_blocks(const StoreContext& context) {
  const LogOptions& options = context.options;
  uint32_t blocks = std::min(kWriteBufferBytes, options.segment_bytes) / options.block_bytes;
  for (const RunShape& shape : context.shapes) blocks = std::max(blocks, shape.span_blocks);
  return blocks;
}

}  // namespace

SegmentWriter::SegmentWriter(StoreContext& context, SegmentTable& table, WriteBehind& behind,
                             Source source)
    : context_(context),
      table_(table),
      behind_(behind),
      source_(source),
      buffer_(context, table, behind, choose_buffer_blocks(context)),
      open_(context.shapes.size()) {
  holes_.reserve(open_.size());
}

Status SegmentWriter::prepare(LayoutId layout, size_t rows) {
  const RunShape& shape = context_.shape(layout);
  const OpenRun& run = open_[layout.value];
  const size_t room = run.rows > 0 ? shape.rows_max - run.rows : 0;
  if (rows <= room) return Status::ok();
  size_t runs = (rows - room + shape.rows_max - 1) / shape.rows_max;
  const uint32_t blocks_left = segment_.is_none() ? 0 : context_.blocks_per_segment - next_block_;
  runs -= std::min<size_t>(runs, blocks_left / shape.span_blocks);
  const size_t runs_per_segment = context_.blocks_per_segment / shape.span_blocks;
  const size_t segments = (runs + runs_per_segment - 1) / runs_per_segment;
  if (segments <= spares_.size()) return Status::ok();
  return table_.allocate(static_cast<uint32_t>(segments - spares_.size()), spares_);
}

Status SegmentWriter::append(LayoutId layout, const RowList& list,
                             std::span<BlockAddress> out_blocks, size_t* appended) {
  const RunShape& shape = context_.shape(layout);
  OpenRun& run = open_[layout.value];
  const size_t n = list.rows.size();
  *appended = 0;
  for (size_t i = 0; i < n;) {
    if (run.rows == shape.rows_max) TE_RETURN_IF_ERROR(close_run(layout));
    if (run.rows == 0) TE_RETURN_IF_ERROR(open_run(layout));
    const size_t take = std::min<size_t>(n - i, shape.rows_max - run.rows);
    write_rows(run.bytes.data(), shape, run.rows, list, i, i + take);
    std::fill_n(out_blocks.begin() + static_cast<ptrdiff_t>(i), take, run.block);
    table_.add_live(run.block, take, shape.share_bytes);
    for (size_t k = i; k < i + take; ++k) context_.changes.add(layout, list.rows[k], run.block);
    run.rows += static_cast<uint32_t>(take);
    i += take;
    *appended = i;
    // In the buffer, closing is a copy; elsewhere it is a write, which may wait until it must be.
    const bool full = run.rows == shape.rows_max;
    if (full && buffer_.holds(run.block)) TE_RETURN_IF_ERROR(close_run(layout));
  }
  return Status::ok();
}

Status SegmentWriter::append_survivor(LayoutId layout, RowId row, const std::byte* data,
                                      uint64_t source_sequence, BlockAddress* out_block) {
  const OpenRun& run = open_[layout.value];
  if (run.rows > 0 && run.sequence <= source_sequence) TE_RETURN_IF_ERROR(close_run(layout));
  size_t appended = 0;
  Status status = append(layout, {{&row, 1}, {&data, 1}}, {out_block, 1}, &appended);
  // A row that is in counts, even if closing its run failed: that will be tried again.
  return appended == 1 ? Status::ok() : status;
}

Status SegmentWriter::open_run(LayoutId layout) {
  const RunShape& shape = context_.shape(layout);
  const uint32_t span = shape.span_blocks;
  if (segment_.is_none() || next_block_ + span > context_.blocks_per_segment) {
    TE_RETURN_IF_ERROR(next_segment());
  } else if (!buffer_.has_room(span)) {
    TE_RETURN_IF_ERROR(flush());
  }
  OpenRun& run = open_[layout.value];
  if (run.bytes.bytes() == 0) run.bytes = AlignedBuffer(shape.run_bytes);
  run.block = table_.address(segment_, next_block_);
  run.sequence = source_ == Source::kSurvivors ? context_.sequence_next++ : 0;
  next_block_ += span;
  buffer_.extend(span);
  table_.run_opened(segment_, next_block_);
  return Status::ok();
}

Status SegmentWriter::close_run(LayoutId layout) {
  const RunShape& shape = context_.shape(layout);
  OpenRun& run = open_[layout.value];
  const SegmentId segment = table_.segment_of(run.block);
  if (source_ == Source::kOutside) run.sequence = context_.sequence_next++;
  const RunIdentity identity{context_.store_id, table_.sequence(segment), run.block, layout};
  seal_run(run.bytes.data(), shape, identity, run.rows, run.sequence);
  if (buffer_.holds(run.block)) {
    std::memcpy(buffer_.at(run.block), run.bytes.data(), shape.run_bytes);
  } else {
    AlignedBuffer copy = behind_.take_buffer(shape.run_bytes);
    std::memcpy(copy.data(), run.bytes.data(), shape.run_bytes);
    const WriteBehind::Piece all{0, shape.span_blocks};
    TE_RETURN_IF_ERROR(behind_.submit(copy, run.block, shape.span_blocks, {&all, 1}));
  }
  run.rows = 0;
  run.block = BlockAddress::none();
  table_.run_closed(segment);
  return Status::ok();
}

Status SegmentWriter::next_segment() {
  if (spares_.empty()) {
    TE_CHECK(source_ == Source::kSurvivors);  // rows from outside come after `prepare`
    Result<SegmentId> id = table_.allocate_for_survivors();
    if (!id) return id.status();
    spares_.push_back(id.value());
  }
  TE_RETURN_IF_ERROR(flush());
  if (!segment_.is_none()) table_.leave(segment_);
  segment_ = spares_.back();
  spares_.pop_back();
  table_.begin(segment_);
  next_block_ = 0;
  buffer_.start(segment_, 0);
  return Status::ok();
}

Status SegmentWriter::flush() {
  holes_.clear();
  for (size_t l = 0; l < open_.size(); ++l) {
    if (open_[l].rows > 0 && buffer_.holds(open_[l].block)) {
      holes_.push_back({open_[l].block, context_.shapes[l].span_blocks});
    }
  }
  std::sort(holes_.begin(), holes_.end(),
            [](const auto& a, const auto& b) { return a.block < b.block; });
  return buffer_.flush(holes_);
}

Status SegmentWriter::close_all() {
  for (size_t l = 0; l < open_.size(); ++l) {
    if (open_[l].rows > 0) TE_RETURN_IF_ERROR(close_run(LayoutId(static_cast<uint16_t>(l))));
  }
  return flush();
}

Status SegmentWriter::finish_segment() {
  TE_RETURN_IF_ERROR(close_all());
  if (segment_.is_none()) return Status::ok();
  table_.leave(segment_);
  segment_ = SegmentId::none();
  return Status::ok();
}

void SegmentWriter::return_spares() {
  for (SegmentId spare : spares_) table_.return_spare(spare);
  spares_.clear();
}

RunInMemory SegmentWriter::find(BlockAddress block) const {
  for (const OpenRun& run : open_) {
    if (run.rows > 0 && run.block == block) return {run.bytes.data(), run.rows};
  }
  if (!buffer_.holds(block)) return {};
  const std::byte* run = buffer_.at(block);
  return {run, read_header(run).row_count};
}

}  // namespace te
