// Pooled lookup and sample weight gradients: every variant against the reference.
#include "kernels_fixture.h"

namespace te::testing {
namespace {

// A random lookup: bags with padding, empty bags, a first bag that does not begin at 0.
struct Lookup {
  Arena arena;
  std::vector<uint32_t> slots;
  std::vector<int64_t> bag_begin;
  Bytes sample_weights;
  PoolMode mode;

  Lookup(Random& random, bool wild, PoolMode pool_mode)
      : arena(random, RowLayout{random.dim(), random.dtype(), OptimizerKind::kRowwiseAdagrad},
              static_cast<uint32_t>(1 + random.below(40)), wild),
        mode(pool_mode) {
    const size_t bags = random.below(12);
    bag_begin.push_back(static_cast<int64_t>(random.below(5)));
    for (size_t b = 0; b < bags; ++b) {
      const uint64_t size = random.one_in(4) ? 0 : random.below(random.one_in(3) ? 40 : 5);
      bag_begin.push_back(bag_begin.back() + static_cast<int64_t>(size));
    }
    for (int64_t i = 0; i < bag_begin.back(); ++i) {
      const bool padding = random.one_in(6);
      slots.push_back(padding ? kPaddingSlot : static_cast<uint32_t>(random.below(arena.slots)));
    }
    if (mode == PoolMode::kSum && random.one_in(2)) {
      sample_weights = random_values(random, arena.view.layout.dtype, slots.size(), wild);
    }
  }
  size_t bags() const { return bag_begin.size() - 1; }
  PoolArgs args() const {
    PoolArgs args;
    args.arena = arena.view;
    args.mode = mode;
    args.slots = slots.data();
    args.bag_begin = bag_begin.data();
    args.sample_weights = sample_weights.empty() ? nullptr : sample_weights.data();
    return args;
  }
};

void check_pool(uint64_t seed) {
  Random random(seed);
  const Lookup lookup(random, random.one_in(3), static_cast<PoolMode>(random.below(3)));
  const RowLayout& layout = lookup.arena.view.layout;
  const size_t elements = lookup.bags() * layout.dim;
  Bytes expected(elements * dtype_bytes(layout.dtype));
  std::vector<uint32_t> expected_argmax(elements, 7);
  PoolArgs args = lookup.args();
  args.out = expected.data();
  args.argmax = expected_argmax.data();
  reference_kernels().pool(args, 0, lookup.bags());
  for_variants([&](const Kernels& kernels) {
    Bytes out(expected.size(), std::byte{0x77});
    std::vector<uint32_t> argmax(elements, 7);
    args.out = out.data();
    args.argmax = argmax.data();
    in_ranges(random, lookup.bags(), [&](size_t b, size_t e) { kernels.pool(args, b, e); });
    const std::string what = describe(kernels, layout, seed);
    check_same(out.data(), expected.data(), layout.dtype, elements, what);
    BOOST_TEST_REQUIRE(argmax == expected_argmax, what << ": argmax");
  });
}

void check_sample_weight_gradients(uint64_t seed) {
  Random random(seed);
  const bool wild = random.one_in(3);
  const Lookup lookup(random, wild, PoolMode::kSum);
  const RowLayout& layout = lookup.arena.view.layout;
  const Bytes grad = random_values(random, layout.dtype, lookup.bags() * layout.dim, wild);
  Bytes expected(lookup.slots.size() * dtype_bytes(layout.dtype), std::byte{0x55});
  const PoolArgs args = lookup.args();
  reference_kernels().sample_weight_gradients(args, grad.data(), expected.data(), 0, lookup.bags());
  for_variants([&](const Kernels& kernels) {
    Bytes out(expected.size(), std::byte{0x55});
    in_ranges(random, lookup.bags(), [&](size_t b, size_t e) {
      kernels.sample_weight_gradients(args, grad.data(), out.data(), b, e);
    });
    check_same(out.data(), expected.data(), layout.dtype, lookup.slots.size(),
               describe(kernels, layout, seed));
  });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(kernels_pool)

BOOST_AUTO_TEST_CASE(equals_the_reference) {
  for (uint64_t seed = 0; seed < 1500; ++seed) check_pool(seed);
}

BOOST_AUTO_TEST_CASE(sample_weight_gradients_equal_the_reference) {
  for (uint64_t seed = 0; seed < 1000; ++seed) check_sample_weight_gradients(seed);
}

BOOST_AUTO_TEST_CASE(known_values) {
  float rows[4][3] = {{1, 2, 3}, {4, -5, 6}, {1, 2, NAN}, {-0.0f, 0.5f, 9}};
  const uint32_t slots[] = {0, kPaddingSlot, 1, 3, 2, 0, kPaddingSlot};
  const int64_t bag_begin[] = {0, 3, 4, 6, 6, 7};
  PoolArgs args;
  args.arena = {reinterpret_cast<std::byte*>(rows), sizeof(rows[0]), {3, DType::kF32}};
  args.slots = slots;
  args.bag_begin = bag_begin;
  float out[5][3];
  uint32_t argmax[5][3];
  args.out = out;
  args.argmax = &argmax[0][0];
  for_variants([&](const Kernels& kernels) {
    args.mode = PoolMode::kMean;
    kernels.pool(args, 0, 5);
    BOOST_TEST(out[0][0] == 2.5f);
    BOOST_TEST(out[0][1] == -1.5f);
    BOOST_TEST(std::signbit(out[1][0]));  // a bag of one row is that row
    BOOST_TEST(std::isnan(out[2][2]));
    for (float x : out[3]) BOOST_TEST((x == 0 && !std::signbit(x)));  // empty
    for (float x : out[4]) BOOST_TEST((x == 0 && !std::signbit(x)));  // nothing but padding
    args.mode = PoolMode::kMax;
    kernels.pool(args, 0, 5);
    BOOST_TEST(out[0][0] == 4);
    BOOST_TEST(argmax[0][0] == 2u);
    BOOST_TEST(argmax[0][1] == 0u);
    BOOST_TEST(argmax[2][0] == 4u);     // equal: the first
    BOOST_TEST(std::isnan(out[2][2]));  // a NaN that comes first stays
    for (uint32_t x : argmax[3]) BOOST_TEST(x == kNoOccurrence);
    for (uint32_t x : argmax[4]) BOOST_TEST(x == kNoOccurrence);
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::testing
