// Random sequences of put, get, forget, reclaim, checkpoint and reopening against a std::map.
#include <array>
#include <random>
#include <thread>

#include "log_fixture.h"

namespace te::test {
namespace {

struct ModelCase {
  const char* name;
  std::vector<uint32_t> layout_row_bytes;
  uint32_t block_bytes = 4096;
  uint32_t segment_bytes = 64 << 10;
  uint64_t total_rows = 1500;
  uint64_t capacity_bytes = 0;
};

// A run is replayed by its seed alone.
class ModelRun {
 public:
  ModelRun(const ModelCase& c, uint64_t seed) : random_(seed), model_(options_of(c)) {}

  void run(int steps) {
    model_.create();
    checkpoint();
    for (int step = 0; step < steps; ++step) {
      switch (random_() % 17) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4:
        case 5: put(); break;
        case 6:
        case 7:
        case 8: get(); break;
        case 9:
        case 10: forget(); break;
        case 11:
        case 12:
        case 13: reclaim(); break;
        case 14: checkpoint(); break;
        case 15: write_changes(); break;
        default: reopen(); break;
      }
      check_accounts();
    }
    check_ok(model_.get_all());
    reopen();
    check_ok(model_.get_all());
  }

 private:
  LogOptions options_of(const ModelCase& c) {
    LogOptions options = small_options(directory_ / "store");
    options.layout_row_bytes = c.layout_row_bytes;
    options.block_bytes = c.block_bytes;
    options.segment_bytes = c.segment_bytes;
    options.total_rows = c.total_rows;
    options.capacity_bytes = c.capacity_bytes;
    options.rows_told_at_once = 0;
    options.changes_max = std::array{60u, 500u, 1u << 20}[random_() % 3];
    options.indexes_max = random_() % 2 == 0 ? 3 : 32;
    options.changes_free = random_() % 2 == 0 ? 0 : 4096;
    return options;
  }

  std::vector<uint64_t> some_ids(uint64_t count_max) {
    std::vector<uint64_t> ids;
    const uint64_t span = 1 + random_() % model_.options.total_rows;  // some runs are skewed
    for (uint64_t n = random_() % count_max; n > 0; --n) ids.push_back(random_() % span);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    std::shuffle(ids.begin(), ids.end(), random_);
    return ids;
  }

  void put() {
    const std::vector<uint64_t> ids = some_ids(300);
    Status status = model_.put(ids);
    if (status.code() == StatusCode::kNoSpace) {  // the way out that log_store.h describes
      BOOST_TEST_REQUIRE(model_.options.capacity_bytes != 0);
      check_ok(model_.store->reclaim(model_, UINT32_MAX));
      check_ok(model_.get_all());
      checkpoint();
      check_ok(model_.store->reclaim(model_, UINT32_MAX));
      checkpoint();
      status = model_.put(ids);
    }
    check_ok(status);
  }

  void get() {
    std::vector<uint64_t> ids;
    for (uint64_t id : some_ids(400)) {
      if (model_.rows.count(id) != 0) ids.push_back(id);
    }
    if (!ids.empty()) ids.push_back(ids.front());  // one row twice
    check_ok(model_.get(ids));
  }

  void reclaim() {
    const uint32_t chunks = random_() % 2 == 0 ? model_.store->take_chunks_owed(model_)
                                               : static_cast<uint32_t>(1 + random_() % 8);
    check_ok(model_.store->reclaim(model_, chunks));
  }

  void forget() {
    if (model_.options.capacity_bytes != 0) return;  // they would have to find space again
    for (uint64_t id : some_ids(60)) {
      if (model_.rows.count(id) == 0) continue;
      model_.forget(id);
      forgotten_.push_back(id);
    }
  }

  void write_changes() {
    if (random_() % 3 == 0) return model_.store->write_urgent_changes();
    if (model_.store->changes_need() == LogStore::Need::kNone) return;
    model_.store->begin_changes(true);
    Status written;
    std::thread writer([&] { written = model_.store->write_changes(); });
    if (random_() % 2 == 0 && model_.options.capacity_bytes == 0) {
      put();
      forget();
      reclaim();
    }
    writer.join();
    check_ok(written);
    model_.store->end_changes(written);
  }

