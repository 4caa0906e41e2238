// Initial values of rows. Included by variant_impl.h only. reference.h says which random word makes
// which column.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rows/kernels.h"
#include "rows/lanes.h"
#include "rows/normal.h"
#include "rows/random_impl.h"

namespace te {
namespace {

constexpr uint32_t kUnitColumns = kGroups * 4;  // columns of one call of random_words

TE_INLINE void uniform_values(const InitSpec& spec, const RandomWords& words, float* out) {
  const float range = spec.b - spec.a;
  for (uint32_t i = 0; i < kUnitColumns; ++i) {
    out[i] =
        spec.a + static_cast<float>(static_cast<int32_t>(words.word[i] >> 8)) * 0x1p-24f * range;
  }
}

TE_INLINE void normal_values(const InitSpec& spec, const RandomWords& words, float* out) {
  const double mean = spec.a;
  const double deviation = spec.b;
  constexpr uint32_t kPairs = kUnitColumns / 2;
  double squared_radius[kPairs];
  double cosine[kPairs];
  double sine[kPairs];
  for (uint32_t i = 0; i < kPairs; ++i) {
    const NormalPolar polar = normal_polar(words.word[2 * i], words.word[2 * i + 1]);
    squared_radius[i] = polar.squared_radius;
    cosine[i] = polar.cosine;
    sine[i] = polar.sine;
  }
  for (uint32_t i = 0; i < kPairs; ++i) {
    double first;
    double second;
    normal_pair({squared_radius[i], cosine[i], sine[i]}, &first, &second);
    out[2 * i] = static_cast<float>(mean + deviation * first);
    out[2 * i + 1] = static_cast<float>(mean + deviation * second);
  }
}

template <DType kType>
void initialise_weights(uint32_t dim, const InitSpec& spec, PhiloxKey key, uint64_t row,
                        std::byte* destination) {
  float values[kUnitColumns];
  for_blocks(dim, [&]<bool kTail>(uint32_t column, uint32_t columns) {
    Floats v = splat(spec.a);
    if (spec.kind != InitSpec::Kind::kConstant) {
      const uint32_t within = column % kUnitColumns;
      if (within == 0) {
        RandomWords words;
        random_words(key, PhiloxPurpose::kInit, row, 0, column / 4, &words);
        if (spec.kind == InitSpec::Kind::kUniform) {
          uniform_values(spec, words, values);
        } else {
          normal_values(spec, words, values);
        }
      }
      v = load<DType::kF32>(reinterpret_cast<const std::byte*>(values + within));
    }
    store<kType, kTail>(destination + column * size_t{kElementBytes<kType>}, v, columns);
  });
}

void initialise(const RowLayout& layout, const InitSpec& spec, PhiloxKey key, uint64_t row,
                std::byte* destination) {
  for_dtype(layout.dtype, [&]<DType kType>() {
    initialise_weights<kType>(layout.dim, spec, key, row, destination);
  });
  const uint32_t gap = layout.state_offset_bytes() - layout.weight_bytes();
  if (gap != 0) std::memset(destination + layout.weight_bytes(), 0, gap);
  std::byte* state = destination + layout.state_offset_bytes();
  for_blocks(layout.state_floats(), [&]<bool kTail>(uint32_t column, uint32_t columns) {
    store<DType::kF32, kTail>(state + column * size_t{4}, splat(spec.state_value), columns);
  });
}

}  // namespace
}  // namespace te
