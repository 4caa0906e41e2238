// Conversion between dtypes: to nearest, and stochastic.
#include "kernels_fixture.h"

namespace te::testing {
namespace {

constexpr DType kSixteenBits[] = {DType::kF16, DType::kBF16};

// Rounds values[i] at random, as an update of row `row` at `step` that ends in that weight does.
std::vector<uint16_t> round_at_random(const Kernels& kernels, DType dtype,
                                      const std::vector<float>& values, uint64_t row,
                                      uint64_t step) {
  const auto dim = static_cast<uint32_t>(values.size());
  std::vector<uint16_t> weight(dim + dim % 2, 0);
  const uint32_t slot = 0;
  UpdateArgs args;
  args.arena = {reinterpret_cast<std::byte*>(weight.data()),
                weight.size() * 2,
                {dim, dtype, OptimizerKind::kSgd}};
  args.params.lr = -1;  // 0 - (-1 * value)
  args.slots = &slot;
  const RowId id(row);
  args.rows = &id;
  args.key = philox_table_key(1, "rounding");
  args.step = step;
  kernels.apply_update(values.data(), args, 0, 1);
  weight.resize(dim);
  return weight;
}

float any_float(Random& random) {
  const auto bits = static_cast<uint32_t>(random.bits());
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(kernels_round)

BOOST_AUTO_TEST_CASE(widening_is_exact_for_all_values) {
  for (DType dtype : kSixteenBits) {
    std::vector<uint16_t> all(65536);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    const uint32_t begin[] = {0, 1};
    const uint32_t zero = 0;
    GradArgs args;
    args.dim = 65536;
    args.dtype = dtype;
    args.occurrence_begin = begin;
    args.occurrences = &zero;
    args.bags = &zero;
    args.grad = all.data();
    for_variants([&](const Kernels& kernels) {
      std::vector<float> wide(65536);
      kernels.sum_gradients(args, wide.data(), 0, 1);
      for (size_t i = 0; i < all.size(); ++i) {
        const float expected = reference::load(all.data(), dtype, i);
        BOOST_TEST_REQUIRE(std::memcmp(&wide[i], &expected, 4) == 0,
                           kernels.isa << " value " << i << ", NaN payloads included");
      }
    });
  }
}

BOOST_AUTO_TEST_CASE(narrowing_is_to_nearest_even) {
  Random random(1);
  std::vector<float> values;
  for (int i = 0; i < 200000; ++i) values.push_back(any_float(random));
  for (uint32_t i = 0; i < 0x7c00; ++i) {  // every float16, the middle to the next, and around it
    const auto half = static_cast<uint16_t>(i);
    const auto next = static_cast<uint16_t>(i + 1);
    const float a = reference::load(&half, DType::kF16, 0);
    const float b = i + 1 == 0x7c00 ? 65536 : reference::load(&next, DType::kF16, 0);
    const float middle = (a + b) / 2;
    for (float x : {a, middle, std::nextafter(middle, a), std::nextafter(middle, b)}) {
      values.push_back(i % 2 == 0 ? x : -x);
    }
  }
  for (DType dtype : kSixteenBits) {
    for_variants([&](const Kernels& kernels) {
      for (float x : values) {
        InitSpec spec;
        spec.a = x;
        uint16_t got[2];
        uint16_t expected;
        kernels.initialise({1, dtype, OptimizerKind::kNone}, spec, {}, 0,
                           reinterpret_cast<std::byte*>(got));
        reference::store_nearest(&expected, dtype, 0, x);
        BOOST_TEST_REQUIRE(got[0] == expected, kernels.isa << " " << x);
        BOOST_TEST_REQUIRE(got[1] == 0);
      }
    });
  }
  const uint16_t one = 0x3c00;
  BOOST_TEST(reference::load(&one, DType::kF16, 0) == 1.0f);
  uint16_t half;
  reference::store_nearest(&half, DType::kF16, 0, 65520.0f);
  BOOST_TEST(half == 0x7c00);
  reference::store_nearest(&half, DType::kBF16, 0, 1.00390625f);  // half way: to even
  BOOST_TEST(half == 0x3f80);
}

BOOST_AUTO_TEST_CASE(stochastic_rounding_equals_the_reference) {
  Random random(2);
  for (DType dtype : kSixteenBits) {
    for (uint64_t trial = 0; trial < 300; ++trial) {
      std::vector<float> values(1 + random.below(500));
      for (float& x : values) {
        x = random.one_in(2) ? any_float(random)
                             : static_cast<float>(std::ldexp(
                                   random.real() * 2 - 1, static_cast<int>(random.below(60)) - 42));
      }
      const uint64_t row = random.below(uint64_t{1} << 40);
      const uint64_t step = random.bits();
      const auto expected = round_at_random(reference_kernels(), dtype, values, row, step);
      for_variants([&](const Kernels& kernels) {
        const auto got = round_at_random(kernels, dtype, values, row, step);
        check_same(got.data(), expected.data(), dtype, values.size(),
                   std::string(kernels.isa) + " trial " + std::to_string(trial));
      });
    }
  }
}

BOOST_AUTO_TEST_CASE(stochastic_rounding_keeps_what_is_exact) {
  for (DType dtype : kSixteenBits) {
    std::vector<float> values;
    for (uint32_t i = 0; i < 65536; ++i) {
      const auto half = static_cast<uint16_t>(i);
      values.push_back(reference::load(&half, dtype, 0));
    }
    for (uint64_t step = 0; step < 20; ++step) {
      const auto got = round_at_random(kernels(), dtype, values, 5, step);
      for (uint32_t i = 0; i < 65536; ++i) {
        if (std::isnan(values[i])) {
          BOOST_TEST_REQUIRE(std::isnan(reference::load(got.data(), dtype, i)));
        } else if (i != 0x8000) {  // 0 + (-0) is 0
          BOOST_TEST_REQUIRE(got[i] == i);
        }
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(stochastic_rounding_is_unbiased) {
  for (DType dtype : kSixteenBits) {
    for (float x : {1.001f, -0.333f, 1234.567f, 3.3e-5f, -4e-7f, 1.5e-8f, 0.99999f, 6.0e4f}) {
      constexpr size_t kColumns = 1000;
      constexpr uint64_t kSteps = 400;
      const std::vector<float> values(kColumns, x);
      double sum = 0;
      double lowest = INFINITY;
      double highest = -INFINITY;
      for (uint64_t step = 1; step <= kSteps; ++step) {
        const auto got = round_at_random(kernels(), dtype, values, 123456789012, step);
        for (size_t c = 0; c < kColumns; ++c) {
          const double y = reference::load(got.data(), dtype, c);
          sum += y;
          lowest = std::min(lowest, y);
          highest = std::max(highest, y);
        }
      }
      BOOST_TEST((lowest <= x && x <= highest));
      const double gap = highest - lowest;
      const double p = gap == 0 ? 0 : (x - lowest) / gap;
      const double n = kColumns * kSteps;
      const double error = sum / n - x;
      BOOST_TEST(std::fabs(error) <= gap * (5 * std::sqrt(p * (1 - p) / n) + 0x1p-16),
                 "x " << x << " dtype " << static_cast<int>(dtype) << " error " << error << " gap "
                      << gap);
    }
  }
}

BOOST_AUTO_TEST_CASE(stochastic_rounding_never_makes_nan_and_overflows_as_nearest) {
  const std::vector<float> values{65504.0f, 65519.9f, 65520.0f, -1e9f, 3.4028234e38f, INFINITY};
  for (uint64_t step = 0; step < 200; ++step) {
    const auto f16 = round_at_random(kernels(), DType::kF16, values, 1, step);
    const std::vector<uint16_t> expected{0x7bff, 0x7bff, 0x7c00, 0xfc00, 0x7c00, 0x7c00};
    BOOST_TEST_REQUIRE((f16 == expected));
    const auto bf16 = round_at_random(kernels(), DType::kBF16, values, 1, step);
    for (size_t i = 0; i < values.size(); ++i) {
      BOOST_TEST_REQUIRE(!std::isnan(reference::load(bf16.data(), DType::kBF16, i)));
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::testing
