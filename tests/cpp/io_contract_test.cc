// What every I/O engine must do. Another engine joins by one line in kEngines.
#include <sys/resource.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"
#include "io/io_engine.h"
#include "log_fixture.h"

namespace te::test {
namespace {

struct EngineCase {
  const char* name;
  std::function<std::unique_ptr<IoEngine>()> make;
};

// Null where the kernel or the container does not allow it.
std::unique_ptr<IoEngine> uring_or_null(size_t depth) {
  auto made = make_uring_engine(depth);
  if (made.is_ok()) return made.take();
  BOOST_TEST_MESSAGE("not tested here: " << made.status().message());
  return nullptr;
}

const std::vector<EngineCase> kEngines = {
    {"portable, no threads", [] { return make_portable_engine(0); }},
    {"portable, 4 threads", [] { return make_portable_engine(4); }},
    {"io_uring, 1 in flight", [] { return uring_or_null(1); }},
    {"io_uring, 64 in flight", [] { return uring_or_null(64); }},
};

constexpr size_t kPage = kIoAlignmentBytes;

IoRequest read_of(const IoFile& file, uint64_t offset, std::byte* data, size_t bytes) {
  return {IoRequest::Kind::kRead, &file, offset, data, bytes};
}
IoRequest write_of(const IoFile& file, uint64_t offset, std::byte* data, size_t bytes) {
  return {IoRequest::Kind::kWrite, &file, offset, data, bytes};
}

IoFile create_file(const std::string& path) {
  auto file = IoFile::open(path, IoFile::Mode::kCreate);
  check_ok(file.status());
  return file.take();
}

template <class F>
void for_each_engine(F f) {
  for (const EngineCase& engine : kEngines) {
    BOOST_TEST_CONTEXT(engine.name) {
      TempDirectory directory;
      auto io = engine.make();
      if (io != nullptr) f(*io, directory);
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(io_contract)

BOOST_AUTO_TEST_CASE(what_is_written_is_read) {
  for_each_engine([](IoEngine& io, const TempDirectory& directory) {
    IoFile file = create_file(directory / "f");
    constexpr size_t kBlocks = 300;
    AlignedBuffer out(kBlocks * kPage);
    AlignedBuffer in(kBlocks * kPage);
    std::mt19937_64 random(7);
    for (size_t i = 0; i < out.bytes(); ++i) out.data()[i] = static_cast<std::byte>(random());
    std::vector<IoRequest> requests;
    for (size_t b = 0; b < kBlocks;) {  // requests of unlike length, in no order
      const size_t n = std::min<size_t>(1 + random() % 9, kBlocks - b);
      requests.push_back(write_of(file, b * kPage, out.data() + b * kPage, n * kPage));
      b += n;
    }
    std::shuffle(requests.begin(), requests.end(), random);
    check_ok(io.run(requests, [](size_t) {}));
    const IoRequest sync{.kind = IoRequest::Kind::kSync, .file = &file};
    check_ok(io.run({&sync, 1}, [](size_t) {}));

    requests.clear();
    for (size_t b = 0; b < kBlocks; ++b) {
      requests.push_back(read_of(file, b * kPage, in.data() + b * kPage, kPage));
    }
    std::shuffle(requests.begin(), requests.end(), random);
    std::vector<int> done(requests.size(), 0);
    const auto caller = std::this_thread::get_id();
    check_ok(io.run(requests, [&](size_t i) {
      BOOST_TEST_REQUIRE((std::this_thread::get_id() == caller));
      ++done[i];
      const auto& r = requests[i];  // it has arrived when it is reported
      BOOST_TEST_REQUIRE(std::memcmp(r.data, out.data() + r.offset_bytes, r.bytes) == 0);
    }));
    BOOST_TEST((done == std::vector<int>(done.size(), 1)));
    BOOST_TEST(std::memcmp(in.data(), out.data(), out.bytes()) == 0);
  });
}

// A stream with fewer buffers than requests: a buffer is used again once its request has ended.
BOOST_AUTO_TEST_CASE(a_stream_waits_for_its_buffers) {
  for_each_engine([](IoEngine& io, const TempDirectory& directory) {
    constexpr size_t kFiles = 3;
    constexpr size_t kBlocks = 500;
    constexpr size_t kBuffers = 5;
    std::vector<IoFile> files;
    AlignedBuffer out(kBlocks * kPage);
    for (size_t b = 0; b < kBlocks; ++b)
      std::memset(out.data() + b * kPage, static_cast<int>(b % 251), kPage);
    for (size_t f = 0; f < kFiles; ++f) {
      files.push_back(create_file(directory / std::to_string(f)));
      if (f > 0) files[f].set_long_lived();
      const IoRequest all = write_of(files[f], 0, out.data(), out.bytes());
      check_ok(io.run({&all, 1}, [](size_t) {}));
    }
    for (const bool registered : {true, false}) {
      AlignedBuffer memory(kBuffers * kPage);
      if (registered) io.add_buffer(memory.data(), memory.bytes());
      std::vector<size_t> free_buffers = {0, 1, 2, 3, 4};
      std::vector<IoRequest> asked;
      const auto next = [&](IoRequest& request) {
        if (asked.size() == kFiles * kBlocks) return IoEngine::Next::kEnd;
        if (free_buffers.empty()) return IoEngine::Next::kLater;
        const size_t n = asked.size();
        request = read_of(files[n % kFiles], n / kFiles * kPage,
                          memory.data() + free_buffers.back() * kPage, kPage);
        free_buffers.pop_back();
        asked.push_back(request);
        return IoEngine::Next::kRequest;
      };
      std::vector<int> done(kFiles * kBlocks, 0);
      check_ok(io.run_stream(next, [&](size_t i) {
        ++done[i];
        const IoRequest& r = asked[i];
        BOOST_TEST_REQUIRE(std::memcmp(r.data, out.data() + r.offset_bytes, kPage) == 0);
        free_buffers.push_back(static_cast<size_t>(r.data - memory.data()) / kPage);
      }));
      BOOST_TEST((done == std::vector<int>(done.size(), 1)));
      BOOST_TEST(free_buffers.size() == kBuffers);
      if (registered) io.remove_buffer(memory.data());
    }
    for (const IoFile& file : files) io.forget(file);
    // Another file may get the descriptor of one that was forgotten.
    files.clear();
    IoFile other = create_file(directory / "other");
    const IoRequest write = write_of(other, 0, out.data() + 7 * kPage, kPage);
    check_ok(io.run({&write, 1}, [](size_t) {}));
    BOOST_TEST(read_text(directory / "other")[0] == 7);
    BOOST_TEST(read_text(directory / "0")[0] == 0);
  });
}

BOOST_AUTO_TEST_CASE(the_meter_counts_what_was_done) {
  for_each_engine([](IoEngine& io, const TempDirectory& directory) {
    IoFile file = create_file(directory / "f");
    AlignedBuffer data(8 * kPage);
    std::vector<IoRequest> requests;
    for (size_t i = 0; i < 8; ++i)
      requests.push_back(write_of(file, i * kPage, data.data() + i * kPage, kPage));
    check_ok(io.run(requests, [](size_t) {}));
    for (IoRequest& request : requests) request.kind = IoRequest::Kind::kRead;
    check_ok(io.run(requests, [](size_t) {}));
    check_ok(io.run(requests, [](size_t) {}));
    const IoStats writes = io.write_stats();
    const IoStats reads = io.read_stats();
    BOOST_TEST((writes.requests == 8 && reads.requests == 16));
    BOOST_TEST((writes.bytes == 8 * kPage && reads.bytes == 16 * kPage));
    BOOST_TEST((reads.latency_p50_us > 0 && reads.latency_p99_us >= reads.latency_p50_us));
    BOOST_TEST((reads.queue_depth_mean >= 1 && reads.queue_depth_mean <= 8));
  });
}

BOOST_AUTO_TEST_CASE(an_empty_batch_is_fine) {
  for_each_engine([](IoEngine& io, const TempDirectory&) {
    check_ok(io.run({}, [](size_t) { BOOST_TEST(false); }));
  });
}

BOOST_AUTO_TEST_CASE(a_read_past_the_end_fails_and_the_engine_goes_on) {
  for_each_engine([](IoEngine& io, const TempDirectory& directory) {
    const std::string path = directory / "f";
    write_text(path, std::string(3 * kPage + 100, 'x'));
    auto opened = IoFile::open(path, IoFile::Mode::kRead);
    check_ok(opened.status());
    const IoFile file = opened.take();
    AlignedBuffer data(64 * kPage);
    for (uint64_t offset : {uint64_t{2 * kPage}, uint64_t{3 * kPage}, uint64_t{9 * kPage}}) {
      std::vector<IoRequest> requests;
      for (size_t i = 0; i < 20; ++i) {
        requests.push_back(read_of(file, i == 7 ? offset : 0, data.data() + i * 2 * kPage,
                                   i == 7 && offset != 0 ? 2 * kPage : kPage));
      }
      const Status status = io.run(requests, [&](size_t i) { BOOST_TEST(i != 7); });
      BOOST_TEST((status.code() == StatusCode::kCorruption));
      BOOST_TEST(contains(status.message(), path));
      BOOST_TEST(contains(status.message(), "offset " + std::to_string(offset)));
      const IoRequest one = read_of(file, 0, data.data(), kPage);
      check_ok(io.run({&one, 1}, [](size_t) {}));
    }
  });
}

BOOST_AUTO_TEST_CASE(a_failed_write_names_path_and_reason) {
  for_each_engine([](IoEngine& io, const TempDirectory& directory) {
    const std::string path = directory / "f";
    write_text(path, std::string(4 * kPage, 'x'));
    auto opened = IoFile::open(path, IoFile::Mode::kRead);  // writing to it must fail
    check_ok(opened.status());
    const IoFile file = opened.take();
    AlignedBuffer data(8 * kPage);
    std::vector<IoRequest> requests;
    for (size_t i = 0; i < 8; ++i) {
      requests.push_back(write_of(file, i * kPage, data.data() + i * kPage, kPage));
    }
    const Status status = io.run(requests, [](size_t) { BOOST_TEST(false); });
    BOOST_TEST((status.code() == StatusCode::kIo));
    BOOST_TEST(contains(status.message(), path));
    BOOST_TEST(contains(status.message(), "Bad file descriptor"));
  });
}

BOOST_AUTO_TEST_CASE(several_threads_may_run_batches_at_once) {
  for_each_engine([](IoEngine& io, const TempDirectory& directory) {
    IoFile file = create_file(directory / "f");
    constexpr size_t kBlocks = 64;
    AlignedBuffer out(kBlocks * kPage);
    for (size_t b = 0; b < kBlocks; ++b) {
      std::memset(out.data() + b * kPage, static_cast<int>(b + 1), kPage);
    }
    const IoRequest all = write_of(file, 0, out.data(), out.bytes());
    check_ok(io.run({&all, 1}, [](size_t) {}));
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(t);
        AlignedBuffer in(kBlocks * kPage);
        for (int round = 0; round < 50; ++round) {
          std::vector<IoRequest> requests;
          for (size_t i = 0; i < 1 + random() % kBlocks; ++i) {
            requests.push_back(
                read_of(file, random() % kBlocks * kPage, in.data() + i * kPage, kPage));
          }
          size_t done = 0;
          const Status status = io.run(requests, [&](size_t i) {
            ++done;
            wrong += requests[i].data[5] != out.data()[requests[i].offset_bytes];
          });
          wrong += !status.is_ok() || done != requests.size();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    BOOST_TEST(wrong == 0);
  });
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(io_meter)

BOOST_AUTO_TEST_CASE(percentiles_are_right_to_an_eighth) {
  IoMeter meter;
  for (uint64_t us = 1; us <= 1000; ++us) meter.record(10, us * 1000, 3);
  const IoStats stats = meter.snapshot();
  BOOST_TEST(stats.requests == 1000u);
  BOOST_TEST(stats.bytes == 10000u);
  BOOST_TEST(stats.queue_depth_mean == 3.0);
  BOOST_TEST(std::abs(stats.latency_p50_us / 500 - 1) < 1.0 / 8);
  BOOST_TEST(std::abs(stats.latency_p99_us / 990 - 1) < 1.0 / 8);
  for (uint64_t ns : {uint64_t{0}, uint64_t{1}, uint64_t{7}, ~uint64_t{0}}) meter.record(0, ns, 1);
  BOOST_TEST(meter.snapshot().requests == 1004u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(io_file)

BOOST_AUTO_TEST_CASE(open_errors_have_codes_and_paths) {
  TempDirectory directory;
  const std::string path = directory / "f";
  const auto absent = IoFile::open(path, IoFile::Mode::kReadWrite);
  BOOST_TEST((absent.status().code() == StatusCode::kNotFound));
  BOOST_TEST(contains(absent.status().message(), path));
  create_file(path);
  const auto again = IoFile::open(path, IoFile::Mode::kCreate);
  BOOST_TEST((again.status().code() == StatusCode::kAlreadyExists));
  const auto nowhere = IoFile::open(directory / "no/f", IoFile::Mode::kCreate);
  BOOST_TEST(!nowhere.is_ok());
}

BOOST_AUTO_TEST_CASE(allocate_reserves_zeros) {
  TempDirectory directory;
  const std::string path = directory / "f";
  IoFile file = create_file(path);
  check_ok(file.allocate(10 * kPage));
  BOOST_TEST(std::filesystem::file_size(path) == 10 * kPage);
  BOOST_TEST(read_text(path) == std::string(10 * kPage, '\0'));
  check_ok(file.sync());
}

BOOST_AUTO_TEST_CASE(allocate_of_more_than_the_disk_names_the_bytes) {
  TempDirectory directory;
  IoFile file = create_file(directory / "f");
  const auto disk = std::filesystem::space(directory / "");
  if (disk.capacity > (uint64_t{1} << 43)) return;  // ext4 files end at 16 TiB: another error
  const uint64_t bytes = disk.capacity + (uint64_t{1} << 30);
  const Status status = file.allocate(bytes);
  BOOST_TEST((status.code() == StatusCode::kNoSpace));
  BOOST_TEST(contains(status.message(), std::to_string(bytes)));
  BOOST_TEST(contains(status.message(), "bytes free"));
}

BOOST_AUTO_TEST_CASE(a_moved_file_belongs_to_its_new_owner) {
  TempDirectory directory;
  IoFile a = create_file(directory / "a");
  IoFile b = create_file(directory / "b");
  const int fd = a.fd();
  b = std::move(a);
  BOOST_TEST(b.fd() == fd);
  BOOST_TEST(b.path() == directory / "a");
  IoFile c(std::move(b));
  BOOST_TEST(c.fd() == fd);
  check_ok(c.allocate(kPage));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
