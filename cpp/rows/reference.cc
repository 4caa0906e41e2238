#include "rows/reference.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "rows/normal.h"
#include "rows/sample_hash.h"

namespace te {
namespace reference {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// A binary floating point format of 16 bits, sign first.
struct Format {
  int exponent_bits;
  int fraction_bits;
  int bias;
};
constexpr Format format_of(DType dtype) {
  return dtype == DType::kF16 ? Format{5, 10, 15} : Format{8, 7, 127};
}

float decode(uint16_t half, Format format) {
  const int fraction = half & ((1 << format.fraction_bits) - 1);
  const int exponent = (half & 0x7fff) >> format.fraction_bits;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  if (exponent == (1 << format.exponent_bits) - 1) {
    const uint32_t payload = static_cast<uint32_t>(fraction) << (23 - format.fraction_bits);
    return float_of(sign | 0x7f800000 | payload | (fraction != 0 ? 0x400000 : 0));
  }
  const int least = 1 - format.bias - format.fraction_bits;
  const double value =
      exponent == 0 ? std::ldexp(fraction, least)
                    : std::ldexp(fraction + (1 << format.fraction_bits), exponent - 1 + least);
  return static_cast<float>(sign != 0 ? -value : value);
}

// |x| in units of the last place of the format, and that unit as a power of two.
double in_last_places(float x, Format format, int* unit) {
  const int exponent = x == 0 ? -1000 : std::ilogb(x);
  *unit = std::max(exponent, 1 - format.bias) - format.fraction_bits;
  return std::ldexp(std::fabs(static_cast<double>(x)), -*unit);
}

uint16_t encode(float x, Format format, double places, int unit) {
  const auto sign = static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000);
  const double value = std::ldexp(places, unit);
  const int infinity = ((1 << format.exponent_bits) - 1) << format.fraction_bits;
  if (value >= std::ldexp(1.0, format.bias + 1)) return static_cast<uint16_t>(sign | infinity);
  // Exponent and fraction count on together: the step above the last place is the next exponent.
  const int biased = unit - (1 - format.bias - format.fraction_bits);
  return static_cast<uint16_t>(sign |
                               ((biased << format.fraction_bits) + static_cast<int>(places)));
}

uint16_t encode_nan(float x, Format format) {
  const uint32_t bits = bits_of(x);
  const uint32_t infinity = ((1u << format.exponent_bits) - 1) << format.fraction_bits;
  const uint32_t quiet = 1u << (format.fraction_bits - 1);
  const uint32_t payload = (bits & 0x7fffff) >> (23 - format.fraction_bits);
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | infinity | quiet | payload);
}

uint16_t encode_nearest(float x, Format format) {
  if (std::isnan(x)) return encode_nan(x, format);
  if (std::isinf(x)) return encode(x, format, 1, 1000);
  int unit;
  const double places = in_last_places(x, format, &unit);
  return encode(x, format, std::nearbyint(places), unit);  // the default mode: to nearest even
}

uint16_t encode_random(float x, DType dtype, uint32_t random16) {
  const Format format = format_of(dtype);
  if (!std::isfinite(x)) return encode_nearest(x, format);
  if (dtype == DType::kF16 && std::fabs(x) >= 65504) return encode_nearest(x, format);
  int unit;
  const double places = in_last_places(x, format, &unit);
  const double lower = std::floor(places);
  const bool up = std::floor((places - lower) * 65536) + random16 >= 65536;
  return encode(x, format, lower + (up ? 1 : 0), unit);
}

}  // namespace

float load(const void* values, DType dtype, size_t index) {
  const auto* bytes = static_cast<const std::byte*>(values) + index * dtype_bytes(dtype);
  if (dtype == DType::kF32) {
    float x;
    std::memcpy(&x, bytes, sizeof(x));
    return x;
  }
  uint16_t half;
  std::memcpy(&half, bytes, sizeof(half));
  return decode(half, format_of(dtype));
}

void store_nearest(void* values, DType dtype, size_t index, float x) {
  auto* bytes = static_cast<std::byte*>(values) + index * dtype_bytes(dtype);
  if (dtype == DType::kF32) {
    std::memcpy(bytes, &x, sizeof(x));
    return;
  }
  const uint16_t half = encode_nearest(x, format_of(dtype));
  std::memcpy(bytes, &half, sizeof(half));
}

