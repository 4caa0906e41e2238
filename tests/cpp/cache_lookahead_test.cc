// The window of batches to come against a plain list, and victims by what is expected.
#include <malloc.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <numeric>
#include <set>
#include <vector>

#include "cache/lookahead_window.h"
#include "cache_fixture.h"
#include "kernels_fixture.h"

namespace te {
namespace {

using testing::CacheModel;
using testing::Random;
using Rows = std::vector<uint64_t>;

// The same as a list of batches, searched through.
struct PlainWindow {
  struct Batch {
    std::vector<RowId> rows;
    bool is_over = false;
  };
  std::vector<Batch> batches;  // of all times
  size_t first = 0;

  bool has(size_t batch, RowId row) const {
    const auto& rows = batches[batch].rows;
    return std::find(rows.begin(), rows.end(), row) != rows.end();
  }
  std::vector<RowId> push(const std::vector<RowId>& rows) {
    std::vector<RowId> first_uses;
    for (RowId row : rows) {
      bool is_known = row.is_none() || std::count(first_uses.begin(), first_uses.end(), row) > 0;
      for (size_t b = first; b < batches.size() && !is_known; ++b) is_known = has(b, row);
      if (!is_known) first_uses.push_back(row);
    }
    batches.push_back({rows});
    return first_uses;
  }
  uint32_t next_use(size_t batch, RowId row) const {
    for (size_t b = batch + 1; b < batches.size(); ++b) {
      if (has(b, row)) return static_cast<uint32_t>(b + 1);
    }
    return 0;
  }
  uint32_t last_use(RowId row) const {
    size_t b = batches.size();
    while (!has(b - 1, row)) --b;
    return static_cast<uint32_t>(b);
  }
  void finish(size_t batch) {
    batches[batch].is_over = true;
    while (first < batches.size() && batches[first].is_over) ++first;
  }
};

std::vector<RowId> random_rows(Random& random, uint64_t spread) {
  std::vector<RowId> rows;
  for (size_t n = random.below(40); n > 0; --n)
    rows.push_back(random.one_in(10) ? RowId::none() : RowId(random.below(spread) << 33));
  return rows;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(cache_lookahead)

BOOST_AUTO_TEST_CASE(the_window_is_the_list) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      const uint64_t spread = 1 + random.below(seed % 2 == 0 ? 30 : 3000);
      const size_t length = 1 + random.below(80);
      LookaheadWindow window;
      PlainWindow plain;
      for (int i = 0; i < 400; ++i) {
        if (plain.batches.size() - plain.first < length) {
          const auto rows = random_rows(random, spread);
          std::vector<LookaheadWindow::Use> uses;
          BOOST_TEST_REQUIRE(window.push(rows, uses) == plain.batches.size() + 1);
          std::vector<RowId> first_uses;
          for (LookaheadWindow::Use use : uses) {
            BOOST_TEST_REQUIRE(window.batch_of(use) == plain.batches.size() + 1);
            first_uses.push_back(window.row_of(use));
          }
          BOOST_TEST_REQUIRE((first_uses == plain.push(rows)));
        } else {  // mostly the oldest; another may end before it
          const size_t batch = plain.first + (random.one_in(4) ? random.below(length) : 0);
          for (size_t k = 0; k < plain.batches[batch].rows.size(); ++k) {
            const RowId row = plain.batches[batch].rows[k];
            const auto& rows = plain.batches[batch].rows;
            if (row.is_none() ||
                std::find(rows.begin(), rows.end(), row) - rows.begin() != ptrdiff_t(k))
              continue;
            BOOST_TEST_REQUIRE(window.next_use(uint32_t(batch + 1), k) ==
                               plain.next_use(batch, row));
            const LookaheadWindow::Use last = window.last_use(row);
            BOOST_TEST_REQUIRE(window.holds(last));
            BOOST_TEST_REQUIRE((window.row_of(last) == row));
            BOOST_TEST_REQUIRE(window.batch_of(last) == plain.last_use(row));
          }
          plain.finish(batch);
          BOOST_TEST_REQUIRE(window.finish(uint32_t(batch + 1)) == plain.first);
        }
        BOOST_TEST_REQUIRE(window.first() == plain.first + 1);
        BOOST_TEST_REQUIRE(window.end() == plain.batches.size() + 1);
      }
      window.clear();
      BOOST_TEST_REQUIRE(window.lookups() == 0u);
      BOOST_TEST_REQUIRE(window.last_use(RowId(7)) == LookaheadWindow::kNoUse);
      std::vector<LookaheadWindow::Use> first_uses;
      (void)window.push(std::vector<RowId>{RowId(7)}, first_uses);
      BOOST_TEST_REQUIRE(first_uses.size() == 1u);
    }
  }
}

