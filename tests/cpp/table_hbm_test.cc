// Engines with an hbm tier whose device is this processor: what the device layer does between the
// calls is done here by memcpy. Bit-equal to an engine that has everything in dram, whatever fits.
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "table/plan_image.h"
#include "table/threads.h"
#include "table_fixture.h"

namespace te {
namespace {

using namespace testing;  // NOLINT: the fixture is this test's vocabulary

int differ(const void* a, const void* b, size_t bytes) {
  return bytes == 0 ? 0 : std::memcmp(a, b, bytes);
}

constexpr uint32_t kDim = 6;
constexpr uint32_t kTables = 2;

// An engine, and its device.
struct Side {
  TempDirectory directory;
  EngineConfig config;
  std::unique_ptr<Engine> engine;

  Side(uint64_t dram_bytes, uint64_t hbm_bytes, bool ssd, uint64_t rows = 60) {
    for (uint32_t t = 0; t < kTables; ++t)
      config.tables.push_back(make_table("table" + std::to_string(t), rows + 40 * t, kDim));
    config.optimizer = OptimizerKind::kAdagrad;
    config.dram_bytes = dram_bytes;
    config.hbm_bytes = hbm_bytes;
    config.hbm_on_host = true;
    if (ssd) config.ssd_path = directory / "store";
    auto created = Engine::create(config);
    check_ok(created.status());
    engine = created.take();
  }
  bool has_hbm() const { return config.hbm_bytes != 0; }

