// RowIndex against std::unordered_map in all three shapes, its order of visit and its memory.
#include "log/row_index.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels_fixture.h"
#include "table/row_finder.h"

namespace te {
namespace {

using testing::Random;

constexpr uint64_t kRegionRows = 65536;

LocationWord random_word(Random& random) {
  const auto value = static_cast<uint32_t>(random.below(LocationWord::kBlocksMax));
  return random.one_in(2) ? LocationWord::slot(SlotIndex(value))
                          : LocationWord::block(BlockAddress(value));
}

// An index and what it should hold.
struct Pair {
  RowIndex index;
  std::unordered_map<uint64_t, LocationWord> model;

  Pair(uint64_t rows, uint64_t direct_bytes_max) : index(rows, direct_bytes_max) {}

  void set(uint64_t row, LocationWord word) {
    index.set(RowId(row), word);
    if (word.is_never_written()) {
      model.erase(row);
    } else {
      model[row] = word;
    }
  }
  void check_row(uint64_t row) {
    const auto found = model.find(row);
    const LocationWord expected =
        found == model.end() ? LocationWord::never_written() : found->second;
    BOOST_TEST_REQUIRE((index.get(RowId(row)) == expected), "row " << row);
  }
  void check_visit() {
    size_t visited = 0;
    RowId last;
    index.visit([&](RowId row, LocationWord word) {
      BOOST_TEST_REQUIRE((last.is_none() || last < row), "row " << row.value << " out of order");
      last = row;
      const auto found = model.find(row.value);
      BOOST_TEST_REQUIRE((found != model.end() && found->second == word), "row " << row.value);
      ++visited;
    });
    BOOST_TEST_REQUIRE(visited == model.size());
  }
};

// Sets, changes and erases random rows among `spread` ones that start at `first`.
void churn(Pair& pair, Random& random, uint64_t first, uint64_t spread, size_t steps) {
  for (size_t i = 0; i < steps; ++i) {
    const uint64_t row = first + random.below(spread);
    pair.set(row, random.one_in(3) ? LocationWord::never_written() : random_word(random));
    pair.check_row(first + random.below(spread));
    pair.check_row(row);
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(row_index_model)

BOOST_AUTO_TEST_CASE(direct) {
  Random random(1);
  Pair pair(5000, 20000);
  BOOST_TEST(pair.index.is_direct());
  BOOST_TEST(pair.index.memory_bytes() == 20000u);
  churn(pair, random, 0, 5000, 20000);
  pair.check_visit();
}

BOOST_AUTO_TEST_CASE(shape_is_chosen_by_the_bytes_allowed) {
  BOOST_TEST(RowIndex(1000, 4000).is_direct());
  BOOST_TEST(!RowIndex(1000, 3999).is_direct());
  BOOST_TEST(RowIndex(0, 0).is_direct());
}

BOOST_AUTO_TEST_CASE(small_maps_with_runs_and_erasures) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random random(seed);
      Pair pair(10 * kRegionRows - 17, 0);
      // A few rows of a region: runs are long and wrap around, since the map is small and full.
      const uint64_t region = random.below(9) * kRegionRows;
      const uint64_t spread = 1 + random.below(40);
      churn(pair, random, region, spread, 400);
      churn(pair, random, region + kRegionRows - 20, 40, 400);  // across the border of two regions
      churn(pair, random, 0, 10 * kRegionRows - 17, 400);
      for (uint64_t row = region; row < region + spread; ++row) pair.check_row(row);
      pair.check_visit();
    }
  }
}

BOOST_AUTO_TEST_CASE(a_region_grows_to_a_dense_one_and_keeps_its_words) {
  Random random(7);
  Pair pair(3 * kRegionRows, 0);
  for (uint64_t row = 0; row < kRegionRows; ++row) {  // every row of the middle region, scattered
    pair.set(kRegionRows + row * 40503 % kRegionRows, random_word(random));
    if (row % 997 == 0) pair.check_visit();
  }
  churn(pair, random, kRegionRows, kRegionRows, 50000);
  for (uint64_t row = 0; row < 3 * kRegionRows; ++row) pair.check_row(row);
  pair.check_visit();
  for (uint64_t row = kRegionRows; row < 2 * kRegionRows; ++row)
    pair.set(row, LocationWord::never_written());
  pair.check_visit();
  // A dense region: 4 bytes a row, and the directory of three regions.
  BOOST_TEST(pair.index.memory_bytes() == kRegionRows * 4 + 3 * 16);
}

BOOST_AUTO_TEST_CASE(last_rows_of_an_odd_size) {
  Pair pair(2 * kRegionRows + 1, 0);
  for (uint64_t row : {uint64_t{0}, kRegionRows - 1, kRegionRows, 2 * kRegionRows}) {
    pair.set(row, LocationWord::block(BlockAddress(static_cast<uint32_t>(row))));
    pair.check_row(row);
  }
  pair.check_visit();
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(row_index_memory)

BOOST_AUTO_TEST_CASE(opening_is_instant_and_scattered_rows_are_cheap) {
  constexpr uint64_t kRows = 20'000'000'000;
  constexpr uint64_t kWritten = 6'000'000;
  const auto start = std::chrono::steady_clock::now();
  RowIndex index(kRows, 1 << 20);
  const auto opened = std::chrono::steady_clock::now() - start;
  BOOST_TEST(std::chrono::duration<double>(opened).count() < 0.5);
  BOOST_TEST(index.memory_bytes() < 8'000'000u);

  Random rows(3);
  for (uint64_t i = 0; i < kWritten; ++i)
    index.set(RowId(rows.below(kRows)), LocationWord::block(BlockAddress(uint32_t(i))));
  BOOST_TEST(index.memory_bytes() < 130'000'000u);
  Random again(3);
  uint64_t found = 0;
  for (uint64_t i = 0; i < kWritten; ++i) found += index.get(RowId(again.below(kRows))).is_block();
  BOOST_TEST(found == kWritten);
}

BOOST_AUTO_TEST_CASE(words_that_come_and_go_take_no_more_memory) {
  RowIndex index(uint64_t{1} << 32, 0);
  Random random(4);
  const auto pass = [&] {
    for (uint64_t i = 0; i < 20000; ++i) {
      const RowId row(random.below(1000) * kRegionRows + random.below(8));
      index.set(row, LocationWord::slot(SlotIndex(1)));
      index.set(row, LocationWord::never_written());
    }
  };
  pass();
  const uint64_t after_one = index.memory_bytes();
  for (int i = 0; i < 5; ++i) pass();
  BOOST_TEST(index.memory_bytes() == after_one);
  index.visit([](RowId row, LocationWord) { BOOST_TEST(false, "row " << row.value << " stays"); });
}

// The planner brings the rows of a batch by shares of their hash: in an unlucky one, thirty times
// longer than now.
BOOST_AUTO_TEST_CASE(rows_in_the_order_of_a_hash_take_no_longer) {
  constexpr uint32_t kRows = kRegionRows * 3 / 8;  // as many as stay in a map
  const auto hash = [](RowId row) { return share_of(row.value, 32); };
  std::vector<RowId> ascending;
  for (uint64_t row = 0; row < kRows; ++row) ascending.push_back(RowId(row));
  std::vector<RowId> by_hash = ascending;
  std::sort(by_hash.begin(), by_hash.end(), [&](RowId a, RowId b) { return hash(a) < hash(b); });
  const auto seconds = [](const std::vector<RowId>& rows) {
    double least = 1e9;
    for (int i = 0; i < 5; ++i) {
      RowIndex index(kRegionRows, 0);
      const auto start = std::chrono::steady_clock::now();
      for (RowId row : rows) index.set(row, LocationWord::slot(SlotIndex(1)));
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      least = std::min(least, taken.count());
    }
    return least;
  };
  BOOST_TEST(seconds(by_hash) < 10 * seconds(ascending));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
