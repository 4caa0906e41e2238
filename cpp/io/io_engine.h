// IoEngine: runs batches of block reads, writes and syncs against open files.
//
// One virtual call a batch, never one a block. Engines: portable (a pool of pread/pwrite threads);
// a deep io_uring engine and a fault-injecting one plug in behind the same interface and must pass
// the same contract test (tests/cpp/io_contract_test.cc). Thread-safety: `run` may be called from
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
  // Reserves the space now (fallocate), so that a full disk shows here: kNoSpace names the path and
  // the bytes needed and free.
  Status allocate(uint64_t bytes);
  Status sync() const;  // fdatasync

 private:
  IoFile(int fd, bool direct, std::string path)
      : fd_(fd), direct_(direct), path_(std::move(path)) {}
  int fd_ = -1;
  bool direct_ = false;
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
};

// `threads` help the calling thread; 0 runs every batch on it.
std::unique_ptr<IoEngine> make_portable_engine(size_t threads);

}  // namespace te
