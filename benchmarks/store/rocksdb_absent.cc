// Stands in for rocksdb_peer.cc where RocksDB is not installed.
#include "row_store.h"

namespace te::bench {

Result<std::unique_ptr<RowStore>> make_rocksdb_store(const StoreOptions&) {
  return Status(StatusCode::kNotFound, "built without RocksDB");
}

}  // namespace te::bench
