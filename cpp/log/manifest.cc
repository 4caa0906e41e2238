#include "log/manifest.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"

namespace te {
namespace {

template <class T>
void put(std::vector<std::byte>& out, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values);
  out.insert(out.end(), bytes, bytes + count * sizeof(T));
}

// Takes `count` values off the front; false if there are fewer.
template <class T>
bool take(std::span<const std::byte>& in, std::vector<T>& values, uint64_t count) {
  if (count > in.size() / sizeof(T)) return false;
  values.resize(count);
  if (count > 0) std::memcpy(values.data(), in.data(), count * sizeof(T));
  in = in.subspan(count * sizeof(T));
  return true;
}

Status corrupt(const std::string& path, const char* what) {
  return Status(StatusCode::kCorruption, path + ": " + what);
}

}  // namespace

std::vector<std::byte> encode_manifest(const Manifest& manifest) {
  ManifestHeader header{};
  header.magic = kManifestMagic;
  header.format_version = kFormatVersion;
  header.layout_count = static_cast<uint32_t>(manifest.layout_row_bytes.size());
  header.store_id = manifest.store_id;
  header.checkpoint = manifest.checkpoint;
  header.sequence_next = manifest.sequence_next;
  header.total_rows = manifest.total_rows;
  header.block_bytes = manifest.block_bytes;
  header.segment_bytes = manifest.segment_bytes;
  header.segment_count = manifest.segments.size();
  header.metadata_bytes = manifest.metadata.size();
  header.index_count = static_cast<uint32_t>(manifest.indexes.size());
  std::vector<std::byte> out;
  put(out, &header, 1);
  put(out, manifest.layout_row_bytes.data(), manifest.layout_row_bytes.size());
  put(out, manifest.indexes.data(), manifest.indexes.size());
  put(out, manifest.segments.data(), manifest.segments.size());
  put(out, manifest.metadata.data(), manifest.metadata.size());
  const uint32_t crc = crc32c(out.data() + kChecksumEndBytes, out.size() - kChecksumEndBytes);
  std::memcpy(out.data() + offsetof(ManifestHeader, crc32c), &crc, sizeof(crc));
  return out;
}

Result<Manifest> decode_manifest(std::span<const std::byte> bytes, const std::string& path) {
  ManifestHeader header;
  if (bytes.size() < sizeof(header)) return corrupt(path, "too short for a manifest");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kManifestMagic) return corrupt(path, "not a manifest (magic)");
  if (header.format_version != kFormatVersion) {
    return Status(StatusCode::kCorruption,
                  path + ": format version " + std::to_string(header.format_version) +
                      ", this release reads " + std::to_string(kFormatVersion));
  }
  Manifest manifest;
  std::span<const std::byte> rest = bytes.subspan(sizeof(header));
  std::vector<char> metadata;
  if (!take(rest, manifest.layout_row_bytes, header.layout_count) ||
      !take(rest, manifest.indexes, header.index_count) ||
      !take(rest, manifest.segments, header.segment_count) ||
      !take(rest, metadata, header.metadata_bytes)) {
    return corrupt(path, "cut short, or its lengths are damaged");
  }
  uint64_t index_last = 0;
  for (const IndexRecord& index : manifest.indexes) {
    if (index.checkpoint <= index_last || index.checkpoint > header.checkpoint)
      return corrupt(path, "impossible order of index files");
    index_last = index.checkpoint;
  }
  if (header.index_count > kManifestIndexesMax) return corrupt(path, "too many index files");
  const size_t content_bytes = bytes.size() - rest.size();
  const uint32_t crc = crc32c(bytes.data() + kChecksumEndBytes, content_bytes - kChecksumEndBytes);
  if (crc != header.crc32c) return corrupt(path, "checksum mismatch");
  const bool is_padded =
      rest.size() < kFilePaddingBytes && bytes.size() % kFilePaddingBytes == 0 &&
      std::all_of(rest.begin(), rest.end(), [](std::byte b) { return b == std::byte{0}; });
  if (!is_padded) return corrupt(path, "does not end where its lengths say");
  manifest.store_id = header.store_id;
  manifest.checkpoint = header.checkpoint;
  manifest.sequence_next = header.sequence_next;
  manifest.total_rows = header.total_rows;
  manifest.block_bytes = header.block_bytes;
  manifest.segment_bytes = header.segment_bytes;
  manifest.metadata.assign(metadata.begin(), metadata.end());
  return manifest;
}

}  // namespace te
