// StoreDirectory: the names of a store's files, and what is done with names: list, delete, rename,
// lock, make durable.
//
// Thread-safety: none. Ownership: the lock is held until destruction. Only files with the store's
// own names are ever deleted. Files: LOCK, MANIFEST, MANIFEST.tmp, index-<n>, segment-<id in hex>.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/types.h"

namespace te {

class StoreDirectory {
 public:
  explicit StoreDirectory(std::string path) : path_(std::move(path)) {}
  ~StoreDirectory();
  StoreDirectory(StoreDirectory&& other) noexcept;
  StoreDirectory& operator=(StoreDirectory&&) = delete;

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  std::string manifest() const { return file("MANIFEST"); }
  std::string manifest_tmp() const { return file("MANIFEST.tmp"); }
  std::string index(uint64_t checkpoint) const;
  std::string segment(SegmentId id) const;

  Status make();  // creates it and its parents if absent
  Status lock();  // kBusy if another holder has it; creates the LOCK file
  Status sync();  // makes creations, deletions and renames durable
  Status rename(const std::string& from, const std::string& to);
  Status remove(const std::string& path);  // absent is fine

  // The store's own files other than LOCK and MANIFEST.
  struct Entry {
    std::string path;
    SegmentId segment;  // none() unless it is a segment file
    uint64_t bytes = 0;
    uint64_t links = 1;  // names of the file
  };
  Result<std::vector<Entry>> list() const;

  Result<uint64_t> free_bytes() const;  // of its disk, for this user
  static Result<uint64_t> file_bytes(const std::string& path);
  static Result<std::vector<std::byte>> read_file(const std::string& path);

 private:
  std::string path_;
  int lock_fd_ = -1;
  pid_t owner_pid_ = 0;  // that has taken the lock
};

}  // namespace te
