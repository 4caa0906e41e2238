// The part of the Python module that simulates caches, for benchmarks and tests of the policies.
#pragma once

#include <nanobind/nanobind.h>

namespace te {

void add_cache_functions(nanobind::module_& m);

}  // namespace te
