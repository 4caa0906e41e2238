// Planner and Mover against a plain map: random schedules of batches in flight, announced or not,
// updates, failed fills, shrinking limits, reclaiming and reopening with other shares, on budgets
// of a few rows.
//
// After every step all invariants hold and every row read is bit-equal to the model. A failure
// names the seed that replays it.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

struct Flight {
  std::vector<Feature> features;
  Plan plan;
};

class Lab {
 public:
  Lab(Random& random, EngineConfig engine_config)
      : random_(random), config_(std::move(engine_config)) {
    config_.ssd_path = directory_ / "store";
    open(false);
  }

  void open(bool resume) {
    config_.ssd_resume = resume;
    if (planner_ != nullptr) piggybacked_rows_ += planner_->stats().piggybacked_rows;
    announced_.clear();
    planner_.reset();
    mover_.reset();
    tiers_.reset();
    tiers_ = make_with_shares<Tiers>(random_, config_);
    for (const LayoutDemand& demand : tiers_->demands())
      shares_ += demand.share > 0 && !tiers_->every_row_fits();
    mover_ = std::make_unique<Mover>(*tiers_);
    // Some schedules pass the place where the numbers of marks start again.
    const uint32_t mark_first = random_.one_in(2) ? 1 : UINT32_MAX - random_.below(2000);
    hbm_ = std::make_unique<HbmPlanner>(*tiers_);
    planner_ = std::make_unique<Planner>(*tiers_, *mover_, *hbm_, mark_first);
  }

  void step() {
    switch (random_.below(12)) {
      case 0:
      case 1:
      case 2:
      case 3: plan(); break;
      case 4:
      case 5: pool(); break;
      case 6:
      case 7: finish(); break;
      case 8: shrink(); break;
      case 9: reclaim(); break;
      case 10:
        if (random_.one_in(4)) checkpoint();
        break;
      default:
        if (random_.one_in(20)) reopen();
    }
    check_invariants(*tiers_);
    check_rows();
  }

  void update_every_row() {
    for (uint32_t t = 0; t < config_.tables.size(); ++t) {
      for (uint64_t id = 0; id < config_.tables[t].rows; ++id) {
        Flight flight;
        flight.features.resize(1);
        flight.features[0].table = t;
        flight.features[0].ids = {static_cast<int64_t>(id)};
        check_ok(planner_->plan(inputs_of(flight.features), true, flight.plan, threads_));
        bring(flight);
        update(flight);
        planner_->release(flight.plan);
      }
    }
  }

  void release_all() {
    for (auto& flight : flights_) planner_->release(flight->plan);
    flights_.clear();
    check_invariants(*tiers_);
    BOOST_TEST_REQUIRE(pinned_slots(*tiers_) == 0u);
    check_rows();
  }

  uint64_t shares() const { return shares_; }
  uint64_t piggybacked_rows() const {
    return piggybacked_rows_ + planner_->stats().piggybacked_rows;
  }

 private:
  std::vector<std::byte> expected(TableId table_id, RowId row) {
    const auto found = model_.find(row.value);
    if (found != model_.end()) return found->second;
    std::vector<std::byte> bytes(tiers_->layout_of(table_id).layout.row_bytes());
    tiers_->initialise(tiers_->table(table_id), row, bytes.data());
    return bytes;
  }

  RowId row_of(const Feature& feature, size_t position) {
    return RowId(tiers_->table(TableId(feature.table)).first_row.value +
                 static_cast<uint64_t>(feature.ids[position]));
  }

  // Whether the rows of the batch fit in dram when nothing else is there but a slot a layout.
  bool fits_alone(const std::vector<Feature>& features) {
    std::vector<std::set<RowId>> rows(tiers_->layouts());
    for (const Feature& feature : features) {
      const LayoutId layout = tiers_->table(TableId(feature.table)).layout;
      for (size_t i = 0; i < feature.ids.size(); ++i)
        if (feature.bag_of(i) >= 0) rows[layout.value].insert(row_of(feature, i));
    }
    std::vector<uint32_t> slots;
    for (const auto& layout : rows)
      slots.push_back(static_cast<uint32_t>(std::max<size_t>(layout.size(), 1)));
    return dram_bytes_for_slots(tiers_->demands(), slots, tiers_->metadata_bytes(), true) <=
           config_.dram_bytes;
  }

  std::unique_ptr<Flight> any_batch() {
    auto flight = std::make_unique<Flight>();
    flight->features = random_batch(random_, config_, 1 + random_.below(12));
    return flight;
  }

