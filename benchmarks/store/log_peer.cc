// Our own store: LogStore behind a flat array of location words.
//
// It runs as in the engine: one mutex, and a thread that looks after it in the background.
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "log/background_upkeep.h"
#include "log/block.h"
#include "log/checkpoint_turn.h"
#include "log/log_options.h"
#include "log/log_store.h"
#include "row_store.h"

namespace te::bench {
namespace {

constexpr LayoutId kLayout{0};
constexpr size_t kWordsAhead = 32;  // as the planner prefetches them
constexpr uint32_t kChunksPerTry = 8;
constexpr size_t kPortableThreads = 8;
constexpr size_t kUringDepth = 256;

class Locations final : public RowOwner {
 public:
  explicit Locations(uint64_t rows) : words_(rows) {}

  bool is_live(LayoutId, RowId row, BlockAddress block) const override {
    return words_[row.value] == LocationWord::block(block);
  }
  uint64_t rows_without_copy(LayoutId) const override { return rows_in_dram; }
  void relocated(LayoutId, RowId row, BlockAddress, BlockAddress to) override {
    words_[row.value] = LocationWord::block(to);
  }
  void visit_rows(RowVisitor f) const override {
    for (uint64_t row = 0; row < words_.size(); ++row) {
      if (words_[row].is_block()) f(kLayout, RowId(row), words_[row].block_address());
    }
  }
  void prefetch(RowId row) const { __builtin_prefetch(&words_[row.value]); }
  LocationWord& operator[](RowId row) { return words_[row.value]; }

  uint64_t rows_in_dram = 0;  // whose copies were retired and that were not put since

 private:
  std::vector<LocationWord> words_;
};

class LogPeer final : public RowStore {
 public:
  LogPeer(std::unique_ptr<LogStore> log, uint64_t rows)
      : log_(std::move(log)), locations_(rows), upkeep_(mutex_, turn_, *log_, locations_) {}

  Status get_many(std::span<const RowId> rows, std::span<std::byte* const> out) override {
    std::unique_lock lock(mutex_);
    reads_.clear();
    for (size_t i = 0; i < rows.size(); ++i) {
      if (i + kWordsAhead < rows.size()) locations_.prefetch(rows[i + kWordsAhead]);
      TE_CHECK(locations_[rows[i]].is_block());
      reads_.push_back({rows[i], locations_[rows[i]].block_address(), out[i]});
    }
    return log_->get_many(kLayout, reads_, &lock);  // as the engine does: the reclaimer goes on
  }

  Status put_many(std::span<const RowId> rows, std::span<const std::byte* const> data) override {
    std::lock_guard lock(mutex_);
    TE_RETURN_IF_ERROR(upkeep_.poll());
    blocks_.resize(rows.size());
    TE_RETURN_IF_ERROR(log_->put_many(kLayout, rows, data, blocks_));
    for (size_t i = 0; i < rows.size(); ++i) {
      LocationWord& word = locations_[rows[i]];
      if (word.is_block()) {
        log_->retire(kLayout, word.block_address());
      } else if (word.is_slot()) {
        --locations_.rows_in_dram;
      }
      word = LocationWord::block(blocks_[i]);
    }
    return Status::ok();
  }

  Status retire(std::span<const RowId> rows) override {
    std::lock_guard lock(mutex_);
    for (RowId row : rows) {
      LocationWord& word = locations_[row];
      if (!word.is_block()) continue;
      log_->retire(kLayout, word.block_address());
      word = LocationWord::slot(SlotIndex(0));  // of the caller's cache; which does not matter
      ++locations_.rows_in_dram;
    }
    return Status::ok();
  }

  Status settle() override {
    std::lock_guard lock(mutex_);
    while (log_->reclaim_need(locations_) != LogStore::Need::kNone) {
      const LogStats before = log_->stats();
      TE_RETURN_IF_ERROR(log_->reclaim(locations_, kChunksPerTry));
      const LogStats after = log_->stats();
      // Nothing worth reclaiming is left, though there is need.
      if (after.reclaim_read_bytes == before.reclaim_read_bytes) break;
    }
    return Status::ok();
  }

  Status flush() override {
    TE_RETURN_IF_ERROR(settle());
    std::lock_guard lock(mutex_);
    return log_->checkpoint(locations_, "");
  }

  Counters counters() const override {
    std::lock_guard lock(mutex_);
    const LogStats stats = log_->stats();
    return {{"rows_read", stats.rows_read},
            {"rows_from_write_buffer", stats.rows_from_write_buffer},
            {"blocks_read", stats.blocks_read},
            {"device_read_bytes", stats.read_bytes + stats.reclaim_read_bytes},
            {"device_written_bytes", stats.written_bytes + stats.checkpoint_written_bytes},
            {"checkpoint_written_bytes", stats.checkpoint_written_bytes},
            {"rows_reclaimed", stats.rows_reclaimed},
            {"used_bytes_now", stats.used_bytes_now},
            {"live_bytes_now", stats.live_bytes_now}};
  }

 private:
  mutable std::mutex mutex_;
  // Guarded by mutex_:
  CheckpointTurn turn_;
  std::unique_ptr<LogStore> log_;
  Locations locations_;
  std::vector<RowRead> reads_;
  std::vector<BlockAddress> blocks_;
  BackgroundUpkeep upkeep_;  // the last, so that its thread ends before what it uses
};

}  // namespace

Result<std::unique_ptr<IoEngine>> make_named_engine(const std::string& name) {
  if (name == "portable") return make_portable_engine(kPortableThreads);
  return make_uring_engine(kUringDepth);
}

Result<std::unique_ptr<RowStore>> make_log_store(const StoreOptions& options) {
  LogOptions log;
  log.path = options.directory + "/store";
  log.total_rows = options.rows;
  log.layout_row_bytes = {options.row_bytes};
  const RunShape shape = make_run_shape(log.block_bytes, options.row_bytes, options.rows);
  log.segment_bytes = choose_segment_bytes(options.rows * shape.share_bytes * 2, shape.run_bytes);
  auto io = make_named_engine(options.io);
  if (!io) return io.status();
  auto store = LogStore::create(log, io.take());
  if (!store) return store.status();
  return std::unique_ptr<RowStore>(std::make_unique<LogPeer>(store.take(), options.rows));
}

}  // namespace te::bench
