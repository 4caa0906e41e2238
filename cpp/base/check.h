// TE_CHECK: an assertion that is always on, for our own bugs. It must not be reachable from user
// input: the user's mistakes and the world's failures are a Status (base/status.h).
#pragma once

namespace te {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}  // namespace te

#define TE_CHECK(condition)                               \
  do {                                                    \
    if (!(condition)) [[unlikely]]                        \
      ::te::check_failed(#condition, __FILE__, __LINE__); \
  } while (false)
