// Kernels over ids: their range, the slots of rows that have slots of their own, and which rows are
// sampled. Plain loops that the compiler turns into vectors. Included by variant_impl.h only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rows/kernels.h"
#include "rows/lanes.h"
#include "rows/sample_hash.h"

namespace te {
namespace {

template <class Id>
size_t first_bad_id_of(const Id* ids, uint64_t rows, size_t begin, size_t end) {
  constexpr size_t kStretch = 1024;  // one branch a stretch lets the loop vectorise
  const auto is_bad = [&](size_t i) {
    return static_cast<uint64_t>(static_cast<int64_t>(ids[i])) >= rows;
  };
  for (size_t at = begin; at < end; at += kStretch) {
    const size_t after = end - at < kStretch ? end : at + kStretch;
    uint64_t any = 0;
    for (size_t i = at; i < after; ++i) any |= is_bad(i) ? 1 : 0;
    if (any == 0) continue;
    for (size_t i = at; i < after; ++i) {
      if (is_bad(i)) return i;
    }
  }
  return end;
}

size_t first_bad_id(const void* ids, bool ids_are_64, uint64_t rows, size_t begin, size_t end) {
  return ids_are_64 ? first_bad_id_of(static_cast<const int64_t*>(ids), rows, begin, end)
                    : first_bad_id_of(static_cast<const int32_t*>(ids), rows, begin, end);
}

template <class Offset>
bool copy_offsets_of(const Offset* offsets, int64_t limit, size_t count, int64_t* out) {
  if (count == 0) return true;
  uint64_t falls = offsets[0] < 0 ? 1 : 0;
  out[0] = offsets[0];
  for (size_t i = 1; i < count; ++i) {
    falls |= offsets[i] < offsets[i - 1] ? 1 : 0;
    out[i] = offsets[i];
  }
  return falls == 0 && out[count - 1] <= limit;
}

bool copy_offsets(const void* offsets, bool are_64, int64_t limit, size_t begin, size_t end,
                  int64_t* out) {
  const size_t n = end - begin;
  return are_64 ? copy_offsets_of(static_cast<const int64_t*>(offsets) + begin, limit, n, out)
                : copy_offsets_of(static_cast<const int32_t*>(offsets) + begin, limit, n, out);
}

template <class Id>
bool own_slots_of(const OwnSlotArgs& args, size_t begin, size_t end, size_t* padding) {
  const Id* ids = static_cast<const Id*>(args.ids);
  uint32_t* slots = args.slots;
  const uint32_t first_slot = args.first_slot;
  uint64_t absent = 0;
  if (args.padding_id < 0 && args.resident == nullptr) {
    for (size_t i = begin; i < end; ++i) slots[i] = first_slot + static_cast<uint32_t>(ids[i]);
    return true;
  }
  for (size_t i = begin; i < end; ++i) {
    const bool is_padding = static_cast<int64_t>(ids[i]) == args.padding_id;
    const uint64_t row = args.first_row + static_cast<uint64_t>(ids[i]);
    const uint64_t word = args.resident == nullptr ? ~uint64_t{0} : args.resident[row / 64];
    absent |= ~(word >> (row % 64)) & (is_padding ? 0 : 1);
    *padding += is_padding;
    slots[i] = is_padding ? kPaddingSlot : first_slot + static_cast<uint32_t>(ids[i]);
  }
  return absent == 0;
}

bool own_slots(const OwnSlotArgs& args, size_t begin, size_t end, size_t* padding) {
  return args.ids_are_64 ? own_slots_of<int64_t>(args, begin, end, padding)
                         : own_slots_of<int32_t>(args, begin, end, padding);
}

template <class Id, bool kNarrow>
size_t sample_of(const SampleArgs& args, size_t begin, size_t end, RowId* out) {
  constexpr size_t kStretch = 64;
  constexpr size_t kGroup = sizeof(uint64_t);  // of a stretch, looked at together
  const Id* ids = static_cast<const Id*>(args.ids);
  const uint64_t first_row = args.first_row;
  const uint32_t mask = args.mask;
  const auto row = [&](size_t i) {
    return first_row + static_cast<uint64_t>(static_cast<int64_t>(ids[i]));
  };
  const auto is_sampled = [&](size_t i) {
    return (sample_hash(kNarrow ? static_cast<uint32_t>(row(i)) : row(i)) & mask) == 0;
  };
  size_t count = 0;
  size_t at = begin;
  for (; at + kStretch <= end; at += kStretch) {
    uint8_t is_in[kStretch];
    for (size_t i = 0; i < kStretch; ++i) is_in[i] = is_sampled(at + i);
    for (size_t group = 0; group < kStretch; group += kGroup) {
      uint64_t any;
      std::memcpy(&any, is_in + group, sizeof(any));
      if (any == 0) continue;
      for (size_t i = group; i < group + kGroup; ++i) {
        out[count].value = row(at + i);
        count += is_in[i];
      }
    }
  }
  for (; at < end; ++at) {
    if (is_sampled(at)) out[count++].value = row(at);
  }
  return count;
}

size_t sample(const SampleArgs& args, size_t begin, size_t end, RowId* out) {
  if (!args.ids_are_64) {
    return args.is_narrow ? sample_of<int32_t, true>(args, begin, end, out)
                          : sample_of<int32_t, false>(args, begin, end, out);
  }
  return args.is_narrow ? sample_of<int64_t, true>(args, begin, end, out)
                        : sample_of<int64_t, false>(args, begin, end, out);
}

}  // namespace
}  // namespace te
