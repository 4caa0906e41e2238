// Initial values, renorm, all_finite, and the choice of a variant.
#include "kernels_fixture.h"
#include "rows/normal.h"

namespace te::testing {
namespace {

struct Moments {
  double n = 0, sum = 0, squares = 0, fourth = 0, lowest = INFINITY, highest = -INFINITY;
  void add(double x) {
    n += 1, sum += x, squares += x * x, fourth += x * x * x * x;
    lowest = std::min(lowest, x), highest = std::max(highest, x);
  }
  double mean() const { return sum / n; }
  double variance() const { return squares / n - mean() * mean(); }
};

Moments moments_of(const InitSpec& spec) {
  constexpr uint32_t kDim = 100;
  Moments moments;
  float row[kDim];
  for (uint64_t r = 0; r < 20000; ++r) {
    kernels().initialise({kDim, DType::kF32, OptimizerKind::kNone}, spec,
                         philox_table_key(7, "moments"), r, reinterpret_cast<std::byte*>(row));
    for (float x : row) moments.add(x);
  }
  return moments;
}

void check_renorm(uint64_t seed) {
  Random random(seed);
  const float norms[] = {2, 1, INFINITY, 3, 0.5f, 0};
  const float norm_type = norms[random.below(std::size(norms))];
  const RowLayout layout{random.dim(), random.dtype(), OptimizerKind::kAdagrad};
  const Arena before(random, layout, 20, random.one_in(3));
  const std::vector<uint32_t> slots{3, 1, 19, 0, 7, 12, 13};
  const auto max_norm = static_cast<float>(random.real() * layout.dim);
  Arena expected(before);
  std::vector<uint8_t> expected_changed(slots.size(), 9);
  reference_kernels().renorm(expected.view, slots.data(), max_norm, norm_type,
                             expected_changed.data(), 0, slots.size());
  for_variants([&](const Kernels& kernels) {
    Arena got(before);
    std::vector<uint8_t> changed(slots.size(), 9);
    in_ranges(random, slots.size(), [&](size_t b, size_t e) {
      kernels.renorm(got.view, slots.data(), max_norm, norm_type, changed.data(), b, e);
    });
    const std::string what = describe(kernels, layout, seed);
    check_same_arena(got, expected, what);
    BOOST_TEST_REQUIRE(changed == expected_changed, what);
  });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(kernels_rows)

BOOST_AUTO_TEST_CASE(initial_values_equal_the_reference) {
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    Random random(seed);
    const RowLayout layout{random.dim(), random.dtype(),
                           static_cast<OptimizerKind>(random.below(5))};
    InitSpec spec;
    spec.kind = static_cast<InitSpec::Kind>(random.below(3));
    spec.a = random.value(false);
    spec.b = random.value(false);
    spec.state_value = random.value(false);
    const PhiloxKey key = philox_table_key(seed, "init");
    const uint64_t row = random.below(uint64_t{1} << 40);
    Bytes expected(layout.row_bytes() + 1);
    reference_kernels().initialise(layout, spec, key, row, expected.data());
    for_variants([&](const Kernels& kernels) {
      Bytes got(layout.row_bytes() + 1, std::byte{0x33});
      got.back() = std::byte{0};
      kernels.initialise(layout, spec, key, row, got.data());
      BOOST_TEST_REQUIRE((got == expected), describe(kernels, layout, seed));
    });
  }
}

BOOST_AUTO_TEST_CASE(initial_values_do_not_depend_on_order_and_differ) {
  const RowLayout layout{64, DType::kF32, OptimizerKind::kAdam};
  const InitSpec spec{InitSpec::Kind::kUniform, -1, 1, 0};
  const auto value = [&](uint64_t row, PhiloxKey key) {
    Bytes bytes(layout.row_bytes());
    kernels().initialise(layout, spec, key, row, bytes.data());
    return bytes;
  };
  const PhiloxKey key = philox_table_key(1, "a");
  std::vector<Bytes> forward;
  for (uint64_t r = 0; r < 50; ++r) forward.push_back(value(r, key));
  for (uint64_t r = 50; r-- > 0;) BOOST_TEST_REQUIRE((value(r, key) == forward[r]));
  BOOST_TEST((forward[0] != forward[1]));
  BOOST_TEST((value(uint64_t{1} << 32, key) != forward[0]));
  BOOST_TEST((value(0, philox_table_key(2, "a")) != forward[0]));
  BOOST_TEST((value(0, philox_table_key(1, "b")) != forward[0]));
}

BOOST_AUTO_TEST_CASE(uniform_has_its_moments) {
  const Moments m = moments_of({InitSpec::Kind::kUniform, -1, 3, 0});
  BOOST_TEST(std::fabs(m.mean() - 1) < 5 * std::sqrt(16.0 / 12 / m.n));
  BOOST_TEST(m.variance() == 16.0 / 12, boost::test_tools::tolerance(0.005));
  BOOST_TEST((m.lowest >= -1 && m.lowest < -0.9999 && m.highest <= 3 && m.highest > 2.9999));
}

BOOST_AUTO_TEST_CASE(normal_has_its_moments) {
  const Moments m = moments_of({InitSpec::Kind::kNormal, 0, 2, 0});
  BOOST_TEST(std::fabs(m.mean()) < 5 * 2 / std::sqrt(m.n));
  BOOST_TEST(m.variance() == 4.0, boost::test_tools::tolerance(0.005));
  BOOST_TEST(m.fourth / m.n == 3 * 16.0, boost::test_tools::tolerance(0.02));
  BOOST_TEST((m.lowest < -8.5 && m.highest > 8.5));  // 4 deviations, and more, in 2 million draws
}

BOOST_AUTO_TEST_CASE(normal_pair_is_box_muller) {
  Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const auto a = static_cast<uint32_t>(i == 0 ? 0xffffffff : i == 1 ? 0 : random.bits());
    const auto b = static_cast<uint32_t>(random.bits());
    double x, y;
    normal_pair(normal_polar(a, b), &x, &y);
    const double radius = std::sqrt(-2 * std::log((a + 1.0) / 4294967296.0));
    const double angle = 2 * 3.14159265358979323846 * (b / 4294967296.0);
    BOOST_TEST_REQUIRE(std::fabs(x - radius * std::cos(angle)) < 1e-14);
    BOOST_TEST_REQUIRE(std::fabs(y - radius * std::sin(angle)) < 1e-14);
  }
}

BOOST_AUTO_TEST_CASE(renorm_equals_the_reference) {
  for (uint64_t seed = 0; seed < 1000; ++seed) check_renorm(seed);
}

BOOST_AUTO_TEST_CASE(renorm_known_values) {
  float rows[2][2] = {{3, 4}, {0.3f, 0.4f}};
  const uint32_t slots[] = {0, 1};
  uint8_t changed[2] = {0, 0};
  const ArenaView arena{reinterpret_cast<std::byte*>(rows), 8, {2, DType::kF32}};
  kernels().renorm(arena, slots, 1, 2, changed, 0, 2);
  BOOST_TEST(rows[0][0] == 0.6f, boost::test_tools::tolerance(1e-6f));
  BOOST_TEST(rows[0][1] == 0.8f, boost::test_tools::tolerance(1e-6f));
  BOOST_TEST(rows[1][0] == 0.3f);
  BOOST_TEST((changed[0] == 1 && changed[1] == 0));
}

BOOST_AUTO_TEST_CASE(all_finite_finds_the_first) {
  Random random(4);
  for (int trial = 0; trial < 600; ++trial) {
    const DType dtype = random.dtype();
    const size_t count = random.below(5000);
    Bytes values = random_values(random, dtype, count, false);
    const size_t begin = random.below(count + 1);
    for (uint64_t i = random.below(4); i > 0 && count > 0; --i) {
      const float bad[] = {INFINITY, -INFINITY, NAN};
      reference::store_nearest(values.data(), dtype, random.below(count), bad[random.below(3)]);
    }
    size_t expected = 12345;
    const bool finite =
        reference_kernels().all_finite(values.data(), dtype, begin, count, &expected);
    for_variants([&](const Kernels& kernels) {
      size_t position = 12345;
      BOOST_TEST_REQUIRE(kernels.all_finite(values.data(), dtype, begin, count, &position) ==
                         finite);
      BOOST_TEST_REQUIRE(position == expected);
    });
  }
}

BOOST_AUTO_TEST_CASE(a_variant_is_chosen) {
  const Kernels* const* variants;
  const size_t count = kernel_variants(&variants);
  BOOST_TEST_REQUIRE(count >= 1u);
  BOOST_TEST(variants[0]->isa == std::string("baseline"));
  bool listed = false;
  for (size_t i = 0; i < count; ++i) listed |= variants[i] == &kernels();
  BOOST_TEST(listed);
  const char* wanted = std::getenv("TIERED_EMB_ISA");
  for (size_t i = 0; wanted != nullptr && i < count; ++i) {
    if (variants[i]->isa == std::string(wanted)) BOOST_TEST(&kernels() == variants[i]);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::testing