  // One that the lookahead knows, if it is of use; some of these never come.
  std::unique_ptr<Flight> next_batch() {
    Lookahead& lookahead = planner_->lookahead();
    if (!lookahead.is_useful() || random_.one_in(8)) return any_batch();
    while (announced_.size() < 6) {
      auto flight = any_batch();
      flight->plan.window_batch = lookahead.push(inputs_of(flight->features));
      announced_.push_back(std::move(flight));
    }
    if (random_.one_in(10)) {
      lookahead.finish(announced_.front()->plan.window_batch);
      announced_.pop_front();
    }
    auto flight = std::move(announced_.front());
    announced_.pop_front();
    return flight;
  }

  void plan() {
    auto flight = next_batch();
    const auto inputs = inputs_of(flight->features);
    const Status planned = planner_->plan(inputs, random_.one_in(2), flight->plan, threads_);
    if (!planned) {
      planner_->release(flight->plan);
      BOOST_TEST_REQUIRE((planned.code() == StatusCode::kBudgetExceeded), planned.message());
      BOOST_TEST_REQUIRE(!fits_alone(flight->features),
                         "refused although it fits: " << planned.message());
      return;
    }
    if (random_.one_in(10)) {  // as if the reads had failed
      planner_->abandon(flight->plan);
      planner_->release(flight->plan);
      return;
    }
    bring(*flight);
    if (flight->plan.will_update) check_csr(*flight);
    flights_.push_back(std::move(flight));
  }

  void bring(Flight& flight) {
    check_ok(fill(*mover_, flight.plan, threads_));
    planner_->ready(flight.plan);
    check_slots(flight);
  }

  // Every occurrence's slot holds its row, with the bytes of the model.
  void check_slots(Flight& flight) {
    for (size_t f = 0; f < flight.features.size(); ++f) {
      const Feature& feature = flight.features[f];
      LayoutTier& tier = tiers_->layout_of(TableId(feature.table));
      const uint32_t* slots =
          flight.plan.occurrence_slots.data() + flight.plan.features[f].occurrence_first;
      for (size_t i = 0; i < feature.ids.size(); ++i) {
        if (feature.bag_of(i) < 0) {
          BOOST_TEST_REQUIRE(slots[i] == kPaddingSlot);
          continue;
        }
        const RowId row = row_of(feature, i);
        const auto value = expected(TableId(feature.table), row);
        BOOST_TEST_REQUIRE((tier.directory[SlotIndex(slots[i])].row == row));
        BOOST_TEST_REQUIRE(
            std::memcmp(tier.data(SlotIndex(slots[i])), value.data(), value.size()) == 0,
            "row " << row.value << " in slot " << slots[i] << " has other bytes");
      }
    }
  }

  // The CSR lists, row by row, exactly the occurrences that are pooled, in input order.
  void check_csr(const Flight& flight) {
    const Plan& plan = flight.plan;
    for (size_t f = 0; f < flight.features.size(); ++f) {
      const Feature& feature = flight.features[f];
      check_occurrences(*tiers_, feature, plan, f);
    }
  }

  Flight* pick() {
    if (flights_.empty()) return nullptr;
    std::swap(flights_[random_.below(flights_.size())], flights_.back());
    return flights_.back().get();
  }

  void pool() {
    Flight* flight = pick();
    if (flight == nullptr || flight->plan.state != Plan::State::kReady) return;
    check_slots(*flight);
    if (flight->plan.will_update) {
      planner_->wait(flight->plan);
    } else {
      planner_->release(flight->plan);
      flights_.pop_back();
    }
  }

  // Backward of a batch, or its handle is dropped.
  void finish() {
    Flight* flight = pick();
    if (flight == nullptr) return;
    Plan& plan = flight->plan;
    if (plan.will_update && plan.state == Plan::State::kRevoked) {
      const Status again = planner_->reacquire(plan);
      BOOST_TEST_REQUIRE(again.is_ok(), again.message());
      bring(*flight);
      planner_->wait(plan);
    }
    if (plan.state == Plan::State::kWaiting && !random_.one_in(8)) update(*flight);
    planner_->release(plan);
    flights_.pop_back();
  }

  void update(Flight& flight) {
    check_slots(flight);
    for (const UniqueRange& range : flight.plan.acquired.ranges) {
      LayoutTier& tier = tiers_->layout(range.layout);
      for (size_t u = range.first; u < range.first + range.count; ++u) {
        const SlotIndex s = flight.plan.acquired.slots[u];
        const RowId row = flight.plan.acquired.rows[u];
        const auto value = test::row_value(row.value, ++version_, tier.layout.row_bytes());
        tiers_->mark_dirty(range.layout, tier.directory[s]);
        std::memcpy(tier.data(s), value.data(), value.size());
        model_[row.value] = value;
      }
    }
  }

