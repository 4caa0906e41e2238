#include "log/aligned_writer.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "log/format.h"

namespace te {
namespace {
constexpr size_t kBufferBytes = size_t{1} << 20;
}  // namespace

AlignedWriter::AlignedWriter(IoEngine& io, std::string path)
    : io_(io), path_(std::move(path)), buffer_(kBufferBytes) {}

Status AlignedWriter::create() {
  Result<IoFile> file = IoFile::open(path_, IoFile::Mode::kCreate);
  if (!file) return file.status();
  file_.emplace(file.take());
  return Status::ok();
}

Status AlignedWriter::append(const void* data, size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const size_t take = std::min(bytes, buffer_.bytes() - buffered_bytes_);
    std::memcpy(buffer_.data() + buffered_bytes_, from, take);
    buffered_bytes_ += take;
    from += take;
    bytes -= take;
    if (buffered_bytes_ == buffer_.bytes()) TE_RETURN_IF_ERROR(write_buffer());
  }
  return Status::ok();
}

Status AlignedWriter::write_buffer() {
  if (buffered_bytes_ == 0) return Status::ok();
  const IoRequest request{IoRequest::Kind::kWrite, &*file_, bytes_, buffer_.data(),
                          buffered_bytes_};
  TE_RETURN_IF_ERROR(io_.run({&request, 1}, [](size_t) {}));
  crc32c_ = te::crc32c(buffer_.data(), buffered_bytes_, crc32c_);
  bytes_ += buffered_bytes_;
  buffered_bytes_ = 0;
  return Status::ok();
}

Status AlignedWriter::finish() {
  const size_t tail = buffered_bytes_ % kFilePaddingBytes;
  if (tail != 0) {
    const size_t padding = kFilePaddingBytes - tail;
    std::memset(buffer_.data() + buffered_bytes_, 0, padding);
    buffered_bytes_ += padding;
  }
  TE_RETURN_IF_ERROR(write_buffer());
  const IoRequest sync{.kind = IoRequest::Kind::kSync, .file = &*file_};
  return io_.run({&sync, 1}, [](size_t) {});
}

}  // namespace te
