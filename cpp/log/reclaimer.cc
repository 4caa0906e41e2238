#include "log/reclaimer.h"

#include <algorithm>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;
constexpr size_t kRequestBytes = size_t{128} << 10;
// The segments that two writers hold open and their last ones say nothing about garbage.
constexpr uint64_t kSlackSegments = 4;
// A victim must give back at least one part in this many, or reclaiming it is motion without gain.
constexpr uint32_t kGainParts = 16;

uint32_t widest_span(const StoreContext& context) {
  uint32_t span = 1;
  for (const RunShape& shape : context.shapes) span = std::max(span, shape.span_blocks);
  return span;
}

size_t chunk_bytes(const StoreContext& context) {
  const size_t block_bytes = context.options.block_bytes;
  const size_t run_bytes = widest_span(context) * block_bytes;
  const size_t wanted = std::min<size_t>(kChunkBytes, context.options.segment_bytes);
  return std::max(wanted / block_bytes * block_bytes, run_bytes);
}

}  // namespace

// A run does not cross the end of a segment, so that up to one run less a block may stay unused.
Reclaimer::Reclaimer(StoreContext& context, SegmentTable& table, SegmentFiles& files,
                     SegmentWriter& survivors)
    : context_(context),
      table_(table),
      files_(files),
      survivors_(survivors),
      slack_bytes_((kSlackSegments + context.shapes.size()) * context.options.segment_bytes),
      fill_bytes_(context.options.segment_bytes -
                  (widest_span(context) - 1) * context.options.block_bytes) {}

bool Reclaimer::is_over_bound() const {
  const double packed_ratio = double(context_.options.segment_bytes) / fill_bytes_;
  const double allowed_bytes = context_.options.space_bound_ratio * packed_ratio *
                               static_cast<double>(table_.live_bytes_total());
  return static_cast<double>(table_.used_bytes()) >
         allowed_bytes + static_cast<double>(slack_bytes_);
}

SegmentId Reclaimer::choose_victim() const {
  // Where puts wait for space, a segment that must stay for the manifest gives none back now.
  SegmentId victim = SegmentId::none();
  const auto is_worth_it = [&](SegmentId id) {
    return !id.is_none() && table_.live_bytes(id) <= fill_bytes_ - fill_bytes_ / kGainParts;
  };
  if (table_.shortage() > 0) victim = table_.emptiest(false);
  if (!is_worth_it(victim)) victim = table_.emptiest(true);
  return is_worth_it(victim) ? victim : SegmentId::none();
}

Status Reclaimer::reclaim(RowOwner& owner, uint32_t segments_max) {
  for (uint32_t done = 0; done < segments_max; ++done) {
    if (table_.shortage() == 0 && !is_over_bound()) break;
    const SegmentId victim = choose_victim();
    if (victim.is_none()) break;
    if (table_.live_bytes(victim) > 0) {
      Status status = rescue(owner, victim);
      if (status.code() == StatusCode::kNoSpace) break;
      TE_RETURN_IF_ERROR(std::move(status));
    }
    ++context_.stats.segments_reclaimed;
    TE_RETURN_IF_ERROR(table_.drop(victim));
  }
  return Status::ok();
}

Status Reclaimer::read_chunk(const IoFile* file, uint32_t first_block, uint32_t blocks) {
  const size_t block_bytes = context_.options.block_bytes;
  const size_t bytes = blocks * block_bytes;
  requests_.clear();
  for (size_t at = 0; at < bytes; at += kRequestBytes) {
    requests_.push_back({IoRequest::Kind::kRead, file, first_block * block_bytes + at,
                         buffer_.data() + at, std::min(kRequestBytes, bytes - at)});
  }
  TE_RETURN_IF_ERROR(context_.io->run(requests_, [](size_t) {}));
  context_.stats.blocks_read += blocks;
  context_.stats.read_bytes += bytes;
  return Status::ok();
}

Status Reclaimer::rescue(RowOwner& owner, SegmentId victim) {
  if (buffer_.bytes() == 0) buffer_ = AlignedBuffer(chunk_bytes(context_));
  const size_t block_bytes = context_.options.block_bytes;
  const auto chunk_blocks = static_cast<uint32_t>(buffer_.bytes() / block_bytes);
  const uint32_t blocks_used = table_.blocks_used(victim);
  // Chunks start where a run starts; one that the end of a chunk cuts starts the next chunk.
  for (uint32_t chunk = 0; chunk < blocks_used && table_.live_bytes(victim) > 0;) {
    const uint32_t blocks = std::min(chunk_blocks, blocks_used - chunk);
    // Survivors were written in between, which may have closed the file.
    Result<IoFile*> file = files_.acquire(victim);
    if (!file) return file.status();
    TE_RETURN_IF_ERROR(read_chunk(file.value(), chunk, blocks));
    uint32_t at = 0;
    while (at < blocks) {
      const std::byte* run = buffer_.data() + at * block_bytes;
      const BlockAddress block = table_.address(victim, chunk + at);
      const char* wrong = check_rescued(run, block, blocks_used - chunk - at);
      const BlockHeader header = read_header(run);
      if (wrong == nullptr && at + header.span_blocks > blocks) break;
      const LayoutId layout(header.layout);
      if (wrong == nullptr) {
        const RunIdentity identity{context_.store_id, table_.sequence(victim), block, layout};
        wrong = check_run(run, context_.shape(layout), identity);
      }
      if (wrong != nullptr) {
        return Status(StatusCode::kCorruption, table_.describe(block) + ": " + wrong);
      }
      TE_RETURN_IF_ERROR(rescue_run(owner, run, block, layout));
      at += header.span_blocks;
    }
    chunk += at;
  }
  TE_CHECK(table_.live_bytes(victim) == 0);  // else the owner counts a row that is not there
  return Status::ok();
}

const char* Reclaimer::check_rescued(const std::byte* run, BlockAddress block,
                                     uint32_t blocks_left) const {
  const LayoutId layout(read_header(run).layout);
  if (layout.value >= context_.shapes.size()) return "unknown row layout";
  const RunShape& shape = context_.shape(layout);
  if (shape.span_blocks > blocks_left) return "the run crosses the end of the segment";
  const RunIdentity identity{context_.store_id, table_.sequence(table_.segment_of(block)), block,
                             layout};
  return check_header(run, shape, identity);
}

Status Reclaimer::rescue_run(RowOwner& owner, const std::byte* run, BlockAddress block,
                             LayoutId layout) {
  const RunShape& shape = context_.shape(layout);
  const BlockHeader header = read_header(run);
  // From the last: of a row that stands in a run twice, the last copy counts, and once it has moved
  // the owner no longer takes the first for live.
  for (uint32_t place = header.row_count; place-- > 0;) {
    const RowId row = row_id_at(run, shape, place);
    if (row.value >= context_.options.total_rows) {
      return Status(StatusCode::kCorruption, table_.describe(block) + ": row " +
                                                 std::to_string(row.value) + " does not exist");
    }
    if (!owner.is_live(layout, row, block)) continue;
    BlockAddress to;
    TE_RETURN_IF_ERROR(
        survivors_.append_survivor(layout, row, row_at(run, shape, place), header.sequence, &to));
    owner.relocated(layout, row, block, to);
    table_.remove_live(block, shape.share_bytes);
    ++context_.stats.rows_reclaimed;
  }
  return Status::ok();
}

}  // namespace te