  Engine::HbmLayout layout() const {
    LayoutId id;
    return engine->hbm_layout(TableId(0), &id);
  }
  std::byte* device(SlotIndex s) const {
    const Engine::HbmLayout l = layout();
    return l.here + uint64_t{s.value} * l.stride_bytes;
  }
  std::vector<std::byte> download(std::span<const SlotIndex> slots) const {
    const uint32_t stride = layout().stride_bytes;
    std::vector<std::byte> rows(slots.size() * stride);
    for (size_t i = 0; i < slots.size(); ++i)
      std::memcpy(rows.data() + i * stride, device(slots[i]), stride);
    return rows;
  }
  void upload(std::span<const SlotIndex> dram, std::span<const SlotIndex> slots) const {
    const uint32_t stride = layout().stride_bytes;
    std::vector<std::byte> rows(slots.size() * stride);
    check_ok(engine->gather(LayoutId(0), dram, rows.data()));
    for (size_t i = 0; i < slots.size(); ++i)
      std::memcpy(device(slots[i]), rows.data() + i * stride, stride);
  }
  void bring_down() const {
    Engine::Copies copies;
    check_ok(engine->newer_copies(LayoutId(0), copies));
    const std::vector<std::byte> rows = download(copies.device);
    check_ok(engine->scatter(LayoutId(0), copies.dram, rows.data()));
    check_ok(engine->settle(LayoutId(0), copies.dram, false));
  }
  template <class Call>
  auto with_room(Call call) const {
    auto done = call();
    if (done.status().code() != StatusCode::kBudgetExceeded || !has_hbm()) return done;
    bring_down();
    check_ok(engine->drop_unused());
    return call();
  }
  Plan* plan(const std::vector<FeatureInput>& inputs) const {
    auto planned = with_room([&] { return engine->plan(inputs, true); });
    check_ok(planned.status());
    return planned.value();
  }
  void stage(Plan& plan) const {
    if (!has_hbm() || plan.is_staged) return;
    check_ok(with_room([&]() -> Result<bool> {
               TE_RETURN_IF_ERROR(engine->stage(plan));
               return true;
             }).status());
    const HbmMoves& moves = plan.moves[0];
    const std::vector<std::byte> down = download(moves.spill_from);
    upload(moves.fill_from, moves.fill_to);
    check_ok(engine->scatter(LayoutId(0), moves.spill_to, down.data()));
    check_ok(engine->settle(LayoutId(0), moves.spill_to, true));
  }
  std::vector<float> rows(uint32_t table) const {
    const std::vector<int64_t> ids = all_ids(static_cast<int64_t>(config.tables[table].rows));
    std::vector<float> values(ids.size() * 2 * kDim);
    check_ok(
        engine->read_rows(TableId(table), ids, values.data(), values.data() + ids.size() * kDim));
    return values;
  }
};

// A plan's image has its arrays; the lists of rows are all of them, the seldom ones first.
void check_image(const Side& side, const Plan& plan) {
  const PlanImage image = side.engine->image(plan);
  std::vector<std::byte> memory(image.bytes);
  std::vector<uint32_t> seldom(plan.acquired.ranges.size());
  std::vector<uint32_t> groups;
  for (uint32_t f = 0; f < plan.features.size(); ++f) groups.push_back(f);
  check_ok(side.engine->write_image(plan, groups, 1, memory.data(), seldom));
  BOOST_TEST_REQUIRE(differ(memory.data() + image.occurrence_slots, plan.occurrence_slots.data(),
                            plan.occurrences * sizeof(uint32_t)) == 0);
  const auto* which = reinterpret_cast<const uint32_t*>(memory.data() + image.which);
  const auto* image_begin = reinterpret_cast<const uint32_t*>(memory.data() + image.csr_begin);
  size_t seldom_at = 0;
  size_t often_at = std::accumulate(seldom.begin(), seldom.end(), size_t{0});
  for (size_t r = 0; r < seldom.size(); ++r) {
    const UniqueRange& range = plan.acquired.ranges[r];
    const uint32_t* begin = plan.csr_begin.data() + range.first + r;
    std::set<uint32_t> seen;
    for (uint32_t i = 0; i < range.count; ++i) {
      const uint32_t u = which[i < seldom[r] ? seldom_at++ : often_at++];
      BOOST_TEST_REQUIRE((u >= range.first && u < range.first + range.count));
      const uint32_t in_range = u - static_cast<uint32_t>(range.first);
      BOOST_TEST_REQUIRE((begin[in_range + 1] - begin[in_range] <= 1) == (i < seldom[r]));
      BOOST_TEST_REQUIRE(image_begin[u] == begin[in_range]);
      BOOST_TEST_REQUIRE(image_begin[u + 1] == begin[in_range + 1]);
      seen.insert(u);
    }
    BOOST_TEST_REQUIRE(seen.size() == range.count);
  }
}

// The same batches on both.
struct Pair {
  Random random;
  Side plain{0, 0, false};
  Side tiered;
  struct Batch {
    std::vector<Feature> features;
    Plan* plans[2];
    std::vector<float> grads;
    std::vector<size_t> begins;  // of each feature's in them
  };
  std::deque<Batch> waiting;

  Pair(uint64_t seed, uint64_t dram_slots, uint64_t hbm_slots)
      : random(seed), tiered(dram_slots * 48, hbm_slots * 48, dram_slots != 0) {}

