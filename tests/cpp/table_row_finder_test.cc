// RowFinder on batches that are cut into parts: large features, few and many distinct rows,
// padding, rows in dram and not, any number of threads.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <memory>
#include <vector>

#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

struct Bench {
  TempDirectory directory;
  std::unique_ptr<Tiers> tiers;
  std::unique_ptr<Mover> mover;
  std::unique_ptr<HbmPlanner> hbm;
  std::unique_ptr<Planner> planner;
  ThreadPool threads;

  Bench(const std::vector<TableConfig>& tables, uint64_t dram_bytes, size_t thread_count)
      : threads(thread_count) {
    EngineConfig config;
    config.tables = tables;
    config.dram_bytes = dram_bytes;
    config.ssd_path = dram_bytes == 0 ? "" : directory / "store";
    auto created = Tiers::create(config);
    check_ok(created.status());
    tiers = created.take();
    mover = std::make_unique<Mover>(*tiers);
    hbm = std::make_unique<HbmPlanner>(*tiers);
    planner = std::make_unique<Planner>(*tiers, *mover, *hbm);
  }
};

Feature large_feature(Random& random, uint32_t table, uint64_t rows, size_t ids) {
  Feature feature;
  feature.table = table;
  const uint64_t spread = random.one_in(3) ? 1 + random.below(3) : rows;
  for (size_t i = 0; i < ids; ++i)
    feature.ids.push_back(static_cast<int64_t>(random.below(random.one_in(8) ? spread : rows)));
  if (random.one_in(2)) feature.padding_id = feature.ids[random.below(ids)];
  feature.include_last_offset = random.one_in(2);
  feature.offsets.push_back(0);
  while (feature.offsets.size() < 8)
    feature.offsets.push_back(static_cast<int64_t>(random.below(ids + 1)));
  std::sort(feature.offsets.begin(), feature.offsets.end());
  return feature;
}

// Every occurrence has its row's slot, every row one slot, and its occurrences in input order.
void check_plan(Tiers& tiers, const std::vector<Feature>& features, const Plan& plan) {
  size_t lookups = 0;
  for (size_t f = 0; f < features.size(); ++f) {
    const Feature& feature = features[f];
    const FeaturePlan& planned = plan.features[f];
    const SlotDirectory& directory = tiers.layout_of(planned.table).directory;
    const uint64_t first_row = tiers.table(planned.table).first_row.value;
    const size_t used = feature.bag_begin(feature.bags());
    for (size_t i = 0; i < feature.ids.size(); ++i) {
      const uint32_t slot = plan.occurrence_slots[planned.occurrence_first + i];
      const bool is_pooled = i < used && feature.ids[i] != feature.padding_id;
      BOOST_TEST_REQUIRE(is_pooled == (slot != kPaddingSlot));
      lookups += is_pooled;
      if (!is_pooled) continue;
      const RowId row(first_row + static_cast<uint64_t>(feature.ids[i]));
      BOOST_TEST_REQUIRE((directory[SlotIndex(slot)].row == row));
    }
    check_occurrences(tiers, feature, plan, f);
  }
  BOOST_TEST(plan.lookups == lookups);
}

void run_batches(uint64_t seed, bool evicting, size_t threads) {
  Random random(seed);
  const std::vector<TableConfig> tables = {make_table("a", 100'000, 4), make_table("b", 300, 4)};
  Bench bench(tables, evicting ? 90'000 * 16 : 0, threads);
  Plan plan;
  for (int batch = 0; batch < 2; ++batch) {
    std::vector<Feature> features;
    features.push_back(large_feature(random, 0, 100'000, 36'000 + random.below(40'000)));
    features.push_back(large_feature(random, 1, 300, 1 + random.below(40'000)));
    check_ok(bench.planner->plan(inputs_of(features), true, plan, bench.threads));
    BOOST_TEST((plan.features[0].ranges > 1) == (evicting || threads > 1));
    check_ok(fill(*bench.mover, plan, bench.threads));
    bench.planner->ready(plan);
    check_plan(*bench.tiers, features, plan);
    bench.planner->release(plan);
    if (evicting) check_invariants(*bench.tiers);
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(table_row_finder)

BOOST_AUTO_TEST_CASE(parts_of_large_features_make_up_the_batch) {
  for (uint64_t seed = 1; seed <= test::schedules(2); ++seed) {
    for (size_t threads : {1, 4}) {
      BOOST_TEST_CONTEXT("seed " << seed << ", threads " << threads) {
        run_batches(seed, false, threads);
        run_batches(seed, true, threads);
      }
    }
  }
}

// What is evicted follows from the order of unique rows: it must not depend on the threads.
BOOST_AUTO_TEST_CASE(the_order_of_rows_that_may_be_evicted_does_not_depend_on_threads) {
  std::vector<std::vector<RowId>> orders;
  for (size_t threads : {1, 2, 3}) {
    Random random(7);
    Bench bench({make_table("a", 100'000, 4)}, 90'000 * 16, threads);
    Plan plan;
    for (int batch = 0; batch < 2; ++batch) {  // rows are missing, then there
      const std::vector<Feature> features = {large_feature(random, 0, 100'000, 70'000)};
      check_ok(bench.planner->plan(inputs_of(features), true, plan, bench.threads));
      check_ok(fill(*bench.mover, plan, bench.threads));
      bench.planner->release(plan);
      std::vector<RowId> order;
      for (const UniqueRange& range : plan.acquired.ranges) {
        for (size_t u = 0; u < range.count; ++u)
          order.push_back(plan.acquired.rows[range.first + u]);
      }
      orders.push_back(std::move(order));
    }
  }
  for (size_t i = 2; i < orders.size(); ++i) BOOST_TEST((orders[i] == orders[i - 2]));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
