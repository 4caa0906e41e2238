// Checks a batch before it is planned, and lays its features out one after another in the plan.
// Thread-safety: pure functions over their arguments. Cost: one pass over ids and offsets.
#pragma once

#include <span>

#include "base/status.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

// Fills `plan.features`, `bag_begin`, `occurrences` and `bags`. kOutOfRange names table, position
// and value of the first bad id; kInvalidArgument the first bad offset.
Status check_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan);

}  // namespace te
