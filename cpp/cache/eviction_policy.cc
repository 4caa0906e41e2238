#include "cache/eviction_policy.h"

namespace te {

std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name,
                                                     SlotDirectory& directory, uint64_t total_rows,
                                                     PolicyOf tier) {
  if (name == "lookahead") return make_lookahead_policy(directory, total_rows, tier);
  if (name == "lfu") return make_lfu_policy(directory, total_rows, tier);
  if (name == "lru") return make_lru_policy(directory);
  if (name == "s3fifo") return make_s3_fifo_policy(directory);
  return nullptr;
}

}  // namespace te
