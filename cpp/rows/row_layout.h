// RowLayout: which bytes of a row are weight and which are optimizer state.
//
// A row is `dim` weights in `dtype`, zero bytes up to a multiple of 4, then the optimizer's state
// as float32. The same bytes stand in a slot and in a block of the log. Thread-safety: values.
// Cost: none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace te {

enum class DType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2 };
enum class OptimizerKind : uint8_t {
  kNone = 0,
  kSgd = 1,
  kAdagrad = 2,
  kRowwiseAdagrad = 3,
  kAdam = 4
};
enum class PoolMode : uint8_t { kSum = 0, kMean = 1, kMax = 2 };

constexpr uint32_t dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

struct RowLayout {
  uint32_t dim = 0;
  DType dtype = DType::kF32;
  OptimizerKind optimizer = OptimizerKind::kNone;

  // Adagrad: sum of squares a column. RowwiseAdagrad: one for the row. Adam: exp_avg, then
  // exp_avg_sq.
  constexpr uint32_t state_floats() const {
    switch (optimizer) {
      case OptimizerKind::kAdagrad: return dim;
      case OptimizerKind::kRowwiseAdagrad: return 1;
      case OptimizerKind::kAdam: return 2 * dim;
      default: return 0;
    }
  }
  constexpr uint32_t weight_bytes() const { return dim * dtype_bytes(dtype); }
  constexpr uint32_t state_offset_bytes() const { return (weight_bytes() + 3) / 4 * 4; }
  constexpr uint32_t row_bytes() const { return state_offset_bytes() + 4 * state_floats(); }

  friend constexpr bool operator==(const RowLayout&, const RowLayout&) = default;
};

}  // namespace te
