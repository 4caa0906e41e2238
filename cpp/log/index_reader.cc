#include <algorithm>
#include <cstring>
#include <utility>
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
static_assert(kSectionBytesMax <= kCarryBytes && kSectionBytesMax <= IndexReader::kChunkBytesMin);

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

// A window over a file that is read front to back.
class IndexReader::Window {
 public:
  Window(IoEngine& io, IoFile file, uint64_t file_bytes, size_t chunk_bytes)
      : io_(io),
        file_(std::move(file)),
        file_bytes_(file_bytes),
        chunk_bytes_(chunk_bytes),
        buffer_(kCarryBytes + chunk_bytes) {}

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
    const size_t want = std::min<uint64_t>(chunk_bytes_, file_bytes_ - read_bytes_);
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
  const IoFile file_;
  const uint64_t file_bytes_;
  const size_t chunk_bytes_;
  AlignedBuffer buffer_;
  size_t begin_ = kCarryBytes;
  size_t end_ = kCarryBytes;
  uint64_t read_bytes_ = 0;
  uint64_t consumed_bytes_ = 0;
  uint32_t crc32c_ = 0;
};

IndexReader::IndexReader(IoEngine& io, std::string path, const IndexIdentity& identity,
                         const IndexRecord& record, size_t layouts, size_t chunk_bytes)
    : io_(&io),
      path_(std::move(path)),
      identity_(identity),
      record_(record),
      layouts_(layouts),
      chunk_bytes_(chunk_bytes) {
  TE_CHECK(chunk_bytes >= kChunkBytesMin && chunk_bytes % kFilePaddingBytes == 0);
}
IndexReader::~IndexReader() = default;
IndexReader::IndexReader(IndexReader&&) noexcept = default;

Status IndexReader::corrupt(const std::string& what) const {
  return Status(StatusCode::kCorruption, path_ + ": " + what);
}

Status IndexReader::open() {
  Result<IoFile> file = IoFile::open(path_, IoFile::Mode::kRead);
  if (file.status().code() == StatusCode::kNotFound)
    return corrupt("the manifest refers to it: " + file.status().message());
  if (!file) return file.status();
  if (record_.bytes < sizeof(IndexHeader) || record_.bytes % kFilePaddingBytes != 0) {
    return corrupt("impossible size in the manifest");
  }
  window_ = std::make_unique<Window>(*io_, file.take(), record_.bytes, chunk_bytes_);
  TE_RETURN_IF_ERROR(window_->need(sizeof(IndexHeader)));
  if (!is_header_good(window_->data(), identity_)) return corrupt("damaged header");
  window_->consume(sizeof(IndexHeader));
  return next_section();
}

// Reads the next section and checks all of it, or, after the last one, the end of the file.
Status IndexReader::next_section() {
  section_ = {};
  if (rows_ >= record_.rows) {
    if (rows_ != record_.rows || window_->left_bytes() >= kFilePaddingBytes) {
      return corrupt("does not end where the manifest says");
    }
    TE_RETURN_IF_ERROR(window_->need(window_->left_bytes()));
    return window_->crc32c() == record_.crc32c ? Status::ok() : corrupt("checksum mismatch");
  }
  const std::string place = "section after row " + std::to_string(row_min_);
  if (window_->left_bytes() < sizeof(SectionHeader)) return corrupt(place + " is missing");
  TE_RETURN_IF_ERROR(window_->need(sizeof(SectionHeader)));
  SectionHeader section;
  std::memcpy(&section, window_->data(), sizeof(section));
  if (!is_sane(section, identity_, layouts_, row_min_)) return corrupt(place + " is damaged");
  const size_t bytes = sizeof(section) + payload_bytes(section);
  if (window_->left_bytes() < bytes) return corrupt(place + " is cut short");
  TE_RETURN_IF_ERROR(window_->need(bytes));
  const uint32_t crc = crc32c(window_->data() + kChecksumEndBytes, bytes - kChecksumEndBytes);
  if (crc != section.crc32c) return corrupt(place + " is damaged");
  section_ = section;
  return Status::ok();
}

Status IndexReader::take_section(RowOwner::RowVisitor f) {
  if (!visit_section(section_, window_->data() + sizeof(section_), f)) {
    return corrupt("section after row " + std::to_string(row_min_) + " is damaged");
  }
  window_->consume(sizeof(section_) + payload_bytes(section_));
  rows_ += section_.row_count;
  row_min_ = section_.first_row + section_.range_rows;
  return next_section();
}

Status read_index(IoEngine& io, const std::string& path, const IndexIdentity& identity,
                  const IndexRecord& record, size_t layouts, RowOwner::RowVisitor f) {
  IndexReader reader(io, path, identity, record, layouts, kChunkBytes);
  TE_RETURN_IF_ERROR(reader.open());
  while (reader.has_section()) TE_RETURN_IF_ERROR(reader.take_section(f));
  return Status::ok();
}

}  // namespace te
