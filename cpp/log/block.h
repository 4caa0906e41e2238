// The block codec: rows to a run of blocks and back.
//
// A run is one block with many rows, or, for a row larger than a block, the consecutive blocks of
// one row. A row may stand in a run twice (put, retired, put again while the run was open): the
// last one counts. Thread-safety: pure functions. Cost: one checksum a run; a search of the ids of
// a run, linear from its end, a row. The bytes that `check_run` and `find_row` read are hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/types.h"
#include "log/format.h"

namespace te {

// Where things are in a run; fixed by the row size and the options of the store.
struct RunShape {
  uint32_t row_bytes = 0;
  uint32_t row_id_bytes = 0;  // 4 if every row id fits, else 8
  uint32_t span_blocks = 0;
  uint32_t rows_max = 0;
  uint32_t rows_offset_bytes = 0;
  uint32_t run_bytes = 0;
  uint32_t share_bytes = 0;  // of one row in the space of its run: what a live row counts for
};

RunShape make_run_shape(uint32_t block_bytes, uint32_t row_bytes, uint64_t total_rows);

// What a reader knows about a run before it reads it.
struct RunIdentity {
  uint64_t store_id = 0;
  uint64_t segment_sequence = 0;
  BlockAddress block;
  LayoutId layout;
};

inline constexpr uint32_t kNoRow = UINT32_MAX;

// Copies rows [begin, end) of the lists to the run, the first to place `first_place`.
struct RowList {
  std::span<const RowId> rows;
  std::span<const std::byte* const> data;
};
void write_rows(std::byte* run, const RunShape& shape, uint32_t first_place, const RowList& list,
                size_t begin, size_t end);

// Writes the header, zeros what is unused, and the checksum.
void seal_run(std::byte* run, const RunShape& shape, const RunIdentity& identity,
              uint32_t row_count, uint64_t sequence);

// nullptr if the run is what `identity` says, undamaged; else what is wrong with it. Reads
// sizeof(BlockHeader) bytes, respectively shape.run_bytes.
const char* check_header(const std::byte* run, const RunShape& shape, const RunIdentity& identity);
const char* check_run(const std::byte* run, const RunShape& shape, const RunIdentity& identity);

BlockHeader read_header(const std::byte* run);
RowId row_id_at(const std::byte* run, const RunShape& shape, uint32_t place);
// The last place of the row among the first `row_count`, or kNoRow.
uint32_t find_row(const std::byte* run, const RunShape& shape, uint32_t row_count, RowId row);

inline const std::byte* row_at(const std::byte* run, const RunShape& shape, uint32_t place) {
  return run + shape.rows_offset_bytes + size_t{place} * shape.row_bytes;
}

}  // namespace te
