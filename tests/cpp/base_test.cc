// The base layer: checksums, random words, strong types, status, buffers, thread pool.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/crc32c.h"
#include "base/function_ref.h"
#include "base/philox.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "base/types.h"

namespace te {

BOOST_AUTO_TEST_SUITE(base_crc32c)

// RFC 3720 (iSCSI), appendix B.4, and the check value of the CRC catalogue.
BOOST_AUTO_TEST_CASE(known_vectors) {
  unsigned char up[32], down[32];
  for (int i = 0; i < 32; ++i) {
    up[i] = static_cast<unsigned char>(i);
    down[i] = static_cast<unsigned char>(31 - i);
  }
  const std::string zeros(32, '\0');
  const std::string ones(32, '\xff');
  BOOST_TEST(crc32c("123456789", 9) == 0xe3069283u);
  BOOST_TEST(crc32c(zeros.data(), 32) == 0x8a9136aau);
  BOOST_TEST(crc32c(ones.data(), 32) == 0x62a8ab43u);
  BOOST_TEST(crc32c(up, 32) == 0x46dd794eu);
  BOOST_TEST(crc32c(down, 32) == 0x113fdb5cu);
  BOOST_TEST(crc32c(nullptr, 0) == 0u);
}

BOOST_AUTO_TEST_CASE(table_equals_the_instruction_and_parts_equal_the_whole) {
  std::vector<unsigned char> bytes(20'009);
  uint32_t x = 1;
  for (auto& b : bytes) b = static_cast<unsigned char>((x = x * 1664525 + 1013904223) >> 24);
  for (size_t begin = 0; begin < 9; ++begin) {
    for (size_t size : {0, 1, 2, 7, 8, 9, 63, 64, 65, 1000, 4079, 4080, 4081, 4088, 4096, 8159,
                        8160, 8168, 20'000}) {
      const uint32_t whole = crc32c(bytes.data() + begin, size);
      BOOST_TEST_REQUIRE(whole == internal::crc32c_table(bytes.data() + begin, size, 0));
      const size_t cut = size / 3;
      const uint32_t head = crc32c(bytes.data() + begin, cut);
      BOOST_TEST_REQUIRE(whole == crc32c(bytes.data() + begin + cut, size - cut, head));
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(base_philox)

// philox4x32-10 of the file kat_vectors in the Random123 distribution.
BOOST_AUTO_TEST_CASE(known_answers) {
  const PhiloxWords zero = philox4x32({0, 0}, 0, 0, 0, 0);
  BOOST_TEST((zero == PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t f = 0xffffffff;
  const PhiloxWords ones = philox4x32({f, f}, f, f, f, f);
  BOOST_TEST((ones == PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  const PhiloxWords pi =
      philox4x32({0xa4093822, 0x299f31d0}, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344);
  BOOST_TEST((pi == PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

BOOST_AUTO_TEST_CASE(counters_of_columns_do_not_meet) {
  const PhiloxKey key{1, 2};
  std::set<PhiloxWords> seen;
  size_t calls = 0;
  for (auto purpose : {PhiloxPurpose::kInit, PhiloxPurpose::kRounding}) {
    for (uint64_t row : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, (uint64_t{1} << 40) - 1}) {
      for (uint64_t step : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, uint64_t{1} << 47}) {
        for (uint32_t group : {0u, 1u, 1023u}) {
          seen.insert(philox_columns(key, purpose, row, step, group));
          ++calls;
        }
      }
    }
  }
  BOOST_TEST(seen.size() == calls);
}

BOOST_AUTO_TEST_CASE(table_keys_differ_by_seed_and_name) {
  std::set<std::pair<uint32_t, uint32_t>> keys;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
    for (const char* name : {"", "a", "b", "ab"}) {
      const PhiloxKey key = philox_table_key(seed, name);
      keys.insert({key.k0, key.k1});
    }
  }
  BOOST_TEST(keys.size() == 12u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(base_types)

BOOST_AUTO_TEST_CASE(location_word_round_trips) {
  BOOST_TEST(LocationWord().is_never_written());
  BOOST_TEST(LocationWord::never_written().bits() == 0u);
  for (uint32_t v : {0u, 1u, 12345u, LocationWord::kSlotsMax - 1}) {
    const LocationWord word = LocationWord::slot(SlotIndex(v));
    BOOST_TEST((word.is_slot() && !word.is_block() && !word.is_never_written()));
    BOOST_TEST(word.slot_index().value == v);
    BOOST_TEST((LocationWord::from_bits(word.bits()) == word));
  }
  for (uint32_t v : {0u, 1u, 12345u, LocationWord::kBlocksMax - 1}) {
    const LocationWord word = LocationWord::block(BlockAddress(v));
    BOOST_TEST((word.is_block() && !word.is_slot() && !word.is_never_written()));
    BOOST_TEST(word.block_address().value == v);
    BOOST_TEST((LocationWord::from_bits(word.bits()) == word));
  }
}

BOOST_AUTO_TEST_CASE(strong_ids_compare) {
  BOOST_TEST(RowId().is_none());
  BOOST_TEST(!RowId(0).is_none());
  BOOST_TEST((RowId(1) < RowId(2) && RowId(2) < RowId::none()));
  static_assert(!std::is_convertible_v<uint64_t, RowId>);
  static_assert(!std::is_constructible_v<SlotIndex, RowId>);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(base_status)

Status fails_if(bool fail) {
  TE_RETURN_IF_ERROR(fail ? Status(StatusCode::kIo, "disk on fire") : Status::ok());
  return Status(StatusCode::kNotFound, "reached the end");
}

BOOST_AUTO_TEST_CASE(status_carries_code_and_message) {
  BOOST_TEST(Status::ok().is_ok());
  BOOST_TEST((fails_if(true).code() == StatusCode::kIo));
  BOOST_TEST(fails_if(true).message() == "disk on fire");
  BOOST_TEST((fails_if(false).code() == StatusCode::kNotFound));
}

BOOST_AUTO_TEST_CASE(result_holds_a_value_or_a_status) {
  Result<std::unique_ptr<int>> good(std::make_unique<int>(7));
  BOOST_TEST_REQUIRE(good.is_ok());
  BOOST_TEST(*good.value() == 7);
  const std::unique_ptr<int> taken = good.take();
  BOOST_TEST(*taken == 7);
  const Result<int> bad(Status(StatusCode::kNoSpace, "full"));
  BOOST_TEST(!bad);
  BOOST_TEST((bad.status().code() == StatusCode::kNoSpace));
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(base_buffers)

BOOST_AUTO_TEST_CASE(aligned_buffer_is_zeroed_aligned_and_moves) {
  AlignedBuffer a(5000);
  BOOST_TEST(reinterpret_cast<uintptr_t>(a.data()) % 4096 == 0u);
  for (size_t i = 0; i < a.bytes(); ++i) BOOST_TEST_REQUIRE((a.data()[i] == std::byte{0}));
  const std::byte* data = a.data();
  AlignedBuffer b(std::move(a));
  BOOST_TEST(b.data() == data);
  AlignedBuffer c(1);
  c = std::move(b);
  BOOST_TEST(c.data() == data);
  BOOST_TEST(c.bytes() == 5000u);
}

BOOST_AUTO_TEST_CASE(reserved_memory_gives_whole_pages_back) {
  ReservedMemory memory(1 << 20);
  std::memset(memory.data(), 1, 1 << 20);
  memory.discard(100, 300 * 1024);
  BOOST_TEST((memory.data()[99] == std::byte{1}));
  BOOST_TEST((memory.data()[150 * 1024] == std::byte{0}));
  BOOST_TEST((memory.data()[300 * 1024] == std::byte{1}));
  memory.discard(10, 20);
  BOOST_TEST((memory.data()[15] == std::byte{1}));
}

BOOST_AUTO_TEST_CASE(reserved_memory_is_touched_bit_by_bit) {
  constexpr size_t kPage = 4096;
  ReservedMemory memory(16 * kPage);
  const auto in_memory = [&] {
    std::array<unsigned char, 16> pages{};
    BOOST_REQUIRE(mincore(memory.data(), memory.bytes(), pages.data()) == 0);
    return std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return (p & 1) != 0; });
  };
  memory.data()[kPage + 7] = std::byte{5};
  BOOST_TEST(!memory.touch_some(4 * kPage, 10 * kPage));
  BOOST_TEST(in_memory() == 4);
  BOOST_TEST((memory.data()[kPage + 7] == std::byte{5}));
  BOOST_TEST(!memory.touch_some(4 * kPage, 10 * kPage));
  BOOST_TEST(memory.touch_some(4 * kPage, 10 * kPage));
  BOOST_TEST(in_memory() == 10);
  memory.discard(8 * kPage, 16 * kPage);
  BOOST_TEST(in_memory() == 8);
  BOOST_TEST(memory.touch_some(4 * kPage, 8 * kPage));
  BOOST_TEST(in_memory() == 8);
  BOOST_TEST(memory.touch_some(16 * kPage, 100 * kPage));
  BOOST_TEST(in_memory() == 16);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(base_function_ref)

int call(FunctionRef<int(int)> f, int x) { return f(x); }

BOOST_AUTO_TEST_CASE(refers_to_lambdas_and_objects) {
  int calls = 0;
  const auto counting = [&calls](int x) { return ++calls, x + 1; };
  BOOST_TEST(call(counting, 1) == 2);
  BOOST_TEST(call(counting, 2) == 3);
  BOOST_TEST(calls == 2);
  BOOST_TEST(call([owned = std::make_unique<int>(5)](int x) { return *owned + x; }, 1) == 6);
  struct Twice {
    int operator()(int x) const { return 2 * x; }
  };
  BOOST_TEST(call(Twice{}, 4) == 8);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(base_thread_pool)

BOOST_AUTO_TEST_CASE(every_task_runs_once) {
  for (size_t threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    BOOST_TEST(pool.threads() == threads);
    for (size_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      pool.run(tasks, [&](size_t i) { runs[i].fetch_add(1); });
      for (const auto& r : runs) BOOST_TEST_REQUIRE(r.load() == 1);
    }
  }
}

// As GOMP_parallel: the caller is one of the threads.
void parallel_by_threads(void (*f)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(f, data);
  f(data);
  for (std::thread& other : others) other.join();
}

BOOST_AUTO_TEST_CASE(a_pool_of_openmp_runs_every_task_once) {
  ThreadPool pool(3, parallel_by_threads);
  BOOST_TEST(pool.threads() == 3u);
  BOOST_TEST(pool.is_openmp());
  for (size_t tasks : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> runs(tasks);
    pool.run(tasks, [&](size_t i) { runs[i].fetch_add(1); });
    for (const auto& r : runs) BOOST_TEST_REQUIRE(r.load() == 1);
  }
}

BOOST_AUTO_TEST_CASE(results_are_visible_after_run_many_times) {
  ThreadPool pool(4);
  std::vector<size_t> squares(64);  // plain memory: the pool orders it
  for (size_t round = 0; round < 2000; ++round) {
    pool.run(squares.size(), [&](size_t i) { squares[i] = round * i; });
    const size_t sum = std::accumulate(squares.begin(), squares.end(), size_t{0});
    BOOST_TEST_REQUIRE(sum == round * (64 * 63 / 2));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace te
