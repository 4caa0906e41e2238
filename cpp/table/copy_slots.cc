#include "table/copy_slots.h"

#include <algorithm>
#include <cstring>

#include "table/threads.h"

namespace te {
namespace {

constexpr size_t kBytesPerTask = 1 << 19;
constexpr size_t kRowAhead = 8;  // prefetched

}  // namespace

void copy_slots_between(SlotList<const std::byte> source, SlotList<std::byte> target, size_t count,
                        size_t stride_bytes) {
  const size_t rows = std::max<size_t>(kBytesPerTask / stride_bytes, 1);
  const size_t tasks = (count + rows - 1) / rows;
  thread_pool().run(tasks, [&](size_t task) {
    const size_t end = std::min((task + 1) * rows, count);
    for (size_t i = task * rows; i < end; ++i) {
      const size_t ahead = std::min(i + kRowAhead, end - 1);
      __builtin_prefetch(source.at(ahead, stride_bytes));
      __builtin_prefetch(target.at(ahead, stride_bytes), 1);
      std::memcpy(target.at(i, stride_bytes), source.at(i, stride_bytes), stride_bytes);
    }
  });
}

}  // namespace te
