#include "log/write_behind.h"

#include <algorithm>

#include "base/check.h"

namespace te {

WriteBehind::WriteBehind(StoreContext& context, SegmentTable& table, SegmentFiles& files)
    : context_(context), table_(table), files_(files) {}

WriteBehind::~WriteBehind() {
  for (const auto& pending : pending_) context_.worker->wait(pending->job);
}

AlignedBuffer WriteBehind::take_buffer(size_t bytes) {
  const auto found = std::find_if(buffers_.begin(), buffers_.end(),
                                  [=](const AlignedBuffer& b) { return b.bytes() == bytes; });
  if (found == buffers_.end()) return AlignedBuffer(bytes);
  AlignedBuffer buffer = std::move(*found);
  buffers_.erase(found);
  return buffer;
}

Status WriteBehind::submit(AlignedBuffer& memory, BlockAddress first, uint32_t blocks,
                           std::span<const Piece> pieces) {
  TE_RETURN_IF_ERROR(settle());
  if (pending_.size() >= kPendingMax) {
    context_.worker->wait(pending_.front()->job);
    TE_RETURN_IF_ERROR(settle());
  }
  const SegmentId segment = table_.segment_of(first);
  Result<IoFile*> file = files_.hold(segment);
  if (!file) return file.status();
  if (idle_.empty()) idle_.push_back(std::make_unique<Pending>());
  pending_.push_back(std::move(idle_.back()));
  idle_.pop_back();
  Pending& pending = *pending_.back();
  pending.memory = std::move(memory);
  pending.first = first;
  pending.blocks = blocks;
  pending.segment = segment;
  pending.job.requests.clear();
  const size_t block_bytes = context_.options.block_bytes;
  const uint64_t first_block = table_.block_in_segment(first);
  for (const Piece& piece : pieces) {
    pending.job.requests.push_back({IoRequest::Kind::kWrite, file.value(),
                                    (first_block + piece.begin) * block_bytes,
                                    pending.memory.data() + piece.begin * block_bytes,
                                    (piece.end - piece.begin) * block_bytes});
  }
  table_.write_started(segment);
  context_.worker->submit(pending.job);
  return Status::ok();
}

const std::byte* WriteBehind::find(BlockAddress block) const {
  const size_t block_bytes = context_.options.block_bytes;
  for (const auto& pending : pending_) {
    const uint32_t at = block.value - pending->first.value;  // wraps below the first
    if (at >= pending->blocks) continue;
    const std::byte* run = pending->memory.data() + at * block_bytes;
    // Between the pieces are runs that were still open, and may have come on their own since.
    for (const IoRequest& piece : pending->job.requests) {
      if (run >= piece.data && run < piece.data + piece.bytes) return run;
    }
  }
  return nullptr;
}

Status WriteBehind::settle(Pending& pending) {
  IoWorker::Job& job = pending.job;
  if (!job.status) job.status = context_.io->run(job.requests, [](size_t) {});
  TE_RETURN_IF_ERROR(Status(job.status));
  for (const IoRequest& request : job.requests) context_.stats.written_bytes += request.bytes;
  files_.release(pending.segment);
  table_.write_ended(pending.segment);
  buffers_.push_back(std::move(pending.memory));
  return Status::ok();
}

Status WriteBehind::settle() {
  Status result;
  for (size_t i = 0; i < pending_.size();) {
    if (!pending_[i]->job.is_done()) {
      ++i;
    } else if (Status status = settle(*pending_[i]); !status) {
      if (result) result = std::move(status);
      ++i;
    } else {
      idle_.push_back(std::move(pending_[i]));
      pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(i));
    }
  }
  return result;
}

Status WriteBehind::drain() {
  for (const auto& pending : pending_) context_.worker->wait(pending->job);
  return settle();
}

}  // namespace te
