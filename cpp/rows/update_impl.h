// The update of unique rows in their slots. Included by variant_impl.h only.
//
// An optimizer is a struct in a file of its own (optimizer_*.h), made once a call and registered in
// `update_rows_of`. It offers:
//   Optimizer(params, dim)
//   begin_row<kType>(weight, gradient, state)     once a row, before its blocks
//   step<kTail>(weight, gradient, state, column, columns) -> weight    once a block, in order
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "rows/gradient_impl.h"
#include "rows/kernels.h"
#include "rows/lanes.h"
#include "rows/optimizer_adagrad.h"
#include "rows/optimizer_adam.h"
#include "rows/optimizer_rowwise_adagrad.h"
#include "rows/optimizer_sgd.h"
#include "rows/random_impl.h"
#include "rows/variants.h"

namespace te {
namespace {

// Sixteen random bits a column, for the 64 columns that one call of random_words covers: column c
// takes half c % 2 (0 the low one) of word (c % 8) / 2 of column group c / 8.
struct RoundingBits {
  RandomWords words;

  TE_INLINE void draw(const UpdateArgs& args, size_t u, uint32_t column) {
    random_words(args.key, PhiloxPurpose::kRounding, args.rows[u].value - args.first_row, args.step,
                 column / 8, &words);
  }
  TE_INLINE Words of_block(uint32_t column) const {
    Words v;
    for (uint32_t p = 0; p < kParts; ++p) {
      NativeHalves halves;
      const auto* from = reinterpret_cast<const std::byte*>(words.word) + (column % 64) * 2;
      std::memcpy(&halves, from + p * sizeof(halves), sizeof(halves));
      v.part[p] = native_widen(halves);
    }
    return v;
  }
};

template <DType kType, class Optimizer>
TE_INLINE void update_row(const UpdateArgs& args, Optimizer& optimizer, size_t u,
                          const float* gradient) {
  std::byte* weight = args.arena.base + args.slots[u] * args.arena.stride_bytes;
  std::byte* state = weight + args.arena.layout.state_offset_bytes();
  optimizer.template begin_row<kType>(weight, gradient, state);
  [[maybe_unused]] RoundingBits bits;
  for_blocks(args.arena.layout.dim, [&]<bool kTail>(uint32_t column, uint32_t columns) {
    std::byte* at = weight + column * size_t{kElementBytes<kType>};
    const auto* from = reinterpret_cast<const std::byte*>(gradient + column);
    const Floats g = load<DType::kF32, kTail>(from, columns);
    const Floats w =
        optimizer.template step<kTail>(load<kType, kTail>(at, columns), g, state, column, columns);
    if constexpr (kType == DType::kF32) {
      store<kType, kTail>(at, w, columns);
    } else {
      if (column % 64 == 0) bits.draw(args, u, column);
      store_stochastic<kType, kTail>(at, w, bits.of_block(column), columns);
    }
  });
}

template <DType kType, class Optimizer>
void update_rows(const GradientSource& source, const UpdateArgs& args, size_t begin, size_t end) {
  Optimizer optimizer(args.params, args.arena.layout.dim);
  float* scratch = kernel_scratch(args.arena.layout.dim);
  const uint32_t row_bytes = args.arena.layout.row_bytes();
  const size_t ahead = rows_far_ahead(row_bytes);
  const auto base = reinterpret_cast<uintptr_t>(args.arena.base);
  for (size_t u = begin; u < end; ++u) {
    const size_t next = u + ahead < end ? u + ahead : end - 1;
    prefetch_far(base + args.slots[next] * args.arena.stride_bytes, row_bytes);
    update_row<kType>(args, optimizer, u, source.of(source, u, scratch));
  }
}

template <DType kType>
void update_rows_of(const GradientSource& source, const UpdateArgs& args, size_t begin,
                    size_t end) {
  switch (args.arena.layout.optimizer) {
    case OptimizerKind::kNone: TE_CHECK(!"frozen rows have no update"); return;
    case OptimizerKind::kSgd: return update_rows<kType, Sgd>(source, args, begin, end);
    case OptimizerKind::kAdagrad: return update_rows<kType, Adagrad>(source, args, begin, end);
    case OptimizerKind::kRowwiseAdagrad:
      return update_rows<kType, RowwiseAdagrad>(source, args, begin, end);
    case OptimizerKind::kAdam: return update_rows<kType, Adam>(source, args, begin, end);
  }
}

void update_from(const GradientSource& source, const UpdateArgs& args, size_t begin, size_t end) {
  TE_CHECK(source.dim == args.arena.layout.dim);
  for_dtype(args.arena.layout.dtype,
            [&]<DType kType>() { update_rows_of<kType>(source, args, begin, end); });
}

void update(const GradArgs& grad, const UpdateArgs& args, size_t begin, size_t end) {
  update_from(gradient_source(grad, end), args, begin, end);
}

void apply_update(const float* gradients, const UpdateArgs& args, size_t begin, size_t end) {
  GradientSource source{};
  source.of = stored_gradient;
  source.stored = gradients;
  source.dim = args.arena.layout.dim;
  update_from(source, args, begin, end);
}

}  // namespace
}  // namespace te
