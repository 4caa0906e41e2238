#include "limits/drive_limits.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>

#include "base/aligned_buffer.h"
#include "base/check.h"

namespace te {
namespace {

using Clock = std::chrono::steady_clock;
using Kind = IoRequest::Kind;

// No percentile needs more; a file system in memory would give millions.
constexpr size_t kSyncsMax = 10000;
constexpr uint64_t kFileUnitBytes = uint64_t{1} << 20;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Makes a file that has no name any more.
Result<IoFile> create_nameless(const std::string& directory) {
  static std::atomic<uint64_t> serial{0};
  const std::string path = directory + "/tiered_emb-limits-" + std::to_string(::getpid()) + "-" +
                           std::to_string(serial.fetch_add(1));
  Result<IoFile> file = IoFile::open(path, IoFile::Mode::kCreate);
  if (file) ::unlink(path.c_str());
  return file;
}

// The buffers of requests of one kind, each with one block.
class Blocks {
 public:
  Blocks(size_t block_bytes, size_t count) : block_bytes_(block_bytes), data_(block_bytes * count) {
    for (size_t i = count; i-- > 0;) free_.push_back(static_cast<uint32_t>(i));
  }

  void randomise(std::mt19937_64& random) {
    for (size_t at = 0; at < data_.bytes(); at += sizeof(uint64_t))
      put(data_.data() + at, random());
  }
  // Makes every page of the block differ from all that were written.
  void stamp(std::byte* block, std::mt19937_64& random) {
    for (size_t at = 0; at < block_bytes_; at += kIoAlignmentBytes) put(block + at, random());
  }

  bool is_empty() const { return free_.empty(); }
  std::byte* take() {
    const uint32_t i = free_.back();
    free_.pop_back();
    return data_.data() + i * block_bytes_;
  }
  void give_back(const std::byte* block) {
    free_.push_back(
        static_cast<uint32_t>(static_cast<size_t>(block - data_.data()) / block_bytes_));
  }
  size_t block_bytes() const { return block_bytes_; }
  AlignedBuffer& memory() { return data_; }

 private:
  static void put(std::byte* at, uint64_t value) { std::memcpy(at, &value, sizeof(value)); }

  const size_t block_bytes_;
  AlignedBuffer data_;
  std::vector<uint32_t> free_;
};

// What the threads of one job share.
struct Shared {
  const DriveJob& job;
  const IoFile& file;
  const uint64_t file_bytes;
  IoEngine& io;
  std::atomic<uint64_t> read_end;
  std::atomic<uint64_t> write_end;
};

// The part of one thread.
class Stream {
 public:
  Stream(Shared& shared, uint64_t seed)
      : shared_(shared),
        random_(seed),
        reads_(shared.job.read_block_bytes, shared.job.read_depth / shared.job.threads),
        writes_(shared.job.write_block_bytes, shared.job.write_depth / shared.job.threads) {
    writes_.randomise(random_);
    for (Blocks* blocks : {&reads_, &writes_}) {
      AlignedBuffer& memory = blocks->memory();
      if (memory.bytes() > 0) shared.io.add_buffer(memory.data(), memory.bytes());
    }
  }

  void run() {
    status_ = shared_.io.run_stream([this](IoRequest& request) { return next(request); },
                                    [this](size_t number) { end(number); });
  }

  const Status& status() const { return status_; }
  Clock::time_point first_start() const { return *first_start_; }
  Clock::time_point last_end() const { return last_end_; }

 private:
  IoEngine::Next next(IoRequest& request) {
    const Clock::time_point now = Clock::now();
    // Not before: the engine may have had to make a ring.
    if (!first_start_) first_start_ = now;
    if (seconds_between(*first_start_, now) >= shared_.job.seconds) return IoEngine::Next::kEnd;
    const Kind kind = next_kind();
    Blocks& blocks = kind == Kind::kRead ? reads_ : writes_;
    if (blocks.is_empty()) return IoEngine::Next::kLater;
    const size_t bytes = blocks.block_bytes();
    std::byte* data = blocks.take();
    if (kind == Kind::kWrite) blocks.stamp(data, random_);
    request = {kind, &shared_.file, place(kind, bytes), data, bytes};
    (kind == Kind::kRead ? read_bytes_ : written_bytes_) += bytes;
    under_way_.push_back({kind, data});
    return IoEngine::Next::kRequest;
  }

  Kind next_kind() const {
    const DriveJob& job = shared_.job;
    if (job.read_depth == 0) return Kind::kWrite;
    if (job.write_depth == 0) return Kind::kRead;
    const double written_share = static_cast<double>(written_bytes_) * job.read_share;
    const double read_share = static_cast<double>(read_bytes_) * (1 - job.read_share);
    return written_share < read_share ? Kind::kWrite : Kind::kRead;
  }

