#include "table/resizer.h"

#include <algorithm>
#include <string>

namespace te {
namespace {

// What one portion may do, besides EngineConfig::rows_resized_at_once.
constexpr uint64_t kBytesAtOnce = 4 << 20;       // of rows that leave or move
constexpr size_t kCandidatesAtOnce = 1 << 18;    // that the policy looks at, or gets
constexpr uint32_t kSlotsGivenAtOnce = 1 << 18;  // whose memory goes back
constexpr uint32_t kBatchesToWait = 64;          // for rows that are pinned
constexpr uint32_t kBatchesOfFullDisk = 256;

}  // namespace

std::vector<uint32_t> Resizer::limits_for(uint64_t dram_bytes) const {
  std::vector<uint32_t> limits =
      slots_within(tiers_.demands(), dram_bytes, tiers_.index_bytes_charged(dram_bytes));
  for (size_t l = 0; l < limits.size(); ++l)
    limits[l] = static_cast<uint32_t>(std::min<uint64_t>(limits[l], tiers_.demands()[l].rows));
  return limits;
}

// By layout: those that are pinned, and at least the rows of every single batch, whose slots may
// have been taken for now.
std::vector<uint32_t> Resizer::rows_in_flight() const {
  std::vector<uint32_t> rows;
  for (size_t l = 0; l < tiers_.layouts(); ++l)
    rows.push_back(tiers_.layout(LayoutId(static_cast<uint16_t>(l))).directory.pinned());
  plans_.visit([&](const Plan& plan) {
    for (const Fill& fill : plan.piggybacked) {
      const SlotDirectory& directory = tiers_.layout(fill.layout).directory;
      rows[fill.layout.value] -= directory[fill.slot].pins == 1;  // else a batch has it, too
    }
  });
  std::vector<uint32_t> of_plan;
  plans_.visit([&](const Plan& plan) {
    if (plan.state == Plan::State::kReleased) return;
    of_plan.assign(rows.size(), 0);
    for (const UniqueRange& range : plan.acquired.ranges)
      of_plan[range.layout.value] += static_cast<uint32_t>(range.count);
    for (size_t l = 0; l < rows.size(); ++l) rows[l] = std::max(rows[l], of_plan[l]);
  });
  return rows;
}

Status Resizer::check(uint64_t dram_bytes) const {
  if (const Status shares = tiers_.check_shares(dram_bytes); !shares)
    return Status(shares.code(), "dram of " + std::to_string(dram_bytes) +
                                     " bytes is too small: " + shares.message());
  const std::vector<uint32_t> limits = limits_for(dram_bytes);
  std::vector<uint32_t> least = rows_in_flight();
  const std::vector<uint32_t> in_flight = least;
  for (size_t l = 0; l < limits.size(); ++l) {
    const LayoutTier& tier = tiers_.layout(LayoutId(static_cast<uint16_t>(l)));
    if (tier.hbm != nullptr) least[l] = std::max(least[l], tier.hbm->slots());
    least[l] = std::max(least[l], 1u);
    if (tier.hbm != nullptr && limits[l] < std::min(tier.hbm->slots(), tier.directory.limit()))
      return Status(StatusCode::kBudgetExceeded,
                    "dram of " + std::to_string(dram_bytes) + " bytes is too small: it gives " +
                        std::to_string(limits[l]) + " slots to rows of " +
                        std::to_string(tier.stride_bytes) + " bytes, of which hbm has " +
                        std::to_string(tier.hbm->slots()) + ", which keep their slots in dram");
    if (limits[l] <= tier.directory.slots_max()) continue;
    return Status(StatusCode::kBudgetExceeded,
                  "dram of " + std::to_string(dram_bytes) + " bytes: " + std::to_string(limits[l]) +
                      " rows of " + std::to_string(tier.stride_bytes) +
                      " bytes; this engine can have " + std::to_string(tier.directory.slots_max()) +
                      " of them in dram, by its first budget and this machine's memory");
  }
  const uint64_t needed =
      dram_bytes_for_slots(tiers_.demands(), least, tiers_.metadata_bytes(), true);
  if (needed <= dram_bytes) return Status::ok();
  uint64_t rows = 0;
  for (uint32_t n : in_flight) rows += n;
  return Status(StatusCode::kBudgetExceeded,
                "dram of " + std::to_string(dram_bytes) +
                    " bytes is too small: " + std::to_string(needed) + " are needed now, " +
                    std::to_string(tiers_.metadata_bytes()) +
                    " of them for location words, changes and what is known of batches ahead, the "
                    "others for " +
                    std::to_string(rows) + " rows of batches in flight" +
                    (tiers_.has_hbm() ? " and those in hbm, which keep their slots in dram" : ""));
}

Status Resizer::begin(uint64_t dram_bytes, Quiet quiet) {
  if (tiers_.log() == nullptr)
    return Status(StatusCode::kInvalidArgument,
                  "without an ssd tier all rows are in dram: none can leave, and none would come "
                  "(te.Tiers(ssd=...) when the table is made)");
  if (dram_bytes == 0) return Status(StatusCode::kInvalidArgument, "dram of 0 bytes");
  if (tiers_.every_row_fits()) {
    if (dram_bytes >= tiers_.dram_bytes_for_all()) {
      tiers_.set_dram_target_bytes(dram_bytes);
      tiers_.set_dram_bytes(dram_bytes);
      return Status::ok();
    }
    quiet();
  }
  TE_RETURN_IF_ERROR(check(dram_bytes));
  tiers_.set_dram_target_bytes(dram_bytes);
  batches_to_rest_ = 0;
  note_highest();
  if (tiers_.every_row_fits()) {
    planner_.revoke_all();
    tiers_.begin_evicting(planner_.mark_next());
    phase_ = Phase::kDisown;
    layout_ = 0;
  } else if (phase_ == Phase::kIdle || phase_ > Phase::kShrink) {
    const bool shrinks = is_over_target();
    if (!shrinks && phase_ == Phase::kIdle) {
      grow();
      for (size_t l = 0; l < tiers_.layouts(); ++l)
        layout(l).policy->set_limit(layout(l).directory.limit());
      return Status::ok();
    }
    layout_ = 0;
    has_seen_end_ = false;
    phase_ = shrinks && phase_ == Phase::kIdle ? Phase::kTidy : Phase::kShrink;
  }
  tiers_.set_resizing(true);
  tiers_.set_dram_bytes(
      std::max(dram_bytes, tiers_.dram_bytes_charged(tiers_.index_bytes_charged())));
  if (phase_ == Phase::kDisown || is_over_target()) return Status::ok();
  // More than rows were leaving for: the next batch has the slots already.
  grow();
  phase_ = has_stranded() ? Phase::kRescue : Phase::kTidyAgain;
  batches_waited_ = 0;
  return Status::ok();
}

bool Resizer::has_stranded() const {
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    const LayoutTier& tier = tiers_.layout(LayoutId(static_cast<uint16_t>(l)));
    if (tier.directory.stranded() != 0) return true;
  }
  return false;
}

