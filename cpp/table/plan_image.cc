#include "table/plan_image.h"

#include <algorithm>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kAlignment = 16;

template <class T>
void copy(const Scratch<T>& from, size_t count, std::byte* to) {
  std::copy_n(from.data(), count, reinterpret_cast<T*>(to));
}

template <class T>
T* array_at(std::byte* image, size_t offset) {
  return reinterpret_cast<T*>(image + offset);
}

uint32_t sort_by_count(const Plan& plan, size_t r, uint32_t often, uint32_t* which) {
  const UniqueRange& range = plan.acquired.ranges[r];
  const uint32_t* begin = plan.csr_begin.data() + range.first + r;
  size_t seldom = 0;
  size_t last = range.count;
  for (uint32_t u = 0; u < range.count; ++u) {
    if (begin[u + 1] - begin[u] <= often) {
      which[seldom++] = u;
    } else {
      which[--last] = u;
    }
  }
  return static_cast<uint32_t>(seldom);
}

}  // namespace

PlanImage plan_image(const Plan& plan) {
  PlanImage image;
  const auto place = [&](size_t bytes) {
    const size_t at = image.bytes;
    image.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  const size_t uniques = plan.acquired.slots.size();
  image.occurrence_slots = place(plan.occurrences * sizeof(uint32_t));
  image.bag_begin = place((plan.bags + plan.features.size()) * sizeof(int64_t));
  image.bag_of = place(plan.occurrences * sizeof(uint32_t));
  if (!plan.will_update) return image;
  image.places = place(uniques * sizeof(uint32_t));
  image.rows = place(uniques * sizeof(int64_t));
  image.which = place(uniques * sizeof(uint32_t));
  image.csr_begin = place((uniques + plan.acquired.ranges.size()) * sizeof(uint32_t));
  image.csr_bags = place(plan.occurrences * sizeof(uint32_t));
  image.csr_occurrences = place(plan.occurrences * sizeof(uint32_t));
  image.bag_scale = place(plan.bags * sizeof(float));
  return image;
}

void write_plan_image(const Plan& plan, const Tiers& tiers, uint32_t often, std::byte* to,
                      std::span<uint32_t> seldom) {
  TE_CHECK(plan.is_staged);
  const PlanImage image = plan_image(plan);
  copy(plan.occurrence_slots, plan.occurrences, to + image.occurrence_slots);
  copy(plan.bag_begin, plan.bags + plan.features.size(), to + image.bag_begin);
  bool is_by_position = false;
  for (const FeaturePlan& feature : plan.features) {
    is_by_position |=
        feature.is_weighted || tiers.table(feature.table).config.mode == PoolMode::kMax;
    if (!feature.is_weighted) continue;
    auto* bag_of = array_at<uint32_t>(to, image.bag_of) + feature.occurrence_first;
    const int64_t* begin = plan.bag_begin.data() + feature.begin_first;
    for (size_t bag = 0; bag < feature.bags; ++bag) {
      for (int64_t i = begin[bag]; i < begin[bag + 1]; ++i) bag_of[i] = static_cast<uint32_t>(bag);
    }
  }
  if (!plan.will_update) return;
  copy(plan.csr_bags, plan.occurrences, to + image.csr_bags);
  if (is_by_position) copy(plan.csr_occurrences, plan.occurrences, to + image.csr_occurrences);
  copy(plan.bag_scale, plan.bag_scale.size(), to + image.bag_scale);
  for (size_t r = 0; r < plan.acquired.ranges.size(); ++r) {
    const UniqueRange& range = plan.acquired.ranges[r];
    const uint64_t first_row = tiers.table(range.table).first_row.value;
    auto* places = array_at<uint32_t>(to, image.places) + range.first;
    std::copy_n(plan.places.data() + range.first, range.count, places);
    auto* rows = array_at<int64_t>(to, image.rows) + range.first;
    for (size_t u = 0; u < range.count; ++u)
      rows[u] = static_cast<int64_t>(plan.acquired.rows[range.first + u].value - first_row);
    std::copy_n(plan.csr_begin.data() + range.first + r, range.count + 1,
                array_at<uint32_t>(to, image.csr_begin) + range.first + r);
    seldom[r] = sort_by_count(plan, r, often, array_at<uint32_t>(to, image.which) + range.first);
  }
}

}  // namespace te
