// Power loss and I/O errors at every point: what opens is the last completed checkpoint, exactly.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mutex>
#include <random>

#include "base/aligned_buffer.h"
#include "log_fixture.h"

namespace te::test {
namespace {

// What the engine does and what it has seen; outlives the engine, which a store owns.
struct FaultPlan {
  std::mutex mutex;               // a store's worker does I/O too
  uint64_t operations = 0;        // writes and syncs so far
  uint64_t fail_at = UINT64_MAX;  // this operation fails ...
  bool fail_ever_after = true;    // ... and all later ones, as for a dead process
  std::mt19937_64 random{1};

  struct Unsynced {
    int fd;
    uint64_t offset_bytes;
    AlignedBuffer before;
  };
  std::vector<Unsynced> unsynced;

  bool fails() {
    const uint64_t now = operations++;
    return now == fail_at || (now > fail_at && fail_ever_after);
  }

  // The power fails: of what was never synced, pages survive at random.
  void lose_power() {
    for (size_t i = unsynced.size(); i-- > 0;) {
      const Unsynced& u = unsynced[i];
      for (size_t at = 0; at < u.before.bytes(); at += kIoAlignmentBytes) {
        if (random() % 3 == 0) continue;
        const ssize_t n = ::pwrite(u.fd, u.before.data() + at, kIoAlignmentBytes,
                                   static_cast<off_t>(u.offset_bytes + at));
        TE_CHECK(n == static_cast<ssize_t>(kIoAlignmentBytes));
      }
      ::close(u.fd);
    }
    unsynced.clear();
  }
};

// Remembers what each write replaced until its file is synced.
class FaultEngine final : public IoEngine {
 public:
  explicit FaultEngine(std::shared_ptr<FaultPlan> plan) : plan_(std::move(plan)) {}
  const char* name() const override { return "fault"; }

  Status run(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) override {
    std::lock_guard lock(plan_->mutex);
    for (size_t i = 0; i < requests.size(); ++i) {
      const IoRequest& request = requests[i];
      if (request.kind == IoRequest::Kind::kSync) {
        TE_RETURN_IF_ERROR(sync(*request.file));
        on_done(i);
        continue;
      }
      if (request.kind == IoRequest::Kind::kWrite) {
        remember(request);
        if (plan_->fails()) {
          IoRequest half = request;  // a torn write
          half.bytes = plan_->random() % (request.bytes / kIoAlignmentBytes) * kIoAlignmentBytes;
          if (half.bytes > 0) (void)io_->run({&half, 1}, [](size_t) {});
          return Status(StatusCode::kIo, request.file->path() + ": a failure was asked for");
        }
      }
      TE_RETURN_IF_ERROR(io_->run({&request, 1}, [](size_t) {}));
      on_done(i);
    }
    return Status::ok();
  }

 private:
  Status sync(const IoFile& file) {
    if (plan_->fails()) return Status(StatusCode::kIo, file.path() + ": a failure was asked for");
    std::erase_if(plan_->unsynced, [&](const FaultPlan::Unsynced& u) {
      const bool same = same_file(u.fd, file.fd());
      if (same) ::close(u.fd);
      return same;
    });
    return Status::ok();
  }

  static bool same_file(int a, int b) {
    struct stat x;
    struct stat y;
    TE_CHECK(::fstat(a, &x) == 0 && ::fstat(b, &y) == 0);
    return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
  }

  void remember(const IoRequest& request) {
    AlignedBuffer before(request.bytes);
    // What is past the end reads as nothing, and stays zero.
    (void)!::pread(request.file->fd(), before.data(), request.bytes,
                   static_cast<off_t>(request.offset_bytes));
    plan_->unsynced.push_back(
        {::fcntl(request.file->fd(), F_DUPFD_CLOEXEC, 0), request.offset_bytes, std::move(before)});
  }

  std::shared_ptr<FaultPlan> plan_;
  std::unique_ptr<IoEngine> io_ = make_portable_engine(0);
};

// A fixed history of puts, forgets, reclaims and checkpoints, broken off where the engine fails.
class History {
 public:
  // With background I/O a schedule is not the same twice, what must hold is.
  History(const std::string& path, std::shared_ptr<FaultPlan> plan, bool background_io,
          bool merge_often)
      : plan_(std::move(plan)), model_(options_of(path, background_io, merge_often)) {}

  // Runs until an error or the end. `saved` are the rows of the checkpoints that may be found.
  bool run(uint64_t seed = 9, int steps = 60) {
    auto made = LogStore::create(model_.options, std::make_unique<FaultEngine>(plan_));
    if (!made) return false;
    model_.store = made.take();
    saved_ = {model_.rows};
    std::mt19937_64 random(seed);
    for (int step = 0; step < steps; ++step) {
      if (!do_step(random)) return false;
    }
    return true;
  }

  void crash() {
    model_.store.reset();
    plan_->lose_power();
  }

