#include "log/log_options.h"

#include <algorithm>
#include <bit>

#include "base/types.h"
#include "log/block.h"
#include "log/change_list.h"
#include "log/manifest.h"
#include "log/segment_table.h"

namespace te {
namespace {

constexpr uint32_t kBlockBytesMin = 4096;
constexpr uint32_t kBlockBytesMax = 1u << 20;
constexpr uint32_t kSegmentBytesMax = 1u << 30;
constexpr double kSpaceBoundMin = 1.1;  // victims more than 15/16 live give too little back

Status invalid(const LogOptions& options, const std::string& what) {
  return Status(StatusCode::kInvalidArgument, "store at '" + options.path + "': " + what);
}

}  // namespace

uint32_t choose_segment_bytes(uint64_t store_bytes, uint64_t run_bytes) {
  constexpr uint64_t kLeast = 16 << 10;
  constexpr uint64_t kMost = 64 << 20;
  // A run does not cross the end of a segment, so that all but one of its blocks may stay unused:
  // a sixteenth at most, where that leaves enough segments.
  const uint64_t unused = run_bytes - std::min<uint64_t>(run_bytes, kBlockBytesMin);
  const uint64_t roomy =
      std::min({std::bit_ceil(16 * unused), std::bit_floor(store_bytes / 64), kMost});
  const uint64_t least = std::max({kLeast, std::bit_ceil(run_bytes), roomy});
  return static_cast<uint32_t>(std::clamp(std::bit_floor(store_bytes / 1024), least, kMost));
}

Status check_options(const LogOptions& options) {
  if (options.path.empty()) return invalid(options, "the path is empty");
  const uint32_t block_bytes = options.block_bytes;
  if (!std::has_single_bit(block_bytes) || block_bytes < kBlockBytesMin ||
      block_bytes > kBlockBytesMax) {
    return invalid(options, "block_bytes must be a power of two from " +
                                std::to_string(kBlockBytesMin) + " to " +
                                std::to_string(kBlockBytesMax) + ", not " +
                                std::to_string(block_bytes));
  }
  const uint32_t segment_bytes = options.segment_bytes;
  if (segment_bytes == 0 || segment_bytes % block_bytes != 0 || segment_bytes > kSegmentBytesMax) {
    return invalid(options, "segment_bytes must be a multiple of block_bytes up to " +
                                std::to_string(kSegmentBytesMax) + ", not " +
                                std::to_string(segment_bytes));
  }
  if (options.total_rows == 0) return invalid(options, "total_rows is 0");
  if (options.total_rows > ChangeList::kRowsMax) {
    return invalid(options, "total_rows is " + std::to_string(options.total_rows) +
                                ", the most is " + std::to_string(ChangeList::kRowsMax));
  }
  const size_t layouts = options.layout_row_bytes.size();
  if (layouts == 0 || layouts >= LayoutId::none().value) {
    return invalid(options, std::to_string(layouts) + " row layouts");
  }
  for (size_t l = 0; l < layouts; ++l) {
    const uint32_t row_bytes = options.layout_row_bytes[l];
    const bool fits =
        row_bytes > 0 && row_bytes <= segment_bytes &&
        make_run_shape(block_bytes, row_bytes, options.total_rows).run_bytes <= segment_bytes;
    if (!fits) {
      return invalid(options, "a row of layout " + std::to_string(l) + " has " +
                                  std::to_string(row_bytes) + " bytes, which a segment of " +
                                  std::to_string(segment_bytes) + " bytes cannot hold");
    }
  }
  const uint64_t capacity_min = uint64_t{SegmentTable::kSegmentsMin} * segment_bytes;
  if (options.capacity_bytes != 0 && options.capacity_bytes < capacity_min) {
    return invalid(options, "capacity_bytes is " + std::to_string(options.capacity_bytes) +
                                ", the least is " + std::to_string(SegmentTable::kSegmentsMin) +
                                " segments: " + std::to_string(capacity_min));
  }
  if (options.changes_max == 0 || options.indexes_max == 0 ||
      options.indexes_max >= kManifestIndexesMax) {
    return invalid(options, "changes_max or indexes_max is 0 or too large");
  }
  if (!(options.space_bound_ratio >= kSpaceBoundMin)) {
    return invalid(options, "space_bound_ratio is " + std::to_string(options.space_bound_ratio) +
                                ", the least is " + std::to_string(kSpaceBoundMin));
  }
  return Status::ok();
}

Status check_same_rows(const LogOptions& options, const Manifest& manifest) {
  const auto differs = [&](const std::string& what, uint64_t stored, uint64_t wanted) {
    return invalid(options, what + " is " + std::to_string(stored) + " in the store and " +
                                std::to_string(wanted) + " in the options");
  };
  if (options.total_rows != manifest.total_rows) {
    return differs("total_rows", manifest.total_rows, options.total_rows);
  }
  const size_t layouts = manifest.layout_row_bytes.size();
  if (options.layout_row_bytes.size() != layouts) {
    return differs("the number of row layouts", layouts, options.layout_row_bytes.size());
  }
  for (size_t l = 0; l < layouts; ++l) {
    const uint32_t stored = manifest.layout_row_bytes[l];
    if (options.layout_row_bytes[l] != stored) {
      return differs("row bytes of layout " + std::to_string(l), stored,
                     options.layout_row_bytes[l]);
    }
  }
  return Status::ok();
}

}  // namespace te
