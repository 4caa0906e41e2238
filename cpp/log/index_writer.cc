#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "log/index_snapshot.h"

namespace te {

IndexWriter::IndexWriter(IoEngine& io, std::string path)
    : file_(io, std::move(path)), offsets_(kRegionRows), words_(kRegionRows), dense_(kRegionRows) {}

IndexWriter::~IndexWriter() = default;

Status IndexWriter::start(const IndexIdentity& identity) {
  checkpoint_ = identity.checkpoint;
  IndexHeader header{};
  header.magic = kIndexMagic;
  header.format_version = kFormatVersion;
  header.store_id = identity.store_id;
  header.checkpoint = identity.checkpoint;
  header.total_rows = identity.total_rows;
  const auto* bytes = reinterpret_cast<const std::byte*>(&header);
  header.crc32c = crc32c(bytes + kChecksumEndBytes, sizeof(header) - kChecksumEndBytes);
  TE_RETURN_IF_ERROR(file_.create());
  return file_.append(&header, sizeof(header));
}

void IndexWriter::begin_section(LayoutId layout, RowId row) {
  section_ = SectionHeader{};
  section_.magic = kSectionMagic;
  section_.first_row = row.value;
  section_.layout = layout.value;
  region_ = row.value >> kRegionBits;
}

void IndexWriter::end_section() {
  const uint32_t n = section_.row_count;
  section_.range_rows = uint32_t{offsets_[n - 1]} + 1;
  const size_t dense_bytes = size_t{section_.range_rows} * sizeof(uint32_t);
  const size_t sparse_bytes = size_t{n} * (sizeof(uint32_t) + sizeof(uint16_t));
  const bool is_dense = dense_bytes <= sparse_bytes;
  if (is_dense) {
    std::memset(dense_.data(), 0, dense_bytes);
    for (uint32_t i = 0; i < n; ++i) dense_[offsets_[i]] = words_[i];
  }
  section_.encoding =
      static_cast<uint16_t>(is_dense ? SectionEncoding::kDense : SectionEncoding::kSparse);
  const uint32_t* words = is_dense ? dense_.data() : words_.data();
  const size_t words_bytes = is_dense ? dense_bytes : n * sizeof(uint32_t);
  const size_t offsets_bytes = is_dense ? 0 : n * sizeof(uint16_t);

  const auto* header = reinterpret_cast<const std::byte*>(&section_);
  uint32_t crc = crc32c(header + kChecksumEndBytes, sizeof(section_) - kChecksumEndBytes);
  crc = crc32c(words, words_bytes, crc);
  section_.crc32c = crc32c(offsets_.data(), offsets_bytes, crc);

  if (status_) status_ = file_.append(&section_, sizeof(section_));
  if (status_) status_ = file_.append(words, words_bytes);
  if (status_) status_ = file_.append(offsets_.data(), offsets_bytes);
  rows_ += n;
  section_.row_count = 0;
}

Result<IndexRecord> IndexWriter::finish() {
  if (section_.row_count > 0) end_section();
  if (status_) status_ = file_.finish();
  if (!status_) return status_;
  return IndexRecord{checkpoint_, file_.bytes(), rows_, file_.crc32c(), 0};
}

}  // namespace te