Status Resizer::step(Quiet quiet) {
  if (phase_ == Phase::kIdle) return Status::ok();
  note_highest();  // a batch may have raised a limit for its rows
  if (batches_to_rest_ > 0) {
    --batches_to_rest_;
    return Status::ok();
  }
  bool is_done = false;
  switch (phase_) {
    case Phase::kIdle: return Status::ok();
    case Phase::kDisown: is_done = disown(); break;
    case Phase::kTidy:
    case Phase::kTidyAgain: is_done = tidy(); break;
    case Phase::kShrink: TE_RETURN_IF_ERROR(shrink(is_done)); break;
    case Phase::kRescue: is_done = rescue(quiet); break;
    case Phase::kGiveBack: is_done = give_back(); break;
  }
  if (!is_done) return Status::ok();
  layout_ = 0;
  if (phase_ == Phase::kRescue) grow();
  if (phase_ == Phase::kTidyAgain) {
    for (size_t l = 0; l < tiers_.layouts(); ++l)
      layout(l).policy->set_limit(layout(l).directory.limit());
    given_.assign(tiers_.layouts(), 0);
  }
  if (phase_ == Phase::kGiveBack) {
    phase_ = Phase::kIdle;
    highest_.clear();
    tiers_.set_resizing(false);
  } else {
    phase_ = static_cast<Phase>(static_cast<uint8_t>(phase_) + 1);
  }
  return Status::ok();
}

// The first layout that is not done, as for all of these: a call for each portion.
bool Resizer::disown() {
  while (layout_ < tiers_.layouts()) {
    const LayoutId id(static_cast<uint16_t>(layout_));
    if (tiers_.disown(id, kCandidatesAtOnce)) return false;
    ++layout_;
  }
  return true;
}

bool Resizer::tidy() {
  while (layout_ < tiers_.layouts()) {
    EvictionPolicy& policy = *layout(layout_).policy;
    if (!policy.touch_memory() || !policy.tidy(kCandidatesAtOnce)) return false;
    has_seen_end_ = !has_seen_end_;
    if (has_seen_end_) return false;  // parks tidy, too: only between two ends is all looked at
    ++layout_;
  }
  return true;
}

