// What `tiered-emb bench limits` measures (tiered_emb/bench/limits.py): cpp/limits.
#pragma once

#include <nanobind/nanobind.h>

namespace te {

void add_limits_functions(nanobind::module_& m);

}  // namespace te
