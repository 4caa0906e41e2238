// Gradients and optimizers: every variant against the reference, fused against apart.
#include <algorithm>
#include <numeric>

#include "kernels_fixture.h"

namespace te::testing {
namespace {

// A random backward: occurrences grouped by unique row, some rows many times, some once.
struct Backward {
  std::vector<uint32_t> occurrence_begin{0};
  std::vector<uint32_t> occurrences;
  std::vector<uint32_t> bags;
  std::vector<uint32_t> argmax;
  std::vector<float> bag_scale;
  Bytes grad;
  Bytes sample_weights;
  GradArgs args;

  Backward(Random& random, uint32_t dim, size_t uniques, bool wild) {
    args.dim = dim;
    args.dtype = random.dtype();
    args.mode = static_cast<PoolMode>(random.below(3));
    const size_t bag_count = 1 + random.below(20);
    const bool single = random.one_in(3);
    for (size_t u = 0; u < uniques; ++u) {
      const size_t count = single ? 1 : random.one_in(8) ? 0 : 1 + random.below(9);
      for (size_t i = 0; i < count; ++i) {
        bags.push_back(static_cast<uint32_t>(random.below(bag_count)));
      }
      occurrence_begin.push_back(static_cast<uint32_t>(bags.size()));
    }
    occurrences.resize(bags.size());
    std::iota(occurrences.begin(), occurrences.end(), 3);
    for (size_t i = occurrences.size(); i > 1; --i) {
      std::swap(occurrences[i - 1], occurrences[random.below(i)]);
    }
    grad = random_values(random, args.dtype, bag_count * dim, wild);
    args.occurrence_begin = occurrence_begin.data();
    args.occurrences = occurrences.data();
    args.bags = bags.data();
    args.grad = grad.data();
    args.scale_by_count = random.one_in(4);
    if (args.mode == PoolMode::kSum && random.one_in(2)) {
      sample_weights = random_values(random, args.dtype, occurrences.size() + 3, wild);
      args.sample_weights = sample_weights.data();
    }
    if (args.mode == PoolMode::kMean) {
      for (size_t b = 0; b < bag_count; ++b) bag_scale.push_back(1.0f / (1 + random.below(9)));
      args.bag_scale = bag_scale.data();
    }
    if (args.mode == PoolMode::kMax) {
      for (size_t i = 0; i < bag_count * dim; ++i) {
        const bool none = occurrences.empty() || random.one_in(9);
        argmax.push_back(none ? kNoOccurrence : occurrences[random.below(occurrences.size())]);
      }
      args.argmax = argmax.data();
    }
  }
};

OptimizerParams random_params(Random& random) {
  OptimizerParams params;
  params.lr = random.real();
  params.eps = random.one_in(3) ? 0 : 1e-8;
  params.beta1 = 0.9;
  params.beta2 = 0.999;
  params.bias_correction1 = 1 - std::pow(0.9, 3);
  params.bias_correction2 = 1 - std::pow(0.999, 3);
  params.weight_decay = random.one_in(2) ? 0 : 0.01;
  return params;
}

void check_update(uint64_t seed) {
  Random random(seed);
  const bool wild = random.one_in(3);
  const auto optimizer = static_cast<OptimizerKind>(1 + random.below(4));
  const RowLayout layout{random.dim(), random.dtype(), optimizer};
  const Arena before(random, layout, static_cast<uint32_t>(1 + random.below(30)), wild);
  std::vector<uint32_t> slots(before.slots);
  std::iota(slots.begin(), slots.end(), 0);
  for (size_t i = slots.size(); i > 1; --i) std::swap(slots[i - 1], slots[random.below(i)]);
  const size_t uniques = random.below(slots.size() + 1);
  const uint64_t first_row = random.below(uint64_t{1} << 30);
  std::vector<RowId> rows;
  for (size_t u = 0; u < uniques; ++u)
    rows.push_back(RowId(first_row + random.below(uint64_t{1} << 39)));
  const Backward backward(random, layout.dim, uniques, wild);
  UpdateArgs args;
  args.params = random_params(random);
  args.slots = slots.data();
  args.rows = rows.data();
  args.first_row = first_row;
  args.key = philox_table_key(seed, "table");
  args.step = 1 + random.below(uint64_t{1} << 34);

  Arena expected(before);
  args.arena = expected.view;
  std::vector<float> expected_sums(uniques * layout.dim);
  reference_kernels().sum_gradients(backward.args, expected_sums.data(), 0, uniques);
  reference_kernels().update(backward.args, args, 0, uniques);
  for_variants([&](const Kernels& kernels) {
    const std::string what = describe(kernels, layout, seed);
    std::vector<float> sums(uniques * layout.dim, -1);
    in_ranges(random, uniques,
              [&](size_t b, size_t e) { kernels.sum_gradients(backward.args, sums.data(), b, e); });
    check_same(sums.data(), expected_sums.data(), DType::kF32, sums.size(), what + ", gradients");
    Arena fused(before);
    args.arena = fused.view;
    in_ranges(random, uniques,
              [&](size_t b, size_t e) { kernels.update(backward.args, args, b, e); });
    check_same_arena(fused, expected, what + ", update");
    Arena apart(before);
    args.arena = apart.view;
    in_ranges(random, uniques,
              [&](size_t b, size_t e) { kernels.apply_update(sums.data(), args, b, e); });
    check_same_arena(apart, expected, what + ", apply_update");
  });
}

// One step of one row of one column, in float64, from the formulas of kernels.h.
struct Formula {
  double weight = 0.5, g = 0.25, m = 0.125, v = 0.0625;

