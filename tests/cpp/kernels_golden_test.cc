// The bits that kernels make of fixed inputs, as checksums: whatever the processor, the compiler
// and its C library, they must be these. Nothing here makes a NaN, whose payloads may differ. Norms
// other than 0, 1, 2 and inf are left out: they use the pow of the C library.
#include "base/crc32c.h"
#include "kernels_fixture.h"
#include "rows/power.h"

namespace te::testing {
namespace {

constexpr uint32_t kDims[] = {1, 3, 15, 16, 17, 32, 63, 64, 100, 129, 256, 300};
constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr uint32_t kSlots = 24;
constexpr uint32_t kBags = 9;

struct Digest {
  uint32_t crc = 0;
  void add(const void* data, size_t bytes) { crc = crc32c(data, bytes, crc); }
  void add(const Bytes& bytes) { add(bytes.data(), bytes.size()); }
  template <class T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size() * sizeof(T));
  }
};

// Of either sign; now and then large, tiny, below the normal numbers, or zero.
float finite_value(Random& random) {
  constexpr float kScales[] = {1, 1, 1, 1, 1, 100, 7e3f, 1e-3f, 3e-5f, 1e-7f, 1e-40f, 0};
  const float scale = kScales[random.below(std::size(kScales))];
  return (static_cast<float>(random.below(1 << 24)) * 0x1p-23f - 1) * scale;
}

Bytes finite_values(Random& random, DType dtype, size_t count) {
  Bytes bytes(count * dtype_bytes(dtype));
  for (size_t i = 0; i < count; ++i) {
    reference::store_nearest(bytes.data(), dtype, i, finite_value(random));
  }
  return bytes;
}

// One pattern of a lookup for all tables: each row of `kSlots` once or more, in random order.
struct Case {
  RowLayout layout;
  Bytes arena;
  std::vector<uint32_t> slots;
  std::vector<int64_t> bag_begin{0};
  Bytes sample_weights;
  Bytes grad;

  Case(Random& random, RowLayout with) : layout(with) {
    for (uint32_t s = 0; s < kSlots; ++s) {
      Bytes row = finite_values(random, layout.dtype, layout.dim);
      row.resize(layout.row_bytes());
      for (uint32_t i = 0; i < layout.state_floats(); ++i) {
        const float state = std::fabs(finite_value(random));
        std::memcpy(row.data() + layout.state_offset_bytes() + i * 4, &state, 4);
      }
      arena.insert(arena.end(), row.begin(), row.end());
    }
    for (uint32_t bag = 0; bag < kBags; ++bag) {
      for (uint64_t i = bag == 3 ? 0 : random.below(12) + 1; i > 0; --i) {
        slots.push_back(static_cast<uint32_t>(random.below(kSlots)));
        if (random.one_in(8)) slots.back() = kPaddingSlot;
      }
      bag_begin.push_back(static_cast<int64_t>(slots.size()));
    }
    sample_weights = finite_values(random, layout.dtype, slots.size());
    grad = finite_values(random, layout.dtype, size_t{kBags} * layout.dim);
  }
  ArenaView view() { return {arena.data(), layout.row_bytes(), layout}; }
};

template <class F>
void for_cases(OptimizerKind optimizer, const F& f) {
  Random random(20 + static_cast<uint64_t>(optimizer));
  for (DType dtype : kDTypes) {
    for (uint32_t dim : kDims) {
      Case one(random, RowLayout{dim, dtype, optimizer});
      f(one);
    }
  }
}

uint32_t pool_digest(const Kernels& kernels) {
  Digest digest;
  for_cases(OptimizerKind::kSgd, [&](Case& c) {
    PoolArgs args;
    args.arena = c.view();
    args.slots = c.slots.data();
    args.bag_begin = c.bag_begin.data();
    Bytes out(c.grad.size());
    std::vector<uint32_t> argmax(size_t{kBags} * c.layout.dim);
    args.out = out.data();
    args.argmax = argmax.data();
    for (PoolMode mode : {PoolMode::kSum, PoolMode::kMean, PoolMode::kMax}) {
      args.mode = mode;
      kernels.pool(args, 0, kBags);
      digest.add(out);
    }
    digest.add(argmax);
    args.mode = PoolMode::kSum;
    args.sample_weights = c.sample_weights.data();
    kernels.pool(args, 0, kBags);
    digest.add(out);
    Bytes products(c.sample_weights.size());
    kernels.sample_weight_gradients(args, c.grad.data(), products.data(), 0, kBags);
    digest.add(products);
  });
  return digest.crc;
}

