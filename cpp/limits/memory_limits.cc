#include "limits/memory_limits.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "limits/row_visits.h"

namespace te {
namespace {

constexpr size_t kPiecesPerThread = 4;
constexpr size_t kLineBytes = 64;
constexpr size_t kLineDoubles = kLineBytes / sizeof(double);
// Left out of each array, so that one begins at another place of its page than the one before: same
// places share sets of the caches and banks of the memory.
constexpr size_t kSpareLines = 997;

// Times f(begin, end) over pieces of [0, count) on so many threads, which are started before.
double seconds_of(size_t count, size_t threads, FunctionRef<void(size_t, size_t)> f) {
  ThreadPool pool(threads);
  pool.run(threads, [](size_t) {});
  const size_t pieces = threads == 1 ? 1 : threads * kPiecesPerThread;
  const auto start = std::chrono::steady_clock::now();
  pool.run(pieces, [&](size_t p) { f(count * p / pieces, count * (p + 1) / pieces); });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Several sums at once, for one would wait for its own last addition.
uint64_t sum_of(const uint64_t* words, size_t count) {
  uint64_t sums[16] = {};
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (size_t lane = 0; lane < 16; ++lane) sums[lane] += words[i + lane];
  }
  for (; i < count; ++i) sums[0] += words[i];
  uint64_t sum = 0;
  for (uint64_t lane : sums) sum += lane;
  return sum;
}

// With an addition, or compilers would make it a memcpy, which may write around the caches, or not,
// by the size of the array.
void copy(double* __restrict to, const double* __restrict from, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = from[i] + 1.0;
}

void triad(double* __restrict a, const double* __restrict b, const double* __restrict c,
           size_t count) {
  for (size_t i = 0; i < count; ++i) a[i] = b[i] + 3.0 * c[i];
}

// For the widest vectors of this processor.
const RowVisits& row_visits() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return row_visits_avx512();
  }
  if (avx2) return row_visits_avx2();
#endif
  return row_visits_baseline();
}

// A pseudo-random permutation of [0, 2^bits): each step of it can be undone.
uint64_t permuted(uint64_t x, int bits, uint64_t seed) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (uint64_t factor : {0x9E3779B97F4A7C15ull, 0xff51afd7ed558ccdull, 0xc4ceb9fe1a85ec53ull}) {
    seed = (seed + factor) * 0xd1342543de82ef95ull;
    x = ((x ^ (seed >> 32)) & mask) * factor & mask;
    x ^= x >> ((bits + 1) / 2);
  }
  return x;
}

}  // namespace

MemoryLimits::MemoryLimits(size_t arena_bytes, size_t threads) : arena_(arena_bytes) {
  TE_CHECK(arena_bytes >= kArenaBytesMin && threads >= 1);
  // Doubles near 1, whatever is read as such: sums of subnormal numbers would be slow.
  auto* words = reinterpret_cast<uint64_t*>(arena_.data());
  seconds_of(arena_bytes / sizeof(uint64_t), threads, [=](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) words[i] = std::bit_cast<uint64_t>(1.0) + i;
  });
}

Timing MemoryLimits::stream(Stream kind, size_t threads) {
  const size_t arrays = kind == Stream::kRead ? 1 : kind == Stream::kCopy ? 2 : 3;
  const size_t lines = arena_.bytes() / arrays / kLineBytes - kSpareLines;
  const size_t count = lines * kLineDoubles;
  auto* first = reinterpret_cast<double*>(arena_.data());
  double* second = first + count;
  double* third = second + count;
  std::atomic<uint64_t> sum{0};
  const double seconds = seconds_of(count, threads, [&](size_t begin, size_t end) {
    switch (kind) {
      case Stream::kRead:
        sum += sum_of(reinterpret_cast<const uint64_t*>(first) + begin, end - begin);
        break;
      case Stream::kCopy: copy(second + begin, first + begin, end - begin); break;
      case Stream::kTriad: triad(third + begin, first + begin, second + begin, end - begin); break;
    }
  });
  sum_ += sum;
  return {seconds, arrays * count * sizeof(double)};
}

size_t MemoryLimits::draw(size_t row_bytes, size_t count, uint64_t seed) {
  TE_CHECK(row_bytes >= 4 && row_bytes % 4 == 0 && row_bytes <= arena_.bytes() / 2);
  const size_t rows = std::min<size_t>(arena_.bytes() / row_bytes,
                                       size_t{std::numeric_limits<uint32_t>::max()} + 1);
  row_bytes_ = row_bytes;
  order_.resize(std::min(count, rows));
  const int bits = std::bit_width(rows - 1);
  uint64_t next = 0;
  for (uint32_t& row : order_) {
    uint64_t drawn;
    do {
      drawn = permuted(next++, bits, seed);
    } while (drawn >= rows);
    row = static_cast<uint32_t>(drawn);
  }
  return order_.size();
}

Timing MemoryLimits::rows(Access access, Prefetch prefetch, size_t threads) {
  const RowVisit rows{arena_.data(), row_bytes_,          order_.data(),
                      order_.size(), prefetch.ahead_rows, prefetch.cache_level};
  const auto visit = access == Access::kGather ? row_visits().gather : row_visits().update;
  std::atomic<uint64_t> sum{0};
  const double seconds = seconds_of(
      order_.size(), threads, [&](size_t begin, size_t end) { sum += visit(rows, begin, end); });
  sum_ += sum;
  return {seconds, order_.size() * row_bytes_};
}

}  // namespace te