// A long stream through a short window: its memory is that of the window.
BOOST_AUTO_TEST_CASE(memory_follows_the_window) {
  Random random(3);
  LookaheadWindow window;
  std::vector<LookaheadWindow::Use> first_uses;
  uint64_t bytes = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::vector<RowId> rows(50);
    for (RowId& row : rows) row = RowId(random.below(uint64_t{1} << 40));
    first_uses.clear();
    const uint32_t batch = window.push(rows, first_uses);
    if (batch > 40) window.finish(batch - 40);
    if (i == 1000) bytes = window.memory_bytes();
  }
  BOOST_TEST(window.memory_bytes() == bytes);
  BOOST_TEST(bytes <= 2 * 4096 * 12 + 4 * 4096 * 4);
}

// Batches known to the end: the misses are exactly those of Belady's rule batch by batch.
BOOST_AUTO_TEST_CASE(with_an_endless_window_it_is_belady) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      const uint64_t rows = 20 + random.below(200);
      const auto limit = static_cast<uint32_t>(12 + random.below(rows));
      std::vector<Rows> batches;
      for (int b = 0; b < 300; ++b) {
        std::set<uint64_t> distinct;
        for (size_t k = random.below(13); k > 0; --k) distinct.insert(random.below(rows));
        batches.emplace_back(distinct.begin(), distinct.end());
      }
      const auto next_of = [&](size_t batch, uint64_t row) -> uint32_t {
        for (size_t b = batch + 1; b < batches.size(); ++b) {
          if (std::count(batches[b].begin(), batches[b].end(), row) > 0)
            return static_cast<uint32_t>(b + 1);
        }
        return 0;
      };
      CacheModel cache("lookahead", limit, rows);
      std::set<uint64_t> resident;
      uint64_t misses = 0;
      for (size_t b = 0; b < batches.size(); ++b) {
        const std::set<uint64_t> wanted(batches[b].begin(), batches[b].end());
        std::vector<std::pair<uint32_t, uint64_t>> others;  // by next use, the furthest first
        for (uint64_t row : resident) {
          if (wanted.count(row) == 0) others.emplace_back(next_of(b, row) - 1, row);  // 0: last
        }
        std::sort(others.rbegin(), others.rend());
        size_t victim = 0;
        for (uint64_t row : wanted) {
          if (resident.count(row) > 0) continue;
          ++misses;
          size_t held = 0;
          for (uint64_t w : wanted) held += resident.count(w);
          if (resident.size() == limit) resident.erase(others[victim++].second);
          resident.insert(row);
        }
        cache.begin(batches[b]);
        std::vector<uint32_t> next;
        for (uint64_t row : batches[b]) next.push_back(next_of(b, row));
        cache.end(batches[b], next);
        cache.policy->finished(static_cast<uint32_t>(b + 1));
        BOOST_TEST_REQUIRE(cache.misses == misses);
      }
    }
  }
}

// A row that waits turns up in a later batch; one that was expected does not come.
BOOST_AUTO_TEST_CASE(expectations_come_and_go) {
  CacheModel cache("lookahead", 4, 100);
  for (uint64_t row = 1; row <= 4; ++row) cache.step({row});
  const auto expect = [&](uint64_t row, uint32_t batch) {
    cache.policy->expect({&cache.slot_of.at(row), 1}, {&batch, 1});
  };
  expect(1, 9);
  expect(2, 5);
  BOOST_TEST(cache.evict(1) == Rows{3});  // nothing is known of 3 and 4
  BOOST_TEST(cache.evict(1) == Rows{4});
  BOOST_TEST(cache.evict(1) == Rows{1});  // the furthest
  cache.step({5});
  expect(5, 7);
  cache.policy->finished(6);  // 2 was not used
  BOOST_TEST(cache.evict(1) == Rows{2});
  BOOST_TEST(cache.evict(1) == Rows{5});
}

