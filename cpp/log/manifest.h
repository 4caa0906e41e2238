// The manifest: the one file that says what the store is. Whoever replaces it makes a checkpoint.
//
// Thread-safety: pure functions. The bytes that `decode_manifest` reads are hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "log/format.h"
#include "log/index_snapshot.h"

namespace te {

// Of a checkpoint; the chain is merged long before it has so many.
inline constexpr size_t kManifestIndexesMax = 64;

struct Manifest {
  uint64_t store_id = 0;
  uint64_t checkpoint = 0;
  uint64_t sequence_next = 0;
  uint64_t total_rows = 0;
  uint32_t block_bytes = 0;
  uint32_t segment_bytes = 0;
  std::vector<uint32_t> layout_row_bytes;
  std::vector<SegmentRecord> segments;
  std::vector<IndexRecord> indexes;  // the whole one, then the changes since
  std::string metadata;
};

// Without the padding.
std::vector<std::byte> encode_manifest(const Manifest& manifest);
// `path` is for the message.
Result<Manifest> decode_manifest(std::span<const std::byte> bytes, const std::string& path);

}  // namespace te
