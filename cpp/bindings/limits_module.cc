#include "bindings/limits_module.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/calls.h"
#include "limits/drive_limits.h"
#include "limits/memory_limits.h"

namespace nb = nanobind;

namespace te {
namespace {

using TimingTuple = std::tuple<double, uint64_t>;  // seconds, bytes
// requests, bytes, latency p50 and p99 in microseconds
using IoTuple = std::tuple<uint64_t, uint64_t, double, double>;

TimingTuple stream(MemoryLimits& limits, MemoryLimits::Stream kind, size_t threads) {
  const WithoutGil without_gil;
  const Timing timing = limits.stream(kind, threads);
  return {timing.seconds, timing.bytes};
}

TimingTuple rows(MemoryLimits& limits, MemoryLimits::Access access, size_t ahead_rows,
                 int cache_level, size_t threads) {
  const WithoutGil without_gil;
  const Timing timing = limits.rows(access, {ahead_rows, cache_level}, threads);
  return {timing.seconds, timing.bytes};
}

IoTuple to_tuple(const IoStats& s) {
  return {s.requests, s.bytes, s.latency_p50_us, s.latency_p99_us};
}

std::unique_ptr<DriveLimits> make_drive(const std::string& directory, uint64_t bytes) {
  std::unique_ptr<DriveLimits> drive;
  run([&] {
    auto created = DriveLimits::create(directory, bytes);
    if (!created) return created.status();
    drive = created.take();
    return Status::ok();
  });
  return drive;
}

// (seconds, reads, writes) of one job.
std::tuple<double, IoTuple, IoTuple> run_job(DriveLimits& drive, const DriveJob& job) {
  DriveTiming timing;
  run([&] {
    auto done = drive.run(job);
    if (!done) return done.status();
    timing = done.take();
    return Status::ok();
  });
  return {timing.seconds, to_tuple(timing.reads), to_tuple(timing.writes)};
}

std::vector<double> sync_us(DriveLimits& drive, double seconds) {
  std::vector<double> times_us;
  run([&] {
    auto done = drive.sync_us(seconds);
    if (!done) return done.status();
    times_us = done.take();
    return Status::ok();
  });
  return times_us;
}

DriveJob reads_of(size_t block_bytes, size_t depth, size_t threads, double seconds,
                  DriveJob::Order order) {
  return {.read_order = order,
          .read_block_bytes = block_bytes,
          .read_depth = depth,
          .threads = threads,
          .seconds = seconds};
}

void add_memory(nb::module_& m) {
  nb::class_<MemoryLimits>(m, "MemoryLimits")
      .def("__init__",
           [](MemoryLimits* self, size_t arena_bytes, size_t threads) {
             const WithoutGil without_gil;
             new (self) MemoryLimits(arena_bytes, threads);
           })
      .def("read",
           [](MemoryLimits& self, size_t threads) {
             return stream(self, MemoryLimits::Stream::kRead, threads);
           })
      .def("copy",
           [](MemoryLimits& self, size_t threads) {
             return stream(self, MemoryLimits::Stream::kCopy, threads);
           })
      .def("triad",
           [](MemoryLimits& self, size_t threads) {
             return stream(self, MemoryLimits::Stream::kTriad, threads);
           })
      .def("draw",
           [](MemoryLimits& self, size_t row_bytes, size_t count, uint64_t seed) {
             const WithoutGil without_gil;
             return self.draw(row_bytes, count, seed);
           })
      .def("gather",
           [](MemoryLimits& self, size_t ahead_rows, int cache_level, size_t threads) {
             return rows(self, MemoryLimits::Access::kGather, ahead_rows, cache_level, threads);
           })
      .def("update", [](MemoryLimits& self, size_t ahead_rows, int cache_level, size_t threads) {
        return rows(self, MemoryLimits::Access::kUpdate, ahead_rows, cache_level, threads);
      });
}

}  // namespace

void add_limits_functions(nb::module_& m) {
  add_memory(m);
  nb::class_<DriveLimits>(m, "DriveLimits")
      .def_prop_ro("is_direct", &DriveLimits::is_direct)
      .def_prop_ro("written_bytes", &DriveLimits::written_bytes)
      .def("read_random",
           [](DriveLimits& self, size_t block_bytes, size_t depth, size_t threads, double seconds) {
             return run_job(
                 self, reads_of(block_bytes, depth, threads, seconds, DriveJob::Order::kRandom));
           })
      .def("read_sequential",
           [](DriveLimits& self, size_t block_bytes, size_t depth, double seconds) {
             return run_job(self,
                            reads_of(block_bytes, depth, 1, seconds, DriveJob::Order::kSequential));
           })
      .def("write_sequential",
           [](DriveLimits& self, size_t block_bytes, size_t depth, double seconds) {
             return run_job(
                 self,
                 {.write_block_bytes = block_bytes, .write_depth = depth, .seconds = seconds});
           })
      .def("read_and_write",
           [](DriveLimits& self, size_t read_block_bytes, size_t read_depth,
              size_t write_block_bytes, size_t write_depth, double read_share, double seconds) {
             return run_job(self, {.read_block_bytes = read_block_bytes,
                                   .read_depth = read_depth,
                                   .write_block_bytes = write_block_bytes,
                                   .write_depth = write_depth,
                                   .read_share = read_share,
                                   .seconds = seconds});
           })
      .def("sync_us", &sync_us);
  m.def("make_drive_limits", &make_drive);
}

}  // namespace te
