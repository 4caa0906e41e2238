#include "log/log_store.h"

#include <array>
#include <random>
#include <utility>

#include "base/check.h"
#include "log/checkpointer.h"
#include "log/directory.h"
#include "log/log_options.h"
#include "log/manifest.h"
#include "log/reader.h"
#include "log/reclaimer.h"
#include "log/recovery.h"
#include "log/scrubber.h"
#include "log/segment_files.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/write_behind.h"
#include "log/writer.h"

namespace te {
namespace {

// Tells this store's blocks from those of every other store.
uint64_t random_store_id() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// What may not be done to a store that is open for reading only.
Status refuse(const LogOptions& options) {
  return Status(StatusCode::kInvalidArgument,
                options.path + ": the store is open for reading only");
}

Result<Manifest> read_manifest(const StoreDirectory& directory) {
  const std::string path = directory.manifest();
  Result<std::vector<std::byte>> bytes = StoreDirectory::read_file(path);
  if (!bytes) {
    if (bytes.status().code() != StatusCode::kNotFound) return bytes.status();
    return Status(StatusCode::kNotFound, directory.path() + ": there is no store (no MANIFEST)");
  }
  return decode_manifest(bytes.value(), path);
}

// The owner of no rows, whose checkpoint makes an empty store.
class NoRows final : public RowOwner {
 public:
  bool is_live(LayoutId, RowId, BlockAddress) const override { return false; }
  uint64_t rows_without_copy(LayoutId) const override { return 0; }
  void relocated(LayoutId, RowId, BlockAddress, BlockAddress) override {}
  void visit_rows(RowVisitor) const override {}
};

}  // namespace

uint64_t new_history() {
  std::random_device device;
  return 1 + uint64_t{device()};
}

// The parts of one store, in the order of their dependencies.
class LogStore::Impl {
 public:
  Impl(StoreDirectory d, const LogOptions& options, std::unique_ptr<IoEngine> io)
      : directory(std::move(d)),
        context(options, std::move(io)),
        files(directory, *context.io, options.read_only),
        table(context, files),
        behind(context, table, files),
        outside(context, table, behind, SegmentWriter::Source::kOutside),
        survivors(context, table, behind, SegmentWriter::Source::kSurvivors),
        reader(context, table, files, behind,
               std::array<const SegmentWriter*, 2>{&outside, &survivors}),
        reclaimer(context, table, files, survivors),
        checkpointer(context, directory, table, behind, outside, survivors) {}

  Status recover(const Manifest& manifest, RowRestorer on_row) {
    context.store_id = manifest.store_id;
    TE_RETURN_IF_ERROR(Recovery(context, directory, files, table).run(manifest, on_row));
    return checkpointer.go_on_after(manifest);
  }

