// The structs that lie on disk, byte for byte. docs/FORMAT.md has the grammar and a worked example.
//
// All numbers are little-endian. Invariant: a change here changes kFormatVersion, docs/FORMAT.md
// and the golden bytes in tests/cpp/log_format_test.cc.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace te {

static_assert(std::endian::native == std::endian::little, "files are little-endian");

inline constexpr uint16_t kFormatVersion = 2;
inline constexpr uint32_t kBlockMagic = 0x4b424554;     // "TEBK"
inline constexpr uint32_t kIndexMagic = 0x58494554;     // "TEIX"
inline constexpr uint32_t kSectionMagic = 0x43534554;   // "TESC"
inline constexpr uint32_t kManifestMagic = 0x464d4554;  // "TEMF"

// Files other than segments are padded with zeros to a multiple of this, as O_DIRECT needs.
inline constexpr uint32_t kFilePaddingBytes = 4096;

// Every struct keeps its magic at 0 and its checksum at 4, which covers all bytes after itself.
inline constexpr size_t kChecksumEndBytes = 8;

// Starts every run of blocks. The row ids follow, then, at a place fixed by the layout, the rows.
struct BlockHeader {
  uint32_t magic;
  uint32_t crc32c;  // of the whole run after this field
  uint16_t format_version;
  uint16_t layout;
  uint32_t row_count;
  uint32_t span_blocks;
  uint32_t row_bytes;
  uint64_t store_id;
  uint64_t sequence;          // order among all blocks of the store
  uint64_t segment_sequence;  // of the use of the segment that this run belongs to
  uint32_t block;             // its own address
  uint32_t row_id_bytes;
};
static_assert(sizeof(BlockHeader) == 56 && std::is_trivially_copyable_v<BlockHeader>);
static_assert(offsetof(BlockHeader, crc32c) == 4 && offsetof(BlockHeader, layout) == 10);
static_assert(offsetof(BlockHeader, row_count) == 12 && offsetof(BlockHeader, store_id) == 24);
static_assert(offsetof(BlockHeader, sequence) == 32 && offsetof(BlockHeader, block) == 48);

// Starts an index file; sections follow, then padding.
struct IndexHeader {
  uint32_t magic;
  uint32_t crc32c;  // of the rest of this struct
  uint16_t format_version;
  uint16_t reserved0;
  uint32_t reserved1;
  uint64_t store_id;
  uint64_t checkpoint;
  uint64_t total_rows;
  uint64_t reserved2;
};
static_assert(sizeof(IndexHeader) == 48 && offsetof(IndexHeader, store_id) == 16);

enum class SectionEncoding : uint16_t {
  kDense = 0,   // range_rows words, 0 where there is no row
  kSparse = 1,  // row_count words, then row_count ascending uint16 offsets from first_row
};

// Starts the part of an index about rows of one layout within one region of 65,536 rows.
struct SectionHeader {
  uint32_t magic;
  uint32_t crc32c;  // of the rest of this struct and the payload
  uint64_t first_row;
  uint32_t range_rows;  // last row - first row + 1
  uint32_t row_count;
  uint16_t layout;
  uint16_t encoding;
  uint32_t reserved;
};
static_assert(sizeof(SectionHeader) == 32 && offsetof(SectionHeader, range_rows) == 16);

// Starts the manifest; then layout_count row sizes (uint32), index_count IndexRecords,
// segment_count SegmentRecords, the metadata, and padding.
struct ManifestHeader {
  uint32_t magic;
  uint32_t crc32c;  // of everything after this field, padding excluded
  uint16_t format_version;
  uint16_t reserved0;
  uint32_t layout_count;
  uint64_t store_id;
  uint64_t checkpoint;
  uint64_t sequence_next;
  uint64_t total_rows;
  uint32_t block_bytes;
  uint32_t segment_bytes;
  uint64_t segment_count;
  uint64_t metadata_bytes;
  uint32_t index_count;
  uint32_t reserved1;
};
static_assert(sizeof(ManifestHeader) == 80 && offsetof(ManifestHeader, store_id) == 16);
static_assert(offsetof(ManifestHeader, segment_count) == 56);
static_assert(offsetof(ManifestHeader, index_count) == 72);

// One index file, index-<checkpoint>. The first is whole, each later one tells what has changed.
struct IndexRecord {
  uint64_t checkpoint;
  uint64_t bytes;
  uint64_t rows;
  uint32_t crc32c;  // of the whole file
  uint32_t reserved;
};
static_assert(sizeof(IndexRecord) == 32 && offsetof(IndexRecord, crc32c) == 24);

struct SegmentRecord {
  uint32_t segment;
  uint32_t blocks_used;
  uint64_t segment_sequence;
};
static_assert(sizeof(SegmentRecord) == 16);

}  // namespace te
