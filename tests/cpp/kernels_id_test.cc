// Kernels over ids, against the reference.
#include "kernels_fixture.h"

namespace te::testing {
namespace {

// Ids in 64 or 32 bits, as the kernels take them.
struct Ids {
  std::vector<int64_t> wide;
  std::vector<int32_t> narrow;
  bool are_64;

  Ids(Random& random, size_t count, uint64_t rows) : are_64(random.one_in(2)) {
    for (size_t i = 0; i < count; ++i) wide.push_back(static_cast<int64_t>(random.below(rows)));
  }
  const void* data() {
    narrow.assign(wide.begin(), wide.end());
    return are_64 ? static_cast<const void*>(wide.data()) : narrow.data();
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(kernels_ids)

BOOST_AUTO_TEST_CASE(first_bad_id_finds_the_first) {
  Random random(5);
  for (int trial = 0; trial < 600; ++trial) {
    const size_t count = random.below(4000);
    const uint64_t rows = 1 + random.below(1000);
    Ids ids(random, count, rows);
    for (uint64_t i = random.below(4); i > 0 && count > 0; --i) {
      const auto limit = static_cast<int64_t>(rows);
      const int64_t bad[] = {-1, limit, INT32_MIN, INT32_MAX, limit - 1, 0};
      ids.wide[random.below(count)] = bad[random.below(std::size(bad))];
    }
    const size_t begin = random.below(count + 1);
    const size_t expected =
        reference_kernels().first_bad_id(ids.data(), ids.are_64, rows, begin, count);
    for_variants([&](const Kernels& kernels) {
      BOOST_TEST_REQUIRE(kernels.first_bad_id(ids.data(), ids.are_64, rows, begin, count) ==
                         expected);
    });
  }
}

BOOST_AUTO_TEST_CASE(first_bad_id_knows_64_bits) {
  for_variants([&](const Kernels& kernels) {
    const int64_t ids[] = {0, int64_t{1} << 32, (int64_t{1} << 40) - 1, INT64_MIN, INT64_MAX};
    BOOST_TEST(kernels.first_bad_id(ids, true, 1, 0, 5) == 1u);
    BOOST_TEST(kernels.first_bad_id(ids, true, uint64_t{1} << 40, 0, 5) == 3u);
    BOOST_TEST(kernels.first_bad_id(ids, true, uint64_t{1} << 40, 4, 5) == 4u);
    BOOST_TEST(kernels.first_bad_id(ids, true, 0, 0, 0) == 0u);
    BOOST_TEST(kernels.first_bad_id(ids, true, 0, 0, 1) == 0u);
  });
}

BOOST_AUTO_TEST_CASE(own_slots_follow_from_ids) {
  Random random(6);
  for (int trial = 0; trial < 600; ++trial) {
    const size_t count = random.below(2000);
    const uint64_t rows = 1 + random.below(500);
    Ids ids(random, count, rows);
    OwnSlotArgs args;
    args.ids = ids.data();
    args.ids_are_64 = ids.are_64;
    args.padding_id = random.one_in(2) ? -1 : static_cast<int64_t>(random.below(rows));
    args.first_row = random.below(300);
    args.first_slot = static_cast<uint32_t>(random.below(300));
    std::vector<uint64_t> resident((args.first_row + rows + 63) / 64, ~uint64_t{0});
    for (uint64_t i = random.below(3); i > 0; --i) {
      const uint64_t row = args.first_row + random.below(rows);
      resident[row / 64] &= ~(uint64_t{1} << (row % 64));
    }
    if (!random.one_in(3)) args.resident = resident.data();
    const size_t begin = random.below(count + 1);
    const auto run = [&](const Kernels& kernels, std::vector<uint32_t>& slots, size_t* padding) {
      slots.assign(count + 1, 77);
      args.slots = slots.data();
      return kernels.own_slots(args, begin, count, padding);
    };
    std::vector<uint32_t> expected;
    size_t expected_padding = 0;
    const bool found = run(reference_kernels(), expected, &expected_padding);
    for_variants([&](const Kernels& kernels) {
      std::vector<uint32_t> slots;
      size_t padding = 0;
      BOOST_TEST_REQUIRE(run(kernels, slots, &padding) == found);
      if (!found) return;
      BOOST_TEST_REQUIRE((slots == expected));
      BOOST_TEST_REQUIRE(padding == expected_padding);
    });
  }
}

BOOST_AUTO_TEST_CASE(sampled_rows_are_those_of_the_reference) {
  Random random(7);
  for (int trial = 0; trial < 600; ++trial) {
    const size_t count = random.below(2000);
    Ids ids(random, count, 1 + random.below(uint64_t{1} << (1 + random.below(31))));
    SampleArgs args;
    args.ids_are_64 = ids.are_64;
    args.first_row = random.below(uint64_t{1} << (random.one_in(2) ? 31 : 40));
    args.is_narrow = args.first_row < uint64_t{1} << 31 && random.one_in(2);
    args.mask = ~static_cast<uint32_t>(UINT64_C(0xffffffff) >> random.below(12));
    if (ids.are_64 && !args.is_narrow && count > 0) ids.wide[random.below(count)] <<= 20;
    args.ids = ids.data();
    const size_t begin = random.below(count + 1);
    std::vector<RowId> expected(count);
    expected.resize(reference_kernels().sample(args, begin, count, expected.data()));
    for_variants([&](const Kernels& kernels) {
      std::vector<RowId> rows(count - begin + 1, RowId(77));
      const size_t found = kernels.sample(args, begin, count, rows.data());
      BOOST_TEST_REQUIRE((rows.back() == RowId(77)));
      rows.resize(found);
      BOOST_TEST_REQUIRE((rows == expected));
    });
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::testing
