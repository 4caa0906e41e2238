// S3-FIFO against a model of the paper's algorithm, and what it adds to that: pins, moved rows.
// What every policy must do is in cache_policy_test.cc.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <unordered_map>
#include <unordered_set>

#include "cache_fixture.h"
#include "kernels_fixture.h"

namespace te {
namespace {

using testing::CacheModel;
using testing::Random;
using Rows = std::vector<uint64_t>;

// The algorithm as published, one row at a time, with an exact ghost queue.
class Model {
 public:
  explicit Model(size_t limit)
      : limit_(limit),
        small_max_(std::max(limit / 10, size_t{1})),
        ghosts_max_(limit - limit / 10) {}

  // The rows that left.
  Rows use(uint64_t row) {
    const auto found = uses_.find(row);
    if (found != uses_.end()) {
      found->second = std::min(found->second + 1, 3);
      return {};
    }
    Rows left;
    while (uses_.size() >= limit_) evict(left);
    uses_[row] = 0;
    const auto ghost = std::find(ghosts_.begin(), ghosts_.end(), row);
    (ghost != ghosts_.end() ? main_ : small_).push_back(row);
    if (ghost != ghosts_.end()) *ghost = kGone;
    return left;
  }

 private:
  static constexpr uint64_t kGone = ~uint64_t{0};

  void evict(Rows& left) {
    const bool from_small = small_.size() >= small_max_ || main_.empty();
    std::deque<uint64_t>& queue = from_small ? small_ : main_;
    const uint64_t row = queue.front();
    queue.pop_front();
    int& uses = uses_[row];
    if (from_small ? uses > 1 : uses > 0) {
      uses = from_small ? 0 : uses - 1;
      main_.push_back(row);
      return;
    }
    uses_.erase(row);
    left.push_back(row);
    if (!from_small) return;
    ghosts_.push_back(row);
    if (ghosts_.size() > ghosts_max_) ghosts_.pop_front();
  }

  size_t limit_;
  size_t small_max_;
  size_t ghosts_max_;
  std::unordered_map<uint64_t, int> uses_;  // of the rows in the cache
  std::deque<uint64_t> small_, main_, ghosts_;
};

uint64_t skewed(Random& random, uint64_t rows) {
  return std::min(random.below(rows), std::min(random.below(rows), random.below(rows)));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(cache_s3_fifo)

// Few ghosts: none shares a bucket with so many others that it is lost.
BOOST_AUTO_TEST_CASE(order_is_that_of_the_model) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      const auto limit = static_cast<uint32_t>(1 + random.below(8));
      CacheModel cache("s3fifo", limit, 60);
      Model model(limit);
      for (int i = 0; i < 3000; ++i) {
        const uint64_t row = skewed(random, 40);
        BOOST_TEST_REQUIRE(cache.step({row}) == model.use(row));
      }
    }
  }
}

// Larger caches: hits agree but for ghosts that were lost.
BOOST_AUTO_TEST_CASE(hits_are_those_of_the_model) {
  Random random(3);
  CacheModel cache("s3fifo", 2000, 20000);
  Model model(2000);
  std::unordered_set<uint64_t> resident;
  uint64_t hits = 0;
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t row = skewed(random, 20000);
    cache.step({row});
    hits += resident.count(row);
    for (uint64_t left : model.use(row)) resident.erase(left);
    resident.insert(row);
  }
  BOOST_TEST_MESSAGE("hits " << cache.hits << ", of the model " << hits);
  BOOST_TEST(static_cast<double>(cache.hits) > 0.99 * static_cast<double>(hits));
  BOOST_TEST(static_cast<double>(cache.hits) < 1.01 * static_cast<double>(hits));
}

BOOST_AUTO_TEST_CASE(a_scan_does_not_push_out_hot_rows) {
  CacheModel cache("s3fifo", 100, 100000);
  Rows hot(50);
  for (size_t i = 0; i < hot.size(); ++i) hot[i] = i;
  for (int i = 0; i < 5; ++i) cache.step(hot);
  for (uint64_t row = 1000; row < 1400; row += 20) {
    Rows scanned(20);
    for (size_t i = 0; i < scanned.size(); ++i) scanned[i] = row + i;
    cache.step(scanned);
  }
  for (uint64_t row : hot) BOOST_TEST(cache.slot_of.count(row) == 1u);
}

// A head that was skipped because a batch uses it is a candidate again afterwards.
BOOST_AUTO_TEST_CASE(pinned_heads_are_queued_when_they_are_parked) {
  CacheModel cache("s3fifo", 4, 100);
  cache.step({1, 2, 3, 4});
  cache.begin({1, 2});
  BOOST_TEST(cache.evict(4) == (Rows{3, 4}));
  cache.end({1, 2});
  BOOST_TEST(cache.evict(4) == (Rows{1, 2}));
}

// As the mover does when the limit shrinks: state goes along, entries do not.
BOOST_AUTO_TEST_CASE(rows_may_move_to_other_slots) {
  for (int round = 0; round < 50; ++round) {
    CacheModel cache("s3fifo", 8, 100);
    cache.step({1, 2, 3, 4, 5, 6, 7, 8});
    cache.step({7, 8});
    for (int moves = 0; moves < 1 + round; ++moves) {
      cache.evict(4);
      std::vector<SlotIndex> left;
      std::vector<SlotIndex> moved;
      for (auto& [row, slot] : cache.slot_of) {
        const SlotIndex to = cache.directory.take(RowId(row), BlockAddress::none());
        cache.directory.mark(to) = cache.directory.mark(slot);
        cache.directory[to].frequency = cache.directory[slot].frequency;
        left.push_back(std::exchange(slot, to));
        cache.directory.release(left.back());
        moved.push_back(to);
      }
      cache.policy->moved(left, moved);
      cache.step({10, 11, 12, 13});
    }
    cache.evict(8);
    BOOST_TEST(cache.directory.used() == 0u);
  }
}

// A row whose batch is given up leaves without having been a victim, and may come back to its slot
// when its old entry is gone.
BOOST_AUTO_TEST_CASE(a_row_may_leave_unnoticed_and_come_back) {
  CacheModel cache("s3fifo", 4, 100);
  cache.step({1, 2, 3, 4});
  const SlotIndex s = cache.slot_of.at(2);
  cache.directory.release(s);
  cache.slot_of.erase(2);
  BOOST_TEST(cache.evict(2) == (Rows{1, 3}));
  cache.step({60, 61, 2});
  BOOST_TEST((cache.slot_of.at(2) == s));
  BOOST_TEST(cache.evict(4).size() == 4u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
