// Mover: moves rows between slots and the log as plans say. Decides nothing but the order of the
// work.
//
// Thread-safety: none; the engine's mutex guards it. `fill` can open that mutex while it computes
// and reads; meanwhile everything else may be called. Ownership: borrows the tiers. Cost: reads of
// a call are one batch, each wanted block once; spills are appends to the log's write buffer.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

struct MoverStats {
  uint64_t fills_read = 0;         // rows that came from ssd
  uint64_t fills_initialised = 0;  // rows that had never been written
  uint64_t spills_written = 0;     // dirty victims
  uint64_t spills_dropped = 0;     // clean victims
};

class Mover {
 public:
  explicit Mover(Tiers& tiers) : tiers_(tiers) {}

  // Empties `victims` (unpinned): dirty rows are appended to the log, location words updated, slots
  // freed. On error nothing has changed.
  Status spill(LayoutId layout, std::span<const SlotIndex> victims);
  // Brings the missing rows of `plans` into their slots. `overwrite`: the caller will write every
  // byte, so that nothing needs to be read. `owner_lock`: the lock of the engine's mutex, to open
  // it meanwhile.
  Status fill(std::span<Plan* const> plans, bool overwrite, ThreadPool& threads,
              std::unique_lock<std::mutex>& owner_lock);
  // Copies rows wherever they are to destination (row_bytes each), changing nothing.
  Status copy_rows(TableId table, std::span<const RowId> rows, std::byte* destination);
  // Writes every dirty row to the log; they stay in their slots, clean. In the turn of checkpoints.
  // Space may exceed its bound by these rows until the reclaimer has caught up: waiting for it here
  // would keep steps waiting.
  Status clean();
  // Puts the rows of all slots into another store, and notes where in their slots, which have no
  // use for it without an ssd tier; forget_homes takes the notes back.
  Status copy_slots(LogStore& store);
  void forget_homes();
  // Changes the slot limit of a layout; shrinking evicts and moves rows. It stops at pinned slots.
  Status set_limit(LayoutId layout, uint32_t limit);
  // Moves budget between layouts until each may use as many slots as `needed` says, taking it from
  // those that need less, from shares last and only if `from_shares`; false if the budget, or slots
  // that are pinned, do not allow it.
  Result<bool> make_room(std::span<const uint32_t> needed, bool from_shares);

  // Lowers the limit of a layout, as far as pinned slots leave room for their rows. The cost is
  // that of the slots between the limits. Pinned rows are stranded there (`rescue` moves them
  // later), and the policy is not told: its memory is for the old limit still.
  Status lower_limit(LayoutId layout, uint32_t limit);
  // Moves up to so many stranded rows that are no longer pinned below the limit. Whether none is
  // left.
  bool rescue(LayoutId layout, size_t rows);

  // Sets all limits, first those that shrink. Pinned slots may keep one up: then the limits of
  // those that should have grown stay, and the result is false.
  Result<bool> set_limits(std::span<const uint32_t> limits);
  // Whether a layout has fewer slots than its share.
  bool has_lent_shares() const { return has_lent_shares_; }

  const MoverStats& stats() const { return stats_; }

 private:
  void initialise(std::span<const Fill* const> fills, ThreadPool& threads) const;
  Status append_dirty(LayoutId layout, std::span<const SlotIndex> dirty);
  void move_down(LayoutTier& tier, std::span<const SlotIndex> from);

  Tiers& tiers_;
  MoverStats stats_;
  bool has_lent_shares_ = false;
  // Scratch of one `fill`.
  std::vector<std::vector<const Fill*>> stored_;  // by stored layout
  std::vector<const Fill*> fresh_;
  std::vector<RowRead> reads_;
  // Scratch of one call to the others, each.
  std::vector<SlotIndex> dirty_;
  std::vector<SlotIndex> victims_;
  std::vector<SlotIndex> leaving_;
  std::vector<SlotIndex> moved_;
  std::vector<RowId> rows_;
  std::vector<const std::byte*> data_;
  std::vector<BlockAddress> blocks_;
};

}  // namespace te
