// A step on rows that are all in dram allocates nothing once its buffers have grown. Every malloc
// of the program is counted, through the hook that glibc leaves for that: its own names stay
// callable.
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cstdlib>

#include "table_fixture.h"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
std::atomic<bool> counting{false};
std::atomic<size_t> allocations{0};
void count() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1);
}
}  // namespace

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
// NOLINTBEGIN: the C library's names
void* malloc(size_t bytes) {
  count();
  return __libc_malloc(bytes);
}
void* calloc(size_t n, size_t bytes) {
  count();
  return __libc_calloc(n, bytes);
}
void* realloc(void* p, size_t bytes) {
  count();
  return __libc_realloc(p, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  count();
  return __libc_memalign(alignment, bytes);
}
// NOLINTEND
}

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

// Lookups and training steps over two tables, one of them large enough to be cut.
struct Job {
  Job(bool evicting, OptimizerKind optimizer) : random(3) {
    EngineConfig config;
    config.optimizer = optimizer;
    config.tables = {make_table("a", 60'000, 16), make_table("b", 500, 16)};
    config.tables[1].mode = PoolMode::kMean;
    config.ssd_path = directory / "store";
    // All rows fit, but the engine does not know that it is so.
    if (evicting) config.dram_bytes = 60'400 * 16 * 12;
    auto created = Engine::create(config);
    check_ok(created.status());
    engine = created.take();
    for (uint32_t t = 0; t < 2; ++t) {
      Feature all;
      all.table = t;
      all.ids = all_ids(t == 0 ? 40'000 : 500);
      features.push_back(all);
    }
    step(true);
    features[0].ids.resize(35'000);
    for (Feature& feature : features) {
      for (int64_t& id : feature.ids)
        id = static_cast<int64_t>(random.below(feature.table == 0 ? 40'000 : 500));
      const auto half = static_cast<int64_t>(feature.ids.size() / 2);
      feature.offsets = {0, 7, half};
    }
  }

  void step(bool train) {
    inputs.clear();
    forwards.clear();
    backwards.clear();
    for (const Feature& feature : features) {
      inputs.push_back(feature.input());
      FeatureForward forward;
      forward.out = out;
      forwards.push_back(forward);
      FeatureBackward backward;
      backward.grad = grad;
      backwards.push_back(backward);
    }
    if (!train) return check_ok(engine->lookup(inputs, forwards));
    auto plan = engine->plan(inputs, true);
    check_ok(plan.status());
    check_ok(engine->forward(*plan.value(), forwards));
    check_ok(engine->backward(*plan.value(), backwards, hyper, true));
    engine->release(*plan.value());
  }

  TempDirectory directory;
  Random random;
  std::unique_ptr<Engine> engine;
  std::vector<Feature> features;
  std::vector<FeatureInput> inputs;
  std::vector<FeatureForward> forwards;
  std::vector<FeatureBackward> backwards;
  Hyperparameters hyper{.lr = 0.1, .eps = 1e-8, .beta1 = 0.9, .beta2 = 0.99};
  float out[3 * 16];
  float grad[3 * 16] = {1, 2, 3};
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_allocation)

BOOST_AUTO_TEST_CASE(steps_on_rows_in_dram_allocate_nothing) {
  for (bool evicting : {false, true}) {
    for (OptimizerKind optimizer : {OptimizerKind::kSgd, OptimizerKind::kAdam}) {
      BOOST_TEST_CONTEXT("evicting " << evicting << ", optimizer " << static_cast<int>(optimizer)) {
        Job job(evicting, optimizer);
        // The policy's queues grow until they are compacted for the first time.
        for (int i = 0; i < 60; ++i) job.step(true), job.step(false);
        const uint64_t missing = job.engine->stats().planner.missing_rows;
        allocations = 0;
        counting = true;
        for (int i = 0; i < 40; ++i) job.step(true), job.step(false);
        counting = false;
        BOOST_TEST(job.engine->stats().planner.missing_rows == missing);
        BOOST_TEST(allocations.load() == 0u);
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te

#endif
