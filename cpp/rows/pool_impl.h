// Pooled lookup, and the gradients of its sample weights. Included by variant_impl.h only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "rows/kernels.h"
#include "rows/lanes.h"
#include "rows/sums_impl.h"

namespace te {
namespace {

// The rows that the occurrences of a lookup name, as terms of a sum.
template <DType kDType, bool kWeighted>
struct OccurrenceTerms {
  static constexpr DType kType = kDType;
  static constexpr bool kScaled = kWeighted;
  static constexpr bool kMasked = false;

  const std::byte* base;
  uint64_t stride_bytes;
  const uint32_t* slots;
  const void* weights;
  size_t ahead;
  size_t last;  // the last occurrence of the call

  TE_INLINE OccurrenceTerms(const PoolArgs& args, size_t end)
      : base(args.arena.base),
        stride_bytes(args.arena.stride_bytes),
        slots(args.slots),
        weights(args.sample_weights),
        ahead(rows_far_ahead(args.arena.layout.dim * kElementBytes<kDType>)),
        last(static_cast<size_t>(args.bag_begin[end]) - 1) {}

  TE_INLINE uintptr_t address_ahead(size_t i) const {
    const size_t next = i + ahead < last ? i + ahead : last;
    const uint64_t slot = slots[next] == kPaddingSlot ? 0 : slots[next];
    return reinterpret_cast<uintptr_t>(base) + slot * stride_bytes;
  }
  template <uint32_t kBytes>
  TE_INLINE void prefetch(size_t i, size_t offset_bytes) const {
    prefetch_far(address_ahead(i) + offset_bytes, kBytes);
  }
  TE_INLINE bool skip(size_t i) const { return slots[i] == kPaddingSlot; }
  TE_INLINE const std::byte* row(size_t i) const { return base + slots[i] * stride_bytes; }
  TE_INLINE float scale(size_t i) const { return load_one<kDType>(weights, i); }
};

// One bag of mode sum or mean.
template <class Terms>
struct SumPass {
  const Terms& terms;
  size_t begin;
  size_t end;
  bool mean;
  std::byte* out;

  template <uint32_t kBlocks, bool kTail>
  TE_INLINE void run(uint32_t column, uint32_t columns) const {
    constexpr DType kType = Terms::kType;
    Floats sum[kBlocks];
    const size_t count = sum_terms<kBlocks, kTail>(terms, begin, end, column, columns, sum);
    if (count == 0) {
      for (Floats& v : sum) v = splat(0);
    } else if (mean && count > 1) {
      const Floats divisor = splat(static_cast<float>(count));
      for (Floats& v : sum) v = v / divisor;
    }
    for (uint32_t b = 0; b < kBlocks; ++b) {
      std::byte* to = out + (column + b * kLanes) * size_t{kElementBytes<kType>};
      store<kType, kTail>(to, sum[b], columns);
    }
  }
};

// One bag of mode max. The first value stays unless a later one is greater, as in torch: so a NaN
// stays where it comes first, and is passed over after that.
template <class Terms>
struct MaxPass {
  const Terms& terms;
  size_t begin;
  size_t end;
  std::byte* out;
  uint32_t* argmax;  // of the bag, or null

