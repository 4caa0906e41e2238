// The contract of every eviction policy, the exact order of LRU, and what counting uses is for.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <list>
#include <set>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "cache/park_queue.h"
#include "cache_fixture.h"
#include "kernels_fixture.h"

namespace te {
namespace {

using testing::CacheModel;
using testing::Random;
using Rows = std::vector<uint64_t>;

const char* const kPolicies[] = {"lru", "lfu", "lookahead", "s3fifo"};

Rows random_batch(Random& random, uint64_t rows, size_t size) {
  std::set<uint64_t> distinct;
  while (distinct.size() < size) distinct.insert(random.below(rows));
  Rows batch(distinct.begin(), distinct.end());
  for (size_t i = batch.size(); i > 1; --i) std::swap(batch[i - 1], batch[random.below(i)]);
  return batch;
}

// Rows 0, 1, ... with probability in proportion to 1 / (rank + 1).
uint64_t zipf(Random& random, uint64_t rows) {
  return static_cast<uint64_t>(std::pow(static_cast<double>(rows), random.real())) - 1;
}

Rows zipf_batch(Random& random, uint64_t rows, size_t lookups, uint64_t shift) {
  std::set<uint64_t> distinct;
  for (size_t i = 0; i < lookups; ++i) distinct.insert((zipf(random, rows) + shift) % rows);
  return Rows(distinct.begin(), distinct.end());
}

double hit_ratio(const CacheModel& cache) {
  return static_cast<double>(cache.hits) / static_cast<double>(cache.hits + cache.misses);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(cache_policy)

BOOST_AUTO_TEST_CASE(policies_are_made_by_name) {
  SlotDirectory directory(1);
  for (const char* name : kPolicies)
    BOOST_TEST(make_eviction_policy(name, directory, 10)->name() == name);
  BOOST_TEST(make_eviction_policy("belady", directory, 10) == nullptr);
}

// Several batches in flight, ended in any order: victims are unpinned and distinct (CacheModel
// checks), and at the end every row is a victim exactly once.
BOOST_AUTO_TEST_CASE(victims_are_unpinned_distinct_and_complete) {
  for (const char* name : kPolicies) {
    for (uint64_t seed = 1; seed <= 100; ++seed) {
      BOOST_TEST_CONTEXT(name << " seed " << seed) {
        Random random(seed);
        const auto limit = static_cast<uint32_t>(1 + random.below(60));
        CacheModel cache(name, limit, 200);
        std::vector<Rows> in_flight;
        for (int i = 0; i < 300; ++i) {
          const size_t room = limit - cache.directory.pinned();
          if (room > 0 && random.one_in(2)) {
            in_flight.push_back(random_batch(random, 200, 1 + random.below(std::min(room, 12ul))));
            cache.begin(in_flight.back());
          } else if (!in_flight.empty()) {
            std::swap(in_flight[random.below(in_flight.size())], in_flight.back());
            cache.end(in_flight.back());
            in_flight.pop_back();
          }
          BOOST_TEST_REQUIRE(cache.directory.used() <= limit);
        }
        for (const Rows& batch : in_flight) cache.end(batch);
        BOOST_TEST_REQUIRE(cache.directory.pinned() == 0u);
        cache.evict(limit);
        BOOST_TEST_REQUIRE(cache.directory.used() == 0u);
      }
    }
  }
}

// Millions of hits make stale entries; they must neither pile up in the order nor lose a row.
BOOST_AUTO_TEST_CASE(stale_entries_are_dropped) {
  for (const char* name : kPolicies) {
    CacheModel cache(name, 8, 100);
    for (uint64_t i = 0; i < 200'000; ++i) cache.step({i % 7, (i + 3) % 7, 7 + (i >> 4) % 2});
    BOOST_TEST(cache.evict(100).size() == 8u);
    BOOST_TEST(cache.slot_of.empty());
  }
}

BOOST_AUTO_TEST_CASE(limits_may_shrink_and_grow) {
  for (const char* name : kPolicies) {
    Random random(11);
    CacheModel cache(name, 64, 1000);
    for (int i = 0; i < 500; ++i) {
      const auto limit = static_cast<uint32_t>(8 + random.below(57));
      if (cache.directory.used() > limit) cache.evict(cache.directory.used() - limit);
      // As long as rows stand above the limit it cannot shrink that far (the mover moves them).
      uint32_t end = 0;
      for (const auto& [row, slot] : cache.slot_of) end = std::max(end, slot.value + 1);
      cache.directory.set_limit(std::max(limit, end));
      cache.policy->set_limit(std::max(limit, end));
      for (int k = 0; k < 5; ++k) cache.step(random_batch(random, 1000, 1 + random.below(8)));
    }
  }
}

// What threads prepare comes into the queues as if one had parked all.
BOOST_AUTO_TEST_CASE(parking_by_threads_changes_no_victim) {
  constexpr uint32_t kLimit = 100'000;
  ThreadPool threads(3);
  for (const char* name : kPolicies) {
    for (PolicyOf tier : {PolicyOf::kDram, PolicyOf::kDevice}) {
      std::vector<SlotIndex> victims[2];
      for (bool by_threads : {false, true}) {
        Random random(5);
        SlotDirectory directory(kLimit);
        const auto policy = make_eviction_policy(name, directory, 1'000'000, tier);
        directory.set_limit(kLimit);
        policy->set_limit(kLimit);
        for (uint32_t i = 0; i < kLimit; ++i) directory.take(RowId(i), BlockAddress::none());
        uint32_t mark = 0;
        for (int batch = 0; batch < 12; ++batch) {
          std::vector<SlotIndex> parked;
          for (uint32_t i = 0; i < kLimit; ++i) {
            if (!random.one_in(2)) continue;
            parked.emplace_back(i);
            directory.mark(parked.back()) = ++mark;
          }
          by_threads ? policy->park_many(parked, threads) : policy->park(parked);
        }
        for (size_t count : {1ul, 20'000ul, 200'000ul})
          policy->pop_victims(count, victims[by_threads]);
      }
      BOOST_TEST_CONTEXT(name) {
        BOOST_TEST(victims[0].size() > 99'000u);
        BOOST_TEST((victims[0] == victims[1]));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(entries_are_taken_in_order_until_one_is_not_wanted) {
  ParkChunkPool pool;
  ParkQueue queue(pool), behind(pool);
  const auto taken = [&](uint32_t up_to) {
    std::vector<uint32_t> marks;
    queue.pop_while(
        [&](ParkedSlot entry) {
          if (entry.mark > up_to) return false;
          marks.push_back(entry.mark);
          return true;
        },
        [](SlotIndex) {});
    return marks;
  };
  BOOST_TEST(taken(5).empty());
  uint32_t next = 0, first = 0;
  for (uint32_t up_to : {0u, 100u, 125u, 126u, 127u, 400u, 1000u}) {
    for (; next < up_to + 130; ++next) queue.push({SlotIndex(next), next});
    for (uint32_t mark : taken(up_to)) BOOST_TEST_REQUIRE(mark == first++);
    BOOST_TEST(first == up_to + 1);
    BOOST_TEST(queue.size() == next - first);
    BOOST_TEST(queue.front()->mark == first);
  }
  for (int i = 0; i < 3; ++i) behind.push({SlotIndex(next), next}), ++next;
  queue.append(behind);
  BOOST_TEST(taken(next).size() == next - first);
  BOOST_TEST((queue.size() == 0u && queue.front() == nullptr));
  queue.push({SlotIndex(1), next});
  BOOST_TEST((taken(next) == std::vector{next}));
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(cache_lru)

BOOST_AUTO_TEST_CASE(order_is_that_of_the_model) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      const auto limit = static_cast<uint32_t>(4 + random.below(100));
      CacheModel cache("lru", limit, 300);
      std::list<uint64_t> model;  // oldest first
      for (int i = 0; i < 400; ++i) {
        const Rows batch = random_batch(random, 300, 1 + random.below(4));
        for (uint64_t row : batch) model.remove(row);
        Rows expected;
        while (model.size() + batch.size() > limit) {
          expected.push_back(model.front());
          model.pop_front();
        }
        const Rows left = cache.step(batch);
        BOOST_TEST_REQUIRE(left == expected);
        model.insert(model.end(), batch.begin(), batch.end());
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(cache_lfu)

BOOST_AUTO_TEST_CASE(hot_rows_stay_in_a_zipf_stream) {
  double ratios[2];
  for (int p = 0; p < 2; ++p) {
    Random random(5);
    CacheModel cache(kPolicies[p], 500, 10000);
    for (int i = 0; i < 2000; ++i) cache.step(zipf_batch(random, 10000, 50, 0));
    ratios[p] = hit_ratio(cache);
  }
  BOOST_TEST_MESSAGE("hit ratio of lru " << ratios[0] << ", of lfu " << ratios[1]);
  BOOST_TEST(ratios[1] > ratios[0] + 0.02);
}

// Between two uses of the hot rows more others come than the cache holds; LRU would never hit.
BOOST_AUTO_TEST_CASE(a_scan_does_not_push_out_hot_rows) {
  CacheModel cache("lfu", 100, 100000);
  Rows hot(50);
  for (size_t i = 0; i < hot.size(); ++i) hot[i] = i;
  for (uint64_t row = 1000; row < 21'000; row += 20) {
    if (row % 140 == 0) cache.step(hot);
    Rows scanned(20);
    for (size_t i = 0; i < scanned.size(); ++i) scanned[i] = row + i;
    cache.step(scanned);
  }
  for (uint64_t row : hot) BOOST_TEST(cache.slot_of.count(row) == 1u);
  BOOST_TEST(cache.hits > 120 * hot.size());
}

// What was hot long ago leaves once other rows are: counts age.
BOOST_AUTO_TEST_CASE(yesterdays_hot_rows_leave) {
  CacheModel cache("lfu", 100, 10000);
  Random random(6);
  for (int i = 0; i < 500; ++i) cache.step(zipf_batch(random, 10000, 50, 0));
  for (int i = 0; i < 1000; ++i) cache.step(zipf_batch(random, 10000, 50, 5000));
  const uint64_t hits = cache.hits, misses = cache.misses;
  for (int i = 0; i < 500; ++i) cache.step(zipf_batch(random, 10000, 50, 5000));
  const double late = static_cast<double>(cache.hits - hits) /
                      static_cast<double>(cache.hits - hits + cache.misses - misses);
  CacheModel fresh("lfu", 100, 10000);
  for (int i = 0; i < 1000; ++i) fresh.step(zipf_batch(random, 10000, 50, 5000));
  BOOST_TEST_MESSAGE("after the shift " << late << ", in a fresh cache " << hit_ratio(fresh));
  BOOST_TEST(late > hit_ratio(fresh) - 0.03);
}

// A row that returns has its count back: it outlives a row that is new.
BOOST_AUTO_TEST_CASE(an_absent_row_keeps_its_count) {
  for (uint64_t rows : {uint64_t{16}, uint64_t{1} << 40}) {  // a count a row, and hashed
    CacheModel cache("lfu", 4, rows);
    for (int i = 0; i < 6; ++i) cache.step({1});
    cache.evict(4);
    BOOST_TEST(cache.slot_of.empty());
    cache.step({1});
    cache.step({2});
    cache.step({2});
    BOOST_TEST(cache.evict(1) == Rows{2});
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
