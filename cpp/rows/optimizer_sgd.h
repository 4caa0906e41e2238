// SGD: w -= lr * g. torch.optim.SGD on sparse gradients. Included by update_impl.h only, which says
// what an optimizer offers.
#pragma once

#include "rows/kernels.h"
#include "rows/lanes.h"

namespace te {
namespace {

struct Sgd {
  Floats lr;

  TE_INLINE Sgd(const OptimizerParams& params, uint32_t)
      : lr(splat(static_cast<float>(params.lr))) {}

  template <DType kType>
  TE_INLINE void begin_row(const std::byte*, const float*, std::byte*) {}

  template <bool kTail>
  TE_INLINE Floats step(Floats weight, Floats gradient, std::byte*, uint32_t, uint32_t) const {
    return weight - lr * gradient;
  }
};

}  // namespace
}  // namespace te
