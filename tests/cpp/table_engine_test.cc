// The Engine as a whole: batches, updates, writes, stores and errors against a model of plain
// floats. All values are small integers, so that every sum is exact and the model needs no kernels.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "table/threads.h"
#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

constexpr Hyperparameters kHyper{.lr = 1};

struct InFlight {
  std::vector<Feature> features;
  Plan* plan = nullptr;
  bool will_update = false;
  bool pooled = false;
};

// A batch that was prefetched.
struct Ahead {
  std::vector<Feature> features;
  bool will_update = false;
};

bool same_batch(const std::vector<Feature>& a, const std::vector<Feature>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.table == y.table && x.ids == y.ids && x.offsets == y.offsets &&
           x.include_last_offset == y.include_last_offset && x.padding_id == y.padding_id;
  });
}

// An engine of float tables with plain SGD, whose rows start as a constant, beside the values that
// they should have.
class Lab {
 public:
  Lab(Random& random, EngineConfig engine_config, bool prefetches)
      : random_(random), config_(std::move(engine_config)), prefetches_(prefetches) {
    config_.ssd_path = directory_ / "store";
    for (size_t t = 0; t < config_.tables.size(); ++t) {
      TableConfig& table = config_.tables[t];
      table.dtype = DType::kF32;
      table.init = {InitSpec::Kind::kConstant, static_cast<float>(t + 1), 0, 0};
      for (uint64_t row = 0; row < table.rows; ++row) {
        const bool zero = static_cast<int64_t>(row) == table.zero_row;
        model_[{t, row}].assign(table.dim, zero ? 0 : static_cast<float>(t + 1));
      }
    }
    open();
  }

  void step() {
    switch (random_.below(prefetches_ ? 15 : 11)) {
      case 0:
      case 1:
      case 2: plan(); break;
      case 3: forward(); break;
      case 4:
      case 5: backward(); break;
      case 6: write_rows(); break;
      case 7: apply_gradients(); break;
      case 8: lookup(); break;
      case 9: rarely(); break;
      case 10: resize(); break;
      default: prefetch();
    }
    // Reading rows waits for what is being fetched.
    if (!prefetches_ || random_.one_in(6)) check_some_rows();
  }

  PrefetchStats finish() {
    if (random_.one_in(2)) finish_resizing();  // of batches in flight, too
    for (InFlight& flight : flights_) engine_->release(*flight.plan);
    flights_.clear();
    check_all_rows();
    if (random_.one_in(2)) engine_->cancel_prefetch(UINT64_MAX);
    const EngineStats stats = engine_->stats();
    BOOST_TEST_REQUIRE(stats.resident_rows <= stats.slots);
    BOOST_TEST_REQUIRE(stats.dirty_rows <= stats.resident_rows);
    return stats.prefetch;
  }

 private:
  using Values = std::vector<float>;
  using Versions = std::map<uint64_t, std::vector<Values>>;  // of rows, oldest first

  void open() {
    config_.dram_bytes = 1 + random_.below(all_rows_bytes(config_) * 5 / 4);
    if (random_.one_in(4)) config_.dram_bytes = 0;
    config_.rows_resized_at_once = 1 + static_cast<uint32_t>(random_.below(20));
    engine_ = make_with_shares<Engine>(random_, config_);
    config_.ssd_resume = true;
  }

  size_t dim(uint32_t table) const { return config_.tables[table].dim; }
  uint32_t any_table() { return static_cast<uint32_t>(random_.below(config_.tables.size())); }
  Values random_values(size_t count) {
    Values values(count);
    for (float& v : values) v = static_cast<float>(random_.below(9)) - 4;
    return values;
  }

  void prefetch() {
    if (random_.one_in(12)) {
      BOOST_TEST_REQUIRE(engine_->cancel_prefetch(UINT64_MAX) == ahead_.size());
      ahead_.clear();
      return;
    }
    Ahead ahead{random_batch(random_, config_, 1 + random_.below(10)), random_.one_in(2)};
    if (ahead.features.empty()) return;
    auto ticket = engine_->announce(inputs_of(ahead.features), ahead.will_update);
    check_ok(ticket.status());
    if (!random_.one_in(3)) engine_->prefetch(ticket.value());
    ahead_.push_back(std::move(ahead));
  }

