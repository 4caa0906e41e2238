// The io_uring engine: a ring for each stream that is under way.
//
// Thread-safety: mutex_ guards the lists; a ring in use belongs to one thread. Ownership: rings are
// kept for reuse, so that steady state does not allocate. Invariant: there is at least one ring.
#include <algorithm>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "io/io_engine.h"
#include "io/uring.h"

namespace te {
namespace {

class UringEngine final : public IoEngine {
 public:
  UringEngine(std::unique_ptr<Uring> first, size_t depth) : depth_(depth) {
    rings_.push_back({std::move(first), 0, false, {}});
  }

  const char* name() const override { return "io_uring"; }
  size_t depth() const override { return depth_; }

  Status run(std::span<const IoRequest> requests, FunctionRef<void(size_t)> on_done) override {
    size_t at = 0;
    const auto next = [&](IoRequest& request) {
      if (at == requests.size()) return Next::kEnd;
      request = requests[at++];
      return Next::kRequest;
    };
    return run_stream(next, on_done);
  }

  Status run_stream(Source next, FunctionRef<void(size_t)> on_done) override {
    Ring* free = take();
    if (free == nullptr) return plain_->run_stream(next, on_done);
    Ring& ring = *free;
    const auto on_end = [this](const IoRequest& request, uint64_t ns, size_t in_flight) {
      record(request, ns, in_flight);
    };
    Status status = ring.uring->run(next, on_done, on_end);
    give_back(ring);
    return status;
  }

  void add_buffer(std::byte* data, size_t bytes) override {
    std::lock_guard lock(mutex_);
    buffers_.push_back({data, bytes});
    ++buffers_version_;
  }

  void remove_buffer(std::byte* data) override {
    std::lock_guard lock(mutex_);
    std::erase_if(buffers_, [=](const Uring::Buffer& b) { return b.data == data; });
    ++buffers_version_;
  }

  void forget(const IoFile& file) override {
    std::lock_guard lock(mutex_);
    for (Ring& ring : rings_) {
      if (ring.busy) {
        ring.to_forget.push_back(file.serial());
      } else {
        ring.uring->forget_file(file.serial());
      }
    }
  }

 private:
  struct Ring {
    std::unique_ptr<Uring> uring;
    uint64_t buffers_version;
    bool busy;
    std::vector<uint64_t> to_forget;  // files closed while it was busy
  };

  // Null where limits allow no more rings. There is no waiting for one: it may be the caller's own,
  // whose stream asks for something in between.
  Ring* take() {
    std::lock_guard lock(mutex_);
    Ring* ring = nullptr;
    for (Ring& r : rings_) {
      if (!r.busy) ring = &r;
    }
    if (ring == nullptr) {
      auto made = Uring::create(depth_);
      if (!made) return nullptr;
      ring = &rings_.emplace_back(Ring{made.take(), 0, false, {}});
    }
    ring->busy = true;
    if (ring->buffers_version != buffers_version_) {
      ring->uring->register_buffers(buffers_);
      ring->buffers_version = buffers_version_;
    }
    return ring;
  }

  void give_back(Ring& ring) {
    std::lock_guard lock(mutex_);
    for (uint64_t serial : ring.to_forget) ring.uring->forget_file(serial);
    ring.to_forget.clear();
    ring.busy = false;
  }

  const size_t depth_;
  const std::unique_ptr<IoEngine> plain_ = make_portable_engine(0);
  std::mutex mutex_;
  // Guarded by mutex_:
  std::list<Ring> rings_;
  std::vector<Uring::Buffer> buffers_;
  uint64_t buffers_version_ = 0;
};

}  // namespace

Result<std::unique_ptr<IoEngine>> make_uring_engine(size_t depth) {
  auto first = Uring::create(depth);
  if (!first) return first.status();
  return std::unique_ptr<IoEngine>(std::make_unique<UringEngine>(first.take(), depth));
}

}  // namespace te
