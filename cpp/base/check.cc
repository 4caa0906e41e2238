#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace te {

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "tiered_emb: internal check failed: %s (%s:%d)\n", condition, file, line);
  std::abort();
}

}  // namespace te