// Whether the limits in all take more than the target. One by one they may be as batches want them:
// a layout above its part has taken slots from another (Mover::make_room).
bool Resizer::is_over_target() const {
  return tiers_.dram_bytes_charged(tiers_.index_bytes_charged()) > tiers_.dram_target_bytes();
}

// Each layout gives a part of the portion, in proportion to what it has to give.
Status Resizer::shrink(bool& is_done) {
  is_done = !is_over_target();
  batches_waited_ = 0;
  if (is_done) return Status::ok();
  const std::vector<uint32_t> limits = limits_for(tiers_.dram_target_bytes());
  std::vector<uint32_t> over;
  uint64_t over_in_all = 0;
  for (size_t l = 0; l < limits.size(); ++l) {
    const uint32_t limit = layout(l).directory.limit();
    over.push_back(limit - std::min(limit, limits[l]));
    over_in_all += over[l];
  }
  const uint64_t rows = tiers_.config().rows_resized_at_once;
  bool is_stuck = over_in_all > 0;
  for (size_t l = 0; l < limits.size(); ++l) {
    const LayoutId id(static_cast<uint16_t>(l));
    LayoutTier& tier = layout(l);
    mover_.rescue(id, rows);
    if (over[l] == 0) continue;
    const uint64_t at_once =
        std::min(rows, std::max<uint64_t>(kBytesAtOnce / tier.stride_bytes, 1));
    const uint64_t share = std::max<uint64_t>(at_once * over[l] / over_in_all, 1);
    const uint32_t before = tier.directory.limit();
    tier.policy->tidy(kCandidatesAtOnce / 4);
    Status lowered =
        mover_.lower_limit(id, before - static_cast<uint32_t>(std::min<uint64_t>(share, over[l])));
    if (lowered.code() == StatusCode::kNoSpace) {
      batches_to_rest_ = kBatchesOfFullDisk;  // what needs the space says so
      return Status::ok();
    }
    TE_RETURN_IF_ERROR(std::move(lowered));
    is_stuck &= tier.directory.limit() == before;
  }
  tiers_.set_dram_bytes(std::max(tiers_.dram_target_bytes(),
                                 tiers_.dram_bytes_charged(tiers_.index_bytes_charged())));
  if (is_stuck) planner_.revoke_one();  // batches in flight have pinned all that is left
  is_done = over_in_all == 0;
  return Status::ok();
}

bool Resizer::rescue(Quiet quiet) {
  const auto rescue_some = [&] {
    bool none_left = true;
    for (size_t l = 0; l < tiers_.layouts(); ++l) {
      const LayoutId id(static_cast<uint16_t>(l));
      none_left &= mover_.rescue(id, tiers_.config().rows_resized_at_once);
    }
    return none_left;
  };
  if (rescue_some()) return true;
  if (++batches_waited_ <= kBatchesToWait) return false;
  quiet();
  planner_.revoke_all();
  return rescue_some();
}

// To the limits of the target, at once. Where a layout is above its part the others are raised when
// limits are divided anew (Engine::keep_house).
void Resizer::grow() {
  const std::vector<uint32_t> limits = limits_for(tiers_.dram_target_bytes());
  bool is_lent = false;
  for (size_t l = 0; l < limits.size(); ++l) is_lent |= limits[l] < layout(l).directory.limit();
  for (size_t l = 0; l < limits.size() && !is_lent; ++l) {
    SlotDirectory& directory = layout(l).directory;
    directory.set_limit(std::min(limits[l], directory.slots_max()));
  }
  note_highest();
  tiers_.set_dram_bytes(tiers_.dram_target_bytes());
}

bool Resizer::give_back() {
  bool is_done = true;
  for (size_t l = 0; l < tiers_.layouts(); ++l) {
    LayoutTier& tier = layout(l);
    const uint32_t begin = std::max(given_[l], tier.directory.limit());
    const uint32_t end = std::max(begin, std::min(highest_[l], begin + kSlotsGivenAtOnce));
    if (begin < end) tier.give_back(begin, end);
    is_done &= tier.policy->give_back(begin, end) && end >= highest_[l];
    given_[l] = end;
  }
  // Another limit may have brought the policy other memory.
  for (size_t l = 0; l < tiers_.layouts() && is_done; ++l)
    is_done = layout(l).policy->touch_memory();
  return is_done;
}

void Resizer::note_highest() {
  highest_.resize(tiers_.layouts(), 0);
  for (size_t l = 0; l < highest_.size(); ++l)
    highest_[l] = std::max(highest_[l], layout(l).directory.limit());
}

}  // namespace te
