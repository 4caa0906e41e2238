#include "base/crc32c.h"

#include <array>
#include <cstring>

// The instruction of the architecture: a state and eight bytes, or one.
#if defined(__x86_64__)
#include <nmmintrin.h>
#define TE_CRC_TARGET __attribute__((target("sse4.2")))
#define TE_CRC_WORD(state, word) _mm_crc32_u64(state, word)
#define TE_CRC_BYTE(state, byte) _mm_crc32_u8(state, byte)
#elif defined(__aarch64__) && defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 16)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define TE_CRC_TARGET __attribute__((target("+crc")))
#define TE_CRC_WORD(state, word) __crc32cd(static_cast<uint32_t>(state), word)
#define TE_CRC_BYTE(state, byte) __crc32cb(state, byte)
#endif

namespace te {
namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0x82f63b78u : 0);
    table[i] = c;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = make_table();

#if defined(TE_CRC_TARGET)
// The instruction takes three cycles, and the next one may begin after one: three chains over three
// neighbouring lanes run at once and are joined at the end. After V. Gopal et al., "Fast CRC
// computation for iSCSI polynomial using CRC32 instruction", Intel, 2011. Three lanes are what a
// block of 4 KiB checks, but for its last 8 bytes.
constexpr size_t kLaneBytes = 1360;

// What a lane of zeros makes of a state: a linear map, so that a table for each byte of it does.
using LaneTables = std::array<std::array<uint32_t, 256>, 4>;
constexpr LaneTables make_lane_tables() {
  LaneTables tables{};
  for (int bit = 0; bit < 32; ++bit) {
    uint32_t c = uint32_t{1} << bit;
    for (size_t i = 0; i < kLaneBytes; ++i) c = (c >> 8) ^ kTable[c & 0xff];
    auto& table = tables[static_cast<size_t>(bit) / 8];
    for (size_t byte = 0; byte < 256; ++byte) {
      if ((byte >> (bit % 8) & 1) != 0) table[byte] ^= c;
    }
  }
  return tables;
}
constexpr LaneTables kLane = make_lane_tables();

uint64_t skip_lane(uint64_t c) {
  return kLane[0][c & 0xff] ^ kLane[1][c >> 8 & 0xff] ^ kLane[2][c >> 16 & 0xff] ^
         kLane[3][c >> 24 & 0xff];
}

uint64_t load(const unsigned char* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

TE_CRC_TARGET uint32_t crc32c_instruction(const void* data, size_t bytes, uint32_t seed) {
  const auto* p = static_cast<const unsigned char*>(data);
  uint64_t c = ~seed;
  for (; bytes >= 3 * kLaneBytes; bytes -= 3 * kLaneBytes, p += 2 * kLaneBytes) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (const unsigned char* end = p + kLaneBytes; p < end; p += 8) {
      c = TE_CRC_WORD(c, load(p));
      second = TE_CRC_WORD(second, load(p + kLaneBytes));
      third = TE_CRC_WORD(third, load(p + 2 * kLaneBytes));
    }
    c = skip_lane(skip_lane(c) ^ second) ^ third;
  }
  for (; bytes >= 8; bytes -= 8, p += 8) c = TE_CRC_WORD(c, load(p));
  auto c32 = static_cast<uint32_t>(c);
  for (; bytes > 0; --bytes, ++p) c32 = TE_CRC_BYTE(c32, *p);
  return ~c32;
}

bool has_instruction() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("sse4.2");
#else
  return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#endif
}
#endif

}  // namespace

namespace internal {
uint32_t crc32c_table(const void* data, size_t bytes, uint32_t seed) {
  const auto* p = static_cast<const unsigned char*>(data);
  uint32_t c = ~seed;
  for (size_t i = 0; i < bytes; ++i) c = (c >> 8) ^ kTable[(c ^ p[i]) & 0xff];
  return ~c;
}
}  // namespace internal

uint32_t crc32c(const void* data, size_t bytes, uint32_t seed) {
#if defined(TE_CRC_TARGET)
  static const bool has = has_instruction();
  if (has) return crc32c_instruction(data, bytes, seed);
#endif
  return internal::crc32c_table(data, bytes, seed);
}

}  // namespace te
