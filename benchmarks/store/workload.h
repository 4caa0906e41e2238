// Workload: what a store is made to do, what it used for that, and whether its answers were right.
//
// Every row that is read is checked for its number; one in kCheckEvery byte by byte, against the
// version that was written last. A wrong row is kCorruption. Stamping and checking rows is part of
// what is measured; drawing ids is not, but in `update`. Thread-safety: none. Ownership: refers to
// the store; keeps rows in memory as the cache in front of it would. Cost: 4 bytes a row for
// versions, and a cache's rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "id_stream.h"
#include "row_store.h"
#include "usage.h"

namespace te::bench {

struct Outcome {
  Usage usage;
  uint64_t lookups = 0;
  uint64_t rows_got = 0;
  uint64_t rows_put = 0;
  double settle_s = 0;  // part of usage.seconds: waiting for work in the background
};

class Workload {
 public:
  Workload(RowStore& store, uint64_t rows, uint32_t row_bytes);
  ~Workload();

  // Writes every row once, in ascending order.
  Result<Outcome> fill();
  // Reads batches of uniformly random rows for a time, at least one.
  Result<Outcome> get(double seconds, uint32_t batch);
  // Writes every row once in random order, gathered from scattered places of an arena, `batch` a
  // call. The arena is stamped anew between passes over it, with the clock stopped.
  Result<Outcome> put(uint32_t batch, uint64_t arena_bytes);
  // A training job with a cache of `cache_rows` rows in front, a FIFO of dirty rows: rows of each
  // batch that are not in it are read, their copies retired and the rows evicted for them put,
  // until `rows_evicted` have been. Then the store settles. Goes on where the last call ended.
  Result<Outcome> churn(Popularity popularity, uint64_t cache_rows, uint64_t rows_evicted,
                        uint32_t batch);
  // Writes the rows of churn's cache, then makes the store durable.
  Result<Outcome> flush();
  // The same job without a cache: each batch of rows is read, changed and put back.
  Result<Outcome> update(uint64_t lookups, uint32_t batch);

 private:
  struct Cache;
  // The rows of one batch that are not in the cache, for every batch of a round.
  struct Round {
    std::vector<RowId> missing;
    std::vector<size_t> ends;
    uint64_t lookups = 0;
  };

  Round draw_round(uint64_t rows_evicted, uint32_t batch);
  Status churn_batch(std::span<const RowId> missing, Outcome& outcome);
  // Reads rows to `places`, checks them.
  Status read(std::span<const RowId> rows, std::span<std::byte* const> places);
  void change(RowId row, std::byte* place);
  void use_batch_buffer(size_t rows);
  Status wrong(RowId row) const;

  RowStore& store_;
  const uint64_t rows_;
  const uint32_t row_bytes_;
  std::vector<uint32_t> versions_;
  uint64_t rows_checked_ = 0;
  std::unique_ptr<IdStream> uniform_;
  std::unique_ptr<Cache> cache_;
  std::vector<RowId> ids_;
  std::vector<std::byte*> places_;
  AlignedBuffer buffer_;  // a batch's rows
};

}  // namespace te::bench
