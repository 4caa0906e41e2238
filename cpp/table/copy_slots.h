// Copies of rows between slots, on all threads.
//
// Thread-safety: of calls that write different slots. Cost: that of the memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace te {

// Row i is in slot `slots[i]` of the memory at `base`, or in slot i where `slots` is null.
template <class Byte>
struct SlotList {
  Byte* base = nullptr;
  const uint32_t* slots = nullptr;
  Byte* at(size_t i, size_t stride_bytes) const {
    return base + (slots == nullptr ? i : size_t{slots[i]}) * stride_bytes;
  }
};

// The row in slot i of `target` becomes that in slot i of `source`, for i < count.
void copy_slots_between(SlotList<const std::byte> source, SlotList<std::byte> target, size_t count,
                        size_t stride_bytes);

}  // namespace te