  uint64_t place(Kind kind, size_t bytes) {
    if (kind == Kind::kWrite) return shared_.write_end.fetch_add(bytes) % shared_.file_bytes;
    if (shared_.job.read_order == DriveJob::Order::kSequential)
      return shared_.read_end.fetch_add(bytes) % shared_.file_bytes;
    return random_() % (shared_.file_bytes / bytes) * bytes;
  }

  void end(size_t number) {
    const auto& [kind, data] = under_way_[number];
    (kind == Kind::kRead ? reads_ : writes_).give_back(data);
    last_end_ = Clock::now();
  }

  struct Flight {
    Kind kind;
    std::byte* data;
  };

  Shared& shared_;
  std::mt19937_64 random_;
  Blocks reads_;
  Blocks writes_;
  uint64_t read_bytes_ = 0;
  uint64_t written_bytes_ = 0;
  std::vector<Flight> under_way_;  // by number, those that have ended too
  std::optional<Clock::time_point> first_start_;
  Clock::time_point last_end_;
  Status status_;
};

bool fits(size_t block_bytes, size_t depth, size_t threads, uint64_t file_bytes) {
  if (depth == 0) return true;
  return block_bytes > 0 && block_bytes % kIoAlignmentBytes == 0 && file_bytes % block_bytes == 0 &&
         depth % threads == 0;
}

}  // namespace

Result<std::unique_ptr<DriveLimits>> DriveLimits::create(const std::string& directory,
                                                         uint64_t bytes) {
  TE_CHECK(bytes > 0 && bytes % kFileUnitBytes == 0);
  Result<IoFile> file = create_nameless(directory);
  if (!file) return file.status();
  TE_RETURN_IF_ERROR(file.value().allocate(bytes));
  return std::unique_ptr<DriveLimits>(new DriveLimits(directory, file.take(), bytes));
}

uint64_t DriveLimits::written_bytes() const { return std::min(write_end_, bytes_); }

Result<DriveTiming> DriveLimits::run(const DriveJob& job) {
  TE_CHECK(job.threads > 0 && job.read_depth + job.write_depth > 0);
  TE_CHECK(fits(job.read_block_bytes, job.read_depth, job.threads, bytes_));
  TE_CHECK(fits(job.write_block_bytes, job.write_depth, job.threads, bytes_));
  TE_CHECK(job.read_depth == 0 || written_bytes() == bytes_);
  auto io = make_io_engine_of_depth(std::max(job.read_depth, job.write_depth) / job.threads);
  if (!io) return io.status();
  if (job.read_depth > 0) read_end_ -= read_end_ % job.read_block_bytes;
  if (job.write_depth > 0) write_end_ -= write_end_ % job.write_block_bytes;
  Shared shared{job, file_, bytes_, *io.value(), {read_end_}, {write_end_}};
  std::vector<std::unique_ptr<Stream>> streams;
  for (size_t t = 0; t < job.threads; ++t)
    streams.push_back(std::make_unique<Stream>(shared, seed_++));
  std::vector<std::thread> helpers;
  for (size_t t = 1; t < job.threads; ++t)
    helpers.emplace_back([&stream = *streams[t]] { stream.run(); });
  streams[0]->run();
  for (std::thread& helper : helpers) helper.join();
  for (const auto& stream : streams) TE_RETURN_IF_ERROR(Status(stream->status()));
  Clock::time_point start = streams[0]->first_start();
  Clock::time_point end = streams[0]->last_end();
  for (const auto& stream : streams) {
    start = std::min(start, stream->first_start());
    end = std::max(end, stream->last_end());
  }
  read_end_ = shared.read_end;
  write_end_ = shared.write_end;
  return DriveTiming{seconds_between(start, end), io.value()->read_stats(),
                     io.value()->write_stats()};
}

Result<std::vector<double>> DriveLimits::sync_us(double seconds) {
  Result<IoFile> created = create_nameless(directory_);
  if (!created) return created.status();
  const IoFile file = created.take();
  auto io = make_io_engine_of_depth(1);
  if (!io) return io.status();
  std::mt19937_64 random(seed_++);
  Blocks page(kIoAlignmentBytes, 1);
  page.randomise(random);
  const IoRequest sync{.kind = Kind::kSync, .file = &file};
  std::vector<double> times_us;
  const Clock::time_point start = Clock::now();
  do {
    std::byte* data = page.take();
    page.stamp(data, random);
    const IoRequest append{Kind::kWrite, &file, times_us.size() * kIoAlignmentBytes, data,
                           kIoAlignmentBytes};
    TE_RETURN_IF_ERROR(io.value()->run({&append, 1}, [](size_t) {}));
    page.give_back(data);
    const Clock::time_point appended = Clock::now();
    TE_RETURN_IF_ERROR(io.value()->run({&sync, 1}, [](size_t) {}));
    times_us.push_back(seconds_between(appended, Clock::now()) * 1e6);
  } while (times_us.size() < kSyncsMax && seconds_between(start, Clock::now()) < seconds);
  return times_us;
}

}  // namespace te
