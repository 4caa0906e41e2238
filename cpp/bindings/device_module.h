// What the kernels on a device (tiered_emb/device) need to know of an update.
#pragma once

#include <nanobind/nanobind.h>

namespace te {

void add_device_functions(nanobind::module_& m);

}  // namespace te
