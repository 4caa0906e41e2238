// LookupSample, against the whole stream; and what an engine notes in it, whatever way its batches
// take.
#include <algorithm>
#include <array>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "gated_fixture.h"
#include "rows/sample_hash.h"
#include "table/lookup_sample.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

using Rows = std::vector<RowId>;

uint32_t mask_of(double rate) {
  uint32_t mask = 0;
  for (; rate < 1; rate *= 2) mask = mask >> 1 | uint32_t{1} << 31;
  BOOST_TEST_REQUIRE(rate == 1);
  return mask;
}

// A sample, and all batches that it watched.
struct Told {
  explicit Told(std::optional<bool> held = true) { sample.hold(held); }
  LookupSample sample;
  std::vector<Rows> batches;
  size_t gap = 0;  // before this batch others were not watched

  // A batch; false if it was not watched.
  bool note(const Rows& rows, uint64_t cost = 1, uint64_t work = 1) {
    if (!sample.is_watching()) {
      sample.pass(work);
      gap = batches.size();
      return false;
    }
    batches.push_back(rows);
    Rows sampled(rows.size());
    SampleArgs args;
    args.ids = rows.data();
    args.mask = sample.mask();
    sampled.resize(kernels().sample(args, 0, rows.size(), sampled.data()));
    sample.begin_batch();
    const size_t half = sampled.size() / 2;  // as if of two tables
    sample.note({sampled.data(), half});
    sample.note({sampled.data() + half, sampled.size() - half});
    sample.end_batch(cost);
    return true;
  }

  // Batches until one is not watched.
  template <class NextRows>
  void burst(NextRows next, uint64_t cost = 1) {
    const size_t before = batches.size();
    while (note(next(), cost)) BOOST_TEST_REQUIRE(batches.size() < before + 40'000);
  }
  // Others until one would be watched.
  void rest() {
    for (int i = 0; !sample.is_watching(); ++i) {
      note({}, 1, 1000);
      BOOST_TEST_REQUIRE(i < 40'000);
    }
  }

  // The last batches without a gap, of each exactly the rows that the rate says, in order.
  LookupSample::Copy check() const {
    const LookupSample::Copy copy = sample.copy();
    const uint32_t mask = mask_of(copy.rate);
    BOOST_TEST_REQUIRE(mask == sample.mask());
    BOOST_TEST_REQUIRE(copy.rows.size() <= LookupSample::kEntries);
    BOOST_TEST_REQUIRE(copy.in_batch.size() <= LookupSample::kBatchesMax);
    const size_t end = copy.first_batch + copy.in_batch.size();
    BOOST_TEST_REQUIRE(
        (end == batches.size() ? copy.first_batch >= gap || gap == end : end == gap));
    size_t at = 0;
    for (size_t b = 0; b < copy.in_batch.size(); ++b) {
      Rows expected;
      for (const RowId row : batches[copy.first_batch + b]) {
        if ((sample_hash(row.value) & mask) == 0) expected.push_back(row);
      }
      BOOST_TEST_REQUIRE(copy.in_batch[b] == expected.size());
      BOOST_TEST_REQUIRE(std::equal(expected.begin(), expected.end(), copy.rows.begin() + at));
      at += expected.size();
    }
    BOOST_TEST_REQUIRE(at == copy.rows.size());
    return copy;
  }
};

// Distinct rows from `first` on, the low ones often.
Rows random_rows(Random& random, uint64_t first, uint64_t rows, size_t count) {
  std::set<RowId> seen;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t below = random.one_in(2) ? rows : 1 + rows / 16;
    seen.insert(RowId(first + random.below(below)));
  }
  return {seen.begin(), seen.end()};
}

// Batches of such rows, over and over.
class RandomBatches {
 public:
  RandomBatches(Random& random, uint64_t rows, size_t count) {
    for (Rows& batch : batches_) batch = random_rows(random, 0, rows, count);
  }
  const Rows& next() { return batches_[next_++ % batches_.size()]; }

 private:
  std::array<Rows, 61> batches_;
  size_t next_ = 0;
};

size_t distinct(const Rows& rows) { return std::set<RowId>(rows.begin(), rows.end()).size(); }

}  // namespace

