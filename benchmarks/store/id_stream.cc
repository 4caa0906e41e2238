#include "id_stream.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "row_stamp.h"

namespace te::bench {
namespace {

constexpr double kZipfExponent = 1.05;
constexpr uint64_t kOrderSeed = 11;

}  // namespace

uint64_t RandomNumbers::next() {
  state_ += 0x9e3779b97f4a7c15ULL;
  uint64_t x = state_;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

uint64_t RandomNumbers::below(uint64_t limit) { return (next() >> 32) * limit >> 32; }

double RandomNumbers::unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

std::vector<uint32_t> random_order(uint32_t n, uint64_t seed) {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  RandomNumbers random(seed);
  for (uint32_t i = n; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

IdStream::IdStream(Popularity popularity, uint32_t rows, uint64_t seed)
    : rows_(rows), random_(mix(seed)), stamp_(rows) {
  if (popularity == Popularity::kUniform) return;
  row_of_rank_ = random_order(rows, kOrderSeed);
  cumulative_.reserve(rows);
  double sum = 0;
  for (uint32_t rank = 1; rank <= rows; ++rank) {
    sum += std::pow(rank, -kZipfExponent);
    cumulative_.push_back(sum);
  }
}

uint32_t IdStream::draw() {
  if (cumulative_.empty()) return static_cast<uint32_t>(random_.below(rows_));
  const double at = random_.unit() * cumulative_.back();
  const auto rank = std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, at);
  return row_of_rank_[static_cast<size_t>(rank - cumulative_.begin())];
}

bool IdStream::is_new(uint32_t row) { return std::exchange(stamp_[row], batch_) != batch_; }

void IdStream::next(uint32_t lookups, std::vector<RowId>& out) {
  out.clear();
  ++batch_;
  for (uint32_t i = 0; i < lookups; ++i) {
    if (const uint32_t row = draw(); is_new(row)) out.push_back(RowId(row));
  }
}

void IdStream::next_distinct(uint32_t ids, std::vector<RowId>& out) {
  out.clear();
  ++batch_;
  while (out.size() < ids) {
    if (const uint32_t row = draw(); is_new(row)) out.push_back(RowId(row));
  }
}

}  // namespace te::bench
