// A cache of rows as the planner runs one, without bytes: a directory and a policy, stepped by
// batches of rows. Checks at every step that a victim was unpinned and appears once.
#pragma once

#include <boost/test/unit_test.hpp>
#include <memory>
#include <set>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cache/eviction_policy.h"
#include "cache/slot_directory.h"

namespace te::testing {

class CacheModel {
 public:
  CacheModel(std::string_view policy_name, uint32_t limit, uint64_t rows)
      : directory(limit), policy(make_eviction_policy(policy_name, directory, rows)) {
    directory.set_limit(limit);
    policy->set_limit(limit);
  }

  // Pins the rows of a batch (distinct rows), evicting as needed. Gives the rows that left, in
  // order. The batch must fit beside what is pinned.
  std::vector<uint64_t> begin(const std::vector<uint64_t>& rows) {
    ++sequence_;
    std::vector<uint64_t> missing;
    for (uint64_t row : rows) {
      const auto found = slot_of.find(row);
      if (found == slot_of.end()) {
        missing.push_back(row);
        continue;
      }
      use(found->second);
      ++hits;
    }
    misses += missing.size();
    std::vector<uint64_t> left;
    if (missing.size() > directory.free_slots())
      left = evict(missing.size() - directory.free_slots());
    for (uint64_t row : missing) {
      const SlotIndex s = directory.take(RowId(row), BlockAddress::none());
      use(s);
      slot_of[row] = s;
      policy->admit({&s, 1});
    }
    return left;
  }
  // Ends the pins of a batch. `next`: the batch that each row is expected in, if that is known.
  void end(const std::vector<uint64_t>& rows, const std::vector<uint32_t>& next = {}) {
    std::vector<SlotIndex> parked;
    for (size_t i = 0; i < next.size(); ++i)
      policy->expect({&slot_of.at(rows[i]), 1}, {&next[i], 1});
    for (uint64_t row : rows) {
      const SlotIndex s = slot_of.at(row);
      if (directory.unpin(directory[s])) parked.push_back(s);
    }
    policy->park(parked);
  }
  std::vector<uint64_t> step(const std::vector<uint64_t>& rows) {
    auto left = begin(rows);
    end(rows);
    return left;
  }
  // Up to `count` victims; fewer only if there are no more unpinned rows.
  std::vector<uint64_t> evict(size_t count) {
    const size_t unpinned = directory.used() - directory.pinned();
    std::vector<SlotIndex> victims;
    policy->pop_victims(count, victims);
    BOOST_TEST_REQUIRE(victims.size() == std::min(count, unpinned));
    std::set<SlotIndex> distinct(victims.begin(), victims.end());
    BOOST_TEST_REQUIRE(distinct.size() == victims.size(), "a slot is a victim twice");
    policy->evicted(victims);
    std::vector<uint64_t> left;
    for (SlotIndex s : victims) {
      BOOST_TEST_REQUIRE(directory[s].pins == 0);
      BOOST_TEST_REQUIRE(!directory[s].row.is_none());
      left.push_back(directory[s].row.value);
      slot_of.erase(directory[s].row.value);
      directory.release(s);
    }
    return left;
  }

  SlotDirectory directory;
  std::unique_ptr<EvictionPolicy> policy;
  std::unordered_map<uint64_t, SlotIndex> slot_of;
  uint64_t hits = 0;
  uint64_t misses = 0;

 private:
  void use(SlotIndex s) {
    directory.mark(s) = sequence_;
    directory.pin(directory[s]);
  }
  uint32_t sequence_ = 0;
};

}  // namespace te::testing
