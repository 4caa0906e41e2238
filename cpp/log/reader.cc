#include "log/reader.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace te {
namespace {

// Larger reads would keep the drive's channels from sharing the work.
constexpr size_t kMergedReadBytesMax = size_t{128} << 10;

size_t choose_staging_bytes(const StoreContext& context) {
  size_t bytes = context.options.read_buffer_bytes / context.options.block_bytes *
                 size_t{context.options.block_bytes};
  for (const RunShape& shape : context.shapes) bytes = std::max<size_t>(bytes, shape.run_bytes);
  return bytes;
}

BlockAddress block_of(uint64_t key) { return BlockAddress(static_cast<uint32_t>(key >> 32)); }

}  // namespace

BlockReader::BlockReader(StoreContext& context, const SegmentTable& table, SegmentFiles& files,
                         std::span<const SegmentWriter* const> writers)
    : context_(context),
      table_(table),
      files_(files),
      writers_(writers.begin(), writers.end()),
      staging_(choose_staging_bytes(context)) {}

Status BlockReader::get_many(LayoutId layout, std::span<const RowRead> reads) {
  const RunShape& shape = context_.shape(layout);
  TE_CHECK(reads.size() < UINT32_MAX);
  clear_wave();
  order_.clear();
  for (size_t i = 0; i < reads.size(); ++i) {
    order_.push_back(uint64_t{reads[i].block.value} << 32 | i);
  }
  std::sort(order_.begin(), order_.end());

  const auto n = static_cast<uint32_t>(order_.size());
  for (uint32_t begin = 0, end = 0; begin < n; begin = end) {
    const BlockAddress block = block_of(order_[begin]);
    while (end < n && block_of(order_[end]) == block) ++end;
    TE_CHECK(table_.holds_run(block, shape.span_blocks));
    const WantedRun wanted{block, begin, end, nullptr};
    RunInMemory memory;
    if (table_.state_of(block) == SegmentTable::State::kOpen) {
      for (size_t w = 0; w < writers_.size() && memory.run == nullptr; ++w) {
        memory = writers_[w]->find(block);
      }
    }
    if (memory.run != nullptr) {
      serve_from_memory(shape, reads, wanted, memory);
      continue;
    }
    if (wave_is_full(shape, block)) TE_RETURN_IF_ERROR(run_wave(layout, reads));
    TE_RETURN_IF_ERROR(add_to_wave(shape, wanted));
  }
  TE_RETURN_IF_ERROR(run_wave(layout, reads));
  context_.stats.rows_read += reads.size();
  return Status::ok();
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

bool BlockReader::wave_is_full(const RunShape& shape, BlockAddress next) const {
  if (staged_bytes_ + shape.run_bytes > staging_.bytes()) return true;
  const bool new_file =
      wave_.empty() || table_.segment_of(wave_.back().block) != table_.segment_of(next);
  return new_file && wave_files_ + 1 >= files_.open_max();  // those of the wave must stay open
}

Status BlockReader::add_to_wave(const RunShape& shape, WantedRun wanted) {
  const uint64_t offset =
      uint64_t{table_.block_in_segment(wanted.block)} * context_.options.block_bytes;
  const SegmentId segment = table_.segment_of(wanted.block);
  wanted.staging = staging_.data() + staged_bytes_;
  const bool same_file = !wave_.empty() && table_.segment_of(wave_.back().block) == segment;
  const auto index = static_cast<uint32_t>(wave_.size());
  IoRequest* last = requests_.empty() ? nullptr : &requests_.back();
  if (same_file && last->offset_bytes + last->bytes == offset &&
      last->bytes + shape.run_bytes <= kMergedReadBytesMax) {
    last->bytes += shape.run_bytes;
    pieces_.back().end = index + 1;
  } else {
    const IoFile* file = same_file ? last->file : nullptr;
    if (file == nullptr) {
      Result<IoFile*> opened = files_.acquire(segment);
      if (!opened) return opened.status();
      file = opened.value();
      ++wave_files_;
    }
    requests_.push_back({IoRequest::Kind::kRead, file, offset, wanted.staging, shape.run_bytes});
    pieces_.push_back({index, index + 1});
  }
  wave_.push_back(wanted);
  staged_bytes_ += shape.run_bytes;
  return Status::ok();
}

Status BlockReader::run_wave(LayoutId layout, std::span<const RowRead> reads) {
  Status bad;
  Status status = context_.io->run(requests_, [&](size_t i) {
    for (uint32_t w = pieces_[i].begin; w < pieces_[i].end; ++w) {
      if (Status served = serve(layout, reads, wave_[w]); !served && bad) bad = std::move(served);
    }
  });
  context_.stats.blocks_read += wave_.size() * context_.shape(layout).span_blocks;
  context_.stats.read_bytes += staged_bytes_;
  clear_wave();
  return status ? bad : status;
}

void BlockReader::clear_wave() {
  wave_.clear();
  pieces_.clear();
  requests_.clear();
  staged_bytes_ = 0;
  wave_files_ = 0;
}

Status BlockReader::serve(LayoutId layout, std::span<const RowRead> reads,
                          const WantedRun& wanted) {
  const RunShape& shape = context_.shape(layout);
  const RunIdentity identity{context_.store_id, table_.sequence(table_.segment_of(wanted.block)),
                             wanted.block, layout};
  const char* wrong = check_run(wanted.staging, shape, identity);
  const uint32_t row_count = wrong == nullptr ? read_header(wanted.staging).row_count : 0;
  for (uint32_t k = wanted.begin; k < wanted.end; ++k) {
    const RowRead& read = reads[static_cast<uint32_t>(order_[k])];
    uint32_t place = kNoRow;
    if (wrong == nullptr) {
      place = find_row(wanted.staging, shape, row_count, read.row);
      if (place == kNoRow) wrong = "the row is not in the block";
    }
    if (wrong != nullptr) {
      return Status(StatusCode::kCorruption, table_.describe(wanted.block) + ", row " +
                                                 std::to_string(read.row.value) + ": " + wrong);
    }
    std::memcpy(read.destination, row_at(wanted.staging, shape, place), shape.row_bytes);
  }
  return Status::ok();
}

}  // namespace te