  std::vector<Feature> next_features(size_t ids_max) {
    if (!ahead_.empty() && !random_.one_in(4))
      return ahead_[random_.one_in(8) ? random_.below(ahead_.size()) : 0].features;
    return random_batch(random_, config_, ids_max);
  }

  // Whether the engine must refuse the batch for another that was prefetched. If it need not, and
  // it is the next one, that is taken.
  bool is_out_of_turn(const std::vector<Feature>& features, bool will_update) {
    const auto shares_a_table = [&](const Ahead& ahead) {
      for (const Feature& a : ahead.features)
        for (const Feature& b : features)
          if (a.table == b.table) return true;
      return false;
    };
    taken_.clear();
    const auto next = std::find_if(ahead_.begin(), ahead_.end(), shares_a_table);
    if (next == ahead_.end()) return false;
    if (same_batch(next->features, features)) {
      taken_ = features;
      ahead_.erase(next);
      return false;
    }
    if (same_batch(failed_, features)) return false;
    return will_update || std::any_of(next, ahead_.end(), [&](const Ahead& ahead) {
             return same_batch(ahead.features, features);
           });
  }

  // It may be tried again.
  void note_failed() {
    if (!taken_.empty()) failed_ = taken_;
  }

  void plan() {
    InFlight flight;
    flight.features = next_features(1 + random_.below(10));
    flight.will_update = random_.one_in(2);
    const auto inputs = inputs_of(flight.features);
    const bool is_refused = is_out_of_turn(flight.features, flight.will_update);
    auto planned = engine_->plan(inputs, flight.will_update);
    if (is_refused) {
      BOOST_TEST_REQUIRE((planned.status().code() == StatusCode::kInvalidArgument));
      BOOST_TEST_REQUIRE(contains(planned.status().message(), "prefetched"));
      return;
    }
    if (!planned) {
      BOOST_TEST_REQUIRE((planned.status().code() == StatusCode::kBudgetExceeded),
                         planned.status().message());
      note_failed();
      return;
    }
    flight.plan = planned.value();
    flights_.push_back(std::move(flight));
  }

  Values pooled(const Feature& feature) {
    Values out(feature.bags() * dim(feature.table), 0);
    for (size_t i = 0; i < feature.ids.size(); ++i) {
      const int64_t bag = feature.bag_of(i);
      if (bag < 0) continue;
      const Values& row = model_[{feature.table, static_cast<uint64_t>(feature.ids[i])}];
      for (size_t c = 0; c < row.size(); ++c)
        out[static_cast<size_t>(bag) * row.size() + c] += row[c];
    }
    return out;
  }

  std::vector<Values> buffers_of(const std::vector<Feature>& features,
                                 std::vector<FeatureForward>& forwards) {
    std::vector<Values> out;
    for (const Feature& feature : features)
      out.emplace_back(feature.bags() * dim(feature.table), -1.0f);
    for (Values& values : out) forwards.push_back({.out = values.data()});
    return out;
  }

  void forward() {
    if (flights_.empty()) return;
    InFlight& flight = flights_[random_.below(flights_.size())];
    if (flight.pooled) return;
    std::vector<FeatureForward> forwards;
    const auto out = buffers_of(flight.features, forwards);
    check_ok(engine_->forward(*flight.plan, forwards));
    for (size_t f = 0; f < out.size(); ++f)
      BOOST_TEST_REQUIRE((out[f] == pooled(flight.features[f])), "forward of feature " << f);
    flight.pooled = true;
  }

  void lookup() {
    const auto features = next_features(6);
    const bool is_refused = is_out_of_turn(features, false);
    std::vector<FeatureForward> forwards;
    const auto out = buffers_of(features, forwards);
    const auto inputs = inputs_of(features);
    const Status done = engine_->lookup(inputs, forwards);
    if (is_refused) {
      BOOST_TEST_REQUIRE((done.code() == StatusCode::kInvalidArgument));
      return;
    }
    if (!done) {
      BOOST_TEST_REQUIRE((done.code() == StatusCode::kBudgetExceeded), done.message());
      note_failed();
      return;
    }
    for (size_t f = 0; f < out.size(); ++f)
      BOOST_TEST_REQUIRE((out[f] == pooled(features[f])), "lookup of feature " << f);
  }

