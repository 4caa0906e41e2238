// RowwiseAdagrad: g += weight_decay * w; sum += mean(g * g); w -= (lr / (sqrt(sum) + eps)) * g.
// FBGEMM's exact rowwise Adagrad with L2 weight decay. State: one sum for the row. The mean adds
// squares in sixteen sums, one a lane, over the blocks in order, then sum_lanes, then divides by
// dim. Included by update_impl.h only, which says what an optimizer offers.
#pragma once

#include "rows/kernels.h"
#include "rows/lanes.h"

namespace te {
namespace {

struct RowwiseAdagrad {
  float lr;
  float eps;
  Floats weight_decay;
  bool decays;
  uint32_t dim;
  Floats multiplier;  // of the current row

  TE_INLINE RowwiseAdagrad(const OptimizerParams& params, uint32_t dim)
      : lr(static_cast<float>(params.lr)),
        eps(static_cast<float>(params.eps)),
        weight_decay(splat(static_cast<float>(params.weight_decay))),
        decays(params.weight_decay != 0),
        dim(dim) {}

  template <DType kType>
  TE_INLINE void begin_row(const std::byte* weight, const float* gradient, std::byte* state) {
    Floats squares = splat(0);
    for_blocks(dim, [&]<bool kTail>(uint32_t column, uint32_t columns) {
      const auto* from = reinterpret_cast<const std::byte*>(gradient + column);
      Floats g = load<DType::kF32, kTail>(from, columns);
      if (decays) {
        const std::byte* at = weight + column * size_t{kElementBytes<kType>};
        g = g + weight_decay * load<kType, kTail>(at, columns);
      }
      squares = squares + g * g;
    });
    const float mean = sum_lanes(squares) / static_cast<float>(dim);
    const float sum = load_one<DType::kF32>(state, 0) + mean;
    std::memcpy(state, &sum, sizeof(sum));
    multiplier = splat(lr / (__builtin_sqrtf(sum) + eps));
  }

  template <bool kTail>
  TE_INLINE Floats step(Floats weight, Floats gradient, std::byte*, uint32_t, uint32_t) const {
    if (decays) gradient = gradient + weight_decay * weight;
    return weight - multiplier * gradient;
  }
};

}  // namespace
}  // namespace te
