// All kernels as one table, for the instruction set that the including file is compiled for.
// Included by kernels_baseline.cc, kernels_avx2.cc and kernels_avx512.cc only.
#pragma once

#include "rows/gradient_impl.h"
#include "rows/id_impl.h"
#include "rows/init_impl.h"
#include "rows/kernels.h"
#include "rows/pool_impl.h"
#include "rows/scan_impl.h"
#include "rows/update_impl.h"
#include "rows/variants.h"

namespace te {
namespace {

constexpr Kernels kVariant = {
    .isa = kIsaName,
    .pool = pool,
    .sum_gradients = sum_gradients,
    .update = update,
    .apply_update = apply_update,
    .sample_weight_gradients = sample_weight_gradients,
    .all_finite = all_finite,
    .first_bad_id = first_bad_id,
    .copy_offsets = copy_offsets,
    .own_slots = own_slots,
    .sample = sample,
    .renorm = renorm,
    .initialise = initialise,
};

}  // namespace
}  // namespace te
