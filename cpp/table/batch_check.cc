#include "table/batch_check.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>

#include "base/check.h"
#include "rows/kernels.h"

namespace te {
namespace {

constexpr size_t kTaskIds = 16384;

int64_t element(const void* values, bool are_64, size_t i) {
  return are_64 ? static_cast<const int64_t*>(values)[i] : static_cast<const int32_t*>(values)[i];
}

// Which offset is wrong, and how; ok if none is.
Status check_offsets(const TableConfig& table, const FeatureInput& feature) {
  const auto offset = [&](size_t i) { return element(feature.offsets, feature.offsets_are_64, i); };
  const auto fail = [&](size_t i, const std::string& why) {
    return Status(StatusCode::kInvalidArgument, "table '" + table.name + "': offset " +
                                                    std::to_string(offset(i)) + " at position " +
                                                    std::to_string(i) + " " + why);
  };
  const auto ids_count = static_cast<int64_t>(feature.ids_count);
  for (size_t i = 0; i < feature.offsets_count; ++i) {
    if (i == 0 && offset(0) != 0) return fail(0, "must be 0");
    if (i > 0 && offset(i) < offset(i - 1))
      return fail(i, "is smaller than the one before, " + std::to_string(offset(i - 1)));
    if (offset(i) > ids_count)
      return fail(i, "is larger than the number of ids, " + std::to_string(ids_count));
  }
  return Status::ok();
}

}  // namespace

bool fill_bag_begin(const FeatureInput& feature, size_t bags, size_t first, size_t end,
                    int64_t* begin) {
  if (feature.offsets == nullptr) {
    for (size_t b = first; b <= end; ++b)
      begin[b - first] = static_cast<int64_t>(b * feature.bag_size);
    return true;
  }
  const auto ids_count = static_cast<int64_t>(feature.ids_count);
  const size_t given = std::min(end + 1, feature.offsets_count);
  if (!kernels().copy_offsets(feature.offsets, feature.offsets_are_64, ids_count, first, given,
                              begin))
    return false;
  if (first == 0 && given > 0 && begin[0] != 0) return false;
  // Without any bag the ids belong to none.
  if (given == end) begin[end - first] = bags == 0 ? 0 : ids_count;
  return true;
}

Status check_ids(std::span<const FeatureInput> features, const Tiers& tiers) {
  for (const FeatureInput& feature : features) {
    const TableConfig& table = tiers.table(feature.table).config;
    const size_t bad =
        kernels().first_bad_id(feature.ids, feature.ids_are_64, table.rows, 0, feature.ids_count);
    if (bad == feature.ids_count) continue;
    const int64_t id = element(feature.ids, feature.ids_are_64, bad);
    return Status(StatusCode::kOutOfRange, "table '" + table.name + "': id " + std::to_string(id) +
                                               " at position " + std::to_string(bad) +
                                               " is out of range for " +
                                               std::to_string(table.rows) + " rows");
  }
  return Status::ok();
}

bool check_feature(const FeatureInput& feature, const Tiers& tiers, const FeaturePlan& planned,
                   Plan& plan) {
  const uint64_t rows = tiers.table(feature.table).config.rows;
  return fill_bag_begin(feature, planned.bags, 0, planned.bags,
                        plan.bag_begin.data() + planned.begin_first) &&
         kernels().first_bad_id(feature.ids, feature.ids_are_64, rows, 0, feature.ids_count) ==
             feature.ids_count;
}

Status lay_out_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan) {
  plan.features.assign(features.size(), {});
  plan.occurrences = 0;
  plan.bags = 0;
  plan.tables_seen.assign(tiers.tables_count(), false);
  size_t begins = 0;
  for (size_t f = 0; f < features.size(); ++f) {
    const FeatureInput& feature = features[f];
    const Table& table = tiers.table(feature.table);
    if (plan.tables_seen[feature.table.value])
      return Status(StatusCode::kInvalidArgument,
                    "table '" + table.config.name + "' stands twice in one batch");
    plan.tables_seen[feature.table.value] = true;
    const bool with_offsets = feature.offsets != nullptr;
    if (with_offsets && feature.include_last_offset && feature.offsets_count == 0)
      return Status(
          StatusCode::kInvalidArgument,
          "table '" + table.config.name + "': include_last_offset needs at least one offset");
    TE_CHECK(with_offsets || feature.bags * feature.bag_size <= feature.ids_count);
    FeaturePlan& planned = plan.features[f];
    planned.table = feature.table;
    planned.layout = table.layout;
    planned.occurrence_first = plan.occurrences;
    planned.occurrences = feature.ids_count;
    planned.bag_first = plan.bags;
    planned.begin_first = begins;
    planned.is_weighted = feature.is_weighted;
    planned.bags = !with_offsets                 ? feature.bags
                   : feature.include_last_offset ? feature.offsets_count - 1
                                                 : feature.offsets_count;
    plan.occurrences += planned.occurrences;
    plan.bags += planned.bags;
    begins += planned.bags + 1;
  }
  if (plan.occurrences >= std::numeric_limits<uint32_t>::max())
    return Status(StatusCode::kInvalidArgument,
                  "a batch of " + std::to_string(plan.occurrences) + " ids; at most " +
                      std::to_string(std::numeric_limits<uint32_t>::max() - 1) + " are possible");
  plan.bag_begin.resize(begins);
  return Status::ok();
}

Status check_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan,
                   ThreadPool& threads) {
  // Task t checks the ids [t, t + 1) * kTaskIds of all features in a row, and the offsets of the
  // features that begin there.
  const size_t tasks = plan.occurrences / kTaskIds + 1;
  std::atomic<bool> bad{false};
  threads.run(tasks, [&](size_t task) {
    const size_t first = task * kTaskIds;
    const size_t end = task + 1 == tasks ? plan.occurrences + 1 : first + kTaskIds;
    const auto after_first = [](size_t value, const FeaturePlan& f) {
      return value < f.occurrence_first + f.occurrences;
    };
    auto planned = std::upper_bound(plan.features.begin(), plan.features.end(), first, after_first);
    // Features without ids belong to the task where they stand.
    while (planned != plan.features.begin() && (planned - 1)->occurrence_first >= first) --planned;
    bool is_bad = false;
    for (; planned != plan.features.end() && planned->occurrence_first < end; ++planned) {
      const FeatureInput& feature = features[static_cast<size_t>(planned - plan.features.begin())];
      if (planned->occurrence_first >= first)
        is_bad |= !fill_bag_begin(feature, planned->bags, 0, planned->bags,
                                  plan.bag_begin.data() + planned->begin_first);
      const uint64_t rows = tiers.table(feature.table).config.rows;
      const size_t from = std::max(first, planned->occurrence_first) - planned->occurrence_first;
      const size_t to = std::min(end - planned->occurrence_first, planned->occurrences);
      is_bad |= kernels().first_bad_id(feature.ids, feature.ids_are_64, rows, from, to) < to;
    }
    if (is_bad) bad.store(true, std::memory_order_relaxed);
  });
  if (!bad.load()) return Status::ok();
  TE_RETURN_IF_ERROR(check_ids(features, tiers));
  for (const FeatureInput& feature : features) {
    if (feature.offsets == nullptr) continue;
    TE_RETURN_IF_ERROR(check_offsets(tiers.table(feature.table).config, feature));
  }
  TE_CHECK(!"a bad batch has a first bad offset or id");
  return Status::ok();
}

}  // namespace te