  double after(OptimizerKind kind, const OptimizerParams& p) const {
    const double decayed = g + p.weight_decay * weight;
    switch (kind) {
      case OptimizerKind::kSgd: return weight - p.lr * g;
      case OptimizerKind::kAdagrad: return weight - p.lr * g / (std::sqrt(m + g * g) + p.eps);
      case OptimizerKind::kRowwiseAdagrad:
        return weight - p.lr * decayed / (std::sqrt(m + decayed * decayed) + p.eps);
      default: break;
    }
    const double new_m = p.beta1 * m + (1 - p.beta1) * g;
    const double new_v = p.beta2 * v + (1 - p.beta2) * g * g;
    return weight -
           p.lr * (new_m / p.bias_correction1) /
               (std::sqrt(new_v / p.bias_correction2) + p.eps / std::sqrt(p.bias_correction2));
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(kernels_update)

BOOST_AUTO_TEST_CASE(equals_the_reference_fused_and_apart) {
  for (uint64_t seed = 0; seed < 2000; ++seed) check_update(seed);
}

BOOST_AUTO_TEST_CASE(optimizers_follow_their_formulas) {
  const Formula formula;
  OptimizerParams params;
  params.lr = 0.1;
  params.eps = 1e-3;
  params.beta1 = 0.9;
  params.beta2 = 0.999;
  params.bias_correction1 = 1 - 0.9 * 0.9;
  params.bias_correction2 = 1 - 0.999 * 0.999;
  params.weight_decay = 0.01;
  for (int kind = 1; kind <= 4; ++kind) {
    float row[3] = {0.5f, 0.125f, 0.0625f};
    const float gradient = 0.25f;
    const uint32_t slot = 0;
    const RowId id(0);
    UpdateArgs args;
    const auto optimizer = static_cast<OptimizerKind>(kind);
    args.arena = {reinterpret_cast<std::byte*>(row), sizeof(row), {1, DType::kF32, optimizer}};
    args.params = params;
    args.slots = &slot;
    args.rows = &id;
    kernels().apply_update(&gradient, args, 0, 1);
    BOOST_TEST(row[0] == formula.after(optimizer, params), boost::test_tools::tolerance(1e-6));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::testing
