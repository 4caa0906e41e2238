// Checks a batch before it is planned, and lays its features out one after another in the plan.
// Thread-safety: pure functions over their arguments. Cost: one pass over ids and offsets, on all
// threads.
#pragma once

#include <span>

#include "base/status.h"
#include "base/thread_pool.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

// Fills `plan.features`, `occurrences` and `bags` from the sizes of the inputs, and makes room in
// `bag_begin`. kInvalidArgument names a table that stands twice.
Status lay_out_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan);
// Fills `plan.bag_begin` of a batch that is laid out. kInvalidArgument names the first bad offset,
// kOutOfRange table, position and value of the first bad id.
Status check_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan,
                   ThreadPool& threads);
Status check_ids(std::span<const FeatureInput> features, const Tiers& tiers);
// The part of check_batch that concerns bags [first, end) of a feature: fills end - first + 1
// places at `begin`; false if one of their offsets is bad.
bool fill_bag_begin(const FeatureInput& feature, size_t bags, size_t first, size_t end,
                    int64_t* begin);
// One feature of check_batch, where the caller's threads take features in turn; false if an id or
// offset is bad, which check_batch then names.
bool check_feature(const FeatureInput& feature, const Tiers& tiers, const FeaturePlan& planned,
                   Plan& plan);

}  // namespace te
