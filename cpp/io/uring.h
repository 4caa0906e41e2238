// Uring: one io_uring instance: its rings, its registered files and buffers, and the loop that
// drives a stream of requests through it.
//
// Uses the system calls directly, so that nothing has to be installed. Thread-safety: none; a ring
// serves one stream at a time, on any thread. Ownership: owns the rings. Cost: one system call for
// about an eighth of the requests in flight.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "io/io_engine.h"

struct io_uring_sqe;
struct io_uring_cqe;

namespace te {

class Uring {
 public:
  struct Buffer {
    std::byte* data;
    size_t bytes;
  };
  // What became of a request that ended: told to the engine, which keeps the counts.
  using OnEnd = FunctionRef<void(const IoRequest&, uint64_t ns, size_t in_flight)>;

  // kIo names the system call that this kernel or container refuses.
  static Result<std::unique_ptr<Uring>> create(size_t depth);
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  // As IoEngine::run_stream.
  Status run(IoEngine::Source next, FunctionRef<void(size_t)> on_done, OnEnd on_end);
  // From now on these buffers are the registered ones, as many as the system's limits allow.
  void register_buffers(std::span<const Buffer> buffers);
  void forget_file(uint64_t serial);

 private:
  // One request under way. What is done of it grows with each short transfer.
  struct Flight {
    IoRequest request;
    size_t number = 0;
    size_t done_bytes = 0;
    uint64_t start_ns = 0;
  };

  Uring() = default;
  Status map_rings(size_t depth);
  Status check_operations() const;
  void register_file_table();
  int register_file(const IoFile& file);  // its place in the table, or -1
  int buffer_of(const Flight& flight) const;
  void push(uint32_t flight);
  void submit_and_wait(uint32_t wait_for);
  // Whether the flight has ended; the error, if it failed.
  bool finish(Flight& flight, int32_t result, Status* error);
  uint32_t complete(FunctionRef<void(size_t)> on_done, OnEnd on_end, Status* error);

  int fd_ = -1;
  std::byte* rings_ = nullptr;
  size_t rings_bytes_ = 0;
  io_uring_sqe* entries_ = nullptr;
  size_t entries_bytes_ = 0;
  uint32_t* submit_tail_ = nullptr;
  uint32_t* submit_array_ = nullptr;
  uint32_t submit_mask_ = 0;
  uint32_t* complete_head_ = nullptr;
  uint32_t* complete_tail_ = nullptr;
  io_uring_cqe* completions_ = nullptr;
  uint32_t complete_mask_ = 0;

  uint32_t unsubmitted_ = 0;
  std::vector<Flight> flights_;
  std::vector<uint32_t> free_flights_;
  std::vector<Buffer> buffers_;
  std::unordered_map<uint64_t, int> file_places_;  // by IoFile::serial
  std::vector<int> free_places_;
};

}  // namespace te
