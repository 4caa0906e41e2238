// CRC-32C (Castagnoli), the checksum of every block and file of the store.
//
// Uses the instruction of SSE4.2, or of ARMv8's CRC extension, where the processor has it, a table
// elsewhere; same values. Thread-safety: pure function. Cost on x86-64: about 8 bytes a cycle (3 a
// cycle below 4 KiB), or 1 byte in 2-3 cycles by table.
#pragma once

#include <cstddef>
#include <cstdint>

namespace te {

// The checksum of `bytes` bytes at `data`, continuing from `seed` (a previous result, 0 to start).
uint32_t crc32c(const void* data, size_t bytes, uint32_t seed = 0);

namespace internal {
uint32_t crc32c_table(const void* data, size_t bytes, uint32_t seed);
}  // namespace internal

}  // namespace te