BOOST_AUTO_TEST_SUITE(table_lookup_sample)

BOOST_AUTO_TEST_CASE(it_is_what_the_rate_says_of_the_last_batches) {
  for (uint64_t seed = 1; seed <= test::schedules(6); ++seed) {
    Random random(seed);
    Told told;
    const uint64_t first = seed % 2 == 0 ? 0 : (uint64_t{1} << 32) - 1000 * seed;
    const uint64_t rows = uint64_t{1} << (10 + random.below(12));
    for (int batch = 0; batch < 300; ++batch) {
      const size_t lookups = random.one_in(40) ? 100'000 : random.below(6000);
      told.note(random_rows(random, first, rows, random.one_in(8) ? 0 : lookups));
      if (random.one_in(10)) told.check();
    }
    BOOST_TEST_CONTEXT("seed " << seed) { told.check(); }
  }
}

BOOST_AUTO_TEST_CASE(rows_in_use_decide_the_rate) {
  for (const auto& [rows, in_batch] : {std::pair{6'000, 1'500}, {200'000, 2'000}, {500'000, 700}}) {
    Random random(4);
    Told told;
    for (int batch = 0; batch < 400'000 / in_batch + 4 * rows / in_batch; ++batch) {
      Rows batch_rows;
      for (int i = 0; i < in_batch; ++i)
        batch_rows.push_back(RowId(random.below(static_cast<uint64_t>(rows))));
      std::sort(batch_rows.begin(), batch_rows.end());
      batch_rows.erase(std::unique(batch_rows.begin(), batch_rows.end()), batch_rows.end());
      told.note(batch_rows);
    }
    const LookupSample::Copy copy = told.check();
    const size_t sampled = distinct(copy.rows);
    BOOST_TEST_CONTEXT(rows << " rows, rate " << copy.rate << ", " << sampled << " of them") {
      BOOST_TEST((rows <= 8000) == (copy.rate == 1));
      BOOST_TEST(sampled >= std::min<size_t>(3'800, static_cast<size_t>(rows) * 9 / 10));
      BOOST_TEST(sampled <= 8'600u);
      BOOST_TEST(copy.rows.size() >= 4 * sampled);
    }
  }
}

BOOST_AUTO_TEST_CASE(few_batches_of_the_same_rows_are_not_enough) {
  for (const uint64_t count : {1'340, 1'370, 2'100, 7'000}) {
    Told told(std::nullopt);
    Rows rows;
    for (uint64_t i = 0; i < count; ++i) rows.push_back(RowId(i));
    told.burst([&] { return rows; });
    const LookupSample::Copy copy = told.check();
    BOOST_TEST(copy.in_batch.size() >= 48u);
    BOOST_TEST(copy.in_batch.size() <= 100u);
  }
}

// One batch of very many rows, wherever in a burst, leaves a sample of the others too.
BOOST_AUTO_TEST_CASE(a_burst_does_not_end_with_a_batch_that_is_most_of_it) {
  Random random(12);
  RandomBatches batches(random, 6'000, 600);
  Rows many;
  for (uint64_t i = 0; i < 300'000; ++i) many.push_back(RowId(i));
  for (const int place : {60, 124, 127, 128, 129, 130, 131, 132, 135}) {
    Told told(std::nullopt);
    int batch = 0;
    told.burst([&] { return batch++ == place ? many : batches.next(); });
    const LookupSample::Copy copy = told.check();
    BOOST_TEST_CONTEXT("at " << place << ": " << copy.in_batch.size() << " batches") {
      BOOST_TEST(copy.in_batch.size() >= 48u);
      BOOST_TEST(distinct(copy.rows) <= 8'600u);
    }
  }
}

BOOST_AUTO_TEST_CASE(one_batch_may_have_more_rows_than_the_sample) {
  Told told;
  Rows rows;
  for (uint64_t i = 0; i < 700'000; ++i) rows.push_back(RowId(i * 3));
  told.note(rows);
  const LookupSample::Copy copy = told.check();
  BOOST_TEST(copy.rate <= 0.125);
  BOOST_TEST(copy.rate >= 0.0625);
  for (int batch = 0; batch < 64; ++batch) told.note(rows);
  BOOST_TEST(told.check().in_batch.size() >= 48u);
}

BOOST_AUTO_TEST_CASE(rows_that_never_come_again_do_not_stretch_it_for_ever) {
  Told told;
  uint64_t next = 0;
  for (size_t batch = 0; batch < 3 * LookupSample::kBatchesMax; ++batch) {
    Rows rows;
    for (int i = 0; i < 50; ++i) rows.push_back(RowId(next++));
    told.note(rows);
  }
  const LookupSample::Copy copy = told.check();
  BOOST_TEST(copy.in_batch.size() == LookupSample::kBatchesMax);
  BOOST_TEST(copy.rows.size() >= LookupSample::kEntries / 4);
}

BOOST_AUTO_TEST_CASE(a_burst_of_few_rows_a_batch_ends) {
  Told told(std::nullopt);
  uint64_t next = 0;
  told.burst([&] { return Rows{RowId(next++), RowId(next++)}; });
  const LookupSample::Copy copy = told.check();
  BOOST_TEST(copy.in_batch.size() == LookupSample::kBatchesMax);
  BOOST_TEST(copy.rate == 1);
}

BOOST_AUTO_TEST_CASE(it_begins_anew_where_the_rate_has_become_too_low) {
  Random random(8);
  Told told;
  for (int batch = 0; batch < 100; ++batch) told.note(random_rows(random, 0, 4'000'000, 20'000));
  BOOST_TEST(told.check().rate < 1.0 / 16);
  for (size_t batch = 0; batch <= LookupSample::kBatchesMax; ++batch)
    told.note({RowId(batch % 7), RowId(1000 + batch % 3000)});
  const LookupSample::Copy copy = told.check();
  BOOST_TEST(copy.rate == 1);
  BOOST_TEST(copy.in_batch.size() < 102u);
  BOOST_TEST(!copy.rows.empty());
}

// Each burst fills the sample by itself; the next one comes when 64 times its cost has been done.
BOOST_AUTO_TEST_CASE(it_watches_in_bursts) {
  Random random(9);
  Told told(std::nullopt);
  BOOST_TEST(told.sample.is_watching());
  constexpr uint64_t kCost = 10;
  constexpr uint64_t kWork = 25;
  uint64_t burst_begin = 0;
  for (int burst = 0; burst < 6; ++burst) {
    const uint64_t first = 1000 * static_cast<uint64_t>(burst);
    told.burst([&] { return random_rows(random, first, 50'000, 3000); }, kCost);
    const LookupSample::Copy copy = told.check();
    BOOST_TEST(copy.first_batch > burst_begin);
    BOOST_TEST(copy.rows.size() > LookupSample::kEntries * 7 / 8);
    const uint64_t batches = told.batches.size() - burst_begin;
    uint64_t passed = 1;
    for (; !told.sample.is_watching(); passed += kWork) told.note({}, kCost, kWork);
    BOOST_TEST(passed >= 64 * kCost * batches);
    BOOST_TEST(passed < 64 * kCost * batches + kWork);
    burst_begin = told.batches.size();
    BOOST_TEST((told.sample.copy().rows == copy.rows));  // until then it stays as it is
    for (const uint64_t quarters : {1, 3}) {             // of the next burst
      while (told.batches.size() < burst_begin + batches * quarters / 4)
        told.note(random_rows(random, 0, 50'000, 3000), kCost);
      BOOST_TEST(told.sample.is_watching());
      const LookupSample::Copy part = told.check();
      BOOST_TEST(
          (quarters == 1 ? part.first_batch > copy.first_batch : part.first_batch == burst_begin));
      BOOST_TEST(part.rows.size() > LookupSample::kEntries * 5 / 8);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_burst_follows_rows_that_become_less) {
  Random random(11);
  Told told(std::nullopt);
  for (const uint64_t rows : {400'000ull, 3'000ull}) {
    RandomBatches batches(random, rows, 1000);
    told.burst([&] { return batches.next(); });
    told.rest();
  }
  const LookupSample::Copy copy = told.check();
  BOOST_TEST(copy.rate == 1);
  BOOST_TEST(distinct(copy.rows) > 2'900u);
}

BOOST_AUTO_TEST_CASE(a_burst_follows_rows_that_become_more) {
  Random random(10);
  Told told(std::nullopt);
  for (const uint64_t rows : {4'000ull, 400'000ull, 40'000ull, 400'000ull}) {
    RandomBatches batches(random, rows, 2000);
    told.rest();
    told.burst([&] { return batches.next(); });
  }
  const LookupSample::Copy copy = told.check();
  BOOST_TEST(copy.rate < 1);
  BOOST_TEST(distinct(copy.rows) > 3'800u);
  BOOST_TEST(distinct(copy.rows) < 8'600u);
}

BOOST_AUTO_TEST_CASE(it_can_be_held) {
  Told told(false);
  for (uint64_t batch = 0; batch < 10; ++batch) BOOST_TEST(!told.note({RowId(batch)}));
  BOOST_TEST(told.sample.watched_batches() == 0u);
  told.sample.hold(std::nullopt);
  BOOST_TEST(told.note({RowId(7)}));
  BOOST_TEST(told.sample.watched_batches() == 1u);
}

BOOST_AUTO_TEST_CASE(any_rows_are_sampled_alike) {
  constexpr uint64_t kRows = 1 << 20;
  for (const uint64_t stride : {1ull, 2ull, 3ull, 10ull, 64ull, 1000ull, 4096ull, 1ull << 16,
                                (1ull << 20) + 7, 1ull << 32, (1ull << 32) + 1, 0x9e3779b9ull}) {
    for (const uint32_t halvings : {1, 3, 6, 9}) {
      const uint32_t mask = ~(UINT32_MAX >> halvings);
      size_t sampled = 0;
      for (uint64_t i = 0; i < kRows; ++i) sampled += (sample_hash(i * stride) & mask) == 0;
      const double expected = static_cast<double>(kRows) / (1 << halvings);
      BOOST_TEST_CONTEXT("stride " << stride << ", halvings " << halvings << ": " << sampled) {
        BOOST_TEST(std::abs(static_cast<double>(sampled) - expected) < 5 * std::sqrt(expected));
      }
    }
  }
}

namespace {

// What an engine of few rows has noted, all of them: tables and ids, sorted, of each batch.
using Noted = std::vector<std::vector<std::pair<uint32_t, int64_t>>>;

Noted noted_by(Engine& engine) {
  const LookupSample::Copy copy = engine.lookup_sample();
  BOOST_TEST(copy.rate == 1);
  BOOST_TEST(copy.first_batch == 0u);
  Noted noted;
  size_t at = 0;
  for (const uint32_t count : copy.in_batch) {
    noted.emplace_back();
    for (const size_t end = at + count; at < end; ++at) {
      const auto [table, id] = engine.place_of(copy.rows[at]);
      noted.back().push_back({table.value, static_cast<int64_t>(id)});
    }
    std::sort(noted.back().begin(), noted.back().end());
  }
  return noted;
}

Noted::value_type rows_of(const std::vector<Feature>& features) {
  std::set<std::pair<uint32_t, int64_t>> rows;
  for (const Feature& feature : features) {
    for (size_t i = 0; i < feature.ids.size(); ++i) {
      if (feature.bag_of(i) >= 0) rows.insert({feature.table, feature.ids[i]});
    }
  }
  return {rows.begin(), rows.end()};
}

Noted rows_of_each(const std::vector<std::vector<int64_t>>& batches) {
  Noted rows;
  for (const std::vector<int64_t>& ids : batches) rows.push_back(rows_of({GatedStore::batch(ids)}));
  return rows;
}

}  // namespace

// Rows in dram and not, planned or pooled at once, padding, ids behind the last bag.
BOOST_AUTO_TEST_CASE(an_engine_notes_the_rows_of_every_batch_once) {
  for (const bool evicting : {false, true}) {
    Random random(evicting ? 21 : 22);
    TempDirectory directory;
    EngineConfig config;
    config.tables = {make_table("a", 300, 4), make_table("b", 40, 4), make_table("c", 900, 7)};
    config.optimizer = OptimizerKind::kSgd;
    if (evicting) {
      config.ssd_path = directory / "store";
      config.dram_bytes = all_rows_bytes(config) / 2;
    }
    auto created = Engine::create(config);
    check_ok(created.status());
    const auto engine = created.take();
    Noted expected;
    std::vector<float> out(100 * 16);
    for (int batch = 0; batch < 120; ++batch) {
      const std::vector<Feature> features = random_batch(random, config, 60);
      if (features.empty()) continue;
      const auto inputs = inputs_of(features);
      const std::vector<FeatureForward> forwards(features.size(), {.out = out.data()});
      if (random.one_in(2)) {
        check_ok(engine->lookup(inputs, forwards));
      } else {
        auto plan = engine->plan(inputs, true);
        check_ok(plan.status());
        engine->release(*plan.value());
      }
      const float values[7] = {};
      const int64_t written = static_cast<int64_t>(random.below(300));
      check_ok(engine->write_rows(TableId(0), {&written, 1}, values, nullptr));  // no lookup
      expected.push_back(rows_of(features));
    }
    BOOST_TEST((noted_by(*engine) == expected));
    check_ok(engine->close());
    BOOST_TEST((noted_by(*engine) == expected));
  }
}

BOOST_AUTO_TEST_CASE(prefetched_batches_are_noted_once_in_order) {
  GatedStore bench;
  const auto wait_until_ready = [&](uint64_t ticket) {
    while (bench.engine->is_prefetched(ticket) && noted_by(*bench.engine).size() < 2)
      std::this_thread::yield();
  };
  bench.prefetch(GatedStore::batch({1, 2, 1}));
  const uint64_t second = bench.announce(GatedStore::batch({2, 3}));
  bench.engine->prefetch(second);
  wait_until_ready(second);  // both are planned
  bench.train(GatedStore::batch({1, 2, 1}), 0);
  BOOST_TEST((noted_by(*bench.engine) == rows_of_each({{1, 2}, {2, 3}})));
  BOOST_TEST(bench.engine->cancel_prefetch(second) == 1u);
  bench.look_up(GatedStore::batch({30}));
  BOOST_TEST((noted_by(*bench.engine) == rows_of_each({{1, 2}, {2, 3}, {30}})));
  bench.announce(GatedStore::batch({31}));  // never planned
  bench.engine->cancel_prefetch(UINT64_MAX);
  bench.look_up(GatedStore::batch({32}));
  BOOST_TEST((noted_by(*bench.engine) == rows_of_each({{1, 2}, {2, 3}, {30}, {32}})));
}

BOOST_AUTO_TEST_CASE(a_batch_that_is_planned_again_is_noted_once) {
  GatedStore bench;
  bench.gate.close();
  bench.prefetch(GatedStore::batch({5, 6}));
  bench.gate.wait_for_reader();
  bench.prefetch(GatedStore::batch({6, 17}));
  bench.gate.fail_next();
  bench.gate.open();
  bench.train(GatedStore::batch({5, 6}), 1);  // its read has failed
  bench.train(GatedStore::batch({6, 17}), 1);
  BOOST_TEST((noted_by(*bench.engine) == rows_of_each({{5, 6}, {6, 17}})));
  // Plans whose slots others take.
  const uint64_t ticket = bench.announce(GatedStore::batch({20, 21}));
  bench.engine->prefetch(ticket);
  while (bench.engine->lookup_sample().in_batch.size() < 3) std::this_thread::yield();
  const Feature large = GatedStore::batch({0, 1, 2, 3, 4, 7, 8, 9});
  const FeatureInput input = large.input();
  auto plan = bench.engine->plan({&input, 1}, false, Engine::Prefetched::kNo);
  check_ok(plan.status());
  bench.engine->release(*plan.value());
  const uint64_t revoked = bench.engine->stats().planner.plans_revoked;
  BOOST_TEST(revoked == 1u);
  bench.train(GatedStore::batch({20, 21}), 1);
  BOOST_TEST((noted_by(*bench.engine) == rows_of_each({{5, 6}, {6, 17}, {20, 21}, large.ids})));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
