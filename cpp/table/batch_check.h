// Checks a batch before it is planned, and lays its features out one after another in the plan.
// Thread-safety: pure functions over their arguments. Cost: one pass over ids and offsets.
#pragma once

#include <span>

#include "base/status.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

// kOutOfRange names table, position and value of the first bad id.
Status check_ids(std::span<const FeatureInput> features, const Tiers& tiers);
// Fills `plan.features`, `bag_begin`, `occurrences` and `bags`. kInvalidArgument names the first
// bad offset, or a table that stands twice.
Status lay_out_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan);

}  // namespace te
