#include "table/plan_image.h"

#include <algorithm>
#include <utility>

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

// One call of write_plan_image.
class ImageWriter {
 public:
  ImageWriter(const Plan& plan, const Tiers& tiers, std::span<const uint32_t> groups,
              uint32_t often, std::byte* to)
      : plan_(plan),
        tiers_(tiers),
        groups_(groups),
        often_(often),
        image_(plan_image(plan, tiers)),
        to_(to) {}

  // Occurrences and bags [begin, begin + kValuesPerTask).
  void write_part(size_t begin) const {
    copy_part(plan_.occurrence_slots, begin, plan_.occurrences, to_ + image_.occurrence_slots);
    if (!plan_.will_update) return;
    if (image_.csr_occurrences != image_.bag_scale)
      copy_part(plan_.csr_occurrences, begin, plan_.occurrences, to_ + image_.csr_occurrences);
    copy_part(plan_.bag_scale, begin, plan_.bag_scale.size(), to_ + image_.bag_scale);
  }

  // All of a range but `which`. How many of its rows occur seldom.
  uint32_t write_range(size_t r) const {
    const UniqueRange& range = plan_.acquired.ranges[r];
    std::copy_n(plan_.places.data() + range.first, range.count,
                array_at<uint32_t>(to_, image_.places) + range.first);
    if (image_.rows != image_.which) {
      const uint64_t first_row = tiers_.table(range.table).first_row.value;
      auto* rows = array_at<int64_t>(to_, image_.rows) + range.first;
      for (size_t u = 0; u < range.count; ++u)
        rows[u] = static_cast<int64_t>(plan_.acquired.rows[range.first + u].value - first_row);
    }
    const uint32_t* begin = begin_of(r);
    // The next range may begin where this one ends, in both lists.
    const bool has_next = r + 1 < plan_.acquired.ranges.size() &&
                          plan_.acquired.ranges[r + 1].first == range.first + range.count;
    std::copy_n(begin, range.count + (has_next ? 0 : 1),
                array_at<uint32_t>(to_, image_.csr_begin) + range.first);
    const size_t group = groups_[range.feature];
    const auto shift = static_cast<uint32_t>(plan_.features[range.feature].bag_first -
                                             plan_.features[group].bag_first);
    std::transform(plan_.csr_bags.data() + begin[0], plan_.csr_bags.data() + begin[range.count],
                   array_at<uint32_t>(to_, image_.csr_bags) + begin[0],
                   [shift](uint32_t bag) { return bag + shift; });
    size_t seldom = 0;
    for (size_t u = 0; u < range.count; ++u) seldom += begin[u + 1] - begin[u] <= often_ ? 1 : 0;
    return static_cast<uint32_t>(seldom);
  }

  void write_which(size_t r, size_t seldom, size_t often) const {
    const UniqueRange& range = plan_.acquired.ranges[r];
    const uint32_t* begin = begin_of(r);
    auto* which = array_at<uint32_t>(to_, image_.which);
    for (size_t u = 0; u < range.count; ++u)
      which[begin[u + 1] - begin[u] <= often_ ? seldom++ : often++] =
          static_cast<uint32_t>(range.first + u);
  }

  void write_bags(size_t f) const {
    const FeaturePlan& feature = plan_.features[f];
    const FeaturePlan& group = plan_.features[groups_[f]];
    const int64_t* begin = plan_.bag_begin.data() + feature.begin_first;
    const auto shift = static_cast<int64_t>(feature.occurrence_first - group.occurrence_first);
    std::transform(begin, begin + feature.bags + 1,
                   array_at<int64_t>(to_, image_.bag_begin) + group.begin_first +
                       (feature.bag_first - group.bag_first),
                   [shift](int64_t at) { return at + shift; });
    if (!feature.is_weighted) return;
    auto* bag_of = array_at<uint32_t>(to_, image_.bag_of) + feature.occurrence_first;
    for (size_t bag = 0; bag < feature.bags; ++bag) {
      for (int64_t i = begin[bag]; i < begin[bag + 1]; ++i) bag_of[i] = static_cast<uint32_t>(bag);
    }
  }

 private:
  const uint32_t* begin_of(size_t r) const {
    return plan_.csr_begin.data() + plan_.acquired.ranges[r].first + r;
  }

  const Plan& plan_;
  const Tiers& tiers_;
  const std::span<const uint32_t> groups_;
  const uint32_t often_;
  const PlanImage image_;
  std::byte* const to_;
};

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
  image.csr_begin = place((uniques + 1) * sizeof(uint32_t));
  image.csr_bags = place(plan.occurrences * sizeof(uint32_t));
  image.csr_occurrences = place(by_position ? plan.occurrences * sizeof(uint32_t) : 0);
  image.bag_scale = place(plan.bags * sizeof(float));
  return image;
}

void write_plan_image(const Plan& plan, const Tiers& tiers, std::span<const uint32_t> groups,
                      uint32_t often, std::byte* to, std::span<uint32_t> seldom,
                      ThreadPool& threads) {
  TE_CHECK(plan.is_staged);
  const ImageWriter writer(plan, tiers, groups, often, to);
  const size_t parts =
      (std::max(plan.occurrences, plan.bags) + kValuesPerTask - 1) / kValuesPerTask;
  const size_t ranges = plan.will_update ? plan.acquired.ranges.size() : 0;
  const auto run = [&](size_t tasks, FunctionRef<void(size_t)> task) {
    if (parts > 1) return threads.run(tasks, task);
    for (size_t t = 0; t < tasks; ++t) task(t);  // so little that waking threads would cost more
  };
  run(ranges + parts, [&](size_t task) {
    if (task < ranges) {
      seldom[task] = writer.write_range(task);
    } else {
      writer.write_part((task - ranges) * kValuesPerTask);
    }
  });
  std::vector<std::pair<size_t, size_t>> which(ranges);  // where seldom and often rows begin
  size_t at = 0;
  for (size_t r = 0; r < ranges; ++r) {
    which[r].first = at;
    at += seldom[r];
  }
  for (size_t r = 0; r < ranges; ++r) {
    which[r].second = at;
    at += plan.acquired.ranges[r].count - seldom[r];
  }
  run(ranges, [&](size_t r) { writer.write_which(r, which[r].first, which[r].second); });
  for (size_t f = 0; f < plan.features.size(); ++f) writer.write_bags(f);
}

}  // namespace te
