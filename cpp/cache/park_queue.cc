#include "cache/park_queue.h"

namespace te {

ParkChunk* ParkChunkPool::take() {
  if (free_ == nullptr) {
    owned_.push_back(std::make_unique<ParkChunk>());
    return owned_.back().get();
  }
  ParkChunk* chunk = free_;
  free_ = chunk->next;
  chunk->first = chunk->last = 0;
  chunk->next = nullptr;
  return chunk;
}

void ParkChunkPool::give_back(ParkChunk* chunk) {
  chunk->next = free_;
  free_ = chunk;
}

void ParkQueue::push(ParkedSlot entry) {
  if (tail_ == nullptr || tail_->last == ParkChunk::kEntries) {
    ParkChunk* chunk = pool_->take();
    (tail_ == nullptr ? head_ : tail_->next) = chunk;
    tail_ = chunk;
  }
  tail_->entries[tail_->last++] = entry;
  ++size_;
}

void ParkQueue::drop_head() {
  ParkChunk* next = head_->next;
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
  other.head_ = other.tail_ = nullptr;
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
