// The mapped file: packed rows, read and written through the page cache.
//
// A read is a copy from the mapping, an update a copy into it, and the kernel's writeback does the
// rest; faults are synchronous, so threads are what keeps the disk busy. How much the page cache
// may hold is for the caller to limit (a memory cgroup); where nobody can, `drop_bytes` drops the
// cached pages each time that about as many bytes of them were touched.
#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "base/thread_pool.h"
#include "row_store.h"

namespace te::bench {
namespace {

constexpr size_t kRowsPerTask = 64;
constexpr uint64_t kPageBytes = 4096;

Status failed(const std::string& what) {
  return Status(StatusCode::kIo, "mmap: " + what + ": " + std::strerror(errno));
}

class MmapPeer final : public RowStore {
 public:
  MmapPeer(const StoreOptions& options, IoFile file, std::byte* data)
      : bytes_(options.rows * options.row_bytes),
        row_bytes_(options.row_bytes),
        drop_bytes_(options.drop_bytes),
        file_(std::move(file)),
        data_(data) {
    set_threads(options.threads);
  }
  ~MmapPeer() override { munmap(data_, bytes_); }

  Status get_many(std::span<const RowId> rows, std::span<std::byte* const> out) override {
    run(rows.size(), [&](size_t i) { std::memcpy(out[i], place_of(rows[i]), row_bytes_); });
    return touched(rows.size());
  }

  Status put_many(std::span<const RowId> rows, std::span<const std::byte* const> data) override {
    run(rows.size(), [&](size_t i) { std::memcpy(place_of(rows[i]), data[i], row_bytes_); });
    return Status::ok();
  }

  // Changed pages are the kernel's to write, as memory runs short: as many as are changed, once
  // that goes on. So there is nothing to settle.
  Status flush() override {
    return msync(data_, bytes_, MS_SYNC) == 0 ? Status::ok() : failed("msync");
  }

  Status drop_cache() override {
    TE_RETURN_IF_ERROR(flush());
    if (madvise(data_, bytes_, MADV_DONTNEED) != 0) return failed("madvise");
    errno = posix_fadvise(file_.fd(), 0, 0, POSIX_FADV_DONTNEED);
    return errno == 0 ? Status::ok() : failed("posix_fadvise");
  }

  void set_threads(size_t threads) override { pool_ = std::make_unique<ThreadPool>(threads); }

  Counters counters() const override { return {}; }

 private:
  std::byte* place_of(RowId row) const { return data_ + row.value * row_bytes_; }

  void run(size_t rows, FunctionRef<void(size_t)> copy) {
    pool_->run((rows + kRowsPerTask - 1) / kRowsPerTask, [&](size_t task) {
      const size_t end = std::min(rows, (task + 1) * kRowsPerTask);
      for (size_t i = task * kRowsPerTask; i < end; ++i) copy(i);
    });
  }

  Status touched(size_t rows) {
    touched_bytes_ += rows * kPageBytes;
    if (drop_bytes_ == 0 || touched_bytes_ < drop_bytes_) return Status::ok();
    touched_bytes_ = 0;
    return drop_cache();
  }

  const uint64_t bytes_;
  const uint32_t row_bytes_;
  const uint64_t drop_bytes_;
  const IoFile file_;
  std::byte* const data_;
  uint64_t touched_bytes_ = 0;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace

Result<std::unique_ptr<RowStore>> make_mmap_store(const StoreOptions& options) {
  auto file = IoFile::open(options.directory + "/rows", IoFile::Mode::kCreate);
  if (!file) return file.status();
  const uint64_t bytes = options.rows * options.row_bytes;
  TE_RETURN_IF_ERROR(file.value().allocate(bytes));
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.value().fd(), 0);
  if (data == MAP_FAILED) return failed("mapping the file");
  if (madvise(data, bytes, MADV_RANDOM) != 0) return failed("madvise");
  return std::unique_ptr<RowStore>(
      std::make_unique<MmapPeer>(options, file.take(), static_cast<std::byte*>(data)));
}

}  // namespace te::bench
