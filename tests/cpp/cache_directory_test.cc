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
        if (random.one_in(5)) {  // rows may be stranded
          const auto lowest = static_cast<uint32_t>(model.size());
          directory.set_limit(lowest + static_cast<uint32_t>(random.below(65 - lowest)));
        }
        BOOST_TEST_REQUIRE(directory.used() == model.size());
        const auto above = std::distance(model.lower_bound(directory.limit()), model.end());
        BOOST_TEST_REQUIRE(directory.stranded() == static_cast<uint32_t>(above));
        BOOST_TEST_REQUIRE((model.empty() || model.rbegin()->first < directory.ever_used()));
        for (const auto& [slot, row] : model)
          BOOST_TEST_REQUIRE((directory[SlotIndex(slot)].row == RowId(row)));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(a_stranded_row_keeps_a_slot_free_below) {
  SlotDirectory directory(10);
  directory.set_limit(10);
  for (uint64_t row = 0; row < 10; ++row) directory.take(RowId(row), BlockAddress::none());
  for (uint32_t slot : {1u, 8u, 3u, 9u}) directory.release(SlotIndex(slot));
  directory.set_limit(7);
  BOOST_TEST(directory.stranded() == 1u);  // that in slot 7
  BOOST_TEST(directory.ever_used() == 10u);
  BOOST_TEST(directory.free_slots() == 1u);
  BOOST_TEST(directory.take(RowId(20), BlockAddress::none()).value < 7u);
  BOOST_TEST(directory.free_slots() == 0u);
  const SlotIndex place = directory.take(RowId(7), BlockAddress::none());
  BOOST_TEST(place.value < 7u);
  directory.release(SlotIndex(7));
  BOOST_TEST(directory.stranded() == 0u);
  BOOST_TEST(directory.ever_used() == 7u);
  BOOST_TEST(directory.used() == 7u);
}

BOOST_AUTO_TEST_CASE(slots_that_were_rows_own_are_given_once_they_are_free) {
  SlotDirectory directory(6);
  directory.set_limit(6);
  directory.take_own(SlotIndex(4), RowId(4), BlockAddress::none());
  directory.take_own(SlotIndex(1), RowId(1), BlockAddress::none());
  directory.release_own(SlotIndex(4));
  directory.leave_own_slots();
  BOOST_TEST(directory.ever_used() == 6u);
  for (uint32_t slot : {0u, 2u, 3u, 4u, 5u}) directory.add_free(SlotIndex(slot));
  std::map<uint32_t, uint64_t> given{{1, 1}};
  for (uint64_t row = 10; row < 15; ++row)
    BOOST_TEST(given.emplace(directory.take(RowId(row), BlockAddress::none()).value, row).second);
  BOOST_TEST(directory.free_slots() == 0u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(cache_park_queue)

// What is compacted in portions, between pushes and pops, has the entries that are kept in order.
BOOST_AUTO_TEST_CASE(portions_of_a_queue_are_compacted) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      ParkChunkPool pool;
      ParkQueue queue(pool);
      std::deque<uint32_t> model;  // marks
      uint32_t next = 0;
      const auto keep = [](ParkedSlot entry) { return entry.mark % 7 == 0; };
      size_t passes = 0;
      for (int i = 0; i < 300; ++i) {
        for (size_t n = random.below(400); n > 0; --n, ++next) {
          queue.push({SlotIndex(next), next});
          model.push_back(next);
        }
        ParkedSlot entry;
        for (size_t n = random.below(60); n > 0 && queue.pop(&entry); --n) {
          while (model.front() != entry.mark) {  // dropped
            BOOST_TEST_REQUIRE(model.front() % 7 != 0u);
            model.pop_front();
          }
          model.pop_front();
        }
        size_t entries = random.below(500);
        passes += queue.compact_some(entries, keep);
      }
      BOOST_TEST(passes > 0u);
      size_t entries = SIZE_MAX;
      while (!queue.compact_some(entries, keep)) {
      }
      BOOST_TEST_REQUIRE(queue.size() <= model.size() / 7 + 2 * ParkChunk::kEntries);
      queue.compact(keep);
      std::erase_if(model, [](uint32_t mark) { return mark % 7 != 0; });
      ParkedSlot entry;
      for (uint32_t mark : model) BOOST_TEST_REQUIRE((queue.pop(&entry) && entry.mark == mark));
      BOOST_TEST(queue.size() == 0u);
      BOOST_TEST(!queue.pop(&entry));
    }
  }
}

BOOST_AUTO_TEST_CASE(memory_of_chunks_goes_back_and_comes_again) {
  ParkChunkPool pool;
  std::vector<ParkChunk*> chunks;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 5000; ++i) {
      chunks.push_back(pool.take());
      chunks.back()->entries[0].mark = static_cast<uint32_t>(i);
    }
    for (size_t i = 0; i < chunks.size(); ++i) BOOST_TEST_REQUIRE(chunks[i]->entries[0].mark == i);
    ParkChunk* kept = chunks[2500];
    for (ParkChunk* chunk : chunks) {
      if (chunk != kept) pool.give_back(chunk);
    }
    BOOST_TEST(pool.give_memory_back());
    BOOST_TEST(kept->entries[0].mark == 2500u);
    pool.give_back(kept);
    chunks.clear();
  }
}

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
