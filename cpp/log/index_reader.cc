#include <algorithm>
#include <cstring>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "log/index_snapshot.h"

namespace te {
namespace {

constexpr size_t kChunkBytes = size_t{4} << 20;
constexpr size_t kRequestBytes = size_t{512} << 10;
// Room before a chunk for the part of a section that the previous chunk ended in.
constexpr size_t kCarryBytes = size_t{512} << 10;
constexpr size_t kSectionBytesMax = sizeof(SectionHeader) + IndexWriter::kRegionRows * 6;
static_assert(kSectionBytesMax <= kCarryBytes && kChunkBytes % kFilePaddingBytes == 0);

// A window over a file that is read front to back.
class ForwardReader {
 public:
  ForwardReader(IoEngine& io, const IoFile& file, uint64_t file_bytes)
      : io_(io), file_(file), file_bytes_(file_bytes), buffer_(kCarryBytes + kChunkBytes) {}

  uint64_t left_bytes() const { return file_bytes_ - consumed_bytes_; }
  const std::byte* data() const { return buffer_.data() + begin_; }
  uint32_t crc32c() const { return crc32c_; }  // of what was read so far

  // Makes `bytes` available at data(); bytes <= min(left_bytes(), kCarryBytes).
  Status need(size_t bytes) {
    if (end_ - begin_ >= bytes) return Status::ok();
    const size_t carry = end_ - begin_;
    std::memmove(buffer_.data() + kCarryBytes - carry, buffer_.data() + begin_, carry);
    begin_ = kCarryBytes - carry;
    end_ = kCarryBytes;
    const size_t want = std::min<uint64_t>(kChunkBytes, file_bytes_ - read_bytes_);
    std::vector<IoRequest> requests;
    for (size_t at = 0; at < want; at += kRequestBytes) {
      requests.push_back({IoRequest::Kind::kRead, &file_, read_bytes_ + at,
                          buffer_.data() + kCarryBytes + at, std::min(kRequestBytes, want - at)});
    }
    TE_RETURN_IF_ERROR(io_.run(requests, [](size_t) {}));
    crc32c_ = te::crc32c(buffer_.data() + kCarryBytes, want, crc32c_);
    read_bytes_ += want;
    end_ += want;
    TE_CHECK(end_ - begin_ >= bytes);
    return Status::ok();
  }
  void consume(size_t bytes) {
    begin_ += bytes;
    consumed_bytes_ += bytes;
  }

