// RowStore: what the contenders of the store benchmark have in common.
//
// A store of `rows` rows of `row_bytes` bytes, numbered from 0; callers read and write batches of
// rows that lie scattered in memory. Thread-safety: one caller; a store may use threads of its own.
// Ownership: rows' memory is the caller's and needed only during a call. Cost: one virtual call a
// batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "base/types.h"
#include "io/io_engine.h"

namespace te::bench {

struct StoreOptions {
  std::string peer;       // log, rocksdb, page, mmap
  std::string directory;  // of this contender alone; it exists and is empty
  uint64_t rows = 0;
  uint32_t row_bytes = 0;
  std::string io = "io_uring";         // log, page: the engine
  size_t threads = 1;                  // rocksdb, mmap: that serve one batch
  size_t shards = 1;                   // rocksdb: databases that the rows are hashed over
  std::string compaction = "level";    // rocksdb: level, universal
  uint64_t memtable_bytes = 64 << 20;  // rocksdb: of all shards together
  uint64_t drop_bytes = 0;             // mmap: cached bytes after which they are dropped; 0: never
};

// What a store says about itself; names differ from store to store.
using Counters = std::map<std::string, uint64_t>;

class RowStore {
 public:
  virtual ~RowStore() = default;

  // Copies row rows[i] to out[i]. Rows of a batch are distinct and have been put.
  virtual Status get_many(std::span<const RowId> rows, std::span<std::byte* const> out) = 0;
  // Writes row rows[i] from data[i], whether it is there already or not.
  virtual Status put_many(std::span<const RowId> rows, std::span<const std::byte* const> data) = 0;
  // The stored copies will not be read again before they are put again.
  virtual Status retire(std::span<const RowId>) { return Status::ok(); }

  // Waits until nothing is left to do in the background.
  virtual Status settle() { return Status::ok(); }
  // Makes everything durable, and settles. Every row has been put since it was retired.
  virtual Status flush() = 0;
  // Brings the store into the shape that reads fastest.
  virtual Status prepare_for_reads() { return Status::ok(); }
  // Forgets what the page cache holds of it.
  virtual Status drop_cache() { return Status::ok(); }
  virtual void set_threads(size_t) {}

  virtual Counters counters() const = 0;
};

// One factory a contender; each begins an empty store.
Result<std::unique_ptr<RowStore>> make_log_store(const StoreOptions& options);
Result<std::unique_ptr<RowStore>> make_page_store(const StoreOptions& options);
Result<std::unique_ptr<RowStore>> make_mmap_store(const StoreOptions& options);
// kNotFound where the program was built without RocksDB.
Result<std::unique_ptr<RowStore>> make_rocksdb_store(const StoreOptions& options);

// io_uring or portable, by name, as the engine of the package would make it.
Result<std::unique_ptr<IoEngine>> make_named_engine(const std::string& name);

}  // namespace te::bench
