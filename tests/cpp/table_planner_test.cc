// Planner and Mover in situations that must be right: budgets of exactly one batch or one slot,
// room between layouts, revoked and abandoned plans, refused batches, odd inputs.
#include <boost/test/unit_test.hpp>
#include <memory>
#include <numeric>
#include <set>
#include <vector>

#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

// Tiers of float tables without optimizer state, each with a dim (and so a layout) of its own, or
// shared; a budget counted in bytes of rows.
struct Bench {
  TempDirectory directory;
  std::unique_ptr<Tiers> tiers;
  std::unique_ptr<Mover> mover;
  std::unique_ptr<HbmPlanner> hbm;
  std::unique_ptr<Planner> planner;
  ThreadPool threads{1};

  Bench(const std::vector<TableConfig>& tables, uint64_t dram_bytes, const char* policy = "lru") {
    EngineConfig config;
    config.tables = tables;
    config.dram_bytes = dram_bytes;
    config.policy = policy;
    config.ssd_path = directory / "store";
    auto created = Tiers::create(config);
    check_ok(created.status());
    tiers = created.take();
    mover = std::make_unique<Mover>(*tiers);
    hbm = std::make_unique<HbmPlanner>(*tiers);
    planner = std::make_unique<Planner>(*tiers, *mover, *hbm);
  }
  LayoutTier& tier(uint32_t table) { return tiers->layout_of(TableId(table)); }
  Status plan(const std::vector<Feature>& features, Plan& plan, bool will_update = true) {
    const Status planned = planner->plan(inputs_of(features), will_update, plan, threads);
    if (planned) check_ok(fill(plan));
    check_invariants(*tiers);
    return planned;
  }
  Status fill(Plan& plan) {
    Status filled = testing::fill(*mover, plan, threads);
    plan.state = Plan::State::kReady;
    return filled;
  }
  // A batch that comes and goes.
  void pass(const std::vector<Feature>& features) {
    Plan done;
    check_ok(plan(features, done));
    planner->release(done);
  }
  float& first_float(const Plan& plan, uint32_t table, size_t occurrence) {
    return *reinterpret_cast<float*>(
        tier(table).data(SlotIndex(plan.occurrence_slots[occurrence])));
  }
};

Feature ids_of(uint32_t table, std::vector<int64_t> ids) {
  Feature feature;
  feature.table = table;
  feature.ids = std::move(ids);
  return feature;
}

