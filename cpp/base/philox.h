// Philox4x32-10, a counter-based random generator: the same (key, counter) gives the same four
// words on every machine, thread and run, so random values depend on what they are for and on
// nothing else.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// Thread-safety: pure functions. Cost: about 10 multiplications a word pair.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace te {

struct PhiloxKey {
  uint32_t k0 = 0;
  uint32_t k1 = 0;
};

using PhiloxWords = std::array<uint32_t, 4>;

// What a random word is for. It is part of the counter: streams never overlap.
enum class PhiloxPurpose : uint32_t { kInit = 0, kRounding = 1 };

// `static` keeps a private copy in each translation unit: kernels are compiled once per instruction
// set, and the linker must never merge a copy built for a newer one into code for an older one.
static inline PhiloxWords philox4x32(PhiloxKey key, uint32_t c0, uint32_t c1, uint32_t c2,
                                     uint32_t c3) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key.k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key.k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// Four words for columns [4 * column_group, +4) of a row. `row` is the row within its table and at
// most 2^40; `step` is the table's update count (0 for initial values). Counter: row, step, column
// | purpose.
static inline PhiloxWords philox_columns(PhiloxKey key, PhiloxPurpose purpose, uint64_t row,
                                         uint64_t step, uint32_t column_group) {
  const uint32_t tag = static_cast<uint32_t>(row >> 32) | (static_cast<uint32_t>(purpose) << 30) |
                       (static_cast<uint32_t>((step >> 32) & 0xffff) << 8);
  return philox4x32(key, static_cast<uint32_t>(row), static_cast<uint32_t>(step), column_group,
                    tag);
}

// The key of a table: its seed and its name, mixed. FNV-1a over the name, then the 64-bit finaliser
// of MurmurHash3 (public domain) over both.
inline PhiloxKey philox_table_key(uint64_t seed, std::string_view table_name) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (unsigned char c : table_name) h = (h ^ c) * 0x100000001b3ull;
  h ^= seed * 0x9E3779B97F4A7C15ull;
  h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdull;
  h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53ull;
  h ^= h >> 33;
  return {static_cast<uint32_t>(h), static_cast<uint32_t>(h >> 32)};
}

}  // namespace te
