// Prefetched batches at named points of their way: what may happen while the drive holds a read
// back, and when it fails.
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gated_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

using Bench = GatedStore;

// Bytes of the bookkeeping depend on how far the threads that prefetch have come.
std::string without_numbers(const Status& status) {
  std::string text = status.message();
  std::erase_if(text, [](char c) { return c >= '0' && c <= '9'; });
  return text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(table_prefetch)

BOOST_AUTO_TEST_CASE(batches_train_while_rows_of_a_later_one_are_read) {
  Bench bench;
  const Feature first = Bench::batch({1, 2, 1});
  const Feature second = Bench::batch({2, 3});
  bench.look_up(first);
  bench.prefetch(first);
  bench.gate.close();
  bench.prefetch(second);
  bench.gate.wait_for_reader();
  BOOST_TEST(bench.train(first, 10) == 4);
  check_ok(bench.engine->flush());
  BOOST_TEST(bench.stats().batches_ready == 1u);
  bench.gate.open();
  BOOST_TEST(bench.train(second, 0) == 2 - 10 + 3);  // the update reached the row in its slot
  BOOST_TEST(bench.read(1)[0] == 1 - 20);
}

// The mutex is open meanwhile: statistics, and the thread that looks after the store, do not wait.
BOOST_AUTO_TEST_CASE(a_batch_that_was_not_prefetched_is_read_without_the_mutex) {
  Bench bench;
  bench.gate.close();
  bool waited = true;
  size_t slots = 0;
  std::thread other([&] {
    bench.gate.wait_for_reader();
    auto told = std::async(std::launch::async, [&] { return bench.engine->stats().slots; });
    waited = told.wait_for(std::chrono::seconds(20)) != std::future_status::ready;
    bench.gate.open();
    slots = told.get();
  });
  BOOST_TEST(bench.train(Bench::batch({5, 6}), 1) == 11);
  other.join();
  BOOST_TEST(!waited);
  BOOST_TEST(slots > 0u);
  bench.gate.fail_next();
  const Feature failing = Bench::batch({15, 16});
  const FeatureInput input = failing.input();
  BOOST_TEST(!bench.engine->plan({&input, 1}, true).is_ok());
  BOOST_TEST(bench.train(Bench::batch({15, 6}), 0) == 15 + 5);  // nothing is lost
}

BOOST_AUTO_TEST_CASE(rows_that_are_being_read_are_waited_for) {
  Bench bench;
  bench.gate.close();
  bench.prefetch(Bench::batch({5, 6}));
  bench.gate.wait_for_reader();
  std::thread opener([&] { bench.gate.open(); });
  BOOST_TEST(bench.look_up(Bench::batch({6, 7})) == 13);
  opener.join();
  bench.gate.close();
  bench.prefetch(Bench::batch({15, 16}));
  bench.gate.wait_for_reader();
  std::thread second_opener([&] { bench.gate.open(); });
  BOOST_TEST(bench.read(15)[0] == 15);
  second_opener.join();
  check_ok(bench.write(16, 100));
  BOOST_TEST(bench.train(Bench::batch({5, 6}), 0) == 11);
  BOOST_TEST(bench.train(Bench::batch({15, 16}), 0) == 115);  // written while it was waiting
  BOOST_TEST(bench.stats().batches_ready == 2u);
}

// Rows of later batches that count on those of one that failed are read by their own forward.
BOOST_AUTO_TEST_CASE(a_failed_read_takes_back_all_that_follow) {
  Bench bench;
  bench.gate.close();
  bench.prefetch(Bench::batch({5, 6}));
  bench.gate.wait_for_reader();
  bench.prefetch(Bench::batch({6, 7}));
  bench.prefetch(Bench::batch({6, 5}));
  bench.gate.fail_next();
  bench.gate.open();
  BOOST_TEST(bench.train(Bench::batch({5, 6}), 1) == 11);
  BOOST_TEST(bench.train(Bench::batch({6, 7}), 1) == 12);
  BOOST_TEST(bench.train(Bench::batch({6, 5}), 1) == 8);
  BOOST_TEST(bench.stats().batches == 3u);
}

BOOST_AUTO_TEST_CASE(what_fails_ahead_is_reported_by_the_forward) {
  Bench bench;
  for (const Feature& bad : {Bench::batch({3, 40}), Bench::batch({0, 1, 2, 3, 4, 5, 6, 7, 8})}) {
    bench.prefetch(bad);
    bench.prefetch(Bench::batch({3}));
    const FeatureInput input = bad.input();
    const Status status = bench.engine->plan({&input, 1}, true).status();
    BOOST_TEST(
        (status.code() == StatusCode::kOutOfRange || status.code() == StatusCode::kBudgetExceeded));
    const Status again = bench.engine->plan({&input, 1}, true).status();
    BOOST_TEST(without_numbers(again) == without_numbers(status));
    BOOST_TEST(bench.train(Bench::batch({3}), 0) == 3);
  }
}

// Batches that are only announced: no thread but that of the forward reads, and meets the failure.
BOOST_AUTO_TEST_CASE(a_forward_that_fails_may_be_tried_again) {
  for (const std::string then : {"retry", "others, retry", "next"}) {
    Bench bench;
    const Feature batch = Bench::batch({5, 6});
    const FeatureInput input = batch.input();
    bench.announce(batch);
    bench.announce(Bench::batch({7}));
    bench.gate.fail_next();
    BOOST_TEST((bench.engine->plan({&input, 1}, true).status().code() == StatusCode::kIo));
    if (then == "others, retry") {
      BOOST_TEST(bench.look_up(Bench::batch({1, 4})) == 5);
      const Feature others = Bench::batch({9});
      const FeatureInput unannounced = others.input();
      BOOST_TEST((bench.engine->plan({&unannounced, 1}, true).status().code() ==
                  StatusCode::kInvalidArgument));
    }
    if (then != "next") BOOST_TEST(bench.train(batch, 0) == 11);
    BOOST_TEST(bench.train(Bench::batch({7}), 0) == 7);
    BOOST_TEST(bench.engine->cancel_prefetch(UINT64_MAX) == 0u);
    BOOST_TEST(bench.stats().batches == 2u);
  }
}

BOOST_AUTO_TEST_CASE(equal_batches_may_fail_and_be_passed_over) {
  for (const int times : {1, 2}) {  // the first of them fails; the caller looks up one, or both
    Bench bench;
    const Feature batch = Bench::batch({5, 6});
    const FeatureInput input = batch.input();
    for (int i = 0; i < 2; ++i) bench.announce(batch);
    bench.announce(Bench::batch({7}));
    bench.gate.fail_next();
    BOOST_TEST((bench.engine->plan({&input, 1}, true).status().code() == StatusCode::kIo));
    for (int i = 0; i < times; ++i) BOOST_TEST(bench.train(batch, 0) == 11);
    BOOST_TEST(bench.train(Bench::batch({7}), 0) == 7);
  }
}

// An output without a backward keeps its plan, and nobody from looking ahead.
BOOST_AUTO_TEST_CASE(a_plan_that_is_kept_does_not_hold_up_the_window) {
  Bench bench;
  std::vector<Plan*> kept;
  for (int64_t i = 0; i < 3000; ++i) {
    const Feature batch = Bench::batch(std::vector<int64_t>(100, i % 20));
    bench.prefetch(batch);
    const FeatureInput input = batch.input();
    auto planned = bench.engine->plan({&input, 1}, true);
    check_ok(planned.status());
    std::vector<float> out(bench.dim());
    const FeatureForward forward{.out = out.data()};
    check_ok(bench.engine->forward(*planned.value(), {&forward, 1}));
    if (i == 0) {
      kept.push_back(planned.value());
    } else {
      bench.engine->release(*planned.value());
    }
  }
  // 300,000 lookups have gone by.
  BOOST_TEST(bench.engine->stats().lookahead_bytes < 200'000u);
  for (Plan* plan : kept) bench.engine->release(*plan);
}

BOOST_AUTO_TEST_CASE(another_batch_than_the_next_is_refused) {
  Bench bench;
  bench.prefetch(Bench::batch({1, 2}));
  bench.prefetch(Bench::batch({3}));
  const auto refused = [&](const Feature& feature, const std::string& why) {
    const FeatureInput input = feature.input();
    const Status status = bench.engine->plan({&input, 1}, true).status();
    BOOST_TEST(contains(status.message(), why), status.message());
  };
  refused(Bench::batch({1, 4}), "table 'a': id 4 at position 1, prefetched was 2");
  refused(Bench::batch({1}), "1 ids, prefetched were 2");
  Feature other_bags = Bench::batch({1, 2});
  other_bags.offsets = {0, 1};
  refused(other_bags, "other bags");
  BOOST_TEST(bench.look_up(Bench::batch({1, 4})) == 5);  // a lookup between is none of them
  BOOST_TEST(bench.train(Bench::batch({1, 2}), 0) == 3);
  BOOST_TEST(bench.engine->cancel_prefetch(UINT64_MAX) == 1u);
  BOOST_TEST(bench.train(Bench::batch({1, 4}), 0) == 5);
}

BOOST_AUTO_TEST_CASE(more_batches_than_fit_wait_for_slots) {
  Bench bench;
  std::vector<Feature> batches;
  for (int64_t i = 0; i < 30; ++i)
    batches.push_back(Bench::batch({i, i + 2, i + 4, (i * 7) % 40, (i * 11) % 40}));
  for (const Feature& batch : batches) bench.prefetch(batch);
  float expected = 0;
  float got = 0;
  for (const Feature& batch : batches) {
    for (int64_t id : batch.ids) expected += static_cast<float>(id);
    got += bench.train(batch, 0);
  }
  BOOST_TEST(got == expected);
  BOOST_TEST(bench.stats().batches == 30u);
  BOOST_TEST(bench.engine->stats().resident_rows <= bench.engine->stats().slots);
}

BOOST_AUTO_TEST_CASE(ends_while_rows_are_being_read) {
  for (const char* how : {"cancel", "close", "discard", "destroy"}) {
    Bench bench;
    bench.gate.close();
    bench.prefetch(Bench::batch({5, 6}));
    bench.prefetch(Bench::batch({6, 7}));
    bench.gate.wait_for_reader();
    const std::string way = how;
    if (way == "cancel") {
      BOOST_TEST(bench.engine->cancel_prefetch(0) == 0u);
      BOOST_TEST(bench.engine->cancel_prefetch(UINT64_MAX) == 2u);
      bench.gate.open();
      BOOST_TEST(bench.train(Bench::batch({6, 8}), 0) == 14);
      BOOST_TEST(bench.stats().batches == 0u);
      continue;
    }
    std::thread opener([&] { bench.gate.open(); });
    if (way == "close") check_ok(bench.engine->close());
    if (way == "discard") check_ok(bench.engine->discard());
    if (way == "destroy") bench.engine.reset();
    opener.join();
    bench.open();
    BOOST_TEST(bench.read(6)[0] == 6);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
