// What all parts of one store share: its options, identity, engine, counters.
//
// Ownership: the LogStore owns it and outlives its parts. Thread-safety: none, as LogStore.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/types.h"
#include "io/io_engine.h"
#include "io/io_worker.h"
#include "log/block.h"
#include "log/change_list.h"
#include "log/log_store.h"

namespace te {

// How many sequence numbers to skip when a store is opened: several histories may go on from one
// checkpoint, and (segment, sequence) must not mean two things.
uint64_t new_history();

struct StoreContext {
  LogOptions options;
  std::unique_ptr<IoEngine> io;
  std::unique_ptr<IoWorker> worker;  // what need not be waited for
  std::vector<RunShape> shapes;      // of each LayoutId
  uint32_t blocks_per_segment = 0;

  uint64_t store_id = 0;       // random; told apart from every other store ever
  uint64_t sequence_next = 1;  // of the next block closed or segment begun
  uint64_t put_bytes = 0;      // of blocks, by put_many since chunks owed were last taken
  ChangeList changes;
  LogStats stats;

  StoreContext(const LogOptions& o, std::unique_ptr<IoEngine> engine)
      : options(o),
        io(std::move(engine)),
        worker(std::make_unique<IoWorker>(*io, o.background_io)),
        blocks_per_segment(o.segment_bytes / o.block_bytes),
        changes(o.changes_max) {
    for (uint32_t row_bytes : o.layout_row_bytes) {
      shapes.push_back(make_run_shape(o.block_bytes, row_bytes, o.total_rows));
    }
  }
  const RunShape& shape(LayoutId layout) const { return shapes[layout.value]; }
};

}  // namespace te
