// How a failed system call becomes a Status: one wording for the whole store.
//
// Thread-safety: pure functions.
#pragma once

#include <string>

#include "base/status.h"

namespace te {

// "<path>: <action>: <the system's reason>". A full disk or quota is kNoSpace, the rest kIo.
Status io_error(const std::string& path, const std::string& action, int error);

}  // namespace te
