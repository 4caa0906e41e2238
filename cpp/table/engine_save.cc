// Engine: flush, save and close.
#include "log/checkpoint_copy.h"
#include "table/engine_turn.h"

namespace te {

bool Engine::has_store() const {
  return tiers_->log() != nullptr && !tiers_->config().ssd_read_only;
}

void Engine::begin_checkpoint_turn() {
  std::unique_lock lock(mutex_);
  checkpoint_turn_.take(lock);
}

// State at the call: rows and metadata are taken under the mutex, what is slow comes without it.
Status Engine::begin_checkpoint(bool seal) {
  begin_checkpoint_turn();
  const auto cut = [&] {
    Turn turn(*this);
    TE_RETURN_IF_ERROR(check_open());
    TE_RETURN_IF_ERROR(check_newest_in_dram());
    if (!has_store()) return Status::ok();
    TE_RETURN_IF_ERROR(mover_.clean());
    return tiers_->log()->begin_checkpoint(*tiers_, tiers_->checkpoint_metadata(), seal);
  };
  Status status = cut();
  if (!status) end_checkpoint_turn();
  return status;
}

Status Engine::write_checkpoint() {
  if (!has_store()) return Status::ok();
  Status written = tiers_->log()->write_checkpoint();
  std::lock_guard lock(mutex_);
  return tiers_->log()->end_checkpoint(std::move(written));
}

void Engine::end_checkpoint_turn() {
  std::lock_guard lock(mutex_);
  checkpoint_turn_.give_back();
}

Status Engine::flush() {
  TE_RETURN_IF_ERROR(begin_checkpoint(false));
  Status written = write_checkpoint();
  end_checkpoint_turn();
  return written;
}

Status Engine::begin_save(const std::string& path) {
  {
    std::lock_guard lock(mutex_);
    TE_RETURN_IF_ERROR(check_writable());  // its files may be another process's to write
  }
  TE_RETURN_IF_ERROR(begin_checkpoint(true));
  Status status = tiers_->log() == nullptr ? save_slots(path) : Status::ok();
  if (!status) end_checkpoint_turn();
  return status;
}

Status Engine::finish_save(const std::string& path, const std::string& previous) {
  Status status = write_checkpoint();
  // Nobody deletes what the last checkpoint names before the next one has ended.
  if (status && tiers_->log() != nullptr)
    status = copy_checkpoint(tiers_->config().ssd_path, path, previous);
  end_checkpoint_turn();
  return status;
}

// Without an ssd tier: a new store with the rows of all slots.
Status Engine::save_slots(const std::string& path) {
  Turn turn(*this);
  turn.quiet();
  auto io = make_io_engine();
  if (!io) return io.status();
  auto log = LogStore::create(tiers_->log_options(path), io.take());
  if (!log) return log.status();
  Status status = mover_.copy_slots(*log.value());
  if (status) status = log.value()->checkpoint(*tiers_, tiers_->checkpoint_metadata());
  log.value()->trim();
  mover_.forget_homes();
  return status;
}

Status Engine::close_with(bool flush) {
  begin_checkpoint_turn();  // nobody else saves or closes meanwhile
  Status status = close_in_turn(flush);
  end_checkpoint_turn();
  return status;
}

Status Engine::close_in_turn(bool flush) {
  std::lock_guard turn(turn_);
  prefetch_.stop();
  if (upkeep_ != nullptr) upkeep_->stop();
  std::lock_guard lock(mutex_);
  if (closed_) return Status::ok();
  Status status;
  if (flush && has_store()) {
    status = check_newest_in_dram();
    if (status) status = mover_.clean();
    if (status) status = tiers_->log()->checkpoint(*tiers_, tiers_->checkpoint_metadata());
    if (status) tiers_->log()->trim();
  }
  if (!status) {
    if (upkeep_ != nullptr) upkeep_->start();
    return status;
  }
  closed_ = true;
  tiers_->close();
  // All is written and closed; damage that nobody has been told of is not passed over.
  return flush && upkeep_ != nullptr ? upkeep_->take_failure() : Status::ok();
}

Status Engine::close() { return close_with(true); }

Status Engine::discard() { return close_with(false); }

}  // namespace te
