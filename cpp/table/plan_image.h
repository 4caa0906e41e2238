// PlanImage: the arrays of a staged plan in one block of memory, for kernels on a device.
//
// Thread-safety: none; the plan is the caller's turn's. Ownership: none. Cost: a copy of the plan,
// on all threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

// Where each array begins, in bytes, at multiples of 16. Positions are those of the plan: a feature
// has its part of the occurrences, bags and begins, a range its part of the unique rows.
// Neighbouring features can be grouped, so that one launch serves them; bags are then counted from
// the first of the group, and so are the occurrences that `bag_begin` names.
struct PlanImage {
  size_t occurrence_slots = 0;  // int32 [occurrences], -1 where one is left out
  size_t bag_begin = 0;  // int64, bags + 1 a group: from the begin of the group's first feature on
  size_t bag_of = 0;     // int32 [occurrences]; empty unless a feature has sample weights
  // Of a plan that will update:
  size_t places = 0;     // int32 [uniques]
  size_t rows = 0;       // int64 [uniques], numbers in their tables; empty if all are float32
  size_t which = 0;      // int32 [uniques]: those that occur seldom, by range; then the others
  size_t csr_begin = 0;  // int32 [uniques + 1]; a row's end is the next one's begin
  size_t csr_bags = 0;   // int32 [occurrences]
  size_t csr_occurrences = 0;  // int32 [occurrences]; empty if no weights or mode max need it
  size_t bag_scale = 0;        // float32 [bags], features in mode mean
  size_t bytes = 0;
};

PlanImage plan_image(const Plan& plan, const Tiers& tiers);
// Writes the image to `to`. `groups`: by feature, the first of its group; in a group of several all
// ids are in bags, and there are neither sample weights nor mode max. `seldom`: by range, how many
// rows occur at most `often` times.
void write_plan_image(const Plan& plan, const Tiers& tiers, std::span<const uint32_t> groups,
                      uint32_t often, std::byte* to, std::span<uint32_t> seldom,
                      ThreadPool& threads);

}  // namespace te
