// The contract of LogStore, call by call.
#include <unistd.h>

#include <atomic>
#include <bit>
#include <filesystem>

#include "log/log_options.h"
#include "log_fixture.h"

namespace te::test {
namespace {

Result<std::unique_ptr<LogStore>> open_anyhow(const LogOptions& options) {
  return LogStore::open(
      options, test_engine(), [](LayoutId, RowId, BlockAddress) { return true; }, nullptr);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(log_store)

BOOST_AUTO_TEST_CASE(a_new_store_is_empty_and_opens_at_once) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "a/b/store"));
  BOOST_TEST(!LogStore::exists(model.options.path));
  model.create();
  BOOST_TEST(LogStore::exists(model.options.path));
  model.store.reset();
  std::string metadata = "not touched";
  check_ok(model.try_open(&metadata));
  BOOST_TEST(model.rows_found == 0u);
  BOOST_TEST(metadata == "");
}

BOOST_AUTO_TEST_CASE(rows_are_readable_at_once_and_after_the_buffer_is_written) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.background_io = false;  // what has left the buffer is on the disk
  ModelStore model(options);
  model.create();
  check_ok(model.put(id_range(0, 40)));
  check_ok(model.get_all());
  BOOST_TEST(model.store->stats().rows_from_write_buffer == 40u);
  BOOST_TEST(model.store->stats().blocks_read == 0u);
  check_ok(model.put(id_range(40, 5000)));
  check_ok(model.get_all());
  const LogStats stats = model.store->stats();
  BOOST_TEST(stats.rows_read == 5040u);
  BOOST_TEST(stats.rows_written == 5000u);
  BOOST_TEST(stats.row_written_bytes == 5000u * 132);
  BOOST_TEST(stats.blocks_read > 100u);
  // 29 rows a block, each block once.
  BOOST_TEST(stats.blocks_read <= 5000u / 29 + 1);
}

BOOST_AUTO_TEST_CASE(nothing_to_do_is_fine) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  model.create();
  check_ok(model.store->put_many(LayoutId(0), {}, {}, {}));
  check_ok(model.store->get_many(LayoutId(0), {}));
  check_ok(model.store->reclaim(model, 100));
  check_ok(model.store->checkpoint(model, "x"));
  check_ok(model.store->checkpoint(model, "y"));
  BOOST_TEST(LogStore::read_metadata(model.options.path).value() == "y");
}

BOOST_AUTO_TEST_CASE(rows_of_any_size) {
  for (uint32_t row_bytes : {1u, 4u, 5u, 132u, 1010u, 2014u, 2015u, 4032u, 4036u, 4037u, 8128u,
                             8132u, 8133u, 32768u, 40001u}) {
    BOOST_TEST_CONTEXT(row_bytes << " bytes a row") {
      TempDirectory directory;
      LogOptions options = small_options(directory / "s");
      options.layout_row_bytes = {row_bytes};
      options.read_buffer_bytes = 16 << 10;
      ModelStore model(options);
      model.create();
      check_ok(model.put(id_range(0, 50)));
      check_ok(model.put({7, 3}));
      check_ok(model.get_all());
      check_ok(model.store->checkpoint(model, "m"));
      model.store.reset();
      check_ok(model.try_open());
      BOOST_TEST(model.rows_found == 50u);
      check_ok(model.get_all());
    }
  }
}

