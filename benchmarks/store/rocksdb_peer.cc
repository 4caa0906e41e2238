// RocksDB, set up for this job as well as we know how.
//
// Reads, flushes and compactions are direct; nothing is compressed and there is no log; index and
// filters are in memory and blocks are not cached, as neither side's are. Data blocks end where
// pages do (block_align), so that a row costs one 4 KiB read. Keys are big-endian row numbers. Rows
// are hashed over `shards` databases; a batch is cut into pieces of sorted keys of one shard, which
// `threads` threads serve. The write buffers share `memtable_bytes`. MultiGet asks for asynchronous
// reads, which RocksDB builds without folly's coroutines do not do.
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/statistics.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/thread_pool.h"
#include "row_store.h"

namespace te::bench {
namespace {

constexpr size_t kBlockBytes = 4096;
constexpr int kWriteBuffersPerShard = 4;
constexpr size_t kRowsPerGet = 32;  // what MultiGet handles at a time
constexpr size_t kRowsPerWrite = 1024;
constexpr auto kPollInterval = std::chrono::milliseconds(2);
constexpr int kIdlePolls = 25;

using Key = std::array<char, 4>;

Key key_of(RowId row) {
  const auto id = static_cast<uint32_t>(row.value);
  return {static_cast<char>(id >> 24), static_cast<char>(id >> 16), static_cast<char>(id >> 8),
          static_cast<char>(id)};
}

Status from_rocksdb(const rocksdb::Status& status) {
  if (status.ok()) return Status::ok();
  return Status(StatusCode::kIo, "rocksdb: " + status.ToString());
}

rocksdb::Options make_options(const StoreOptions& options,
                              std::shared_ptr<rocksdb::Statistics> statistics) {
  rocksdb::Options db;
  db.create_if_missing = true;
  db.compression = rocksdb::kNoCompression;
  db.bottommost_compression = rocksdb::kNoCompression;
  db.use_direct_reads = true;
  db.use_direct_io_for_flush_and_compaction = true;
  db.compaction_readahead_size = 2 << 20;
  db.max_open_files = -1;
  db.stats_dump_period_sec = 0;
  db.statistics = std::move(statistics);
  db.IncreaseParallelism(static_cast<int>(std::max(2u, std::thread::hardware_concurrency())));
  db.write_buffer_size = options.memtable_bytes / options.shards / kWriteBuffersPerShard;
  db.max_write_buffer_number = kWriteBuffersPerShard;
  db.target_file_size_base = std::max<uint64_t>(db.write_buffer_size, 16 << 20);
  db.max_bytes_for_level_base = 4 * db.write_buffer_size;
  db.level_compaction_dynamic_level_bytes = true;
  db.optimize_filters_for_hits = true;  // every row asked for is there
  if (options.compaction == "universal") {
    db.compaction_style = rocksdb::kCompactionStyleUniversal;
  }
  rocksdb::BlockBasedTableOptions table;
  table.block_size = kBlockBytes;
  table.block_align = true;
  table.no_block_cache = true;
  table.cache_index_and_filter_blocks = false;  // then they are on the heap, for good
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.data_block_index_type = rocksdb::BlockBasedTableOptions::kDataBlockBinaryAndHash;
  db.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return db;
}

class RocksdbPeer final : public RowStore {
 public:
  explicit RocksdbPeer(const StoreOptions& options)
      : row_bytes_(options.row_bytes),
        statistics_(rocksdb::CreateDBStatistics()),
        shards_(options.shards) {
    statistics_->set_stats_level(rocksdb::StatsLevel::kExceptHistogramOrTimers);
    read_.async_io = true;
    read_.fill_cache = false;
    read_.ignore_range_deletions = true;
    write_.disableWAL = true;
    set_threads(options.threads);
  }

  Status open(const StoreOptions& options) {
    const rocksdb::Options db_options = make_options(options, statistics_);
    for (size_t s = 0; s < shards_.size(); ++s) {
      rocksdb::DB* db = nullptr;
      const std::string path = options.directory + "/shard-" + std::to_string(s);
      TE_RETURN_IF_ERROR(from_rocksdb(rocksdb::DB::Open(db_options, path, &db)));
      shards_[s].reset(db);
    }
    return Status::ok();
  }

  Status get_many(std::span<const RowId> rows, std::span<std::byte* const> out) override {
    sort_by_shard(rows);
    return run(kRowsPerGet, [&](rocksdb::DB& db, std::span<const Entry> piece) {
      std::array<Key, kRowsPerGet> keys;
      std::array<rocksdb::Slice, kRowsPerGet> slices;
      std::array<rocksdb::PinnableSlice, kRowsPerGet> values;
      std::array<rocksdb::Status, kRowsPerGet> statuses;
      for (size_t i = 0; i < piece.size(); ++i) {
        keys[i] = key_of(rows[piece[i].index]);
        slices[i] = rocksdb::Slice(keys[i].data(), keys[i].size());
      }
      db.MultiGet(read_, db.DefaultColumnFamily(), piece.size(), slices.data(), values.data(),
                  statuses.data(), /*sorted_input=*/true);
      for (size_t i = 0; i < piece.size(); ++i) {
        if (!statuses[i].ok()) return statuses[i];
        if (values[i].size() != row_bytes_) return rocksdb::Status::Corruption("size of a row");
        std::memcpy(out[piece[i].index], values[i].data(), row_bytes_);
      }
      return rocksdb::Status::OK();
    });
  }

