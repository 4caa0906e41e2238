#include "log/reader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace te {
namespace {

// Neighbouring blocks are merged up to this: larger reads would keep the drive's channels from
// sharing the work, and take more of the staging buffer.
constexpr size_t kPlaceBytes = size_t{16} << 10;
constexpr size_t kPlacesMin = 4;

size_t choose_place_bytes(const StoreContext& context) {
  size_t bytes = std::max<size_t>(kPlaceBytes, context.options.block_bytes);
  for (const RunShape& shape : context.shapes) bytes = std::max<size_t>(bytes, shape.run_bytes);
  return bytes;
}

size_t choose_places(const StoreContext& context, size_t place_bytes) {
  const size_t affordable = context.options.read_buffer_bytes / place_bytes;
  return std::clamp(affordable, kPlacesMin, std::max(context.io->depth(), kPlacesMin));
}

// Sorting: fewer keys than this are compared, more are counted, so many bits of the block at once.
constexpr size_t kCountedKeysMin = 1024;
constexpr int kDigitBits = 11;
constexpr int kDigits = 3;

BlockAddress block_of(uint64_t key) { return BlockAddress(static_cast<uint32_t>(key >> 32)); }

}  // namespace

BlockReader::BlockReader(StoreContext& context, SegmentTable& table, SegmentFiles& files,
                         const WriteBehind& behind, std::span<const SegmentWriter* const> writers)
    : context_(context),
      table_(table),
      files_(files),
      behind_(behind),
      writers_(writers.begin(), writers.end()),
      place_bytes_(choose_place_bytes(context)),
      staging_(choose_places(context, place_bytes_) * place_bytes_) {
  context_.io->add_buffer(staging_.data(), staging_.bytes());
  for (size_t place = staging_.bytes() / place_bytes_; place-- > 0;)
    free_places_.push_back(static_cast<uint32_t>(place));
}

BlockReader::~BlockReader() { context_.io->remove_buffer(staging_.data()); }

Status BlockReader::get_many(LayoutId layout, std::span<const RowRead> reads,
                             std::unique_lock<std::mutex>* owner_lock) {
  TE_CHECK(reads.size() < UINT32_MAX);
  const RunShape& shape = context_.shape(layout);
  find_runs(layout, reads);
  next_wanted_ = next_segment_ = 0;
  Status status;
  for (uint32_t first = 0, end = 0; first < segments_.size() && status.is_ok(); first = end) {
    Result<uint32_t> held = hold_files(first);
    if (!held) {
      status = held.status();
      break;
    }
    end = held.value();
    if (owner_lock != nullptr) owner_lock->unlock();
    status = read_runs(layout, reads, end);
    if (owner_lock != nullptr) owner_lock->lock();
    for (uint32_t s = first; s < end; ++s) files_.release(segments_[s].id);
  }
  for (const WantedSegment& segment : segments_) table_.end_read(segment.id);
  context_.stats.blocks_read += uint64_t{next_wanted_} * shape.span_blocks;
  context_.stats.read_bytes += uint64_t{next_wanted_} * shape.run_bytes;
  TE_RETURN_IF_ERROR(std::move(status));
  context_.stats.rows_read += reads.size();
  return Status::ok();
}

Result<uint32_t> BlockReader::hold_files(uint32_t first) {
  uint32_t end = first;
  while (end < segments_.size() && (end == first || files_.has_room())) {
    Result<IoFile*> file = files_.hold(segments_[end].id);
    if (!file) {
      while (end-- > first) files_.release(segments_[end].id);
      return file.status();
    }
    segments_[end++].file = file.value();
  }
  return end;
}

Status BlockReader::read_runs(LayoutId layout, std::span<const RowRead> reads,
                              uint32_t segments_end) {
  const RunShape& shape = context_.shape(layout);
  pieces_.clear();
  Status failed;  // what is wrong with a run; the engine's own failures come first
  const auto next = [&](IoRequest& request) {
    return failed ? next_request(shape, segments_end, request) : IoEngine::Next::kEnd;
  };
  const auto on_done = [&](size_t i) {
    const Piece& piece = pieces_[i];
    const std::byte* run = staging_.data() + piece.place * place_bytes_;
    for (uint32_t w = piece.begin; w < piece.end; ++w, run += shape.run_bytes) {
      Status served = serve(layout, reads, wanted_[w], segments_[piece.segment].sequence, run);
      if (!served && failed) failed = std::move(served);
    }
    free_places_.push_back(piece.place);
  };
  Status status = context_.io->run_stream(next, on_done);
  if (!status) {  // requests that failed have not given their places back
    free_places_.clear();
    for (size_t place = staging_.bytes() / place_bytes_; place-- > 0;)
      free_places_.push_back(static_cast<uint32_t>(place));
    return status;
  }
  return failed;
}

// By block, and by position within one: a comparison sort took most of the time before the first
// read of a large batch.
void BlockReader::sort_order() {
  if (order_.size() < kCountedKeysMin) return std::sort(order_.begin(), order_.end());
  spare_order_.resize(order_.size());
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = 32 + digit * kDigitBits;
    const auto bucket = [=](uint64_t key) { return key >> shift & ((1u << kDigitBits) - 1); };
    std::array<uint32_t, 1u << kDigitBits> begin{};
    for (uint64_t key : order_) ++begin[bucket(key)];
    uint32_t before = 0;
    for (uint32_t& b : begin) before += std::exchange(b, before);
    for (uint64_t key : order_) spare_order_[begin[bucket(key)]++] = key;
    order_.swap(spare_order_);
  }
}

