#include "log/directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "io/io_error.h"

namespace te {
namespace {

constexpr std::string_view kSegmentPrefix = "segment-";
constexpr std::string_view kIndexPrefix = "index-";
constexpr size_t kSegmentDigits = 8;

bool all_of_digits(std::string_view s, std::string_view digits) {
  return !s.empty() && s.find_first_not_of(digits) == std::string_view::npos;
}

// The id in a segment's file name, none() for other names.
SegmentId parse_segment_name(std::string_view name) {
  if (!name.starts_with(kSegmentPrefix)) return SegmentId::none();
  name.remove_prefix(kSegmentPrefix.size());
  if (name.size() != kSegmentDigits || !all_of_digits(name, "0123456789abcdef")) {
    return SegmentId::none();
  }
  return SegmentId(static_cast<uint32_t>(std::stoul(std::string(name), nullptr, 16)));
}

bool is_index_name(std::string_view name) {
  return name.starts_with(kIndexPrefix) &&
         all_of_digits(name.substr(kIndexPrefix.size()), "0123456789");
}

struct Fd {
  int value;
  ~Fd() {
    if (value >= 0) ::close(value);
  }
};

int open_retrying(const std::string& path, int flags) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

Status sync_directory(const std::string& path) {
  const Fd fd{open_retrying(path, O_RDONLY | O_DIRECTORY)};
  if (fd.value < 0) return io_error(path, "open directory", errno);
  int error = 0;
  do {
    error = ::fsync(fd.value) == 0 ? 0 : errno;
  } while (error == EINTR);
  return error == 0 ? Status::ok() : io_error(path, "sync directory", error);
}

}  // namespace

StoreDirectory::~StoreDirectory() {
  if (lock_fd_ < 0) return;
  // Closing would not do: forked children have the file open, too. Nor may they release it.
  if (::getpid() == owner_pid_) ::flock(lock_fd_, LOCK_UN);
  ::close(lock_fd_);
}

StoreDirectory::StoreDirectory(StoreDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      lock_fd_(std::exchange(other.lock_fd_, -1)),
      owner_pid_(other.owner_pid_) {}

std::string StoreDirectory::index(uint64_t checkpoint) const {
  return file(std::string(kIndexPrefix) + std::to_string(checkpoint));
}

std::string StoreDirectory::segment(SegmentId id) const {
  char digits[kSegmentDigits + 1];
  std::snprintf(digits, sizeof(digits), "%08x", id.value);
  return file(std::string(kSegmentPrefix) + digits);
}

Status StoreDirectory::make() {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path_, error);
  if (error) return io_error(path_, "create directory", error.value());
  std::filesystem::create_directories(absolute, error);
  if (error) return io_error(path_, "create directory", error.value());
  return sync_directory(absolute.parent_path().string());
}

Status StoreDirectory::lock() {
  const std::string path = file("LOCK");
  owner_pid_ = ::getpid();
  lock_fd_ = open_retrying(path, O_RDWR | O_CREAT);
  if (lock_fd_ < 0) return io_error(path, "create", errno);
  int error = 0;
  do {
    error = ::flock(lock_fd_, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == 0) return Status::ok();
  ::close(std::exchange(lock_fd_, -1));
  if (error == EWOULDBLOCK) {
    return Status(StatusCode::kBusy,
                  path_ + ": the store is open elsewhere (" + path + " is held)");
  }
  return io_error(path, "lock", error);
}

Status StoreDirectory::sync() { return sync_directory(path_); }

Status StoreDirectory::rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return Status::ok();
  return io_error(from, "rename to " + to, errno);
}

Status StoreDirectory::remove(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return Status::ok();
  return io_error(path, "delete", errno);
}

Result<std::vector<StoreDirectory::Entry>> StoreDirectory::list() const {
  std::vector<Entry> entries;
  std::error_code error;
  std::filesystem::directory_iterator it(path_, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    const SegmentId segment = parse_segment_name(name);
    if (segment.is_none() && !is_index_name(name) && name != "MANIFEST.tmp") continue;
    struct stat info;
    if (::stat(file(name).c_str(), &info) != 0) {
      if (errno == ENOENT) continue;  // deleted meanwhile, by the writer whose store this reads
      return io_error(file(name), "stat", errno);
    }
    entries.push_back({file(name), segment, static_cast<uint64_t>(info.st_size), info.st_nlink});
  }
  if (error) return io_error(path_, "list", error.value());
  return entries;
}

Result<uint64_t> StoreDirectory::free_bytes() const {
  struct statvfs disk;
  if (::statvfs(path_.c_str(), &disk) != 0) return io_error(path_, "statvfs", errno);
  return uint64_t{disk.f_bavail} * disk.f_frsize;
}

Result<uint64_t> StoreDirectory::file_bytes(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    const int error = errno;
    const Status status = io_error(path, "stat", error);
    return error == ENOENT ? Status(StatusCode::kNotFound, status.message()) : status;
  }
  return static_cast<uint64_t>(info.st_size);
}

Result<std::vector<std::byte>> StoreDirectory::read_file(const std::string& path) {
  const Fd fd{open_retrying(path, O_RDONLY)};
  if (fd.value < 0) {
    const int error = errno;
    const Status status = io_error(path, "open", error);
    const bool absent = error == ENOENT || error == ENOTDIR;
    return absent ? Status(StatusCode::kNotFound, status.message()) : status;
  }
  struct stat info;
  if (::fstat(fd.value, &info) != 0) return io_error(path, "stat", errno);
  std::vector<std::byte> bytes(static_cast<size_t>(info.st_size));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(fd.value, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error(path, "read", errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

}  // namespace te
