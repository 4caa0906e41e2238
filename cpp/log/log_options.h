// What options a store accepts, and whether they describe the rows of a store that exists.
//
// Thread-safety: pure functions.
#pragma once

#include "base/status.h"
#include "log/log_store.h"
#include "log/manifest.h"

namespace te {

Status check_options(const LogOptions& options);
// kInvalidArgument names the first difference.
Status check_same_rows(const LogOptions& options, const Manifest& manifest);

}  // namespace te