BOOST_AUTO_TEST_CASE(segments_hold_many_runs_of_any_size) {
  for (uint64_t run_bytes : {4096u, 8192u, 12288u, 20480u, 262144u, 12u << 20}) {
    for (uint64_t store_bytes : {0ull, 1ull << 20, 16ull << 20, 1ull << 30, 1ull << 42}) {
      BOOST_TEST_CONTEXT(run_bytes << " bytes a run, " << store_bytes << " bytes in all") {
        const uint64_t segment_bytes = choose_segment_bytes(store_bytes, run_bytes);
        BOOST_TEST(std::has_single_bit(segment_bytes));
        BOOST_TEST(segment_bytes >= run_bytes);
        BOOST_TEST(segment_bytes <= 64u << 20);
        if (store_bytes / 64 >= 32 * run_bytes && run_bytes < 4u << 20)
          BOOST_TEST(segment_bytes >= 16 * (run_bytes - 4096));
        if (segment_bytes > 16u << 10 && segment_bytes > 2 * run_bytes)
          BOOST_TEST(store_bytes / segment_bytes >= 64u);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(a_row_put_twice_into_one_block_has_its_last_value) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  model.create();
  check_ok(model.put({1, 2, 3}));
  check_ok(model.put({2}));
  check_ok(model.put({2}));
  check_ok(model.get_all());
  check_ok(model.store->checkpoint(model, "m"));
  check_ok(model.get_all());  // from the disk
  // The segment with row 2 in it thrice gets the fewest live rows, so that it is reclaimed first.
  check_ok(model.put(id_range(100, 10000)));
  for (uint64_t id : id_range(100, 10000)) {
    if (id < 1000 || id % 16 != 0) model.forget(id);
  }
  const BlockAddress before = model.rows.at(2).block;
  check_ok(model.store->reclaim(model, 1000));
  BOOST_TEST((model.rows.at(2).block != before));
  BOOST_TEST(model.store->stats().rows_reclaimed > 0u);
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_CASE(reclaiming_bounds_space_and_keeps_every_row) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.segment_bytes = 16 << 10;
  ModelStore model(options);
  model.create();
  for (int round = 0; round < 40; ++round) {
    std::vector<uint64_t> ids;
    for (uint64_t id = 0; id < 4000; ++id) {
      if (id * 2654435761u % 7 == static_cast<uint64_t>(round) % 7) ids.push_back(id);
    }
    check_ok(model.put(ids));
    check_ok(model.store->reclaim(model, 1000));
    const LogStats stats = model.store->stats();
    const double slack = 5.0 * options.segment_bytes;
    BOOST_TEST(static_cast<double>(stats.used_bytes_now) <=
               1.45 * static_cast<double>(stats.live_bytes_now) + slack);
  }
  BOOST_TEST(model.store->stats().segments_reclaimed > 10u);
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_CASE(a_dead_segment_costs_no_read) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  model.create();
  for (int round = 0; round < 30; ++round) check_ok(model.put(id_range(0, 1000)));
  const LogStats before = model.store->stats();
  check_ok(model.store->reclaim(model, 1));
  const LogStats after = model.store->stats();
  const uint64_t reclaimed = after.segments_reclaimed - before.segments_reclaimed;
  BOOST_TEST(reclaimed > 5u);
  BOOST_TEST(after.reclaim_read_bytes == 0u);
  BOOST_TEST(after.segments_now == before.segments_now - reclaimed);
}

BOOST_AUTO_TEST_CASE(reclaimed_segments_stay_until_the_next_checkpoint) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  model.create();
  check_ok(model.put(id_range(0, 5000)));
  check_ok(model.store->checkpoint(model, "old"));
  const auto saved = model.rows;
  for (int round = 0; round < 5; ++round) {
    check_ok(model.put(id_range(0, 5000)));
    check_ok(model.store->reclaim(model, 1000));
  }
  BOOST_TEST(model.store->stats().segments_pinned_now > 0u);
  model.store.reset();
  model.rows = saved;
  std::string metadata;
  check_ok(model.try_open(&metadata));
  BOOST_TEST(metadata == "old");
  BOOST_TEST(model.rows_found == 5000u);
  check_ok(model.get_all());
  check_ok(model.put(id_range(0, 5000)));
  check_ok(model.store->reclaim(model, 1000));
  check_ok(model.store->checkpoint(model, "new"));
  BOOST_TEST(model.store->stats().segments_pinned_now == 0u);
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_CASE(a_full_store_refuses_all_or_nothing_and_goes_on) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.segment_bytes = 16 << 10;  // 4 blocks, 116 rows
  options.capacity_bytes = 20 * options.segment_bytes;
  ModelStore model(options);
  model.create();
  check_ok(model.put(id_range(0, 1500)));
  const auto before = model.store->stats();
  Status status = model.put(id_range(2000, 4000));
  BOOST_TEST((status.code() == StatusCode::kNoSpace));
  BOOST_TEST(contains(status.message(), options.path));
  BOOST_TEST(contains(status.message(), "bytes of segments needed"));
  BOOST_TEST(model.store->stats().live_bytes_now == before.live_bytes_now);
  BOOST_TEST(model.store->stats().rows_written == before.rows_written);
  check_ok(model.get_all());

  size_t refused = 0;
  for (int round = 0; round < 60; ++round) {  // overwriting goes on forever
    const auto ids = id_range(static_cast<uint64_t>(round % 10) * 150,
                              static_cast<uint64_t>(round % 10) * 150 + 150);
    status = model.put(ids);
    if (status.code() == StatusCode::kNoSpace) {
      ++refused;
      check_ok(model.store->reclaim(model, UINT32_MAX));
      status = model.put(ids);
    }
    check_ok(status);
    check_ok(model.get_all());
  }
  BOOST_TEST(refused > 0u);
  check_ok(model.store->checkpoint(model, "m"));
  model.store.reset();
  check_ok(model.try_open());
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_CASE(a_second_holder_is_refused) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  model.create();
  const auto second = open_anyhow(model.options);
  BOOST_TEST((second.status().code() == StatusCode::kBusy));
  BOOST_TEST(contains(second.status().message(), model.options.path));
  model.store.reset();
  check_ok(open_anyhow(model.options).status());
}

BOOST_AUTO_TEST_CASE(create_and_open_say_what_is_wrong) {
  TempDirectory directory;
  const LogOptions options = small_options(directory / "s");
  BOOST_TEST((open_anyhow(options).status().code() == StatusCode::kNotFound));
  BOOST_TEST((LogStore::read_metadata(options.path).status().code() == StatusCode::kNotFound));
  {
    ModelStore model(options);
    model.create();
    const auto held = LogStore::create(options, test_engine());
    BOOST_TEST((held.status().code() == StatusCode::kAlreadyExists));
  }
  const auto again = LogStore::create(options, test_engine());
  BOOST_TEST((again.status().code() == StatusCode::kAlreadyExists));
  BOOST_TEST(contains(again.status().message(), options.path));

  write_text(directory / "file", "x");
  LogOptions below_file = options;
  below_file.path = directory / "file/store";
  const auto refused = LogStore::create(below_file, test_engine());
  BOOST_TEST((refused.status().code() == StatusCode::kIo));
  BOOST_TEST(contains(refused.status().message(), below_file.path));
  BOOST_TEST(contains(refused.status().message(), "Not a directory"));
}

BOOST_AUTO_TEST_CASE(other_rows_are_refused_by_their_first_difference) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.layout_row_bytes = {132, 68};
  ModelStore(options).create();
  const auto difference = [&](auto change) {
    LogOptions other = options;
    change(other);
    const Status status = open_anyhow(other).status();
    BOOST_TEST((status.code() == StatusCode::kInvalidArgument));
    return status.message();
  };
  BOOST_TEST(contains(difference([](LogOptions& o) { o.total_rows = 5; }),
                      "total_rows is 20000 in the store and 5 in the options"));
  BOOST_TEST(contains(difference([](LogOptions& o) { o.layout_row_bytes = {132}; }),
                      "the number of row layouts is 2 in the store and 1"));
  BOOST_TEST(contains(difference([](LogOptions& o) { o.layout_row_bytes[1] = 64; }),
                      "row bytes of layout 1 is 68 in the store and 64"));
  BOOST_TEST(contains(difference([](LogOptions& o) { o.capacity_bytes = 5000; }), "capacity"));
  // Sizes of blocks and segments are the store's own.
  options.block_bytes = 8192;
  options.segment_bytes = 1 << 20;
  auto opened = open_anyhow(options);
  check_ok(opened.status());
  BOOST_TEST(opened.value()->options().block_bytes == 4096u);
  BOOST_TEST(opened.value()->options().segment_bytes == 64u << 10);
}

BOOST_AUTO_TEST_CASE(impossible_options_are_refused) {
  TempDirectory directory;
  const LogOptions good = small_options(directory / "s");
  const auto is_refused = [&](auto change) {
    LogOptions bad = good;
    change(bad);
    const auto made = LogStore::create(bad, test_engine());
    return made.status().code() == StatusCode::kInvalidArgument;
  };
  BOOST_TEST(is_refused([](LogOptions& o) { o.path = ""; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.block_bytes = 2048; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.block_bytes = 5000; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.segment_bytes = 5000; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.segment_bytes = 0; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.total_rows = 0; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.layout_row_bytes = {}; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.layout_row_bytes = {132, 0}; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.layout_row_bytes = {64 << 10}; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.layout_row_bytes = {UINT32_MAX}; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.space_bound_ratio = 1.0; }));
  BOOST_TEST(is_refused([](LogOptions& o) { o.capacity_bytes = 3 * o.segment_bytes; }));
  BOOST_TEST(!fs::exists(good.path));
}

BOOST_AUTO_TEST_CASE(foreign_files_are_left_alone) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  fs::create_directories(model.options.path);
  const std::vector<std::string> foreign = {"notes.txt", "segment-1", "segment-0000000g", "index-"};
  for (const auto& name : foreign) write_text(model.options.path + "/" + name, "mine");
  model.create();
  model.store.reset();
  check_ok(model.try_open());
  check_ok(model.store->checkpoint(model, ""));
  for (const auto& name : foreign) BOOST_TEST(read_text(model.options.path + "/" + name) == "mine");
}