// Lists the runs to be read, in the order of their blocks, and serves the others from memory.
void BlockReader::find_runs(LayoutId layout, std::span<const RowRead> reads) {
  const RunShape& shape = context_.shape(layout);
  order_.clear();
  for (size_t i = 0; i < reads.size(); ++i) {
    order_.push_back(uint64_t{reads[i].block.value} << 32 | i);
  }
  sort_order();
  wanted_.clear();
  segments_.clear();
  const auto n = static_cast<uint32_t>(order_.size());
  for (uint32_t begin = 0, end = 0; begin < n; begin = end) {
    const BlockAddress block = block_of(order_[begin]);
    while (end < n && block_of(order_[end]) == block) ++end;
    TE_CHECK(table_.holds_run(block, shape.span_blocks));
    const WantedRun wanted{block, begin, end};
    RunInMemory memory;
    if (table_.state_of(block) == SegmentTable::State::kOpen) {
      for (size_t w = 0; w < writers_.size() && memory.run == nullptr; ++w) {
        memory = writers_[w]->find(block);
      }
      const std::byte* behind = memory.run == nullptr ? behind_.find(block) : nullptr;
      if (behind != nullptr) memory = {behind, read_header(behind).row_count};
    }
    if (memory.run != nullptr) {
      serve_from_memory(shape, reads, wanted, memory);
    } else {
      want(wanted);
    }
  }
}

void BlockReader::want(const WantedRun& wanted) {
  const SegmentId segment = table_.segment_of(wanted.block);
  if (segments_.empty() || segments_.back().id != segment) {
    segments_.push_back({.id = segment, .sequence = table_.sequence(segment)});
    table_.begin_read(segment);
  }
  wanted_.push_back(wanted);
  segments_.back().runs_end = static_cast<uint32_t>(wanted_.size());
}

void BlockReader::serve_from_memory(const RunShape& shape, std::span<const RowRead> reads,
                                    const WantedRun& wanted, const RunInMemory& memory) {
  for (uint32_t k = wanted.begin; k < wanted.end; ++k) {
    const RowRead& read = reads[static_cast<uint32_t>(order_[k])];
    const uint32_t place = find_row(memory.run, shape, memory.row_count, read.row);
    TE_CHECK(place != kNoRow);  // whoever asks was told this address
    std::memcpy(read.destination, row_at(memory.run, shape, place), shape.row_bytes);
  }
  context_.stats.rows_from_write_buffer += wanted.end - wanted.begin;
}

IoEngine::Next BlockReader::next_request(const RunShape& shape, uint32_t segments_end,
                                         IoRequest& request) {
  if (next_segment_ == segments_end) return IoEngine::Next::kEnd;
  if (free_places_.empty()) return IoEngine::Next::kLater;
  const WantedSegment& segment = segments_[next_segment_];
  const uint32_t begin = next_wanted_;
  const BlockAddress first = wanted_[begin].block;
  uint32_t end = begin + 1;
  for (; end < segment.runs_end; ++end) {
    const uint32_t blocks = (end - begin) * shape.span_blocks;
    if (wanted_[end].block.value != first.value + blocks ||
        (end - begin + 1) * size_t{shape.run_bytes} > place_bytes_)
      break;
  }
  request = {IoRequest::Kind::kRead, segment.file,
             uint64_t{table_.block_in_segment(first)} * context_.options.block_bytes,
             staging_.data() + free_places_.back() * place_bytes_,
             (end - begin) * size_t{shape.run_bytes}};
  pieces_.push_back({begin, end, free_places_.back(), next_segment_});
  free_places_.pop_back();
  next_wanted_ = end;
  if (end == segment.runs_end) ++next_segment_;
  return IoEngine::Next::kRequest;
}

Status BlockReader::serve(LayoutId layout, std::span<const RowRead> reads, const WantedRun& wanted,
                          uint64_t sequence, const std::byte* run) const {
  const RunShape& shape = context_.shape(layout);
  const RunIdentity identity{context_.store_id, sequence, wanted.block, layout};
  const char* wrong = check_run(run, shape, identity);
  const uint32_t row_count = wrong == nullptr ? read_header(run).row_count : 0;
  for (uint32_t k = wanted.begin; k < wanted.end; ++k) {
    const RowRead& read = reads[static_cast<uint32_t>(order_[k])];
    uint32_t place = kNoRow;
    if (wrong == nullptr) {
      place = find_row(run, shape, row_count, read.row);
      if (place == kNoRow) wrong = "the row is not in the block";
    }
    if (wrong != nullptr) {
      return Status(StatusCode::kCorruption, table_.describe(wanted.block) + ", row " +
                                                 std::to_string(read.row.value) + ": " + wrong);
    }
    std::memcpy(read.destination, row_at(run, shape, place), shape.row_bytes);
  }
  return Status::ok();
}

}  // namespace te
