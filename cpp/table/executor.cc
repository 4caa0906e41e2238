#include "table/executor.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "base/check.h"
#include "rows/power.h"
#include "table/batch_check.h"

namespace te {
namespace {

constexpr size_t kChunkOccurrencesMin = 256;
constexpr size_t kSlotAhead = 16;  // prefetched

size_t chunk_target(size_t occurrences, size_t threads) {
  return std::max(kChunkOccurrencesMin, occurrences / (threads * 4) + 1);
}

const uint32_t* raw(const Scratch<SlotIndex>& slots) {
  static_assert(sizeof(SlotIndex) == sizeof(uint32_t));
  return reinterpret_cast<const uint32_t*>(slots.data());
}

// Where the bags of an input begin that is not checked yet.
class BagBegins {
 public:
  BagBegins(const FeatureInput& input, const FeaturePlan& feature)
      : input_(input), bags_(feature.bags) {}
  int64_t operator[](size_t bag) const {
    if (input_.offsets == nullptr) return static_cast<int64_t>(bag * input_.bag_size);
    if (bag == bags_ && !input_.include_last_offset) return static_cast<int64_t>(input_.ids_count);
    return input_.offsets_are_64 ? static_cast<const int64_t*>(input_.offsets)[bag]
                                 : static_cast<const int32_t*>(input_.offsets)[bag];
  }

