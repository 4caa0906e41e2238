// The chain of index files: of checkpoints, and of changes between them.
#include <atomic>
#include <filesystem>

#include "log_fixture.h"

namespace te::test {
namespace {

std::vector<std::string> names_of_indexes(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.path().filename().string().starts_with("index-"))
      names.push_back(entry.path().filename().string());
  }
  return names;
}

// Has no space for large writes to index files.
class FullDisk final : public IoEngine {
 public:
  explicit FullDisk(std::unique_ptr<IoEngine> io) : io_(std::move(io)) {}
  const char* name() const override { return "full disk"; }
  Status run(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) override {
    for (const IoRequest& request : requests) {
      if (request.kind != IoRequest::Kind::kWrite || request.bytes < refuse_index_from_bytes ||
          request.file->path().find("/index-") == std::string::npos)
        continue;
      ++refused;
      return Status(StatusCode::kNoSpace, request.file->path() + ": full");
    }
    return io_->run(requests, on_done);
  }

  // The store's own thread reads them.
  std::atomic<size_t> refuse_index_from_bytes = SIZE_MAX;
  std::atomic<size_t> refused = 0;

 private:
  const std::unique_ptr<IoEngine> io_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(log_indexes)

// Indexes of changes are merged, time and again, without asking the owner for all rows.
BOOST_AUTO_TEST_CASE(a_long_chain_of_checkpoints) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.layout_row_bytes = {132, 68};
  options.total_rows = 200'000;  // several regions
  ModelStore model(options);
  model.create();
  check_ok(model.put(id_range(60'000, 72'000)));
  check_ok(model.store->checkpoint(model, "first"));
  const size_t visits = model.visits;
  for (uint64_t i = 0; i < 80; ++i) {
    std::vector<uint64_t> ids = id_range(i * 2477 % 199'000, i * 2477 % 199'000 + 300);
    check_ok(model.put(ids));
    check_ok(model.store->reclaim(model, 2));
    check_ok(model.store->checkpoint(model, std::to_string(i)));
    if (i % 16 != 15) continue;
    BOOST_TEST(model.visits == visits);
    const size_t rows = model.rows.size();
    model.store.reset();
    check_ok(model.try_open());
    BOOST_TEST(model.rows_found == rows);
    check_ok(model.get_all());
  }
  BOOST_TEST(model.visits == visits);
  BOOST_TEST(names_of_indexes(options.path).size() <= 17u);
}

