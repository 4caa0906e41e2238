// The reference of the kernels: one plain loop a kernel, and the definition of every bit they
// produce. The fast variants must agree with it bit for bit, payloads of NaNs excepted, which the
// tests check. Used by tests only. Thread-safety, ownership: as kernels.h.
//
// Order of sums. A sum over occurrences takes them in order, column by column, starting from the
// first product (not from zero); mean divides by the count. A sum over the columns of a row (mean
// of squares, norm, dot product) has sixteen partial sums that start at zero; column c adds to
// partial sum c % 16, columns in order; then partial sum l takes l + 8, then l + 4, l + 2, l + 1.
// Gradients multiply 1 * sample weight * bag scale * (1 / count), where present, in that order,
// then the bag's gradient; in mode max a column that an occurrence did not win adds zero. All in
// float32, every operation rounded to nearest even. 1 / count and the factor of renorm are rounded
// to float; so are the parameters of the optimizers, 1 - beta and the step size of Adam after they
// have been computed in double.
//
// Conversion. float16 and bfloat16 to float32 is exact. Back: to nearest even, except for weights
// after an update. These are rounded at random to one of the two neighbours, down and up by
// magnitude: up if floor(f * 2^16) + r >= 2^16, where f is the distance from the lower neighbour as
// a fraction of their distance, and r has 16 random bits. So a value that is exact stays; the
// result is unbiased (for float16 below 2^-14, to 2^-16 of the last place). float16 from 65504 on,
// and infinity and NaN of both, round to nearest even.
//
// Random words, of the table's key (base/philox.h). Rounding at column c: group c / 8, word
// (c % 8) / 2, the low half for an even c. Initial value of column c: group c / 4; uniform takes
// word c % 4, as a + (word >> 8) * 2^-24 * (b - a) in float; normal takes words 0 and 1 for the
// first two columns of a group, 2 and 3 for the others (rows/normal.h), as a + b * z in double,
// rounded once to float. Both then round to nearest even.
#pragma once

#include "rows/kernels.h"

namespace te {

const Kernels& reference_kernels();

namespace reference {
float load(const void* values, DType dtype, size_t index);
void store_nearest(void* values, DType dtype, size_t index, float x);
void store_random(void* values, DType dtype, size_t index, float x, uint32_t random16);
}  // namespace reference

}  // namespace te