 private:
  const FeatureInput& input_;
  const size_t bags_;
};

std::string element(const void* values, DType dtype, size_t i) {
  if (dtype == DType::kF32) return std::to_string(static_cast<const float*>(values)[i]);
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  const uint16_t mantissa = dtype == DType::kF16 ? bits & 0x3ff : bits & 0x7f;
  return mantissa != 0 ? "nan" : (bits & 0x8000) != 0 ? "-inf" : "inf";
}

}  // namespace

OptimizerParams params_at(const Hyperparameters& hyper, OptimizerKind kind, uint64_t step) {
  OptimizerParams params;
  double lr = hyper.lr;
  if (kind == OptimizerKind::kAdagrad) lr /= 1.0 + static_cast<double>(step - 1) * hyper.lr_decay;
  params.lr = lr;
  params.eps = hyper.eps;
  params.beta1 = hyper.beta1;
  params.beta2 = hyper.beta2;
  params.weight_decay = hyper.weight_decay;
  if (kind == OptimizerKind::kAdam) {
    params.bias_correction1 = 1.0 - power(hyper.beta1, step);
    params.bias_correction2 = 1.0 - power(hyper.beta2, step);
  }
  return params;
}

// Cuts [0, count) where the prefix sums of occurrences pass multiples of `target`. Sums that have
// not been checked may be anything: that gives a cut, too.
template <class Prefix>
void Executor::cut(size_t of, const Prefix& prefix, size_t count, size_t target) {
  size_t begin = 0;
  while (begin < count) {
    const uint64_t goal = static_cast<uint64_t>(prefix[begin]) + target;
    // Empty bags cost a row of zeros too, so a chunk is bounded in both counts.
    size_t low = begin + 1;
    size_t high = std::min(count, begin + target);
    while (low < high) {
      const size_t middle = low + (high - low) / 2;
      if (static_cast<uint64_t>(prefix[middle]) < goal) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    chunks_.push_back({of, begin, low});
    begin = low;
  }
}

void Executor::cut_bags(const Plan& plan, size_t threads) {
  chunks_.clear();
  const size_t target = chunk_target(std::max(plan.occurrences, plan.bags), threads);
  for (size_t f = 0; f < plan.features.size(); ++f) {
    const FeaturePlan& feature = plan.features[f];
    cut(f, plan.bag_begin.data() + feature.begin_first, feature.bags, target);
  }
}

void Executor::cut_uniques(const Plan& plan, size_t threads) {
  chunks_.clear();
  const size_t target = chunk_target(plan.occurrences, threads);
  for (size_t r = 0; r < plan.acquired.ranges.size(); ++r) {
    const UniqueRange& range = plan.acquired.ranges[r];
    cut(r, plan.csr_begin.data() + range.first + r, range.count, target);
  }
}

ArenaView Executor::arena_of(const Plan& plan, LayoutId layout) const {
  const LayoutTier& tier = tiers_.layout(layout);
  return plan.is_staged ? tier.device_view() : tier.view();
}

PoolArgs Executor::pool_args(const Plan& plan, size_t f) const {
  const FeaturePlan& feature = plan.features[f];
  PoolArgs args;
  args.arena = arena_of(plan, feature.layout);
  args.mode = tiers_.table(feature.table).config.mode;
  args.slots = plan.occurrence_slots.data() + feature.occurrence_first;
  args.bag_begin = plan.bag_begin.data() + feature.begin_first;
  return args;
}

void Executor::forward(Plan& plan, std::span<const FeatureForward> features, ThreadPool& threads) {
  plan.argmax.resize(features.size());
  for (size_t f = 0; f < features.size(); ++f) {
    const FeaturePlan& feature = plan.features[f];
    const TableConfig& config = tiers_.table(feature.table).config;
    const bool keep_argmax = plan.will_update && config.mode == PoolMode::kMax;
    plan.argmax[f].resize(keep_argmax ? feature.bags * config.dim : 0);
  }
  cut_bags(plan, threads.threads());
  threads.run(chunks_.size(),
              [&](size_t c) { pool_chunk(plan, chunks_[c], features[chunks_[c].of]); });
}

void Executor::pool_chunk(Plan& plan, const Chunk& chunk, const FeatureForward& feature) const {
  PoolArgs args = pool_args(plan, chunk.of);
  args.sample_weights = feature.sample_weights;
  args.out = feature.out;
  Scratch<uint32_t>& argmax = plan.argmax[chunk.of];
  args.argmax = argmax.size() != 0 ? argmax.data() : nullptr;
  kernels().pool(args, chunk.begin, chunk.end);
}

OwnSlotArgs Executor::own_slot_args(const FeatureInput& input, Plan& plan, size_t f) const {
  const Table& table = tiers_.table(input.table);
  OwnSlotArgs args;
  args.ids = input.ids;
  args.ids_are_64 = input.ids_are_64;
  args.padding_id = input.padding_id;
  if (table.resident_rows < table.config.rows) args.resident = tiers_.resident().words();
  args.first_row = table.first_row.value;
  args.first_slot = table.first_slot.value;
  args.slots = plan.occurrence_slots.data() + plan.features[f].occurrence_first;
  return args;
}

// Offsets and ids are checked by the thread that pools them.
Executor::Resident Executor::forward_resident(std::span<const FeatureInput> inputs, Plan& plan,
                                              std::span<const FeatureForward> features,
                                              uint32_t sample_mask, ThreadPool& threads) {
  plan.occurrence_slots.resize(plan.occurrences);
  if (plan.is_watched) plan.sampled.resize(plan.occurrences);
  plan.argmax.resize(features.size());
  for (Scratch<uint32_t>& argmax : plan.argmax) argmax.clear();
  chunks_.clear();
  const size_t target = chunk_target(std::max(plan.occurrences, plan.bags), threads.threads());
  for (size_t f = 0; f < inputs.size(); ++f) {
    const FeaturePlan& feature = plan.features[f];
    if (feature.bags == 0 && !check_feature(inputs[f], tiers_, feature, plan))
      return Resident::kBad;
    cut(f, BagBegins(inputs[f], feature), feature.bags, target);
  }
  plan.bag_begin.resize(plan.bags + chunks_.size());
  plan.sampled_ranges.resize(chunks_.size());
  std::atomic<bool> bad{false};
  std::atomic<bool> absent{false};
  std::atomic<size_t> lookups{0};
  threads.run(chunks_.size(), [&](size_t c) {
    const Chunk& chunk = chunks_[c];
    size_t pooled = 0;
    switch (pool_resident(inputs[chunk.of], plan, c, features[chunk.of], sample_mask, &pooled)) {
      case Resident::kBad: bad.store(true, std::memory_order_relaxed); break;
      case Resident::kAbsent: absent.store(true, std::memory_order_relaxed); break;
      case Resident::kPooled: lookups.fetch_add(pooled, std::memory_order_relaxed);
    }
  });
  plan.lookups = lookups.load();
  return bad.load() ? Resident::kBad : absent.load() ? Resident::kAbsent : Resident::kPooled;
}

Executor::Resident Executor::pool_resident(const FeatureInput& input, Plan& plan, size_t c,
                                           const FeatureForward& feature, uint32_t sample_mask,
                                           size_t* pooled) const {
  const Chunk& chunk = chunks_[c];
  const FeaturePlan& planned = plan.features[chunk.of];
  const TableConfig& table = tiers_.table(input.table).config;
  int64_t* bag_begin = plan.bag_begin.data() + planned.bag_first + chunk.begin + c;
  if (!fill_bag_begin(input, planned.bags, chunk.begin, chunk.end, bag_begin))
    return Resident::kBad;
  const size_t bags = chunk.end - chunk.begin;
  const auto begin = static_cast<size_t>(bag_begin[0]);
  const auto end = static_cast<size_t>(bag_begin[bags]);
  // The chunk with the last bag also checks the ids behind it, which belong to none.
  const size_t checked = chunk.end == planned.bags ? planned.occurrences : end;
  if (kernels().first_bad_id(input.ids, input.ids_are_64, table.rows, begin, checked) < checked)
    return Resident::kBad;
  size_t padding = 0;
  if (!kernels().own_slots(own_slot_args(input, plan, chunk.of), begin, end, &padding))
    return Resident::kAbsent;
  *pooled = end - begin - padding;
  if (plan.is_watched) pick_sampled(input, plan, c, begin, end, sample_mask);
  PoolArgs args = pool_args(plan, chunk.of);
  args.bag_begin = bag_begin;
  args.sample_weights = feature.sample_weights;
  args.out = static_cast<std::byte*>(feature.out) +
             chunk.begin * tiers_.layout(planned.layout).layout.weight_bytes();
  kernels().pool(args, 0, bags);
  return Resident::kPooled;
}

// By their slots, which follow from the ids and take less to read.
void Executor::pick_sampled(const FeatureInput& input, Plan& plan, size_t c, size_t begin,
                            size_t end, uint32_t mask) const {
  const Table& table = tiers_.table(input.table);
  const size_t first = plan.features[chunks_[c].of].occurrence_first + begin;
  SampleArgs args;
  args.ids = plan.occurrence_slots.data() + first;
  args.ids_are_64 = false;
  args.first_row = table.first_row.value - table.first_slot.value;
  args.is_narrow = tiers_.total_rows() <= uint64_t{1} << 32;
  args.mask = mask;
  RowId* const rows = plan.sampled.data() + first;
  size_t count = kernels().sample(args, 0, end - begin, rows);
  if (input.padding_id >= 0) {
    static_assert(static_cast<int32_t>(kPaddingSlot) == -1);
    count = static_cast<size_t>(std::remove(rows, rows + count, RowId(args.first_row - 1)) - rows);
  }
  plan.sampled_ranges[c] = {first, count};
}

void Executor::renormalise(Plan& plan, std::span<const FeatureForward> features) {
  for (const UniqueRange& range : plan.acquired.ranges) {
    const FeatureForward& feature = features[range.feature];
    if (feature.max_norm <= 0) continue;
    LayoutTier& tier = tiers_.layout(range.layout);
    changed_.assign(range.count, 0);
    kernels().renorm(tier.view(), raw(plan.acquired.slots) + range.first, feature.max_norm,
                     feature.norm_type, changed_.data(), 0, range.count);
    for (size_t u = 0; u < range.count; ++u) {
      if (changed_[u] != 0)
        tiers_.mark_dirty(range.layout, tier.directory[plan.acquired.slots[range.first + u]]);
    }
  }
}

GradArgs Executor::grad_args(const Plan& plan, size_t r, const FeatureBackward& backward) const {
  const UniqueRange& range = plan.acquired.ranges[r];
  const FeaturePlan& feature = plan.features[range.feature];
  const TableConfig& config = tiers_.table(feature.table).config;
  GradArgs args;
  args.dim = config.dim;
  args.dtype = config.dtype;
  args.mode = config.mode;
  args.occurrence_begin = plan.csr_begin.data() + range.first + r;
  args.occurrences = plan.csr_occurrences.data();
  args.bags = plan.csr_bags.data();
  args.grad = backward.grad;
  args.sample_weights = backward.sample_weights;
  args.bag_scale =
      config.mode == PoolMode::kMean ? plan.bag_scale.data() + feature.bag_first : nullptr;
  args.scale_by_count = backward.scale_by_count;
  args.argmax = config.mode == PoolMode::kMax ? plan.argmax[range.feature].data() : nullptr;
  return args;
}

UpdateArgs Executor::update_args(const Table& table, const Hyperparameters& hyper) {
  UpdateArgs args;
  args.arena = tiers_.layout(table.layout).view();
  args.params = params_at(hyper, args.arena.layout.optimizer, table.step);
  args.key = table.key;
  args.first_row = table.first_row.value;
  args.step = table.step;
  return args;
}

void Executor::mark_dirty(const Acquisition& acquired, const UniqueRange& range) {
  if (tiers_.log() == nullptr) return;
  SlotDirectory& directory = tiers_.layout(range.layout).directory;
  const size_t end = range.first + range.count;
  for (size_t u = range.first; u < end; ++u) {
    directory.prefetch(acquired.slots[std::min(u + kSlotAhead, end - 1)]);
    tiers_.mark_dirty(range.layout, directory[acquired.slots[u]]);
  }
}

bool Executor::updates(const FeatureBackward& feature) const {
  return feature.grad != nullptr && feature.row_grad == nullptr &&
         tiers_.config().optimizer != OptimizerKind::kNone;
}

void Executor::begin_update(const Plan& plan, std::span<const uint8_t> is_updated,
                            ThreadPool& threads) {
  for (size_t f = 0; f < is_updated.size(); ++f) {
    if (is_updated[f] != 0) ++tiers_.table(plan.features[f].table).step;
  }
  if (plan.is_staged) return hbm_.mark_dirty(plan, is_updated, threads);
  for (const UniqueRange& range : plan.acquired.ranges) {
    if (is_updated[range.feature] != 0) mark_dirty(plan.acquired, range);
  }
}

void Executor::backward(Plan& plan, std::span<const FeatureBackward> features,
                        const Hyperparameters& hyper, ThreadPool& threads) {
  for (size_t f = 0; f < features.size(); ++f) {
    TE_CHECK(features[f].sample_weights == nullptr || plan.features[f].is_weighted);
    if (features[f].grad == nullptr || features[f].sample_weights_grad == nullptr) continue;
    kernels().sample_weight_gradients(pool_args(plan, f), features[f].grad,
                                      features[f].sample_weights_grad, 0, plan.features[f].bags);
  }
  grads_.clear();
  updates_.clear();
  for (size_t r = 0; r < plan.acquired.ranges.size(); ++r) {
    const UniqueRange& range = plan.acquired.ranges[r];
    grads_.push_back(grad_args(plan, r, features[range.feature]));
    updates_.push_back(update_args(tiers_.table(range.table), hyper));
    updates_[r].arena = arena_of(plan, range.layout);
    updates_[r].slots =
        (plan.is_staged ? plan.places.data() : raw(plan.acquired.slots)) + range.first;
    updates_[r].rows = plan.acquired.rows.data() + range.first;
  }
  cut_uniques(plan, threads.threads());
  threads.run(chunks_.size(), [&](size_t c) {
    const Chunk& chunk = chunks_[c];
    const UniqueRange& range = plan.acquired.ranges[chunk.of];
    const FeatureBackward& feature = features[range.feature];
    if (feature.row_grad != nullptr) {
      float* to = feature.row_grad + range.before * grads_[chunk.of].dim;
      kernels().sum_gradients(grads_[chunk.of], to, chunk.begin, chunk.end);
    } else if (updates(feature)) {
      kernels().update(grads_[chunk.of], updates_[chunk.of], chunk.begin, chunk.end);
    }
  });
}

void Executor::apply(const Acquisition& acquired, const UniqueRange& range, const float* gradients,
                     const Hyperparameters& hyper, ThreadPool& threads) {
  const Table& table = tiers_.table(range.table);
  mark_dirty(acquired, range);
  UpdateArgs args = update_args(table, hyper);
  args.slots = raw(acquired.slots) + range.first;
  args.rows = acquired.rows.data() + range.first;
  const size_t target = chunk_target(range.count, threads.threads());
  threads.run((range.count + target - 1) / target, [&](size_t c) {
    kernels().apply_update(gradients, args, c * target, std::min((c + 1) * target, range.count));
  });
}

Status Executor::check_finite(const Plan& plan, std::span<const FeatureBackward> features) const {
  for (size_t f = 0; f < features.size(); ++f) {
    const FeaturePlan& feature = plan.features[f];
    const TableConfig& config = tiers_.table(feature.table).config;
    size_t at = 0;
    if (features[f].grad == nullptr) continue;
    if (kernels().all_finite(features[f].grad, config.dtype, 0, feature.bags * config.dim, &at))
      continue;
    return Status(StatusCode::kInvalidArgument, "table '" + config.name + "': gradient of bag " +
                                                    std::to_string(at / config.dim) + ", column " +
                                                    std::to_string(at % config.dim) + " is " +
                                                    element(features[f].grad, config.dtype, at) +
                                                    "; nothing was updated");
  }
  return Status::ok();
}

}  // namespace te
