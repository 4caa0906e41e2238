// Adam as torch.optim.SparseAdam: m += (g - m) * (1 - beta1); v += (g * g - v) * (1 - beta2);
// w -= (lr * sqrt(bias_correction2) / bias_correction1) * (m / (sqrt(v) + eps)). State: m of every
// column, then v. The scalars are computed in double and rounded once. Included by update_impl.h
// only, which says what an optimizer offers.
#pragma once

#include "rows/kernels.h"
#include "rows/lanes.h"

namespace te {
namespace {

struct Adam {
  Floats step_size;
  Floats eps;
  Floats keep1;  // 1 - beta1
  Floats keep2;
  size_t dim;

  TE_INLINE Adam(const OptimizerParams& params, uint32_t dim)
      : step_size(splat(static_cast<float>(params.lr * __builtin_sqrt(params.bias_correction2) /
                                           params.bias_correction1))),
        eps(splat(static_cast<float>(params.eps))),
        keep1(splat(static_cast<float>(1 - params.beta1))),
        keep2(splat(static_cast<float>(1 - params.beta2))),
        dim(dim) {}

  template <DType kType>
  TE_INLINE void begin_row(const std::byte*, const float*, std::byte*) {}

  template <bool kTail>
  TE_INLINE Floats step(Floats weight, Floats gradient, std::byte* state, uint32_t column,
                        uint32_t columns) const {
    std::byte* at_m = state + column * size_t{4};
    std::byte* at_v = at_m + dim * 4;
    Floats m = load<DType::kF32, kTail>(at_m, columns);
    Floats v = load<DType::kF32, kTail>(at_v, columns);
    m = m + (gradient - m) * keep1;
    v = v + (gradient * gradient - v) * keep2;
    store<DType::kF32, kTail>(at_m, m, columns);
    store<DType::kF32, kTail>(at_v, v, columns);
    return weight - step_size * (m / (square_root(v) + eps));
  }
};

}  // namespace
}  // namespace te
