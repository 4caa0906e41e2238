// Philox4x32-10 over eight counters at once: the words of philox_columns (base/philox.h, where the
// source is named), which the tests hold it to. Included by variant_impl.h only.
#pragma once

#include <cstdint>

#include "base/philox.h"
#include "rows/lanes.h"

namespace te {
namespace {

constexpr uint32_t kGroups = 8;  // column groups of one call, four words each

struct Longs {
  NativeLongs part[kParts];  // eight lanes, of which the low 32 bits count
};

// The words of groups [first_group, +8), group after group.
struct RandomWords {
  uint32_t word[kGroups * 4];
};

TE_INLINE void philox_round(Longs (&c)[4], uint32_t k0, uint32_t k1) {
  for (uint32_t p = 0; p < kParts; ++p) {
    const NativeLongs product0 = native_multiply_low(c[0].part[p], 0xD2511F53u + NativeLongs{});
    const NativeLongs product1 = native_multiply_low(c[2].part[p], 0xCD9E8D57u + NativeLongs{});
    c[0].part[p] = (product1 >> 32) ^ c[1].part[p] ^ (k0 + NativeLongs{});
    c[2].part[p] = (product0 >> 32) ^ c[3].part[p] ^ (k1 + NativeLongs{});
    c[1].part[p] = product1;
    c[3].part[p] = product0;
  }
}

TE_INLINE void random_words(PhiloxKey key, PhiloxPurpose purpose, uint64_t row, uint64_t step,
                            uint32_t first_group, RandomWords* out) {
  const uint32_t tag = static_cast<uint32_t>(row >> 32) | (static_cast<uint32_t>(purpose) << 30) |
                       (static_cast<uint32_t>((step >> 32) & 0xffff) << 8);
  Longs c[4];
  uint64_t groups[kGroups];
  for (uint32_t i = 0; i < kGroups; ++i) groups[i] = first_group + i;
  std::memcpy(&c[2], groups, sizeof(groups));
  for (uint32_t p = 0; p < kParts; ++p) {
    c[0].part[p] = static_cast<uint32_t>(row) + NativeLongs{};
    c[1].part[p] = static_cast<uint32_t>(step) + NativeLongs{};
    c[3].part[p] = tag + NativeLongs{};
  }
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    philox_round(c, key.k0, key.k1);
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
  constexpr uint32_t kPartGroups = kGroups / kParts;
  for (uint32_t p = 0; p < kParts; ++p) {
    const NativeLongs low = (c[0].part[p] & 0xffffffffu) | (c[1].part[p] << 32);
    const NativeLongs high = (c[2].part[p] & 0xffffffffu) | (c[3].part[p] << 32);
    for (uint32_t i = 0; i < kPartGroups; ++i) {
      const uint64_t pair[2] = {low[i], high[i]};
      std::memcpy(&out->word[(p * kPartGroups + i) * 4], pair, sizeof(pair));
    }
  }
}

}  // namespace
}  // namespace te