  Status put_many(std::span<const RowId> rows, std::span<const std::byte* const> data) override {
    sort_by_shard(rows);
    return run(kRowsPerWrite, [&](rocksdb::DB& db, std::span<const Entry> piece) {
      rocksdb::WriteBatch batch(piece.size() * (row_bytes_ + 16));
      for (const Entry& entry : piece) {
        const Key key = key_of(rows[entry.index]);
        batch.Put(rocksdb::Slice(key.data(), key.size()),
                  rocksdb::Slice(reinterpret_cast<const char*>(data[entry.index]), row_bytes_));
      }
      return db.Write(write_, &batch);
    });
  }

  // Universal compaction may call one pending that it never begins: what does not begin within a
  // few polls is not there.
  Status settle() override {
    for (int idle_polls = 0; idle_polls < kIdlePolls; ++idle_polls) {
      const uint64_t running = sum("rocksdb.mem-table-flush-pending") +
                               sum("rocksdb.num-running-flushes") +
                               sum("rocksdb.num-running-compactions");
      if (running == 0 && sum("rocksdb.compaction-pending") == 0) break;
      if (running > 0) idle_polls = -1;
      std::this_thread::sleep_for(kPollInterval);
    }
    return Status::ok();
  }

  Status flush() override {
    for (auto& db : shards_) {
      TE_RETURN_IF_ERROR(from_rocksdb(db->Flush(rocksdb::FlushOptions())));
    }
    return settle();
  }

  Status prepare_for_reads() override {
    TE_RETURN_IF_ERROR(flush());
    for (auto& db : shards_) {
      rocksdb::CompactRangeOptions all;
      all.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
      TE_RETURN_IF_ERROR(from_rocksdb(db->CompactRange(all, nullptr, nullptr)));
    }
    return settle();
  }

  void set_threads(size_t threads) override { pool_ = std::make_unique<ThreadPool>(threads); }

  Counters counters() const override {
    return {{"flush_written_bytes", statistics_->getTickerCount(rocksdb::FLUSH_WRITE_BYTES)},
            {"compact_written_bytes", statistics_->getTickerCount(rocksdb::COMPACT_WRITE_BYTES)},
            {"compact_read_bytes", statistics_->getTickerCount(rocksdb::COMPACT_READ_BYTES)},
            {"stall_us", statistics_->getTickerCount(rocksdb::STALL_MICROS)},
            {"table_bytes_now", sum("rocksdb.total-sst-files-size")},
            {"index_and_filter_bytes_now", sum("rocksdb.estimate-table-readers-mem")},
            {"memtable_bytes_now", sum("rocksdb.cur-size-all-mem-tables")}};
  }

 private:
  struct Entry {
    uint32_t shard;
    uint32_t row;
    size_t index;  // into the batch
    auto operator<=>(const Entry&) const = default;
  };
  struct Piece {
    size_t begin;
    size_t end;
  };
  using Serve = FunctionRef<rocksdb::Status(rocksdb::DB&, std::span<const Entry>)>;

  uint64_t sum(const char* property) const {
    uint64_t total = 0;
    for (const auto& db : shards_) {
      uint64_t value = 0;
      TE_CHECK(db->GetIntProperty(property, &value));
      total += value;
    }
    return total;
  }

  void sort_by_shard(std::span<const RowId> rows) {
    entries_.clear();
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto row = static_cast<uint32_t>(rows[i].value);
      entries_.push_back({static_cast<uint32_t>(row % shards_.size()), row, i});
    }
    std::sort(entries_.begin(), entries_.end());
  }

  Status run(size_t rows_max, Serve serve) {
    pieces_.clear();
    for (size_t begin = 0, end = 0; begin < entries_.size(); begin = end) {
      end = begin + 1;
      while (end < entries_.size() && end - begin < rows_max &&
             entries_[end].shard == entries_[begin].shard) {
        ++end;
      }
      pieces_.push_back({begin, end});
    }
    std::mutex mutex;
    rocksdb::Status failure;
    pool_->run(pieces_.size(), [&](size_t task) {
      const auto [begin, end] = pieces_[task];
      const auto piece = std::span<const Entry>(entries_).subspan(begin, end - begin);
      rocksdb::Status status = serve(*shards_[piece.front().shard], piece);
      if (status.ok()) return;
      std::lock_guard lock(mutex);
      failure = status;
    });
    return from_rocksdb(failure);
  }

  const uint32_t row_bytes_;
  const std::shared_ptr<rocksdb::Statistics> statistics_;
  std::vector<std::unique_ptr<rocksdb::DB>> shards_;
  rocksdb::ReadOptions read_;
  rocksdb::WriteOptions write_;
  std::unique_ptr<ThreadPool> pool_;
  std::vector<Entry> entries_;
  std::vector<Piece> pieces_;
};

}  // namespace

Result<std::unique_ptr<RowStore>> make_rocksdb_store(const StoreOptions& options) {
  auto store = std::make_unique<RocksdbPeer>(options);
  TE_RETURN_IF_ERROR(store->open(options));
  return std::unique_ptr<RowStore>(std::move(store));
}

}  // namespace te::bench
