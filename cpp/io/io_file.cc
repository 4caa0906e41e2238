#include <errno.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <utility>

#include "base/aligned_buffer.h"
#include "io/io_engine.h"
#include "io/io_error.h"

namespace te {
namespace {

constexpr size_t kZeroBytes = size_t{1} << 20;

// Writes zeros over the file, for file systems that cannot reserve space: slower, same promise.
int fill_with_zeros(int fd, uint64_t bytes) {
  AlignedBuffer zeros(std::min<uint64_t>(kZeroBytes, bytes));
  for (uint64_t done = 0; done < bytes;) {
    const size_t want = std::min<uint64_t>(zeros.bytes(), bytes - done);
    const ssize_t n = ::pwrite(fd, zeros.data(), want, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    done += static_cast<uint64_t>(n);
  }
  return 0;
}

uint64_t disk_free_bytes(int fd) {
  struct statvfs disk;
  if (::fstatvfs(fd, &disk) != 0) return 0;
  return uint64_t{disk.f_bavail} * disk.f_frsize;
}

}  // namespace

Status io_error(const std::string& path, const std::string& action, int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  return Status(full ? StatusCode::kNoSpace : StatusCode::kIo,
                path + ": " + action + ": " + std::generic_category().message(error));
}

Result<IoFile> IoFile::open(const std::string& path, Mode mode) {
  int flags = O_CLOEXEC | (mode == Mode::kRead ? O_RDONLY : O_RDWR);
  if (mode == Mode::kCreate) flags |= O_CREAT | O_EXCL;
  int fd;
  do {
    fd = ::open(path.c_str(), flags, 0644);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    const int error = errno;
    Status status = io_error(path, mode == Mode::kCreate ? "create" : "open", error);
    if (error == ENOENT) return Status(StatusCode::kNotFound, status.message());
    if (error == EEXIST) return Status(StatusCode::kAlreadyExists, status.message());
    return status;
  }
  // Asked for after opening: a file system without O_DIRECT would fail the open itself, and leave
  // an empty file behind when it was asked to create one.
  bool direct = false;
#ifdef O_DIRECT
  direct = ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_DIRECT) == 0;
#endif
  return IoFile(fd, direct, path);
}

IoFile::~IoFile() {
  if (fd_ >= 0) ::close(fd_);
}

IoFile::IoFile(int fd, bool direct, std::string path)
    : fd_(fd), direct_(direct), path_(std::move(path)) {
  static std::atomic<uint64_t> serials{0};
  serial_ = serials.fetch_add(1, std::memory_order_relaxed);
}

IoFile::IoFile(IoFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      direct_(other.direct_),
      long_lived_(other.long_lived_),
      serial_(other.serial_),
      path_(std::move(other.path_)) {}

IoFile& IoFile::operator=(IoFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(direct_, other.direct_);
  std::swap(long_lived_, other.long_lived_);
  std::swap(serial_, other.serial_);
  std::swap(path_, other.path_);
  return *this;
}

Status IoFile::allocate(uint64_t bytes) {
  int error = 0;
  do {
    error = ::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == EOPNOTSUPP || error == ENOSYS) error = fill_with_zeros(fd_, bytes);
  if (error == 0) return Status::ok();
  return io_error(path_,
                  "reserve " + std::to_string(bytes) + " bytes (" +
                      std::to_string(disk_free_bytes(fd_)) + " bytes free)",
                  error);
}

Status IoFile::sync() const {
  int error = 0;
  do {
    error = ::fdatasync(fd_) == 0 ? 0 : errno;
  } while (error == EINTR);
  return error == 0 ? Status::ok() : io_error(path_, "sync", error);
}

}  // namespace te