  void backward() {
    if (flights_.empty()) return;
    std::swap(flights_[random_.below(flights_.size())], flights_.back());
    InFlight& flight = flights_.back();
    if (flight.will_update && flight.pooled && !random_.one_in(6)) {
      std::vector<Values> grads;
      std::vector<FeatureBackward> backwards;
      for (const Feature& feature : flight.features)
        grads.push_back(random_values(feature.bags() * dim(feature.table)));
      for (const Values& grad : grads) backwards.push_back({.grad = grad.data()});
      const Status done = engine_->backward(*flight.plan, backwards, kHyper, true);
      BOOST_TEST_REQUIRE(done.is_ok(), done.message());  // whoever holds its slots gives way
      for (size_t f = 0; f < grads.size(); ++f) descend(flight.features[f], grads[f]);
    }
    engine_->release(*flight.plan);
    flights_.pop_back();
  }

  void descend(const Feature& feature, const Values& grad) {
    for (size_t i = 0; i < feature.ids.size(); ++i) {
      const int64_t bag = feature.bag_of(i);
      if (bag < 0) continue;
      Values& row = model_[{feature.table, static_cast<uint64_t>(feature.ids[i])}];
      for (size_t c = 0; c < row.size(); ++c)
        row[c] -= grad[static_cast<size_t>(bag) * row.size() + c];
    }
  }

