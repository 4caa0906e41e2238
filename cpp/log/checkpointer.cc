#include "log/checkpointer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <unordered_map>

#include "base/check.h"
#include "io/io_error.h"
#include "log/aligned_writer.h"
#include "log/index_snapshot.h"

namespace te {

Checkpointer::Checkpointer(StoreContext& context, StoreDirectory& directory, SegmentTable& table,
                           WriteBehind& behind, SegmentWriter& outside, SegmentWriter& survivors)
    : context_(context),
      directory_(directory),
      table_(table),
      behind_(behind),
      outside_(outside),
      survivors_(survivors) {}

Status Checkpointer::write(const RowOwner& owner, const std::string& metadata) {
  TE_RETURN_IF_ERROR(write_blocks());
  Manifest manifest;
  manifest.store_id = context_.store_id;
  manifest.checkpoint = ++checkpoint_last_;
  manifest.sequence_next = context_.sequence_next;
  manifest.total_rows = context_.options.total_rows;
  manifest.block_bytes = context_.options.block_bytes;
  manifest.segment_bytes = context_.options.segment_bytes;
  manifest.layout_row_bytes = context_.options.layout_row_bytes;
  manifest.segments = table_.records();
  manifest.metadata = metadata;
  const std::string index_path = directory_.index(manifest.checkpoint);
  Result<IndexSummary> index = write_index(owner, manifest.checkpoint);
  if (!index) {
    (void)directory_.remove(index_path);  // best effort: the next open deletes it as well
    return index.status();
  }
  manifest.index = index.value();
  if (Status status = write_manifest(manifest); !status) {
    indexes_stale_.push_back(index_path);
    return status;
  }
  context_.stats.checkpoint_written_bytes += manifest.index.bytes;
  context_.index_bytes = manifest.index.bytes;

  // The checkpoint stands. What is left is deleting, and a file that stays behind harms nobody.
  for (const std::string& path : indexes_stale_) (void)directory_.remove(path);
  indexes_stale_.assign(1, index_path);
  (void)table_.settle(manifest.segments);
  return Status::ok();
}

Status Checkpointer::write_blocks() {
  if (!sync_failure_) return sync_failure_;
  TE_RETURN_IF_ERROR(survivors_.close_all());
  TE_RETURN_IF_ERROR(outside_.close_all());
  TE_RETURN_IF_ERROR(behind_.drain());
  sync_failure_ = table_.sync_written();
  return sync_failure_;
}

Result<IndexSummary> Checkpointer::write_index(const RowOwner& owner, uint64_t checkpoint) {
  const std::string path = directory_.index(checkpoint);
  TE_RETURN_IF_ERROR(directory_.remove(path));
  IndexWriter writer(*context_.io, path);
  TE_RETURN_IF_ERROR(writer.start({context_.store_id, checkpoint, context_.options.total_rows}));
  uint64_t live_bytes = 0;
  owner.visit_rows([&](LayoutId layout, RowId row, BlockAddress block) {
    const RunShape& shape = context_.shape(layout);
    TE_CHECK(row.value < context_.options.total_rows && table_.holds_run(block, shape.span_blocks));
    live_bytes += shape.share_bytes;
    writer.add(layout, row, block);
  });
  TE_CHECK(live_bytes == table_.live_bytes_total());  // put and retire agree with the owner
  return writer.finish();
}

Status Checkpointer::write_manifest(const Manifest& manifest) {
  const std::string tmp = directory_.manifest_tmp();
  TE_RETURN_IF_ERROR(directory_.remove(tmp));
  const std::vector<std::byte> bytes = encode_manifest(manifest);
  AlignedWriter writer(*context_.io, tmp);
  TE_RETURN_IF_ERROR(writer.create());
  TE_RETURN_IF_ERROR(writer.append(bytes.data(), bytes.size()));
  TE_RETURN_IF_ERROR(writer.finish());
  TE_RETURN_IF_ERROR(directory_.sync());
  // From here on either manifest may be what the next open finds, until the last sync succeeds.
  table_.protect(manifest.segments);
  TE_RETURN_IF_ERROR(directory_.rename(tmp, directory_.manifest()));
  if (Status synced = directory_.sync(); !synced) {
    sync_failure_ = synced;
    return synced;
  }
  context_.stats.checkpoint_written_bytes += writer.bytes();
  return Status::ok();
}

Status Checkpointer::restore(const Manifest& manifest, RowOwner::RowVisitor on_row) {
  Result<std::vector<StoreDirectory::Entry>> entries = directory_.list();
  if (!entries) return entries.status();
  context_.store_id = manifest.store_id;
  context_.sequence_next = manifest.sequence_next;
  TE_RETURN_IF_ERROR(restore_segments(manifest, entries.value()));
  TE_RETURN_IF_ERROR(restore_rows(manifest, on_row));
  // All is known to be good: only now is anything changed.
  checkpoint_last_ = manifest.checkpoint;
  context_.index_bytes = manifest.index.bytes;
  indexes_stale_.assign(1, directory_.index(manifest.checkpoint));
  return discard_unreferenced(manifest, entries.value());
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

Status Checkpointer::restore_rows(const Manifest& manifest, RowOwner::RowVisitor on_row) {
  Status bad;
  const IndexIdentity identity{manifest.store_id, manifest.checkpoint, manifest.total_rows};
  const std::string path = directory_.index(manifest.checkpoint);
  const auto restore_row = [&](LayoutId layout, RowId row, BlockAddress block) {
    const RunShape& shape = context_.shape(layout);
    if (!table_.holds_run(block, shape.span_blocks)) [[unlikely]] {
      if (bad) {
        bad = Status(StatusCode::kCorruption, path + ": row " + std::to_string(row.value) +
                                                  " is in block " + std::to_string(block.value) +
                                                  ", which is in no segment of the manifest");
      }
      return;
    }
    table_.add_live(block, 1, shape.share_bytes);
    on_row(layout, row, block);
  };
  TE_RETURN_IF_ERROR(read_index(*context_.io, path, identity, manifest.index,
                                context_.shapes.size(), restore_row));
  return bad;
}

Status Checkpointer::discard_unreferenced(const Manifest& manifest,
                                          const std::vector<StoreDirectory::Entry>& entries) {
  std::unordered_map<std::string, uint64_t> keep;  // path -> bytes that belong to the checkpoint
  keep[directory_.index(manifest.checkpoint)] = manifest.index.bytes;
  for (const SegmentRecord& record : manifest.segments) {
    keep[directory_.segment(SegmentId(record.segment))] =
        uint64_t{record.blocks_used} * context_.options.block_bytes;
  }
  for (const auto& entry : entries) {
    const auto kept = keep.find(entry.path);
    if (kept == keep.end()) {
      TE_RETURN_IF_ERROR(directory_.remove(entry.path));
    } else if (entry.bytes > kept->second) {
      // Blocks after the checkpoint: sequence numbers go on from the checkpoint, and a scan must
      // never find two blocks of one number.
      if (::truncate(entry.path.c_str(), static_cast<off_t>(kept->second)) != 0) {
        return io_error(entry.path, "truncate", errno);
      }
    }
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
