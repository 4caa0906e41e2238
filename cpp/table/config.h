// What an engine is built from. Plain values, fixed after construction.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/types.h"
#include "io/io_engine.h"
#include "log/log_store.h"
#include "rows/kernels.h"

namespace te {

struct TableConfig {
  std::string name;
  uint64_t rows = 0;
  uint32_t dim = 0;
  DType dtype = DType::kF32;
  PoolMode mode = PoolMode::kSum;
  InitSpec init;
  uint64_t seed = 0;
  int64_t zero_row = -1;  // this row starts as zeros (padding), or -1
  // In (0, 1]: this share of its rows has slots in dram that no other table takes without need; 0:
  // it shares slots with tables of its row layout. Means nothing without an ssd tier.
  double dram_share = 0;
};

struct EngineConfig {
  std::vector<TableConfig> tables;
  OptimizerKind optimizer = OptimizerKind::kNone;
  std::string policy = "lookahead";
  uint64_t dram_bytes = 0;  // budget at first; 0: every row may be in dram
  // Rows that leave for a smaller budget, or move, with one batch at most.
  uint32_t rows_resized_at_once = 16384;
  uint64_t hbm_bytes = 0;  // budget of the device's slots; 0: no hbm tier
  bool hbm_on_host =
      false;  // the device is this machine's processor: its slots lie beside those in dram
  uint64_t pinned_bytes = 0;  // transfer buffers, a part of the dram budget
  std::string ssd_path;       // empty: no ssd tier
  uint64_t ssd_capacity_bytes = 0;
  double ssd_space_bound_ratio = 1.45;  // see LogOptions
  uint64_t ssd_rows_told_at_once = LogOptions().rows_told_at_once;
  bool ssd_resume = false;
  bool ssd_newest = false;     // with resume: the newest copy of every row, instead of the last cut
  bool ssd_read_only = false;  // with resume: rows are read, never changed; takes no lock
  std::string app_metadata;    // stored with each checkpoint, given back on resume
  std::function<Result<std::unique_ptr<IoEngine>>()> make_io = make_io_engine;  // of the ssd tier
};

// Row numbers fit in 40 bits (the random counters hold no more).
inline constexpr uint64_t kTableRowsMax = uint64_t{1} << 40;
inline constexpr uint32_t kDimMax = 1 << 20;

}  // namespace te