// A batch that is given up: its rows leave without having been victims.
BOOST_AUTO_TEST_CASE(nobody_expects_the_next_row_of_a_slot) {
  CacheModel cache("lookahead", 2, 100);
  cache.step({1});
  const uint32_t batch = 9;
  cache.policy->expect({&cache.slot_of.at(1), 1}, {&batch, 1});
  BOOST_TEST(cache.policy->victim_next_use() == 9u);
  cache.directory.release(cache.slot_of.at(1));
  cache.slot_of.erase(1);
  cache.step({2});
  BOOST_TEST(cache.policy->victim_next_use() == EvictionPolicy::kNoKnownUse);
}

BOOST_AUTO_TEST_CASE(a_row_that_moves_is_still_expected) {
  CacheModel cache("lookahead", 3, 100);
  cache.step({1, 2});
  const uint32_t batch = 9;
  const SlotIndex from = cache.slot_of.at(1);
  cache.policy->expect({&from, 1}, {&batch, 1});
  const SlotIndex to = cache.directory.take(RowId(1), BlockAddress::none());
  cache.directory.mark(to) = cache.directory.mark(from);
  cache.directory[to].frequency = cache.directory[from].frequency;
  cache.directory.release(from);
  cache.slot_of.at(1) = to;
  cache.policy->moved({&from, 1}, {&to, 1});
  BOOST_TEST(cache.evict(1) == Rows{2});
  BOOST_TEST(cache.policy->victim_next_use() == 9u);
  BOOST_TEST(cache.evict(1) == Rows{1});
  BOOST_TEST(cache.policy->victim_next_use() == 0u);
}

// Rows that are announced and cancelled again and again: their queues do not grow.
BOOST_AUTO_TEST_CASE(cancelled_batches_leave_no_entries) {
  constexpr uint32_t kRows = 5000;
  CacheModel cache("lookahead", kRows, kRows);
  Rows rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  cache.step(rows);
  std::vector<SlotIndex> slots;
  for (const auto& [row, slot] : cache.slot_of) slots.push_back(slot);
  const size_t before = mallinfo2().uordblks;
  for (uint32_t batch = 1; batch <= 200; ++batch) {
    const std::vector<uint32_t> batches(slots.size(), batch);
    cache.policy->expect(slots, batches);
    cache.policy->finished(batch);
  }
  BOOST_TEST(mallinfo2().uordblks - before < kRows * 40u);
  BOOST_TEST(cache.evict(kRows).size() == kRows);
}

BOOST_AUTO_TEST_CASE(a_row_that_will_not_be_used_is_no_longer_expected) {
  CacheModel cache("lookahead", 3, 10);
  cache.begin({1, 2, 3});
  cache.end({1, 2, 3}, {4, 5, 6});
  // Batch 6 will not come, and 5 neither.
  for (uint64_t row : {3, 2}) {
    const uint32_t none = 0;
    cache.policy->expect({&cache.slot_of.at(row), 1}, {&none, 1});
  }
  const std::vector<uint64_t> left = cache.evict(3);
  BOOST_TEST((std::set<uint64_t>(left.begin(), left.begin() + 2) == std::set<uint64_t>{2, 3}));
  BOOST_TEST(left[2] == 1u);
}

BOOST_AUTO_TEST_CASE(random_expectations_lose_no_row) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      const auto limit = static_cast<uint32_t>(8 + random.below(60));
      CacheModel cache("lookahead", limit, 200);
      uint32_t now = 0;
      for (int i = 0; i < 400; ++i) {
        std::set<uint64_t> distinct;
        for (size_t k = 1 + random.below(8); k > 0; --k) distinct.insert(random.below(200));
        const Rows batch(distinct.begin(), distinct.end());
        cache.begin(batch);
        std::vector<uint32_t> next;
        for (size_t k = 0; k < batch.size() && !random.one_in(5); ++k)
          next.push_back(random.one_in(3) ? 0 : now + 1 + static_cast<uint32_t>(random.below(300)));
        cache.end(batch, next);
        if (random.one_in(2)) cache.policy->finished(now += static_cast<uint32_t>(random.below(5)));
        if (random.one_in(5) && !cache.slot_of.empty()) {
          const uint32_t later =
              random.one_in(3) ? 0 : now + 1 + static_cast<uint32_t>(random.below(100));
          cache.policy->expect({&cache.slot_of.begin()->second, 1}, {&later, 1});
        }
        if (random.one_in(50)) {
          std::vector<SlotIndex> all;
          for (const auto& [row, slot] : cache.slot_of) all.push_back(slot);
          cache.policy->clear();
          cache.policy->park(all);
        }
      }
      cache.evict(limit);
      BOOST_TEST_REQUIRE(cache.directory.used() == 0u);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
