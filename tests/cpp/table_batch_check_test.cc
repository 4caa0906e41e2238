// What a wrong batch is told, and how a right one is laid out.
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "table/batch_check.h"
#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

Status check_batch(std::span<const FeatureInput> features, const Tiers& tiers, Plan& plan) {
  ThreadPool threads(2);
  TE_RETURN_IF_ERROR(lay_out_batch(features, tiers, plan));
  return check_batch(features, tiers, plan, threads);
}

struct Tables {
  std::unique_ptr<Tiers> tiers;
  Plan plan;

  Tables() {
    EngineConfig config;
    config.tables = {make_table("ads", 10, 4), make_table("none", 0, 4), make_table("one", 1, 2),
                     make_table("last", 10, 4)};
    auto created = Tiers::create(config);
    check_ok(created.status());
    tiers = created.take();
  }
  Status check(const std::vector<Feature>& features) {
    return check_batch(inputs_of(features), *tiers, plan);
  }
};

Feature feature(uint32_t table, std::vector<int64_t> ids, std::vector<int64_t> offsets = {},
                bool include_last_offset = false) {
  Feature made;
  made.table = table;
  made.ids = std::move(ids);
  made.offsets = std::move(offsets);
  made.include_last_offset = include_last_offset;
  return made;
}

void check_refused(const Status& status, StatusCode code, const std::string& message) {
  BOOST_TEST((status.code() == code));
  BOOST_TEST(status.message() == message);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(table_batch_check)

BOOST_AUTO_TEST_CASE(bad_ids_are_named_with_table_position_and_value) {
  Tables tables;
  check_refused(tables.check({feature(0, {0, 9, 10, 11})}), StatusCode::kOutOfRange,
                "table 'ads': id 10 at position 2 is out of range for 10 rows");
  check_refused(tables.check({feature(0, {3}), feature(2, {0, -1})}), StatusCode::kOutOfRange,
                "table 'one': id -1 at position 1 is out of range for 1 rows");
  check_refused(tables.check({feature(1, {0})}), StatusCode::kOutOfRange,
                "table 'none': id 0 at position 0 is out of range for 0 rows");
  const int64_t lowest = std::numeric_limits<int64_t>::min();
  check_refused(
      tables.check({feature(0, {lowest})}), StatusCode::kOutOfRange,
      "table 'ads': id " + std::to_string(lowest) + " at position 0 is out of range for 10 rows");
  // An id behind the last bag is wrong too.
  BOOST_TEST((tables.check({feature(0, {1, 99}, {0, 1}, true)}).code() == StatusCode::kOutOfRange));
}

BOOST_AUTO_TEST_CASE(bad_ids_of_32_bits) {
  Tables tables;
  const std::vector<int32_t> ids = {1, 2, -7};
  FeatureInput input;
  input.table = TableId(0);
  input.ids = ids.data();
  input.ids_count = ids.size();
  input.ids_are_64 = false;
  input.bags = 1;
  input.bag_size = 3;
  check_refused(check_batch({&input, 1}, *tables.tiers, tables.plan), StatusCode::kOutOfRange,
                "table 'ads': id -7 at position 2 is out of range for 10 rows");
}

BOOST_AUTO_TEST_CASE(bad_offsets_are_named_with_position_and_value) {
  Tables tables;
  check_refused(tables.check({feature(0, {1, 2}, {1, 2})}), StatusCode::kInvalidArgument,
                "table 'ads': offset 1 at position 0 must be 0");
  check_refused(tables.check({feature(0, {1, 2}, {0, 2, 1})}), StatusCode::kInvalidArgument,
                "table 'ads': offset 1 at position 2 is smaller than the one before, 2");
  check_refused(tables.check({feature(0, {1, 2}, {0, 3})}), StatusCode::kInvalidArgument,
                "table 'ads': offset 3 at position 1 is larger than the number of ids, 2");
  check_refused(tables.check({feature(0, {1, 2}, {0, -1})}), StatusCode::kInvalidArgument,
                "table 'ads': offset -1 at position 1 is smaller than the one before, 0");
}

BOOST_AUTO_TEST_CASE(include_last_offset_needs_an_offset) {
  Tables tables;
  const std::vector<int64_t> offsets = {0};
  const Feature one = feature(0, {1});
  FeatureInput input = one.input();
  input.offsets = offsets.data();
  input.offsets_count = 0;
  input.include_last_offset = true;
  check_refused(check_batch({&input, 1}, *tables.tiers, tables.plan), StatusCode::kInvalidArgument,
                "table 'ads': include_last_offset needs at least one offset");
}

BOOST_AUTO_TEST_CASE(offsets_without_any_bag_leave_all_ids_out) {
  Tables tables;
  const std::vector<int64_t> offsets = {0};
  const Feature two = feature(0, {1, 2});
  FeatureInput input = two.input();
  input.offsets = offsets.data();
  input.offsets_count = 0;
  check_ok(check_batch({&input, 1}, *tables.tiers, tables.plan));
  BOOST_TEST(tables.plan.bags == 0u);
  BOOST_TEST(tables.plan.bag_begin[0] == 0);
}

BOOST_AUTO_TEST_CASE(features_lie_one_after_another) {
  Tables tables;
  check_ok(tables.check({feature(2, {0, 0, 0}, {0, 1}), feature(1, {}, {0, 0}),
                         feature(0, {5, 6, 7, 8}, {0, 2, 3}, true), feature(3, {9, 9})}));
  const Plan& plan = tables.plan;
  BOOST_TEST(plan.occurrences == 9u);
  BOOST_TEST(plan.bags == 2u + 2u + 2u + 1u);
  const std::vector<int64_t> begins(plan.bag_begin.data(),
                                    plan.bag_begin.data() + plan.bag_begin.size());
  BOOST_TEST((begins == std::vector<int64_t>{0, 1, 3, 0, 0, 0, 0, 2, 3, 0, 2}));
  BOOST_TEST(plan.features[2].occurrence_first == 3u);
  BOOST_TEST(plan.features[3].occurrence_first == 7u);
  BOOST_TEST(plan.features[3].bag_first == 6u);
  BOOST_TEST(plan.features[3].begin_first == 9u);
}

BOOST_AUTO_TEST_CASE(a_table_stands_once_in_a_batch) {
  Tables tables;
  check_refused(tables.check({feature(0, {1}), feature(2, {0}), feature(0, {2})}),
                StatusCode::kInvalidArgument, "table 'ads' stands twice in one batch");
  check_ok(tables.check({feature(0, {1}), feature(2, {0})}));
}

BOOST_AUTO_TEST_CASE(fixed_bags_need_no_offsets) {
  Tables tables;
  FeatureInput input;
  input.table = TableId(0);
  const std::vector<int64_t> ids = {1, 2, 3, 4, 5, 6};
  input.ids = ids.data();
  input.ids_count = 6;
  input.bag_size = 3;
  input.bags = 2;
  check_ok(check_batch({&input, 1}, *tables.tiers, tables.plan));
  BOOST_TEST(tables.plan.bag_begin[1] == 3);
  BOOST_TEST(tables.plan.bag_begin[2] == 6);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(table_config)

BOOST_AUTO_TEST_CASE(a_configuration_that_cannot_be_is_refused) {
  const auto refused = [](const EngineConfig& config, StatusCode code, const char* part) {
    const auto tiers = Tiers::create(config);
    BOOST_TEST((tiers.status().code() == code));
    BOOST_TEST(contains(tiers.status().message(), part), tiers.status().message());
  };
  EngineConfig config;
  config.tables = {make_table("a", 1000, 0)};
  refused(config, StatusCode::kInvalidArgument, "table 'a': embedding_dim 0");
  config.tables = {make_table("a", (uint64_t{1} << 40) + 1, 4)};
  refused(config, StatusCode::kInvalidArgument, "table 'a': 1099511627777 rows");
  config.tables = {make_table("a", uint64_t{1} << 33, 4)};
  refused(config, StatusCode::kInvalidArgument, "8589934592 rows in dram");
  config.tables = {make_table("a", 1000, 4)};
  config.dram_bytes = 15999;
  refused(config, StatusCode::kBudgetExceeded, "need 16000 bytes of dram, the budget is 15999");
  const TempDirectory directory;
  config.ssd_path = directory / "store";
  config.policy = "belady";
  refused(config, StatusCode::kInvalidArgument, "unknown eviction policy 'belady'");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
