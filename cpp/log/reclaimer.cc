#include "log/reclaimer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace te {
namespace {

// What is moved in one go, while a step may wait.
constexpr size_t kChunkBytes = size_t{512} << 10;
constexpr size_t kRequestBytes = size_t{128} << 10;
// The segments that two writers hold open and their last ones say nothing about garbage.
constexpr uint64_t kSlackSegments = 4;
// A victim must give back at least one part in this many, or reclaiming it is motion without gain.
constexpr uint32_t kGainParts = 16;
// What a put owes when space is over its bound, in bytes of victims: with victims three quarters
// full four bytes give one back, so that twice that catches up. Not all of it at once after a flush
// of many rows.
constexpr uint64_t kOwedPerPutByte = 8;
constexpr uint64_t kOwedBytesMax = uint64_t{64} << 20;
// Reclaiming in the background begins so many parts of the bound before it.
constexpr uint64_t kEarlyParts = 64;

uint32_t widest_span(const StoreContext& context) {
  uint32_t span = 1;
  for (const RunShape& shape : context.shapes) span = std::max(span, shape.span_blocks);
  return span;
}

// Blocks of a segment that is packed as well as any. A run does not cross its end, so that up to
// one run less a block may stay unused; runs of one length say how much.
uint32_t fill_blocks(const StoreContext& context) {
  const uint32_t span = widest_span(context);
  const bool one_length = std::all_of(context.shapes.begin(), context.shapes.end(),
                                      [=](const RunShape& s) { return s.span_blocks == span; });
  const uint32_t unused = one_length ? context.blocks_per_segment % span : span - 1;
  return context.blocks_per_segment - unused;
}

size_t chunk_bytes(const StoreContext& context) {
  const size_t block_bytes = context.options.block_bytes;
  const size_t run_bytes = widest_span(context) * block_bytes;
  const size_t wanted = std::min<size_t>(kChunkBytes, context.options.segment_bytes);
  return std::max(wanted / block_bytes * block_bytes, run_bytes);
}

}  // namespace

Reclaimer::Reclaimer(StoreContext& context, SegmentTable& table, SegmentFiles& files,
                     SegmentWriter& survivors)
    : context_(context),
      table_(table),
      files_(files),
      survivors_(survivors),
      slack_bytes_((kSlackSegments + context.shapes.size()) * context.options.segment_bytes),
      fill_bytes_(fill_blocks(context) * context.options.block_bytes) {}

Reclaimer::~Reclaimer() { abandon(); }

uint64_t Reclaimer::rows_bytes(const RowOwner& owner) const {
  uint64_t bytes = table_.live_bytes_total();
  for (size_t l = 0; l < context_.shapes.size(); ++l) {
    const LayoutId layout(static_cast<uint16_t>(l));
    bytes += owner.rows_without_copy(layout) * context_.shape(layout).share_bytes;
  }
  return bytes;
}

