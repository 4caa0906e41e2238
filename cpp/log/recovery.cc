#include "log/recovery.h"

#include <algorithm>
#include <unordered_map>

#include "base/aligned_buffer.h"
#include "log/block.h"

namespace te {
namespace {

constexpr size_t kRequestBytes = size_t{512} << 10;
constexpr size_t kRunsPerBatch = 4096;

}  // namespace

Status Recovery::scan(const StoreDirectory::Entry& entry, const SegmentRecord* known,
                      SegmentRecord* record) {
  const size_t block_bytes = context_.options.block_bytes;
  const auto blocks = static_cast<uint32_t>(
      std::min<uint64_t>(entry.bytes, context_.options.segment_bytes) / block_bytes);
  AlignedBuffer buffer(std::max<size_t>(blocks, 1) * block_bytes);
  Result<IoFile*> file = files_.acquire(entry.segment);
  if (!file) return file.status();
  std::vector<IoRequest> requests;
  for (size_t at = 0; at < blocks * block_bytes; at += kRequestBytes) {
    requests.push_back({IoRequest::Kind::kRead, file.value(), at, buffer.data() + at,
                        std::min(kRequestBytes, blocks * block_bytes - at)});
  }
  TE_RETURN_IF_ERROR(context_.io->run(requests, [](size_t) {}));

  const size_t first_run = runs_.size();
  *record = {entry.segment.value, 0, 0};
  for (uint32_t block = 0, span = 1; block < blocks; block += span) {
    span = 1;
    const std::byte* run = buffer.data() + block * block_bytes;
    const BlockHeader header = read_header(run);
    const BlockAddress address = table_.address(entry.segment, block);
    const LayoutId layout(header.layout);
    const bool is_whole = layout.value < context_.shapes.size() &&
                          block + context_.shape(layout).span_blocks <= blocks;
    const RunIdentity identity{context_.store_id, header.segment_sequence, address, layout};
    if (!is_whole || check_run(run, context_.shape(layout), identity) != nullptr) {
      if (known == nullptr || block >= known->blocks_used) continue;  // never finished
      return Status(StatusCode::kCorruption,
                    table_.describe(address) + ": damaged, and the last checkpoint has it");
    }
    span = context_.shape(layout).span_blocks;
    if (header.segment_sequence < record->segment_sequence) continue;  // an earlier use
    if (header.segment_sequence > record->segment_sequence) runs_.resize(first_run);
    record->segment_sequence = header.segment_sequence;
    record->blocks_used = block + span;
    runs_.push_back({header.sequence, address, layout});
  }
  return Status::ok();
}

Status Recovery::run(const Manifest& manifest, LogStore::RowRestorer on_row) {
  auto entries = directory_.list();
  if (!entries) return entries.status();
  std::unordered_map<uint32_t, const SegmentRecord*> known;
  for (const SegmentRecord& record : manifest.segments) known[record.segment] = &record;
  std::vector<SegmentRecord> records;
  context_.sequence_next = manifest.sequence_next;
  const uint64_t skipped = new_history();
  for (const auto& entry : entries.value()) {
    if (entry.segment.is_none()) continue;
    const auto found = known.find(entry.segment.value);
    SegmentRecord record;
    TE_RETURN_IF_ERROR(scan(entry, found == known.end() ? nullptr : found->second, &record));
    if (found != known.end()) known.erase(found);
    if (record.blocks_used == 0) continue;
    context_.sequence_next = std::max(context_.sequence_next, record.segment_sequence + 1);
    records.push_back(record);
  }
  if (!known.empty()) {
    return Status(StatusCode::kCorruption, directory_.segment(SegmentId(known.begin()->first)) +
                                               ": the manifest refers to it, it is missing");
  }
  std::sort(runs_.begin(), runs_.end(),
            [](const Run& a, const Run& b) { return a.sequence > b.sequence; });
  if (!runs_.empty())
    context_.sequence_next = std::max(context_.sequence_next, runs_.front().sequence + 1);
  context_.sequence_next += skipped;
  for (const SegmentRecord& record : records) {
    if (!table_.restore(record)) {
      return Status(StatusCode::kCorruption,
                    directory_.segment(SegmentId(record.segment)) + ": impossible blocks");
    }
    table_.set_unsynced(SegmentId(record.segment));
  }
  table_.finish_restore();
  return tell(on_row);
}

// The newest run first, and in it the last copy first.
Status Recovery::tell(LogStore::RowRestorer on_row) {
  AlignedBuffer buffer;
  for (size_t first = 0; first < runs_.size(); first += kRunsPerBatch) {
    const size_t count = std::min(kRunsPerBatch, runs_.size() - first);
    std::vector<size_t> places(count + 1, 0);
    for (size_t i = 0; i < count; ++i)
      places[i + 1] = places[i] + context_.shape(runs_[first + i].layout).run_bytes;
    if (buffer.bytes() < places[count]) buffer = AlignedBuffer(places[count]);
    size_t asked = 0;
    Status failed;
    std::vector<SegmentId> held;
    const auto next = [&](IoRequest& request) {
      if (asked == count || !failed) return IoEngine::Next::kEnd;
      const Run& run = runs_[first + asked];
      Result<IoFile*> file = files_.hold(table_.segment_of(run.block));
      if (!file) {
        failed = file.status();
        return IoEngine::Next::kEnd;
      }
      held.push_back(table_.segment_of(run.block));
      const uint64_t offset =
          uint64_t{table_.block_in_segment(run.block)} * context_.options.block_bytes;
      request = {IoRequest::Kind::kRead, file.value(), offset, buffer.data() + places[asked],
                 places[asked + 1] - places[asked]};
      ++asked;
      return IoEngine::Next::kRequest;
    };
    Status status = context_.io->run_stream(next, [](size_t) {});
    for (SegmentId segment : held) files_.release(segment);
    TE_RETURN_IF_ERROR(std::move(status));
    TE_RETURN_IF_ERROR(std::move(failed));
    for (size_t i = 0; i < count; ++i) {
      const Run& run = runs_[first + i];
      const RunShape& shape = context_.shape(run.layout);
      const std::byte* bytes = buffer.data() + places[i];
      for (uint32_t place = read_header(bytes).row_count; place-- > 0;) {
        const RowId row = row_id_at(bytes, shape, place);
        if (row.value >= context_.options.total_rows) continue;
        if (on_row(run.layout, row, run.block)) table_.add_live(run.block, 1, shape.share_bytes);
      }
    }
  }
  return Status::ok();
}

}  // namespace te