 private:
  IoEngine& io_;
  const IoFile& file_;
  const uint64_t file_bytes_;
  AlignedBuffer buffer_;
  size_t begin_ = kCarryBytes;
  size_t end_ = kCarryBytes;
  uint64_t read_bytes_ = 0;
  uint64_t consumed_bytes_ = 0;
  uint32_t crc32c_ = 0;
};

Status corrupt(const std::string& path, const std::string& what) {
  return Status(StatusCode::kCorruption, path + ": " + what);
}

size_t payload_bytes(const SectionHeader& section) {
  const bool is_dense = section.encoding == static_cast<uint16_t>(SectionEncoding::kDense);
  return is_dense ? size_t{section.range_rows} * 4 : size_t{section.row_count} * 6;
}

// Whether the header describes a section at all: nothing after it is trusted before this.
bool is_sane(const SectionHeader& section, const IndexIdentity& identity, size_t layouts,
             uint64_t row_min) {
  if (section.magic != kSectionMagic || section.layout >= layouts || section.reserved != 0 ||
      section.encoding > static_cast<uint16_t>(SectionEncoding::kSparse) ||
      section.range_rows == 0 || section.range_rows > IndexWriter::kRegionRows ||
      section.row_count == 0 || section.row_count > section.range_rows ||
      section.first_row < row_min || section.first_row >= identity.total_rows ||
      section.range_rows > identity.total_rows - section.first_row) {
    return false;
  }
  const uint64_t last_row = section.first_row + section.range_rows - 1;
  return section.first_row >> IndexWriter::kRegionBits == last_row >> IndexWriter::kRegionBits;
}

// Hands out the rows of a section whose checksum fits. False if its words contradict its header.
bool visit_section(const SectionHeader& section, const std::byte* payload, RowOwner::RowVisitor f) {
  const LayoutId layout(section.layout);
  const auto word_at = [&](uint32_t i) {
    uint32_t bits;
    std::memcpy(&bits, payload + size_t{i} * sizeof(bits), sizeof(bits));
    return LocationWord::from_bits(bits);
  };
  uint32_t seen = 0;
  if (section.encoding == static_cast<uint16_t>(SectionEncoding::kDense)) {
    for (uint32_t i = 0; i < section.range_rows; ++i) {
      const LocationWord word = word_at(i);
      if (word.is_never_written()) continue;
      if (!word.is_block()) return false;
      f(layout, RowId(section.first_row + i), word.block_address());
      ++seen;
    }
    return seen == section.row_count;
  }
  const std::byte* offsets = payload + size_t{section.row_count} * sizeof(uint32_t);
  int32_t before = -1;
  for (; seen < section.row_count; ++seen) {
    uint16_t offset;
    std::memcpy(&offset, offsets + size_t{seen} * sizeof(offset), sizeof(offset));
    const LocationWord word = word_at(seen);
    if (offset <= before || offset >= section.range_rows || !word.is_block()) return false;
    f(layout, RowId(section.first_row + offset), word.block_address());
    before = offset;
  }
  return true;
}

bool is_header_good(const std::byte* bytes, const IndexIdentity& identity) {
  IndexHeader header;
  std::memcpy(&header, bytes, sizeof(header));
  return header.magic == kIndexMagic && header.format_version == kFormatVersion &&
         header.store_id == identity.store_id && header.checkpoint == identity.checkpoint &&
         header.total_rows == identity.total_rows &&
         header.crc32c == crc32c(bytes + kChecksumEndBytes, sizeof(header) - kChecksumEndBytes);
}

}  // namespace

Status read_index(IoEngine& io, const std::string& path, const IndexIdentity& identity,
                  const IndexRecord& record, size_t layouts, RowOwner::RowVisitor f) {
  Result<IoFile> file = IoFile::open(path, IoFile::Mode::kRead);
  if (!file) return corrupt(path, "the manifest refers to it: " + file.status().message());
  if (record.bytes < sizeof(IndexHeader) || record.bytes % kFilePaddingBytes != 0) {
    return corrupt(path, "impossible size in the manifest");
  }
  ForwardReader reader(io, file.value(), record.bytes);
  TE_RETURN_IF_ERROR(reader.need(sizeof(IndexHeader)));
  if (!is_header_good(reader.data(), identity)) return corrupt(path, "damaged header");
  reader.consume(sizeof(IndexHeader));

  uint64_t rows = 0;
  uint64_t row_min = 0;
  while (rows < record.rows) {
    const std::string place = "section after row " + std::to_string(row_min);
    if (reader.left_bytes() < sizeof(SectionHeader)) return corrupt(path, place + " is missing");
    TE_RETURN_IF_ERROR(reader.need(sizeof(SectionHeader)));
    SectionHeader section;
    std::memcpy(&section, reader.data(), sizeof(section));
    if (!is_sane(section, identity, layouts, row_min)) return corrupt(path, place + " is damaged");
    const size_t bytes = sizeof(section) + payload_bytes(section);
    if (reader.left_bytes() < bytes) return corrupt(path, place + " is cut short");
    TE_RETURN_IF_ERROR(reader.need(bytes));
    const uint32_t crc = crc32c(reader.data() + kChecksumEndBytes, bytes - kChecksumEndBytes);
    if (crc != section.crc32c || !visit_section(section, reader.data() + sizeof(section), f)) {
      return corrupt(path, place + " is damaged");
    }
    reader.consume(bytes);
    rows += section.row_count;
    row_min = section.first_row + section.range_rows;
  }
  if (rows != record.rows || reader.left_bytes() >= kFilePaddingBytes) {
    return corrupt(path, "does not end where the manifest says");
  }
  TE_RETURN_IF_ERROR(reader.need(reader.left_bytes()));
  return reader.crc32c() == record.crc32c ? Status::ok() : corrupt(path, "checksum mismatch");
}

}  // namespace te
