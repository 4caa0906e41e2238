// SegmentWriter: turns rows into blocks at the end of one segment after another.
//
// A store has two: one for rows from outside, one for the reclaimer's survivors, so that rows of
// like heat meet. Each layout has one open run, which has its address from the start, fills up in
// memory, and goes to the write buffer when it is full, or on its own where the buffer has gone on
// without it. Partly filled runs are closed by `close_all` only, and never touched
// again. Thread-safety: none. Ownership: owns open runs, buffer and the spare segments ahead.
//
// Sequence numbers order the copies of a row for a scan: of two copies, the one in the run with the
// higher number is newer. A run of rows from outside takes its number when it is closed: after
// every copy it replaces. A run of survivors takes it when it is opened, before any newer copy can
// be closed, and admits only rows from runs with lower numbers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "base/types.h"
#include "log/block.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/write_buffer.h"

namespace te {

// A run in memory, readable; `run` is nullptr if there is none.
struct RunInMemory {
  const std::byte* run = nullptr;
  uint32_t row_count = 0;
};

class SegmentWriter {
 public:
  enum class Source : uint8_t { kOutside, kSurvivors };
  SegmentWriter(StoreContext& context, SegmentTable& table, WriteBehind& behind, Source source);

  // Makes sure that there is space for so many rows, or changes nothing.
  Status prepare(LayoutId layout, size_t rows);
  // Appends rows and counts them as live. On error the first `*appended` rows are in.
  Status append(LayoutId layout, const RowList& list, std::span<BlockAddress> out_blocks,
                size_t* appended);
  // One row that was in a run with this sequence number.
  Status append_survivor(LayoutId layout, RowId row, const std::byte* data,
                         uint64_t source_sequence, BlockAddress* out_block);
  // Closes every open run and writes the buffer.
  Status close_all();
  // And goes on in a new segment.
  Status finish_segment();
  void return_spares();
  RunInMemory find(BlockAddress block) const;

 private:
  struct OpenRun {
    AlignedBuffer bytes;
    BlockAddress block;
    uint32_t rows = 0;  // 0: not open
    uint64_t sequence = 0;
  };

  Status open_run(LayoutId layout);
  Status close_run(LayoutId layout);
  Status next_segment();
  Status flush();

  StoreContext& context_;
  SegmentTable& table_;
  WriteBehind& behind_;
  const Source source_;
  WriteBuffer buffer_;
  std::vector<OpenRun> open_;  // by LayoutId
  std::vector<WriteBuffer::Hole> holes_;
  std::vector<SegmentId> spares_;
  SegmentId segment_;
  uint32_t next_block_ = 0;  // first block of segment_ that is in no run
};

}  // namespace te
