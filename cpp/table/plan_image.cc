#include "table/plan_image.h"

#include <algorithm>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kValuesPerTask = 1 << 16;

bool is_by_position(const FeaturePlan& feature, const Tiers& tiers) {
  return feature.is_weighted || tiers.table(feature.table).config.mode == PoolMode::kMax;
}

// Values [begin, begin + kValuesPerTask), as far as there are so many.
template <class T>
void copy_part(const Scratch<T>& from, size_t begin, size_t size, std::byte* to) {
  if (begin >= size) return;
  std::copy_n(from.data() + begin, std::min(kValuesPerTask, size - begin),
              reinterpret_cast<T*>(to) + begin);
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

void write_bag_of(const Plan& plan, const FeaturePlan& feature, uint32_t* bag_of) {
  const int64_t* begin = plan.bag_begin.data() + feature.begin_first;
  for (size_t bag = 0; bag < feature.bags; ++bag) {
    for (int64_t i = begin[bag]; i < begin[bag + 1]; ++i) bag_of[i] = static_cast<uint32_t>(bag);
  }
}

void write_part(const Plan& plan, const PlanImage& image, size_t begin, std::byte* to) {
  copy_part(plan.occurrence_slots, begin, plan.occurrences, to + image.occurrence_slots);
  copy_part(plan.bag_begin, begin, plan.bags + plan.features.size(), to + image.bag_begin);
  if (!plan.will_update) return;
  copy_part(plan.csr_bags, begin, plan.occurrences, to + image.csr_bags);
  if (image.csr_occurrences != image.bag_scale)
    copy_part(plan.csr_occurrences, begin, plan.occurrences, to + image.csr_occurrences);
  copy_part(plan.bag_scale, begin, plan.bag_scale.size(), to + image.bag_scale);
}

// How many rows of the range occur at most `often` times.
uint32_t write_range(const Plan& plan, const PlanImage& image, const Tiers& tiers, size_t r,
                     uint32_t often, std::byte* to) {
  const UniqueRange& range = plan.acquired.ranges[r];
  auto* places = array_at<uint32_t>(to, image.places) + range.first;
  std::copy_n(plan.places.data() + range.first, range.count, places);
  if (image.rows != image.which) {
    const uint64_t first_row = tiers.table(range.table).first_row.value;
    auto* rows = array_at<int64_t>(to, image.rows) + range.first;
    for (size_t u = 0; u < range.count; ++u)
      rows[u] = static_cast<int64_t>(plan.acquired.rows[range.first + u].value - first_row);
  }
  std::copy_n(plan.csr_begin.data() + range.first + r, range.count + 1,
              array_at<uint32_t>(to, image.csr_begin) + range.first + r);
  return sort_by_count(plan, r, often, array_at<uint32_t>(to, image.which) + range.first);
}

}  // namespace

PlanImage plan_image(const Plan& plan, const Tiers& tiers) {
  PlanImage image;
  const auto place = [&](size_t bytes) {
    const size_t at = image.bytes;
    image.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  bool weighted = false;
  bool by_position = false;
  bool is_rounded = false;
  for (const FeaturePlan& feature : plan.features) {
    weighted |= feature.is_weighted;
    by_position |= is_by_position(feature, tiers);
    is_rounded |= tiers.table(feature.table).config.dtype != DType::kF32;
  }
  const size_t uniques = plan.acquired.slots.size();
  image.occurrence_slots = place(plan.occurrences * sizeof(uint32_t));
  image.bag_begin = place((plan.bags + plan.features.size()) * sizeof(int64_t));
  image.bag_of = place(weighted ? plan.occurrences * sizeof(uint32_t) : 0);
  if (!plan.will_update) return image;
  image.places = place(uniques * sizeof(uint32_t));
  image.rows = place(is_rounded ? uniques * sizeof(int64_t) : 0);
  image.which = place(uniques * sizeof(uint32_t));
  image.csr_begin = place((uniques + plan.acquired.ranges.size()) * sizeof(uint32_t));
  image.csr_bags = place(plan.occurrences * sizeof(uint32_t));
  image.csr_occurrences = place(by_position ? plan.occurrences * sizeof(uint32_t) : 0);
  image.bag_scale = place(plan.bags * sizeof(float));
  return image;
}

void write_plan_image(const Plan& plan, const Tiers& tiers, uint32_t often, std::byte* to,
                      std::span<uint32_t> seldom, ThreadPool& threads) {
  TE_CHECK(plan.is_staged);
  const PlanImage image = plan_image(plan, tiers);
  const size_t values = std::max(plan.occurrences, plan.bags + plan.features.size());
  const size_t parts = (values + kValuesPerTask - 1) / kValuesPerTask;
  const size_t ranges = plan.will_update ? plan.acquired.ranges.size() : 0;
  const auto write = [&](size_t task) {
    if (task < ranges) {
      seldom[task] = write_range(plan, image, tiers, task, often, to);
    } else {
      write_part(plan, image, (task - ranges) * kValuesPerTask, to);
    }
  };
  if (parts > 1) {
    threads.run(ranges + parts, write);
  } else {  // so little that waking threads would cost more
    for (size_t task = 0; task < ranges + parts; ++task) write(task);
  }
  for (const FeaturePlan& feature : plan.features) {
    if (feature.is_weighted)
      write_bag_of(plan, feature, array_at<uint32_t>(to, image.bag_of) + feature.occurrence_first);
  }
}

}  // namespace te
