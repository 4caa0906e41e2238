#include "base/aligned_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/check.h"

namespace te {
namespace {

constexpr size_t kHugePageWorthBytes = 4 << 20;

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

void* reserve(size_t bytes) {
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
              -1, 0);
}

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const size_t page = page_bytes();
  data_ = static_cast<std::byte*>(std::aligned_alloc(page, (bytes + page - 1) / page * page));
  TE_CHECK(data_ != nullptr);
  std::memset(data_, 0, bytes);
}

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

ReservedMemory::ReservedMemory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = reserve(bytes);
  TE_CHECK(p != MAP_FAILED);
  data_ = static_cast<std::byte*>(p);
  // Random rows in small pages cost a TLB miss each. A refusal changes nothing but time.
  if (bytes >= kHugePageWorthBytes) (void)madvise(p, bytes, MADV_HUGEPAGE);
}

bool ReservedMemory::can_reserve(size_t bytes) {
  if (bytes == 0) return true;
  void* p = reserve(bytes);
  return p != MAP_FAILED && munmap(p, bytes) == 0;
}

ReservedMemory::~ReservedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void ReservedMemory::discard(size_t begin, size_t end) {
  const size_t page = page_bytes();
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  if (begin >= end) return;
  TE_CHECK(madvise(data_ + begin, end - begin, MADV_DONTNEED) == 0);
  touched_ = std::min(touched_, begin);
}

bool ReservedMemory::touch_some(size_t bytes, size_t end) {
  end = std::min(end, bytes_);
  const size_t last = touched_ + std::min(bytes, end - std::min(end, touched_));
  for (; touched_ < last; touched_ += page_bytes()) {
    volatile std::byte& byte = data_[touched_];
    byte = byte;
  }
  return touched_ >= end;
}

}  // namespace te