  void check_reopened() {
    model_.rows.clear();
    std::string metadata;
    check_ok(model_.try_open(&metadata));
    const auto matches = [&](const std::map<uint64_t, ModelStore::Row>& saved) {
      if (saved.size() != model_.rows.size()) return false;
      for (const auto& [row, place] : saved) {
        const auto found = model_.rows.find(row);
        if (found == model_.rows.end() || found->second.block != place.block) return false;
      }
      return true;
    };
    for (const auto& saved : saved_) {
      if (!matches(saved)) continue;
      model_.rows = saved;
      check_ok(model_.get_all());  // each row has the version of that checkpoint
      check_ok(model_.put(id_range(0, 300)));
      check_ok(model_.store->checkpoint(model_, "after"));
      return;
    }
    BOOST_TEST_REQUIRE(false, "what opened is no checkpoint");
  }

  ModelStore& model() { return model_; }

 private:
  static LogOptions options_of(const std::string& path, bool background_io, bool merge_often) {
    LogOptions options = small_options(path);
    options.layout_row_bytes = {132, 3000};
    options.total_rows = 700;
    options.segment_bytes = 32 << 10;
    options.space_bound_ratio = 1.1;
    options.background_io = background_io;
    options.rows_told_at_once = 0;
    options.changes_max = merge_often ? 300 : 1 << 20;
    options.indexes_max = merge_often ? 2 : 32;
    options.changes_free = merge_often ? 0 : 4096;
    return options;
  }

  bool do_step(std::mt19937_64& random) {
    std::vector<uint64_t> ids;
    for (uint64_t id = random() % 7; id < 700; id += 1 + random() % 5) ids.push_back(id);
    if (!model_.put(ids)) return false;
    if (!model_.store->reclaim(model_, 3, random() % 2 == 0)) return false;
    if (model_.store->changes_need() != LogStore::Need::kNone) {
      model_.store->begin_changes(true);
      Status written = model_.store->write_changes();
      model_.store->end_changes(written);
      if (!written) return false;
    }
    if (random() % 4 != 0) return true;
    saved_.push_back(model_.rows);  // may be found from the moment it is tried
    if (!model_.store->begin_checkpoint(model_, "cut", random() % 2 == 0)) return false;
    if (!model_.store->end_checkpoint(model_.store->write_checkpoint())) return false;
    saved_.erase(saved_.begin(), saved_.end() - 1);
    return true;
  }

