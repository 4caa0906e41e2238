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
struct PlanImage {
  size_t occurrence_slots = 0;  // int32 [occurrences], -1 where one is left out
  size_t bag_begin = 0;         // int64, bags + 1 a feature
  size_t bag_of = 0;            // int32 [occurrences]; empty unless a feature has sample weights
  // Of a plan that will update:
  size_t places = 0;     // int32 [uniques]
  size_t rows = 0;       // int64 [uniques], numbers in their tables; empty if all are float32
  size_t which = 0;      // int32 [uniques]: by range, unique rows of it that occur seldom, others
  size_t csr_begin = 0;  // int32, count + 1 a range: range r begins at its first + r
  size_t csr_bags = 0;   // int32 [occurrences]
  size_t csr_occurrences = 0;  // int32 [occurrences]; empty if no weights or mode max need it
  size_t bag_scale = 0;        // float32 [bags], features in mode mean
  size_t bytes = 0;
};

PlanImage plan_image(const Plan& plan, const Tiers& tiers);
// Writes the image to `to`. `seldom`: by range, how many rows occur at most `often` times.
void write_plan_image(const Plan& plan, const Tiers& tiers, uint32_t often, std::byte* to,
                      std::span<uint32_t> seldom, ThreadPool& threads);

}  // namespace te
