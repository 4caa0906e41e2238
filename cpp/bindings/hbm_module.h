// Functions of tiered_emb._core.Engine for its hbm tier; see module.cc.
#pragma once

#include <nanobind/nanobind.h>

#include "bindings/owned_engine.h"

namespace te {

void add_hbm_functions(nanobind::class_<OwnedEngine>& engine, nanobind::module_& m);

}  // namespace te
