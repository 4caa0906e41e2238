// The kernels: everything that touches the contents of rows. Leaves without decisions; the planner
// has made them all.
//
// Each kernel works on a sub-range [begin, end) of its arguments, so the caller splits work over
// threads freely: a bag, or a unique row, is always computed by one call, in a fixed order, and the
// result does not depend on the split. reference.h defines the order of every sum, every rounding
// and every random word. Compiled for baseline (what every processor has: SSE2 on x86-64, NEON on
// AArch64), AVX2 and AVX-512 from one source without fused multiply-add, hence bit-equal;
// `kernels()` picks one at start (TIERED_EMB_ISA=baseline|avx2|avx512 overrides, for tests).
// Thread-safety: calls on disjoint ranges may run at once. Ownership: borrows everything.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/philox.h"
#include "base/types.h"
#include "rows/row_layout.h"

namespace te {

// Slots of one layout: slot i is at base + i * stride_bytes.
struct ArenaView {
  std::byte* base = nullptr;
  uint64_t stride_bytes = 0;
  RowLayout layout;
};

// Slot number of an occurrence that is left out of its bag (padding).
inline constexpr uint32_t kPaddingSlot = 0xffffffffu;
// Bag of the argmax array where a bag is empty.
inline constexpr uint32_t kNoOccurrence = 0xffffffffu;

// Initial values of rows: f(key, row, column). State starts at `state_value` (Adagrad's initial
// sum).
struct InitSpec {
  enum class Kind : uint8_t { kConstant = 0, kUniform = 1, kNormal = 2 };
  Kind kind = Kind::kConstant;
  float a = 0;  // constant: value; uniform: low; normal: mean
  float b = 0;  // uniform: high; normal: standard deviation
  float state_value = 0;
};

// Pooled lookup of bags of one table. Padding occurrences do not count for mean. Empty bags give
// zeros. Sums run in float32 over occurrences in order, whatever the dtype; out is rounded to
// nearest even.
struct PoolArgs {
  ArenaView arena;
  PoolMode mode = PoolMode::kSum;
  const uint32_t* slots = nullptr;       // [occurrences]
  const int64_t* bag_begin = nullptr;    // [bags + 1], positions in slots
  const void* sample_weights = nullptr;  // [occurrences] in dtype, or null; mode sum only
  void* out = nullptr;                   // [bags, dim] in dtype
  uint32_t* argmax = nullptr;  // [bags, dim] occurrence of the first maximum, or null; mode max
};

// The gradient of each unique row of one table: the sum over its occurrences, in order, of
// scale * grad[bag], in float32, where scale is sample_weight * bag_scale * row_scale as present.
// In mode max an occurrence contributes only the columns whose argmax it is.
struct GradArgs {
  uint32_t dim = 0;
  DType dtype = DType::kF32;  // of grad and sample_weights
  PoolMode mode = PoolMode::kSum;
  const uint32_t* occurrence_begin = nullptr;  // [uniques + 1] CSR into the two arrays below
  const uint32_t* occurrences = nullptr;       // position of each occurrence in the table's input
  const uint32_t* bags = nullptr;              // bag of each occurrence
  const void* grad = nullptr;                  // [bags, dim]
  const void* sample_weights = nullptr;        // [occurrences of the input], or null
  const float* bag_scale = nullptr;            // [bags] (1 / size, mode mean), or null
  bool scale_by_count = false;                 // divide by the row's number of occurrences
  const uint32_t* argmax = nullptr;            // [bags, dim], mode max
};

// Numbers of one optimizer update, in double as the user gave them: 1 - beta2 would lose five
// digits in float. Semantics: torch.optim.SGD, Adagrad, SparseAdam on sparse gradients;
// RowwiseAdagrad as FBGEMM's exact rowwise Adagrad (mean of squares over dim).
struct OptimizerParams {
  double lr = 0;  // Adagrad: already divided by (1 + (step - 1) * lr_decay)
  double eps = 0;
  double beta1 = 0;  // Adam
  double beta2 = 0;
  double bias_correction1 = 1;  // Adam: 1 - beta1^step
  double bias_correction2 = 1;
  double weight_decay = 0;  // RowwiseAdagrad: L2, added to the gradient
};

// Update of unique rows in their slots. fp16/bf16 weights are computed in float32 and rounded
// stochastically with Philox words of (key, row, step, column).
struct UpdateArgs {
  ArenaView arena;
  OptimizerParams params;
  const uint32_t* slots = nullptr;  // [uniques]
  const RowId* rows = nullptr;      // [uniques]
  uint64_t first_row = 0;           // of the table; the random words take the row's number in it
  PhiloxKey key;
  uint64_t step = 0;  // 1 for the first update of the table
};

// Where the rows of ids are, when every row has a slot of its own.
struct OwnSlotArgs {
  const void* ids = nullptr;  // int32 or int64, each in [0, rows)
  bool ids_are_64 = true;
  int64_t padding_id = -1;             // its occurrences get kPaddingSlot; -1: none
  const uint64_t* resident = nullptr;  // bit first_row + id: the row stands there; null: all do
  uint64_t first_row = 0;
  uint32_t first_slot = 0;
  uint32_t* slots = nullptr;  // [occurrences]: first_slot + id
};

// Which rows are sampled.
struct SampleArgs {
  const void* ids = nullptr;  // int32 or int64, of rows from first_row on
  bool ids_are_64 = true;
  uint64_t first_row = 0;
  bool is_narrow = false;  // all rows are below 2^32: less to hash
  uint32_t mask = 0;       // of the bits that are zero in their sample_hash (sample_hash.h)
};

struct Kernels {
  const char* isa;

