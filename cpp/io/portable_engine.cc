// The portable engine: a pool of threads that call pread, pwrite and fdatasync.
//
// A batch waits in a queue; the workers and the calling thread take its requests one by one, so a
// batch of one costs no hand-over. Thread-safety: mutex_ guards the queue and all batches; it is
// held for a few instructions a request, next to microseconds of I/O. Ownership: batches are kept
// for reuse, so that steady state does not allocate.
#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "io/io_engine.h"
#include "io/io_error.h"

namespace te {
namespace {

std::string describe(const IoRequest& request) {
  return std::string(request.kind == IoRequest::Kind::kRead ? "read" : "write") + " of " +
         std::to_string(request.bytes) + " bytes at offset " + std::to_string(request.offset_bytes);
}

// Runs one request to its end: interrupted calls and short transfers go on where they stopped.
Status perform(const IoRequest& request) {
  if (request.kind == IoRequest::Kind::kSync) return request.file->sync();
  const int fd = request.file->fd();
  const bool reads = request.kind == IoRequest::Kind::kRead;
  size_t done = 0;
  while (done < request.bytes) {
    const off_t offset = static_cast<off_t>(request.offset_bytes + done);
    const size_t want = request.bytes - done;
    const ssize_t n = reads ? ::pread(fd, request.data + done, want, offset)
                            : ::pwrite(fd, request.data + done, want, offset);
    if (n < 0 && errno == EINTR) continue;
    // A direct file cannot go on from an unaligned place, and only its end makes a read stop there.
    const bool at_end = reads && (n == 0 || (n < 0 && errno == EINVAL && done % 512 != 0));
    if (at_end) {
      return Status(StatusCode::kCorruption, request.file->path() + ": " + describe(request) +
                                                 ": the file ends after " +
                                                 std::to_string(request.offset_bytes + done));
    }
    if (n < 0) return io_error(request.file->path(), describe(request), errno);
    if (n == 0) return io_error(request.file->path(), describe(request), EIO);
    done += static_cast<size_t>(n);
  }
  return Status::ok();
}

class PortableEngine final : public IoEngine {
 public:
  explicit PortableEngine(size_t threads) {
    for (size_t i = 0; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~PortableEngine() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  const char* name() const override { return "portable"; }

  Status run(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) override {
    if (requests.size() <= 1 || workers_.empty()) return run_inline(requests, on_done);
    std::unique_lock lock(mutex_);
    std::unique_ptr<Batch> batch = idle_batch();
    batch->requests = requests;
    queue_.push_back(batch.get());
    const size_t helpers = std::min(workers_.size(), requests.size() - 1);
    for (size_t i = 0; i < helpers; ++i) wake_.notify_one();

    while (true) {
      if (!batch->succeeded.empty()) {
        batch->reported.swap(batch->succeeded);
        lock.unlock();
        for (size_t i : batch->reported) on_done(i);
        batch->reported.clear();
        lock.lock();
      } else if (batch->next < batch->requests.size()) {
        step(*batch, lock);
      } else if (batch->running > 0) {
        batch->progress.wait(lock);
      } else {
        break;
      }
    }
    Status error = std::move(batch->error);
    batch->error = Status::ok();
    batch->next = 0;
    idle_.push_back(std::move(batch));
    return error;
  }

 private:
  struct Batch {
    std::span<const IoRequest> requests;
    size_t next = 0;     // first request that nobody has started
    size_t running = 0;  // started, not ended
    std::vector<size_t> succeeded;
    std::vector<size_t> reported;  // touched by the calling thread only
    Status error;
    std::condition_variable progress;
  };

  Status timed(const IoRequest& request, size_t in_flight) {
    const auto start = std::chrono::steady_clock::now();
    Status status = perform(request);
    const auto elapsed = std::chrono::steady_clock::now() - start;
    record(request, static_cast<uint64_t>(elapsed.count()), in_flight);
    return status;
  }

  Status run_inline(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) {
    for (size_t i = 0; i < requests.size(); ++i) {
      TE_RETURN_IF_ERROR(timed(requests[i], 1));
      on_done(i);
    }
    return Status::ok();
  }

  std::unique_ptr<Batch> idle_batch() {
    if (idle_.empty()) return std::make_unique<Batch>();
    std::unique_ptr<Batch> batch = std::move(idle_.back());
    idle_.pop_back();
    return batch;
  }

  // Takes one request of the batch, runs it without the lock, and books the outcome.
  void step(Batch& batch, std::unique_lock<std::mutex>& lock) {
    const size_t i = batch.next++;
    ++batch.running;
    if (batch.next == batch.requests.size()) std::erase(queue_, &batch);
    const size_t in_flight = batch.running;
    lock.unlock();
    Status status = timed(batch.requests[i], in_flight);
    lock.lock();
    --batch.running;
    if (status.is_ok()) {
      batch.succeeded.push_back(i);
    } else {
      if (batch.error.is_ok()) batch.error = std::move(status);
      batch.next = batch.requests.size();  // start no more of a failed batch
      std::erase(queue_, &batch);
    }
    batch.progress.notify_one();  // under the lock: the batch may be reused right after
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (stop_) return;
      step(*queue_.front(), lock);
    }
  }

  std::vector<std::thread> workers_;

  std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_:
  std::vector<Batch*> queue_;  // batches with requests that nobody has started
  std::vector<std::unique_ptr<Batch>> idle_;
  bool stop_ = false;
};

}  // namespace

std::unique_ptr<IoEngine> make_portable_engine(size_t threads) {
  return std::make_unique<PortableEngine>(threads);
}

}  // namespace te
