#include "table/lookup_sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "cache/row_hash.h"
#include "rows/sample_hash.h"

namespace te {
namespace {

constexpr size_t kRowsEnough = 1 << 13;
constexpr size_t kRowsMin = 1 << 11;
constexpr size_t kBatchesEnough = 48;
constexpr size_t kEntriesMin = LookupSample::kEntries / 16;  // of so many batches as there may be
constexpr size_t kPiece = 1024;  // entries that room is made for at once
constexpr uint64_t kRestPerCost = 64;

}  // namespace

LookupSample::LookupSample() : memory_(kBytes) {}

void LookupSample::begin_batch() {
  if (end_batch_ - first_batch_ == kBatchesMax) drop_oldest_batch();
  in_batch(end_batch_++) = 0;
  mask_of_batch_ = mask_;
}

void LookupSample::note(std::span<const RowId> rows) {
  while (!rows.empty()) {
    const std::span<const RowId> piece = rows.first(std::min(rows.size(), kPiece));
    rows = rows.subspan(piece.size());
    while (used_ + piece.size() > kEntries) make_room();
    const size_t before = used_;
    if (mask_ == mask_of_batch_) {
      append(piece);
    } else {
      for (const RowId& row : piece) {
        if (is_sampled(row)) append({&row, 1});
      }
    }
    in_batch(end_batch_ - 1) += static_cast<uint32_t>(used_ - before);
  }
}

void LookupSample::end_batch(uint64_t cost) {
  burst_cost_ += cost;
  const uint64_t batches = end_batch_ - first_batch_;
  if (mask_ != 0 && batches == kBatchesMax && used_ < kEntriesMin) return clear();
  if (first_batch_ <= burst_begin_) return;
  const size_t rows = distinct_rows();
  if (mask_ != 0 && rows < kRowsMin && batches >= 4 * kBatchesEnough) return clear();
  if (rows > kRowsEnough && batches < kBatchesMax) {  // this batch alone may have brought them
    burst_begin_ = first_batch_;
    return;
  }
  rest_ = kRestPerCost * burst_cost_;
  burst_begin_ = end_batch_;
  burst_cost_ = 0;
}

void LookupSample::pass(uint64_t work) {
  if (!held_) rest_ -= std::min(rest_, work);
  gap_ = end_batch_;
}

void LookupSample::append(std::span<const RowId> rows) {
  const size_t place = (first_ + used_) % kEntries;
  const size_t to_end = std::min(rows.size(), kEntries - place);
  std::copy_n(rows.begin(), to_end, entries() + place);
  std::copy(rows.begin() + static_cast<ptrdiff_t>(to_end), rows.end(), entries());
  used_ += rows.size();
}

bool LookupSample::is_sampled(RowId row) const { return (sample_hash(row.value) & mask_) == 0; }

void LookupSample::make_room() {
  const bool is_all_of_burst = first_batch_ == burst_begin_;
  const bool is_short = end_batch_ - first_batch_ <= kBatchesEnough;
  if (is_short || (is_all_of_burst && distinct_rows() > kRowsEnough)) {
    halve_rate();
  } else {
    drop_oldest_batch();
  }
}

void LookupSample::drop_oldest_batch() {
  const uint32_t entries = in_batch(first_batch_++);
  first_ = (first_ + entries) % kEntries;
  used_ -= entries;
}

void LookupSample::halve_rate() {
  mask_ = mask_ >> 1 | uint32_t{1} << 31;
  size_t from = 0;
  size_t to = 0;
  for (uint64_t batch = first_batch_; batch != end_batch_; ++batch) {
    const size_t before = to;
    for (const size_t end = from + in_batch(batch); from != end; ++from) {
      const RowId row = entry(from);
      if (is_sampled(row)) entry(to++) = row;
    }
    in_batch(batch) = static_cast<uint32_t>(to - before);
  }
  used_ = to;
}

// The rows of before were noted at a lower rate than those to come.
void LookupSample::clear() {
  first_batch_ = burst_begin_ = end_batch_;
  used_ = 0;
  mask_ = 0;
}

// From the share of bits that hashes of the rows leave unset (Whang, Vander-Zanden, Taylor, ACM
// TODS 15(2), 1990): within a hundredth or two.
size_t LookupSample::distinct_rows() const {
  constexpr size_t kBits = kEntries;
  std::array<uint64_t, kBits / 64> bits{};
  for (size_t i = 0; i < used_; ++i) {
    const uint64_t bit = row_hash(entry(i)) % kBits;
    bits[bit / 64] |= uint64_t{1} << (bit % 64);
  }
  size_t unset = 0;
  for (const uint64_t word : bits) unset += static_cast<size_t>(std::popcount(~word));
  const double share = static_cast<double>(std::max<size_t>(unset, 1)) / kBits;
  return static_cast<size_t>(-std::log(share) * kBits);
}

LookupSample::Copy LookupSample::copy() const {
  size_t before_gap = 0;
  for (uint64_t batch = first_batch_; batch < gap_; ++batch) before_gap += in_batch(batch);
  const bool is_before = before_gap > used_ / 2;
  Copy copy;
  copy.rate = std::ldexp(1.0, -std::popcount(mask_));
  copy.first_batch = is_before ? first_batch_ : std::max(first_batch_, gap_);
  for (uint64_t batch = copy.first_batch; batch != (is_before ? gap_ : end_batch_); ++batch)
    copy.in_batch.push_back(in_batch(batch));
  for (size_t i = is_before ? 0 : before_gap; i != (is_before ? before_gap : used_); ++i)
    copy.rows.push_back(entry(i));
  return copy;
}

}  // namespace te
