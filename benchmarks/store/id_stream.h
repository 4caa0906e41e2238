// IdStream: batches of row ids that a training job would look up, distinct within a batch.
//
// Uniform, or Zipf with exponent 1.05 whose ranks are spread over the rows by a fixed random
// permutation. The same arguments give the same batches. Thread-safety: none. Ownership: Zipf keeps
// 12 bytes a row. Cost: a few random numbers an id; Zipf a binary search more.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"

namespace te::bench {

// SplitMix64, Sebastiano Vigna: small, and good enough to choose rows.
class RandomNumbers {
 public:
  explicit RandomNumbers(uint64_t seed) : state_(seed) {}
  uint64_t next();
  uint64_t below(uint64_t limit);  // limit < 2^32
  double unit();                   // [0, 1)

 private:
  uint64_t state_;
};

// 0 ... n - 1 in random order.
std::vector<uint32_t> random_order(uint32_t n, uint64_t seed);

enum class Popularity { kUniform, kZipf };

class IdStream {
 public:
  IdStream(Popularity popularity, uint32_t rows, uint64_t seed);
  // `lookups` draws, of which each row is named once, in order of its first. Batches that ask for
  // distinct ids of their own number instead: next_distinct.
  void next(uint32_t lookups, std::vector<RowId>& out);
  void next_distinct(uint32_t ids, std::vector<RowId>& out);

 private:
  uint32_t draw();
  bool is_new(uint32_t row);

  const uint32_t rows_;
  RandomNumbers random_;
  std::vector<double> cumulative_;  // of Zipf's ranks; empty: uniform
  std::vector<uint32_t> row_of_rank_;
  std::vector<uint32_t> stamp_;  // of the batch that named each row last
  uint32_t batch_ = 0;
};

}  // namespace te::bench
