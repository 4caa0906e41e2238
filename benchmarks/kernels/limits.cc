// What the memory of this machine gives to lookups and updates whose rows are known in advance: the
// limit kernels of bench_kernels.py, as a shared library with a C interface.
//
// No planning, no checks: slots, bags and unique rows come ready. They run on the threads that the
// package runs on, cut into a few pieces a thread, are compiled for this machine alone, and for
// every dim that is measured; the caller picks the prefetch distance that is fastest. Fused
// multiply-add is allowed. Thread-safety: one caller. Ownership: borrows all arrays, but
// te_limits_arena.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "table/threads.h"

namespace te::bench {
namespace {

constexpr size_t kPiecesPerThread = 4;

struct Arena {
  std::byte* base;
  uint64_t stride_bytes;
  template <uint32_t kDim>
  float* row(uint32_t slot) const {
    return reinterpret_cast<float*>(base + slot * stride_bytes);
  }
};

inline void prefetch(const void* from, size_t bytes) {
  const auto* at = static_cast<const std::byte*>(from);
  for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
  __builtin_prefetch(at + bytes - 1);
}

template <class F>
void in_pieces(size_t count, F&& f) {
  ThreadPool& threads = thread_pool();
  const size_t pieces = threads.threads() == 1 ? 1 : threads.threads() * kPiecesPerThread;
  threads.run(pieces, [&](size_t p) { f(count * p / pieces, count * (p + 1) / pieces); });
}

// The dims with kernels of their own.
template <class F>
bool for_dim(uint32_t dim, F&& f) {
  switch (dim) {
    case 16: f.template operator()<16>(); return true;
    case 32: f.template operator()<32>(); return true;
    case 64: f.template operator()<64>(); return true;
    case 128: f.template operator()<128>(); return true;
    default: return false;
  }
}

template <uint32_t kDim>
void gather(const Arena& arena, const uint32_t* slots, size_t pooling, size_t ahead, size_t last,
            size_t bag, float* out) {
  float sum[kDim] = {};
  for (size_t i = bag * pooling; i < (bag + 1) * pooling; ++i) {
    prefetch(arena.row<kDim>(slots[std::min(i + ahead, last)]), kDim * sizeof(float));
    const float* row = arena.row<kDim>(slots[i]);
    for (uint32_t c = 0; c < kDim; ++c) sum[c] += row[c];
  }
  std::memcpy(out + bag * kDim, sum, sizeof(sum));
}

struct Gradients {
  const uint32_t* begin;  // [uniques + 1] into bags
  const uint32_t* bags;
  const float* values;  // [bags, dim]
};

// The row and the float behind it are read and written, as rowwise Adagrad does.
template <uint32_t kDim>
void update(const Arena& arena, uint32_t slot, const Gradients& gradients, size_t u, size_t ahead,
            size_t last) {
  float sum[kDim] = {};
  for (size_t i = gradients.begin[u]; i < gradients.begin[u + 1]; ++i) {
    const size_t next = gradients.bags[std::min(i + ahead, last)];
    prefetch(gradients.values + next * kDim, kDim * sizeof(float));
    const float* from = gradients.values + size_t{gradients.bags[i]} * kDim;
    for (uint32_t c = 0; c < kDim; ++c) sum[c] += from[c];
  }
  float* row = arena.row<kDim>(slot);
  const float rate = 0.01f / (1.0f + row[kDim]);
  for (uint32_t c = 0; c < kDim; ++c) row[c] -= rate * sum[c];
  row[kDim] += sum[0] * sum[0];
}

}  // namespace
}  // namespace te::bench

using te::bench::Arena;

extern "C" {

void te_limits_set_threads(size_t threads) { te::set_num_threads(threads); }

// Zeroed memory in huge pages where the system grants them; never freed before te_limits_free.
void* te_limits_arena(size_t bytes) { return new te::ReservedMemory(bytes); }
void* te_limits_data(void* arena) { return static_cast<te::ReservedMemory*>(arena)->data(); }
void te_limits_free(void* arena) { delete static_cast<te::ReservedMemory*>(arena); }

// Each bag is the sum of `pooling` rows: out [bags, dim], slots [bags * pooling].
bool te_limits_forward(void* base, uint64_t stride_bytes, uint32_t dim, const uint32_t* slots,
                       size_t bags, size_t pooling, size_t ahead, float* out) {
  const Arena arena{static_cast<std::byte*>(base), stride_bytes};
  return te::bench::for_dim(dim, [&]<uint32_t kDim>() {
    te::bench::in_pieces(bags, [&](size_t begin, size_t end) {
      for (size_t bag = begin; bag < end; ++bag)
        te::bench::gather<kDim>(arena, slots, pooling, ahead, bags * pooling - 1, bag, out);
    });
  });
}

// Each unique row takes the sum of the gradients of its bags. unique_slots [uniques].
bool te_limits_update(void* base, uint64_t stride_bytes, uint32_t dim, const uint32_t* unique_slots,
                      size_t uniques, const uint32_t* begin, const uint32_t* bags,
                      const float* grad, size_t ahead) {
  const Arena arena{static_cast<std::byte*>(base), stride_bytes};
  const te::bench::Gradients gradients{begin, bags, grad};
  return te::bench::for_dim(dim, [&]<uint32_t kDim>() {
    te::bench::in_pieces(uniques, [&](size_t first, size_t end) {
      for (size_t u = first; u < end; ++u) {
        const size_t next = std::min(u + ahead, end - 1);
        te::bench::prefetch(arena.row<kDim>(unique_slots[next]), (kDim + 1) * sizeof(float));
        te::bench::update<kDim>(arena, unique_slots[u], gradients, u, ahead, begin[uniques] - 1);
      }
    });
  });
}

}  // extern "C"
