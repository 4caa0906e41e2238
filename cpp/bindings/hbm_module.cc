#include "bindings/hbm_module.h"

#include "bindings/calls.h"
#include "table/copy_slots.h"

namespace nb = nanobind;

namespace te {
namespace {

nb::bytes to_bytes(const std::vector<SlotIndex>& slots) {
  static_assert(sizeof(SlotIndex) == sizeof(uint32_t));
  return nb::bytes(slots.data(), slots.size() * sizeof(SlotIndex));
}

std::span<const SlotIndex> slots_at(uintptr_t address, size_t count) {
  return {at<const SlotIndex>(address), count};
}

// [(layout, after, spill from, spill to, fill from, fill to), ...]
nb::list stage(const OwnedEngine& engine, PlanHandle& handle) {
  Plan& plan = handle.plan();
  run([&] { return engine->stage(plan); });
  nb::list list;
  for (size_t l = 0; l < plan.moves.size(); ++l) {
    const HbmMoves& moves = plan.moves[l];
    if (moves.spill_from.empty() && moves.fill_from.empty()) continue;
    list.append(nb::make_tuple(l, moves.after, to_bytes(moves.spill_from), to_bytes(moves.spill_to),
                               to_bytes(moves.fill_from), to_bytes(moves.fill_to)));
  }
  return list;
}

// [(layout, slots in dram of rows that found no room), ...] of a staged plan.
nb::list in_dram(PlanHandle& handle) {
  const Plan& plan = handle.plan();
  nb::list list;
  for (size_t l = 0; l < plan.in_dram.size(); ++l) {
    if (!plan.in_dram[l].empty()) list.append(nb::make_tuple(l, to_bytes(plan.in_dram[l])));
  }
  return list;
}

nb::tuple to_tuple(const Engine::Copies& copies) {
  return nb::make_tuple(to_bytes(copies.device), to_bytes(copies.dram));
}

nb::tuple newer_copies(const OwnedEngine& engine, uint16_t layout) {
  Engine::Copies copies;
  run([&] { return engine->newer_copies(LayoutId(layout), copies); });
  return to_tuple(copies);
}

nb::tuple stranded_copies(const OwnedEngine& engine, uint16_t layout, size_t rows) {
  Engine::Copies copies;
  run([&] { return engine->stranded_copies(LayoutId(layout), rows, copies); });
  return to_tuple(copies);
}

nb::tuple copies_of(const OwnedEngine& engine, uint32_t table, uintptr_t ids, size_t count,
                    bool only_newer) {
  Engine::Copies copies;
  run([&] {
    const std::span<const int64_t> span(at<const int64_t>(ids), count);
    return only_newer ? engine->newer_copies(TableId(table), span, copies)
                      : engine->copies(TableId(table), span, copies);
  });
  return to_tuple(copies);
}

void gather(const OwnedEngine& engine, uint16_t layout, uintptr_t dram, size_t count,
            uintptr_t rows) {
  run([&] { return engine->gather(LayoutId(layout), slots_at(dram, count), at<std::byte>(rows)); });
}

void scatter(const OwnedEngine& engine, uint16_t layout, uintptr_t dram, size_t count,
             uintptr_t rows) {
  run([&] {
    return engine->scatter(LayoutId(layout), slots_at(dram, count), at<const std::byte>(rows));
  });
}

void settle(const OwnedEngine& engine, uint16_t layout, uintptr_t dram, size_t count, bool left) {
  run([&] { return engine->settle(LayoutId(layout), slots_at(dram, count), left); });
}

// Steps of the features' tables, 0 where one is not updated.
std::vector<uint64_t> begin_update(const OwnedEngine& engine, PlanHandle& handle,
                                   const std::vector<bool>& is_updated) {
  Plan& plan = handle.plan();
  const std::vector<uint8_t> flags(is_updated.begin(), is_updated.end());
  std::vector<uint64_t> steps(flags.size());
  run([&] { return engine->begin_update(plan, flags, steps); });
  return steps;
}

// (layout, slots, bytes of one, where they are in memory or 0, bytes there).
nb::tuple hbm_layout(const OwnedEngine& engine, uint32_t table) {
  LayoutId layout;
  const Engine::HbmLayout hbm = engine->hbm_layout(TableId(table), &layout);
  return nb::make_tuple(layout.value, hbm.slots, hbm.stride_bytes,
                        reinterpret_cast<uintptr_t>(hbm.here), hbm.here_bytes);
}

// Bytes of the image, and where its arrays begin, in the order of plan_image.h.
nb::tuple image(const OwnedEngine& engine, PlanHandle& handle) {
  const PlanImage i = engine->image(handle.plan());
  return nb::make_tuple(i.bytes, i.occurrence_slots, i.bag_begin, i.bag_of, i.places, i.rows,
                        i.which, i.csr_begin, i.csr_bags, i.csr_occurrences, i.bag_scale);
}

// [(occurrence_first, occurrences, bag_first, bags, begin_first, occurrences in bags), ...]
nb::list features(PlanHandle& handle) {
  nb::list list;
  const Plan& plan = handle.plan();
  for (const FeaturePlan& f : plan.features)
    list.append(nb::make_tuple(f.occurrence_first, f.occurrences, f.bag_first, f.bags,
                               f.begin_first, plan.bag_begin[f.begin_first + f.bags]));
  return list;
}

// [(feature, first, count, before, its occurrences in csr_bags: first and end), ...]
nb::list ranges(PlanHandle& handle) {
  nb::list list;
  const Plan& plan = handle.plan();
  for (size_t i = 0; i < plan.acquired.ranges.size(); ++i) {
    const UniqueRange& r = plan.acquired.ranges[i];
    const uint32_t* begin = plan.csr_begin.data() + r.first + i;
    list.append(nb::make_tuple(r.feature, r.first, r.count, r.before, begin[0], begin[r.count]));
  }
  return list;
}

// [(layout, slots of the device that a staged plan uses), ...]
nb::list slots_of(PlanHandle& handle, const OwnedEngine& engine) {
  const Plan& plan = handle.plan();
  nb::list list;
  for (const UniqueRange& r : plan.acquired.ranges) {
    LayoutId layout;
    const uint32_t slots = engine->hbm_layout(r.table, &layout).slots;
    std::vector<SlotIndex> used;
    for (size_t u = r.first; u < r.first + r.count; ++u) {
      if (plan.places[u] < slots) used.emplace_back(plan.places[u]);
    }
    list.append(nb::make_tuple(layout.value, to_bytes(used)));
  }
  return list;
}

// By range: how many rows occur at most `often` times. `groups`: by feature, the first of its
// group.
std::vector<uint32_t> write_image(const OwnedEngine& engine, PlanHandle& handle,
                                  const std::vector<uint32_t>& groups, uint32_t often,
                                  uintptr_t to) {
  const Plan& plan = handle.plan();
  std::vector<uint32_t> seldom(plan.acquired.ranges.size(), 0);
  run([&] { return engine->write_image(plan, groups, often, at<std::byte>(to), seldom); });
  return seldom;
}

// Slot i of `target` becomes slot i of `source`, where a list of slots says no other.
void copy_slots(uintptr_t source, uintptr_t source_slots, uintptr_t target, uintptr_t target_slots,
                size_t count, size_t stride_bytes) {
  const WithoutGil without_gil;
  copy_slots_between({at<const std::byte>(source), at<const uint32_t>(source_slots)},
                     {at<std::byte>(target), at<const uint32_t>(target_slots)}, count,
                     stride_bytes);
}

}  // namespace

void add_hbm_functions(nb::class_<OwnedEngine>& engine, nb::module_& m) {
  engine.def("stage", &stage)
      .def("renormalise",
           [](const OwnedEngine& self, PlanHandle& handle,
              const std::vector<ForwardTuple>& tensors) {
             const std::vector<FeatureForward> forwards = to_forwards(tensors);
             Plan& plan = handle.plan();
             run([&] { return self->renormalise(plan, forwards); });
           })
      .def("pooled",
           [](const OwnedEngine& self, PlanHandle& handle) {
             Plan& plan = handle.plan();
             run([&] { return self->pooled(plan); });
           })
      .def("begin_update", &begin_update)
      .def_prop_ro("releases",
                   [](const OwnedEngine& self) {
                     const WithoutGil without_gil;
                     return self->releases();
                   })
      .def("newer_copies", &newer_copies)
      .def("copies_of", &copies_of)
      .def("gather", &gather)
      .def("scatter", &scatter)
      .def("settle", &settle)
      .def("drop_unused", [](const OwnedEngine& self) { run([&] { return self->drop_unused(); }); })
      .def("stranded_copies", &stranded_copies)
      .def("drop_stranded",
           [](const OwnedEngine& self) { run([&] { return self->drop_stranded(); }); })
      .def("hbm_layout", &hbm_layout)
      .def("in_dram", [](const OwnedEngine&, PlanHandle& handle) { return in_dram(handle); })
      .def("image", &image)
      .def("features", [](const OwnedEngine&, PlanHandle& handle) { return features(handle); })
      .def("ranges", [](const OwnedEngine&, PlanHandle& handle) { return ranges(handle); })
      .def("slots_of",
           [](const OwnedEngine& self, PlanHandle& handle) { return slots_of(handle, self); })
      .def("write_image", &write_image);
  m.def("copy_slots", &copy_slots);
}

}  // namespace te