void store_random(void* values, DType dtype, size_t index, float x, uint32_t random16) {
  if (dtype == DType::kF32) return store_nearest(values, dtype, index, x);
  const uint16_t half = encode_random(x, dtype, random16);
  std::memcpy(static_cast<std::byte*>(values) + index * 2, &half, sizeof(half));
}

namespace {

// Sixteen partial sums over the columns of a row.
struct LaneSums {
  float lane[16] = {};
  void add(uint32_t column, float x) { lane[column % 16] += x; }
  float total() {
    for (int half = 8; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    }
    return lane[0];
  }
};

const std::byte* row_of(const ArenaView& arena, uint32_t slot) {
  return arena.base + slot * arena.stride_bytes;
}

void pool_column(const PoolArgs& args, size_t bag, uint32_t column) {
  const RowLayout& layout = args.arena.layout;
  float result = 0;
  uint32_t winner = kNoOccurrence;
  uint32_t count = 0;
  for (int64_t i = args.bag_begin[bag]; i < args.bag_begin[bag + 1]; ++i) {
    if (args.slots[i] == kPaddingSlot) continue;
    float x = load(row_of(args.arena, args.slots[i]), layout.dtype, column);
    if (args.sample_weights != nullptr) {
      x *= load(args.sample_weights, layout.dtype, static_cast<size_t>(i));
    }
    if (args.mode != PoolMode::kMax) {
      result = count == 0 ? x : result + x;
    } else if (count == 0 || x > result) {
      result = x;
      winner = static_cast<uint32_t>(i);
    }
    ++count;
  }
  if (args.mode == PoolMode::kMean && count > 0) result /= static_cast<float>(count);
  const size_t at = bag * layout.dim + column;
  store_nearest(args.out, layout.dtype, at, result);
  if (args.mode == PoolMode::kMax && args.argmax != nullptr) args.argmax[at] = winner;
}

void pool(const PoolArgs& args, size_t begin, size_t end) {
  for (size_t bag = begin; bag < end; ++bag) {
    for (uint32_t column = 0; column < args.arena.layout.dim; ++column) {
      pool_column(args, bag, column);
    }
  }
}

float gradient_of_column(const GradArgs& args, size_t u, uint32_t column) {
  const uint32_t begin = args.occurrence_begin[u];
  const uint32_t end = args.occurrence_begin[u + 1];
  float sum = 0;
  for (uint32_t k = begin; k < end; ++k) {
    float scale = 1;
    if (args.sample_weights != nullptr) {
      scale *= load(args.sample_weights, args.dtype, args.occurrences[k]);
    }
    if (args.bag_scale != nullptr) scale *= args.bag_scale[args.bags[k]];
    if (args.scale_by_count) scale *= 1.0f / static_cast<float>(end - begin);
    const size_t at = size_t{args.bags[k]} * args.dim + column;
    float term = scale * load(args.grad, args.dtype, at);
    if (args.mode == PoolMode::kMax && args.argmax[at] != args.occurrences[k]) term = 0;
    sum = k == begin ? term : sum + term;
  }
  return sum;
}

void sum_gradients(const GradArgs& args, float* out, size_t begin, size_t end) {
  for (size_t u = begin; u < end; ++u) {
    for (uint32_t column = 0; column < args.dim; ++column) {
      out[u * args.dim + column] = gradient_of_column(args, u, column);
    }
  }
}

// One optimizer step of a row in float32: weights, state and gradient as arrays.
void step_row(OptimizerKind kind, const OptimizerParams& params, uint32_t dim, float* weight,
              float* state, std::vector<float> gradient) {
  const auto lr = static_cast<float>(params.lr);
  const auto eps = static_cast<float>(params.eps);
  const auto keep1 = static_cast<float>(1 - params.beta1);
  const auto keep2 = static_cast<float>(1 - params.beta2);
  const auto step_size =
      static_cast<float>(params.lr * std::sqrt(params.bias_correction2) / params.bias_correction1);
  float multiplier = 0;
  if (kind == OptimizerKind::kRowwiseAdagrad) {
    LaneSums squares;
    for (uint32_t c = 0; c < dim; ++c) {
      if (params.weight_decay != 0) {
        gradient[c] += static_cast<float>(params.weight_decay) * weight[c];
      }
      squares.add(c, gradient[c] * gradient[c]);
    }
    state[0] += squares.total() / static_cast<float>(dim);
    multiplier = lr / (std::sqrt(state[0]) + eps);
  }
  for (uint32_t c = 0; c < dim; ++c) {
    const float g = gradient[c];
    switch (kind) {
      case OptimizerKind::kNone: TE_CHECK(!"frozen rows have no update"); break;
      case OptimizerKind::kSgd: weight[c] -= lr * g; break;
      case OptimizerKind::kAdagrad:
        state[c] += g * g;
        weight[c] -= lr * (g / (std::sqrt(state[c]) + eps));
        break;
      case OptimizerKind::kRowwiseAdagrad: weight[c] -= multiplier * g; break;
      case OptimizerKind::kAdam: {
        float& m = state[c];
        float& v = state[dim + c];
        m += (g - m) * keep1;
        v += (g * g - v) * keep2;
        weight[c] -= step_size * (m / (std::sqrt(v) + eps));
        break;
      }
    }
  }
}

void apply_update(const float* gradients, const UpdateArgs& args, size_t begin, size_t end) {
  const RowLayout& layout = args.arena.layout;
  std::vector<float> weight(layout.dim);
  std::vector<float> state(layout.state_floats());
  for (size_t u = begin; u < end; ++u) {
    std::byte* row = args.arena.base + args.slots[u] * args.arena.stride_bytes;
    std::byte* state_bytes = row + layout.state_offset_bytes();
    for (uint32_t c = 0; c < layout.dim; ++c) weight[c] = load(row, layout.dtype, c);
    if (!state.empty()) std::memcpy(state.data(), state_bytes, state.size() * sizeof(float));
    const float* gradient = gradients + u * layout.dim;
    step_row(layout.optimizer, args.params, layout.dim, weight.data(), state.data(),
             std::vector<float>(gradient, gradient + layout.dim));
    if (!state.empty()) std::memcpy(state_bytes, state.data(), state.size() * sizeof(float));
    for (uint32_t c = 0; c < layout.dim; ++c) {
      const PhiloxWords words =
          philox_columns(args.key, PhiloxPurpose::kRounding, args.rows[u].value - args.first_row,
                         args.step, c / 8);
      const uint32_t random16 = words[c % 8 / 2] >> (c % 2 * 16) & 0xffff;
      store_random(row, layout.dtype, c, weight[c], random16);
    }
  }
}

void update(const GradArgs& grad, const UpdateArgs& args, size_t begin, size_t end) {
  std::vector<float> gradients(end * grad.dim);
  sum_gradients(grad, gradients.data(), begin, end);
  apply_update(gradients.data(), args, begin, end);
}

void sample_weight_gradients(const PoolArgs& args, const void* grad, void* out, size_t begin,
                             size_t end) {
  const RowLayout& layout = args.arena.layout;
  for (size_t bag = begin; bag < end; ++bag) {
    for (int64_t i = args.bag_begin[bag]; i < args.bag_begin[bag + 1]; ++i) {
      LaneSums sums;
      for (uint32_t c = 0; c < layout.dim && args.slots[i] != kPaddingSlot; ++c) {
        sums.add(c, load(grad, layout.dtype, bag * layout.dim + c) *
                        load(row_of(args.arena, args.slots[i]), layout.dtype, c));
      }
      store_nearest(out, layout.dtype, static_cast<size_t>(i), sums.total());
    }
  }
}

bool all_finite(const void* values, DType dtype, size_t begin, size_t end, size_t* position) {
  for (size_t i = begin; i < end; ++i) {
    if (std::isfinite(load(values, dtype, i))) continue;
    *position = i;
    return false;
  }
  return true;
}

float norm_of(const std::byte* row, const RowLayout& layout, float norm_type) {
  LaneSums sums;
  double general = 0;
  float largest = 0;
  for (uint32_t c = 0; c < layout.dim; ++c) {
    const float x = std::fabs(load(row, layout.dtype, c));
    sums.add(c, norm_type == 2 ? x * x : x);
    if (!(x <= largest) && !std::isnan(largest)) largest = x;
    general += norm_type == 0 ? (x != 0 ? 1.0 : 0.0) : std::pow(double{x}, double{norm_type});
  }
  if (norm_type == 1) return sums.total();
  if (norm_type == 2) return std::sqrt(sums.total());
  if (std::isinf(norm_type)) return largest;
  return static_cast<float>(norm_type == 0 ? general : std::pow(general, 1 / double{norm_type}));
}

void renorm(const ArenaView& arena, const uint32_t* slots, float max_norm, float norm_type,
            uint8_t* changed, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    std::byte* row = arena.base + slots[i] * arena.stride_bytes;
    const float norm = norm_of(row, arena.layout, norm_type);
    if (!(norm > max_norm)) continue;
    const auto factor = static_cast<float>(double{max_norm} / (double{norm} + 1e-7));
    for (uint32_t c = 0; c < arena.layout.dim; ++c) {
      store_nearest(row, arena.layout.dtype, c, load(row, arena.layout.dtype, c) * factor);
    }
    changed[i] = 1;
  }
}

