// What the tests of the log share: a directory that goes away, and a store beside a plain model.
//
// The value of a row is a pure function of (row, version), so that a wrong copy is always noticed.
#pragma once

#include <algorithm>
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "log/log_store.h"

namespace te::test {

namespace fs = std::filesystem;

class TempDirectory {
 public:
  TempDirectory() {
    std::string name = (fs::temp_directory_path() / "te_log_XXXXXX").string();
    TE_CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

// The machine's best and the portable one in turn.
inline std::unique_ptr<IoEngine> test_engine() {
  static std::atomic<uint32_t> turn{0};
  if (turn++ % 2 == 1) return make_portable_engine(2);
  auto made = make_io_engine();
  TE_CHECK(made.is_ok());
  return made.take();
}

// Of so many random schedules those that are run under a sanitizer: each takes ten times as long.
constexpr uint64_t schedules(uint64_t wanted) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return std::max<uint64_t>(wanted / 3, 1);
#else
  return wanted;
#endif
}

inline void check_ok(const Status& status) { BOOST_TEST_REQUIRE(status.is_ok(), status.message()); }

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline std::vector<std::byte> row_value(uint64_t row, uint64_t version, uint32_t bytes) {
  std::vector<std::byte> value(bytes);
  uint64_t x = (row * 0x9e3779b97f4a7c15ull) ^ (version * 0xd1b54a32d192ed03ull) ^ 0x5851f42dull;
  for (std::byte& b : value) {
    x = x * 6364136223846793005ull + 1442695040888963407ull;
    b = static_cast<std::byte>(x >> 56);
  }
  return value;
}

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_text(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// A store, the location of each row as its owner knows it, and the versions that should be there.
struct ModelStore final : RowOwner {
  struct Row {
    BlockAddress block;
    uint64_t version = 0;
  };
  LogOptions options;
  std::unique_ptr<LogStore> store;
  std::map<uint64_t, Row> rows;
  uint64_t version_next = 1;

  explicit ModelStore(LogOptions o) : options(std::move(o)) {}

  LayoutId layout_of(uint64_t row) const {
    const uint64_t layouts = options.layout_row_bytes.size();
    return LayoutId(static_cast<uint16_t>(row * layouts / options.total_rows));
  }
  uint32_t bytes_of(uint64_t row) const { return options.layout_row_bytes[layout_of(row).value]; }

  bool is_live(LayoutId, RowId row, BlockAddress block) const override {
    const auto found = rows.find(row.value);
    return found != rows.end() && found->second.block == block;
  }
  uint64_t rows_without_copy(LayoutId) const override { return 0; }
  void relocated(LayoutId, RowId row, BlockAddress from, BlockAddress to) override {
    BOOST_TEST_REQUIRE((rows.at(row.value).block == from));
    rows.at(row.value).block = to;
  }
  mutable size_t visits = 0;
  void visit_rows(RowVisitor f) const override {
    ++visits;
    for (const auto& [row, place] : rows) f(layout_of(row), RowId(row), place.block);
  }

  void create(std::unique_ptr<IoEngine> io = test_engine()) {
    auto made = LogStore::create(options, std::move(io));
    check_ok(made.status());
    store = made.take();
  }
  Status try_open(std::string* metadata = nullptr, std::unique_ptr<IoEngine> io = test_engine()) {
    std::map<uint64_t, BlockAddress> found;
    auto opened = LogStore::open(
        options, std::move(io),
        [&](LayoutId layout, RowId row, BlockAddress block) {
          BOOST_TEST((layout == layout_of(row.value)));
          return found.try_emplace(row.value, block).second;
        },
        metadata);
    if (!opened) return opened.status();
    store = opened.take();
    // Versions are the model's own; a row without one here was not expected.
    for (const auto& [row, block] : found) rows[row].block = block;
    rows_found = found.size();
    return Status::ok();
  }
  size_t rows_found = 0;

  // Puts a new version of each row; on failure nothing changes here. No row twice in one call.
  Status put(const std::vector<uint64_t>& ids) {
    std::map<uint16_t, std::vector<uint64_t>> by_layout;
    for (uint64_t id : ids) by_layout[layout_of(id).value].push_back(id);
    for (const auto& [layout, members] : by_layout) {
      std::vector<RowId> row_ids;
      std::vector<std::vector<std::byte>> values;
      std::vector<const std::byte*> data;
      const uint64_t version = version_next++;
      for (uint64_t id : members) {
        row_ids.emplace_back(id);
        values.push_back(row_value(id, version, bytes_of(id)));
      }
      for (const auto& value : values) data.push_back(value.data());
      std::vector<BlockAddress> blocks(members.size());
      TE_RETURN_IF_ERROR(store->put_many(LayoutId(layout), row_ids, data, blocks));
      for (size_t i = 0; i < members.size(); ++i) {
        const auto old = rows.find(members[i]);
        if (old != rows.end()) store->retire(LayoutId(layout), old->second.block);
        rows[members[i]] = {blocks[i], version};
      }
    }
    return Status::ok();
  }
  void forget(uint64_t row) {
    store->retire(layout_of(row), rows.at(row).block);
    rows.erase(row);
  }

  // Reads rows in one call a layout and compares each with its version.
  Status get(const std::vector<uint64_t>& ids) {
    for (size_t l = 0; l < options.layout_row_bytes.size(); ++l) {
      const uint32_t bytes = options.layout_row_bytes[l];
      std::vector<uint64_t> members;
      for (uint64_t id : ids) {
        if (layout_of(id).value == l) members.push_back(id);
      }
      std::vector<std::byte> out(members.size() * bytes);
      std::vector<RowRead> reads;
      for (size_t i = 0; i < members.size(); ++i) {
        reads.push_back({RowId(members[i]), rows.at(members[i]).block, out.data() + i * bytes});
      }
      TE_RETURN_IF_ERROR(store->get_many(LayoutId(static_cast<uint16_t>(l)), reads));
      for (size_t i = 0; i < members.size(); ++i) {
        const auto expected = row_value(members[i], rows.at(members[i]).version, bytes);
        const bool same = std::memcmp(expected.data(), out.data() + i * bytes, bytes) == 0;
        BOOST_TEST_REQUIRE(same, "row " << members[i] << " has other bytes");
      }
    }
    return Status::ok();
  }
  Status get_all() {
    std::vector<uint64_t> ids;
    for (const auto& [row, place] : rows) ids.push_back(row);
    return get(ids);
  }
};

inline LogOptions small_options(const std::string& path) {
  LogOptions options;
  options.path = path;
  options.total_rows = 20000;
  options.layout_row_bytes = {132};
  options.segment_bytes = 64 << 10;
  options.read_buffer_bytes = 64 << 10;
  return options;
}

inline std::vector<uint64_t> id_range(uint64_t begin, uint64_t end) {
  std::vector<uint64_t> ids;
  for (uint64_t id = begin; id < end; ++id) ids.push_back(id);
  return ids;
}

}  // namespace te::test
