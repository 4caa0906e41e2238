#include "log/block.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"

namespace te {
namespace {

// Rows are scattered in memory: fetch ahead, so that copying does not wait for each of them.
constexpr size_t kPrefetchRows = 12;
constexpr uint32_t kPrefetchBytesMax = 512;
constexpr uint32_t kCacheLineBytes = 64;

void prefetch_row(const std::byte* data, uint32_t row_bytes) {
  const uint32_t end = std::min(row_bytes, kPrefetchBytesMax);
  for (uint32_t offset = 0; offset < end; offset += kCacheLineBytes) {
    __builtin_prefetch(data + offset);
  }
}

template <class Id>
uint32_t find_last(const std::byte* ids, uint32_t count, Id wanted) {
  for (uint32_t place = count; place-- > 0;) {
    Id id;
    std::memcpy(&id, ids + size_t{place} * sizeof(Id), sizeof(Id));
    if (id == wanted) return place;
  }
  return kNoRow;
}

uint32_t checksum(const std::byte* run, const RunShape& shape) {
  return crc32c(run + kChecksumEndBytes, shape.run_bytes - kChecksumEndBytes);
}

}  // namespace

RunShape make_run_shape(uint32_t block_bytes, uint32_t row_bytes, uint64_t total_rows) {
  RunShape shape;
  shape.row_bytes = row_bytes;
  shape.row_id_bytes = total_rows <= (uint64_t{1} << 32) ? 4 : 8;
  const uint64_t header_bytes = sizeof(BlockHeader);
  const uint64_t entry_bytes = uint64_t{row_bytes} + shape.row_id_bytes;
  const uint64_t rows_per_block = (block_bytes - header_bytes) / entry_bytes;
  shape.rows_max = static_cast<uint32_t>(std::max<uint64_t>(rows_per_block, 1));
  shape.span_blocks =
      rows_per_block > 0
          ? 1
          : static_cast<uint32_t>((header_bytes + entry_bytes + block_bytes - 1) / block_bytes);
  shape.rows_offset_bytes = sizeof(BlockHeader) + shape.rows_max * shape.row_id_bytes;
  shape.run_bytes = shape.span_blocks * block_bytes;
  shape.share_bytes = shape.run_bytes / shape.rows_max;
  return shape;
}

void write_rows(std::byte* run, const RunShape& shape, uint32_t first_place, const RowList& list,
                size_t begin, size_t end) {
  TE_CHECK(first_place + (end - begin) <= shape.rows_max);
  std::byte* id_out = run + sizeof(BlockHeader) + size_t{first_place} * shape.row_id_bytes;
  std::byte* row_out = run + shape.rows_offset_bytes + size_t{first_place} * shape.row_bytes;
  for (size_t i = begin; i < end; ++i) {
    if (i + kPrefetchRows < list.data.size()) {
      prefetch_row(list.data[i + kPrefetchRows], shape.row_bytes);
    }
    // The low bytes of a little-endian number are the number, where it fits.
    std::memcpy(id_out, &list.rows[i].value, shape.row_id_bytes);
    std::memcpy(row_out, list.data[i], shape.row_bytes);
    id_out += shape.row_id_bytes;
    row_out += shape.row_bytes;
  }
}

void seal_run(std::byte* run, const RunShape& shape, const RunIdentity& identity,
              uint32_t row_count, uint64_t sequence) {
  TE_CHECK(row_count >= 1 && row_count <= shape.rows_max);
  BlockHeader header{};
  header.magic = kBlockMagic;
  header.format_version = kFormatVersion;
  header.layout = identity.layout.value;
  header.row_count = row_count;
  header.span_blocks = shape.span_blocks;
  header.row_bytes = shape.row_bytes;
  header.store_id = identity.store_id;
  header.sequence = sequence;
  header.segment_sequence = identity.segment_sequence;
  header.block = identity.block.value;
  header.row_id_bytes = shape.row_id_bytes;
  std::memcpy(run, &header, sizeof(header));

  std::byte* ids_end = run + sizeof(header) + size_t{row_count} * shape.row_id_bytes;
  std::memset(ids_end, 0, static_cast<size_t>(run + shape.rows_offset_bytes - ids_end));
  std::byte* rows_end = run + shape.rows_offset_bytes + size_t{row_count} * shape.row_bytes;
  std::memset(rows_end, 0, static_cast<size_t>(run + shape.run_bytes - rows_end));

  const uint32_t crc = checksum(run, shape);
  std::memcpy(run + offsetof(BlockHeader, crc32c), &crc, sizeof(crc));
}

BlockHeader read_header(const std::byte* run) {
  BlockHeader header;
  std::memcpy(&header, run, sizeof(header));
  return header;
}

const char* check_header(const std::byte* run, const RunShape& shape, const RunIdentity& identity) {
  const BlockHeader header = read_header(run);
  if (header.magic != kBlockMagic) return "no block starts here (magic)";
  if (header.format_version != kFormatVersion) return "unknown format version";
  if (header.store_id != identity.store_id) return "block of another store";
  if (header.block != identity.block.value) return "block of another place";
  if (header.segment_sequence != identity.segment_sequence) {
    return "block of an earlier use of the segment";
  }
  if (header.layout != identity.layout.value) return "block of another row layout";
  if (header.row_bytes != shape.row_bytes || header.row_id_bytes != shape.row_id_bytes ||
      header.span_blocks != shape.span_blocks) {
    return "sizes do not fit the row layout";
  }
  if (header.row_count < 1 || header.row_count > shape.rows_max) return "impossible row count";
  return nullptr;
}

const char* check_run(const std::byte* run, const RunShape& shape, const RunIdentity& identity) {
  if (const char* wrong = check_header(run, shape, identity)) return wrong;
  return read_header(run).crc32c == checksum(run, shape) ? nullptr : "checksum mismatch";
}

RowId row_id_at(const std::byte* run, const RunShape& shape, uint32_t place) {
  uint64_t id = 0;
  std::memcpy(&id, run + sizeof(BlockHeader) + size_t{place} * shape.row_id_bytes,
              shape.row_id_bytes);
  return RowId(id);
}

uint32_t find_row(const std::byte* run, const RunShape& shape, uint32_t row_count, RowId row) {
  const std::byte* ids = run + sizeof(BlockHeader);
  if (shape.row_id_bytes == 8) return find_last<uint64_t>(ids, row_count, row.value);
  return find_last<uint32_t>(ids, row_count, static_cast<uint32_t>(row.value));
}

}  // namespace te
