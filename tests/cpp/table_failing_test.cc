// Reads that fail at random while batches are announced, fetched, looked up, repeated, given up and
// updated: rows keep the values of a model, and every failure is told to a caller or comes to
// nothing.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <thread>
#include <vector>

#include "gated_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

class Lab {
 public:
  explicit Lab(Random& random) : random_(random), values_(GatedStore::kRows) {
    store_.config.dram_bytes = (3 + random.below(20)) * 16;
    check_ok(store_.engine->close());
    store_.open();
    for (size_t id = 0; id < values_.size(); ++id) values_[id] = static_cast<float>(id);
  }

  void step() {
    switch (random_.below(9)) {
      case 0:
      case 1:
      case 2: announce(); break;
      case 3:
      case 4: forward(); break;
      case 5: backward(); break;
      case 6: random_.one_in(2) ? write() : (void)read(any_id()); break;
      case 7:
        if (random_.one_in(3)) check_ok(store_.engine->flush());
        break;
      default:
        if (random_.one_in(8)) cancel();
    }
    if (random_.one_in(5)) std::this_thread::yield();
  }

  void finish() {
    while (!in_flight_.empty()) backward();
    cancel();
    store_.gate.pass();  // whatever was to fail
    for (int64_t id = 0; id < static_cast<int64_t>(values_.size()); ++id)
      BOOST_TEST_REQUIRE(read(id));
  }
  uint64_t piggybacked_rows() { return store_.engine->stats().planner.piggybacked_rows; }
  size_t failures() const { return failures_; }

 private:
  struct InFlight {
    Plan* plan;
    Feature batch;
  };

  int64_t any_id() {
    const uint64_t last = GatedStore::kRows - 1;
    return static_cast<int64_t>(random_.one_in(10) ? last : random_.below(GatedStore::kRows));
  }
  float& value(int64_t id) { return values_[static_cast<size_t>(id)]; }
  void maybe_fail() {
    if (random_.one_in(6)) store_.gate.fail_next();
  }
  // Whether it has been done; if not, for a reason that there may be.
  bool is_done(const Status& status) {
    if (status) return true;
    ++failures_;
    BOOST_TEST_REQUIRE(
        (status.code() == StatusCode::kIo || status.code() == StatusCode::kBudgetExceeded),
        status.message());
    return false;
  }

  void announce() {
    if (ahead_.size() > 10) return;
    std::vector<int64_t> ids(random_.below(5));
    for (int64_t& id : ids) id = any_id();
    ahead_.push_back(GatedStore::batch(ids));
    const FeatureInput input = ahead_.back().input();
    auto ticket = store_.engine->announce({&input, 1}, true);
    check_ok(ticket.status());
    if (!random_.one_in(4)) store_.engine->prefetch(ticket.value());
  }
  void cancel() {
    (void)store_.engine->cancel_prefetch(UINT64_MAX);
    ahead_.clear();
  }

  // The next batch, tried up to three times.
  void forward() {
    if (ahead_.empty()) return;
    const Feature batch = ahead_.front();
    ahead_.pop_front();
    const FeatureInput input = batch.input();
    Plan* plan = nullptr;
    for (int tries = 0; tries < 3 && plan == nullptr && !random_.one_in(8); ++tries) {
      maybe_fail();
      auto planned = store_.engine->plan({&input, 1}, true);
      if (is_done(planned.status())) plan = planned.value();
    }
    if (plan == nullptr) {  // given up; it may still be the next in the queue
      if (random_.one_in(2)) return cancel();
      auto again = store_.engine->plan({&input, 1}, true);
      if (is_done(again.status())) store_.engine->release(*again.value());
      return;
    }
    std::vector<float> out(store_.dim());
    const FeatureForward forward{.out = out.data()};
    maybe_fail();
    if (!is_done(store_.engine->forward(*plan, {&forward, 1})))
      return store_.engine->release(*plan);
    float expected = 0;
    for (int64_t id : batch.ids) expected += value(id);
    BOOST_TEST_REQUIRE(out[0] == expected);
    in_flight_.push_back({plan, batch});
  }

  // Of any batch in flight, or none of it: its output is dropped.
  void backward() {
    if (in_flight_.empty()) return;
    std::swap(in_flight_[random_.below(in_flight_.size())], in_flight_.back());
    const InFlight flight = in_flight_.back();
    in_flight_.pop_back();
    if (!random_.one_in(5)) {
      const std::vector<float> ones(store_.dim(), 1);
      const FeatureBackward backward{.grad = ones.data()};
      maybe_fail();
      if (is_done(store_.engine->backward(*flight.plan, {&backward, 1}, kPlainSgd, true))) {
        for (int64_t id : flight.batch.ids) value(id) -= 1;
      }
    }
    store_.engine->release(*flight.plan);
  }

  void write() {
    const int64_t id = any_id();
    const auto written = static_cast<float>(random_.below(1000));
    maybe_fail();
    if (is_done(store_.write(id, written))) value(id) = written;
  }
  bool read(int64_t id) {
    std::vector<float> row(store_.dim());
    maybe_fail();
    Status done = store_.engine->read_rows(TableId(0), {&id, 1}, row.data(), nullptr);
    if (!is_done(done))  // the failure is over
      done = store_.engine->read_rows(TableId(0), {&id, 1}, row.data(), nullptr);
    if (!is_done(done)) return false;
    BOOST_TEST_REQUIRE(row[0] == value(id));
    return true;
  }

  Random& random_;
  GatedStore store_;
  std::vector<float> values_;
  std::deque<Feature> ahead_;
  std::vector<InFlight> in_flight_;
  size_t failures_ = 0;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_failing)

BOOST_AUTO_TEST_CASE(random_schedules_equal_the_model) {
  uint64_t piggybacked_rows = 0;
  size_t failures = 0;
  for (uint64_t seed = 1; seed <= test::schedules(100); ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      Lab lab(random);
      for (int i = 0; i < 300; ++i) lab.step();
      lab.finish();
      piggybacked_rows += lab.piggybacked_rows();
      failures += lab.failures();
    }
  }
  BOOST_TEST(piggybacked_rows > test::schedules(100));  // many more on a machine at rest
  BOOST_TEST(failures > test::schedules(100));
}

// More rows than fit in dram: an update in parts, of which one fails.
BOOST_AUTO_TEST_CASE(an_update_goes_on_where_it_failed) {
  GatedStore store;
  const auto ids = all_ids(GatedStore::kRows);
  const std::vector<float> ones(ids.size() * store.dim(), 1);
  size_t applied = 0;
  store.gate.fail_next(2);
  const Status failed =
      store.engine->apply_gradients(TableId(0), ids, ones.data(), kPlainSgd, false, &applied);
  BOOST_TEST((failed.code() == StatusCode::kIo));
  BOOST_TEST_REQUIRE(applied > 0u);
  BOOST_TEST_REQUIRE(applied < ids.size());
  const size_t moved = applied;
  check_ok(store.engine->apply_gradients(TableId(0), std::span(ids).subspan(moved), ones.data(),
                                         kPlainSgd, true, &applied));
  BOOST_TEST(moved + applied == ids.size());
  BOOST_TEST(store.engine->step(TableId(0)) == 1u);
  for (int64_t id : ids) BOOST_TEST(store.read(id)[0] == static_cast<float>(id) - 1);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
