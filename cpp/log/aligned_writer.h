// AlignedWriter: writes a new file from front to back with bounded memory, as O_DIRECT needs it.
//
// The bytes go through the I/O engine; the end is padded with zeros to kFilePaddingBytes.
// Thread-safety: none. Ownership: the engine outlives it. Cost: one write a buffer, one sync.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "io/io_engine.h"

namespace te {

class AlignedWriter {
 public:
  AlignedWriter(IoEngine& io, std::string path);
  Status create();  // the file must not exist
  Status append(const void* data, size_t bytes);
  Status finish();                             // writes the rest and the padding, and syncs
  uint64_t bytes() const { return bytes_; }    // with padding, once finished
  uint32_t crc32c() const { return crc32c_; }  // of all of them

 private:
  Status write_buffer();

  IoEngine& io_;
  const std::string path_;
  std::optional<IoFile> file_;
  AlignedBuffer buffer_;
  size_t buffered_bytes_ = 0;
  uint64_t bytes_ = 0;
  uint32_t crc32c_ = 0;
};

}  // namespace te
