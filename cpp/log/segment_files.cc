#include "log/segment_files.h"

#include <sys/resource.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kOpenMin = 16;
constexpr size_t kOpenMax = 4096;

// A quarter of what the process may open, within reason: others need files too.
size_t choose_open_max() {
  struct rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return kOpenMin;
  return std::clamp<size_t>(limit.rlim_cur / 4, kOpenMin, kOpenMax);
}

}  // namespace

SegmentFiles::SegmentFiles(StoreDirectory& directory, IoEngine& io, bool read_only)
    : directory_(directory),
      io_(io),
      open_max_(choose_open_max()),
      mode_(read_only ? IoFile::Mode::kRead : IoFile::Mode::kReadWrite) {}

Status SegmentFiles::sync_file(const IoFile& file) {
  const IoRequest request{.kind = IoRequest::Kind::kSync, .file = &file};
  return io_.run({&request, 1}, [](size_t) {});
}

SegmentFiles::Iterator* SegmentFiles::find(SegmentId id) {
  if (id.value >= places_.size()) places_.resize(id.value + 1, recent_.end());
  return &places_[id.value];
}

SegmentFiles::~SegmentFiles() {
  while (!recent_.empty()) close(recent_.begin());
}

void SegmentFiles::close(Iterator entry) {
  io_.forget(entry->file);
  places_[entry->id.value] = recent_.end();
  recent_.erase(entry);
}

// Closes files until one more may be opened, those that are held aside.
Status SegmentFiles::make_room() {
  for (Iterator entry = recent_.end(); recent_.size() >= open_max_ && entry != recent_.begin();) {
    const Iterator oldest = std::prev(entry);
    if (oldest->holds > 0) {
      entry = oldest;
      continue;
    }
    if (!oldest->file.is_direct() && sync_failure_) sync_failure_ = sync_file(oldest->file);
    TE_RETURN_IF_ERROR(Status(sync_failure_));
    close(oldest);
  }
  return Status::ok();
}

Status SegmentFiles::insert(SegmentId id, IoFile file) {
  TE_RETURN_IF_ERROR(make_room());
  file.set_long_lived();
  recent_.push_front({id, std::move(file)});
  *find(id) = recent_.begin();
  return Status::ok();
}

Status SegmentFiles::create(SegmentId id, uint64_t bytes) {
  // A crash may have left a file under this name; it is nobody's now.
  TE_RETURN_IF_ERROR(remove(id));
  Result<IoFile> file = IoFile::open(path(id), IoFile::Mode::kCreate);
  if (!file) return file.status();
  Status status = file.value().allocate(bytes);
  if (status) status = insert(id, file.take());
  if (!status) (void)remove(id);  // the first error is the one to tell
  return status;
}

Result<IoFile*> SegmentFiles::acquire(SegmentId id) {
  Iterator* place = find(id);
  if (*place != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, *place);
    return &recent_.front().file;
  }
  Result<IoFile> file = IoFile::open(path(id), mode_);
  if (!file) return file.status();
  TE_RETURN_IF_ERROR(insert(id, file.take()));
  return &recent_.front().file;
}

Result<IoFile*> SegmentFiles::hold(SegmentId id) {
  Result<IoFile*> file = acquire(id);
  if (file && recent_.front().holds++ == 0) ++held_;
  return file;
}

void SegmentFiles::release(SegmentId id) {
  Iterator entry = *find(id);
  TE_CHECK(entry != recent_.end() && entry->holds > 0);
  if (--entry->holds == 0) --held_;
}

Status SegmentFiles::remove(SegmentId id) {
  Iterator* place = find(id);
  if (*place != recent_.end()) {
    TE_CHECK((*place)->holds == 0);
    close(*place);
  }
  return directory_.remove(path(id));
}

}  // namespace te
