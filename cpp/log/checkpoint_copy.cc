#include "log/checkpoint_copy.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "io/io_error.h"
#include "log/directory.h"
#include "log/manifest.h"

namespace te {
namespace {

constexpr size_t kCopyBytes = size_t{4} << 20;

struct Fd {
  int value = -1;
  ~Fd() {
    if (value >= 0) ::close(value);
  }
};

// The first `bytes` of a file, durable.
Status copy_file(const std::string& from, const std::string& to, uint64_t bytes) {
  const Fd in{::open(from.c_str(), O_RDONLY | O_CLOEXEC)};
  if (in.value < 0) return io_error(from, "open", errno);
  const Fd out{::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)};
  if (out.value < 0) return io_error(to, "create", errno);
  std::vector<char> buffer(std::min<uint64_t>(kCopyBytes, bytes));
  for (uint64_t done = 0; done < bytes;) {
    const size_t want = std::min<uint64_t>(buffer.size(), bytes - done);
    const ssize_t n = ::read(in.value, buffer.data(), want);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error(from, "read", errno);
    if (n == 0)
      return Status(StatusCode::kCorruption, from + ": ends after " + std::to_string(done) +
                                                 " bytes of " + std::to_string(bytes));
    for (ssize_t written = 0; written < n;) {
      const ssize_t w =
          ::write(out.value, buffer.data() + written, static_cast<size_t>(n - written));
      if (w < 0 && errno == EINTR) continue;
      if (w < 0) return io_error(to, "write", errno);
      written += w;
    }
    done += static_cast<uint64_t>(n);
  }
  return ::fdatasync(out.value) == 0 ? Status::ok() : io_error(to, "sync", errno);
}

// A link, or a copy where there can be none.
Status share_file(const std::string& from, const std::string& to, uint64_t bytes) {
  if (::link(from.c_str(), to.c_str()) == 0) return Status::ok();
  switch (errno) {
    case EXDEV:
    case EPERM:
    case EMLINK:
    case EOPNOTSUPP:
    case ENOSYS: return copy_file(from, to, bytes);
    default: return io_error(from, "link to " + to, errno);
  }
}

Result<Manifest> manifest_of(const StoreDirectory& directory) {
  auto bytes = StoreDirectory::read_file(directory.manifest());
  if (!bytes) return bytes.status();
  return decode_manifest(bytes.value(), directory.manifest());
}

// The files of a copy: segments by their number, which use of the segment and how much of it.
struct Held {
  std::map<uint32_t, SegmentRecord> segments;
  std::vector<IndexRecord> indexes;
};

Held held_by(const std::string& path, uint64_t store_id) {
  Held held;
  if (path.empty()) return held;
  auto manifest = manifest_of(StoreDirectory(path));
  if (!manifest || manifest.value().store_id != store_id) return held;
  for (const SegmentRecord& record : manifest.value().segments)
    held.segments[record.segment] = record;
  held.indexes = manifest.value().indexes;
  return held;
}

}  // namespace

Status copy_checkpoint(const std::string& from, const std::string& to,
                       const std::string& previous) {
  const StoreDirectory source(from);
  StoreDirectory target(to);
  const StoreDirectory earlier(previous);
  Result<Manifest> read = manifest_of(source);
  if (!read) return read.status();
  const Manifest& manifest = read.value();
  TE_RETURN_IF_ERROR(target.make());
  if (StoreDirectory::file_bytes(target.manifest()).is_ok())
    return Status(StatusCode::kAlreadyExists, to + ": there is a store already");
  auto leftovers = target.list();
  if (!leftovers) return leftovers.status();
  for (const auto& entry : leftovers.value()) TE_RETURN_IF_ERROR(target.remove(entry.path));

  const Held held = held_by(previous, manifest.store_id);
  for (const IndexRecord& index : manifest.indexes) {
    const bool is_held = std::any_of(
        held.indexes.begin(), held.indexes.end(),
        [&](const IndexRecord& other) { return std::memcmp(&index, &other, sizeof(index)) == 0; });
    TE_RETURN_IF_ERROR(share_file((is_held ? earlier : source).index(index.checkpoint),
                                  target.index(index.checkpoint), index.bytes));
  }
  for (const SegmentRecord& record : manifest.segments) {
    const SegmentId id(record.segment);
    const auto same = held.segments.find(record.segment);
    const bool is_held = same != held.segments.end() &&
                         same->second.blocks_used == record.blocks_used &&
                         same->second.segment_sequence == record.segment_sequence;
    TE_RETURN_IF_ERROR(share_file(is_held ? earlier.segment(id) : source.segment(id),
                                  target.segment(id),
                                  uint64_t{record.blocks_used} * manifest.block_bytes));
  }
  TE_RETURN_IF_ERROR(target.sync());
  auto bytes = StoreDirectory::file_bytes(source.manifest());
  if (!bytes) return bytes.status();
  TE_RETURN_IF_ERROR(target.remove(target.manifest_tmp()));
  TE_RETURN_IF_ERROR(copy_file(source.manifest(), target.manifest_tmp(), bytes.value()));
  TE_RETURN_IF_ERROR(target.rename(target.manifest_tmp(), target.manifest()));
  return target.sync();
}

}  // namespace te
