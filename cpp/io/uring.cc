#include "io/uring.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <errno.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>

#include "base/check.h"
#include "io/io_error.h"

namespace te {
namespace {

constexpr size_t kFilesMax = 1024;
// The kernel transfers at most 2 GiB less a page at once.
constexpr size_t kTransferBytesMax = size_t{1} << 30;
// Completions to wait for at once, as a part of the requests in flight.
constexpr uint32_t kWaitPart = 8;

int setup(uint32_t entries, io_uring_params* params) {
  return static_cast<int>(::syscall(__NR_io_uring_setup, entries, params));
}

int enter(int fd, uint32_t submit, uint32_t wait_for, uint32_t flags) {
  return static_cast<int>(::syscall(__NR_io_uring_enter, fd, submit, wait_for, flags, nullptr, 0));
}

int register_with(int fd, uint32_t operation, const void* arguments, uint32_t count) {
  return static_cast<int>(::syscall(__NR_io_uring_register, fd, operation, arguments, count));
}

Status refused(const char* what) { return io_error("io_uring", what, errno); }

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

const char* verb(const IoRequest& request) {
  return request.kind == IoRequest::Kind::kRead    ? "read"
         : request.kind == IoRequest::Kind::kWrite ? "write"
                                                   : "sync";
}

std::string describe(const IoRequest& request) {
  if (request.kind == IoRequest::Kind::kSync) return "sync";
  return std::string(verb(request)) + " of " + std::to_string(request.bytes) + " bytes at offset " +
         std::to_string(request.offset_bytes);
}

}  // namespace

Result<std::unique_ptr<Uring>> Uring::create(size_t depth) {
  std::unique_ptr<Uring> ring(new Uring());
  TE_RETURN_IF_ERROR(ring->map_rings(depth));
  TE_RETURN_IF_ERROR(ring->check_operations());
  ring->flights_.resize(depth);
  for (uint32_t i = 0; i < depth; ++i) ring->free_flights_.push_back(i);
  ring->register_file_table();
  return ring;
}

Status Uring::map_rings(size_t depth) {
  io_uring_params params{};
#ifdef IORING_SETUP_COOP_TASKRUN
  params.flags = IORING_SETUP_COOP_TASKRUN;  // completions need not interrupt us
#endif
  fd_ = setup(static_cast<uint32_t>(depth), &params);
  if (fd_ < 0 && errno == EINVAL) {  // a kernel that does not know the flag
    params = {};
    fd_ = setup(static_cast<uint32_t>(depth), &params);
  }
  if (fd_ < 0) return refused("io_uring_setup");
  if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) {
    errno = ENOSYS;
    return refused("a kernel before 5.4");
  }
  rings_bytes_ = std::max(params.sq_off.array + params.sq_entries * sizeof(uint32_t),
                          params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
  void* rings = ::mmap(nullptr, rings_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                       fd_, IORING_OFF_SQ_RING);
  if (rings == MAP_FAILED) return refused("mmap of the rings");
  rings_ = static_cast<std::byte*>(rings);
  entries_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
  void* entries = ::mmap(nullptr, entries_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                         fd_, IORING_OFF_SQES);
  if (entries == MAP_FAILED) return refused("mmap of the entries");
  entries_ = static_cast<io_uring_sqe*>(entries);
  const auto at = [&](uint32_t offset) { return reinterpret_cast<uint32_t*>(rings_ + offset); };
  submit_tail_ = at(params.sq_off.tail);
  submit_array_ = at(params.sq_off.array);
  submit_mask_ = *at(params.sq_off.ring_mask);
  complete_head_ = at(params.cq_off.head);
  complete_tail_ = at(params.cq_off.tail);
  complete_mask_ = *at(params.cq_off.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe*>(rings_ + params.cq_off.cqes);
  return Status::ok();
}

Status Uring::check_operations() const {
  constexpr uint32_t kOperations = 64;
  alignas(io_uring_probe)
      std::byte memory[sizeof(io_uring_probe) + kOperations * sizeof(io_uring_probe_op)] = {};
  auto* probe = reinterpret_cast<io_uring_probe*>(memory);
  if (register_with(fd_, IORING_REGISTER_PROBE, probe, kOperations) < 0)
    return refused("IORING_REGISTER_PROBE");
  for (int op : {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED,
                 IORING_OP_FSYNC}) {
    if (op <= probe->last_op && (probe->ops[op].flags & IO_URING_OP_SUPPORTED) != 0) continue;
    errno = EOPNOTSUPP;
    return refused("reads, writes and syncs");
  }
  return Status::ok();
}

Uring::~Uring() {
  if (entries_ != nullptr) ::munmap(entries_, entries_bytes_);
  if (rings_ != nullptr) ::munmap(rings_, rings_bytes_);
  if (fd_ >= 0) ::close(fd_);
}

// Without a table, as where limits forbid one, requests name descriptors.
void Uring::register_file_table() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  std::vector<int> none(std::min<size_t>(kFilesMax, limit.rlim_cur / 4), -1);
  const auto count = static_cast<uint32_t>(none.size());
  if (register_with(fd_, IORING_REGISTER_FILES, none.data(), count) < 0) return;
  for (int place = static_cast<int>(count); place-- > 0;) free_places_.push_back(place);
}

int Uring::register_file(const IoFile& file) {
  if (!file.is_long_lived()) return -1;
  const auto known = file_places_.find(file.serial());
  if (known != file_places_.end()) return known->second;
  if (free_places_.empty()) return -1;
  const int fd = file.fd();
  const int place = free_places_.back();
  io_uring_files_update update{};
  update.offset = static_cast<uint32_t>(place);
  update.fds = reinterpret_cast<uint64_t>(&fd);
  if (register_with(fd_, IORING_REGISTER_FILES_UPDATE, &update, 1) != 1) return -1;
  free_places_.pop_back();
  file_places_[file.serial()] = place;
  return place;
}

void Uring::forget_file(uint64_t serial) {
  const auto known = file_places_.find(serial);
  if (known == file_places_.end()) return;
  const int none = -1;
  io_uring_files_update update{};
  update.offset = static_cast<uint32_t>(known->second);
  update.fds = reinterpret_cast<uint64_t>(&none);
  if (register_with(fd_, IORING_REGISTER_FILES_UPDATE, &update, 1) == 1)
    free_places_.push_back(known->second);
  file_places_.erase(known);
}

void Uring::register_buffers(std::span<const Buffer> buffers) {
  if (!buffers_.empty()) register_with(fd_, IORING_UNREGISTER_BUFFERS, nullptr, 0);
  buffers_.assign(buffers.begin(), buffers.end());
  std::vector<iovec> list;
  for (const Buffer& buffer : buffers_) list.push_back({buffer.data, buffer.bytes});
  // Locked memory is limited for most users: the first buffers matter most.
  while (!list.empty() && register_with(fd_, IORING_REGISTER_BUFFERS, list.data(),
                                        static_cast<uint32_t>(list.size())) < 0) {
    list.pop_back();
    buffers_.pop_back();
  }
}

int Uring::buffer_of(const Flight& flight) const {
  const auto begin = reinterpret_cast<uintptr_t>(flight.request.data);
  for (size_t b = 0; b < buffers_.size(); ++b) {
    const auto first = reinterpret_cast<uintptr_t>(buffers_[b].data);
    if (begin >= first && begin - first + flight.request.bytes <= buffers_[b].bytes)
      return static_cast<int>(b);
  }
  return -1;
}

// Puts what is left of a flight into the submission ring, which has as many places as there are
// flights.
void Uring::push(uint32_t index) {
  const Flight& flight = flights_[index];
  const IoRequest& request = flight.request;
  const uint32_t tail = *submit_tail_;
  io_uring_sqe& entry = entries_[tail & submit_mask_];
  std::memset(&entry, 0, sizeof(entry));
  const int place = register_file(*request.file);
  entry.fd = place >= 0 ? place : request.file->fd();
  if (place >= 0) entry.flags = IOSQE_FIXED_FILE;
  entry.user_data = index;
  if (request.kind == IoRequest::Kind::kSync) {
    entry.opcode = IORING_OP_FSYNC;
    entry.fsync_flags = IORING_FSYNC_DATASYNC;
  } else {
    const bool reads = request.kind == IoRequest::Kind::kRead;
    const int buffer = buffer_of(flight);
    entry.opcode =
        static_cast<uint8_t>(buffer >= 0 ? (reads ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED)
                                         : (reads ? IORING_OP_READ : IORING_OP_WRITE));
    if (buffer >= 0) entry.buf_index = static_cast<uint16_t>(buffer);
    entry.off = request.offset_bytes + flight.done_bytes;
    entry.addr = reinterpret_cast<uint64_t>(request.data + flight.done_bytes);
    entry.len =
        static_cast<uint32_t>(std::min(request.bytes - flight.done_bytes, kTransferBytesMax));
  }
  submit_array_[tail & submit_mask_] = tail & submit_mask_;
  std::atomic_ref(*submit_tail_).store(tail + 1, std::memory_order_release);
  ++unsubmitted_;
}

void Uring::submit_and_wait(uint32_t wait_for) {
  for (;;) {
    const int n = enter(fd_, unsubmitted_, wait_for, IORING_ENTER_GETEVENTS);
    if (n >= 0) {
      unsubmitted_ -= static_cast<uint32_t>(n);
      return;
    }
    // Interrupted, or short of memory: what was submitted goes on, the rest is tried again.
    TE_CHECK(errno == EINTR || errno == EAGAIN || errno == EBUSY);
    const bool some_ended = *complete_head_ != std::atomic_ref(*complete_tail_).load();
    if (some_ended) return;
  }
}

bool Uring::finish(Flight& flight, int32_t result, Status* error) {
  const IoRequest& request = flight.request;
  if (result == -EINTR || result == -EAGAIN) return false;
  if (request.kind == IoRequest::Kind::kSync) {
    if (result < 0) *error = io_error(request.file->path(), "sync", -result);
    return true;
  }
  const bool reads = request.kind == IoRequest::Kind::kRead;
  // A direct file cannot go on from an unaligned place, and only its end makes a read stop there.
  if (reads && (result == 0 || (result == -EINVAL && flight.done_bytes % 512 != 0))) {
    *error = Status(StatusCode::kCorruption,
                    request.file->path() + ": " + describe(request) + ": the file ends after " +
                        std::to_string(request.offset_bytes + flight.done_bytes));
    return true;
  }
  if (result <= 0) {
    *error = io_error(request.file->path(), describe(request), result == 0 ? EIO : -result);
    return true;
  }
  flight.done_bytes += static_cast<size_t>(result);
  return flight.done_bytes == request.bytes;
}

// Handles all completions that are there; returns how many flights ended.
uint32_t Uring::complete(FunctionRef<void(size_t)> on_done, OnEnd on_end, Status* error) {
  uint32_t ended = 0;
  uint32_t head = *complete_head_;
  const uint32_t tail = std::atomic_ref(*complete_tail_).load(std::memory_order_acquire);
  const uint64_t now = now_ns();
  const size_t in_flight = flights_.size() - free_flights_.size();
  for (; head != tail; ++head) {
    const io_uring_cqe& completion = completions_[head & complete_mask_];
    const auto index = static_cast<uint32_t>(completion.user_data);
    Flight& flight = flights_[index];
    Status outcome;
    if (!finish(flight, completion.res, &outcome)) {
      push(index);
      continue;
    }
    ++ended;
    on_end(flight.request, now - flight.start_ns, in_flight);
    if (outcome) on_done(flight.number);
    if (!outcome && error->is_ok()) *error = std::move(outcome);
    free_flights_.push_back(index);
  }
  std::atomic_ref(*complete_head_).store(head, std::memory_order_release);
  return ended;
}

Status Uring::run(IoEngine::Source next, FunctionRef<void(size_t)> on_done, OnEnd on_end) {
  Status error;
  size_t number = 0;
  uint32_t in_flight = 0;
  bool is_over = false;
  for (;;) {
    IoEngine::Next said = IoEngine::Next::kRequest;
    const uint64_t now = now_ns();
    while (!is_over && !free_flights_.empty()) {
      const uint32_t index = free_flights_.back();
      Flight& flight = flights_[index];
      said = next(flight.request);
      if (said != IoEngine::Next::kRequest) break;
      flight.number = number++;
      flight.done_bytes = 0;
      flight.start_ns = now;
      free_flights_.pop_back();
      ++in_flight;
      push(index);
    }
    is_over |= said == IoEngine::Next::kEnd;
    if (in_flight == 0) {
      TE_CHECK(is_over);  // "later" makes sense only while something is under way
      return error;
    }
    const bool hungry = said == IoEngine::Next::kLater;
    submit_and_wait(hungry ? 1 : std::max(1u, in_flight / kWaitPart));
    in_flight -= complete(on_done, on_end, &error);
    is_over |= !error.is_ok();
  }
}

}  // namespace te
#else
#include "io/io_error.h"

namespace te {

Result<std::unique_ptr<Uring>> Uring::create(size_t) {
  return Status(StatusCode::kIo, "io_uring: this build does not have it");
}
Uring::~Uring() = default;
Status Uring::run(IoEngine::Source, FunctionRef<void(size_t)>, OnEnd) { return Status::ok(); }
void Uring::register_buffers(std::span<const Buffer>) {}
void Uring::forget_file(uint64_t) {}

}  // namespace te
#endif
