// IoMeter: what an engine's requests cost: counts, bytes, latencies and how many were in flight.
//
// Latencies fall into buckets an eighth of an octave wide, so a percentile is right to 9%.
// Thread-safety: any thread may record; a snapshot is taken counter by counter. Cost: three relaxed
// atomic additions a request.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace te {

// Totals since the engine was made. Latency: from the start of a request to its end.
struct IoStats {
  uint64_t requests = 0;
  uint64_t bytes = 0;
  double latency_p50_us = 0;
  double latency_p99_us = 0;
  double queue_depth_mean = 0;  // requests in flight, as a request that ends finds them
};

class IoMeter {
 public:
  // `in_flight` counts the request itself.
  void record(size_t bytes, uint64_t ns, size_t in_flight);
  IoStats snapshot() const;

 private:
  static constexpr int kBucketsPerOctave = 8;
  static constexpr int kOctaves = 40;  // up to 2^40 ns, 18 minutes
  static size_t bucket_of(uint64_t ns);
  static double microseconds_of(size_t bucket);

  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint64_t> in_flight_{0};
  std::array<std::atomic<uint64_t>, kOctaves * kBucketsPerOctave> counts_{};
};

}  // namespace te