BOOST_AUTO_TEST_CASE(open_deletes_what_the_checkpoint_does_not_name) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  model.create();
  check_ok(model.put(id_range(0, 100)));
  check_ok(model.store->checkpoint(model, "m"));
  const auto saved = model.rows;
  check_ok(model.put(id_range(0, 5000)));
  model.store.reset();
  write_text(model.options.path + "/MANIFEST.tmp", "half");
  write_text(model.options.path + "/index-999", "half");
  model.rows = saved;
  check_ok(model.try_open());
  size_t segments = 0;
  size_t others = 0;
  for (const auto& entry : fs::directory_iterator(model.options.path)) {
    const std::string name = entry.path().filename().string();
    name.starts_with("segment-") ? ++segments : ++others;
    BOOST_TEST(name != "MANIFEST.tmp");
    BOOST_TEST(name != "index-999");
  }
  BOOST_TEST(segments == 1u);
  BOOST_TEST(others == 4u);  // LOCK, MANIFEST, the index of the creation and that of the changes
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_CASE(metadata_may_be_large) {
  TempDirectory directory;
  ModelStore model(small_options(directory / "s"));
  model.create();
  std::string blob(5 << 20, 'x');
  blob[0] = '\0';
  check_ok(model.store->checkpoint(model, blob));
  BOOST_TEST((LogStore::read_metadata(model.options.path).value() == blob));
  model.store.reset();
  std::string metadata;
  check_ok(model.try_open(&metadata));
  BOOST_TEST((metadata == blob));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
