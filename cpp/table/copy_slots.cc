#include "table/copy_slots.h"

#include <algorithm>
#include <cstring>

#include "table/threads.h"

namespace te {
namespace {

constexpr size_t kBytesPerTask = 1 << 19;
constexpr size_t kBytesAhead = 2048;  // prefetched
constexpr size_t kLineBytes = 64;

template <int kWrite>
void prefetch_row(const std::byte* row, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(row + i, kWrite);
}

}  // namespace

void copy_slots_between(SlotList<const std::byte> source, SlotList<std::byte> target, size_t count,
                        size_t stride_bytes) {
  const size_t rows = std::max<size_t>(kBytesPerTask / stride_bytes, 1);
  const size_t rows_ahead = std::max<size_t>(kBytesAhead / stride_bytes, 1);
  const size_t tasks = (count + rows - 1) / rows;
  thread_pool().run(tasks, [&](size_t task) {
    const size_t end = std::min((task + 1) * rows, count);
    for (size_t i = task * rows; i < end; ++i) {
      const size_t ahead = std::min(i + rows_ahead, end - 1);
      if (source.slots != nullptr) prefetch_row<0>(source.at(ahead, stride_bytes), stride_bytes);
      if (target.slots != nullptr) prefetch_row<1>(target.at(ahead, stride_bytes), stride_bytes);
      std::memcpy(target.at(i, stride_bytes), source.at(i, stride_bytes), stride_bytes);
    }
  });
}

}  // namespace te
