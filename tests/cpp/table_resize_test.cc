// Engine::resize: what the random schedules of table_engine_test.cc do not show. Memory that goes
// back, portions, batches in flight, a full disk, errors.
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

constexpr uint64_t kRows = 200'000;
constexpr uint32_t kDim = 32;
constexpr uint64_t kAllBytes = 64 << 20;
constexpr uint64_t kFewBytes = 12 << 20;

uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t pages = 0;
  file >> pages >> pages;
  return pages * 4096;
}

// A table whose rows all stand in dram, changed, with their numbers in them.
struct FullTable : Store {
  explicit FullTable(const std::string& policy, uint64_t dram_bytes = kAllBytes,
                     uint64_t ssd_capacity_bytes = 0)
      : Store(kRows, kDim, dram_bytes, OptimizerKind::kNone) {
    config.policy = policy;
    config.ssd_capacity_bytes = ssd_capacity_bytes;
    open();
    std::vector<float> values(kRows * kDim);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i / kDim);
    check_ok(engine->write_rows(TableId(0), all_ids(kRows), values.data(), nullptr));
  }
  // Looks rows up, and says whether they are right. kNoSpace comes back in `full`, if that is
  // given.
  bool lookup(const std::vector<int64_t>& ids, bool* full = nullptr) {
    std::vector<int64_t> offsets(ids.size());
    std::iota(offsets.begin(), offsets.end(), 0);
    Feature feature;
    feature.ids = ids;
    feature.offsets = offsets;
    std::vector<float> out(ids.size() * kDim);
    const FeatureInput input = feature.input();
    FeatureForward forward;
    forward.out = out.data();
    const Status done = engine->lookup({&input, 1}, {&forward, 1});
    if (full != nullptr) {
      *full = done.code() == StatusCode::kNoSpace;
      if (*full) return true;
    }
    check_ok(done);
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i] != static_cast<float>(ids[i / kDim])) return false;
    }
    return true;
  }
  std::vector<int64_t> random_ids(size_t count) {
    std::vector<int64_t> ids(count);
    for (int64_t& id : ids) id = static_cast<int64_t>(random.below(kRows));
    return ids;
  }
  size_t batches_until_done() {
    size_t batches = 0;
    for (; engine->is_resizing() && batches < 5000; ++batches)
      BOOST_TEST_REQUIRE(lookup(random_ids(64)));
    BOOST_TEST_REQUIRE(!engine->is_resizing());
    return batches;
  }
  Random random{5};
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_resize)

BOOST_AUTO_TEST_CASE(memory_goes_back_and_comes_again) {
  for (const char* policy : {"lookahead", "lfu", "lru", "s3fifo"}) {
    BOOST_TEST_CONTEXT(policy) {
      FullTable table(policy);
      [[maybe_unused]] const uint64_t full = resident_bytes();  // not under sanitizers
      BOOST_TEST(table.engine->stats().resident_rows == kRows);
      check_ok(table.engine->resize(kFewBytes));
      BOOST_TEST(table.engine->is_resizing());
      BOOST_TEST(table.engine->stats().resident_rows == kRows);  // none has left yet
      table.batches_until_done();
      const EngineStats small = table.engine->stats();
      BOOST_TEST(small.dram_bytes <= kFewBytes);
      BOOST_TEST(small.dram_target_bytes == kFewBytes);
      BOOST_TEST(small.slots < kRows / 2);
      BOOST_TEST(small.resident_rows <= small.slots);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
      const uint64_t gone = (kRows - small.slots) * kDim * sizeof(float);
      BOOST_TEST(resident_bytes() + gone * 3 / 4 < full);
#endif
      for (int i = 0; i < 20; ++i) BOOST_TEST_REQUIRE(table.lookup(table.random_ids(5000)));
      check_ok(table.engine->resize(2 * kFewBytes));
      BOOST_TEST(!table.engine->is_resizing());
      BOOST_TEST(table.engine->stats().slots > small.slots * 3 / 2);
      for (int i = 0; i < 40; ++i) BOOST_TEST_REQUIRE(table.lookup(table.random_ids(5000)));
      BOOST_TEST(table.engine->stats().resident_rows > small.slots);
      check_ok(table.engine->resize(kFewBytes));
      table.batches_until_done();
      check_ok(table.engine->resize(kAllBytes));
      for (int i = 0; i < 40; ++i) BOOST_TEST_REQUIRE(table.lookup(table.random_ids(20000)));
      BOOST_TEST(table.engine->stats().slots == kRows);
    }
  }
}