  std::shared_ptr<FaultPlan> plan_;
  ModelStore model_;
  std::vector<std::map<uint64_t, ModelStore::Row>> saved_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(log_crash)

BOOST_AUTO_TEST_CASE(power_loss_at_any_operation_leaves_the_last_checkpoint) {
  for (const bool merge_often : {false, true}) {
    uint64_t operations = 0;
    {
      TempDirectory directory;
      auto plan = std::make_shared<FaultPlan>();
      History history(directory / "s", plan, false, merge_often);
      BOOST_TEST(history.run());
      operations = plan->operations;
      history.crash();
      history.check_reopened();
    }
    BOOST_TEST(operations > 100u);
    // The first four operations are those of create(): index and manifest, written and synced.
    for (uint64_t at = 4; at < operations; at += 1 + operations / schedules(30)) {
      BOOST_TEST_CONTEXT("operation " << at << " of " << operations) {
        TempDirectory directory;
        auto plan = std::make_shared<FaultPlan>();
        plan->fail_at = at;
        plan->random.seed(at);
        History history(directory / "s", plan, false, merge_often);
        BOOST_TEST(!history.run());
        history.crash();
        history.check_reopened();
      }
    }
  }
}

// Schedules from one seed each: what is done, which operation fails, whether that is the end of the
// process, and which unsynced pages survive. TE_TEST_SCHEDULES of them, TE_TEST_SEED replays one.
BOOST_AUTO_TEST_CASE(random_schedules_of_faults) {
  const char* fixed = std::getenv("TE_TEST_SEED");
  const char* wanted = std::getenv("TE_TEST_SCHEDULES");
  const uint64_t count = fixed != nullptr    ? 1
                         : wanted != nullptr ? std::strtoull(wanted, nullptr, 10)
                                             : schedules(150);
  const uint64_t first = fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : 1;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    BOOST_TEST_CONTEXT("replay with TE_TEST_SEED=" << seed) {
      TempDirectory directory;
      std::mt19937_64 random(seed);
      auto plan = std::make_shared<FaultPlan>();
      plan->random.seed(seed);
      plan->fail_at = 4 + random() % 140;
      plan->fail_ever_after = random() % 2 == 0;
      const bool background_io = random() % 4 == 0;
      History history(directory / "s", plan, background_io, random() % 2 == 0);
      const bool survived = history.run(random(), 16);
      if (survived || !plan->fail_ever_after) {
        check_ok(history.model().get_all());  // nothing that was accepted is lost meanwhile
      }
      history.crash();
      history.check_reopened();
    }
  }
}

BOOST_AUTO_TEST_CASE(power_loss_while_writes_are_under_way) {
  for (uint64_t at = 4; at < 450; at += 9) {
    BOOST_TEST_CONTEXT("operation " << at) {
      TempDirectory directory;
      auto plan = std::make_shared<FaultPlan>();
      plan->fail_at = at;
      plan->random.seed(at);
      History history(directory / "s", plan, true, at % 2 == 0);
      (void)history.run();
      history.crash();
      history.check_reopened();
    }
  }
}

BOOST_AUTO_TEST_CASE(a_failed_operation_loses_nothing) {
  for (uint64_t i = 0; i < schedules(57); ++i) {
    const uint64_t at = 4 + 399 * i / schedules(57);
    BOOST_TEST_CONTEXT("operation " << at) {
      TempDirectory directory;
      auto plan = std::make_shared<FaultPlan>();
      plan->fail_at = at;
      plan->fail_ever_after = false;
      History history(directory / "s", plan, at % 2 == 0, at % 4 < 2);
      (void)history.run();
      ModelStore& model = history.model();
      check_ok(model.get_all());
      check_ok(model.put(id_range(0, 600)));
      check_ok(model.store->reclaim(model, 100));
      check_ok(model.get_all());
      // After a failed sync no checkpoint is trusted any more; every other failure passes.
      const Status status = model.store->checkpoint(model, "later");
      if (!status) {
        BOOST_TEST((status.code() == StatusCode::kIo));
        continue;
      }
      model.store.reset();
      check_ok(model.try_open());
      check_ok(model.get_all());
    }
  }
}

// Everything that was written is synced: then the newest copies are all that were in closed runs.
BOOST_AUTO_TEST_CASE(the_newest_copies_are_found_by_scanning) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      TempDirectory directory;
      std::mt19937_64 random(seed);
      LogOptions options = small_options(directory / "s");
      options.layout_row_bytes = {132, 3000, 9000};
      options.total_rows = 900;
      options.space_bound_ratio = 1.1;
      ModelStore model(options);
      model.create();
      std::map<uint64_t, ModelStore::Row> cut;
      for (int step = 0; step < 60; ++step) {
        std::vector<uint64_t> ids;
        for (uint64_t id = random() % 7; id < 900; id += 1 + random() % 9) ids.push_back(id);
        check_ok(model.put(ids));
        check_ok(model.store->reclaim(model, 3));
        if (random() % 8 != 0) continue;
        check_ok(model.store->checkpoint(model, "cut"));
        cut = model.rows;
      }
      const auto newest = model.rows;
      model.store.reset();  // what was in open runs is gone
      model.rows.clear();
      model.options.newest = true;
      check_ok(model.try_open());
      // Each row is at least as new as the cut, and the bytes of one of its versions.
      for (const auto& [row, place] : cut) BOOST_TEST_REQUIRE(model.rows.count(row) == 1u);
      std::map<uint64_t, uint64_t> ages;
      for (auto& [row, place] : model.rows) {
        const uint32_t bytes = model.bytes_of(row);
        std::vector<std::byte> out(bytes);
        const RowRead read{RowId(row), place.block, out.data()};
        check_ok(model.store->get_many(model.layout_of(row), {&read, 1}));
        const uint64_t oldest = cut.count(row) != 0 ? cut.at(row).version : 1;
        place.version = newest.at(row).version;
        while (place.version > oldest && out != row_value(row, place.version, bytes))
          --place.version;
        BOOST_TEST_REQUIRE((out == row_value(row, place.version, bytes)));
      }
      check_ok(model.store->checkpoint(model, "again"));
      model.store.reset();
      const auto recovered = model.rows;
      model.options.newest = false;
      check_ok(model.try_open());
      model.rows = recovered;
      check_ok(model.get_all());
    }
  }
}

BOOST_AUTO_TEST_CASE(a_copy_of_the_directory_opens_as_the_last_checkpoint) {
  TempDirectory directory;
  auto plan = std::make_shared<FaultPlan>();
  History history(directory / "s", plan, false, true);
  BOOST_TEST(history.run());
  fs::copy(directory / "s", directory / "copy", fs::copy_options::recursive);
  history.crash();
  history.check_reopened();
  ModelStore& model = history.model();
  const auto rows = model.rows;
  model.store.reset();
  fs::remove_all(directory / "s");
  fs::rename(directory / "copy", directory / "s");
  history.check_reopened();
  BOOST_TEST(model.rows.size() == rows.size());
}

BOOST_AUTO_TEST_CASE(an_unfinished_creation_is_no_store_and_can_be_repeated) {
  for (uint64_t at = 0; at < 4; ++at) {
    TempDirectory directory;
    auto plan = std::make_shared<FaultPlan>();
    plan->fail_at = at;
    const LogOptions options = small_options(directory / "s");
    const auto failed = LogStore::create(options, std::make_unique<FaultEngine>(plan));
    BOOST_TEST((failed.status().code() == StatusCode::kIo));
    plan->lose_power();
    BOOST_TEST(!LogStore::exists(options.path));
    ModelStore model(options);
    model.create();
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
