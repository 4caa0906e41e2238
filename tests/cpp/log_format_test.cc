// The bytes on disk, held still, and readers that meet hostile ones.
//
// The golden bytes are those of the worked examples in docs/FORMAT.md; they were made by a program
// of its own, from the text of that page. If one changes, the format has changed: raise
// kFormatVersion.
#include <random>

#include "base/aligned_buffer.h"
#include "base/crc32c.h"
#include "log/block.h"
#include "log/index_snapshot.h"
#include "log/manifest.h"
#include "log_fixture.h"

namespace te::test {
namespace {

constexpr uint64_t kStoreId = 0x1122334455667788;

template <class Bytes>
std::string hex(const Bytes& bytes, size_t begin, size_t end) {
  std::string text;
  for (size_t i = begin; i < end; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    const auto b = static_cast<unsigned char>(bytes[i]);
    text += kDigits[b >> 4];
    text += kDigits[b & 15];
  }
  return text;
}

struct SampleRun {
  RunShape shape = make_run_shape(4096, 8, 1000);
  RunIdentity identity{kStoreId, 40, BlockAddress(259), LayoutId(3)};
  AlignedBuffer run{4096};

  SampleRun() {
    std::memset(run.data(), 0xee, run.bytes());  // left over from an earlier run
    std::vector<std::byte> values(16);
    for (size_t i = 0; i < 8; ++i) {
      values[i] = static_cast<std::byte>(1 + i);
      values[8 + i] = static_cast<std::byte>(0x11 + i);
    }
    const std::vector<RowId> rows = {RowId(5), RowId(9)};
    const std::vector<const std::byte*> data = {values.data(), values.data() + 8};
    write_rows(run.data(), shape, 0, {rows, data}, 0, 2);
    seal_run(run.data(), shape, identity, 2, 42);
  }
};

Manifest sample_manifest() {
  Manifest manifest;
  manifest.store_id = kStoreId;
  manifest.checkpoint = 8;
  manifest.sequence_next = 43;
  manifest.total_rows = 200000;
  manifest.block_bytes = 4096;
  manifest.segment_bytes = 1 << 20;
  manifest.layout_row_bytes = {132, 68};
  manifest.segments = {{1, 4, 40}, {5, 256, 12}};
  manifest.indexes = {{7, 4096, 6, 0x845e41c9, 0}, {8, 4096, 2, 0x0badcafe, 0}};
  manifest.metadata = "hi";
  return manifest;
}

std::vector<std::byte> padded(std::vector<std::byte> bytes) {
  bytes.resize((bytes.size() + kFilePaddingBytes - 1) / kFilePaddingBytes * kFilePaddingBytes);
  return bytes;
}

struct IndexRow {
  uint64_t row;
  uint16_t layout;
  uint32_t block;
  bool operator==(const IndexRow&) const = default;
};
std::ostream& operator<<(std::ostream& out, const IndexRow& r) {
  return out << r.row << '/' << r.layout << '/' << r.block;
}

constexpr IndexIdentity kIndexIdentity{kStoreId, 7, 200000};

IndexRecord write_index(const std::string& path, const std::vector<IndexRow>& rows,
                        const IndexIdentity& identity = kIndexIdentity) {
  auto io = test_engine();
  IndexWriter writer(*io, path);
  check_ok(writer.start(identity));
  for (const IndexRow& r : rows)
    writer.add(LayoutId(r.layout), RowId(r.row), BlockAddress(r.block));
  auto summary = writer.finish();
  check_ok(summary.status());
  return summary.value();
}

Status read_rows(const std::string& path, const IndexRecord& record, std::vector<IndexRow>& rows,
                 const IndexIdentity& identity = kIndexIdentity) {
  auto io = test_engine();
  rows.clear();
  return read_index(*io, path, identity, record, 3, [&](LayoutId l, RowId r, BlockAddress b) {
    rows.push_back({r.value, l.value, b.value});
  });
}

const std::vector<IndexRow> kSampleRows = {{0, 0, 10},     {1, 0, 10},       {3, 0, 11},
                                           {70000, 0, 12}, {131000, 2, 300}, {131071, 2, 301}};

}  // namespace

BOOST_AUTO_TEST_SUITE(log_format)

BOOST_AUTO_TEST_CASE(golden_bytes_of_a_block) {
  const SampleRun sample;
  BOOST_TEST(sample.shape.rows_max == 336u);
  BOOST_TEST(sample.shape.rows_offset_bytes == 1400u);
  BOOST_TEST(hex(sample.run.data(), 0, 64) ==
             "5445424b1434f57402000300020000000100000008000000"
             "88776655443322112a0000000000000028000000000000000301000004000000"
             "0500000009000000");
  BOOST_TEST(hex(sample.run.data(), 1400, 1416) == "01020304050607081112131415161718");
  for (size_t i = 64; i < 4096; ++i) {
    if (i < 1400 || i >= 1416) BOOST_TEST_REQUIRE((sample.run.data()[i] == std::byte{0}));
  }
}

BOOST_AUTO_TEST_CASE(golden_bytes_of_an_index) {
  TempDirectory directory;
  const std::string path = directory / "index";
  const IndexRecord summary = write_index(path, kSampleRows);
  BOOST_TEST(summary.bytes == 4096u);
  BOOST_TEST(summary.rows == 6u);
  BOOST_TEST(summary.crc32c == 0x845e41c9u);
  const std::string bytes = read_text(path);
  BOOST_TEST(hex(bytes, 0, 176) ==
             "54454958884992ca02000000000000008877665544332211"
             "0700000000000000400d0300000000000000000000000000"
             "54455343bca99d86000000000000000004000000030000000000000000000000"
             "0b0000000b000000000000000c000000"
             "54455343cbcb2af9701101000000000001000000010000000000000000000000"
             "0d000000"
             "54455343ae836c24b8ff01000000000048000000020000000200010000000000"
             "2d0100002e01000000004700");
  BOOST_TEST(bytes.substr(176) == std::string(4096 - 176, '\0'));
}

BOOST_AUTO_TEST_CASE(golden_bytes_of_a_manifest) {
  const std::vector<std::byte> bytes = encode_manifest(sample_manifest());
  BOOST_TEST(hex(bytes, 0, bytes.size()) ==
             "54454d4602c345160200000002000000887766554433221108000000000000002b0000000000"
             "0000400d03000000000000100000000010000200000000000000020000000000000002000000"
             "000000008400000044000000070000000000000000100000000000000600000000000000c941"
             "5e8400000000080000000000000000100000000000000200000000000000fecaad0b00000000"
             "0100000004000000280000000000000005000000000100000c000000000000006869");
}

BOOST_AUTO_TEST_CASE(shapes_use_their_blocks_well) {
  for (uint32_t block_bytes : {4096u, 65536u}) {
    for (uint32_t row_bytes = 1; row_bytes < 70000; row_bytes += 1 + row_bytes / 7) {
      for (uint64_t total_rows : {uint64_t{1}, uint64_t{1} << 32, (uint64_t{1} << 32) + 1}) {
        const RunShape s = make_run_shape(block_bytes, row_bytes, total_rows);
        BOOST_TEST_REQUIRE(s.row_id_bytes == (total_rows <= (uint64_t{1} << 32) ? 4u : 8u));
        BOOST_TEST_REQUIRE(s.run_bytes == s.span_blocks * block_bytes);
        const uint64_t end = s.rows_offset_bytes + uint64_t{s.rows_max} * row_bytes;
        BOOST_TEST_REQUIRE(end <= s.run_bytes);
        BOOST_TEST_REQUIRE(end + std::max(row_bytes + s.row_id_bytes, block_bytes) > s.run_bytes);
        BOOST_TEST_REQUIRE((s.span_blocks == 1 || s.rows_max == 1));
        BOOST_TEST_REQUIRE(uint64_t{s.share_bytes} * s.rows_max <= s.run_bytes);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(every_flipped_bit_of_a_block_is_noticed) {
  SampleRun sample;
  BOOST_TEST(check_run(sample.run.data(), sample.shape, sample.identity) == nullptr);
  for (size_t i = 0; i < sample.run.bytes(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      sample.run.data()[i] ^= static_cast<std::byte>(1 << bit);
      BOOST_TEST_REQUIRE(check_run(sample.run.data(), sample.shape, sample.identity) != nullptr);
      sample.run.data()[i] ^= static_cast<std::byte>(1 << bit);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_good_block_in_the_wrong_place_is_noticed) {
  const SampleRun sample;
  const auto wrong = [&](auto change) {
    RunIdentity identity = sample.identity;
    change(identity);
    const char* what = check_run(sample.run.data(), sample.shape, identity);
    return std::string(what == nullptr ? "" : what);
  };
  BOOST_TEST(wrong([](RunIdentity& r) { r.store_id = 1; }) == "block of another store");
  BOOST_TEST(wrong([](RunIdentity& r) { r.segment_sequence = 41; }) ==
             "block of an earlier use of the segment");
  BOOST_TEST(wrong([](RunIdentity& r) { r.block = BlockAddress(260); }) ==
             "block of another place");
  BOOST_TEST(wrong([](RunIdentity& r) { r.layout = LayoutId(2); }) ==
             "block of another row layout");
}

BOOST_AUTO_TEST_CASE(the_last_copy_of_a_row_is_found) {
  const RunShape shape = make_run_shape(4096, 4, 1000);
  AlignedBuffer run(shape.run_bytes);
  std::vector<RowId> rows = {RowId(5), RowId(7), RowId(5), RowId(0)};
  std::vector<std::vector<std::byte>> values;
  std::vector<const std::byte*> data;
  for (uint64_t i = 0; i < rows.size(); ++i) values.push_back(row_value(i, 0, 4));
  for (const auto& value : values) data.push_back(value.data());
  write_rows(run.data(), shape, 0, {rows, data}, 0, rows.size());
  BOOST_TEST(find_row(run.data(), shape, 4, RowId(5)) == 2u);
  BOOST_TEST(find_row(run.data(), shape, 2, RowId(5)) == 0u);
  BOOST_TEST(find_row(run.data(), shape, 4, RowId(0)) == 3u);
  BOOST_TEST(find_row(run.data(), shape, 4, RowId(8)) == kNoRow);
}

BOOST_AUTO_TEST_CASE(a_manifest_comes_back_and_any_damage_is_noticed) {
  const auto good = padded(encode_manifest(sample_manifest()));
  const auto read = decode_manifest(good, "M");
  check_ok(read.status());
  const auto again = encode_manifest(Result<Manifest>(read).value());
  BOOST_TEST((again == encode_manifest(sample_manifest())));
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{0x10};
    BOOST_TEST_REQUIRE((decode_manifest(bad, "M").status().code() == StatusCode::kCorruption));
  }
  for (size_t size = 0; size < good.size(); ++size) {
    const auto status = decode_manifest(std::span(good).first(size), "M").status();
    BOOST_TEST_REQUIRE((status.code() == StatusCode::kCorruption));
  }
}

// The next checkpoint takes the next number, so no index may have it already.
BOOST_AUTO_TEST_CASE(a_manifest_with_impossible_index_numbers_is_refused) {
  const auto refused = [](const Manifest& manifest) {
    return decode_manifest(padded(encode_manifest(manifest)), "M").status().code() ==
           StatusCode::kCorruption;
  };
  Manifest manifest = sample_manifest();
  manifest.checkpoint = 100;
  manifest.indexes.assign(2, manifest.indexes.at(0));
  manifest.indexes[0].checkpoint = 7;
  manifest.indexes[1].checkpoint = 100;
  BOOST_TEST(!refused(manifest));
  manifest.checkpoint = 99;
  BOOST_TEST(refused(manifest));
  manifest.checkpoint = 100;
  manifest.indexes[0].checkpoint = 100;
  BOOST_TEST(refused(manifest));
  manifest.indexes.resize(kManifestIndexesMax + 1, manifest.indexes[0]);
  manifest.checkpoint = manifest.indexes.size();
  for (size_t i = 0; i < manifest.indexes.size(); ++i) manifest.indexes[i].checkpoint = i + 1;
  BOOST_TEST(refused(manifest));
}

BOOST_AUTO_TEST_CASE(a_manifest_of_random_bytes_never_crashes) {
  std::mt19937_64 random(3);
  const auto good = padded(encode_manifest(sample_manifest()));
  for (int round = 0; round < 20000; ++round) {
    auto bytes = good;
    bytes.resize(random() % (bytes.size() + 1));
    for (uint64_t n = random() % 12; n > 0 && !bytes.empty(); --n) {
      bytes[random() % std::min<size_t>(bytes.size(), 160)] = static_cast<std::byte>(random());
    }
    // Behind a checksum that fits, lengths are still not trusted.
    if (bytes.size() >= 8 && random() % 2 == 0) {
      const uint32_t crc = crc32c(bytes.data() + 8, bytes.size() - 8);
      std::memcpy(bytes.data() + 4, &crc, 4);
    }
    (void)decode_manifest(bytes, "M");
  }
}

BOOST_AUTO_TEST_CASE(an_index_comes_back) {
  TempDirectory directory;
  std::mt19937_64 random(5);
  const IndexIdentity identity{kStoreId, 1, uint64_t{1} << 33};
  for (int round = 0; round < 8; ++round) {
    std::vector<IndexRow> rows;
    uint64_t row = 0;
    for (int i = 0; i < 400000; ++i) {
      const auto layout = static_cast<uint16_t>(row / 300000 % 3);
      rows.push_back({row, layout, static_cast<uint32_t>(random() % LocationWord::kBlocksMax)});
      row += 1 + (round < 2 ? 0 : random() % (uint64_t{1} << (round * 2)));
    }
    const std::string path = directory / std::to_string(round);
    const IndexRecord summary = write_index(path, rows, identity);
    std::vector<IndexRow> found;
    check_ok(read_rows(path, summary, found, identity));
    BOOST_TEST((found == rows));
    BOOST_TEST(summary.bytes < rows.size() * (round < 4 ? 4 * (1u << round) : 12) + (64 << 10));
  }
}

BOOST_AUTO_TEST_CASE(any_damage_of_an_index_is_noticed) {
  TempDirectory directory;
  const std::string path = directory / "index";
  const IndexRecord summary = write_index(path, kSampleRows);
  const std::string good = read_text(path);
  std::vector<IndexRow> rows;
  check_ok(read_rows(path, summary, rows));
  BOOST_TEST(rows == kSampleRows, boost::test_tools::per_element());
  for (size_t i = 0; i < good.size(); i += good.size() / schedules(good.size())) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 4);
    write_text(path, bad);
    const Status status = read_rows(path, summary, rows);
    BOOST_TEST_REQUIRE((status.code() == StatusCode::kCorruption));
    BOOST_TEST_REQUIRE(contains(status.message(), path));
  }
  for (size_t size : {0, 47, 48, 100, 4095}) {
    write_text(path, good.substr(0, size));
    BOOST_TEST((read_rows(path, summary, rows).code() == StatusCode::kCorruption));
  }
  write_text(path, good);
  for (IndexIdentity other : {IndexIdentity{1, 7, 200000}, IndexIdentity{kStoreId, 8, 200000},
                              IndexIdentity{kStoreId, 7, 200001}}) {
    BOOST_TEST((read_rows(path, summary, rows, other).code() == StatusCode::kCorruption));
  }
}

// Sections with checksums that fit and contents that do not.
BOOST_AUTO_TEST_CASE(an_index_with_hostile_sections_never_crashes) {
  TempDirectory directory;
  const std::string path = directory / "index";
  const IndexRecord summary = write_index(path, kSampleRows);
  const std::string good = read_text(path);
  std::mt19937_64 random(11);
  const std::vector<std::pair<size_t, size_t>> sections = {{48, 48}, {96, 36}, {132, 44}};
  for (int round = 0; round < 1500; ++round) {
    std::string bad = good;
    const auto [at, bytes] = sections[random() % sections.size()];
    for (uint64_t n = 1 + random() % 4; n > 0; --n) {
      bad[at + 8 + random() % (bytes - 8)] = static_cast<char>(random());
    }
    const uint32_t crc = crc32c(bad.data() + at + 8, bytes - 8);
    std::memcpy(bad.data() + at + 4, &crc, 4);
    write_text(path, bad);
    std::vector<IndexRow> rows;
    (void)read_rows(path, summary, rows);
    for (const IndexRow& r : rows) BOOST_TEST_REQUIRE((r.row < 200000 && r.layout < 3));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te::test
