// The Engine under several threads at once: no update is lost, cuts are cuts, nothing hangs. Also
// what the thread sanitizer runs.
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "table/threads.h"
#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

// Rows that start at zero and grow by one with every occurrence of their id in a batch: the sum of
// the first column is the number of ids trained on, at every cut.
struct Counting : Store {
  Counting(int64_t rows, uint32_t dim, uint64_t slots)
      : Store(static_cast<uint64_t>(rows), dim, slots * dim * 4, OptimizerKind::kSgd) {
    config.tables[0].init = {};
    config.ssd_rows_told_at_once = 0;
  }
  Feature random_feature(Random& random, size_t ids) const {
    Feature feature;
    for (size_t k = 0; k < ids; ++k)
      feature.ids.push_back(static_cast<int64_t>(random.below(config.tables[0].rows)));
    return feature;
  }
  // One batch of random ids; false once the engine refuses.
  bool train(Random& random, size_t ids) { return train(random_feature(random, ids)); }
  bool train(const Feature& feature) {
    const FeatureInput input = feature.input();
    auto planned = engine->plan({&input, 1}, true);
    if (!planned) return false;
    std::vector<float> out(dim());
    const std::vector<float> grad(dim(), -1);
    const FeatureForward forward{.out = out.data()};
    const FeatureBackward backward{.grad = grad.data()};
    const bool ok = engine->forward(*planned.value(), {&forward, 1}) &&
                    engine->backward(*planned.value(), {&backward, 1}, {.lr = 1}, true);
    engine->release(*planned.value());
    return ok;
  }
  static double ids_trained(Engine& engine, int64_t rows, size_t dim) {
    const std::vector<int64_t> ids = all_ids(rows);
    std::vector<float> weights(ids.size() * dim);
    check_ok(engine.read_rows(TableId(0), ids, weights.data(), nullptr));
    double total = 0;
    for (size_t i = 0; i < weights.size(); i += dim) total += double{weights[i]};
    return total;
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_stress)

BOOST_AUTO_TEST_CASE(two_threads_lose_no_update) {
  constexpr int64_t kRows = 64;
  Counting store(kRows, 4, 40);
  store.open();
  set_num_threads(2);
  std::atomic<bool> failed{false};
  const auto train = [&](uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < 300; ++i) {
      if (!store.train(random, 12)) failed = true;
      if (i % 20 == 0 && !store.engine->flush()) failed = true;
      if (store.engine->is_closed() || store.engine->stats().resident_rows > kRows) failed = true;
    }
  };
  std::thread other(train, 1);
  train(0);
  other.join();
  set_num_threads(1);
  BOOST_TEST(!failed);
  BOOST_TEST(Counting::ids_trained(*store.engine, kRows, 4) == 2.0 * 300 * 12);
  BOOST_TEST(store.engine->step(TableId(0)) == 600u);
}

// Updates, lookups, reads, saves and reclaiming at once. Every save opens as a cut: its rows have
// seen exactly the updates that its step counts.
struct Everything {
  static constexpr int64_t kRows = 4000;
  static constexpr size_t kDim = 32;
  static constexpr size_t kIds = 150;
  static constexpr int kSteps = 250;
  Counting store{kRows, kDim, 400};
  std::atomic<bool> failed{false};
  std::atomic<bool> done{false};
  std::vector<std::string> saves;

  Everything() { store.open(); }

  void check(bool ok) {
    if (!ok) failed = true;
  }
  void train(uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < kSteps; ++i) check(store.train(random, kIds));
  }
  // Twice as many, with rows fetched up to five batches ahead.
  void train_prefetched() {
    Random random(0);
    std::deque<Feature> ahead;
    for (int i = 0; i < 2 * kSteps; ++i) {
      while (ahead.size() < 5) {
        ahead.push_back(store.random_feature(random, kIds));
        const FeatureInput input = ahead.back().input();
        auto ticket = store.engine->announce({&input, 1}, true);
        check(ticket.is_ok());
        store.engine->prefetch(ticket.value());
      }
      check(store.train(ahead.front()));
      ahead.pop_front();
    }
    BOOST_TEST(store.engine->stats().prefetch.batches == 2u * kSteps);
    store.engine->cancel_prefetch(UINT64_MAX);
  }
  void read() {
    Random random(7);
    std::vector<float> rows(50 * kDim);
    while (!done) {
      const Feature feature = store.random_feature(random, 50);
      check(store.engine->read_rows(TableId(0), feature.ids, rows.data(), nullptr).is_ok());
      const FeatureInput input = feature.input();
      for (size_t i = 0; i < rows.size(); ++i)  // a row is never half updated
        check(rows[i] == rows[i - i % kDim]);
      const FeatureForward forward{.out = rows.data()};
      check(store.engine->lookup({&input, 1}, {&forward, 1}).is_ok());
    }
  }
  void save() {
    while (!done) {
      const std::string path = store.directory / ("save" + std::to_string(saves.size()));
      const std::string previous = saves.empty() ? "" : saves.back();
      check(store.engine->begin_save(path) && store.engine->finish_save(path, previous));
      saves.push_back(path);
      // So that changes are written between saves too.
      std::this_thread::sleep_for(std::chrono::milliseconds(saves.size() % 2 * 20));
    }
  }
  template <class Train>
  void run(Train train) {
    std::thread reader([this] { read(); });
    std::thread saver([this] { save(); });
    train();
    done = true;
    reader.join();
    saver.join();
    BOOST_TEST(!failed);
    const LogStats log = store.engine->stats().log;
    BOOST_TEST(log.segments_reclaimed > 10u);
    BOOST_TEST(log.reclaim_read_bytes > 0u);
    BOOST_TEST(log.segments_damaged_now == 0u);
    BOOST_TEST(Counting::ids_trained(*store.engine, kRows, kDim) == 2.0 * kSteps * kIds);
    check_saves();
  }
  void check_saves() {
    BOOST_TEST(!saves.empty());
    for (const std::string& path : saves) {
      EngineConfig config = store.config;
      config.ssd_path = path;
      config.ssd_read_only = true;
      auto saved = Engine::create(config);
      check_ok(saved.status());
      const uint64_t steps = saved.value()->step(TableId(0));
      BOOST_TEST(Counting::ids_trained(*saved.value(), kRows, kDim) ==
                 static_cast<double>(steps * kIds));
    }
  }
};

BOOST_AUTO_TEST_CASE(everything_at_once_with_two_trainers) {
  Everything all;
  all.run([&] {
    std::thread other([&] { all.train(1); });
    all.train(0);
    other.join();
  });
}

BOOST_AUTO_TEST_CASE(everything_at_once_with_batches_prefetched) {
  Everything all;
  all.run([&] { all.train_prefetched(); });
}

// Closing while others train and save: they get an error, nothing hangs.
BOOST_AUTO_TEST_CASE(closing_while_others_train) {
  for (int round = 0; round < 20; ++round) {
    Counting store(2000, 32, 300);
    store.open();
    Engine& engine = *store.engine;
    std::atomic<int> steps{0};
    std::thread trainer([&] {
      Random random(static_cast<uint64_t>(round));
      while (store.train(random, 100)) ++steps;
      steps = 60;
    });
    std::thread saver([&] {
      for (int i = 0; i < 3; ++i) (void)engine.flush();
    });
    while (steps < 60) std::this_thread::yield();
    Status discarded;
    std::thread closer([&] { discarded = engine.discard(); });
    const Status closed = engine.close();
    closer.join();
    check_ok(discarded);
    check_ok(closed);
    trainer.join();
    saver.join();
    BOOST_TEST(engine.is_closed());
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
