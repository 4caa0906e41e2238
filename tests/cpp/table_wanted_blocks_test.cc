// WantedBlocks against a list of everything that was added.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <utility>
#include <vector>

#include "kernels_fixture.h"
#include "table/wanted_blocks.h"

namespace te {
namespace {

using testing::Random;
using Use = LookaheadWindow::Use;

}  // namespace

BOOST_AUTO_TEST_SUITE(table_wanted_blocks)

// As long as uses are in the window they are found, and once they have left they are not; where
// there are too many, some are forgotten.
BOOST_AUTO_TEST_CASE(uses_of_the_window_are_found_by_block) {
  for (const bool overflows : {false, true}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      BOOST_TEST_CONTEXT("seed " << seed << (overflows ? ", overflows" : "")) {
        Random random(seed);
        LookaheadWindow window;
        WantedBlocks wanted(window);
        std::vector<std::pair<uint32_t, Use>> added;
        const uint64_t blocks = 1 + random.below(500);
        size_t found_uses = 0;
        size_t window_uses = 0;
        for (uint32_t b = 1; b <= 300; ++b) {
          std::vector<RowId> rows(100);
          for (RowId& row : rows) row = RowId(random.below(uint64_t{1} << 40));
          std::vector<Use> uses;
          BOOST_TEST_REQUIRE(window.push(rows, uses) == b);
          for (Use use : uses) {
            if (!overflows && !random.one_in(12)) continue;
            added.emplace_back(random.below(blocks), use);
            wanted.add(BlockAddress(added.back().first), use);
          }
          if (b > 40) window.finish(b - 40);
          std::erase_if(added, [&](const auto& a) { return !window.holds(a.second); });
          const auto block = static_cast<uint32_t>(random.below(blocks));
          std::vector<Use> found;
          wanted.visit(BlockAddress(block), [&](Use use) { found.push_back(use); });
          for (Use use : found)
            BOOST_TEST_REQUIRE(std::count(added.begin(), added.end(), std::pair(block, use)) == 1);
          found_uses += found.size();
          window_uses += static_cast<size_t>(std::count_if(
              added.begin(), added.end(), [=](const auto& a) { return a.first == block; }));
        }
        BOOST_TEST((overflows || found_uses == window_uses));
        BOOST_TEST(found_uses >= window_uses / 8);
        BOOST_TEST(wanted.memory_bytes() <= WantedBlocks::memory_bytes_for(4100));
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
