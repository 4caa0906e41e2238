// BlockReader: reads wanted rows, each block once, in waves as large as its buffer.
//
// Rows in the writers' memory come from there. Neighbouring wanted blocks are read together.
// Thread-safety: none. Ownership: owns its staging buffer and lists, which grow to the largest
// batch seen. Cost: a sort of the batch by block; a checksum a block read.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "log/segment_files.h"
#include "log/segment_table.h"
#include "log/store_context.h"
#include "log/writer.h"

namespace te {

class BlockReader {
 public:
  BlockReader(StoreContext& context, const SegmentTable& table, SegmentFiles& files,
              std::span<const SegmentWriter* const> writers);
  Status get_many(LayoutId layout, std::span<const RowRead> reads);

 private:
  // The reads of one run, [begin, end) of order_, and where its bytes will be.
  struct WantedRun {
    BlockAddress block;
    uint32_t begin = 0;
    uint32_t end = 0;
    std::byte* staging = nullptr;
  };
  // One request serves the runs [begin, end) of wave_.
  struct Piece {
    uint32_t begin = 0;
    uint32_t end = 0;
  };

  void serve_from_memory(const RunShape& shape, std::span<const RowRead> reads,
                         const WantedRun& wanted, const RunInMemory& memory);
  bool wave_is_full(const RunShape& shape, BlockAddress next) const;
  Status add_to_wave(const RunShape& shape, WantedRun wanted);
  void clear_wave();
  Status run_wave(LayoutId layout, std::span<const RowRead> reads);
  Status serve(LayoutId layout, std::span<const RowRead> reads, const WantedRun& wanted);

  StoreContext& context_;
  const SegmentTable& table_;
  SegmentFiles& files_;
  const std::vector<const SegmentWriter*> writers_;
  AlignedBuffer staging_;
  size_t staged_bytes_ = 0;
  size_t wave_files_ = 0;
  std::vector<uint64_t> order_;  // block << 32 | position in the batch
  std::vector<WantedRun> wave_;
  std::vector<Piece> pieces_;
  std::vector<IoRequest> requests_;
};

}  // namespace te
