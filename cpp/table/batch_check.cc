#include "table/batch_check.h"

#include <limits>
#include <string>

#include "base/check.h"
#include "rows/kernels.h"

namespace te {
namespace {

template <class Offset>
Status check_offsets(const Table& table, const FeatureInput& feature, const Offset* offsets,
                     int64_t* bag_begin) {
  const auto fail = [&](size_t i, const std::string& why) {
    return Status(StatusCode::kInvalidArgument, "table '" + table.config.name + "': offset " +
                                                    std::to_string(offsets[i]) + " at position " +
                                                    std::to_string(i) + " " + why);
  };
  const auto ids_count = static_cast<int64_t>(feature.ids_count);
  for (size_t i = 0; i < feature.offsets_count; ++i) {
    if (i == 0 && offsets[0] != 0) return fail(0, "must be 0");
    if (i > 0 && offsets[i] < offsets[i - 1])
      return fail(i, "is smaller than the one before, " + std::to_string(offsets[i - 1]));
    if (offsets[i] > ids_count)
      return fail(i, "is larger than the number of ids, " + std::to_string(ids_count));
    bag_begin[i] = offsets[i];
  }
  // Without any bag the ids belong to none.
  if (!feature.include_last_offset)
    bag_begin[feature.offsets_count] = feature.offsets_count == 0 ? 0 : ids_count;
  return Status::ok();
}

Status lay_out_feature(const FeatureInput& feature, const Tiers& tiers, FeaturePlan& planned,
                       Scratch<int64_t>& bag_begin) {
  const Table& table = tiers.table(feature.table);
  const bool with_offsets = feature.offsets != nullptr;
  if (with_offsets && feature.include_last_offset && feature.offsets_count == 0)
    return Status(
        StatusCode::kInvalidArgument,
        "table '" + table.config.name + "': include_last_offset needs at least one offset");
  planned.bags = !with_offsets                 ? feature.bags
                 : feature.include_last_offset ? feature.offsets_count - 1
                                               : feature.offsets_count;
  planned.begin_first = bag_begin.size();
  bag_begin.resize(bag_begin.size() + planned.bags + 1, bag_begin.size());
  int64_t* begin = bag_begin.data() + planned.begin_first;
  if (with_offsets) {
    return feature.offsets_are_64
               ? check_offsets(table, feature, static_cast<const int64_t*>(feature.offsets), begin)
               : check_offsets(table, feature, static_cast<const int32_t*>(feature.offsets), begin);
  }
  TE_CHECK(feature.bags * feature.bag_size <= feature.ids_count);
  for (size_t b = 0; b <= planned.bags; ++b) begin[b] = static_cast<int64_t>(b * feature.bag_size);
  return Status::ok();
}

}  // namespace

Status check_ids(std::span<const FeatureInput> features, const Tiers& tiers) {
  for (const FeatureInput& feature : features) {
    const TableConfig& table = tiers.table(feature.table).config;
    const size_t bad =
        kernels().first_bad_id(feature.ids, feature.ids_are_64, table.rows, 0, feature.ids_count);
    if (bad == feature.ids_count) continue;
    const int64_t id = feature.ids_are_64 ? static_cast<const int64_t*>(feature.ids)[bad]
                                          : static_cast<const int32_t*>(feature.ids)[bad];
    return Status(StatusCode::kOutOfRange, "table '" + table.name + "': id " + std::to_string(id) +
                                               " at position " + std::to_string(bad) +
                                               " is out of range for " +
                                               std::to_string(table.rows) + " rows");
  }
  return Status::ok();
}

Status lay_out_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan) {
  plan.features.assign(features.size(), {});
  plan.bag_begin.clear();
  plan.occurrences = 0;
  plan.bags = 0;
  plan.tables_seen.assign(tiers.tables_count(), false);
  for (size_t f = 0; f < features.size(); ++f) {
    const TableId table = features[f].table;
    if (plan.tables_seen[table.value])
      return Status(StatusCode::kInvalidArgument,
                    "table '" + tiers.table(table).config.name + "' stands twice in one batch");
    plan.tables_seen[table.value] = true;
    FeaturePlan& planned = plan.features[f];
    planned.table = features[f].table;
    planned.layout = tiers.table(features[f].table).layout;
    planned.occurrence_first = plan.occurrences;
    planned.occurrences = features[f].ids_count;
    planned.bag_first = plan.bags;
    TE_RETURN_IF_ERROR(lay_out_feature(features[f], tiers, planned, plan.bag_begin));
    plan.occurrences += planned.occurrences;
    plan.bags += planned.bags;
  }
  if (plan.occurrences >= std::numeric_limits<uint32_t>::max())
    return Status(StatusCode::kInvalidArgument,
                  "a batch of " + std::to_string(plan.occurrences) + " ids; at most " +
                      std::to_string(std::numeric_limits<uint32_t>::max() - 1) + " are possible");
  return Status::ok();
}

}  // namespace te