// Two steps: one with plain sums of gradients, one with all that scales them.
uint32_t update_digest(const Kernels& kernels, OptimizerKind optimizer) {
  Digest digest;
  for_cases(optimizer, [&](Case& c) {
    constexpr uint32_t kBegin[] = {0, 1, 2, 4, 9, 10, 14};
    constexpr uint32_t kUniques = std::size(kBegin) - 1;
    constexpr uint32_t kOccurrences[] = {3, 0, 7, 1, 2, 8, 4, 6, 5, 9, 13, 12, 10, 11};
    constexpr uint32_t kOccurrenceBags[] = {8, 1, 2, 2, 0, 5, 6, 7, 8, 4, 3, 0, 1, 2};
    constexpr uint32_t kUniqueSlots[] = {5, 0, 23, 7, 8, 12};
    std::vector<RowId> rows;
    for (uint64_t u = 0; u < kUniques; ++u) rows.push_back(RowId(1000 + (u << 33)));
    GradArgs grad;
    grad.dim = c.layout.dim;
    grad.dtype = c.layout.dtype;
    grad.occurrence_begin = kBegin;
    grad.occurrences = kOccurrences;
    grad.bags = kOccurrenceBags;
    grad.grad = c.grad.data();
    UpdateArgs args;
    args.arena = c.view();
    args.params = {.lr = 0.3, .eps = 1e-8, .beta1 = 0.9, .beta2 = 0.999};
    args.slots = kUniqueSlots;
    args.rows = rows.data();
    args.first_row = 1000;
    args.key = philox_table_key(17, "golden");
    Random random(3);
    c.sample_weights = finite_values(random, c.layout.dtype, std::size(kOccurrences));
    for (uint64_t step : {uint64_t{1}, uint64_t{1} << 33}) {
      args.step = step;
      args.params.bias_correction1 = 1 - power(0.9, step);
      args.params.bias_correction2 = 1 - power(0.999, step);
      std::vector<float> sums(size_t{kUniques} * c.layout.dim);
      kernels.sum_gradients(grad, sums.data(), 0, kUniques);
      digest.add(sums);
      kernels.update(grad, args, 0, kUniques);
      digest.add(c.arena);
      grad.sample_weights = c.sample_weights.data();
      grad.scale_by_count = true;
      args.params.weight_decay = 0.01;
    }
  });
  return digest.crc;
}

uint32_t initial_digest(const Kernels& kernels, InitSpec::Kind kind) {
  Digest digest;
  for (DType dtype : kDTypes) {
    for (uint32_t dim : kDims) {
      const RowLayout layout{dim, dtype, OptimizerKind::kRowwiseAdagrad};
      const InitSpec spec{kind, -0.37f, 1.21f, 0.1f};
      const PhiloxKey key = philox_table_key(5, "golden");
      for (uint64_t row = 0; row < 200; ++row) {
        Bytes bytes(layout.row_bytes());
        kernels.initialise(layout, spec, key, row * row * row * 131'071, bytes.data());
        digest.add(bytes);
      }
    }
  }
  return digest.crc;
}

uint32_t renorm_digest(const Kernels& kernels) {
  Digest digest;
  std::vector<uint32_t> slots(kSlots);
  for (uint32_t s = 0; s < kSlots; ++s) slots[s] = s;
  for (float norm_type : {0.0f, 1.0f, 2.0f, INFINITY}) {
    for_cases(OptimizerKind::kAdagrad, [&](Case& c) {
      std::vector<uint8_t> changed(kSlots, 0);
      kernels.renorm(c.view(), slots.data(), 2.5f, norm_type, changed.data(), 0, kSlots);
      digest.add(changed);
      digest.add(c.arena);
    });
  }
  return digest.crc;
}

// `digest` of the reference and of every variant.
template <class F>
void check_digest(uint32_t expected, const F& digest) {
  const auto check = [&](const Kernels& kernels) {
    const uint32_t got = digest(kernels);
    BOOST_TEST(got == expected, kernels.isa << ": 0x" << std::hex << got);
  };
  check(reference_kernels());
  for_variants(check);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(kernels_golden)

BOOST_AUTO_TEST_CASE(pooling) { check_digest(0xa02be35a, pool_digest); }

BOOST_AUTO_TEST_CASE(updates) {
  constexpr uint32_t kExpected[] = {0x4709245b, 0xd51b50c8, 0x685d9284, 0x554cd809};
  for (uint32_t kind = 1; kind <= 4; ++kind) {
    check_digest(kExpected[kind - 1], [&](const Kernels& kernels) {
      return update_digest(kernels, static_cast<OptimizerKind>(kind));
    });
  }
}

BOOST_AUTO_TEST_CASE(initial_values) {
  constexpr uint32_t kExpected[] = {0x6a2fecc0, 0x06bb90db, 0x56649a8a};
  for (uint32_t kind = 0; kind < 3; ++kind) {
    check_digest(kExpected[kind], [&](const Kernels& kernels) {
      return initial_digest(kernels, static_cast<InitSpec::Kind>(kind));
    });
  }
}

BOOST_AUTO_TEST_CASE(renorm) { check_digest(0x2a7ae3d1, renorm_digest); }

BOOST_AUTO_TEST_CASE(powers) {
  Digest digest;
  for (double x : {0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.999999}) {
    for (uint64_t n = 1; n < 3000; n += 1 + n / 50) {
      const double got = power(x, n);
      digest.add(&got, sizeof(got));
      BOOST_TEST_REQUIRE(std::fabs(got - std::pow(x, n)) <= got * 0x1p-52);
    }
    BOOST_TEST(power(x, 0) == 1);
    BOOST_TEST(power(x, uint64_t{1} << 60) == 0);
  }
  BOOST_TEST(power(1, 12345) == 1);
  BOOST_TEST(power(0.5, 40) == 0x1p-40);
  BOOST_TEST(digest.crc == 0xe4be80d7u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::testing
