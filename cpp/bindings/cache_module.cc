#include "bindings/cache_module.h"

#include <nanobind/stl/string.h>

#include <string>

#include "bindings/without_gil.h"
#include "cache/simulation.h"

namespace nb = nanobind;

namespace te {
namespace {

// `ids`: the address of int64 numbers. The GIL is released meanwhile.
nb::dict simulate(const std::string& policy, uint32_t capacity, uint64_t rows, uintptr_t ids,
                  size_t count, size_t batch, size_t window, uint64_t warm_up) {
  const CacheSetup setup{policy, capacity, rows, batch, window, warm_up};
  Result<CacheCounts> counts = [&] {
    const WithoutGil without_gil;
    return simulate_cache(setup, {reinterpret_cast<const int64_t*>(ids), count});
  }();
  if (!counts) {
    const std::string& message = counts.status().message();
    if (counts.status().code() == StatusCode::kOutOfRange) throw nb::index_error(message.c_str());
    throw nb::value_error(message.c_str());
  }
  nb::dict result;
  result["lookups"] = counts.value().lookups;
  result["unique_rows"] = counts.value().unique_rows;
  result["misses"] = counts.value().misses;
  result["first_touches"] = counts.value().first_touches;
  result["policy_ns"] = counts.value().policy_ns;
  result["window_ns"] = counts.value().window_ns;
  result["timed_lookups"] = counts.value().timed_lookups;
  result["window_bytes"] = counts.value().window_bytes;
  return result;
}

}  // namespace

void add_cache_functions(nb::module_& m) { m.def("simulate_cache", &simulate); }

}  // namespace te