Reclaimer::Need Reclaimer::need(const RowOwner& owner) const {
  if (table_.shortage() > 0) return Need::kUrgent;
  const double packed_ratio = double(context_.options.segment_bytes) / fill_bytes_;
  const double bound_ratio = context_.options.space_bound_ratio * packed_ratio;
  const uint64_t allowed =
      slack_bytes_ + static_cast<uint64_t>(bound_ratio * static_cast<double>(rows_bytes(owner)));
  if (table_.used_bytes() <= allowed - allowed / kEarlyParts) return Need::kNone;
  return table_.used_bytes() <= allowed ? Need::kSome : Need::kUrgent;
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

Status Reclaimer::reclaim(RowOwner& owner, uint32_t chunks_max, bool wait) {
  for (uint32_t done = 0;;) {
    if (victim_.is_none()) {
      if (need(owner) == Need::kNone) return Status::ok();
      Result<bool> begun = begin();
      if (!begun) return begun.status();
      if (!begun.value()) return Status::ok();
    }
    if (chunk_blocks_ > 0) {
      if (done == chunks_max) return Status::ok();  // the next one is being read
      if (!wait && !job_.is_done()) return Status::ok();
      context_.worker->wait(job_);
      Status status = rescue_chunk(owner);
      if (status.code() == StatusCode::kNoSpace) {
        abandon();
        return Status::ok();
      }
      if (!status) {
        if (is_damaged_) table_.set_damaged(victim_);
        abandon();
        return status;
      }
      ++done;
    }
    if (chunk_first_ >= table_.blocks_used(victim_) || table_.live_bytes(victim_) == 0) {
      TE_RETURN_IF_ERROR(finish_victim());
    } else if (Status status = read_chunk(); !status) {
      abandon();
      return status;
    }
  }
}

uint32_t Reclaimer::take_chunks_owed(const RowOwner& owner) {
  const uint64_t put_bytes = std::exchange(context_.put_bytes, 0);
  if (put_bytes == 0 || need(owner) != Need::kUrgent) return 0;
  const uint64_t owed_bytes = std::min(kOwedPerPutByte * put_bytes, kOwedBytesMax);
  return static_cast<uint32_t>(owed_bytes / chunk_bytes(context_) + 1);
}

Result<bool> Reclaimer::begin() {
  const SegmentId victim = choose_victim();
  if (victim.is_none()) return false;
  Result<IoFile*> file = files_.hold(victim);
  if (!file) return file.status();
  victim_ = victim;
  chunk_first_ = 0;
  chunk_blocks_ = 0;
  return true;
}

void Reclaimer::wait_for_chunk() { context_.worker->wait(job_); }

void Reclaimer::abandon() {
  if (victim_.is_none()) return;
  context_.worker->wait(job_);
  files_.release(victim_);
  victim_ = SegmentId::none();
  chunk_blocks_ = 0;
}

Status Reclaimer::finish_victim() {
  TE_CHECK(table_.live_bytes(victim_) == 0);  // else the owner counts a row that is not there
  const SegmentId done = victim_;
  abandon();
  ++context_.stats.segments_reclaimed;
  return table_.drop(done);
}

Status Reclaimer::read_chunk() {
  if (buffer_.bytes() == 0) buffer_ = AlignedBuffer(chunk_bytes(context_));
  const size_t block_bytes = context_.options.block_bytes;
  const auto blocks_max = static_cast<uint32_t>(buffer_.bytes() / block_bytes);
  Result<IoFile*> file = files_.acquire(victim_);
  if (!file) return file.status();
  chunk_blocks_ = std::min(blocks_max, table_.blocks_used(victim_) - chunk_first_);
  const size_t bytes = chunk_blocks_ * block_bytes;
  job_.requests.clear();
  for (size_t at = 0; at < bytes; at += kRequestBytes) {
    job_.requests.push_back({IoRequest::Kind::kRead, file.value(), chunk_first_ * block_bytes + at,
                             buffer_.data() + at, std::min(kRequestBytes, bytes - at)});
  }
  context_.worker->submit(job_);
  return Status::ok();
}

// Moves the live rows of the chunk. A chunk starts where a run starts; a run that its end cuts
// starts the next one.
Status Reclaimer::rescue_chunk(RowOwner& owner) {
  const size_t block_bytes = context_.options.block_bytes;
  const uint32_t blocks = std::exchange(chunk_blocks_, 0);
  is_damaged_ = true;  // until it turns out to be readable
  TE_RETURN_IF_ERROR(Status(job_.status));
  context_.stats.reclaim_read_bytes += blocks * block_bytes;
  uint32_t at = 0;
  while (at < blocks) {
    const std::byte* run = buffer_.data() + at * block_bytes;
    const BlockAddress block = table_.address(victim_, chunk_first_ + at);
    const uint32_t blocks_left = table_.blocks_used(victim_) - chunk_first_ - at;
    const char* wrong = check_rescued(run, block, blocks_left);
    const BlockHeader header = read_header(run);
    if (wrong == nullptr && at + header.span_blocks > blocks) break;
    const LayoutId layout(header.layout);
    if (wrong == nullptr) {
      const RunIdentity identity{context_.store_id, table_.sequence(victim_), block, layout};
      wrong = check_run(run, context_.shape(layout), identity);
    }
    if (wrong != nullptr) {
      return Status(StatusCode::kCorruption, table_.describe(block) + ": " + wrong);
    }
    is_damaged_ = false;
    TE_RETURN_IF_ERROR(rescue_run(owner, run, block, layout));
    is_damaged_ = true;
    at += header.span_blocks;
  }
  chunk_first_ += at;
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
      is_damaged_ = true;
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