  void shrink() {
    const LayoutId layout(static_cast<uint16_t>(random_.below(tiers_->layouts())));
    const uint32_t limit = tiers_->layout(layout).directory.limit();
    if (tiers_->layout(layout).policy == nullptr || limit == 0) return;
    check_ok(mover_->set_limit(layout, static_cast<uint32_t>(random_.below(limit + 1))));
    for (auto& flight : flights_)
      if (flight->plan.state == Plan::State::kReady) check_slots(*flight);
  }

  void reclaim() {
    const uint32_t chunks = random_.one_in(2) ? tiers_->log()->take_chunks_owed(*tiers_)
                                              : static_cast<uint32_t>(1 + random_.below(3));
    check_ok(tiers_->log()->reclaim(*tiers_, chunks));
  }

  void checkpoint() {
    check_ok(mover_->clean());
    check_ok(tiers_->log()->checkpoint(*tiers_, tiers_->checkpoint_metadata()));
  }

  void reopen() {
    release_all();
    checkpoint();
    open(true);
  }

  void check_rows() {
    for (uint32_t t = 0; t < config_.tables.size(); ++t) {
      const uint64_t count = config_.tables[t].rows;
      if (count == 0) continue;
      const LayoutTier& tier = tiers_->layout_of(TableId(t));
      std::vector<RowId> rows;
      for (int i = 0; i < 6; ++i)
        rows.push_back(RowId(tiers_->table(TableId(t)).first_row.value + random_.below(count)));
      const uint32_t row_bytes = tier.layout.row_bytes();
      std::vector<std::byte> bytes(rows.size() * row_bytes);
      check_ok(mover_->copy_rows(TableId(t), rows, bytes.data()));
      for (size_t i = 0; i < rows.size(); ++i)
        BOOST_TEST_REQUIRE(std::memcmp(bytes.data() + i * row_bytes,
                                       expected(TableId(t), rows[i]).data(), row_bytes) == 0,
                           "row " << rows[i].value << " differs");
    }
  }

  Random& random_;
  EngineConfig config_;
  TempDirectory directory_;
  ThreadPool threads_{1};
  std::unique_ptr<Tiers> tiers_;
  std::unique_ptr<Mover> mover_;
  std::unique_ptr<HbmPlanner> hbm_;
  std::unique_ptr<Planner> planner_;
  std::map<uint64_t, std::vector<std::byte>> model_;  // by row of the engine
  std::vector<std::unique_ptr<Flight>> flights_;
  std::deque<std::unique_ptr<Flight>> announced_;
  uint64_t piggybacked_rows_ = 0;
  uint64_t shares_ = 0;  // of tables, in all openings
  uint64_t version_ = 0;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_tiers_model)

BOOST_AUTO_TEST_CASE(random_schedules_equal_the_model) {
  uint64_t shares = 0;
  for (uint64_t seed = 1; seed <= test::schedules(150); ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      EngineConfig config =
          random_config(random, random.one_in(2) ? OptimizerKind::kAdagrad : OptimizerKind::kNone);
      config.dram_bytes = 1 + random.below(all_rows_bytes(config));
      if (random.one_in(3)) config.dram_bytes = 1 + config.dram_bytes / 8;
      Lab lab(random, config);
      for (int i = 0; i < 150; ++i) lab.step();
      lab.release_all();
      shares += lab.shares();
    }
  }
  BOOST_TEST(shares > test::schedules(50));
}

// All rows are on ssd, many in a block, so that some come with those of other batches.
BOOST_AUTO_TEST_CASE(announced_batches_share_blocks) {
  uint64_t piggybacked_rows = 0;
  for (uint64_t seed = 1; seed <= test::schedules(60); ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      EngineConfig config = random_config(random, OptimizerKind::kAdagrad);
      config.tables.push_back(make_table("larger", 400, 8));
      config.policy = "lookahead";
      config.dram_bytes = all_rows_bytes(config) / (2 + random.below(6));
      Lab lab(random, config);
      lab.update_every_row();
      for (int i = 0; i < 150; ++i) lab.step();
      lab.release_all();
      piggybacked_rows += lab.piggybacked_rows();
    }
  }
  BOOST_TEST(piggybacked_rows > test::schedules(1000));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