  // Bags [begin, end).
  void (*pool)(const PoolArgs&, size_t begin, size_t end);
  // out[u * dim ...] = gradient of unique u, for u in [begin, end).
  void (*sum_gradients)(const GradArgs&, float* out, size_t begin, size_t end);
  // sum_gradients and apply_update fused, bit-equal to one after the other.
  void (*update)(const GradArgs&, const UpdateArgs&, size_t begin, size_t end);
  // Applies gradients [uniques, dim] (float32) that were summed before.
  void (*apply_update)(const float* gradients, const UpdateArgs&, size_t begin, size_t end);
  // out[i] (dtype) = dot(grad[bag of i], row of i) for occurrences [begin, end); 0 for padding.
  // `pool` gives arena, slots, bag_begin; the range is of bags.
  void (*sample_weight_gradients)(const PoolArgs& pool, const void* grad, void* out, size_t begin,
                                  size_t end);
  // Whether grad [begin, end) (elements) is all finite; if not, *position is the first that is not.
  bool (*all_finite)(const void* values, DType dtype, size_t begin, size_t end, size_t* position);
  // The first position in [begin, end) whose id is not in [0, rows), or `end`.
  size_t (*first_bad_id)(const void* ids, bool ids_are_64, uint64_t rows, size_t begin, size_t end);
  // Copies offsets [begin, end) to `out`; false, and the copy undefined, unless they never fall and
  // lie in [0, limit].
  bool (*copy_offsets)(const void* offsets, bool are_64, int64_t limit, size_t begin, size_t end,
                       int64_t* out);
  // Fills slots [begin, end); false, and the slots undefined, if a row does not stand in its slot.
  // Adds the occurrences of the padding id to *padding.
  bool (*own_slots)(const OwnSlotArgs&, size_t begin, size_t end, size_t* padding);
  // Writes the rows of ids [begin, end) that are sampled to `out`, which has room for all of them,
  // in order; how many.
  size_t (*sample)(const SampleArgs&, size_t begin, size_t end, RowId* out);
  // Rows [begin, end) of `slots` whose p-norm exceeds max_norm are scaled by max_norm / (norm +
  // 1e-7), as torch.embedding_renorm_; changed[i] = 1 where that happened, else left alone.
  // norm_type may be inf.
  void (*renorm)(const ArenaView&, const uint32_t* slots, float max_norm, float norm_type,
                 uint8_t* changed, size_t begin, size_t end);
  // Writes the initial value of a row, state included, to `destination` (row_bytes bytes).
  void (*initialise)(const RowLayout&, const InitSpec&, PhiloxKey key, uint64_t row,
                     std::byte* destination);
};

const Kernels& kernels();
// All variants that this processor can run, for tests; the first is baseline.
size_t kernel_variants(const Kernels* const** variants);

}  // namespace te