int64_t id_at(const void* ids, bool ids_are_64, size_t i) {
  return ids_are_64 ? static_cast<const int64_t*>(ids)[i] : static_cast<const int32_t*>(ids)[i];
}

size_t first_bad_id(const void* ids, bool ids_are_64, uint64_t rows, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    const int64_t id = id_at(ids, ids_are_64, i);
    if (id < 0 || static_cast<uint64_t>(id) >= rows) return i;
  }
  return end;
}

bool copy_offsets(const void* offsets, bool are_64, int64_t limit, size_t begin, size_t end,
                  int64_t* out) {
  int64_t least = 0;
  for (size_t i = begin; i < end; ++i) {
    const int64_t offset = id_at(offsets, are_64, i);
    if (offset < least || offset > limit) return false;
    out[i - begin] = least = offset;
  }
  return true;
}

bool own_slots(const OwnSlotArgs& args, size_t begin, size_t end, size_t* padding) {
  for (size_t i = begin; i < end; ++i) {
    const int64_t id = id_at(args.ids, args.ids_are_64, i);
    args.slots[i] = kPaddingSlot;
    if (id == args.padding_id) {
      ++*padding;
      continue;
    }
    const uint64_t row = args.first_row + static_cast<uint64_t>(id);
    if (args.resident != nullptr && (args.resident[row / 64] >> (row % 64) & 1) == 0) return false;
    args.slots[i] = args.first_slot + static_cast<uint32_t>(id);
  }
  return true;
}