Feature ids_from(uint32_t table, int64_t first, size_t count) {
  std::vector<int64_t> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids_of(table, ids);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(table_planner)

BOOST_AUTO_TEST_CASE(a_budget_of_exactly_one_batch) {
  Bench bench({make_table("a", 100, 4)}, 10 * 16);
  BOOST_TEST(bench.tier(0).directory.limit() == 10u);
  for (int64_t first : {0, 5, 50, 90}) bench.pass({ids_from(0, first, 10)});
  Plan plan;
  const Status refused = bench.plan({ids_from(0, 20, 11)}, plan);
  BOOST_TEST((refused.code() == StatusCode::kBudgetExceeded));
  BOOST_TEST(contains(refused.message(), "table 'a'"), refused.message());
  BOOST_TEST(contains(refused.message(), "11 rows"), refused.message());
  BOOST_TEST(contains(refused.message(), "176 bytes"), refused.message());
  BOOST_TEST(bench.tier(0).directory.used() == 10u);  // nothing has left for it
  BOOST_TEST(bench.tier(0).directory.pinned() == 0u);
}

BOOST_AUTO_TEST_CASE(a_budget_below_one_slot_still_runs_row_by_row) {
  Bench bench({make_table("a", 100, 4), make_table("b", 3, 9)}, 1);
  for (int64_t id = 0; id < 20; ++id) bench.pass({ids_of(0, {id, id, id})});
  bench.pass({ids_of(1, {2}), ids_of(0, {99})});
  Plan plan;
  BOOST_TEST((bench.plan({ids_of(0, {1, 2})}, plan).code() == StatusCode::kBudgetExceeded));
}

BOOST_AUTO_TEST_CASE(layouts_lend_each_other_room) {
  // 120 bytes of each: 15 rows of 8, 5 rows of 24.
  Bench bench({make_table("a", 15, 2), make_table("b", 5, 6)}, 120);
  bench.pass({ids_from(0, 0, 12)});                    // 96 + one slot of b
  bench.pass({ids_from(1, 0, 4)});                     // 96 + three slots of a
  bench.pass({ids_from(0, 0, 3), ids_from(1, 0, 4)});  // all 120 bytes
  bench.pass({ids_from(0, 3, 6), ids_from(1, 1, 3)});  // 48 + 72
  bench.pass({ids_from(1, 3, 2), ids_from(0, 6, 9)});  // 48 + 72
}

// A row that this very batch uses stands in the last slot of the layout that should lend room.
BOOST_AUTO_TEST_CASE(a_hit_in_the_last_slot_does_not_refuse_a_batch_that_fits) {
  Bench bench({make_table("a", 100, 2), make_table("b", 100, 2 * 3)}, 20 * 8 + 2 * 24);
  bench.pass({ids_from(0, 0, 23)});
  const SlotIndex last(bench.tier(0).directory.ever_used() - 1);
  const auto id = static_cast<int64_t>(bench.tier(0).directory[last].row.value);
  bench.pass({ids_of(0, {id}), ids_from(1, 0, 8)});  // 8 + 192 of 208 bytes
}

TableConfig with_share(TableConfig table, double share) {
  table.dram_share = share;
  return table;
}

BOOST_AUTO_TEST_CASE(a_share_is_not_evicted_by_tables_of_its_row_layout) {
  Bench bench({make_table("a", 1000, 4), with_share(make_table("b", 10, 4), 1)}, 20 * 16);
  BOOST_TEST((bench.tier(0).layout == bench.tier(1).layout));
  BOOST_TEST(bench.tier(0).directory.limit() == 10u);
  BOOST_TEST(bench.tier(1).directory.limit() == 10u);
  bench.pass({ids_from(1, 0, 10)});
  for (int64_t first = 0; first < 1000; first += 10) bench.pass({ids_from(0, first, 10)});
  BOOST_TEST(bench.tier(1).directory.used() == 10u);
  BOOST_TEST(bench.mover->stats().fills_initialised == 1010u);
  bench.pass({ids_from(1, 0, 10), ids_from(0, 990, 10)});
  BOOST_TEST(bench.planner->stats().plans_revoked == 0u);
  BOOST_TEST(bench.mover->stats().fills_initialised == 1010u);
}

// Plans that are not at work lose their slots before a share does; a batch that may not take those
// is refused.
BOOST_AUTO_TEST_CASE(a_share_gives_way_last) {
  Bench bench({make_table("a", 1000, 4), with_share(make_table("b", 10, 4), 1)}, 20 * 16);
  bench.pass({ids_from(1, 0, 10)});
  Plan first;
  check_ok(bench.plan({ids_from(0, 0, 6)}, first));
  bench.planner->wait(first);
  Plan ahead;
  const std::vector<Feature> next = {ids_from(0, 20, 6)};
  BOOST_TEST(
      (bench.planner->plan(inputs_of(next), true, ahead, bench.threads, Planner::Pressure::kRefuse)
           .code() == StatusCode::kBudgetExceeded));
  BOOST_TEST((first.state == Plan::State::kWaiting));
  bench.pass(next);
  BOOST_TEST((first.state == Plan::State::kRevoked));
  BOOST_TEST(bench.tier(1).directory.used() == 10u);
  const std::vector<Feature> large = {ids_from(0, 40, 15)};
  Plan too_large;
  BOOST_TEST(
      (bench.planner
           ->plan(inputs_of(large), true, too_large, bench.threads, Planner::Pressure::kRefuse)
           .code() == StatusCode::kBudgetExceeded));
  BOOST_TEST(bench.tier(1).directory.used() == 10u);
  bench.pass(large);
  BOOST_TEST(bench.tier(1).directory.limit() <= 5u);
  bench.pass({ids_from(1, 0, 10), ids_from(0, 0, 10)});  // the whole budget
  BOOST_TEST(bench.tier(1).directory.limit() == 10u);
  bench.planner->release(first);
}

BOOST_AUTO_TEST_CASE(a_row_beside_a_plan_at_work_may_take_a_slot_of_a_share) {
  Bench bench({make_table("a", 1000, 4), with_share(make_table("b", 10, 4), 1)}, 20 * 16);
  bench.pass({ids_from(1, 0, 10)});
  Plan at_work;
  check_ok(bench.plan({ids_from(0, 0, 10)}, at_work));
  check_ok(bench.planner->make_way(TableId(0)));
  BOOST_TEST(bench.tier(0).directory.limit() == 11u);
  BOOST_TEST(bench.tier(1).directory.limit() < 10u);
  check_invariants(*bench.tiers);
  bench.planner->release(at_work);
}

BOOST_AUTO_TEST_CASE(a_batch_may_need_more_of_a_table_than_its_share) {
  Bench bench({make_table("a", 100, 4), with_share(make_table("b", 100, 4), 0.05),
               with_share(make_table("c", 10, 4), 1)},
              25 * 16);
  BOOST_TEST(bench.tier(1).directory.limit() == 5u);
  bench.pass({ids_from(2, 0, 10), ids_from(0, 0, 10)});
  bench.pass({ids_from(1, 0, 14)});  // nine of a's
  BOOST_TEST(bench.tier(1).directory.limit() == 14u);
  BOOST_TEST(bench.tier(2).directory.used() == 10u);
  bench.pass({ids_from(0, 0, 10)});  // and back
  BOOST_TEST(bench.tier(1).directory.limit() == 5u);
  BOOST_TEST(bench.tier(2).directory.used() == 10u);
  bench.pass({ids_from(1, 20, 23)});  // c's, too
  BOOST_TEST(bench.tier(2).directory.limit() == 1u);
  Plan plan;
  BOOST_TEST((bench.plan({ids_from(1, 0, 24)}, plan).code() == StatusCode::kBudgetExceeded));
}

BOOST_AUTO_TEST_CASE(a_layout_without_rows_does_not_stop_the_others) {
  Bench bench({make_table("none", 0, 3), make_table("a", 15, 2), make_table("b", 5, 6)}, 120);
  bench.pass({ids_of(0, {}), ids_from(1, 0, 12)});
  bench.pass({ids_from(2, 0, 4), ids_of(0, {})});
}

BOOST_AUTO_TEST_CASE(missing_rows_of_two_layouts_fill_the_budget_together) {
  for (const char* policy : {"lru", "lfu"}) {
    Bench bench({make_table("a", 100, 2), make_table("b", 100, 6)}, 10 * 8 + 10 * 24, policy);
    bench.pass({ids_from(0, 0, 30)});
    bench.pass({ids_from(0, 50, 10), ids_from(1, 0, 10)});
    bench.pass({ids_from(1, 50, 12)});
    bench.pass({ids_from(0, 70, 10), ids_from(1, 20, 10)});
  }
}

BOOST_AUTO_TEST_CASE(a_waiting_plan_gives_way_and_comes_back_with_new_values) {
  Bench bench({make_table("a", 100, 4)}, 8 * 16);
  Plan first, second;
  check_ok(bench.plan({ids_from(0, 0, 6)}, first));
  bench.planner->wait(first);
  check_ok(bench.plan({ids_from(0, 4, 6)}, second));  // rows 4 and 5 are in both
  BOOST_TEST((first.state == Plan::State::kRevoked));
  BOOST_TEST(bench.planner->stats().plans_revoked == 1u);
  LayoutTier& tier = bench.tier(0);
  for (size_t i = 0; i < 6; ++i) {
    bench.tiers->mark_dirty(LayoutId(0), tier.directory[SlotIndex(second.occurrence_slots[i])]);
    bench.first_float(second, 0, i) = 100.0f + static_cast<float>(i);
  }
  bench.planner->release(second);
  check_ok(bench.planner->reacquire(first));
  check_ok(bench.fill(first));
  check_invariants(*bench.tiers);
  BOOST_TEST(bench.first_float(first, 0, 4) == 100.0f);
  BOOST_TEST(bench.first_float(first, 0, 5) == 101.0f);
  for (uint64_t i = 0; i < 6; ++i)
    BOOST_TEST((tier.directory[SlotIndex(first.occurrence_slots[i])].row == RowId(i)));
  bench.planner->wait(first);
  bench.planner->release(first);
  BOOST_TEST(tier.directory.pinned() == 0u);
}

BOOST_AUTO_TEST_CASE(a_revoked_plan_can_be_dropped) {
  Bench bench({make_table("a", 100, 4)}, 8 * 16);
  Plan first, second;
  check_ok(bench.plan({ids_from(0, 0, 8)}, first));
  bench.planner->wait(first);
  check_ok(bench.plan({ids_from(0, 8, 8)}, second));
  bench.planner->release(first);
  bench.planner->release(first);  // again is harmless
  bench.planner->release(second);
  BOOST_TEST(bench.tier(0).directory.pinned() == 0u);
  check_invariants(*bench.tiers);
}

BOOST_AUTO_TEST_CASE(a_plan_revoked_twice_keeps_its_rows) {
  Bench bench({make_table("a", 100, 4)}, 8 * 16);
  Plan first;
  check_ok(bench.plan({ids_of(0, {3, 1, 3, 7, 1})}, first));
  bench.planner->wait(first);
  for (int64_t begin : {10, 30}) {
    bench.pass({ids_from(0, begin, 8)});
    BOOST_TEST((first.state == Plan::State::kRevoked));
    check_ok(bench.planner->reacquire(first));
    check_ok(bench.fill(first));
    bench.planner->wait(first);
    const uint64_t rows[] = {3, 1, 3, 7, 1};
    for (size_t i = 0; i < 5; ++i)
      BOOST_TEST(
          (bench.tier(0).directory[SlotIndex(first.occurrence_slots[i])].row == RowId(rows[i])));
  }
  bench.planner->release(first);
}

// The fill failed: every row is where it was, and the slots are free.
BOOST_AUTO_TEST_CASE(an_abandoned_plan_changes_nothing) {
  Bench bench({make_table("a", 100, 4), make_table("b", 100, 9)}, 10 * 16 + 10 * 36);
  bench.pass({ids_from(0, 0, 5), ids_from(1, 0, 5)});
  Plan plan;
  const std::vector<Feature> batch = {ids_from(0, 3, 5), ids_from(1, 3, 5)};
  check_ok(bench.planner->plan(inputs_of(batch), true, plan, bench.threads));
  const uint32_t used = bench.tier(0).directory.used();
  bench.planner->abandon(plan);
  check_invariants(*bench.tiers);
  BOOST_TEST(pinned_slots(*bench.tiers) == 0u);
  BOOST_TEST(bench.tier(0).directory.used() == used - 3);
  bench.planner->release(plan);  // the handle goes, as always
  BOOST_TEST(bench.tiers->index().get(RowId(6)).is_never_written());
  bench.pass(batch);
}

// Its hits are parked and its fills are freed; moving rows between slots must not make two entries
// for one slot out of that.
BOOST_AUTO_TEST_CASE(an_abandoned_plan_leaves_no_twin_in_the_queue) {
  for (const char* policy : {"lru", "lfu"}) {
    Bench bench({make_table("a", 100, 4)}, 4 * 16, policy);
    bench.pass({ids_from(0, 10, 4)});
    LayoutTier& tier = bench.tier(0);
    const auto last = static_cast<int64_t>(tier.directory[SlotIndex(3)].row.value);
    Plan plan;
    const std::vector<Feature> batch = {ids_of(0, {last, 50})};
    check_ok(bench.planner->plan(inputs_of(batch), true, plan, bench.threads));
    bench.planner->abandon(plan);
    check_ok(bench.mover->set_limit(LayoutId(0), 3));
    check_invariants(*bench.tiers);
    std::vector<SlotIndex> victims;
    tier.policy->pop_victims(10, victims);
    const std::set<SlotIndex> distinct(victims.begin(), victims.end());
    BOOST_TEST(distinct.size() == victims.size(), policy);
    BOOST_TEST(victims.size() == tier.directory.used(), policy);
  }
}

BOOST_AUTO_TEST_CASE(a_refused_batch_changes_nothing) {
  Bench bench({make_table("a", 100, 4), make_table("b", 100, 8)}, 4 * 16 + 4 * 32);
  bench.pass({ids_from(0, 0, 3), ids_from(1, 0, 3)});
  const auto used = [&] { return bench.tier(0).directory.used() + bench.tier(1).directory.used(); };
  const uint32_t before = used();
  Plan plan;
  const std::vector<std::vector<Feature>> batches = {
      {ids_from(0, 0, 3), ids_from(1, 0, 50)},
      {ids_of(0, {1, 2}), ids_of(1, {5, 100})},
      {ids_of(0, {1, -1})},
  };
  for (const auto& batch : batches) BOOST_TEST(!bench.plan(batch, plan).is_ok());
  BOOST_TEST(used() == before);
  BOOST_TEST(pinned_slots(*bench.tiers) == 0u);
  BOOST_TEST(bench.tiers->index().get(RowId(140)).is_never_written());
}

BOOST_AUTO_TEST_CASE(empty_batches_empty_features_and_padding_alone) {
  Bench bench({make_table("a", 1, 4), make_table("none", 0, 4), make_table("b", 9, 4)}, 4 * 16);
  Plan plan;
  check_ok(bench.plan({}, plan));
  BOOST_TEST(plan.occurrences == 0u);
  bench.planner->release(plan);
  Feature padded = ids_of(2, {4, 4, 4});
  padded.padding_id = 4;
  check_ok(bench.plan({ids_of(1, {}), padded, ids_of(0, {0, 0})}, plan));
  BOOST_TEST(plan.acquired.uniques == 1u);
  BOOST_TEST(plan.lookups == 2u);
  BOOST_TEST((bench.tiers->index().get(RowId(5)).is_never_written()));  // never fetched
  bench.planner->release(plan);
}

BOOST_AUTO_TEST_CASE(ids_behind_the_last_bag_are_not_fetched) {
  Bench bench({make_table("a", 50, 4)}, 4 * 16);
  Feature feature = ids_from(0, 0, 40);
  feature.offsets = {0, 2, 3};
  feature.include_last_offset = true;
  Plan plan;
  check_ok(bench.plan({feature}, plan));
  BOOST_TEST(plan.acquired.uniques == 3u);
  BOOST_TEST(plan.bags == 2u);
  for (size_t i = 3; i < 40; ++i) BOOST_TEST(plan.occurrence_slots[i] == kPaddingSlot);
  bench.planner->release(plan);
}

BOOST_AUTO_TEST_CASE(tables_of_one_layout_share_its_slots) {
  Bench bench({make_table("a", 50, 4), make_table("b", 50, 4)}, 6 * 16);
  BOOST_TEST(bench.tiers->layouts() == 1u);
  bench.pass({ids_from(0, 0, 6)});
  bench.pass({ids_from(1, 0, 6)});
  Plan plan;
  check_ok(bench.plan({ids_from(1, 0, 3), ids_from(0, 0, 3)}, plan));
  for (size_t i = 0; i < 3; ++i) {
    const SlotIndex b(plan.occurrence_slots[i]);
    const SlotIndex a(plan.occurrence_slots[3 + i]);
    BOOST_TEST((bench.tier(0).directory[b].row == RowId(50 + i)));
    BOOST_TEST((bench.tier(0).directory[a].row == RowId(i)));
  }
  bench.planner->release(plan);
}

BOOST_AUTO_TEST_CASE(shrinking_stops_at_pinned_slots_and_keeps_rows) {
  Bench bench({make_table("a", 100, 4)}, 20 * 16);
  bench.pass({ids_from(0, 0, 20)});
  Plan plan;
  check_ok(bench.plan({ids_of(0, {5, 7})}, plan));
  check_ok(bench.mover->set_limit(LayoutId(0), 1));
  check_invariants(*bench.tiers);
  SlotDirectory& directory = bench.tier(0).directory;
  uint32_t pinned_end = 0;
  for (size_t i = 0; i < 2; ++i) pinned_end = std::max(pinned_end, plan.occurrence_slots[i] + 1);
  BOOST_TEST(directory.limit() == pinned_end);
  for (size_t i = 0; i < 2; ++i)
    BOOST_TEST((directory[SlotIndex(plan.occurrence_slots[i])].row == RowId(i == 0 ? 5 : 7)));
  bench.planner->release(plan);
  check_ok(bench.mover->set_limit(LayoutId(0), 1));
  BOOST_TEST(directory.limit() == 1u);
  check_invariants(*bench.tiers);
  check_ok(bench.mover->set_limit(LayoutId(0), 20));
  bench.pass({ids_from(0, 40, 20)});
}

// Rows of one block of the log: those that an announced batch will use come with the first, in
// place of rows that are used later or not at all.
BOOST_AUTO_TEST_CASE(rows_of_a_block_come_together) {
  for (const bool fails : {false, true}) {
    Bench bench({make_table("a", 40, 4)}, 8 * 16, "lookahead");
    for (int64_t first = 0; first < 40; first += 8) {
      Plan plan;
      check_ok(bench.plan({ids_from(0, first, 8)}, plan));
      for (uint32_t s = 0; s < 8; ++s)
        bench.tiers->mark_dirty(LayoutId(0), bench.tier(0).directory[SlotIndex(s)]);
      bench.planner->release(plan);
    }
    check_ok(bench.mover->clean());  // rows 32 to 39 are in dram, the others on ssd
    const std::vector<std::vector<Feature>> batches = {{ids_of(0, {1, 2})},
                                                       {ids_of(0, {3, 32, 33})},
                                                       {ids_of(0, {4, 34, 35, 36})},
                                                       {ids_of(0, {5, 6})},
                                                       {ids_of(0, {37, 38})}};
    std::vector<Plan> plans(batches.size());
    for (size_t b = 0; b < batches.size(); ++b)
      plans[b].window_batch = bench.planner->lookahead().push(inputs_of(batches[b]));
    // Rows 39 and 37 leave for 1 and 2, row 38 for 3; the next to leave is used before row 4 is.
    const auto plan = [&](size_t b) {
      check_ok(bench.planner->plan(inputs_of(batches[b]), true, plans[b], bench.threads));
      check_invariants(*bench.tiers);
    };
    plan(0);
    BOOST_TEST_REQUIRE(plans[0].piggybacked.size() == 1u);
    BOOST_TEST((plans[0].piggybacked[0].row == RowId(3)));
    BOOST_TEST(bench.tier(0).directory.pinned() == 3u);
    for (uint64_t row : {37, 38, 39}) BOOST_TEST(bench.tiers->index().get(RowId(row)).is_block());
    if (fails) {
      bench.planner->abandon(plans[0]);
      BOOST_TEST(bench.tiers->index().get(RowId(3)).is_block());
      BOOST_TEST(bench.tier(0).directory.used() == 5u);
    } else {
      check_ok(bench.fill(plans[0]));
      bench.planner->ready(plans[0]);
      BOOST_TEST(bench.tier(0).directory.pinned() == 2u);
    }
    check_invariants(*bench.tiers);
    bench.planner->release(plans[0]);
    BOOST_TEST(bench.tier(0).directory.pinned() == 0u);
    plan(1);
    BOOST_TEST(plans[1].acquired.fills.size() == (fails ? 1u : 0u));
    check_ok(bench.fill(plans[1]));
    bench.planner->ready(plans[1]);
    bench.planner->release(plans[1]);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
