// IoEngine: runs batches of block reads, writes and syncs against open files.
//
// One virtual call a batch, never one a block. Engines: io_uring, portable (a pool of pread/pwrite
// threads), and in tests one that injects faults; all pass the same contract test
// (tests/cpp/io_contract_test.cc). Thread-safety: everything may be called from
// several threads at once. Ownership: the caller keeps files and buffers alive until `run` returns.
// Cost: `run` blocks until every request of the batch has ended.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/function_ref.h"
#include "base/status.h"
#include "io/io_meter.h"

namespace te {

// O_DIRECT needs file offsets, lengths and buffers to be multiples of this.
inline constexpr size_t kIoAlignmentBytes = 4096;

// An open file. Closes on destruction.
class IoFile {
 public:
  enum class Mode { kRead, kReadWrite, kCreate };  // kCreate: read-write, must not exist yet
  // Opens with O_DIRECT where the file system takes it, so that the page cache is not a hidden
  // tier; buffered elsewhere.
  static Result<IoFile> open(const std::string& path, Mode mode);
  ~IoFile();
  IoFile(IoFile&& other) noexcept;
  IoFile& operator=(IoFile&& other) noexcept;

  int fd() const { return fd_; }
  bool is_direct() const { return direct_; }
  const std::string& path() const { return path_; }
  // Differs from that of every other file that this process has opened.
  uint64_t serial() const { return serial_; }
  // Whether an engine may register the file with the system, which keeps it open: then `forget` has
  // to come before the file is closed.
  bool is_long_lived() const { return long_lived_; }
  void set_long_lived() { long_lived_ = true; }
  // Reserves the space now (fallocate), so that a full disk shows here: kNoSpace names the path and
  // the bytes needed and free.
  Status allocate(uint64_t bytes);
  Status sync() const;  // fdatasync

 private:
  IoFile(int fd, bool direct, std::string path);
  int fd_ = -1;
  bool direct_ = false;
  bool long_lived_ = false;
  uint64_t serial_ = 0;
  std::string path_;
};

struct IoRequest {
  // kSync makes what was written to the file before the batch durable; the fields below `file` mean
  // nothing to it. An engine that simulates a crash learns from it which writes survive.
  enum class Kind : uint8_t { kRead, kWrite, kSync };
  Kind kind = Kind::kRead;
  const IoFile* file = nullptr;
  uint64_t offset_bytes = 0;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

class IoEngine {
 public:
  virtual ~IoEngine() = default;
  virtual const char* name() const = 0;
  // Runs all requests, in any order and in parallel. `on_done(i)` is called on the calling thread
  // once request i has fully succeeded, in order of completion. A read past the end of a file is
  // kCorruption, a full disk kNoSpace, the rest kIo. The first failure is returned after every
  // started request has ended; its message names the path, the offset and the system's reason.
  virtual Status run(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) = 0;

  // What the source of a stream says when it is asked for its next request: here it is; ask again
  // once one of those in flight has ended; there is none.
  enum class Next : uint8_t { kRequest, kLater, kEnd };
  using Source = FunctionRef<Next(IoRequest&)>;
  // As run, for requests 0, 1, ... that `next` hands out on the calling thread while others are
  // under way, so that the queue stays full although the buffers are few. Here: one `run` after
  // another of all requests that are to be had.
  virtual Status run_stream(Source next, FunctionRef<void(size_t)> on_done);

  // Requests of a stream that keep the device busy.
  virtual size_t depth() const { return 64; }
  // Memory that requests will use again and again until it is removed; an engine may register it
  // with the system.
  virtual void add_buffer(std::byte* data, size_t bytes);
  virtual void remove_buffer(std::byte* data);
  // Before a long-lived file is closed.
  virtual void forget(const IoFile& file);

  IoStats read_stats() const { return reads_.snapshot(); }
  IoStats write_stats() const { return writes_.snapshot(); }

 protected:
  void record(const IoRequest& request, uint64_t ns, size_t in_flight) {
    if (request.kind == IoRequest::Kind::kSync) return;
    (request.kind == IoRequest::Kind::kRead ? reads_ : writes_)
        .record(request.bytes, ns, in_flight);
  }

 private:
  IoMeter reads_;
  IoMeter writes_;
};

// `threads` help the calling thread; 0 runs every batch on it.
std::unique_ptr<IoEngine> make_portable_engine(size_t threads);
// Linux io_uring: one system call for many requests, up to `depth` in flight. kIo says why this
// kernel or container does not allow it.
Result<std::unique_ptr<IoEngine>> make_uring_engine(size_t depth);
// io_uring where it works, else portable; the environment variable TIERED_EMB_IO=io_uring|portable
// decides instead, and then fails where its choice does not work.
Result<std::unique_ptr<IoEngine>> make_io_engine();
// Likewise, with at most `depth` requests in flight.
Result<std::unique_ptr<IoEngine>> make_io_engine_of_depth(size_t depth);

}  // namespace te
