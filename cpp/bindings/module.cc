// The Python module tiered_emb._core: the engine behind plain integers (addresses of tensors) and
// tuples.
//
// Internal: the Python package checks types, dtypes and shapes and keeps tensors alive during a
// call; nothing here is public. The GIL is released around every call into the core. A Status
// becomes the Python exception of its code (status.h).
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/cache_module.h"
#include "bindings/calls.h"
#include "bindings/device_module.h"
#include "bindings/hbm_module.h"
#include "bindings/limits_module.h"
#include "bindings/owned_engine.h"
#include "log/checkpoint_copy.h"
#include "log/log_store.h"
#include "table/threads.h"

namespace nb = nanobind;

namespace te {
namespace {

// (table, ids, count, is64, offsets, count, is64, include_last_offset, bag_size, bags, padding_id,
//  is_weighted)
using FeatureTuple = std::tuple<uint32_t, uintptr_t, size_t, bool, uintptr_t, size_t, bool, bool,
                                size_t, size_t, int64_t, bool>;
// (grad, sample_weights, sample_weights_grad, row_grad, scale_by_count)
using BackwardTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, bool>;
// (lr, eps, beta1, beta2, lr_decay, weight_decay)
using HyperTuple = std::tuple<double, double, double, double, double, double>;
// (name, rows, dim, dtype, mode, init kind, a, b, state value, seed, zero row, dram share)
using TableTuple = std::tuple<std::string, uint64_t, uint32_t, int, int, int, float, float, float,
                              uint64_t, int64_t, double>;

Hyperparameters to_hyper(const HyperTuple& h) {
  return {std::get<0>(h), std::get<1>(h), std::get<2>(h),
          std::get<3>(h), std::get<4>(h), std::get<5>(h)};
}

FeatureInput to_input(const FeatureTuple& f) {
  FeatureInput input;
  input.table = TableId(std::get<0>(f));
  input.ids = at<void>(std::get<1>(f));
  input.ids_count = std::get<2>(f);
  input.ids_are_64 = std::get<3>(f);
  input.offsets = at<void>(std::get<4>(f));
  input.offsets_count = std::get<5>(f);
  input.offsets_are_64 = std::get<6>(f);
  input.include_last_offset = std::get<7>(f);
  input.bag_size = std::get<8>(f);
  input.bags = std::get<9>(f);
  input.padding_id = std::get<10>(f);
  input.is_weighted = std::get<11>(f);
  return input;
}

std::vector<FeatureInput> to_inputs(const std::vector<FeatureTuple>& features) {
  std::vector<FeatureInput> inputs;
  inputs.reserve(features.size());
  for (const FeatureTuple& feature : features) inputs.push_back(to_input(feature));
  return inputs;
}

TableConfig to_table(const TableTuple& t) {
  TableConfig config;
  config.name = std::get<0>(t);
  config.rows = std::get<1>(t);
  config.dim = std::get<2>(t);
  config.dtype = static_cast<DType>(std::get<3>(t));
  config.mode = static_cast<PoolMode>(std::get<4>(t));
  config.init = {static_cast<InitSpec::Kind>(std::get<5>(t)), std::get<6>(t), std::get<7>(t),
                 std::get<8>(t)};
  config.seed = std::get<9>(t);
  config.zero_row = std::get<10>(t);
  config.dram_share = std::get<11>(t);
  return config;
}

std::unique_ptr<OwnedEngine> make_engine(const std::vector<TableTuple>& tables, int optimizer,
                                         const std::string& policy, uint64_t dram_bytes,
                                         const std::string& ssd_path, uint64_t ssd_capacity_bytes,
                                         double ssd_space_bound_ratio, bool ssd_resume,
                                         bool ssd_newest, bool ssd_read_only, uint64_t hbm_bytes,
                                         bool hbm_on_host, uint64_t pinned_bytes,
                                         const std::string& metadata) {
  EngineConfig config;
  for (const TableTuple& table : tables) config.tables.push_back(to_table(table));
  config.optimizer = static_cast<OptimizerKind>(optimizer);
  config.policy = policy;
  config.dram_bytes = dram_bytes;
  config.ssd_path = ssd_path;
  config.ssd_capacity_bytes = ssd_capacity_bytes;
  config.ssd_space_bound_ratio = ssd_space_bound_ratio;
  config.ssd_resume = ssd_resume;
  config.ssd_newest = ssd_newest;
  config.ssd_read_only = ssd_read_only;
  config.hbm_bytes = hbm_bytes;
  config.hbm_on_host = hbm_on_host;
  config.pinned_bytes = pinned_bytes;
  config.app_metadata = metadata;
  std::unique_ptr<Engine> engine;
  run([&] {
    auto created = Engine::create(config);
    if (!created) return created.status();
    engine = created.take();
    return Status::ok();
  });
  return std::make_unique<OwnedEngine>(std::move(engine));
}

std::unique_ptr<PlanHandle> plan(nb::handle self, const std::vector<FeatureTuple>& features,
                                 bool will_update, bool may_be_prefetched) {
  const auto& engine = nb::cast<const OwnedEngine&>(self);
  const std::vector<FeatureInput> inputs = to_inputs(features);
  Plan* planned = nullptr;
  run([&] {
    auto result =
        engine->plan(inputs, will_update,
                     may_be_prefetched ? Engine::Prefetched::kMaybe : Engine::Prefetched::kNo);
    if (!result) return result.status();
    planned = result.value();
    return Status::ok();
  });
  return std::make_unique<PlanHandle>(nb::borrow(self), engine, *planned);
}

uint64_t announce(const OwnedEngine& engine, const std::vector<FeatureTuple>& features,
                  bool will_update) {
  const std::vector<FeatureInput> inputs = to_inputs(features);
  uint64_t ticket = 0;
  run([&] {
    auto pushed = engine->announce(inputs, will_update);
    if (!pushed) return pushed.status();
    ticket = pushed.value();
    return Status::ok();
  });
  return ticket;
}

void prefetch(const OwnedEngine& engine, uint64_t ticket_last) {
  const WithoutGil without_gil;
  engine->prefetch(ticket_last);
}

bool is_prefetched(const OwnedEngine& engine, uint64_t ticket) {
  const WithoutGil without_gil;
  return engine->is_prefetched(ticket);
}

size_t cancel_prefetch(const OwnedEngine& engine, uint64_t ticket_last) {
  const WithoutGil without_gil;
  return engine->cancel_prefetch(ticket_last);
}

void lookup(const OwnedEngine& engine, const std::vector<FeatureTuple>& features,
            const std::vector<ForwardTuple>& tensors) {
  const std::vector<FeatureInput> inputs = to_inputs(features);
  const std::vector<FeatureForward> forwards = to_forwards(tensors);
  run([&] { return engine->lookup(inputs, forwards); });
}

void forward(const OwnedEngine& engine, PlanHandle& handle,
             const std::vector<ForwardTuple>& features) {
  const std::vector<FeatureForward> forwards = to_forwards(features);
  Plan& plan = handle.plan();
  run([&] { return engine->forward(plan, forwards); });
}

void backward(const OwnedEngine& engine, PlanHandle& handle,
              const std::vector<BackwardTuple>& features, const HyperTuple& hyper,
              bool check_finite) {
  std::vector<FeatureBackward> backwards;
  backwards.reserve(features.size());
  for (const auto& [grad, weights, weights_grad, row_grad, by_count] : features)
    backwards.push_back(
        {at<void>(grad), at<void>(weights), at<void>(weights_grad), at<float>(row_grad), by_count});
  Plan& plan = handle.plan();
  run([&] { return engine->backward(plan, backwards, to_hyper(hyper), check_finite); });
}

// Number of unique rows of each feature.
std::vector<size_t> unique_counts(PlanHandle& handle) {
  std::vector<size_t> counts;
  for (const FeaturePlan& feature : handle.plan().features) counts.push_back(feature.uniques);
  return counts;
}

// Copies the unique rows of a feature, numbered within its table, to int64 at `out`.
void unique_rows(PlanHandle& handle, size_t feature_index, uintptr_t out) {
  const Plan& plan = handle.plan();
  const FeaturePlan& feature = plan.features.at(feature_index);
  const uint64_t first_row = handle.engine()->first_row(feature.table).value;
  auto* to = at<int64_t>(out);
  for (size_t r = feature.range_first; r < feature.range_first + feature.ranges; ++r) {
    const UniqueRange& range = plan.acquired.ranges[r];
    for (size_t u = range.first; u < range.first + range.count; ++u)
      *to++ = static_cast<int64_t>(plan.acquired.rows[u].value - first_row);
  }
}

void resize(const OwnedEngine& engine, uint64_t dram_bytes) {
  run([&] { return engine->resize(dram_bytes); });
}

bool is_resizing(const OwnedEngine& engine) {
  const WithoutGil without_gil;
  return engine->is_resizing();
}

void add_dram_stats(nb::dict& d, const EngineStats& s) {
  d["slots"] = s.slots;
  d["resident_rows"] = s.resident_rows;
  d["dirty_rows"] = s.dirty_rows;
  d["dram_bytes"] = s.dram_bytes;
  d["dram_target_bytes"] = s.dram_target_bytes;
  d["dram_resizing"] = s.is_resizing;
}

nb::dict stats(const OwnedEngine& engine) {
  EngineStats s;
  {
    const WithoutGil without_gil;
    s = engine->stats();
  }
  nb::dict d;
  d["steps"] = s.planner.plans;
  d["lookups"] = s.planner.lookups;
  d["lookup_hits"] = s.planner.lookup_hits;
  d["unique_rows"] = s.planner.unique_rows;
  d["missing_rows"] = s.planner.missing_rows;
  d["piggybacked_rows"] = s.planner.piggybacked_rows;
  d["plans_revoked"] = s.planner.plans_revoked;
  d["rows_filled_from_ssd"] = s.mover.fills_read;
  d["rows_filled_initial"] = s.mover.fills_initialised;
  d["rows_spilled_dirty"] = s.mover.spills_written;
  d["rows_spilled_clean"] = s.mover.spills_dropped;
  d["hbm_rows_hit"] = s.hbm.rows_hit;
  d["hbm_rows_filled"] = s.hbm.rows_filled;
  d["hbm_rows_spilled"] = s.hbm.rows_spilled;
  d["hbm_rows_in_dram"] = s.hbm.rows_in_dram;
  d["hbm_slots"] = s.hbm_slots;
  d["hbm_rows"] = s.hbm_rows;
  d["hbm_dirty_rows"] = s.hbm_dirty_rows;
  d["pinned_bytes"] = s.pinned_bytes;
  add_dram_stats(d, s);
  d["total_rows"] = s.rows_total;
  d["total_row_bytes"] = s.row_bytes_total;
  d["index_bytes"] = s.index_bytes;
  d["lookahead_bytes"] = s.lookahead_bytes;
  d["ssd_rows_read"] = s.log.rows_read;
  d["ssd_rows_from_write_buffer"] = s.log.rows_from_write_buffer;
  d["ssd_blocks_read"] = s.log.blocks_read;
  d["ssd_read_bytes"] = s.log.read_bytes;
  d["ssd_rows_written"] = s.log.rows_written;
  d["ssd_row_written_bytes"] = s.log.row_written_bytes;
  d["ssd_written_bytes"] = s.log.written_bytes;
  d["ssd_checkpoint_written_bytes"] = s.log.checkpoint_written_bytes;
  d["ssd_rows_reclaimed"] = s.log.rows_reclaimed;
  d["ssd_reclaim_read_bytes"] = s.log.reclaim_read_bytes;
  d["ssd_segments_reclaimed"] = s.log.segments_reclaimed;
  d["ssd_segments"] = s.log.segments_now;
  d["ssd_segments_pinned"] = s.log.segments_pinned_now;
  d["ssd_segments_damaged"] = s.log.segments_damaged_now;
  d["ssd_used_bytes"] = s.log.used_bytes_now;
  d["ssd_live_bytes"] = s.log.live_bytes_now;
  d["ssd_rows_bytes"] = s.log_rows_bytes;
  d["ssd_io_engine"] = s.io_engine;
  d["ssd_read_latency_p50_us"] = s.reads.latency_p50_us;
  d["ssd_read_latency_p99_us"] = s.reads.latency_p99_us;
  d["ssd_read_queue_depth"] = s.reads.queue_depth_mean;
  d["ssd_write_latency_p50_us"] = s.writes.latency_p50_us;
  d["ssd_write_latency_p99_us"] = s.writes.latency_p99_us;
  d["prefetched_batches"] = s.prefetch.batches;
  d["prefetched_batches_ready"] = s.prefetch.batches_ready;
  d["prefetched_batches_missed"] = s.prefetch.batches_missed;
  d["prefetch_stall_ns"] = s.prefetch.stall_ns;
  d["plan_ns"] = s.plan_ns;
  d["plan_ahead_ns"] = s.plan_ahead_ns;
  d["upkeep_ns"] = s.upkeep_ns;
  d["move_ns"] = s.move_ns;
  d["forward_ns"] = s.forward_ns;
  d["backward_ns"] = s.backward_ns;
  return d;
}

template <class T>
nb::object to_numpy(std::vector<T> values) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  const size_t shape[] = {owned->size()};
  T* const data = owned->data();
  const nb::capsule owner(owned.release(),
                          [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(data, 1, shape, owner));
}

// (rate, batch of each entry, its table, its id, batches that the sample spans)
nb::tuple lookup_sample(const OwnedEngine& engine) {
  LookupSample::Copy sample;
  std::vector<int64_t> batches;
  std::vector<int32_t> tables;
  std::vector<int64_t> ids;
  {
    const WithoutGil without_gil;
    sample = engine->lookup_sample();
    for (size_t b = 0; b < sample.in_batch.size(); ++b)
      batches.insert(batches.end(), sample.in_batch[b],
                     static_cast<int64_t>(sample.first_batch + b));
    for (const RowId row : sample.rows) {
      const auto [table, id] = engine->place_of(row);
      tables.push_back(static_cast<int32_t>(table.value));
      ids.push_back(static_cast<int64_t>(id));
    }
  }
  return nb::make_tuple(sample.rate, to_numpy(std::move(batches)), to_numpy(std::move(tables)),
                        to_numpy(std::move(ids)), sample.in_batch.size());
}

uint64_t hold_lookup_sample(const OwnedEngine& engine, std::optional<bool> watching) {
  const WithoutGil without_gil;
  return engine->hold_lookup_sample(watching);
}

void read_rows(const OwnedEngine& engine, uint32_t table, uintptr_t ids, size_t count,
               uintptr_t weights, uintptr_t state) {
  run([&] {
    return engine->read_rows(TableId(table), {at<const int64_t>(ids), count}, at<void>(weights),
                             at<float>(state));
  });
}

void write_rows(const OwnedEngine& engine, uint32_t table, uintptr_t ids, size_t count,
                uintptr_t weights, uintptr_t state) {
  run([&] {
    return engine->write_rows(TableId(table), {at<const int64_t>(ids), count}, at<void>(weights),
                              at<float>(state));
  });
}

// (segment, blocks used, live bytes) of each.
nb::list segments(const OwnedEngine& engine) {
  nb::list list;
  for (const SegmentInfo& s : engine->segments())
    list.append(nb::make_tuple(s.segment.value, s.blocks_used, s.live_bytes));
  return list;
}

// (path, block, blocks, what, [(table, id), ...]) of each fault of a segment.
nb::list verify(const OwnedEngine& engine, uint32_t segment) {
  std::vector<SegmentFault> faults;
  std::string path;
  run([&] { return engine->verify(SegmentId(segment), faults, &path); });
  nb::list list;
  for (const SegmentFault& fault : faults) {
    nb::list rows;
    for (RowId row : fault.rows) {
      const auto [table, id] = engine->place_of(row);
      rows.append(nb::make_tuple(table.value, id));
    }
    list.append(nb::make_tuple(path, fault.block, fault.blocks, fault.what, rows));
  }
  return list;
}

size_t known_rows(const OwnedEngine& engine, uint32_t table, int64_t first, uintptr_t ids,
                  size_t count) {
  size_t found = 0;
  run([&] {
    auto known = engine->known_rows(TableId(table), first, {at<int64_t>(ids), count});
    if (!known) return known.status();
    found = known.value();
    return Status::ok();
  });
  return found;
}

// 0, 1 or 2 (Engine::Tier) of each id, as bytes at `tiers`.
void locate(const OwnedEngine& engine, uint32_t table, uintptr_t ids, size_t count,
            uintptr_t tiers) {
  run([&] {
    return engine->locate(TableId(table), {at<const int64_t>(ids), count}, at<Engine::Tier>(tiers));
  });
}

// `applied`: an int64 that is told how many of the ids have been, also if it raises.
void apply_gradients(const OwnedEngine& engine, uint32_t table, uintptr_t ids, size_t count,
                     uintptr_t gradients, const HyperTuple& hyper, bool continues,
                     uintptr_t applied) {
  run([&] {
    size_t rows = 0;
    Status done = engine->apply_gradients(TableId(table), {at<const int64_t>(ids), count},
                                          at<float>(gradients), to_hyper(hyper), continues, &rows);
    *at<int64_t>(applied) = static_cast<int64_t>(rows);
    return done;
  });
}

// The application's text in a store's last checkpoint, and the update counts before it are skipped.
nb::bytes store_metadata(const std::string& path) {
  std::string blob;
  run([&] {
    auto metadata = LogStore::read_metadata(path);
    if (!metadata) return metadata.status();
    blob = app_metadata_of(metadata.value());
    return Status::ok();
  });
  return nb::bytes(blob.data(), blob.size());
}

}  // namespace
}  // namespace te

