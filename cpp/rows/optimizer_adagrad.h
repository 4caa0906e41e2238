// Adagrad: sum += g * g; w -= lr * (g / (sqrt(sum) + eps)). torch.optim.Adagrad on sparse
// gradients; the caller divides lr by (1 + (step - 1) * lr_decay). State: the sum of each column.
// Included by update_impl.h only, which says what an optimizer offers.
#pragma once

#include "rows/kernels.h"
#include "rows/lanes.h"

namespace te {
namespace {

struct Adagrad {
  Floats lr;
  Floats eps;

  TE_INLINE Adagrad(const OptimizerParams& params, uint32_t)
      : lr(splat(static_cast<float>(params.lr))), eps(splat(static_cast<float>(params.eps))) {}

  template <DType kType>
  TE_INLINE void begin_row(const std::byte*, const float*, std::byte*) {}

  template <bool kTail>
  TE_INLINE Floats step(Floats weight, Floats gradient, std::byte* state, uint32_t column,
                        uint32_t columns) const {
    std::byte* at = state + column * size_t{4};
    const Floats sum = load<DType::kF32, kTail>(at, columns) + gradient * gradient;
    store<DType::kF32, kTail>(at, sum, columns);
    return weight - lr * (gradient / (square_root(sum) + eps));
  }
};

}  // namespace
}  // namespace te
