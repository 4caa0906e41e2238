// Executor (CPU): pools rows from slots and applies updates to them, as a plan says.
//
// Work of all features is cut into chunks of about equal numbers of occurrences and run in one
// fork-join. A bag and a unique row are each computed by one kernel call, so the cut changes
// nothing in the result. Thread-safety: one call at a time. Where it is said, a call needs the
// engine's mutex; the others only touch plans and the bytes of pinned rows. Ownership: borrows the
// tiers and the pool.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "table/hbm_planner.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

// The tensors of one feature for a forward. Shapes: out [bags, dim]; sample_weights [ids].
struct FeatureForward {
  const void* sample_weights = nullptr;  // in the table's dtype, or null
  void* out = nullptr;
  float max_norm = 0;  // > 0: rows are renormalised in place first
  float norm_type = 2;
};

// The tensors of one feature for a backward.
struct FeatureBackward {
  const void* grad = nullptr;  // [bags, dim] in the table's dtype
  const void* sample_weights = nullptr;
  void* sample_weights_grad = nullptr;  // [ids], or null
  float* row_grad = nullptr;            // [uniques, dim]: sum gradients here instead of updating
  bool scale_by_count = false;
};

// The numbers that an optimizer object holds; the step-dependent ones are derived per table.
struct Hyperparameters {
  double lr = 0;
  double eps = 0;
  double beta1 = 0;
  double beta2 = 0;
  double lr_decay = 0;
  double weight_decay = 0;
};
OptimizerParams params_at(const Hyperparameters& hyper, OptimizerKind kind, uint64_t step);

class Executor {
 public:
  Executor(Tiers& tiers, HbmPlanner& hbm) : tiers_(tiers), hbm_(hbm) {}

  // Bounds the norms of the rows that `features` want bounded. Before the forward; needs the mutex.
  void renormalise(Plan& plan, std::span<const FeatureForward> features);
  void forward(Plan& plan, std::span<const FeatureForward> features, ThreadPool& threads);
  enum class Resident { kPooled, kAbsent, kBad };
  // Pools a batch that is laid out without planning it, if every row stands in dram; checks its ids
  // and offsets on the way, and picks the lookups that are sampled, by this mask. `out` is
  // undefined if a row is absent or one of them bad. For lookups without a backward where every row
  // fits: no row needs a pin then. Needs the mutex.
  Resident forward_resident(std::span<const FeatureInput> inputs, Plan& plan,
                            std::span<const FeatureForward> features, uint32_t sample_mask,
                            ThreadPool& threads);
  // Whether the rows of the feature are updated, rather than left alone or summed.
  bool updates(const FeatureBackward& feature) const;
  // Counts the updates of a backward that follows, and marks their rows; `is_updated`: of which
  // features. Needs the mutex.
  void begin_update(const Plan& plan, std::span<const uint8_t> is_updated, ThreadPool& threads);
  // Gradients of sample weights first, from the rows as they were pooled; then the rows' gradients:
  // applied (one update per table) or summed into row_grad.
  void backward(Plan& plan, std::span<const FeatureBackward> features, const Hyperparameters& hyper,
                ThreadPool& threads);
  // Applies summed gradients [uniques, dim] of one range of an acquisition. Needs the mutex.
  void apply(const Acquisition& acquired, const UniqueRange& range, const float* gradients,
             const Hyperparameters& hyper, ThreadPool& threads);
  // kInvalidArgument naming table, bag, column and value of the first gradient that is not finite.
  Status check_finite(const Plan& plan, std::span<const FeatureBackward> features) const;

 private:
  // Bags of a feature, or unique rows of a range.
  struct Chunk {
    size_t of;
    size_t begin;
    size_t end;
  };
  template <class Prefix>
  void cut(size_t of, const Prefix& prefix, size_t count, size_t target);
  void cut_bags(const Plan& plan, size_t threads);
  void cut_uniques(const Plan& plan, size_t threads);
  // Where a plan's rows lie, by what its occurrences name.
  ArenaView arena_of(const Plan& plan, LayoutId layout) const;
  PoolArgs pool_args(const Plan& plan, size_t f) const;
  void pool_chunk(Plan& plan, const Chunk& chunk, const FeatureForward& feature) const;
  // Checks and pools chunk c; *pooled: occurrences without padding.
  Resident pool_resident(const FeatureInput& input, Plan& plan, size_t c,
                         const FeatureForward& feature, uint32_t sample_mask, size_t* pooled) const;
  // The lookups [begin, end) of chunk c's feature that are sampled.
  void pick_sampled(const FeatureInput& input, Plan& plan, size_t c, size_t begin, size_t end,
                    uint32_t mask) const;
  OwnSlotArgs own_slot_args(const FeatureInput& input, Plan& plan, size_t f) const;
  GradArgs grad_args(const Plan& plan, size_t range, const FeatureBackward& feature) const;
  UpdateArgs update_args(const Table& table, const Hyperparameters& hyper);
  void mark_dirty(const Acquisition& acquired, const UniqueRange& range);

  Tiers& tiers_;
  HbmPlanner& hbm_;
  // Scratch of one call.
  std::vector<Chunk> chunks_;
  std::vector<uint8_t> changed_;
  std::vector<GradArgs> grads_;
  std::vector<UpdateArgs> updates_;
};

}  // namespace te