  void checkpoint() {
    std::erase_if(forgotten_, [this](uint64_t id) { return model_.rows.count(id) != 0; });
    check_ok(model_.put(forgotten_));  // what a checkpoint has had, it keeps
    forgotten_.clear();
    metadata_ = "cut " + std::to_string(random_());
    const std::map<uint64_t, ModelStore::Row> rows = model_.rows;
    check_ok(model_.store->begin_checkpoint(model_, metadata_, random_() % 2 == 0));
    std::thread writer;
    Status written;
    const bool meanwhile = random_() % 2 == 0 && model_.options.capacity_bytes == 0;
    if (meanwhile) {
      writer = std::thread([&] { written = model_.store->write_checkpoint(); });
      for (int i = 0; i < 3; ++i) {  // what comes now is not in the checkpoint
        put();
        get();
        check_ok(model_.store->reclaim(model_, 1 + random_() % 4, random_() % 2 == 0));
      }
      writer.join();
    } else {
      written = model_.store->write_checkpoint();
    }
    check_ok(model_.store->end_checkpoint(written));
    saved_ = rows;
  }

  // The process dies: whatever followed the last checkpoint is gone, the rest is exactly there.
  void reopen() {
    model_.store.reset();
    model_.rows.clear();
    forgotten_.clear();
    std::string metadata;
    check_ok(model_.try_open(&metadata));
    BOOST_TEST_REQUIRE(metadata == metadata_);
    BOOST_TEST_REQUIRE(model_.rows.size() == saved_.size());
    for (auto& [row, place] : model_.rows) {
      BOOST_TEST_REQUIRE((place.block == saved_.at(row).block));
      place.version = saved_.at(row).version;
    }
  }

  void check_accounts() {
    const LogStats stats = model_.store->stats();
    BOOST_TEST_REQUIRE((stats.live_bytes_now == 0) == model_.rows.empty());
    uint64_t files = 0;
    for (const auto& entry : fs::directory_iterator(model_.options.path)) {
      files += entry.path().filename().string().starts_with("segment-");
    }
    BOOST_TEST_REQUIRE(files == stats.segments_now + stats.segments_spare_now);
    const uint64_t capacity = model_.options.capacity_bytes;
    BOOST_TEST_REQUIRE((capacity == 0 || files * model_.options.segment_bytes <= capacity));
  }

  TempDirectory directory_;
  std::mt19937_64 random_;
  ModelStore model_;
  std::map<uint64_t, ModelStore::Row> saved_;
  std::vector<uint64_t> forgotten_;
  std::string metadata_;
};

const std::vector<ModelCase> kCases = {
    {"one layout", {132}},
    {"tiny rows", {4}, 4096, 16 << 10, 20000},
    {"row ids of 8 bytes", {40}, 4096, 32 << 10, (uint64_t{1} << 32) + 5000},
    {"many layouts", {4, 7, 132, 513, 1024, 2000, 4032, 4040, 9000}, 4096, 128 << 10, 900},
    {"rows over several blocks", {5000, 33000}, 4096, 256 << 10, 120},
    {"one block a segment", {132, 68}, 4096, 4096, 1500},
    {"odd number of blocks", {260, 100}, 4096, 7 * 4096, 1500},
    {"large blocks", {12, 700}, 16384, 128 << 10, 3000},
    {"a capacity that is tight", {132}, 4096, 16 << 10, 1200, 26 * (16 << 10)},
    {"a capacity that is tight, layouts", {132, 3000}, 4096, 32 << 10, 300, 52 * (32 << 10)},
};

}  // namespace

BOOST_AUTO_TEST_SUITE(log_store)

BOOST_AUTO_TEST_CASE(random_sequences_match_the_model) {
  const char* fixed = std::getenv("TE_TEST_SEED");
  std::random_device device;
  const uint64_t first = fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : device();
  for (const ModelCase& c : kCases) {
    for (uint64_t seed = first; seed < first + (fixed != nullptr ? 1 : 2); ++seed) {
      BOOST_TEST_CONTEXT(c.name << ", replay with TE_TEST_SEED=" << seed) {
        ModelRun(c, seed).run(120);
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
