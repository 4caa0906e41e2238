// What the lookahead policy learns: counts of absent rows, and the worth of waiting for a row.
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <vector>

#include "cache/absent_counts.h"
#include "cache/reuse_profile.h"
#include "cache_fixture.h"
#include "kernels_fixture.h"

namespace te {
namespace {

using testing::CacheModel;
using testing::Random;

// Rows are used in turn, each so often every `gap` marks; then they are new ones.
struct Uses {
  explicit Uses(uint32_t limit) { profile.set_limit(limit); }
  void use(uint64_t row, size_t level) {
    profile.use(RowId(row), ++now, level);
    profile.advance(1, now, window);
  }
  ReuseProfile profile;
  uint32_t now = 0;
  uint32_t window = 0;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(cache_absent_counts)

BOOST_AUTO_TEST_CASE(counts_come_back_once) {
  AbsentCounts counts;
  counts.set_rows(4096);
  for (uint64_t row = 0; row < 500; ++row)
    counts.put(RowId(row << 40), static_cast<uint8_t>(1 + row % 63));
  for (uint64_t row = 0; row < 500; ++row) {
    BOOST_TEST(counts.take(RowId(row << 40)) == 1 + row % 63);
    BOOST_TEST(counts.take(RowId(row << 40)) == 0);
  }
}

BOOST_AUTO_TEST_CASE(rows_of_many_uses_outlast_the_others) {
  AbsentCounts counts;
  counts.set_rows(800);
  for (uint64_t row = 0; row < 200; ++row) counts.put(RowId(row), 20);
  for (uint64_t row = 1000; row < 101'000; ++row) counts.put(RowId(row), 1);
  size_t kept = 0;
  for (uint64_t row = 0; row < 200; ++row) kept += counts.take(RowId(row)) == 20;
  BOOST_TEST(kept > 190u);
  size_t recent = 0;
  for (uint64_t row = 100'950; row < 101'000; ++row) recent += counts.take(RowId(row)) == 1;
  BOOST_TEST(recent > 40u);
}

// While an index grows, the slots of a tier become fewer, a few at a time.
BOOST_AUTO_TEST_CASE(a_small_change_of_room_forgets_nothing) {
  AbsentCounts counts;
  counts.set_rows(4096);
  counts.put(RowId(1), 9);
  for (uint64_t rows = 4096; rows > 3700; rows -= 3) counts.set_rows(rows);
  counts.set_rows(4500);
  BOOST_TEST(counts.take(RowId(1)) == 9);
  counts.put(RowId(1), 9);
  counts.set_rows(8192);
  BOOST_TEST(counts.take(RowId(1)) == 0);
}

BOOST_AUTO_TEST_CASE(rows_without_a_count_take_nobodys_place) {
  AbsentCounts counts;
  counts.set_rows(8);
  for (uint64_t row = 0; row < 8; ++row) counts.put(RowId(row), 3);
  for (uint64_t row = 8; row < 100; ++row) counts.put(RowId(row), 0);
  for (uint64_t row = 0; row < 8; ++row) BOOST_TEST(counts.take(RowId(row)) == 3);
}

BOOST_AUTO_TEST_CASE(few_rows_take_anothers_count) {
  AbsentCounts counts;
  counts.set_rows(8000);
  for (uint64_t row = 0; row < 8000; ++row) counts.put(RowId(row), 9);
  size_t mistaken = 0;
  for (uint64_t row = 1 << 20; row < (1 << 20) + 20'000; ++row)
    mistaken += counts.take(RowId(row)) != 0;
  BOOST_TEST(mistaken < 20'000 / 100);
}

BOOST_AUTO_TEST_CASE(counts_halve_until_they_are_gone) {
  AbsentCounts counts;
  counts.set_rows(1);
  counts.put(RowId(5), 200);  // saturates
  for (uint8_t left : {31, 15, 7, 3, 1, 0}) {
    counts.halve();
    BOOST_TEST(counts.take(RowId(5)) == left);
    counts.put(RowId(5), left);
  }
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(cache_reuse_profile)

BOOST_AUTO_TEST_CASE(levels_are_half_octaves) {
  const uint8_t firsts[] = {0, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48};
  size_t level = 0;
  for (uint8_t f = 0; f <= ReuseProfile::kFrequencyMax; ++f) {
    if (level + 1 < std::size(firsts) && f == firsts[level + 1]) ++level;
    BOOST_TEST(ReuseProfile::level(f) == level);
    if (f >= 4) BOOST_TEST(ReuseProfile::level(f / 2) == level - ReuseProfile::kLevelsPerHalving);
  }
  BOOST_TEST(level + 1 == ReuseProfile::kLevels);
}

BOOST_AUTO_TEST_CASE(before_anything_is_seen_uses_count_and_age_counts_against) {
  ReuseProfile profile;
  profile.set_limit(1000);
  for (size_t level = 0; level < ReuseProfile::kLevels; ++level) {
    for (uint32_t age : {0u, 500u, 5000u, 50'000u}) {
      if (level > 0) BOOST_TEST(profile.worth(level, age) > profile.worth(level - 1, age));
      BOOST_TEST(profile.worth(level, age) > profile.worth(level, age * 2 + 500));
    }
  }
}

// Ten rows are used every twenty marks, all others once.
BOOST_AUTO_TEST_CASE(rows_that_come_again_are_worth_more_until_they_are_late) {
  Uses uses(100);
  for (uint64_t i = 0; i < 40'000; ++i)
    i % 2 == 0 ? uses.use(i / 2 % 10, 4) : uses.use(1000 + i, 0);
  BOOST_TEST(uses.profile.worth(4, 10) > 50 * uses.profile.worth(0, 10));
  BOOST_TEST(uses.profile.worth(4, 10) > 5 * uses.profile.worth(4, 2000));
  BOOST_TEST(uses.profile.worth(0, 10) < 0.01);
}

// Rows come again after 300 marks, never earlier: the longer one has waited, the more it is worth;
// and one that the next 250 marks do not have is nearly due.
BOOST_AUTO_TEST_CASE(worth_grows_towards_a_use_that_is_due) {
  Uses uses(100);
  for (uint64_t i = 0; i < 60'000; ++i) uses.use(i % 300, 0);
  BOOST_TEST(uses.profile.worth(0, 250) > 2 * uses.profile.worth(0, 20));
  BOOST_TEST(uses.profile.worth(0, 250) > 10 * uses.profile.worth(0, 2500));
  uses.window = 250;
  for (uint64_t i = 0; i < 6000; ++i) uses.use(i % 300, 0);
  BOOST_TEST(uses.profile.worth(0, 20) > 5 * uses.profile.worth(0, 2500));
}

BOOST_AUTO_TEST_CASE(a_row_that_only_changes_its_slot_is_not_used) {
  Uses uses(100);
  for (uint64_t row = 0; row < 5000; ++row) {
    uses.use(row, 3);
    for (int i = 0; i < 50; ++i) uses.profile.use(RowId(row), uses.now, 3);
  }
  BOOST_TEST(uses.profile.worth(3, 0) < 0.01);
}

// Far more rows than can be followed: a part of them tells the same.
BOOST_AUTO_TEST_CASE(a_sample_stands_for_all_rows) {
  Uses few(2000), many(200'000);
  for (uint64_t i = 0; i < 400'000; ++i)
    i % 4 == 0 ? few.use(1'000'000 + i, 0) : few.use(i / 4 * 3 % 3000 + i % 4, 4);
  for (uint64_t i = 0; i < 6'000'000; ++i)
    i % 4 == 0 ? many.use(1'000'000 + i, 0) : many.use(i / 4 * 3 % 300'000 + i % 4, 4);
  for (uint32_t age : {0u, 1000u, 3000u}) {
    const double ratio = few.profile.worth(4, age) / many.profile.worth(4, age * 100);
    BOOST_TEST(std::abs(std::log(ratio)) < 0.5);
  }
}

BOOST_AUTO_TEST_CASE(times_may_start_again) {
  Uses uses(100);
  for (uint64_t i = 0; i < 20'000; ++i) uses.use(i % 50, 2);
  const float before = uses.profile.worth(2, 10);
  uses.profile.forget_times();
  uses.now = 0;
  for (uint64_t i = 0; i < 20'000; ++i) uses.use(i % 50, 2);
  BOOST_TEST(std::abs(uses.profile.worth(2, 10) / before - 1) < 0.5);
}

// Popular rows change now and then: those that were popular once leave in favour of rows of fewer
// uses. A cache of the most used rows would keep them.
BOOST_AUTO_TEST_CASE(a_policy_prefers_rows_in_use_to_rows_of_many_uses) {
  CacheModel cache("lfu", 200, 1 << 30);
  Random random(3);
  for (uint64_t epoch = 0; epoch < 60; ++epoch) {
    if (epoch == 40) cache.hits = cache.misses = 0;
    for (int i = 0; i < 500; ++i) {
      std::set<uint64_t> batch;
      while (batch.size() < 8) batch.insert(epoch * 1000 + random.below(150));
      while (batch.size() < 10) batch.insert(1'000'000 + random.bits() % (1 << 28));
      cache.step({batch.begin(), batch.end()});
    }
  }
  // Of 4000 popular uses an epoch, all but the first of each of 150 rows can be hits.
  const double misses = static_cast<double>(cache.misses) / 20 - 1000;
  BOOST_TEST_MESSAGE("misses of popular rows an epoch: " << misses);
  BOOST_TEST(misses < 600);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