// What no portion may exceed: the rows that leave with one batch.
BOOST_AUTO_TEST_CASE(a_batch_waits_for_one_portion) {
  FullTable table("lru");
  check_ok(table.engine->resize(kFewBytes));
  uint64_t before = table.engine->stats().resident_rows;
  size_t portions = 0;
  while (table.engine->is_resizing()) {
    BOOST_TEST_REQUIRE(table.lookup({1, 2, 3}));
    const uint64_t now = table.engine->stats().resident_rows;
    BOOST_TEST_REQUIRE(before - now <= table.config.rows_resized_at_once);
    portions += now < before;
    before = now;
  }
  BOOST_TEST(portions >= (kRows - before) / table.config.rows_resized_at_once);
}

// Rows that are pinned by a batch in flight at all times do not keep the memory.
BOOST_AUTO_TEST_CASE(rows_of_prefetched_batches_move_in_the_end) {
  FullTable table("lookahead");
  const std::vector<int64_t> hot = {7, 50'000, 199'998, 199'999};
  std::vector<std::vector<int64_t>> ahead;
  const auto announce = [&] {
    ahead.push_back(table.random_ids(100));
    ahead.back().insert(ahead.back().end(), hot.begin(), hot.end());
    Feature feature;
    feature.ids = ahead.back();
    feature.offsets.resize(feature.ids.size());
    std::iota(feature.offsets.begin(), feature.offsets.end(), 0);
    const FeatureInput input = feature.input();
    auto ticket = table.engine->announce({&input, 1}, false);
    check_ok(ticket.status());
    table.engine->prefetch(ticket.value());
  };
  for (int i = 0; i < 4; ++i) announce();
  check_ok(table.engine->resize(kFewBytes));
  for (int i = 0; i < 3000 && table.engine->is_resizing(); ++i) {
    announce();
    BOOST_TEST_REQUIRE(table.lookup(ahead.front()));
    ahead.erase(ahead.begin());
  }
  BOOST_TEST(!table.engine->is_resizing());
  BOOST_TEST(table.engine->stats().dram_bytes <= kFewBytes);
  while (!ahead.empty()) {
    BOOST_TEST_REQUIRE(table.lookup(ahead.front()));
    ahead.erase(ahead.begin());
  }
}

// Rows that have no room on the drive stay where they are. A batch that needs their slots says why
// it cannot be served; after a resize back it can.
BOOST_AUTO_TEST_CASE(on_a_full_disk_rows_stay_in_dram) {
  for (const char* policy : {"lookahead", "s3fifo"}) {
    BOOST_TEST_CONTEXT(policy) {
      FullTable table(policy, kAllBytes, 8 << 20);  // a third of the rows
      check_ok(table.engine->resize(kFewBytes));
      size_t refused = 0;
      for (int i = 0; i < 1500; ++i) {
        bool is_full = false;
        BOOST_TEST_REQUIRE(table.lookup(table.random_ids(64), &is_full));
        refused += is_full;
      }
      BOOST_TEST(refused > 0u);
      const EngineStats full = table.engine->stats();
      BOOST_TEST(full.is_resizing);
      BOOST_TEST(full.dram_target_bytes == kFewBytes);
      BOOST_TEST(full.resident_rows < kRows);
      BOOST_TEST(full.resident_rows > kRows / 2);
      BOOST_TEST(full.dram_bytes > kFewBytes);
      for (int batches = 0; batches < 3; ++batches) {  // of the next smaller size, in each phase
        check_ok(table.engine->resize(kAllBytes));
        for (int i = 0; i < 4; ++i) BOOST_TEST_REQUIRE(table.lookup(table.random_ids(64)));
        table.batches_until_done();
        check_ok(table.engine->resize(kAllBytes / 2));
        for (int i = 0; i < batches; ++i) BOOST_TEST_REQUIRE(table.lookup({1, 2, 3}));
      }
      check_ok(table.engine->resize(kAllBytes));
      table.batches_until_done();
      std::vector<int64_t> ids = all_ids(kRows / 20);
      for (int part = 0; part < 20; ++part) {
        BOOST_TEST_REQUIRE(table.lookup(ids));
        for (int64_t& id : ids) id += kRows / 20;
      }
      BOOST_TEST(table.engine->stats().resident_rows == kRows);
    }
  }
}

BOOST_AUTO_TEST_CASE(what_is_refused_changes_nothing) {
  FullTable table("lfu", kFewBytes);
  const EngineStats before = table.engine->stats();
  const Status small = table.engine->resize(1);
  BOOST_TEST((small.code() == StatusCode::kBudgetExceeded));
  BOOST_TEST(contains(small.message(), "too small"));
  const EngineStats after = table.engine->stats();
  BOOST_TEST(after.slots == before.slots);
  BOOST_TEST(after.dram_target_bytes == kFewBytes);
  BOOST_TEST(!after.is_resizing);
  check_ok(table.engine->close());
  BOOST_TEST(contains(table.engine->resize(kAllBytes).message(), "closed"));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