  void write_rows() {
    const uint32_t table = any_table();
    const uint64_t rows = config_.tables[table].rows;
    std::vector<int64_t> ids(rows == 0 ? 0 : random_.below(2 * rows));
    for (int64_t& id : ids) id = static_cast<int64_t>(random_.below(rows));
    const Values values = random_values(ids.size() * dim(table));
    const Status done = engine_->write_rows(TableId(table), ids, values.data(), nullptr);
    Versions versions;
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto* from = values.data() + i * dim(table);
      versions[static_cast<uint64_t>(ids[i])].emplace_back(from, from + dim(table));
    }
    settle(table, versions, done);
  }

  void apply_gradients() {
    const uint32_t table = any_table();
    const uint64_t rows = config_.tables[table].rows;
    std::vector<int64_t> ids;
    for (uint64_t row = 0; row < rows; ++row)
      if (random_.one_in(3)) ids.push_back(static_cast<int64_t>(row));
    std::reverse(ids.begin(), ids.end());
    const Values grads = random_values(ids.size() * dim(table));
    const Status done = engine_->apply_gradients(TableId(table), ids, grads.data(), kHyper);
    Versions versions;
    for (size_t i = 0; i < ids.size(); ++i) {
      Values row = model_[{table, static_cast<uint64_t>(ids[i])}];
      for (size_t c = 0; c < row.size(); ++c) row[c] -= grads[i * row.size() + c];
      versions[static_cast<uint64_t>(ids[i])].push_back(row);
    }
    settle(table, versions, done);
  }

  // The rows of a write have their last version if it succeeded. It may be refused when batches in
  // flight hold the slots; then nothing has changed.
  void settle(uint32_t table, const Versions& versions, const Status& done) {
    if (!done)
      BOOST_TEST_REQUIRE((done.code() == StatusCode::kBudgetExceeded && !flights_.empty()),
                         done.message());
    std::vector<int64_t> ids;
    for (const auto& [id, given] : versions) {
      if (done) model_[{table, id}] = given.back();
      ids.push_back(static_cast<int64_t>(id));
    }
    check_rows(table, ids);
  }

  // A checkpoint, or a new engine on the store with another budget.
  void rarely() {
    if (random_.one_in(3)) check_ok(engine_->flush());
    if (!random_.one_in(12)) return;
    check_ok(engine_->close());
    check_ok(engine_->close());
    for (InFlight& flight : flights_) engine_->release(*flight.plan);  // handles outlive a close
    flights_.clear();
    ahead_.clear();
    open();
  }

  // One that is refused changes nothing; one that is not comes to its end, sometime.
  void resize() {
    const EngineStats before = engine_->stats();
    const uint64_t bytes = 1 + random_.below(all_rows_bytes(config_) * 5 / 4);
    const Status done = engine_->resize(bytes);
    const EngineStats after = engine_->stats();
    if (!done) {
      BOOST_TEST_REQUIRE((done.code() == StatusCode::kBudgetExceeded), done.message());
      BOOST_TEST_REQUIRE(contains(done.message(), "too small"));
      BOOST_TEST_REQUIRE(after.dram_target_bytes == before.dram_target_bytes);
      BOOST_TEST_REQUIRE(after.is_resizing == before.is_resizing);
      return;
    }
    BOOST_TEST_REQUIRE(after.dram_target_bytes == bytes);
  }

  // Lookups of nothing, until the budget is reached.
  void finish_resizing() {
    const EngineStats before = engine_->stats();
    for (int i = 0; i < 5000 && engine_->is_resizing(); ++i) check_ok(engine_->lookup({}, {}));
    const EngineStats stats = engine_->stats();
    BOOST_TEST_REQUIRE(!stats.is_resizing);
    if (before.is_resizing) BOOST_TEST_REQUIRE(stats.dram_bytes <= stats.dram_target_bytes);
  }

  void check_some_rows() {
    const uint32_t table = any_table();
    const uint64_t rows = config_.tables[table].rows;
    if (rows == 0) return;
    std::vector<int64_t> ids(5);
    for (int64_t& id : ids) id = static_cast<int64_t>(random_.below(rows));
    check_rows(table, ids);
  }
  void check_all_rows() {
    for (uint32_t t = 0; t < config_.tables.size(); ++t) {
      std::vector<int64_t> ids(config_.tables[t].rows);
      std::iota(ids.begin(), ids.end(), 0);
      check_rows(t, ids);
    }
  }
  void check_rows(uint32_t table, const std::vector<int64_t>& ids) {
    Values values(ids.size() * dim(table));
    check_ok(engine_->read_rows(TableId(table), ids, values.data(), nullptr));
    for (size_t i = 0; i < ids.size(); ++i) {
      const Values& row = model_[{table, static_cast<uint64_t>(ids[i])}];
      BOOST_TEST_REQUIRE(std::equal(row.begin(), row.end(), values.data() + i * dim(table)),
                         "table " << table << " row " << ids[i] << " differs");
    }
  }

  Random& random_;
  EngineConfig config_;
  const bool prefetches_;
  TempDirectory directory_;
  std::unique_ptr<Engine> engine_;
  std::deque<Ahead> ahead_;
  std::vector<Feature> taken_;   // by the call at hand, of those ahead
  std::vector<Feature> failed_;  // the last of them whose call failed
  std::map<std::pair<size_t, uint64_t>, Values> model_;
  std::vector<InFlight> flights_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_engine_model)

PrefetchStats run_schedules(bool prefetches) {
  PrefetchStats total;
  for (uint64_t seed = 1; seed <= test::schedules(120); ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      set_num_threads(1 + seed % 2);
      Lab lab(random, random_config(random, OptimizerKind::kSgd), prefetches);
      for (int i = 0; i < 120; ++i) lab.step();
      const PrefetchStats stats = lab.finish();
      total.batches += stats.batches;
      total.batches_ready += stats.batches_ready;
      total.batches_missed += stats.batches_missed;
    }
  }
  set_num_threads(1);
  return total;
}

BOOST_AUTO_TEST_CASE(random_schedules_equal_the_model) {
  BOOST_TEST(run_schedules(false).batches == 0u);
}

BOOST_AUTO_TEST_CASE(so_they_do_with_batches_prefetched) {
  const PrefetchStats stats = run_schedules(true);
  BOOST_TEST(stats.batches_ready > 20u);  // many more on a machine at rest
  BOOST_TEST(stats.batches_missed > 20u);
  BOOST_TEST_MESSAGE(stats.batches << " batches, " << stats.batches_ready << " of them ready");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
