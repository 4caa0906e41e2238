// The arithmetic of the dram budget.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <vector>

#include "cache/eviction_policy.h"
#include "cache/slot_directory.h"
#include "kernels_fixture.h"
#include "table/budget.h"

namespace te {
namespace {

using testing::Random;

std::vector<LayoutDemand> random_layouts(Random& random) {
  std::vector<LayoutDemand> layouts(1 + random.below(5));
  for (LayoutDemand& layout : layouts) {
    layout.rows = random.below(uint64_t{1} << random.below(31));
    layout.stride_bytes = 4 * (1 + random.below(300));
    if (random.one_in(3)) layout.share = static_cast<double>(1 + random.below(1000)) / 1000;
  }
  return layouts;
}

uint64_t least_bytes(const std::vector<LayoutDemand>& layouts, uint64_t index_bytes) {
  return dram_bytes_for_slots(layouts, std::vector<uint32_t>(layouts.size(), 1), index_bytes, true);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(table_budget)

BOOST_AUTO_TEST_CASE(small_tables_are_charged_for_their_rows_alone) {
  const std::vector<LayoutDemand> layouts = {{1000, 64}, {10, 12}};
  BOOST_TEST(dram_bytes_for_all_rows(layouts) == 64120u);
  const std::vector<uint32_t> slots = {100, 10};
  BOOST_TEST(dram_bytes_for_slots(layouts, slots, 4040, true) == 6520u);
}

BOOST_AUTO_TEST_CASE(overhead_beyond_the_free_part_is_charged) {
  const std::vector<LayoutDemand> layouts = {{1'000'000, 64}};
  const std::vector<uint32_t> slots = {1'000'000};
  const uint64_t rows_bytes = 64'000'000;
  const uint64_t overhead =
      1'000'000 * (SlotDirectory::kBytesPerSlot + EvictionPolicy::kBytesPerSlotMax) + 5'000'000;
  BOOST_TEST(dram_bytes_for_slots(layouts, slots, 5'000'000, true) ==
             rows_bytes + overhead - kFreeOverheadBytes);
  BOOST_TEST(dram_bytes_for_all_rows(layouts) == rows_bytes + 24'125'000 - kFreeOverheadBytes);
}

BOOST_AUTO_TEST_CASE(slots_stay_within_the_budget_and_use_it) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      const auto layouts = random_layouts(random);
      const uint64_t index_bytes = random.below(uint64_t{1} << random.below(28));
      const uint64_t all = dram_bytes_for_all_rows(layouts);
      const uint64_t budget = random.below(all + 100);
      const auto slots = slots_within(layouts, budget, index_bytes);
      const uint64_t bytes = dram_bytes_for_slots(layouts, slots, index_bytes, true);
      BOOST_TEST_REQUIRE(bytes <= std::max(budget, least_bytes(layouts, index_bytes)));
      uint64_t one_more = 0;
      bool everything = true;
      for (size_t l = 0; l < layouts.size(); ++l) {
        BOOST_TEST_REQUIRE(slots[l] >= 1u);
        BOOST_TEST_REQUIRE(slots[l] <= std::max<uint64_t>(layouts[l].rows, 1));
        const uint32_t share = share_slots(layouts[l]);
        everything &= slots[l] >= (share == 0 ? layouts[l].rows : share);
        BOOST_TEST_REQUIRE((share == 0 || slots[l] <= share));
        one_more += layouts[l].stride_bytes + SlotDirectory::kBytesPerSlot +
                    EvictionPolicy::kBytesPerSlotMax;
      }
      BOOST_TEST_REQUIRE((everything || bytes + one_more > budget));
    }
  }
}

