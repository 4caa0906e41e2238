// Engine: what the device layer asks of it. Bytes on the device are that layer's; decisions are
// made here.
#include "base/check.h"
#include "table/copy_slots.h"
#include "table/engine_turn.h"
#include "table/threads.h"

namespace te {
namespace {

Status newer_on_device() {
  return Status(StatusCode::kInvalidArgument,
                "rows on the device are newer than in dram: they have to come down first");
}

const uint32_t* raw(std::span<const SlotIndex> slots) {
  return reinterpret_cast<const uint32_t*>(slots.data());
}

}  // namespace

Status Engine::check_newest_in_dram() const {
  return hbm_.dirty_rows() + hbm_.unsettled_rows() == 0 ? Status::ok() : newer_on_device();
}

template <class F>
void Engine::visit_copies(TableId table_id, std::span<const int64_t> ids, F f) const {
  const Table& table = tiers_->table(table_id);
  HbmTier* hbm = tiers_->layout(table.layout).hbm.get();
  if (hbm == nullptr) return;
  for (int64_t id : ids) {
    if (static_cast<uint64_t>(id) >= table.config.rows) continue;
    const LocationWord word =
        tiers_->index().get(RowId(table.first_row.value + static_cast<uint64_t>(id)));
    if (!word.is_slot()) continue;
    const HbmTier::Place place = hbm->place(word.slot_index());
    if (place.is_on_device()) f(*hbm, place.slot(), word.slot_index());
  }
}

Status Engine::check_newest_in_dram(TableId table, std::span<const int64_t> ids) const {
  bool newest = hbm_.unsettled_rows() == 0;
  if (hbm_.dirty_rows() != 0) {
    visit_copies(table, ids, [&](HbmTier& hbm, SlotIndex device, SlotIndex) {
      newest &= hbm.directory[device].dirty == 0;
    });
  }
  return newest ? Status::ok() : newer_on_device();
}

Status Engine::renormalise(Plan& plan, std::span<const FeatureForward> features) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  if (plan.state == Plan::State::kRevoked) TE_RETURN_IF_ERROR(reacquire(plan, turn));
  TE_CHECK(!plan.is_staged);
  executor_.renormalise(plan, features);
  return Status::ok();
}

Status Engine::stage(Plan& plan) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_CHECK(!plan.is_staged);
  if (hbm_.unsettled_rows() != 0) return newer_on_device();
  if (plan.state == Plan::State::kRevoked) {
    const bool was_pooled = plan.was_pooled;
    TE_RETURN_IF_ERROR(reacquire(plan, turn));
    if (was_pooled) planner_.wait(plan);
  }
  if (plan.state != Plan::State::kReady && plan.state != Plan::State::kWaiting)
    return Status(StatusCode::kInvalidArgument, "the plan of this batch has ended");
  hbm_.stage(plan, thread_pool());
  return Status::ok();
}

Status Engine::pooled(Plan& plan) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_CHECK(plan.is_staged);
  if (plan.will_update) planner_.wait(plan);
  return Status::ok();
}

Status Engine::begin_update(Plan& plan, std::span<const uint8_t> is_updated,
                            std::span<uint64_t> steps) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_CHECK(plan.is_staged && is_updated.size() == plan.features.size());
  executor_.begin_update(plan, is_updated, thread_pool());
  for (size_t f = 0; f < steps.size(); ++f)
    steps[f] = is_updated[f] != 0 ? tiers_->table(plan.features[f].table).step : 0;
  return Status::ok();
}

uint64_t Engine::releases() {
  std::lock_guard lock(mutex_);
  return hbm_.releases();
}

Status Engine::newer_copies(LayoutId layout, Copies& copies) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  hbm_.take_dirty(layout, copies.device, copies.dram);
  return Status::ok();
}

Status Engine::newer_copies(TableId table, std::span<const int64_t> ids, Copies& copies) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  visit_copies(table, ids, [&](HbmTier& hbm, SlotIndex device, SlotIndex dram) {
    if (!hbm_.take_dirty(hbm, device)) return;
    copies.device.push_back(device);
    copies.dram.push_back(dram);
  });
  return Status::ok();
}

Status Engine::copies(TableId table, std::span<const int64_t> ids, Copies& copies) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  visit_copies(table, ids, [&](HbmTier&, SlotIndex device, SlotIndex dram) {
    copies.device.push_back(device);
    copies.dram.push_back(dram);
  });
  return Status::ok();
}

// These three touch what no other thread does but at a close, which takes its turn.
Status Engine::gather(LayoutId layout, std::span<const SlotIndex> dram, std::byte* rows) {
  const std::lock_guard turn(turn_);
  TE_RETURN_IF_ERROR(check_open());
  const LayoutTier& tier = tiers_->layout(layout);
  copy_slots_between({tier.data(SlotIndex(0)), raw(dram)}, {rows, nullptr}, dram.size(),
                     tier.stride_bytes);
  return Status::ok();
}

Status Engine::write_image(const Plan& plan, std::span<const uint32_t> groups, uint32_t often,
                           std::byte* to, std::span<uint32_t> seldom) {
  const std::lock_guard turn(turn_);
  TE_RETURN_IF_ERROR(check_open());
  write_plan_image(plan, *tiers_, groups, often, to, seldom, thread_pool());
  return Status::ok();
}

Status Engine::scatter(LayoutId layout, std::span<const SlotIndex> dram, const std::byte* rows) {
  const std::lock_guard turn(turn_);
  TE_RETURN_IF_ERROR(check_open());
  const LayoutTier& tier = tiers_->layout(layout);
  copy_slots_between({rows, nullptr}, {tier.data(SlotIndex(0)), raw(dram)}, dram.size(),
                     tier.stride_bytes);
  return Status::ok();
}

Status Engine::settle(LayoutId layout, std::span<const SlotIndex> dram, bool left) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  hbm_.settle(layout, dram, left, thread_pool());
  if (left) prefetch_.slots_released();
  return Status::ok();
}

Status Engine::drop_unused() {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  hbm_.drop_unused(thread_pool());
  prefetch_.slots_released();
  return Status::ok();
}

Status Engine::stranded_copies(LayoutId layout, size_t rows, Copies& copies) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  hbm_.take_stranded(layout, rows, copies.device, copies.dram);
  return Status::ok();
}

Status Engine::drop_stranded() {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  if (hbm_.unsettled_rows() != 0) return newer_on_device();
  hbm_.drop_stranded(thread_pool());
  return Status::ok();
}

Engine::HbmLayout Engine::hbm_layout(TableId table, LayoutId* layout) {
  std::lock_guard lock(mutex_);
  *layout = tiers_->table(table).layout;
  const LayoutTier& tier = tiers_->layout(*layout);
  HbmLayout hbm{tier.hbm == nullptr ? 0 : tier.hbm->slots(), tier.stride_bytes};
  if (tiers_->config().hbm_on_host) {
    hbm.here = tier.arena.data();
    hbm.here_bytes = tier.arena.bytes();
  }
  return hbm;
}

}  // namespace te
