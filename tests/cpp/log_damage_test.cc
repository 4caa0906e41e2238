// Bytes that changed behind the store's back: always reported, never read, never a crash.
#include <random>

#include "log_fixture.h"

namespace te::test {
namespace {

struct Damaged {
  TempDirectory directory;
  ModelStore model;

  explicit Damaged(std::vector<uint32_t> layouts = {132}) : model(options_of(std::move(layouts))) {
    model.create();
    check_ok(model.put(id_range(0, 900)));
    check_ok(model.store->checkpoint(model, "m"));
    check_ok(model.put(id_range(300, 700)));
    check_ok(model.store->checkpoint(model, "m"));
  }
  LogOptions options_of(std::vector<uint32_t> layouts) {
    LogOptions options = small_options(directory / "s");
    options.layout_row_bytes = std::move(layouts);
    options.total_rows = 1000;
    return options;
  }
  std::vector<std::string> files() const {
    std::vector<std::string> paths;
    for (const auto& entry : fs::directory_iterator(model.options.path)) {
      if (entry.file_size() > 0) paths.push_back(entry.path().string());
    }
    std::sort(paths.begin(), paths.end());
    return paths;
  }
  // Opens the store as it lies there and reads every row that was in the checkpoint.
  Status open_and_read() {
    model.store.reset();
    TE_RETURN_IF_ERROR(model.try_open());
    return model.get_all();
  }
};

bool is_segment(const std::string& path) {
  return fs::path(path).filename().string().starts_with("segment-");
}

}  // namespace

BOOST_AUTO_TEST_SUITE(log_damage)

BOOST_AUTO_TEST_CASE(a_flipped_byte_anywhere_is_reported_with_its_place) {
  Damaged damaged;
  check_ok(damaged.open_and_read());
  std::mt19937_64 random(1);
  for (const std::string& path : damaged.files()) {
    const std::string good = read_text(path);
    for (size_t at = 0; at < good.size(); at += 1 + random() % 997) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << random() % 8));
      write_text(path, bad);
      const Status status = damaged.open_and_read();
      // A byte of a block whose rows are all obsolete, or of none, is not read.
      if (!is_segment(path)) BOOST_TEST_REQUIRE(!status.is_ok());
      if (status.is_ok()) continue;
      BOOST_TEST_REQUIRE((status.code() == StatusCode::kCorruption));
      BOOST_TEST_REQUIRE(contains(status.message(), path));
      if (!is_segment(path)) continue;
      const std::string block = "block " + std::to_string(at / 4096) + " ";
      BOOST_TEST_REQUIRE(contains(status.message(), block));
      BOOST_TEST_REQUIRE(contains(status.message(), "row "));
    }
    write_text(path, good);
  }
  check_ok(damaged.open_and_read());
}

BOOST_AUTO_TEST_CASE(missing_or_short_files_are_reported) {
  Damaged damaged;
  check_ok(damaged.open_and_read());
  damaged.model.store.reset();
  std::mt19937_64 random(2);
  for (const std::string& path : damaged.files()) {
    const std::string good = read_text(path);
    for (size_t size : {size_t{0}, size_t{1}, size_t{4095}, random() % good.size()}) {
      write_text(path, good.substr(0, size));
      const Status status = damaged.open_and_read();
      BOOST_TEST((status.code() == StatusCode::kCorruption));
      BOOST_TEST(contains(status.message(), path));
    }
    fs::remove(path);
    const Status status = damaged.open_and_read();
    const bool is_manifest = fs::path(path).filename() == "MANIFEST";
    BOOST_TEST((status.code() == (is_manifest ? StatusCode::kNotFound : StatusCode::kCorruption)));
    write_text(path, good);
  }
  check_ok(damaged.open_and_read());  // nothing was deleted while it was damaged
}

BOOST_AUTO_TEST_CASE(random_files_never_crash) {
  Damaged damaged({132, 5000});
  std::mt19937_64 random(3);
  for (int round = 0; round < 150; ++round) {
    const auto files = damaged.files();
    const std::string& path = files[random() % files.size()];
    const std::string good = read_text(path);
    std::string bad = good;
    if (random() % 3 == 0) bad.resize(random() % (2 * bad.size()));
    for (uint64_t n = random() % 2000; n > 0 && !bad.empty(); --n) {
      bad[random() % bad.size()] = static_cast<char>(random());
    }
    write_text(path, bad);
    (void)damaged.open_and_read();
    damaged.model.store.reset();
    if (fs::exists(path)) write_text(path, good);
  }
}

BOOST_AUTO_TEST_CASE(blocks_of_another_store_are_not_taken_for_ours) {
  Damaged one;
  Damaged other;
  one.model.store.reset();
  other.model.store.reset();
  for (const std::string& path : one.files()) {
    if (!is_segment(path)) continue;
    fs::copy_file(path, other.model.options.path / fs::path(path).filename(),
                  fs::copy_options::overwrite_existing);
  }
  const Status status = other.open_and_read();
  BOOST_TEST((status.code() == StatusCode::kCorruption));
  BOOST_TEST(contains(status.message(), "block of another store"));
}

BOOST_AUTO_TEST_CASE(reclaiming_a_damaged_segment_loses_nothing) {
  TempDirectory directory;
  LogOptions options = small_options(directory / "s");
  options.segment_bytes = 32 << 10;
  ModelStore model(options);
  model.create();
  check_ok(model.put(id_range(0, 3000)));
  check_ok(model.store->checkpoint(model, "m"));
  // The segment of this row gets the fewest live rows, so that it is reclaimed first.
  const uint64_t victim_row = 1600;
  const uint32_t block = model.rows.at(victim_row).block.value;
  for (uint64_t id : id_range(0, 3000)) {
    const bool same_segment = model.rows.at(id).block.value / 8 == block / 8;
    if (same_segment ? id != victim_row : id % 16 != 0) model.forget(id);
  }
  char name[32];
  std::snprintf(name, sizeof(name), "/segment-%08x", block / 8);
  const std::string path = options.path + name;
  const std::string good = read_text(path);
  std::string bad = good;
  bad[block % 8 * 4096 + 2000] ^= 1;
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .write(bad.data(), static_cast<std::streamsize>(bad.size()));
  const Status status = model.store->reclaim(model, 1000);
  BOOST_TEST((status.code() == StatusCode::kCorruption));
  BOOST_TEST(contains(status.message(), path));
  BOOST_TEST(contains(status.message(), "checksum mismatch"));
  size_t lost = 0;
  for (const auto& [row, place] : model.rows) {
    const Status read = model.get({row});
    if (!read) {
      ++lost;
      BOOST_TEST((place.block.value == block));
      BOOST_TEST(contains(read.message(), "row " + std::to_string(row)));
    }
  }
  BOOST_TEST(lost == 1u);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .write(good.data(), static_cast<std::streamsize>(good.size()));
  check_ok(model.store->reclaim(model, 1000));
  check_ok(model.get_all());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
