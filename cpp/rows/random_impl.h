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
struct alignas(64) RandomWords {
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

// low[0], high[0], low[1], high[1], ...
template <class Vector>
TE_INLINE void interleave(Vector low, Vector high, Vector (&out)[2]) {
  if constexpr (kNativeLanes == 16) {
    out[0] = __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11);
    out[1] = __builtin_shufflevector(low, high, 4, 12, 5, 13, 6, 14, 7, 15);
  } else if constexpr (kNativeLanes == 8) {
    out[0] = __builtin_shufflevector(low, high, 0, 4, 1, 5);
    out[1] = __builtin_shufflevector(low, high, 2, 6, 3, 7);
  } else {
    out[0] = __builtin_shufflevector(low, high, 0, 2);
    out[1] = __builtin_shufflevector(low, high, 1, 3);
  }
}

__attribute__((noinline)) void random_words(PhiloxKey key, PhiloxPurpose purpose, uint64_t row,
                                            uint64_t step, uint32_t first_group, RandomWords* out) {
  const uint32_t tag = static_cast<uint32_t>(row >> 32) | (static_cast<uint32_t>(purpose) << 30) |
                       (static_cast<uint32_t>((step >> 32) & 0xffff) << 8);
  Longs c[4];
  constexpr uint64_t kGroupNumbers[kGroups] = {0, 1, 2, 3, 4, 5, 6, 7};
  std::memcpy(&c[2], kGroupNumbers, sizeof(kGroupNumbers));
  for (uint32_t p = 0; p < kParts; ++p) {
    c[0].part[p] = static_cast<uint32_t>(row) + NativeLongs{};
    c[1].part[p] = static_cast<uint32_t>(step) + NativeLongs{};
    c[2].part[p] += first_group;
    c[3].part[p] = tag + NativeLongs{};
  }
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    philox_round(c, key.k0, key.k1);
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
  for (uint32_t p = 0; p < kParts; ++p) {
    const NativeLongs low = (c[0].part[p] & 0xffffffffu) | (c[1].part[p] << 32);
    const NativeLongs high = (c[2].part[p] & 0xffffffffu) | (c[3].part[p] << 32);
    NativeLongs pairs[2];
    interleave(low, high, pairs);
    std::memcpy(&out->word[p * 2 * kNativeLanes], pairs, sizeof(pairs));
  }
}

}  // namespace
}  // namespace te
