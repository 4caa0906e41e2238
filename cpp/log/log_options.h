// What options a store accepts, whether they describe the rows of a store that exists, and how
// large segments should be.
//
// Thread-safety: pure functions.
#pragma once

#include "base/status.h"
#include "log/log_store.h"
#include "log/manifest.h"

namespace te {

// About a thousand segments for a store that may grow to `store_bytes` (more reclaim better, fewer
// open faster), within reason; larger ones where a row takes `run_bytes` and little would fit.
uint32_t choose_segment_bytes(uint64_t store_bytes, uint64_t run_bytes);

Status check_options(const LogOptions& options);
// kInvalidArgument names the first difference.
Status check_same_rows(const LogOptions& options, const Manifest& manifest);

}  // namespace te
