// Copies of a checkpoint: another directory that opens as the same store, sharing its files.
//
// Thread-safety: pure functions of the file system. Cost: one hard link a file; where the target is
// on another disk, or the file system has no links, the bytes, but none of a file that the target's
// own earlier copy has already.
#pragma once

#include <string>

#include "base/status.h"

namespace te {

// Makes `to` a store that opens as the one at `from` does, and nothing less if it is interrupted:
// its MANIFEST is written last. `to` must not hold a store. Every segment that the manifest at
// `from` names must be complete (a sealed checkpoint, or a store that is closed). `previous` is a
// directory on the disk of `to` that may hold some of the same files, or empty.
Status copy_checkpoint(const std::string& from, const std::string& to, const std::string& previous);

}  // namespace te
