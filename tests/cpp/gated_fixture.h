// A store whose reads can be held back, or fail.
#pragma once

#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "table_fixture.h"

namespace te::testing {

inline constexpr Hyperparameters kPlainSgd{.lr = 1};

// Where reads of rows stop until they are let through, or fail.
class Gate {
 public:
  void close() {
    std::lock_guard lock(mutex_);
    is_closed_ = true;
  }
  void open() {
    {
      std::lock_guard lock(mutex_);
      is_closed_ = false;
    }
    changed_.notify_all();
  }
  // The next read, or one that comes so many later.
  void fail_next(int later = 0) {
    std::lock_guard lock(mutex_);
    fails_in_ = later + 1;
  }
  // Until somebody stands before the closed gate.
  void wait_for_reader() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return readers_ > 0; });
  }
  // False if the read fails.
  bool pass() {
    std::unique_lock lock(mutex_);
    ++readers_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !is_closed_; });
    --readers_;
    return fails_in_ == 0 || --fails_in_ > 0;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_closed_ = false;
  int fails_in_ = 0;  // reads; 0: none fails
  int readers_ = 0;
};

class GatedIo final : public IoEngine {
 public:
  explicit GatedIo(Gate& gate) : gate_(gate) {}
  const char* name() const override { return "gated"; }
  Status run(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) override {
    return inner_->run(requests, on_done);
  }
  Status run_stream(Source next, FunctionRef<void(size_t)> on_done) override {
    if (!gate_.pass()) return Status(StatusCode::kIo, "the gate fails");
    return inner_->run_stream(next, on_done);
  }

 private:
  Gate& gate_;
  std::unique_ptr<IoEngine> inner_ = make_portable_engine(0);
};

// Forty rows in one block whose value is their number, eight of which fit in dram; all of them are
// on ssd.
struct GatedStore : Store {
  static constexpr uint64_t kRows = 40;
  static constexpr size_t kSlots = 8;
  Gate gate;

  GatedStore() : Store(kRows, 4, kSlots * 16, OptimizerKind::kSgd) {
    config.make_io = [this]() -> Result<std::unique_ptr<IoEngine>> {
      return std::unique_ptr<IoEngine>(std::make_unique<GatedIo>(gate));
    };
    open();
    for (int64_t id = 0; id < static_cast<int64_t>(kRows); ++id)
      check_ok(write(id, static_cast<float>(id)));
    check_ok(engine->flush());
    // Blocks that are still in a writer's memory would not be read: begin with what is on disk.
    open();
    check_ok(engine->close());
    open();
  }
  static Feature batch(std::vector<int64_t> ids) {
    Feature feature;
    feature.ids = std::move(ids);
    return feature;
  }
  uint64_t announce(const Feature& feature) {
    const FeatureInput input = feature.input();
    auto ticket = engine->announce({&input, 1}, true);
    check_ok(ticket.status());
    return ticket.value();
  }
  // Its rows, and those of all that were announced before, are read as soon as they can.
  void prefetch(const Feature& feature) { engine->prefetch(announce(feature)); }
  // Rows lose `by`, each time they occur; the sum of the first column before that.
  float train(const Feature& feature, float by) {
    const FeatureInput input = feature.input();
    auto planned = engine->plan({&input, 1}, true);
    check_ok(planned.status());
    std::vector<float> out(dim());
    const std::vector<float> grad(dim(), by);
    const FeatureForward forward{.out = out.data()};
    const FeatureBackward backward{.grad = grad.data()};
    check_ok(engine->forward(*planned.value(), {&forward, 1}));
    check_ok(engine->backward(*planned.value(), {&backward, 1}, kPlainSgd, true));
    engine->release(*planned.value());
    return out[0];
  }
  float look_up(const Feature& feature) {
    const FeatureInput input = feature.input();
    std::vector<float> out(dim());
    const FeatureForward forward{.out = out.data()};
    check_ok(engine->lookup({&input, 1}, {&forward, 1}));
    return out[0];
  }
  PrefetchStats stats() { return engine->stats().prefetch; }
};

}  // namespace te::testing