BOOST_AUTO_TEST_CASE(more_budget_never_means_fewer_slots) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      const auto layouts = random_layouts(random);
      const uint64_t all = dram_bytes_for_all_rows(layouts);
      std::vector<uint32_t> before(layouts.size(), 0);
      for (uint64_t part = 0; part <= 20; ++part) {
        const auto slots = slots_within(layouts, all / 20 * part, 1000);
        for (size_t l = 0; l < layouts.size(); ++l) BOOST_TEST_REQUIRE(slots[l] >= before[l]);
        before = slots;
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(a_larger_index_never_means_more_slots) {
  const std::vector<LayoutDemand> layouts = {{1'000'000, 128}, {5000, 16}};
  std::vector<uint32_t> before = slots_within(layouts, 50'000'000, 0);
  for (uint64_t index_bytes = 1 << 20; index_bytes < 64 << 20; index_bytes += 1 << 20) {
    const auto slots = slots_within(layouts, 50'000'000, index_bytes);
    for (size_t l = 0; l < layouts.size(); ++l) BOOST_TEST_REQUIRE(slots[l] <= before[l]);
    before = slots;
  }
  BOOST_TEST((before == std::vector<uint32_t>{1, 1}));  // the index alone is over the budget
}

BOOST_AUTO_TEST_CASE(a_share_is_slots_for_that_part_of_the_rows_rounded_up) {
  const auto slots = [](uint64_t rows, double share) {
    return share_slots({.rows = rows, .share = share});
  };
  BOOST_TEST(slots(1000, 0) == 0u);
  BOOST_TEST(slots(1000, 0.25) == 250u);
  BOOST_TEST(slots(1000, 0.2501) == 251u);
  BOOST_TEST(slots(1000, 1e-9) == 1u);
  BOOST_TEST(slots(1000, 1) == 1000u);
  BOOST_TEST(slots(999'999'937, 1) == 999'999'937u);
  BOOST_TEST(slots(0, 0.5) == 1u);
}

BOOST_AUTO_TEST_CASE(shares_keep_their_slots_and_the_rest_is_divided) {
  const std::vector<LayoutDemand> layouts = {
      {1000, 16}, {100, 16, 0, 1.0}, {500, 32}, {40, 8, 0, 0.25}};
  // 100 rows of 16 bytes and 10 of 8 are kept; a tenth of the other rows is 100 of 16, 50 of 32.
  const uint64_t budget = 100 * 16 + 10 * 8 + 100 * 16 + 50 * 32;
  BOOST_TEST((slots_within(layouts, budget, 0) == std::vector<uint32_t>{100, 100, 50, 10}));
  BOOST_TEST((slots_within(layouts, budget * 2, 0)[1] == 100u));
  BOOST_TEST((slots_within(layouts, budget * 2, 0)[3] == 10u));
  BOOST_TEST((slots_within(layouts, 1 << 20, 0) == std::vector<uint32_t>{1000, 100, 500, 10}));
}

// As an index grows: first the other layouts lose all but a slot, then all shares shrink alike.
BOOST_AUTO_TEST_CASE(shares_shrink_last) {
  const std::vector<LayoutDemand> layouts = {{1000, 16}, {100, 16, 0, 1.0}, {40, 8, 0, 0.5}};
  const uint64_t least = 16 + 100 * 16 + 20 * 8;
  BOOST_TEST((slots_within(layouts, least, 0) == std::vector<uint32_t>{1, 100, 20}));
  BOOST_TEST((slots_within(layouts, least + 15, 0) == std::vector<uint32_t>{1, 100, 20}));
  const auto half = slots_within(layouts, 16 + 50 * 16 + 10 * 8, 0);
  BOOST_TEST((half == std::vector<uint32_t>{1, 50, 10}));
  BOOST_TEST((slots_within(layouts, 1, 0) == std::vector<uint32_t>{1, 1, 1}));
}

BOOST_AUTO_TEST_CASE(the_device_is_divided_without_regard_to_shares) {
  const std::vector<LayoutDemand> layouts = {{1000, 16}, {100, 16, 0, 1.0}, {40, 16, 0, 0.1}};
  BOOST_TEST((hbm_slots_within(layouts, 114 * 16) == std::vector<uint32_t>{100, 10, 4}));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