  StoreDirectory directory;
  StoreContext context;
  SegmentFiles files;
  SegmentTable table;
  WriteBehind behind;
  SegmentWriter outside;
  SegmentWriter survivors;
  BlockReader reader;
  Reclaimer reclaimer;
  Checkpointer checkpointer;
};

LogStore::LogStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LogStore::~LogStore() = default;

bool LogStore::exists(const std::string& path) {
  return StoreDirectory::file_bytes(StoreDirectory(path).manifest()).is_ok();
}

Result<std::unique_ptr<LogStore>> LogStore::create(const LogOptions& options,
                                                   std::unique_ptr<IoEngine> io) {
  TE_RETURN_IF_ERROR(check_options(options));
  const Status occupied(StatusCode::kAlreadyExists, options.path + ": there is a store already");
  if (exists(options.path)) return occupied;
  StoreDirectory directory(options.path);
  TE_RETURN_IF_ERROR(directory.make());
  TE_RETURN_IF_ERROR(directory.lock());
  if (exists(options.path)) return occupied;  // somebody was faster
  auto impl = std::make_unique<Impl>(std::move(directory), options, std::move(io));
  impl->context.store_id = random_store_id();
  TE_RETURN_IF_ERROR(impl->checkpointer.clear_directory());
  std::unique_ptr<LogStore> store(new LogStore(std::move(impl)));
  TE_RETURN_IF_ERROR(store->checkpoint(NoRows(), ""));
  return store;
}

Result<std::unique_ptr<LogStore>> LogStore::open(const LogOptions& options,
                                                 std::unique_ptr<IoEngine> io, RowRestorer on_row,
                                                 std::string* metadata) {
  StoreDirectory directory(options.path);
  if (!exists(options.path)) return read_manifest(directory).status();
  if (!options.read_only) TE_RETURN_IF_ERROR(directory.lock());
  Result<Manifest> read = read_manifest(directory);
  if (!read) return read.status();
  Manifest manifest = read.take();
  TE_RETURN_IF_ERROR(check_same_rows(options, manifest));
  // Block and segment size belong to the store; the options only choose them for a new one.
  LogOptions actual = options;
  actual.block_bytes = manifest.block_bytes;
  actual.segment_bytes = manifest.segment_bytes;
  TE_RETURN_IF_ERROR(check_options(actual));
  auto impl = std::make_unique<Impl>(std::move(directory), actual, std::move(io));
  TE_RETURN_IF_ERROR(options.newest ? impl->recover(manifest, on_row)
                                    : impl->checkpointer.restore(manifest, on_row));
  if (metadata != nullptr) *metadata = std::move(manifest.metadata);
  return std::unique_ptr<LogStore>(new LogStore(std::move(impl)));
}

Result<std::string> LogStore::read_metadata(const std::string& path) {
  Result<Manifest> manifest = read_manifest(StoreDirectory(path));
  if (!manifest) return manifest.status();
  return std::move(manifest.value().metadata);
}

Status LogStore::put_many(LayoutId layout, std::span<const RowId> rows,
                          std::span<const std::byte* const> data,
                          std::span<BlockAddress> out_blocks) {
  TE_CHECK(rows.size() == data.size() && rows.size() == out_blocks.size());
  TE_CHECK(layout.value < impl_->context.shapes.size());
  for (RowId row : rows) TE_CHECK(row.value < impl_->context.options.total_rows);
  if (impl_->context.options.read_only) return refuse(options());
  TE_RETURN_IF_ERROR(impl_->behind.settle());
  TE_RETURN_IF_ERROR(impl_->outside.prepare(layout, rows.size()));
  size_t appended = 0;
  Status status = impl_->outside.append(layout, {rows, data}, out_blocks, &appended);
  if (!status) {
    for (size_t i = 0; i < appended; ++i) retire(layout, out_blocks[i]);
    impl_->context.changes.give_up();  // it has copies now that do not count
    return status;
  }
  const RunShape& shape = impl_->context.shape(layout);
  impl_->context.put_bytes += uint64_t{shape.share_bytes} * rows.size();
  impl_->context.stats.rows_written += rows.size();
  impl_->context.stats.row_written_bytes += uint64_t{shape.row_bytes} * rows.size();
  return Status::ok();
}

Status LogStore::get_many(LayoutId layout, std::span<const RowRead> reads,
                          std::unique_lock<std::mutex>* owner_lock) {
  TE_CHECK(layout.value < impl_->context.shapes.size());
  return impl_->reader.get_many(layout, reads, owner_lock);
}

void LogStore::retire(LayoutId layout, BlockAddress block) {
  impl_->table.remove_live(block, impl_->context.shape(layout).share_bytes);
}

uint64_t LogStore::rows_bytes(const RowOwner& owner) const {
  return impl_->reclaimer.rows_bytes(owner);
}

LogStore::Need LogStore::reclaim_need(const RowOwner& owner) const {
  return impl_->reclaimer.need(owner);
}

Status LogStore::reclaim(RowOwner& owner, uint32_t chunks_max, bool wait) {
  if (impl_->context.options.read_only) return refuse(options());
  TE_RETURN_IF_ERROR(impl_->behind.settle());
  return impl_->reclaimer.reclaim(owner, chunks_max, wait);
}

uint32_t LogStore::take_chunks_owed(const RowOwner& owner) {
  return impl_->reclaimer.take_chunks_owed(owner);
}

bool LogStore::is_reclaiming() const { return impl_->reclaimer.is_at_work(); }

void LogStore::wait_for_reclaim() { impl_->reclaimer.wait_for_chunk(); }

Status LogStore::checkpoint(const RowOwner& owner, const std::string& metadata) {
  TE_RETURN_IF_ERROR(begin_checkpoint(owner, metadata, false));
  return end_checkpoint(write_checkpoint());
}

Status LogStore::begin_checkpoint(const RowOwner& owner, const std::string& metadata, bool seal) {
  if (impl_->context.options.read_only) return refuse(options());
  TE_RETURN_IF_ERROR(Status(impl_->files.sync_failure()));
  return impl_->checkpointer.begin(owner, metadata, seal);
}

Status LogStore::write_checkpoint() { return impl_->checkpointer.write(); }

Status LogStore::end_checkpoint(Status written) {
  impl_->reclaimer.abandon();  // its victim may go
  return impl_->checkpointer.end(std::move(written));
}

LogStore::Need LogStore::changes_need() const { return impl_->checkpointer.changes_need(); }

void LogStore::begin_changes(bool may_merge) { impl_->checkpointer.begin_changes(may_merge); }

Status LogStore::write_changes() { return impl_->checkpointer.write_changes(); }

void LogStore::end_changes(Status written) { impl_->checkpointer.end_changes(std::move(written)); }

void LogStore::write_urgent_changes() {
  if (changes_need() != Need::kUrgent) return;
  begin_changes(false);
  end_changes(write_changes());
}

void LogStore::trim() {
  impl_->outside.return_spares();
  impl_->survivors.return_spares();
  impl_->table.return_reserve();
}

std::vector<SegmentInfo> LogStore::segments() const { return impl_->table.segments(); }

Status LogStore::verify(SegmentId segment, const RowOwner& owner,
                        std::vector<SegmentFault>& faults) {
  return Scrubber(impl_->context, impl_->table, impl_->files).scrub(segment, owner, faults);
}

std::string LogStore::segment_path(SegmentId segment) const { return impl_->files.path(segment); }

const LogOptions& LogStore::options() const { return impl_->context.options; }

const IoEngine& LogStore::io() const { return *impl_->context.io; }

LogStats LogStore::stats() const {
  LogStats stats = impl_->context.stats;
  impl_->table.fill(stats);
  return stats;
}

}  // namespace te
