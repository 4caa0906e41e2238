// Merges a chain of indexes into one that tells all rows.
//
// Thread-safety: none. Cost: a region of 65,536 rows in memory, and the readers' buffers; a few
// nanoseconds a row and index, and a fraction of one for every row between the first and the last
// of a region.
#pragma once

#include <span>

#include "base/status.h"
#include "log/change_list.h"
#include "log/index_snapshot.h"
#include "log/log_store.h"

namespace te {

// Calls f for every row that an index or the changes tell, ascending, with where the newest of them
// has it. `oldest_first`: open; `changes`: sorted, newer than all of them.
Status merge_indexes(std::span<IndexReader> oldest_first,
                     std::span<const ChangeList::Change> changes, RowOwner::RowVisitor f);

}  // namespace te
