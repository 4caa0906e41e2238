// An index file: where rows were when it was written: all of them, or those that had moved since
// the file before it.
//
// A file is a header and sections. A section covers rows of one layout within one region of 65,536
// rows, dense or sparse, whichever is smaller, with a checksum of its own. Thread-safety: none.
// Cost: a few nanoseconds a row; memory is a few MiB, whatever the number of rows. The bytes that
// the reader reads are hostile.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "io/io_engine.h"
#include "log/aligned_writer.h"
#include "log/format.h"
#include "log/log_store.h"

namespace te {

// Which store and checkpoint an index belongs to.
struct IndexIdentity {
  uint64_t store_id = 0;
  uint64_t checkpoint = 0;
  uint64_t total_rows = 0;
};

class IndexWriter {
 public:
  IndexWriter(IoEngine& io, std::string path);
  ~IndexWriter();
  Status start(const IndexIdentity& identity);
  // Rows in ascending order. An error is kept for `finish`, since visitors cannot fail.
  void add(LayoutId layout, RowId row, BlockAddress block) {
    if (section_.row_count > 0 &&
        (row.value >> kRegionBits != region_ || layout.value != section_.layout)) {
      end_section();
    }
    if (section_.row_count == 0) begin_section(layout, row);
    TE_CHECK(row > last_row_ || last_row_.is_none());
    last_row_ = row;
    offsets_[section_.row_count] = static_cast<uint16_t>(row.value - section_.first_row);
    words_[section_.row_count++] = LocationWord::block(block).bits();
  }
  Result<IndexRecord> finish();

  static constexpr int kRegionBits = 16;
  static constexpr uint32_t kRegionRows = 1u << kRegionBits;

 private:
  void begin_section(LayoutId layout, RowId row);
  void end_section();

  AlignedWriter file_;
  Status status_;
  SectionHeader section_{};
  uint64_t region_ = 0;
  RowId last_row_;
  uint64_t rows_ = 0;
  uint64_t checkpoint_ = 0;
  std::vector<uint16_t> offsets_;
  std::vector<uint32_t> words_;
  std::vector<uint32_t> dense_;
};

// Reads an index file section by section.
class IndexReader {
 public:
  static constexpr size_t kChunkBytesMin = size_t{512} << 10;
  // `chunk_bytes`: what it reads at once, kChunkBytesMin at least; it holds half a MiB more.
  IndexReader(IoEngine& io, std::string path, const IndexIdentity& identity,
              const IndexRecord& record, size_t layouts, size_t chunk_bytes);
  ~IndexReader();
  IndexReader(IndexReader&&) noexcept;

  // Goes to the first section.
  Status open();
  // Whether there is a section, and which region it is of.
  bool has_section() const { return section_.row_count > 0; }
  uint64_t region() const { return section_.first_row >> IndexWriter::kRegionBits; }
  // Hands out the rows of the section, ascending, and goes to the next. `f` sees no row of a
  // damaged one. After the last, the whole file has been checked.
  Status take_section(RowOwner::RowVisitor f);

 private:
  class Window;
  Status next_section();
  Status corrupt(const std::string& what) const;

  IoEngine* io_;
  std::string path_;
  IndexIdentity identity_;
  IndexRecord record_;
  size_t layouts_;
  size_t chunk_bytes_;
  std::unique_ptr<Window> window_;
  SectionHeader section_{};  // row_count 0: none
  uint64_t rows_ = 0;        // of the sections before
  uint64_t row_min_ = 0;     // of the section
};

// Streams the rows of an index file, ascending.
Status read_index(IoEngine& io, const std::string& path, const IndexIdentity& identity,
                  const IndexRecord& record, size_t layouts, RowOwner::RowVisitor f);

}  // namespace te
