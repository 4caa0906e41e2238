// DriveLimits: how fast the drive under a directory is read, written and synced through the I/O
// engines of the store, at a block size and queue depth.
//
// One call is one repetition; the caller takes medians, and may stop between calls. The engine is
// the one that the store would take (make_io_engine), the files are direct where the file system
// allows it. Everything written is random, so that a drive that compresses gains nothing, and no
// two pages are alike. The files lose their names at once: whatever happens, none is left behind.
// Ownership: owns its files. Thread-safety: one caller. Invariant: writes go on where the last ones
// ended, around the file; nothing is read before all of it has been written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "io/io_engine.h"

namespace te {

// Reads and writes that go on together until the time is up.
struct DriveJob {
  enum class Order : uint8_t { kRandom, kSequential };
  Order read_order = Order::kRandom;
  size_t read_block_bytes = 0;
  size_t read_depth = 0;         // reads in flight, of all threads; 0: none
  size_t write_block_bytes = 0;  // writes are sequential
  size_t write_depth = 0;        // likewise
  double read_share = 1;         // bytes read, of all bytes, where there are both
  size_t threads = 1;            // each with its part of the depths
  double seconds = 0;
};

struct DriveTiming {
  double seconds = 0;
  IoStats reads;
  IoStats writes;
};

class DriveLimits {
 public:
  // A file of so many bytes (a multiple of 1 MiB). kNoSpace where there is no room for it.
  static Result<std::unique_ptr<DriveLimits>> create(const std::string& directory, uint64_t bytes);

  // Block sizes: multiples of kIoAlignmentBytes that divide the file.
  Result<DriveTiming> run(const DriveJob& job);
  // Microseconds of each sync that follows the append of one page to a new file.
  Result<std::vector<double>> sync_us(double seconds);

  bool is_direct() const { return file_.is_direct(); }
  // Of the file, since it was made, each place once.
  uint64_t written_bytes() const;

 private:
  DriveLimits(std::string directory, IoFile file, uint64_t bytes)
      : directory_(std::move(directory)), bytes_(bytes), file_(std::move(file)) {}

  const std::string directory_;
  const uint64_t bytes_;
  IoFile file_;
  uint64_t read_end_ = 0;   // where sequential reads go on, counted on around the file
  uint64_t write_end_ = 0;  // likewise
  uint64_t seed_ = 0;       // of the next thread's random numbers
};

}  // namespace te