size_t sample(const SampleArgs& args, size_t begin, size_t end, RowId* out) {
  size_t count = 0;
  for (size_t i = begin; i < end; ++i) {
    const uint64_t row =
        args.first_row + static_cast<uint64_t>(id_at(args.ids, args.ids_are_64, i));
    if ((sample_hash(row) & args.mask) == 0) out[count++] = RowId(row);
  }
  return count;
}

float initial_value(const InitSpec& spec, PhiloxKey key, uint64_t row, uint32_t column) {
  if (spec.kind == InitSpec::Kind::kConstant) return spec.a;
  const PhiloxWords words = philox_columns(key, PhiloxPurpose::kInit, row, 0, column / 4);
  if (spec.kind == InitSpec::Kind::kUniform) {
    return spec.a + static_cast<float>(words[column % 4] >> 8) * 0x1p-24f * (spec.b - spec.a);
  }
  double z[2];
  const uint32_t pair = column % 4 / 2 * 2;
  normal_pair(normal_polar(words[pair], words[pair + 1]), &z[0], &z[1]);
  return static_cast<float>(double{spec.a} + double{spec.b} * z[column % 2]);
}

void initialise(const RowLayout& layout, const InitSpec& spec, PhiloxKey key, uint64_t row,
                std::byte* destination) {
  std::memset(destination, 0, layout.row_bytes());
  for (uint32_t c = 0; c < layout.dim; ++c) {
    store_nearest(destination, layout.dtype, c, initial_value(spec, key, row, c));
  }
  for (uint32_t i = 0; i < layout.state_floats(); ++i) {
    store_nearest(destination + layout.state_offset_bytes(), DType::kF32, i, spec.state_value);
  }
}

}  // namespace
}  // namespace reference

const Kernels& reference_kernels() {
  static constexpr Kernels kReference = {
      .isa = "reference",
      .pool = reference::pool,
      .sum_gradients = reference::sum_gradients,
      .update = reference::update,
      .apply_update = reference::apply_update,
      .sample_weight_gradients = reference::sample_weight_gradients,
      .all_finite = reference::all_finite,
      .first_bad_id = reference::first_bad_id,
      .copy_offsets = reference::copy_offsets,
      .own_slots = reference::own_slots,
      .sample = reference::sample,
      .renorm = reference::renorm,
      .initialise = reference::initialise,
  };
  return kReference;
}

}  // namespace te
