#include "log/checkpointer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <unordered_map>

#include "base/check.h"
#include "io/io_error.h"
#include "log/aligned_writer.h"
#include "log/index_merger.h"
#include "log/index_snapshot.h"

namespace te {

namespace {

constexpr size_t kSyncFilesMax = 16;

bool is_among(const std::vector<IndexRecord>& indexes, uint64_t checkpoint) {
  return std::any_of(indexes.begin(), indexes.end(),
                     [=](const IndexRecord& index) { return index.checkpoint == checkpoint; });
}

}  // namespace

Checkpointer::Checkpointer(StoreContext& context, StoreDirectory& directory, SegmentTable& table,
                           WriteBehind& behind, SegmentWriter& outside, SegmentWriter& survivors)
    : context_(context),
      directory_(directory),
      table_(table),
      behind_(behind),
      outside_(outside),
      survivors_(survivors) {}

// What every index of it needs to know.
void Checkpointer::start_next() {
  at_hand_ = {};
  at_hand_.manifest.store_id = context_.store_id;
  at_hand_.manifest.checkpoint = ++checkpoint_last_;
  at_hand_.manifest.total_rows = context_.options.total_rows;
  at_hand_.manifest.indexes = chain_;
}

Status Checkpointer::begin(const RowOwner& owner, const std::string& metadata, bool seal) {
  TE_RETURN_IF_ERROR(write_blocks(seal));
  const bool whole = !knows_changes();
  if (whole) drop_chain();
  start_next();
  Manifest& manifest = at_hand_.manifest;
  manifest.sequence_next = context_.sequence_next;
  manifest.block_bytes = context_.options.block_bytes;
  manifest.segment_bytes = context_.options.segment_bytes;
  manifest.layout_row_bytes = context_.options.layout_row_bytes;
  manifest.segments = table_.records();
  manifest.metadata = metadata;
  if (!whole) at_hand_.merge_from = merge_from();
  at_hand_.live_bytes = table_.live_bytes_total();
  at_hand_.changes = context_.changes.take();
  Status status = whole ? write_whole_index(owner) : Status::ok();
  if (!status) {
    context_.changes.give_up();
    context_.changes.are_told();
    drop_index(manifest.checkpoint);
    return status;
  }
  at_hand_.has_index = whole;
  at_hand_.unsynced = table_.take_unsynced(manifest.segments);
  // From here on either manifest may be what the next open finds.
  table_.protect(manifest.segments);
  return Status::ok();
}

Status Checkpointer::write_blocks(bool seal) {
  if (!sync_failure_) return sync_failure_;
  TE_RETURN_IF_ERROR(seal ? survivors_.finish_segment() : survivors_.close_all());
  TE_RETURN_IF_ERROR(seal ? outside_.finish_segment() : outside_.close_all());
  return behind_.drain();
}

bool Checkpointer::knows_changes() const {
  return !chain_.empty() && !context_.changes.is_incomplete();
}

LogStore::Need Checkpointer::changes_need() const {
  using enum LogStore::Need;
  // After a failed sync either manifest may be what opens, and no later one is trusted.
  if (context_.options.read_only || !sync_failure_ || !knows_changes() || is_changes_failed_ ||
      table_.live_rows() <= context_.options.rows_told_at_once)
    return kNone;
  const size_t most = context_.changes.changes_max();
  const size_t changes = context_.changes.size();
  return changes < (most + 3) / 4 ? kNone : changes < most - most / 4 ? kSome : kUrgent;
}

void Checkpointer::begin_changes(bool may_merge) {
  start_next();
  // The first stays: the last checkpoint needs it in any case. One more is left for that.
  const bool merges = may_merge || chain_.size() + 2 > kManifestIndexesMax;
  at_hand_.merge_from = merges ? merge_small() : chain_.size();
  at_hand_.changes = context_.changes.take();
}

Status Checkpointer::write_changes() { return write_index(); }

void Checkpointer::end_changes(Status written) {
  const std::vector<IndexRecord>& next = at_hand_.manifest.indexes;
  if (!written) {
    is_changes_failed_ = true;
    context_.changes.put_back(std::move(at_hand_.changes));
    return;
  }
  context_.changes.are_told();
  context_.stats.checkpoint_written_bytes += next.back().bytes;
  for (const IndexRecord& index : chain_) {
    if (!is_among(next, index.checkpoint) && !is_among(indexes_, index.checkpoint))
      drop_index(index.checkpoint);
  }
  chain_ = next;
  at_hand_ = {};
}

// The first index that is merged with those after it; their number: none is.
size_t Checkpointer::merge_from() const {
  uint64_t changed = context_.changes.size();
  for (size_t i = 1; i < chain_.size(); ++i) changed += chain_[i].rows;
  return changed > chain_[0].rows / 2 + context_.options.changes_free ? 0 : merge_small();
}

// The same where there are many: those that are larger than what comes after them are left alone,
// so that a row is written again as often as the chain doubles, and no more.
size_t Checkpointer::merge_small() const {
  size_t from = chain_.size();
  if (from < context_.options.indexes_max) return from;
  for (uint64_t after = context_.changes.size(); from > 1 && chain_[from - 1].rows <= 2 * after;)
    after += chain_[--from].rows;
  return from < chain_.size() ? from : 1;
}

// By descriptors of its own, a few at a time: there may be more segments than files can be open.
Status Checkpointer::sync_segments() {
  std::vector<IoFile> files;
  std::vector<IoRequest> requests;
  const std::vector<SegmentId>& segments = at_hand_.unsynced;
  for (size_t first = 0; first < segments.size(); first += kSyncFilesMax) {
    files.clear();
    requests.clear();
    for (size_t i = first; i < std::min(first + kSyncFilesMax, segments.size()); ++i) {
      Result<IoFile> file = IoFile::open(directory_.segment(segments[i]), IoFile::Mode::kRead);
      if (!file) return file.status();
      files.push_back(file.take());
    }
    for (const IoFile& file : files)
      requests.push_back({.kind = IoRequest::Kind::kSync, .file = &file});
    if (Status synced = context_.io->run(requests, [](size_t) {}); !synced) {
      at_hand_.is_sync_failed = true;
      return synced;
    }
  }
  at_hand_.is_synced = true;
  return Status::ok();
}

std::string Checkpointer::index_path() const {
  return directory_.index(at_hand_.manifest.checkpoint);
}

Status Checkpointer::start_index(IndexWriter& writer) {
  TE_RETURN_IF_ERROR(directory_.remove(index_path()));
  return writer.start(
      {context_.store_id, at_hand_.manifest.checkpoint, context_.options.total_rows});
}

Status Checkpointer::write_whole_index(const RowOwner& owner) {
  IndexWriter writer(*context_.io, index_path());
  TE_RETURN_IF_ERROR(start_index(writer));
  uint64_t live_bytes = 0;
  owner.visit_rows([&](LayoutId layout, RowId row, BlockAddress block) {
    const RunShape& shape = context_.shape(layout);
    TE_CHECK(row.value < context_.options.total_rows && table_.holds_run(block, shape.span_blocks));
    live_bytes += shape.share_bytes;
    writer.add(layout, row, block);
  });
  TE_CHECK(live_bytes == at_hand_.live_bytes);  // put and retire agree with the owner
  Result<IndexRecord> record = writer.finish();
  if (!record) return record.status();
  at_hand_.manifest.indexes.assign(1, record.value());
  return Status::ok();
}

Status Checkpointer::merge_indexes() {
  Manifest& manifest = at_hand_.manifest;
  const size_t from = at_hand_.merge_from;
  std::vector<IndexReader> readers;
  for (size_t i = from; i < manifest.indexes.size(); ++i) {
    const IndexRecord& index = manifest.indexes[i];
    const IndexIdentity identity{manifest.store_id, index.checkpoint, manifest.total_rows};
    readers.emplace_back(*context_.io, directory_.index(index.checkpoint), identity, index,
                         context_.shapes.size(), IndexReader::kChunkBytesMin);
    TE_RETURN_IF_ERROR(readers.back().open());
  }
  IndexWriter writer(*context_.io, index_path());
  TE_RETURN_IF_ERROR(start_index(writer));
  uint64_t live_bytes = 0;
  TE_RETURN_IF_ERROR(te::merge_indexes(readers, at_hand_.changes,
                                       [&](LayoutId layout, RowId row, BlockAddress block) {
                                         live_bytes += context_.shape(layout).share_bytes;
                                         writer.add(layout, row, block);
                                       }));
  if (from == 0 && live_bytes != at_hand_.live_bytes) {
    return Status(StatusCode::kCorruption,
                  directory_.path() + ": the index files do not tell where all rows are");
  }
  Result<IndexRecord> record = writer.finish();
  if (!record) return record.status();
  manifest.indexes.resize(from);
  manifest.indexes.push_back(record.value());
  return Status::ok();
}

Status Checkpointer::write_index_of_changes() {
  if (at_hand_.changes.empty()) return Status::ok();
  IndexWriter writer(*context_.io, index_path());
  TE_RETURN_IF_ERROR(start_index(writer));
  for (const ChangeList::Change& change : at_hand_.changes)
    writer.add(change.layout(), change.row(), change.block());
  Result<IndexRecord> record = writer.finish();
  if (!record) return record.status();
  at_hand_.manifest.indexes.push_back(record.value());
  return Status::ok();
}

Status Checkpointer::write() {
  TE_RETURN_IF_ERROR(sync_segments());
  if (!at_hand_.has_index) TE_RETURN_IF_ERROR(write_index());
  TE_RETURN_IF_ERROR(write_manifest());
  at_hand_.changes = {};
  return Status::ok();
}

Status Checkpointer::write_index() {
  ChangeList::sort(at_hand_.changes);
  const size_t indexes = at_hand_.manifest.indexes.size();
  const bool merges = at_hand_.merge_from != indexes;
  Status written = merges ? merge_indexes() : write_index_of_changes();
  if (!written) drop_index(at_hand_.manifest.checkpoint);
  // On a full disk the chain becomes longer instead.
  if (!merges || written.code() != StatusCode::kNoSpace || indexes >= kManifestIndexesMax)
    return written;
  written = write_index_of_changes();
  if (!written) drop_index(at_hand_.manifest.checkpoint);
  return written;
}

// A part of an index would take the space that the next one needs.
void Checkpointer::drop_index(uint64_t checkpoint) {
  if (!directory_.remove(directory_.index(checkpoint))) stale_.push_back(checkpoint);
}

// A whole index comes in their place, and may need their space.
void Checkpointer::drop_chain() {
  for (const IndexRecord& index : chain_) {
    if (!is_among(indexes_, index.checkpoint)) drop_index(index.checkpoint);
  }
  chain_ = indexes_;
}

Status Checkpointer::write_manifest() {
  const std::string tmp = directory_.manifest_tmp();
  TE_RETURN_IF_ERROR(directory_.remove(tmp));
  const std::vector<std::byte> bytes = encode_manifest(at_hand_.manifest);
  AlignedWriter writer(*context_.io, tmp);
  TE_RETURN_IF_ERROR(writer.create());
  TE_RETURN_IF_ERROR(writer.append(bytes.data(), bytes.size()));
  TE_RETURN_IF_ERROR(writer.finish());
  Status synced = directory_.sync();
  if (synced) {
    TE_RETURN_IF_ERROR(directory_.rename(tmp, directory_.manifest()));
    synced = directory_.sync();
  }
  if (!synced) {
    at_hand_.is_sync_failed = true;
    return synced;
  }
  at_hand_.written_bytes = writer.bytes();
  return Status::ok();
}

Status Checkpointer::end(Status written) {
  Manifest& manifest = at_hand_.manifest;
  if (!written) {
    if (at_hand_.is_sync_failed) sync_failure_ = written;
    if (!at_hand_.is_synced) {
      for (SegmentId id : at_hand_.unsynced) table_.set_unsynced(id);
    }
    if (at_hand_.has_index) {
      context_.changes.give_up();
      context_.changes.are_told();
    } else {
      context_.changes.put_back(std::move(at_hand_.changes));
    }
    stale_.push_back(manifest.checkpoint);
    return written;
  }
  const uint64_t own = manifest.checkpoint;
  for (const IndexRecord& index : manifest.indexes) {
    if (index.checkpoint == own) at_hand_.written_bytes += index.bytes;
  }
  context_.stats.checkpoint_written_bytes += at_hand_.written_bytes;

  // The checkpoint stands. What is left is deleting, and a file that stays behind harms nobody.
  for (const IndexRecord& index : indexes_) stale_.push_back(index.checkpoint);
  for (const IndexRecord& index : chain_) stale_.push_back(index.checkpoint);
  for (uint64_t number : stale_) {
    if (!is_among(manifest.indexes, number)) (void)directory_.remove(directory_.index(number));
  }
  stale_.clear();
  indexes_ = chain_ = manifest.indexes;
  context_.changes.are_told();
  is_changes_failed_ = false;
  (void)table_.settle(manifest.segments);
  return Status::ok();
}

Status Checkpointer::restore(const Manifest& manifest, LogStore::RowRestorer on_row) {
  Result<std::vector<StoreDirectory::Entry>> entries = directory_.list();
  if (!entries) return entries.status();
  context_.store_id = manifest.store_id;
  context_.sequence_next = manifest.sequence_next + new_history();
  TE_RETURN_IF_ERROR(restore_segments(manifest, entries.value()));
  TE_RETURN_IF_ERROR(restore_rows(manifest, on_row));
  // All is known to be good: only now is anything changed.
  checkpoint_last_ = manifest.checkpoint;
  indexes_ = chain_ = manifest.indexes;
  return context_.options.read_only ? Status::ok()
                                    : discard_unreferenced(manifest, entries.value());
}

Status Checkpointer::restore_segments(const Manifest& manifest,
                                      const std::vector<StoreDirectory::Entry>& entries) {
  std::unordered_map<uint32_t, uint64_t> bytes_on_disk;
  for (const auto& entry : entries) {
    if (!entry.segment.is_none()) bytes_on_disk[entry.segment.value] = entry.bytes;
  }
  for (const SegmentRecord& record : manifest.segments) {
    const std::string path = directory_.segment(SegmentId(record.segment));
    const auto found = bytes_on_disk.find(record.segment);
    if (found == bytes_on_disk.end()) {
      return Status(StatusCode::kCorruption, path + ": the manifest refers to it, it is missing");
    }
    const uint64_t needed = uint64_t{record.blocks_used} * context_.options.block_bytes;
    if (found->second < needed) {
      return Status(StatusCode::kCorruption, path + ": has " + std::to_string(found->second) +
                                                 " bytes, the checkpoint " +
                                                 std::to_string(needed));
    }
    if (!table_.restore(record)) {
      return Status(StatusCode::kCorruption,
                    directory_.manifest() + ": impossible record of " + path);
    }
  }
  table_.finish_restore();
  return Status::ok();
}

Status Checkpointer::restore_rows(const Manifest& manifest, LogStore::RowRestorer on_row) {
  Status bad;
  std::string path;
  const auto restore_row = [&](LayoutId layout, RowId row, BlockAddress block) {
    if (!bad || !on_row(layout, row, block)) return;
    const RunShape& shape = context_.shape(layout);
    if (!table_.holds_run(block, shape.span_blocks)) [[unlikely]] {
      bad = Status(StatusCode::kCorruption, path + ": row " + std::to_string(row.value) +
                                                " is in block " + std::to_string(block.value) +
                                                ", which is in no segment of the manifest");
      return;
    }
    table_.add_live(block, 1, shape.share_bytes);
  };
  // The newest first: what it tells of a row counts.
  for (size_t i = manifest.indexes.size(); i-- > 0;) {
    const IndexRecord& index = manifest.indexes[i];
    const IndexIdentity identity{manifest.store_id, index.checkpoint, manifest.total_rows};
    path = directory_.index(index.checkpoint);
    TE_RETURN_IF_ERROR(
        read_index(*context_.io, path, identity, index, context_.shapes.size(), restore_row));
    TE_RETURN_IF_ERROR(Status(bad));
  }
  return Status::ok();
}

Status Checkpointer::discard_unreferenced(const Manifest& manifest,
                                          const std::vector<StoreDirectory::Entry>& entries) {
  std::unordered_map<std::string, uint64_t> keep;  // path -> bytes that belong to the checkpoint
  for (const IndexRecord& index : manifest.indexes)
    keep[directory_.index(index.checkpoint)] = index.bytes;
  for (const SegmentRecord& record : manifest.segments) {
    keep[directory_.segment(SegmentId(record.segment))] =
        uint64_t{record.blocks_used} * context_.options.block_bytes;
  }
  for (const auto& entry : entries) {
    const auto kept = keep.find(entry.path);
    if (kept == keep.end()) {
      TE_RETURN_IF_ERROR(directory_.remove(entry.path));
    } else if (entry.bytes > kept->second && entry.links == 1) {
      // Blocks after the checkpoint: a scan must not take them for its future. A file that is
      // linked to another store was complete when it was, and that store may need more of it.
      if (::truncate(entry.path.c_str(), static_cast<off_t>(kept->second)) != 0) {
        return io_error(entry.path, "truncate", errno);
      }
    }
  }
  return Status::ok();
}

Status Checkpointer::go_on_after(const Manifest& manifest) {
  Result<std::vector<StoreDirectory::Entry>> entries = directory_.list();
  if (!entries) return entries.status();
  checkpoint_last_ = manifest.checkpoint;
  for (const IndexRecord& index : manifest.indexes) stale_.push_back(index.checkpoint);
  for (const auto& entry : entries.value()) {
    const auto is_it = [&](const IndexRecord& index) {
      return directory_.index(index.checkpoint) == entry.path;
    };
    const auto& kept = manifest.indexes;
    if (entry.segment.is_none() && std::none_of(kept.begin(), kept.end(), is_it))
      TE_RETURN_IF_ERROR(directory_.remove(entry.path));
  }
  return Status::ok();
}

Status Checkpointer::clear_directory() {
  Result<std::vector<StoreDirectory::Entry>> entries = directory_.list();
  if (!entries) return entries.status();
  for (const auto& entry : entries.value()) TE_RETURN_IF_ERROR(directory_.remove(entry.path));
  return Status::ok();
}

}  // namespace te
