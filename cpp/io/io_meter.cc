#include "io/io_meter.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace te {

size_t IoMeter::bucket_of(uint64_t ns) {
  ns = std::max<uint64_t>(ns, kBucketsPerOctave);
  const int octave = 63 - std::countl_zero(ns);
  const uint64_t part = (ns >> (octave - 3)) - kBucketsPerOctave;  // the next three bits
  const size_t bucket = static_cast<size_t>(octave) * kBucketsPerOctave + part;
  return std::min<size_t>(bucket, kOctaves * kBucketsPerOctave - 1);
}

double IoMeter::microseconds_of(size_t bucket) {  // its middle
  const double octave = static_cast<double>(bucket / kBucketsPerOctave);
  const double part = static_cast<double>(bucket % kBucketsPerOctave) + 0.5;
  return std::ldexp(1 + part / kBucketsPerOctave, static_cast<int>(octave)) / 1000;
}

void IoMeter::record(size_t bytes, uint64_t ns, size_t in_flight) {
  counts_[bucket_of(ns)].fetch_add(1, std::memory_order_relaxed);
  bytes_.fetch_add(bytes, std::memory_order_relaxed);
  in_flight_.fetch_add(in_flight, std::memory_order_relaxed);
}

IoStats IoMeter::snapshot() const {
  IoStats stats;
  std::array<uint64_t, kOctaves * kBucketsPerOctave> counts;
  for (size_t b = 0; b < counts.size(); ++b) {
    counts[b] = counts_[b].load(std::memory_order_relaxed);
    stats.requests += counts[b];
  }
  stats.bytes = bytes_.load(std::memory_order_relaxed);
  if (stats.requests == 0) return stats;
  const auto total = static_cast<double>(stats.requests);
  stats.queue_depth_mean = static_cast<double>(in_flight_.load(std::memory_order_relaxed)) / total;
  const auto percentile = [&](double share) {
    uint64_t seen = 0;
    for (size_t b = 0; b < counts.size(); ++b) {
      seen += counts[b];
      if (static_cast<double>(seen) >= share * total) return microseconds_of(b);
    }
    return 0.0;
  };
  stats.latency_p50_us = percentile(0.5);
  stats.latency_p99_us = percentile(0.99);
  return stats;
}

}  // namespace te