  template <uint32_t kBlocks, bool kTail>
  TE_INLINE void run(uint32_t column, uint32_t columns) const {
    constexpr DType kType = Terms::kType;
    constexpr uint32_t kBlockBytes = kLanes * kElementBytes<kType>;
    const size_t offset_bytes = size_t{column} * kElementBytes<kType>;
    Floats best[kBlocks];
    Words winner[kBlocks];
    for (uint32_t b = 0; b < kBlocks; ++b)
      best[b] = splat(0), winner[b] = splat_word(kNoOccurrence);
    bool empty = true;
    for (size_t i = begin; i < end; ++i) {
      terms.template prefetch<kBlocks * kBlockBytes>(i, offset_bytes);
      if (terms.skip(i)) continue;
      const std::byte* row = terms.row(i) + offset_bytes;
      const Words position = splat_word(static_cast<uint32_t>(i));
      const NativeInts all = NativeInts{} - static_cast<int32_t>(empty);
      for (uint32_t b = 0; b < kBlocks; ++b) {
        const Floats value = load<kType, kTail>(row + b * kBlockBytes, columns);
        for (uint32_t p = 0; p < kParts; ++p) {
          const NativeInts wins = (value.part[p] > best[b].part[p]) | all;
          best[b].part[p] = wins ? value.part[p] : best[b].part[p];
          winner[b].part[p] = wins ? position.part[p] : winner[b].part[p];
        }
      }
      empty = false;
    }
    for (uint32_t b = 0; b < kBlocks; ++b) {
      store<kType, kTail>(out + offset_bytes + b * kBlockBytes, best[b], columns);
      if (argmax != nullptr) store_words<kTail>(argmax + column + b * kLanes, winner[b], columns);
    }
  }
};

template <DType kType, bool kWeighted>
void pool_bags(const PoolArgs& args, size_t begin, size_t end) {
  const uint32_t dim = args.arena.layout.dim;
  const OccurrenceTerms<kType, kWeighted> terms(args, end);
  for (size_t bag = begin; bag < end; ++bag) {
    const auto first = static_cast<size_t>(args.bag_begin[bag]);
    const auto after = static_cast<size_t>(args.bag_begin[bag + 1]);
    auto* out = static_cast<std::byte*>(args.out) + bag * dim * kElementBytes<kType>;
    const bool mean = args.mode == PoolMode::kMean;
    for_chunks(dim, SumPass<OccurrenceTerms<kType, kWeighted>>{terms, first, after, mean, out});
  }
}

template <DType kType>
void pool_max_bags(const PoolArgs& args, size_t begin, size_t end) {
  const uint32_t dim = args.arena.layout.dim;
  const OccurrenceTerms<kType, false> terms(args, end);
  for (size_t bag = begin; bag < end; ++bag) {
    const auto first = static_cast<size_t>(args.bag_begin[bag]);
    const auto after = static_cast<size_t>(args.bag_begin[bag + 1]);
    auto* out = static_cast<std::byte*>(args.out) + bag * dim * kElementBytes<kType>;
    uint32_t* argmax = args.argmax == nullptr ? nullptr : args.argmax + bag * dim;
    for_chunks(dim, MaxPass<OccurrenceTerms<kType, false>>{terms, first, after, out, argmax});
  }
}

template <DType kType>
void pool_dtype(const PoolArgs& args, size_t begin, size_t end) {
  if (args.mode == PoolMode::kMax) {
    pool_max_bags<kType>(args, begin, end);
  } else if (args.sample_weights != nullptr) {
    pool_bags<kType, true>(args, begin, end);
  } else {
    pool_bags<kType, false>(args, begin, end);
  }
}

void pool(const PoolArgs& args, size_t begin, size_t end) {
  TE_CHECK(args.sample_weights == nullptr || args.mode == PoolMode::kSum);
  if (begin >= end) return;
  for_dtype(args.arena.layout.dtype, [&]<DType kType>() { pool_dtype<kType>(args, begin, end); });
}

// The dot product of one row and one gradient: sixteen sums, one a lane, over the blocks in order,
// then sum_lanes.
template <DType kType>
TE_INLINE float dot(const std::byte* a, const std::byte* b, uint32_t dim) {
  Floats sum = splat(0);
  for_blocks(dim, [&]<bool kTail>(uint32_t column, uint32_t columns) {
    const size_t at = size_t{column} * kElementBytes<kType>;
    sum = sum + load<kType, kTail>(a + at, columns) * load<kType, kTail>(b + at, columns);
  });
  return sum_lanes(sum);
}

template <DType kType>
void sample_weight_gradients_dtype(const PoolArgs& args, const void* grad, void* out, size_t begin,
                                   size_t end) {
  const uint32_t dim = args.arena.layout.dim;
  const OccurrenceTerms<kType, false> terms(args, end);
  for (size_t bag = begin; bag < end; ++bag) {
    const auto* bag_grad = static_cast<const std::byte*>(grad) + bag * dim * kElementBytes<kType>;
    const auto after = static_cast<size_t>(args.bag_begin[bag + 1]);
    for (auto i = static_cast<size_t>(args.bag_begin[bag]); i < after; ++i) {
      prefetch_far(terms.address_ahead(i), dim * kElementBytes<kType>);
      const float product = terms.skip(i) ? 0 : dot<kType>(bag_grad, terms.row(i), dim);
      store_one<kType>(out, i, product);
    }
  }
}

void sample_weight_gradients(const PoolArgs& args, const void* grad, void* out, size_t begin,
                             size_t end) {
  if (begin >= end) return;
  for_dtype(args.arena.layout.dtype, [&]<DType kType>() {
    sample_weight_gradients_dtype<kType>(args, grad, out, begin, end);
  });
}

}  // namespace
}  // namespace te
