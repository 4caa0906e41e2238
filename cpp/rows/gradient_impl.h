// Gradients of unique rows: the sum over the occurrences of each. Included by variant_impl.h only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rows/kernels.h"
#include "rows/lanes.h"
#include "rows/sums_impl.h"

namespace te {
namespace {

// The gradients of the bags that a unique row occurs in, as terms of a sum.
template <DType kDType, bool kScaledTerms, bool kMaskedTerms>
struct BagTerms {
  static constexpr DType kType = kDType;
  static constexpr bool kScaled = kScaledTerms;
  static constexpr bool kMasked = kMaskedTerms;

  const GradArgs& args;
  size_t ahead;
  size_t last;  // the last occurrence of the call
  float row_scale;

  TE_INLINE size_t index_ahead(size_t i) const { return i + ahead < last ? i + ahead : last; }
  TE_INLINE const std::byte* row(size_t i) const {
    return static_cast<const std::byte*>(args.grad) +
           size_t{args.bags[i]} * args.dim * kElementBytes<kDType>;
  }
  template <uint32_t kBytes>
  TE_INLINE void prefetch(size_t i, size_t offset_bytes) const {
    prefetch_near(reinterpret_cast<uintptr_t>(row(index_ahead(i)) + offset_bytes), kBytes);
  }
  TE_INLINE void prefetch_row(size_t i) const {
    prefetch_near(reinterpret_cast<uintptr_t>(row(index_ahead(i))),
                  args.dim * kElementBytes<kDType>);
  }
  TE_INLINE bool skip(size_t) const { return false; }
  TE_INLINE float scale(size_t i) const {
    float scale = 1;
    if (args.sample_weights != nullptr) {
      scale = load_one<kDType>(args.sample_weights, args.occurrences[i]);
    }
    if (args.bag_scale != nullptr) scale *= args.bag_scale[args.bags[i]];
    return scale * row_scale;
  }
  template <bool kTail>
  TE_INLINE Floats masked(size_t i, uint32_t column, uint32_t columns, Floats value) const {
    const uint32_t* argmax = args.argmax + size_t{args.bags[i]} * args.dim + column;
    const Words winner = load_words<kTail>(argmax, columns);
    for (uint32_t p = 0; p < kParts; ++p) {
      const auto wins = winner.part[p] == args.occurrences[i];
      value.part[p] = wins ? value.part[p] : NativeFloats{};
    }
    return value;
  }
};

template <class Terms>
struct GradientPass {
  const Terms& terms;
  size_t begin;
  size_t end;
  float* out;

  template <uint32_t kBlocks, bool kTail>
  TE_INLINE void run(uint32_t column, uint32_t columns) const {
    Floats sum[kBlocks];
    sum_terms<kBlocks, kTail>(terms, begin, end, column, columns, sum);
    for (uint32_t b = 0; b < kBlocks; ++b) {
      if (begin == end) sum[b] = splat(0);
      auto* to = reinterpret_cast<std::byte*>(out + column + b * kLanes);
      store<DType::kF32, kTail>(to, sum[b], columns);
    }
  }
};

// Where the gradients of unique rows come from: computed one at a time from GradArgs, or stored.
struct GradientSource {
  // The gradient of unique row u: `dim` floats, valid until the next call.
  const float* (*of)(const GradientSource& source, size_t u, float* scratch);
  const GradArgs* args;
  const float* stored;  // [uniques, dim]
  uint32_t dim;
  size_t ahead;
  size_t last;
};

const float* stored_gradient(const GradientSource& source, size_t u, float*) {
  return source.stored + u * source.dim;
}

template <DType kType, bool kScaled, bool kMasked>
const float* summed_gradient(const GradientSource& source, size_t u, float* scratch) {
  const GradArgs& args = *source.args;
  const size_t begin = args.occurrence_begin[u];
  const size_t end = args.occurrence_begin[u + 1];
  using Terms = BagTerms<kType, kScaled, kMasked>;
  float row_scale = 1;
  if (args.scale_by_count && begin < end) row_scale = 1.0f / static_cast<float>(end - begin);
  const Terms terms{args, source.ahead, source.last, row_scale};
  if constexpr (kType == DType::kF32 && !kScaled && !kMasked) {
    if (end - begin == 1) {  // the gradient of its only bag, where that stands
      terms.prefetch_row(begin);
      return reinterpret_cast<const float*>(terms.row(begin));
    }
  }
  for_chunks(args.dim, GradientPass<Terms>{terms, begin, end, scratch});
  return scratch;
}

GradientSource gradient_source(const GradArgs& args, size_t end) {
  GradientSource source{};
  source.args = &args;
  source.dim = args.dim;
  source.last = size_t{args.occurrence_begin[end]} - 1;
  const bool masked = args.mode == PoolMode::kMax;
  const bool scaled =
      args.sample_weights != nullptr || args.bag_scale != nullptr || args.scale_by_count;
  for_dtype(args.dtype, [&]<DType kType>() {
    source.ahead = rows_near_ahead(args.dim * kElementBytes<kType>);
    source.of = masked   ? summed_gradient<kType, true, true>
                : scaled ? summed_gradient<kType, true, false>
                         : summed_gradient<kType, false, false>;
  });
  return source;
}

void sum_gradients(const GradArgs& args, float* out, size_t begin, size_t end) {
  const GradientSource source = gradient_source(args, end);
  for (size_t u = begin; u < end; ++u) {
    float* to = out + u * args.dim;
    const float* gradient = source.of(source, u, to);
    if (gradient != to) std::memcpy(to, gradient, args.dim * sizeof(float));
  }
}

}  // namespace
}  // namespace te