NB_MODULE(_core, m) {
  using namespace te;  // NOLINT: names of the core only
  // A graph that is alive when the interpreter exits holds a plan; that is no leak of ours.
  nb::set_leak_warnings(false);
  add_errors(m);
  nb::class_<PlanHandle>(m, "Plan")
      .def("release", &PlanHandle::release)
      .def_prop_ro("is_released", &PlanHandle::is_released)
      .def_prop_ro("is_staged", [](PlanHandle& handle) { return handle.plan().is_staged; })
      .def("unique_counts", &unique_counts)
      .def("unique_rows", &unique_rows);
  nb::class_<OwnedEngine> engine(m, "Engine");
  engine.def("lookup", &lookup)
      .def("plan", &plan)
      .def("announce", &announce)
      .def("prefetch", &prefetch)
      .def("cancel_prefetch", &cancel_prefetch)
      .def("is_prefetched", &is_prefetched)
      .def("forward", &forward)
      .def("backward", &backward)
      .def("read_rows", &read_rows)
      .def("write_rows", &write_rows)
      .def("apply_gradients", &apply_gradients)
      .def("resize", &resize)
      .def_prop_ro("is_resizing", &is_resizing)
      .def("flush", [](const OwnedEngine& engine) { run([&] { return engine->flush(); }); })
      .def("begin_save",
           [](const OwnedEngine& engine, const std::string& path) {
             run([&] { return engine->begin_save(path); });
           })
      .def("finish_save",
           [](const OwnedEngine& engine, const std::string& path, const std::string& previous) {
             run([&] { return engine->finish_save(path, previous); });
           })
      .def("known_rows", &known_rows)
      .def("locate", &locate)
      .def("segments", &segments)
      .def("verify", &verify)
      .def("close",
           [](const OwnedEngine& engine) {
             if (engine.is_mine()) run([&] { return engine->close(); });
           })
      .def("discard", [](const OwnedEngine& engine) { run([&] { return engine->discard(); }); })
      .def_prop_ro(
          "is_closed",
          [](const OwnedEngine& engine) { return !engine.is_usable() || engine->is_closed(); })
      .def_prop_ro("looks_ahead", [](const OwnedEngine& engine) { return engine->looks_ahead(); })
      .def("stats", &stats)
      .def("lookup_sample", &lookup_sample)
      .def("hold_lookup_sample", &hold_lookup_sample, nb::arg("watching").none())
      .def("step",
           [](const OwnedEngine& engine, uint32_t table) { return engine->step(TableId(table)); })
      .def("set_step", [](const OwnedEngine& engine, uint32_t table, uint64_t step) {
        engine->set_step(TableId(table), step);
      });
  m.def("make_engine", &make_engine);
  m.def("store_metadata", &store_metadata);
  m.def("copy_checkpoint",
        [](const std::string& from, const std::string& to, const std::string& previous) {
          run([&] { return copy_checkpoint(from, to, previous); });
        });
  m.def("store_exists", [](const std::string& path) { return LogStore::exists(path); });
  m.def("set_num_threads", [](size_t threads) { set_num_threads(threads); });
  m.def("get_num_threads", [] { return num_threads(); });
  m.def("isa", [] { return kernels().isa; });
  add_hbm_functions(engine, m);
  add_cache_functions(m);
  add_device_functions(m);
  add_limits_functions(m);
}