// Where many saves change little, the first index stays, and those after it become one.
BOOST_AUTO_TEST_CASE(small_indexes_are_merged_without_the_first) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.indexes_max = 4;
  ModelStore model(options);
  model.create();
  check_ok(model.put(id_range(0, 15'000)));
  check_ok(model.store->checkpoint(model, "first"));
  const std::string first = options.path + "/" + names_of_indexes(options.path).at(0);
  for (uint64_t i = 0; i < 20; ++i) {
    check_ok(model.put({i, 5000 + i}));
    check_ok(model.store->checkpoint(model, "m"));
    BOOST_TEST(std::filesystem::exists(first));
    BOOST_TEST(names_of_indexes(options.path).size() <= 4u);
  }
  model.store.reset();
  check_ok(model.try_open());
  BOOST_TEST(model.rows_found == 15'000u);
  check_ok(model.get_all());
}

// However many rows change between two checkpoints, nobody is asked for all of them: changes go to
// indexes of their own, which do not count before a checkpoint.
BOOST_AUTO_TEST_CASE(more_changes_than_the_list_holds) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.changes_max = 1000;
  options.rows_told_at_once = 500;
  options.indexes_max = 4;
  ModelStore model(options);
  model.create();
  check_ok(model.put(id_range(0, 300)));  // so few rows are told at once
  BOOST_TEST((model.store->changes_need() == LogStore::Need::kNone));
  check_ok(model.put(id_range(300, 900)));
  check_ok(model.store->checkpoint(model, "first"));
  const auto first = model.rows;
  const size_t visits = model.visits;
  const auto change = [&](uint64_t begin, uint64_t end) {
    for (uint64_t id = begin; id < end; id += 300) {
      check_ok(model.put(id_range(id, id + 300)));
      if (model.store->changes_need() == LogStore::Need::kNone) continue;
      model.store->begin_changes(true);
      check_ok(model.put({id, 7}));  // meanwhile
      Status written = model.store->write_changes();
      model.store->end_changes(written);
      check_ok(written);
    }
  };
  change(0, 15'000);
  BOOST_TEST(names_of_indexes(options.path).size() > 2u);
  BOOST_TEST(names_of_indexes(options.path).size() <= 6u);
  model.store.reset();
  model.rows.clear();
  check_ok(model.try_open());
  BOOST_TEST(model.rows.size() == first.size());
  BOOST_TEST(names_of_indexes(options.path).size() == 2u);

  change(0, 14'700);
  check_ok(model.store->checkpoint(model, "second"));
  BOOST_TEST(model.visits == visits);
  model.store.reset();
  check_ok(model.try_open());
  BOOST_TEST(model.rows_found == 14'700u);
  check_ok(model.get_all());
}

// Whoever puts many rows at once writes the list before it is full, and merges nothing.
BOOST_AUTO_TEST_CASE(urgent_changes) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.changes_max = 100;
  options.rows_told_at_once = 50;
  options.indexes_max = 2;
  ModelStore model(options);
  model.create();
  check_ok(model.put(id_range(0, 60)));
  check_ok(model.store->checkpoint(model, "first"));
  const size_t visits = model.visits;
  for (uint64_t id = 0; id < 9000; id += 20) {
    check_ok(model.put(id_range(id, id + 20)));
    model.store->write_urgent_changes();
    BOOST_TEST((model.store->changes_need() != LogStore::Need::kUrgent));
    BOOST_TEST_REQUIRE(names_of_indexes(options.path).size() <= 64u);
  }
  BOOST_TEST(names_of_indexes(options.path).size() > 10u);
  check_ok(model.store->checkpoint(model, "second"));
  BOOST_TEST(model.visits == visits);
  model.store.reset();
  check_ok(model.try_open());
  BOOST_TEST(model.rows_found == 9000u);
  check_ok(model.get_all());
}

// What indexes of changes take is given back where a whole one has to be written.
BOOST_AUTO_TEST_CASE(a_whole_index_takes_the_place_of_changes) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.changes_max = 100;
  options.rows_told_at_once = 50;
  auto engine = std::make_unique<FullDisk>(test_engine());
  FullDisk& disk = *engine;
  ModelStore model(options);
  model.create(std::move(engine));
  check_ok(model.put(id_range(0, 60)));
  check_ok(model.store->checkpoint(model, "first"));
  const size_t first = names_of_indexes(options.path).size();
  for (uint64_t id = 0; id < 800; id += 80) {
    check_ok(model.put(id_range(id, id + 80)));
    model.store->write_urgent_changes();
  }
  BOOST_TEST(names_of_indexes(options.path).size() > first);
  check_ok(model.put(id_range(0, 800)));  // more than the list holds
  disk.refuse_index_from_bytes = 0;
  BOOST_TEST((model.store->checkpoint(model, "second").code() == StatusCode::kNoSpace));
  BOOST_TEST(names_of_indexes(options.path).size() == first);
  disk.refuse_index_from_bytes = SIZE_MAX;
  check_ok(model.store->checkpoint(model, "third"));
  BOOST_TEST(names_of_indexes(options.path).size() == 1u);
  model.store.reset();
  check_ok(model.try_open());
  BOOST_TEST(model.rows_found == 800u);
  check_ok(model.get_all());
}

// Changes that find no space are told by the next checkpoint.
BOOST_AUTO_TEST_CASE(changes_that_cannot_be_written) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.changes_max = 1000;
  options.rows_told_at_once = 500;
  auto engine = std::make_unique<FullDisk>(test_engine());
  FullDisk& disk = *engine;
  ModelStore model(options);
  model.create(std::move(engine));
  check_ok(model.put(id_range(0, 510)));
  check_ok(model.store->checkpoint(model, "first"));
  const size_t visits = model.visits;
  check_ok(model.put(id_range(200, 800)));
  BOOST_TEST_REQUIRE((model.store->changes_need() == LogStore::Need::kSome));
  disk.refuse_index_from_bytes = 0;
  model.store->begin_changes(true);
  check_ok(model.put({1, 300}));
  Status written = model.store->write_changes();
  BOOST_TEST((written.code() == StatusCode::kNoSpace));
  model.store->end_changes(written);
  BOOST_TEST((model.store->changes_need() == LogStore::Need::kNone));  // not again and again
  BOOST_TEST(names_of_indexes(options.path).size() == 2u);
  disk.refuse_index_from_bytes = SIZE_MAX;
  check_ok(model.store->checkpoint(model, "second"));
  BOOST_TEST(model.visits == visits);
  model.store.reset();
  check_ok(model.try_open());
  BOOST_TEST(model.rows_found == 800u);
  check_ok(model.get_all());
  check_ok(model.put(id_range(0, 600)));
  BOOST_TEST((model.store->changes_need() == LogStore::Need::kSome));
}

// A merge that finds no space leaves a longer chain, and nothing of itself; a failed checkpoint
// leaves the changes for the next.
BOOST_AUTO_TEST_CASE(checkpoints_on_a_full_disk) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.changes_free = 0;
  ModelStore model(options);
  auto engine = std::make_unique<FullDisk>(test_engine());
  FullDisk& disk = *engine;
  model.create(std::move(engine));
  check_ok(model.put(id_range(0, 15'000)));
  check_ok(model.store->checkpoint(model, "first"));
  const size_t visits = model.visits;
  check_ok(model.put(id_range(0, 9000)));  // more than half: worth a merge
  disk.refuse_index_from_bytes = 60'000;   // a whole index, not one of changes
  check_ok(model.store->checkpoint(model, "second"));
  BOOST_TEST(disk.refused == 1u);
  BOOST_TEST(names_of_indexes(options.path).size() == 2u);
  check_ok(model.put({3, 14'999}));
  disk.refuse_index_from_bytes = 0;
  for (int i = 0; i < 3; ++i) {
    const Status failed = model.store->checkpoint(model, "third");
    BOOST_TEST((failed.code() == StatusCode::kNoSpace));
    BOOST_TEST(names_of_indexes(options.path).size() == 2u);
  }
  disk.refuse_index_from_bytes = SIZE_MAX;
  check_ok(model.store->checkpoint(model, "fourth"));
  BOOST_TEST(names_of_indexes(options.path).size() == 1u);
  BOOST_TEST(model.visits == visits);  // nobody was asked for all rows
  model.store.reset();
  check_ok(model.try_open());
  BOOST_TEST(model.rows_found == 15'000u);
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
