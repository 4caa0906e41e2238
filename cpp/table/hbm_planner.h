// HbmPlanner: decides which rows of a batch are on the device, once their slots in dram are known.
//
// A batch is staged when its rows stand in dram and before it is pooled: rows that are on the
// device stay, the others get slots there as far as there are any that no unfinished plan uses, and
// those for which there is none are used where they lie in dram. What has to move for it is told as
// lists, which the device layer of the Python package carries out in order before anything else.
// Rows leave the device for others only, so that what is used often stays.
// Thread-safety: none; the engine's mutex guards it. Ownership: borrows the tiers. Cost: a cache
// miss or two a unique row, a table lookup an occurrence, on all threads; choosing a row that
// leaves, and putting one that is parked into its queue, on one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

struct HbmStats {
  uint64_t rows_hit = 0;      // unique rows of staged batches that were on the device
  uint64_t rows_filled = 0;   // those that moved there
  uint64_t rows_in_dram = 0;  // those that found no room
  uint64_t rows_spilled = 0;  // newer than in dram, and moved down
};

class HbmPlanner {
 public:
  explicit HbmPlanner(Tiers& tiers) : tiers_(tiers) {}

  // The plan's rows get places, its occurrences name them, and its moves say what has to be done.
  // Its rows are pinned in dram, and rows that earlier stages took down are settled.
  void stage(Plan& plan, ThreadPool& threads);
  // The plan no longer uses its places; before its pins in dram end. Moves that overwrite them wait
  // for what was launched before the release of this number.
  void release(Plan& plan, ThreadPool& threads);
  // Releases so far.
  uint64_t releases() const { return releases_; }
  // Rows of `features`, a flag for each of the plan's, are about to differ from every copy
  // elsewhere.
  void mark_dirty(const Plan& plan, std::span<const uint8_t> features, ThreadPool& threads);
  // Rows of a layout that are newer on the device: where they are, and their slots in dram, to
  // which the caller brings them (`settle`). They count as clean.
  void take_dirty(LayoutId layout, std::vector<SlotIndex>& from, std::vector<SlotIndex>& to);
  // The row in this slot is taken down next, if it is newer there.
  bool take_dirty(HbmTier& hbm, SlotIndex s);
  // The bytes of rows that went down stand in their slots in dram. `left`: they left the device.
  void settle(LayoutId layout, std::span<const SlotIndex> dram, bool left, ThreadPool& threads);
  // Makes all slots free that no plan uses; their rows are clean.
  void drop_unused(ThreadPool& threads);
  // Rows whose slots in dram are stranded and that no plan uses: as take_dirty, up to so many rows,
  // and their slots on the device made free, of those that are not newer there.
  void take_stranded(LayoutId layout, size_t rows, std::vector<SlotIndex>& from,
                     std::vector<SlotIndex>& to);
  void drop_stranded(ThreadPool& threads);
  uint64_t dirty_rows() const;
  // That are to be settled.
  uint64_t unsettled_rows() const { return unsettled_; }

  const HbmStats& stats() const { return stats_; }

 private:
  // What one range of a plan, or a part of other rows, finds or leaves.
  struct Found {
    std::vector<uint32_t> missing;  // unique rows
    uint32_t pinned = 0;            // slots that no plan used before
    uint32_t hits = 0;
    std::vector<uint32_t> in_dram;  // unique rows that others use there
    uint32_t dirtied = 0;           // slots that were clean
    uint32_t unpinned = 0;          // slots that no plan uses any more
    std::vector<SlotIndex> parked;  // those, where there is a policy
  };
  // What some rows that come to the device push out.
  struct Replaced {
    std::vector<SlotIndex> spill_from;
    std::vector<SlotIndex> spill_to;
    std::vector<SlotIndex> clean;  // slots in dram
    uint64_t after = 0;
    uint32_t pinned = 0;  // slots in dram that were not
  };
  template <class F>
  void for_ranges(const Plan& plan, ThreadPool& threads, F f);
  void find(Plan& plan, size_t r);
  void find_all(Plan& plan, ThreadPool& threads);
  void place_missing(Plan& plan, LayoutId layout, ThreadPool& threads);
  void place_in_dram(Plan& plan, LayoutId layout, uint32_t unique) const;
  size_t choose_slots(HbmTier& hbm, size_t count);
  void replace(Plan& plan, LayoutId layout, size_t begin, size_t end, size_t free_slots,
               Replaced& replaced);
  void replace_all(Plan& plan, LayoutId layout, size_t count, ThreadPool& threads);
  void unpin(Plan& plan, size_t r);
  uint32_t mark_dirty(const Plan& plan, const UniqueRange& range);
  static uint8_t uses_of(const LayoutTier& tier, SlotIndex dram);
  void unpin_in_dram(LayoutId layout, std::span<const SlotIndex> dram, ThreadPool& threads);
  void drop_unused(LayoutId layout, std::span<const SlotIndex> dram, ThreadPool& threads);
  static size_t tasks_of(size_t rows);
  template <class F>
  static void for_parts(size_t rows, ThreadPool& threads, F f);

  Tiers& tiers_;
  HbmStats stats_;
  uint64_t releases_ = 0;
  uint64_t unsettled_ = 0;
  // Scratch of one call.
  std::vector<Found> found_;                    // by range, or part
  std::vector<size_t> groups_;                  // of ranges: where each begins
  std::vector<Replaced> replaced_;              // by task
  std::vector<std::vector<uint32_t>> missing_;  // unique rows, by layout
  std::vector<std::vector<SlotIndex>> parked_;  // by layout
  std::vector<SlotIndex> slots_;
  std::vector<SlotIndex> dram_;
};

}  // namespace te
