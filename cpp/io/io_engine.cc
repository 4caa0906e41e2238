#include "io/io_engine.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

namespace te {
namespace {

constexpr size_t kPortableThreads = 8;
constexpr size_t kUringDepth = 256;

}  // namespace

Status IoEngine::run_stream(Source next, FunctionRef<void(size_t)> on_done) {
  std::vector<IoRequest> requests;
  size_t first = 0;
  for (Next said = Next::kRequest; said != Next::kEnd; first += requests.size()) {
    requests.clear();
    for (;;) {
      IoRequest request;
      said = next(request);
      if (said != Next::kRequest) break;
      requests.push_back(request);
    }
    TE_RETURN_IF_ERROR(run(requests, [&](size_t i) { on_done(first + i); }));
  }
  return Status::ok();
}

void IoEngine::add_buffer(std::byte*, size_t) {}
void IoEngine::remove_buffer(std::byte*) {}
void IoEngine::forget(const IoFile&) {}

Result<std::unique_ptr<IoEngine>> make_io_engine() { return make_io_engine_of_depth(kUringDepth); }

Result<std::unique_ptr<IoEngine>> make_io_engine_of_depth(size_t depth) {
  // The calling thread serves a batch too.
  const size_t threads = std::min(kPortableThreads, depth - 1);
  const char* set = std::getenv("TIERED_EMB_IO");
  const std::string wanted = set == nullptr ? "" : set;
  if (wanted == "portable") return make_portable_engine(threads);
  if (!wanted.empty() && wanted != "io_uring")
    return Status(StatusCode::kInvalidArgument,
                  "TIERED_EMB_IO=" + wanted + ": must be io_uring or portable");
  auto uring = make_uring_engine(depth);
  if (uring.is_ok() || wanted == "io_uring") return uring;
  return make_portable_engine(threads);
}

}  // namespace te
