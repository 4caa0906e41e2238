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
// Fills `plan.bag_begin` of a batch that is laid out, and with `ids` looks at those too.
// kInvalidArgument names the first bad offset, kOutOfRange table, position and value of the first
// bad id.
enum class BatchCheck : uint8_t { kOffsets, kOffsetsAndIds };
Status check_batch(std::span<const FeatureInput> features, const Tiers& tiers, BatchCheck what,
                   Plan& plan, ThreadPool& threads);
Status check_ids(std::span<const FeatureInput> features, const Tiers& tiers);

}  // namespace te
