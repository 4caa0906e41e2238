#include "cache/park_queue.h"

namespace te {
namespace {

constexpr size_t kSlabsAtOnce = 16;

}  // namespace

ParkChunk* ParkChunkPool::take() {
  const uint32_t at = open_.empty() ? open_slab() : open_.back();
  Slab& slab = slabs_[at];
  ParkChunk* chunk = slab.free;
  if (chunk != nullptr) {
    slab.free = chunk->next;
  } else {
    chunk = reinterpret_cast<ParkChunk*>(slab.memory.data()) + slab.fresh++;
  }
  if (++slab.used == kChunks) {
    slab.is_listed = false;
    open_.pop_back();
  }
  chunk->first = chunk->last = 0;
  chunk->slab = at;
  chunk->next = nullptr;
  return chunk;
}

void ParkChunkPool::give_back(ParkChunk* chunk) {
  Slab& slab = slabs_[chunk->slab];
  chunk->next = slab.free;
  slab.free = chunk;
  --slab.used;
  if (slab.is_listed) return;
  slab.is_listed = true;
  open_.push_back(chunk->slab);
}

// The place of one that was released, or a new one.
uint32_t ParkChunkPool::open_slab() {
  const auto gone = std::find_if(slabs_.begin(), slabs_.end(),
                                 [](const Slab& slab) { return slab.memory.bytes() == 0; });
  const auto at = static_cast<uint32_t>(gone - slabs_.begin());
  if (gone == slabs_.end()) slabs_.emplace_back();
  slabs_[at].memory = ReservedMemory(kChunks * sizeof(ParkChunk));
  slabs_[at].is_listed = true;
  open_.push_back(at);
  return at;
}

bool ParkChunkPool::give_memory_back() {
  size_t freed = 0;
  for (size_t i = open_.size(); i-- > 0;) {
    if (slabs_[open_[i]].used != 0) continue;
    if (freed++ == kSlabsAtOnce) return false;
    slabs_[open_[i]] = Slab();
    open_[i] = open_.back();
    open_.pop_back();
  }
  return true;
}

void ParkQueue::add_chunk() {
  ParkChunk* chunk = pool_->take();
  (tail_ == nullptr ? head_ : tail_->next) = chunk;
  tail_ = chunk;
}

void ParkQueue::drop_head() {
  ParkChunk* next = head_->next;
  if (head_ == compacted_) compacted_ = nullptr;
  pool_->give_back(head_);
  head_ = next;
}

const ParkedSlot* ParkQueue::front() {
  if (size_ == 0) return nullptr;
  while (head_->first == head_->last) drop_head();  // appended queues may leave empty chunks
  return &head_->entries[head_->first];
}

bool ParkQueue::pop(ParkedSlot* entry) {
  const ParkedSlot* next = front();
  if (next == nullptr) return false;
  *entry = *next;
  ++head_->first;
  if (--size_ == 0) {
    while (head_ != nullptr) drop_head();
    tail_ = nullptr;
  }
  return true;
}

void ParkQueue::clear() {
  ParkedSlot entry;
  while (pop(&entry)) {
  }
}

void ParkQueue::append(ParkQueue& other) {
  if (other.size_ == 0) return;
  (tail_ == nullptr ? head_ : tail_->next) = other.head_;
  tail_ = other.tail_;
  size_ += other.size_;
  other.head_ = other.tail_ = other.compacted_ = nullptr;
  other.size_ = 0;
}

void ParkQueue::merge(ParkQueue& other) {
  ParkQueue merged(*pool_);
  ParkedSlot entry;
  while (size_ != 0 && other.size_ != 0) {
    (front()->mark <= other.front()->mark ? this : &other)->pop(&entry);
    merged.push(entry);
  }
  merged.append(*this);
  merged.append(other);
  append(merged);
}

}  // namespace te
