// What the tests of tables share: random batches of one seed, and the invariants of the tiers.
#pragma once

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels_fixture.h"
#include "log_fixture.h"
#include "table/engine.h"

namespace te::testing {

using test::check_ok;
using test::contains;
using test::TempDirectory;

inline TableConfig make_table(const std::string& name, uint64_t rows, uint32_t dim) {
  TableConfig table;
  table.name = name;
  table.rows = rows;
  table.dim = dim;
  table.init = {InitSpec::Kind::kUniform, -1, 1, 0.5f};
  return table;
}

// An engine of one table with a store of its own.
struct Store {
  TempDirectory directory;
  EngineConfig config;
  std::unique_ptr<Engine> engine;

  Store(uint64_t rows, uint32_t dim, uint64_t dram_bytes, OptimizerKind optimizer) {
    config.tables = {make_table("a", rows, dim)};
    config.optimizer = optimizer;
    config.dram_bytes = dram_bytes;
    config.ssd_path = directory / "store";
  }
  void open() {
    engine.reset();
    auto created = Engine::create(config);
    check_ok(created.status());
    engine = created.take();
    config.ssd_resume = true;
  }
  size_t dim() const { return config.tables[0].dim; }
  Status write(int64_t id, float value) {
    const std::vector<float> row(dim(), value);
    return engine->write_rows(TableId(0), {&id, 1}, row.data(), nullptr);
  }
  std::vector<float> read(int64_t id) {
    std::vector<float> row(dim());
    check_ok(engine->read_rows(TableId(0), {&id, 1}, row.data(), nullptr));
    return row;
  }
};

inline Status fill(Mover& mover, Plan& plan, ThreadPool& threads) {
  Plan* const plans[] = {&plan};
  std::mutex mutex;
  std::unique_lock lock(mutex);
  return mover.fill(plans, false, threads, lock);
}

inline std::vector<int64_t> all_ids(int64_t count) {
  std::vector<int64_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

// The input of one table, owning its arrays.
struct Feature {
  uint32_t table = 0;
  std::vector<int64_t> ids;
  std::vector<int64_t> offsets;  // empty: one bag
  bool include_last_offset = false;
  int64_t padding_id = -1;

  FeatureInput input() && = delete;  // it borrows the arrays
  FeatureInput input() const& {
    FeatureInput input;
    input.table = TableId(table);
    input.ids = ids.data();
    input.ids_count = ids.size();
    input.padding_id = padding_id;
    input.is_weighted = true;  // so that occurrences are listed
    if (offsets.empty()) {
      input.bag_size = ids.size();
      input.bags = 1;
    } else {
      input.offsets = offsets.data();
      input.offsets_count = offsets.size();
      input.include_last_offset = include_last_offset;
    }
    return input;
  }
  size_t bags() const {
    return offsets.empty() ? 1 : offsets.size() - static_cast<size_t>(include_last_offset);
  }
  size_t bag_begin(size_t bag) const {
    if (bag < offsets.size()) return static_cast<size_t>(offsets[bag]);
    return bag == 0 ? 0 : ids.size();
  }
  // The bag of a position, or -1 where it is left out.
  int64_t bag_of(size_t position) const {
    if (ids[position] == padding_id || position >= bag_begin(bags())) return -1;
    size_t bag = 0;
    while (bag_begin(bag + 1) <= position) ++bag;
    return static_cast<int64_t>(bag);
  }
};

inline std::vector<FeatureInput> inputs_of(const std::vector<Feature>& features) {
  std::vector<FeatureInput> inputs;
  for (const Feature& feature : features) inputs.push_back(feature.input());
  return inputs;
}

void inputs_of(std::vector<Feature>&&) = delete;

// The CSR of a feature lists, row by row, exactly the occurrences that are pooled, in input order,
// for features that ask for occurrences.
inline void check_occurrences(Tiers& tiers, const Feature& feature, const Plan& plan, size_t f) {
  const FeaturePlan& planned = plan.features[f];
  const uint64_t first_row = tiers.table(planned.table).first_row.value;
  std::set<int64_t> seen;
  size_t listed = 0;
  for (size_t r = planned.range_first; r < planned.range_first + planned.ranges; ++r) {
    const UniqueRange& range = plan.acquired.ranges[r];
    BOOST_TEST_REQUIRE((range.feature == f && range.before == seen.size()));
    const uint32_t* begin = plan.csr_begin.data() + range.first + r;
    for (size_t u = 0; u < range.count; ++u) {
      const auto id = static_cast<int64_t>(plan.acquired.rows[range.first + u].value - first_row);
      BOOST_TEST_REQUIRE(seen.insert(id).second);
      BOOST_TEST_REQUIRE(begin[u] < begin[u + 1]);
      for (uint32_t c = begin[u]; c < begin[u + 1]; ++c, ++listed) {
        const uint32_t i = plan.csr_occurrences[c];
        BOOST_TEST_REQUIRE((c == begin[u] || plan.csr_occurrences[c - 1] < i));
        BOOST_TEST_REQUIRE(feature.ids[i] == id);
        BOOST_TEST_REQUIRE(feature.bag_of(i) == static_cast<int64_t>(plan.csr_bags[c]));
      }
    }
  }
  BOOST_TEST_REQUIRE(seen.size() == planned.uniques);
  size_t pooled = 0;
  for (size_t i = 0; i < feature.ids.size(); ++i) pooled += feature.bag_of(i) >= 0;
  BOOST_TEST_REQUIRE(listed == pooled);
}

inline Feature random_feature(Random& random, uint32_t table, uint64_t rows, size_t ids_max) {
  Feature feature;
  feature.table = table;
  const size_t count = rows == 0 ? 0 : random.below(ids_max + 1);
  const uint64_t spread = random.one_in(2) ? rows : 1 + rows / 4;  // duplicates, and hot rows
  for (size_t i = 0; i < count; ++i)
    feature.ids.push_back(static_cast<int64_t>(random.below(std::max<uint64_t>(spread, 1))));
  if (random.one_in(4) && count > 0) feature.padding_id = feature.ids[random.below(count)];
  if (random.one_in(4)) return feature;
  feature.include_last_offset = random.one_in(2);
  for (size_t bags = 1 + random.below(6); bags > 0; --bags)
    feature.offsets.push_back(static_cast<int64_t>(random.below(count + 1)));
  std::sort(feature.offsets.begin(), feature.offsets.end());
  feature.offsets[0] = 0;
  return feature;
}

// Some of the tables, in any order, each once.
inline std::vector<Feature> random_batch(Random& random, const EngineConfig& config,
                                         size_t ids_max) {
  std::vector<Feature> features;
  for (uint32_t t = 0; t < config.tables.size(); ++t) {
    if (random.one_in(4)) continue;
    features.push_back(random_feature(random, t, config.tables[t].rows, ids_max));
    std::swap(features[random.below(features.size())], features.back());
  }
  return features;
}

// Tables of a few layouts, some of them shared; some have a single row or none.
inline EngineConfig random_config(Random& random, OptimizerKind optimizer) {
  EngineConfig config;
  config.optimizer = optimizer;
  const char* const policies[] = {"lru", "lfu", "lookahead", "s3fifo"};
  config.policy = policies[random.below(4)];
  const uint32_t dims[] = {1, 3, 8, 1100};  // the last is larger than a block
  const uint64_t rows[] = {1, 5, 40, 200};
  const size_t tables = 1 + random.below(5);
  for (size_t t = 0; t < tables; ++t) {
    const bool none = t > 0 && random.one_in(8);
    TableConfig table = make_table("table" + std::to_string(t), none ? 0 : rows[random.below(4)],
                                   dims[random.below(random.one_in(4) ? 4 : 3)]);
    if (random.one_in(3)) table.dtype = DType::kF16;
    if (random.one_in(3)) table.zero_row = 0;
    config.tables.push_back(table);
  }
  return config;
}

// Any shares of dram, those of a store that is resumed too; none if the budget cannot hold them.
template <class Thing>
std::unique_ptr<Thing> make_with_shares(Random& random, EngineConfig& config) {
  for (TableConfig& table : config.tables)
    table.dram_share = random.one_in(3) ? 1.0 / static_cast<double>(1 + random.below(20)) : 0;
  auto made = Thing::create(config);
  if (made.status().code() == StatusCode::kBudgetExceeded) {
    for (TableConfig& table : config.tables) table.dram_share = 0;
    made = Thing::create(config);
  }
  check_ok(made.status());
  return made.take();
}

inline uint64_t all_rows_bytes(const EngineConfig& config) {
  uint64_t bytes = 0;
  for (const TableConfig& table : config.tables)
    bytes += table.rows * RowLayout{table.dim, table.dtype, config.optimizer}.row_bytes();
  return bytes;
}

inline uint32_t pinned_slots(Tiers& tiers) {
  uint32_t pinned = 0;
  for (size_t l = 0; l < tiers.layouts(); ++l)
    pinned += tiers.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned();
  return pinned;
}

inline void check_layout(Tiers& tiers, LayoutId id) {
  LayoutTier& tier = tiers.layout(id);
  uint32_t used = 0;
  uint32_t pinned = 0;
  uint32_t dirty = 0;
  for (uint32_t i = 0; i < tier.directory.ever_used(); ++i) {
    const Slot& slot = tier.directory[SlotIndex(i)];
    if (slot.row.is_none()) continue;
    ++used;
    pinned += slot.pins != 0;
    dirty += slot.dirty != 0;
    BOOST_TEST_REQUIRE(i < tier.directory.limit());
    BOOST_TEST_REQUIRE((tiers.index().get(slot.row) == LocationWord::slot(SlotIndex(i))),
                       "the word of row " << slot.row.value << " does not name its slot " << i);
    BOOST_TEST_REQUIRE((slot.dirty == 0 || slot.home.is_none()));
  }
  BOOST_TEST_REQUIRE(used == tier.directory.used());
  BOOST_TEST_REQUIRE(pinned == tier.directory.pinned());
  BOOST_TEST_REQUIRE(dirty == tier.dirty_rows);
  BOOST_TEST_REQUIRE(used <= tier.directory.limit());
  BOOST_TEST_REQUIRE(tier.directory.limit() <= tier.directory.slots_max());
}

inline void check_invariants(Tiers& tiers) {
  std::vector<uint32_t> limits;
  std::vector<uint32_t> least;
  bool evicting = false;
  uint64_t resident = 0;
  for (size_t l = 0; l < tiers.layouts(); ++l) {
    const LayoutId id(static_cast<uint16_t>(l));
    check_layout(tiers, id);
    const LayoutTier& tier = tiers.layout(id);
    limits.push_back(tier.directory.limit());
    least.push_back(1);
    evicting |= tier.policy != nullptr;
    resident += tier.directory.used();
  }
  const uint64_t index_bytes = tiers.metadata_bytes();
  if (evicting) {  // one slot a layout is always granted
    BOOST_TEST_REQUIRE(dram_bytes_for_slots(tiers.demands(), limits, index_bytes, true) <=
                       std::max(tiers.config().dram_bytes,
                                dram_bytes_for_slots(tiers.demands(), least, index_bytes, true)));
  }
  uint64_t words = 0;
  tiers.index().visit([&](RowId row, LocationWord word) {
    if (!word.is_slot()) return;
    ++words;
    const LayoutTier& tier = tiers.layout(tiers.table_of(row).layout);
    BOOST_TEST_REQUIRE((tier.directory[word.slot_index()].row == row));
  });
  BOOST_TEST_REQUIRE(words == resident);
}

}  // namespace te::testing
