// Chooses the variant of the kernels, once.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/aligned_buffer.h"
#include "rows/variants.h"

namespace te {
namespace {

struct Available {
  const Kernels* variants[3] = {};
  size_t count = 0;

  Available() {
    variants[count++] = &kernels_baseline();
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx2) variants[count++] = &kernels_avx2();
    if (avx512) variants[count++] = &kernels_avx512();
#endif
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

const Kernels& choose() {
  const Available& all = available();
  const Kernels& best = *all.variants[all.count - 1];
  const char* wanted = std::getenv("TIERED_EMB_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (size_t i = 0; i < all.count; ++i) {
    if (std::strcmp(all.variants[i]->isa, wanted) == 0) return *all.variants[i];
  }
  std::fprintf(stderr, "tiered_emb: TIERED_EMB_ISA=%s is not available here; using %s\n", wanted,
               best.isa);
  return best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

size_t kernel_variants(const Kernels* const** variants) {
  *variants = available().variants;
  return available().count;
}

float* kernel_scratch(size_t count) {
  thread_local AlignedBuffer buffer;
  if (buffer.bytes() < count * sizeof(float)) buffer = AlignedBuffer(count * sizeof(float));
  return reinterpret_cast<float*>(buffer.data());
}

}  // namespace te
