// SlotDirectory and ParkQueue: free lists, limits, pins, stale entries.
#include <boost/test/unit_test.hpp>
#include <deque>
#include <map>
#include <vector>

#include "cache/park_queue.h"
#include "cache/slot_directory.h"
#include "kernels_fixture.h"

namespace te {

using testing::Random;

BOOST_AUTO_TEST_SUITE(cache_directory)

BOOST_AUTO_TEST_CASE(a_taken_slot_is_clean_and_unpinned) {
  SlotDirectory directory(4);
  directory.set_limit(2);
  const SlotIndex a = directory.take(RowId(7), BlockAddress(3));
  directory[a].dirty = 1;
  directory.mark(a) = 9;
  directory[a].frequency = 200;
  directory.release(a);
  const SlotIndex b = directory.take(RowId(8), BlockAddress::none());
  BOOST_TEST((a == b));
  const Slot& slot = directory[b];
  BOOST_TEST((slot.row == RowId(8) && slot.home.is_none() && directory.mark(b) == 0u));
  BOOST_TEST((slot.pins == 0 && slot.dirty == 0 && slot.frequency == 0));
  BOOST_TEST(directory.used() == 1u);
  BOOST_TEST(directory.free_slots() == 1u);
}

BOOST_AUTO_TEST_CASE(pins_count_slots_not_plans) {
  SlotDirectory directory(2);
  directory.set_limit(2);
  Slot& slot = directory[directory.take(RowId(0), BlockAddress::none())];
  directory.pin(slot);
  directory.pin(slot);
  BOOST_TEST(directory.pinned() == 1u);
  BOOST_TEST(!directory.unpin(slot));
  BOOST_TEST(directory.pinned() == 1u);
  BOOST_TEST(directory.unpin(slot));
  BOOST_TEST(directory.pinned() == 0u);
}

BOOST_AUTO_TEST_CASE(own_slots_leave_clean_gaps) {
  SlotDirectory directory(10);
  directory.set_limit(10);
  directory.take_own(SlotIndex(7), RowId(107), BlockAddress(3));
  directory.take_own(SlotIndex(2), RowId(102), BlockAddress::none());
  BOOST_TEST(directory.used() == 2u);
  BOOST_TEST(directory.ever_used() == 8u);
  for (uint32_t i = 0; i < directory.ever_used(); ++i) {
    const Slot& slot = directory[SlotIndex(i)];
    BOOST_TEST((slot.dirty == 0 && slot.pins == 0));
    if (i == 7) BOOST_TEST((slot.row == RowId(107) && slot.home == BlockAddress(3)));
    if (i == 2) BOOST_TEST((slot.row == RowId(102) && slot.home.is_none()));
  }
  directory.release(SlotIndex(7));
  directory.take_own(SlotIndex(7), RowId(107), BlockAddress::none());
  BOOST_TEST(directory.used() == 2u);
}

BOOST_AUTO_TEST_CASE(no_slots_at_all) {
  SlotDirectory directory(0);
  directory.set_limit(0);
  BOOST_TEST(directory.free_slots() == 0u);
}

// Take, release and change the limit at random; slots in use never exceed the limit and every free
// slot can be had.
BOOST_AUTO_TEST_CASE(random_takes_releases_and_limits) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      SlotDirectory directory(64);
      directory.set_limit(static_cast<uint32_t>(random.below(65)));
      std::map<uint32_t, uint64_t> model;
      uint64_t next_row = 0;
      for (int i = 0; i < 500; ++i) {
        const bool fill = random.one_in(30);
        while (directory.free_slots() > 0 && (fill || random.one_in(3))) {
          const SlotIndex s = directory.take(RowId(next_row), BlockAddress::none());
          BOOST_TEST_REQUIRE(s.value < directory.limit());
          BOOST_TEST_REQUIRE(model.emplace(s.value, next_row++).second);
        }
        while (!model.empty() && random.one_in(2)) {
          const auto at = std::next(model.begin(), static_cast<long>(random.below(model.size())));
          directory.release(SlotIndex(at->first));
          model.erase(at);
        }
        if (random.one_in(5)) {
          const uint32_t lowest = model.empty() ? 0 : model.rbegin()->first + 1;
          directory.set_limit(lowest + static_cast<uint32_t>(random.below(65 - lowest)));
        }
        BOOST_TEST_REQUIRE(directory.used() == model.size());
        for (const auto& [slot, row] : model)
          BOOST_TEST_REQUIRE((directory[SlotIndex(slot)].row == RowId(row)));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(restricted_slots_come_first_from_below) {
  SlotDirectory directory(10);
  directory.set_limit(10);
  for (uint64_t row = 0; row < 10; ++row) directory.take(RowId(row), BlockAddress::none());
  for (uint32_t slot : {1u, 8u, 3u, 9u}) directory.release(SlotIndex(slot));
  directory.restrict_free_slots(5);
  BOOST_TEST(directory.take(RowId(20), BlockAddress::none()).value < 5u);
  BOOST_TEST(directory.take(RowId(21), BlockAddress::none()).value < 5u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(cache_park_queue)

BOOST_AUTO_TEST_CASE(is_a_queue_whatever_is_pushed_popped_and_appended) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      ParkChunkPool pool;
      std::vector<ParkQueue> queues(3, ParkQueue(pool));
      std::vector<std::deque<uint32_t>> models(3);
      uint32_t next = 0;
      for (int i = 0; i < 300; ++i) {
        const size_t q = random.below(3);
        for (uint64_t n = random.below(700); n > 0; --n) {
          queues[q].push({SlotIndex(next), next});
          models[q].push_back(next++);
        }
        const size_t from = random.below(3);
        if (random.one_in(3) && from != q) {
          queues[q].append(queues[from]);
          models[q].insert(models[q].end(), models[from].begin(), models[from].end());
          models[from].clear();
        }
        ParkedSlot entry;
        const size_t p = random.below(3);
        for (uint64_t n = random.below(900); n > 0; --n) {
          const bool popped = queues[p].pop(&entry);
          BOOST_TEST_REQUIRE(popped == !models[p].empty());
          if (!popped) break;
          BOOST_TEST_REQUIRE(entry.mark == models[p].front());
          models[p].pop_front();
        }
        for (size_t k = 0; k < 3; ++k) BOOST_TEST_REQUIRE(queues[k].size() == models[k].size());
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(compaction_keeps_current_entries_in_order) {
  constexpr uint32_t kSlots = 2000;
  SlotDirectory directory(kSlots);
  directory.set_limit(kSlots);
  ParkChunkPool pool;
  ParkQueue queue(pool);
  std::vector<uint32_t> kept;
  for (uint32_t i = 0; i < kSlots; ++i) {
    const SlotIndex s = directory.take(RowId(i), BlockAddress::none());
    directory.mark(s) = i;
    queue.push({s, i});
  }
  for (uint32_t i = 0; i < kSlots; ++i) {  // used since, pinned, free, or still parked
    if (i % 4 == 0) directory.mark(SlotIndex(i)) = kSlots + i;
    if (i % 4 == 1) directory.pin(directory[SlotIndex(i)]);
    if (i % 4 == 2) directory.release(SlotIndex(i));
    if (i % 4 == 3) kept.push_back(i);
  }
  queue.compact([&](ParkedSlot e) { return ParkQueue::is_current(directory, e); });
  BOOST_TEST(queue.size() == kept.size());
  ParkedSlot entry;
  for (uint32_t expected : kept) {
    BOOST_TEST_REQUIRE(queue.pop(&entry));
    BOOST_TEST_REQUIRE(entry.slot.value == expected);
  }
  BOOST_TEST(!queue.pop(&entry));
  queue.compact([&](ParkedSlot e) { return ParkQueue::is_current(directory, e); });
  BOOST_TEST(queue.size() == 0u);
}

BOOST_AUTO_TEST_CASE(merging_keeps_the_order_of_marks) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    ParkChunkPool pool;
    ParkQueue queues[] = {ParkQueue(pool), ParkQueue(pool)};
    const auto count = static_cast<uint32_t>(random.below(3000));
    for (uint32_t mark = 0; mark < count; ++mark)
      queues[random.below(1 + seed % 3) % 2].push({SlotIndex(mark), mark});
    queues[0].merge(queues[1]);
    BOOST_TEST(queues[1].size() == 0u);
    BOOST_TEST_REQUIRE(queues[0].size() == count);
    ParkedSlot entry;
    for (uint32_t mark = 0; mark < count; ++mark) {
      BOOST_TEST_REQUIRE(queues[0].front()->mark == mark);
      BOOST_TEST_REQUIRE(queues[0].pop(&entry));
      BOOST_TEST_REQUIRE(entry.slot.value == mark);
    }
    BOOST_TEST((queues[0].front() == nullptr));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
