// Reads that let go of the owner's lock: whatever happens to their segments meanwhile, they bring
// the bytes that the blocks held at the call.
#include <functional>
#include <mutex>
#include <utility>

#include "log_fixture.h"

namespace te::test {
namespace {

// Does something before the next stream of reads begins.
class Interrupted final : public IoEngine {
 public:
  const char* name() const override { return "interrupted"; }
  Status run(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) override {
    return io_->run(requests, on_done);
  }
  Status run_stream(Source next, FunctionRef<void(size_t)> on_done) override {
    if (before_read) std::exchange(before_read, nullptr)();
    return io_->run_stream(next, on_done);
  }
  std::function<void()> before_read;

 private:
  const std::unique_ptr<IoEngine> io_ = make_portable_engine(1);
};

struct Bench {
  TempDirectory directory;
  ModelStore model{small_options(directory / "store")};
  Interrupted* io = nullptr;
  std::mutex mutex;
  std::vector<uint64_t> all;

  Bench() {
    auto made = std::make_unique<Interrupted>();
    io = made.get();
    model.create(std::move(made));
    for (uint64_t row = 0; row < 3000; ++row) all.push_back(row);
    check_ok(model.put(all));
    check_ok(model.store->checkpoint(model, ""));
  }

  // Reads rows as they are now while `meanwhile` runs with the lock.
  Status read(const std::vector<uint64_t>& ids, std::function<void()> meanwhile) {
    constexpr uint32_t kBytes = 132;
    std::vector<std::byte> out(ids.size() * kBytes);
    std::vector<RowRead> reads;
    std::vector<std::vector<std::byte>> expected;
    for (size_t i = 0; i < ids.size(); ++i) {
      const ModelStore::Row& row = model.rows.at(ids[i]);
      reads.push_back({RowId(ids[i]), row.block, out.data() + i * kBytes});
      expected.push_back(row_value(ids[i], row.version, kBytes));
    }
    bool was_called = false;
    io->before_read = [&] {
      was_called = true;
      std::lock_guard lock(mutex);  // hangs if the reader has not let go of it
      meanwhile();
    };
    std::unique_lock lock(mutex);
    const Status status = model.store->get_many(LayoutId(0), reads, &lock);
    BOOST_TEST_REQUIRE(lock.owns_lock());
    BOOST_TEST_REQUIRE(was_called);
    if (!status) return status;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::byte* row = out.data() + i * kBytes;
      BOOST_TEST_REQUIRE(std::equal(expected[i].begin(), expected[i].end(), row), "row " << ids[i]);
    }
    return Status::ok();
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(log_read)

BOOST_AUTO_TEST_CASE(segments_that_are_being_read_keep_their_files) {
  Bench bench;
  ModelStore& model = bench.model;
  const uint64_t segments = model.store->stats().segments_now;
  const auto replace_everything = [&] {
    for (int i = 0; i < 4; ++i) {  // numbers of deleted segments would be used again
      check_ok(model.put(bench.all));
      check_ok(model.store->reclaim(model, 1000));
      check_ok(model.store->checkpoint(model, ""));
    }
    BOOST_TEST(model.store->stats().segments_reclaimed > 0u);
  };
  check_ok(bench.read({5, 700, 6, 2999, 1500}, replace_everything));
  check_ok(model.store->reclaim(model, 1000));
  check_ok(model.store->checkpoint(model, ""));
  check_ok(model.store->reclaim(model, 1000));
  check_ok(model.store->checkpoint(model, ""));
  BOOST_TEST(model.store->stats().segments_now <= segments * 2 + 4);  // the old ones are gone
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_CASE(rows_move_while_they_are_read) {
  Bench bench;
  ModelStore& model = bench.model;
  const auto move = [&] {
    for (uint64_t row : bench.all) {  // one row of its segment is left, and more of every other
      if (row != 7 && (row < 500 || row % 50 != 0)) model.forget(row);
    }
    const BlockAddress before = model.rows.at(7).block;
    check_ok(model.store->reclaim(model, 1000));
    BOOST_TEST((model.rows.at(7).block != before));
  };
  check_ok(bench.read({7}, move));
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_CASE(a_failed_read_lets_go_of_its_segments) {
  Bench bench;
  ModelStore& model = bench.model;
  const BlockAddress nowhere = model.rows.at(7).block;
  std::vector<std::byte> out(132);
  const RowRead wrong{RowId(2500), nowhere, out.data()};
  std::unique_lock lock(bench.mutex);
  const Status status = model.store->get_many(LayoutId(0), {&wrong, 1}, &lock);
  lock.unlock();
  BOOST_TEST((status.code() == StatusCode::kCorruption));
  check_ok(model.put(bench.all));
  check_ok(model.put(bench.all));
  check_ok(model.store->reclaim(model, 1000));
  check_ok(model.store->checkpoint(model, ""));
  BOOST_TEST(model.store->stats().segments_pinned_now == 0u);
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
