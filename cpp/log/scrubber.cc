#include "log/scrubber.h"

#include <algorithm>

#include "log/block.h"

namespace te {
namespace {

constexpr size_t kRequestBytes = size_t{512} << 10;

}  // namespace

Status Scrubber::read(SegmentId segment) {
  const size_t bytes = size_t{table_.blocks_used(segment)} * context_.options.block_bytes;
  if (buffer_.bytes() < bytes) buffer_ = AlignedBuffer(context_.options.segment_bytes);
  Result<IoFile*> file = files_.acquire(segment);
  if (!file) return file.status();
  std::vector<IoRequest> requests;
  for (size_t at = 0; at < bytes; at += kRequestBytes) {
    requests.push_back({IoRequest::Kind::kRead, file.value(), at, buffer_.data() + at,
                        std::min(kRequestBytes, bytes - at)});
  }
  return context_.io->run(requests, [](size_t) {});
}

// What is wrong with the run at a block, or null; `span` is then its length.
const char* Scrubber::check(SegmentId segment, uint32_t block, uint32_t* span) const {
  const std::byte* run = buffer_.data() + size_t{block} * context_.options.block_bytes;
  const LayoutId layout(read_header(run).layout);
  *span = 1;
  if (layout.value >= context_.shapes.size()) return "unknown row layout";
  const RunShape& shape = context_.shape(layout);
  const RunIdentity identity{context_.store_id, table_.sequence(segment),
                             table_.address(segment, block), layout};
  if (const char* wrong = check_header(run, shape, identity); wrong != nullptr) return wrong;
  if (block + shape.span_blocks > table_.blocks_used(segment))
    return "the run crosses the end of the segment";
  *span = shape.span_blocks;
  return check_run(run, shape, identity);
}

void Scrubber::note_rows(SegmentId segment, uint32_t block, const RowOwner& owner) {
  const std::byte* run = buffer_.data() + size_t{block} * context_.options.block_bytes;
  const BlockHeader header = read_header(run);
  const LayoutId layout(header.layout);
  const RunShape& shape = context_.shape(layout);
  const BlockAddress address = table_.address(segment, block);
  for (uint32_t place = 0; place < header.row_count; ++place) {
    const RowId row = row_id_at(run, shape, place);
    if (row.value >= context_.options.total_rows || !owner.is_live(layout, row, address)) continue;
    if (find_row(run, shape, header.row_count, row) != place) continue;  // an obsolete copy
    found_.push_back(row);
    found_bytes_ += shape.share_bytes;
  }
}

// The live rows that the faults cost: those in their blocks, and in the last one those that are in
// no block at all.
void Scrubber::name_rows(SegmentId segment, const RowOwner& owner,
                         std::vector<SegmentFault>& faults, size_t first) {
  std::vector<RowId> lost;
  owner.visit_rows([&](LayoutId, RowId row, BlockAddress block) {
    if (table_.segment_of(block) != segment) return;
    const uint32_t at = table_.block_in_segment(block);
    for (size_t f = first; f < faults.size(); ++f) {
      if (at < faults[f].block || at - faults[f].block >= faults[f].blocks) continue;
      faults[f].rows.push_back(row);
      return;
    }
    if (!std::binary_search(found_.begin(), found_.end(), row)) lost.push_back(row);
  });
  if (lost.empty()) return;
  faults.push_back({segment, 0, 0, "rows are not in the blocks that the index names", lost});
}

Status Scrubber::scrub(SegmentId segment, const RowOwner& owner,
                       std::vector<SegmentFault>& faults) {
  const size_t first = faults.size();
  found_.clear();
  found_bytes_ = 0;
  if (Status status = read(segment); !status) {
    faults.push_back({segment, 0, table_.blocks_used(segment), status.message(), {}});
    name_rows(segment, owner, faults, first);
    return Status::ok();
  }
  bool is_bad = false;  // the last block was
  uint32_t span = 1;
  for (uint32_t block = 0; block < table_.blocks_used(segment); block += span) {
    const char* wrong = check(segment, block, &span);
    if (wrong == nullptr) {
      note_rows(segment, block, owner);
    } else if (is_bad) {
      faults.back().blocks += span;  // the rest of a run whose start is damaged
    } else {
      faults.push_back({segment, block, span, wrong, {}});
    }
    is_bad = wrong != nullptr;
  }
  std::sort(found_.begin(), found_.end());
  if (faults.size() > first || found_bytes_ != table_.live_bytes(segment))
    name_rows(segment, owner, faults, first);
  return Status::ok();
}

}  // namespace te