  void forward() {
    Batch batch;
    batch.features = random_batch(random, tiered.config, 10);
    if (batch.features.empty()) return;
    const std::vector<FeatureInput> inputs = inputs_of(batch.features);
    std::vector<float> outs[2];
    size_t floats = 0;
    for (const Feature& feature : batch.features) {
      batch.begins.push_back(floats);
      floats += feature.bags() * kDim;
    }
    if (random.one_in(3)) {
      auto ticket = tiered.engine->announce(inputs, true);
      check_ok(ticket.status());
      tiered.engine->prefetch(ticket.value());
    }
    const Side* const sides[] = {&plain, &tiered};
    for (int s = 0; s < 2; ++s) {
      outs[s].resize(floats);
      std::vector<FeatureForward> forwards;
      for (size_t begin : batch.begins) forwards.push_back({.out = outs[s].data() + begin});
      batch.plans[s] = sides[s]->plan(inputs);
      sides[s]->stage(*batch.plans[s]);
      if (sides[s]->has_hbm()) check_image(*sides[s], *batch.plans[s]);
      check_ok(sides[s]->engine->forward(*batch.plans[s], forwards));
    }
    BOOST_TEST_REQUIRE(differ(outs[0].data(), outs[1].data(), floats * sizeof(float)) == 0);
    for (size_t i = 0; i < floats; ++i) batch.grads.push_back(random.value(false));
    waiting.push_back(std::move(batch));
  }
  void backward(size_t which) {
    const Batch batch = std::move(waiting[which]);
    waiting.erase(waiting.begin() + static_cast<ptrdiff_t>(which));
    const Side* const sides[] = {&plain, &tiered};
    for (int s = 0; s < 2; ++s) {
      std::vector<FeatureBackward> backwards;
      for (size_t begin : batch.begins) backwards.push_back({.grad = batch.grads.data() + begin});
      sides[s]->stage(*batch.plans[s]);
      check_ok(
          sides[s]->engine->backward(*batch.plans[s], backwards, {.lr = 0.1, .eps = 1e-8}, false));
      sides[s]->engine->release(*batch.plans[s]);
    }
  }
  void write() {
    std::vector<int64_t> ids;
    for (int i = 0; i < 3; ++i) ids.push_back(static_cast<int64_t>(random.below(60)));
    const std::vector<float> weights(ids.size() * kDim, random.value(false));
    tiered.bring_down();
    for (const Side* side : {&plain, &tiered}) {
      check_ok(side->with_room([&]() -> Result<bool> {
                     TE_RETURN_IF_ERROR(
                         side->engine->write_rows(TableId(0), ids, weights.data(), nullptr));
                     return true;
                   })
                   .status());
      Engine::Copies copies;
      check_ok(side->engine->copies(TableId(0), ids, copies));
      if (!copies.device.empty()) side->upload(copies.dram, copies.device);
    }
  }
  void compare() {
    tiered.bring_down();
    for (uint32_t t = 0; t < kTables; ++t) {
      const std::vector<float> a = plain.rows(t);
      const std::vector<float> b = tiered.rows(t);
      BOOST_TEST_REQUIRE(differ(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    }
  }
  void step() {
    switch (random.below(8)) {
      case 0: write(); break;
      case 1: compare(); break;
      case 2:
        tiered.bring_down();
        check_ok(tiered.engine->flush());
        break;
      case 3:
      case 4:
      case 5: forward(); break;
      default:
        if (!waiting.empty()) backward(random.below(waiting.size()));
    }
  }
  void run() {
    for (int i = 0; i < 60; ++i) step();
    while (!waiting.empty()) backward(0);
    compare();
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(table_hbm)

BOOST_AUTO_TEST_CASE(bit_equal_to_dram_alone) {
  const uint64_t dram_slots[] = {0, 30, 45, 90};
  const uint64_t hbm_slots[] = {2, 12, 40, 200};
  for (uint64_t seed = 0; seed < test::schedules(48); ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Pair(seed, dram_slots[seed % 4], hbm_slots[seed / 4 % 4]).run();
    }
  }
}

BOOST_AUTO_TEST_CASE(batches_of_many_rows_on_several_threads) {
  constexpr uint64_t kRows = 300'000;
  constexpr size_t kBags = 40'000;
  constexpr size_t kBagSize = 3;
  set_num_threads(4);
  Random random(5);
  const Side plain(0, 0, false, kRows);
  const Side tiered(18 << 20, 40'000 * 48, true, kRows);
  for (int step = 0; step < 6; ++step) {
    std::vector<int64_t> ids;
    for (size_t i = 0; i < kBags * kBagSize; ++i)
      ids.push_back(static_cast<int64_t>(random.below(kRows)));
    const FeatureInput input{.table = TableId(0),
                             .ids = ids.data(),
                             .ids_count = ids.size(),
                             .bag_size = kBagSize,
                             .bags = kBags};
    std::vector<float> outs[2];
    const Side* const sides[] = {&plain, &tiered};
    Plan* plans[2];
    for (int s = 0; s < 2; ++s) {
      outs[s].resize(kBags * kDim);
      plans[s] = sides[s]->plan({input});
      sides[s]->stage(*plans[s]);
      const FeatureForward forward{.out = outs[s].data()};
      check_ok(sides[s]->engine->forward(*plans[s], {&forward, 1}));
    }
    if (step == 0) check_image(tiered, *plans[1]);
    BOOST_TEST_REQUIRE(differ(outs[0].data(), outs[1].data(), kBags * kDim * sizeof(float)) == 0);
    const FeatureBackward backward{.grad = outs[0].data()};
    for (int s = 0; s < 2; ++s) {
      if (step % 3 != 1)  // else the rows stay clean
        check_ok(sides[s]->engine->backward(*plans[s], {&backward, 1}, {.lr = 1}, false));
      sides[s]->engine->release(*plans[s]);
    }
  }
  BOOST_TEST(tiered.engine->stats().hbm.rows_spilled > 0u);
  BOOST_TEST(tiered.engine->stats().hbm.rows_in_dram > 0u);
  tiered.bring_down();
  BOOST_TEST((plain.rows(0) == tiered.rows(0)));
  set_num_threads(1);
}

BOOST_AUTO_TEST_CASE(calls_that_would_miss_newer_rows_fail) {
  Side side(0, 12 * 48, false);
  const std::vector<int64_t> ids = {1, 2, 3};
  const FeatureInput input{
      .table = TableId(0), .ids = ids.data(), .ids_count = 3, .bag_size = 3, .bags = 1};
  Plan* plan = side.plan({input});
  side.stage(*plan);
  std::vector<float> out(kDim, 1);
  const FeatureForward forward{.out = out.data()};
  check_ok(side.engine->forward(*plan, {&forward, 1}));
  const FeatureBackward backward{.grad = out.data()};
  check_ok(side.engine->backward(*plan, {&backward, 1}, {.lr = 1}, false));
  side.engine->release(*plan);
  const auto read = [&](int64_t id) {
    return side.engine->read_rows(TableId(0), {&id, 1}, out.data(), nullptr);
  };
  BOOST_TEST(read(2).message().find("newer") != std::string::npos);
  BOOST_TEST((side.engine->write_rows(TableId(0), ids, out.data(), nullptr).code() ==
              StatusCode::kInvalidArgument));
  check_ok(read(7));
  Engine::Copies copies;
  check_ok(side.engine->newer_copies(LayoutId(0), copies));
  BOOST_TEST(copies.dram.size() == 3u);
  BOOST_TEST(read(7).message().find("newer") != std::string::npos);  // some are under way
  BOOST_TEST((side.engine->flush().code() == StatusCode::kInvalidArgument));
  const std::vector<std::byte> rows = side.download(copies.device);
  check_ok(side.engine->scatter(LayoutId(0), copies.dram, rows.data()));
  check_ok(side.engine->settle(LayoutId(0), copies.dram, false));
  check_ok(read(2));
  BOOST_TEST(side.engine->stats().hbm_rows == 3u);
  check_ok(side.engine->drop_unused());
  BOOST_TEST(side.engine->stats().hbm_rows == 0u);
}

BOOST_AUTO_TEST_CASE(a_row_keeps_its_count_away_from_the_device) {
  using Place = HbmTier::Place;
  BOOST_TEST((Place().is_none() && Place().uses(7) == 0));
  Place place = Place::none(40, 5);
  BOOST_TEST((place.is_none() && !place.is_on_device()));
  BOOST_TEST(place.uses(5) == 40);
  BOOST_TEST(place.uses(7) == 10);  // halved twice since
  BOOST_TEST(place.uses(1'000'000) == 0);
  place = Place::none(63, 0xffffff);
  BOOST_TEST(place.uses(0x1000000) == 31);  // the number of halvings is kept in 24 bits
  place = Place::in_dram(10);
  BOOST_TEST((!place.is_none() && !place.is_on_device()));
  place.add_plan();
  place.remove_plan(3);
  BOOST_TEST(!place.is_none());
  place.remove_plan(3);
  BOOST_TEST(place.is_none());
  BOOST_TEST(place.uses(3) == 11);  // and its use in dram
  for (uint32_t slot : {0u, 1u, (1u << 31) - 2}) {
    place = Place::on_device(SlotIndex(slot));
    BOOST_TEST((place.is_on_device() && !place.is_none() && place.slot() == SlotIndex(slot)));
  }
}

// Rows that were used often, left, and came back are worth more than those that came once.
BOOST_AUTO_TEST_CASE(what_was_used_often_stays_once_it_is_back) {
  const Side side(0, 40 * 48, false, 4000);
  const auto hits = [&](int64_t first, int64_t count) {
    std::vector<int64_t> ids(static_cast<size_t>(count));
    std::iota(ids.begin(), ids.end(), first);
    const FeatureInput input{.table = TableId(0),
                             .ids = ids.data(),
                             .ids_count = ids.size(),
                             .bag_size = ids.size(),
                             .bags = 1};
    const uint64_t before = side.engine->stats().hbm.rows_hit;
    Plan* plan = side.plan({input});
    side.stage(*plan);
    side.engine->release(*plan);
    return side.engine->stats().hbm.rows_hit - before;
  };
  for (int use = 0; use < 20; ++use) hits(0, 10);
  BOOST_TEST(hits(100, 40) == 0u);  // takes all slots
  BOOST_TEST(hits(0, 10) == 0u);
  for (int64_t scan = 0; scan < 6; ++scan) hits(200 + 12 * scan, 12);
  BOOST_TEST(hits(0, 10) == 10u);
}

// A row that was expected by a batch which does not come may wait in a queue twice.
BOOST_AUTO_TEST_CASE(no_slot_is_given_to_two_rows) {
  const Side side(0, 6000 * 48, false, 20'000);
  const auto ids_from = [](int64_t first, size_t count) {
    std::vector<int64_t> ids(count);
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  };
  const auto input_of = [](const std::vector<int64_t>& ids) {
    return FeatureInput{.table = TableId(0),
                        .ids = ids.data(),
                        .ids_count = ids.size(),
                        .bag_size = ids.size(),
                        .bags = 1};
  };
  const auto use = [&](const std::vector<int64_t>& ids) {
    Plan* plan = side.plan({input_of(ids)});
    side.stage(*plan);
    const std::vector<SlotIndex> filled = plan->moves[0].fill_to;
    side.engine->release(*plan);
    return filled;
  };
  const std::vector<int64_t> once = ids_from(0, 3000), often = ids_from(3000, 3000);
  use(once);
  for (int i = 0; i < 20; ++i) use(often);
  const FeatureInput announced = input_of(once);
  auto ticket = side.engine->announce({&announced, 1}, false);
  check_ok(ticket.status());
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // until its ids are known
  BOOST_TEST(side.engine->cancel_prefetch(ticket.value()) == 1u);
  const std::vector<SlotIndex> filled = use(ids_from(10'000, 4096));
  BOOST_TEST(filled.size() == 4096u);
  BOOST_TEST(std::set<SlotIndex>(filled.begin(), filled.end()).size() == filled.size());
}

BOOST_AUTO_TEST_CASE(a_budget_without_room_for_a_row_is_refused) {
  EngineConfig config;
  config.tables = {make_table("a", 10, 4), make_table("b", 10, 8)};
  config.hbm_bytes = 47;
  const Status status = Engine::create(config).status();
  BOOST_TEST((status.code() == StatusCode::kBudgetExceeded));
  BOOST_TEST(status.message().find("48 bytes") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
