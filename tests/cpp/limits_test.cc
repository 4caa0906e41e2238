// The timings of a machine's limits: that they do what is counted.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <set>
#include <vector>

#include "limits/drive_limits.h"
#include "limits/memory_limits.h"
#include "log_fixture.h"

namespace te::test {
namespace {

constexpr size_t kArenaBytes = size_t{1} << 20;
constexpr size_t kPage = kIoAlignmentBytes;
constexpr size_t kMiB = size_t{1} << 20;

void check_timing(const Timing& timing, uint64_t bytes) {
  BOOST_TEST(timing.seconds > 0);
  BOOST_TEST(timing.bytes == bytes);
}

std::unique_ptr<DriveLimits> written_drive(const std::string& directory, uint64_t bytes) {
  auto drive = DriveLimits::create(directory, bytes);
  check_ok(drive.status());
  while (drive.value()->written_bytes() < bytes) {
    auto done = drive.value()->run(
        {.write_block_bytes = kMiB, .write_depth = 2, .threads = 1, .seconds = 0.01});
    check_ok(done.status());
  }
  return drive.take();
}

DriveTiming timing_of(DriveLimits& drive, const DriveJob& job) {
  auto done = drive.run(job);
  check_ok(done.status());
  BOOST_TEST(done.value().seconds > 0);
  return done.take();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(limits)

BOOST_AUTO_TEST_CASE(streams_count_each_array_once) {
  MemoryLimits memory(kArenaBytes, 2);
  for (size_t threads : {1, 2}) {
    constexpr size_t kLine = 64;
    constexpr size_t kSpare = 997;  // lines left out of each array
    constexpr size_t kLines = kArenaBytes / kLine;
    check_timing(memory.stream(MemoryLimits::Stream::kRead, threads), (kLines - kSpare) * kLine);
    check_timing(memory.stream(MemoryLimits::Stream::kCopy, threads),
                 2 * (kLines / 2 - kSpare) * kLine);
    check_timing(memory.stream(MemoryLimits::Stream::kTriad, threads),
                 3 * (kLines / 3 - kSpare) * kLine);
  }
}

BOOST_AUTO_TEST_CASE(rows_are_drawn_once_each_in_a_fresh_order) {
  MemoryLimits memory(kArenaBytes, 1);
  for (size_t row_bytes : {4, 64, 132, 1000}) {
    const size_t rows = kArenaBytes / row_bytes;
    BOOST_TEST(memory.draw(row_bytes, rows + 5, 1) == rows);
    const std::vector<uint32_t> first(memory.order().begin(), memory.order().end());
    BOOST_TEST(*std::max_element(first.begin(), first.end()) == rows - 1);
    BOOST_TEST(std::set<uint32_t>(first.begin(), first.end()).size() == rows);
    BOOST_TEST(!std::is_sorted(first.begin(), first.end()));
    memory.draw(row_bytes, rows / 8, 1);
    BOOST_TEST(std::equal(memory.order().begin(), memory.order().end(), first.begin()));
    memory.draw(row_bytes, rows / 8, 2);
    const std::set<uint32_t> others(memory.order().begin(), memory.order().end());
    const auto again = std::count_if(first.begin(), first.begin() + rows / 8,
                                     [&](uint32_t row) { return others.contains(row); });
    BOOST_TEST(again < rows / 16);  // by chance: a 64th
  }
}

BOOST_AUTO_TEST_CASE(rows_are_visited_with_and_without_prefetch) {
  MemoryLimits memory(kArenaBytes, 2);
  memory.draw(132, 100, 1);
  for (size_t threads : {1, 2}) {
    for (MemoryLimits::Prefetch prefetch : {MemoryLimits::Prefetch{0, 1}, {7, 1}, {200, 2}}) {
      check_timing(memory.rows(MemoryLimits::Access::kGather, prefetch, threads), 13200);
      check_timing(memory.rows(MemoryLimits::Access::kUpdate, prefetch, threads), 13200);
    }
  }
}

BOOST_AUTO_TEST_CASE(the_files_of_a_drive_have_no_name) {
  TempDirectory directory;
  auto drive = written_drive(directory / "", 2 * kMiB);
  check_ok(drive->sync_us(0).status());
  BOOST_TEST(std::filesystem::is_empty(directory / ""));
}

BOOST_AUTO_TEST_CASE(a_missing_directory_is_an_error) {
  TempDirectory directory;
  const auto drive = DriveLimits::create(directory / "none", kMiB);
  BOOST_TEST(!drive.is_ok());
  BOOST_TEST(drive.status().message().find("none") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(reads_and_writes_go_on_for_the_time) {
  TempDirectory directory;
  auto drive = written_drive(directory / "", 4 * kMiB);
  for (DriveJob::Order order : {DriveJob::Order::kRandom, DriveJob::Order::kSequential}) {
    const DriveTiming reads = timing_of(*drive, {.read_order = order,
                                                 .read_block_bytes = 2 * kPage,
                                                 .read_depth = 6,
                                                 .threads = 3,
                                                 .seconds = 0.01});
    BOOST_TEST(reads.seconds >= 0.01);
    BOOST_TEST(reads.reads.requests >= 6U);
    BOOST_TEST(reads.reads.bytes == reads.reads.requests * 2 * kPage);
    BOOST_TEST(reads.writes.requests == 0U);
  }
}

BOOST_AUTO_TEST_CASE(reads_and_writes_keep_their_shares) {
  TempDirectory directory;
  auto drive = written_drive(directory / "", 4 * kMiB);
  const DriveTiming both = timing_of(*drive, {.read_block_bytes = kPage,
                                              .read_depth = 16,
                                              .write_block_bytes = 16 * kPage,
                                              .write_depth = 2,
                                              .read_share = 0.75,
                                              .seconds = 0.05});
  const auto read = static_cast<double>(both.reads.bytes);
  const auto written = static_cast<double>(both.writes.bytes);
  // One request more of either kind is under way when the time is up.
  BOOST_TEST(std::abs(read - 3 * written) <= 3 * 16 * kPage);
}

BOOST_AUTO_TEST_CASE(syncs_are_timed_one_by_one) {
  TempDirectory directory;
  auto drive = DriveLimits::create(directory / "", kMiB);
  check_ok(drive.status());
  auto times_us = drive.value()->sync_us(0.01);
  check_ok(times_us.status());
  BOOST_TEST(!times_us.value().empty());
  for (double us : times_us.value()) BOOST_TEST(us > 0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
