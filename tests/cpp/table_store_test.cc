// The Engine and its store: state that moves with rows, full disks, damaged files, reopening,
// handles after close, an index that grows.
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <vector>

#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

namespace fs = std::filesystem;

// Overwrites the second half of every large file; `undo` puts all bytes back.
class Damage {
 public:
  explicit Damage(const std::string& path) {
    for (const auto& entry : fs::directory_iterator(path)) {
      if (!entry.is_regular_file() || entry.file_size() < 4 * 4096) continue;
      const std::string name = entry.path().string();
      saved_[name] = test::read_text(name);
      overwrite(name, std::string(saved_[name].size(), '\x5a'));
    }
  }
  void undo() {
    for (const auto& [name, bytes] : saved_) overwrite(name, bytes);
  }
  bool is_empty() const { return saved_.empty(); }

 private:
  static void overwrite(const std::string& name, const std::string& bytes) {
    std::fstream file(name, std::ios::in | std::ios::out | std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::map<std::string, std::string> saved_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_store)

BOOST_AUTO_TEST_CASE(state_moves_with_its_row_and_a_null_part_stays) {
  constexpr int64_t kRows = 300;
  Store store(kRows, 3, 20 * 24, OptimizerKind::kAdagrad);
  store.open();
  const auto ids = all_ids(kRows);
  std::vector<float> weights(kRows * 3), state(kRows * 3);
  std::iota(weights.begin(), weights.end(), 1.0f);
  std::iota(state.begin(), state.end(), 5000.0f);
  const TableId table(0);
  check_ok(store.engine->write_rows(table, ids, weights.data(), state.data()));
  for (float& w : weights) w = -w;
  check_ok(store.engine->write_rows(table, ids, weights.data(), nullptr));
  for (float& s : state) s += 0.5f;
  check_ok(store.engine->write_rows(table, ids, nullptr, state.data()));
  store.engine->set_step(table, 17);
  check_ok(store.engine->close());
  store.open();
  BOOST_TEST(store.engine->step(table) == 17u);
  std::vector<float> weights_read(weights.size()), state_read(state.size());
  check_ok(store.engine->read_rows(table, ids, weights_read.data(), state_read.data()));
  BOOST_TEST((weights_read == weights));
  BOOST_TEST((state_read == state));
  BOOST_TEST(store.engine->stats().resident_rows == 0u);  // reading has fetched nothing
}

BOOST_AUTO_TEST_CASE(the_last_of_duplicates_wins_across_chunks) {
  Store store(50, 1, 4 * 4, OptimizerKind::kSgd);
  store.open();
  std::vector<int64_t> ids;
  std::vector<float> values;
  for (int i = 0; i < 500; ++i) {
    ids.push_back(i * i % 50);
    values.push_back(static_cast<float>(i));
  }
  check_ok(store.engine->write_rows(TableId(0), ids, values.data(), nullptr));
  std::map<int64_t, float> last;
  for (size_t i = 0; i < ids.size(); ++i) last[ids[i]] = values[i];
  for (const auto& [id, value] : last) BOOST_TEST(store.read(id)[0] == value);
}

BOOST_AUTO_TEST_CASE(what_was_not_flushed_is_gone_and_what_was_is_there) {
  Store store(100, 4, 5 * 16, OptimizerKind::kSgd);
  store.open();
  for (int64_t id = 0; id < 50; ++id) check_ok(store.write(id, 1));
  check_ok(store.engine->flush());
  for (int64_t id = 0; id < 100; ++id) check_ok(store.write(id, 2));  // most are spilled
  store.open();                                                       // without close
  const std::vector<float> initial = store.read(99);
  BOOST_TEST(store.read(0) == std::vector<float>(4, 1));
  BOOST_TEST(store.read(49) == std::vector<float>(4, 1));
  BOOST_TEST(initial != std::vector<float>(4, 2));
}

// The background writes down which rows have changed, before the list of them is full.
BOOST_AUTO_TEST_CASE(changes_are_written_between_checkpoints) {
  constexpr int64_t kRows = 30'000;
  Store store(kRows, 4, 1000 * 64, OptimizerKind::kSgd);
  store.config.ssd_rows_told_at_once = 0;
  store.open();
  const auto write_all = [&](float value) {
    for (int64_t first = 0; first < kRows; first += 500) {
      std::vector<int64_t> ids = all_ids(500);
      for (int64_t& id : ids) id += first;
      const std::vector<float> values(ids.size() * 4, value);
      check_ok(store.engine->write_rows(TableId(0), ids, values.data(), nullptr));
    }
  };
  const auto indexes = [&] {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(store.config.ssd_path)) {
      if (entry.path().filename().string().starts_with("index-")) names.insert(entry.path());
    }
    return names;
  };
  write_all(1);
  check_ok(store.engine->flush());
  const std::set<std::string> flushed = indexes();
  float value = 1;
  for (int tries = 0; indexes() == flushed && tries < 1000; ++tries) write_all(++value);
  BOOST_TEST(indexes().size() > flushed.size());
  store.open();  // without a checkpoint: the changes do not count
  BOOST_TEST(indexes() == flushed);
  for (int64_t id = 0; id < kRows; id += 97) BOOST_TEST_REQUIRE(store.read(id)[0] == 1);
  for (int i = 0; i < 5; ++i) write_all(++value);
  check_ok(store.engine->flush());
  store.open();
  for (int64_t id = 0; id < kRows; ++id) BOOST_TEST_REQUIRE(store.read(id)[0] == value);
}

// More dirty rows than the list of changes holds, all put by one checkpoint.
BOOST_AUTO_TEST_CASE(a_checkpoint_of_many_dirty_rows_writes_what_has_changed) {
  constexpr int64_t kRows = 60'000;
  Store store(kRows, 4, 10'000 * 64, OptimizerKind::kSgd);
  store.config.ssd_rows_told_at_once = 0;
  store.open();
  const auto write = [&](int64_t first, int64_t count, float value) {
    std::vector<int64_t> ids = all_ids(count);
    for (int64_t& id : ids) id += first;
    const std::vector<float> values(ids.size() * 4, value);
    check_ok(store.engine->write_rows(TableId(0), ids, values.data(), nullptr));
  };
  for (int64_t first = 0; first < kRows; first += 500) write(first, 500, 1);
  check_ok(store.engine->flush());
  check_ok(store.engine->flush());
  const uint64_t before = store.engine->stats().log.checkpoint_written_bytes;
  write(100, 6000, 2);
  check_ok(store.engine->flush());
  const uint64_t written = store.engine->stats().log.checkpoint_written_bytes - before;
  BOOST_TEST(written < uint64_t{kRows} * 4 / 2);  // a whole index has 4 bytes a row
  store.open();
  for (int64_t id = 0; id < kRows; ++id)
    BOOST_TEST_REQUIRE(store.read(id)[0] == (id >= 100 && id < 6100 ? 2 : 1));
}

BOOST_AUTO_TEST_CASE(a_full_disk_is_an_error_and_loses_nothing) {
  Store store(20000, 16, 40 * 64, OptimizerKind::kSgd);
  store.config.ssd_capacity_bytes = 512 << 10;  // a third of the rows
  store.open();
  std::map<int64_t, float> written;
  int64_t refused = 0;
  for (int64_t id = 0; id < 20000 && refused < 20; ++id) {
    const Status status = store.write(id, static_cast<float>(id));
    if (status) {
      written[id] = static_cast<float>(id);
    } else {
      BOOST_TEST_REQUIRE((status.code() == StatusCode::kNoSpace), status.message());
      ++refused;
    }
  }
  BOOST_TEST(refused == 20);
  BOOST_TEST(written.size() > 1000u);
  for (const auto& [id, value] : written)
    BOOST_TEST_REQUIRE(store.read(id) == std::vector<float>(16, value), "row " << id);
  // Rows that are in dram can still be written, and nothing of a refused write shows.
  const auto refused_id = static_cast<int64_t>(written.size());
  BOOST_TEST(store.read(refused_id)[0] != static_cast<float>(refused_id));
}

BOOST_AUTO_TEST_CASE(a_failed_fill_is_reported_and_undone) {
  constexpr int64_t kRows = 2000;
  Store store(kRows, 16, 50 * 64, OptimizerKind::kSgd);
  store.open();
  for (int64_t id = 0; id < kRows; ++id) check_ok(store.write(id, static_cast<float>(id)));
  check_ok(store.engine->close());
  store.open();
  Feature first;
  first.ids = all_ids(20);
  const FeatureInput first_input = first.input();
  auto good = store.engine->plan({&first_input, 1}, true);
  check_ok(good.status());
  Damage damage(store.config.ssd_path);
  BOOST_TEST_REQUIRE(!damage.is_empty());
  Feature both;  // some rows are in their slots, some must be read
  for (int64_t id = 10; id < 40; ++id) both.ids.push_back(id * 7 % 300);
  const FeatureInput input = both.input();
  for (int i = 0; i < 3; ++i) {
    const auto bad = store.engine->plan({&input, 1}, true);
    BOOST_TEST((bad.status().code() == StatusCode::kCorruption), bad.status().message());
    BOOST_TEST(store.engine->stats().resident_rows == 20u);
  }
  damage.undo();
  auto again = store.engine->plan({&input, 1}, true);
  check_ok(again.status());
  std::vector<float> out(16);
  const FeatureForward forward{.out = out.data()};
  check_ok(store.engine->forward(*again.value(), {&forward, 1}));
  BOOST_TEST(out[0] == static_cast<float>(std::accumulate(both.ids.begin(), both.ids.end(), 0)));
  store.engine->release(*again.value());
  store.engine->release(*good.value());
}

BOOST_AUTO_TEST_CASE(after_close_everything_but_close_is_an_error) {
  Store store(10, 4, 5 * 16, OptimizerKind::kSgd);
  store.open();
  Feature feature;
  feature.ids = {1, 2};
  const FeatureInput input = feature.input();
  auto planned = store.engine->plan({&input, 1}, true);
  check_ok(planned.status());
  std::vector<float> out(4);
  const FeatureForward forward{.out = out.data()};
  check_ok(store.engine->forward(*planned.value(), {&forward, 1}));
  check_ok(store.engine->close());
  const FeatureBackward backward{.grad = out.data()};
  const int64_t id = 1;
  const Status errors[] = {
      store.engine->plan({&input, 1}, true).status(),
      store.engine->forward(*planned.value(), {&forward, 1}),
      store.engine->backward(*planned.value(), {&backward, 1}, {}, false),
      store.engine->read_rows(TableId(0), {&id, 1}, out.data(), nullptr),
      store.engine->write_rows(TableId(0), {&id, 1}, out.data(), nullptr),
      store.engine->apply_gradients(TableId(0), {&id, 1}, out.data(), {}),
      store.engine->lookup({&input, 1}, {&forward, 1}),
      store.engine->flush(),
  };
  for (const Status& status : errors) {
    BOOST_TEST((status.code() == StatusCode::kInvalidArgument));
    BOOST_TEST(contains(status.message(), "closed"));
  }
  BOOST_TEST(store.engine->is_closed());
  store.engine->release(*planned.value());
  check_ok(store.engine->close());
}

// The location words of scattered rows are charged to the budget, also after reopening.
BOOST_AUTO_TEST_CASE(a_growing_index_is_paid_from_the_slots) {
  Store store(uint64_t{1} << 31, 1, 14 << 20, OptimizerKind::kSgd);
  store.open();
  const uint64_t slots = store.engine->stats().slots;
  Random random(9);
  std::vector<int64_t> ids(10000);
  std::vector<float> values(ids.size(), 3);
  uint64_t most = 0;
  for (int i = 0; i < 90; ++i) {
    for (int64_t& id : ids) id = static_cast<int64_t>(random.below(uint64_t{1} << 31));
    check_ok(store.engine->write_rows(TableId(0), ids, values.data(), nullptr));
    most = std::max(most, store.engine->stats().dram_bytes);
  }
  BOOST_TEST(most <= store.config.dram_bytes);
  BOOST_TEST(store.engine->stats().index_bytes > 9u << 20);
  BOOST_TEST(store.engine->stats().slots < slots);
  check_ok(store.engine->close());
  store.open();
  BOOST_TEST(store.engine->stats().dram_bytes <= store.config.dram_bytes);
  std::vector<float> read(ids.size());
  check_ok(store.engine->read_rows(TableId(0), ids, read.data(), nullptr));
  BOOST_TEST((read == values));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
