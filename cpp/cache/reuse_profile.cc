#include "cache/reuse_profile.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace te {
namespace {

constexpr size_t kFollowedMin = 1024;
constexpr size_t kFollowedMax = 16384;
constexpr uint32_t kSampleAll = 1 << 24;
constexpr uint32_t kUnitsPerTurn = 8;  // a turn: as many marks as the cache has slots
constexpr float kDecay = 0.95f;        // of what was seen, each refresh
// Before anything is seen, a row that was used u times and last a while ago is taken to be used u
// times in that while and eight turns; this counts for one use that was seen.
constexpr double kPriorTurns = 8;

// Where a bucket of ages begins, in units: 0, 1, 2, 4, 6, 10, 14, 22, ...
double edge(size_t bucket) {
  return std::ldexp(bucket % 2 == 0 ? 2 : 3, static_cast<int>(bucket / 2)) - 2;
}

}  // namespace

size_t ReuseProfile::bucket(uint64_t age) const {
  const uint64_t units = age / unit_ + 2;
  const int width = std::bit_width(units);
  const size_t half_octave = static_cast<size_t>(2 * (width - 2)) + (units >> (width - 2) & 1);
  return std::min(half_octave, kBuckets - 1);
}

uint32_t ReuseProfile::same_worth_from(uint32_t age) const {
  const uint64_t units = (uint64_t{age} + window_) / unit_ + 2;
  const int below_half_octave = std::bit_width(units) - 2;
  const uint64_t first = ((units >> below_half_octave << below_half_octave) - 2) * unit_;
  return static_cast<uint32_t>(first - std::min<uint64_t>(first, window_));
}

void ReuseProfile::set_limit(uint32_t limit) {
  limit_ = std::max(limit, 1u);
  unit_ = std::max(limit_ / kUnitsPerTurn, 1u);
  const size_t size = std::clamp(std::bit_ceil(size_t{limit_} * 8), kFollowedMin, kFollowedMax);
  if (size == followed_.size()) return;
  followed_.assign(size, Followed());
  shift_ = 64 - std::countr_zero(size);
  count_ = 0;
  threshold_ = kSampleAll;
  estimate();
}

void ReuseProfile::follow(uint64_t hash, uint32_t mark, size_t level) {
  hash &= ~uint64_t{15};
  size_t place = home(hash);
  while (!followed_[place].is_free() && followed_[place].hash() != hash)
    place = (place + 1) & (followed_.size() - 1);
  Followed& row = followed_[place];
  if (row.is_free()) {
    ++count_;
  } else if (mark <= row.last) {
    return;  // no use: the row stays after all; or one of a plan older than the last to end
  } else {
    uses_seen_[row.level()][bucket(mark - row.last)] += 1;
  }
  row.key_high = static_cast<uint32_t>(hash >> 32);
  row.key_low = static_cast<uint32_t>(hash) | static_cast<uint32_t>(level);
  row.last = mark;
  if (count_ * 4 > followed_.size() * 3) {
    threshold_ = std::max(threshold_ / 2, 1u);
    thin_out(mark);
  }
}

// Rows behind it that could not have its place move up.
void ReuseProfile::remove(size_t place) {
  const size_t mask = followed_.size() - 1;
  for (size_t next = (place + 1) & mask; !followed_[next].is_free(); next = (next + 1) & mask) {
    if (((next - home(followed_[next].hash())) & mask) < ((next - place) & mask)) continue;
    followed_[place] = followed_[next];
    place = next;
  }
  followed_[place] = Followed();
  --count_;
}

// Drops rows that are not sampled any more, or too old.
void ReuseProfile::thin_out(uint32_t now) {
  const double age_max = edge(kBuckets - 1) * static_cast<double>(unit_);
  for (size_t i = followed_.size(); i-- > 0;) {
    const auto is_unwanted = [&](const Followed& row) {
      return !row.is_free() && (!is_sampled(row.hash()) || now > row.last + age_max);
    };
    while (is_unwanted(followed_[i])) remove(i);
  }
}

void ReuseProfile::halve() {
  for (Followed& row : followed_) {
    const auto fall = std::min(row.level(), kLevelsPerHalving);
    if (!row.is_free()) row.key_low -= static_cast<uint32_t>(fall);
  }
}

void ReuseProfile::forget_times() {
  std::fill(followed_.begin(), followed_.end(), Followed());
  count_ = 0;
  uses_ = 0;
  refreshed_at_ = 0;
}

void ReuseProfile::advance(size_t uses, uint32_t now, uint32_t window) {
  if (refreshed_at_ == 0) refreshed_at_ = now;
  uses_ += uses;
  if (uses_ < std::max<size_t>(limit_ / 2, followed_.size() / 2)) return;
  uses_ = 0;
  window_ = window;
  observe(now);
  thin_out(now);
  if (count_ * 16 < followed_.size()) threshold_ = std::min(threshold_ * 2, kSampleAll);
  estimate();
}

// Since the last time, as many rows of each level and age as now.
void ReuseProfile::observe(uint32_t now) {
  const float time = static_cast<float>(now - refreshed_at_) / static_cast<float>(unit_);
  refreshed_at_ = now;
  for (Table* table : {&uses_seen_, &time_spent_}) {
    for (auto& ages : *table) {
      for (float& value : ages) value *= kDecay;
    }
  }
  for (const Followed& row : followed_) {
    if (!row.is_free()) time_spent_[row.level()][bucket(now - row.last)] += time;
  }
}

void ReuseProfile::estimate() {
  const double wait = static_cast<double>(window_) / static_cast<double>(unit_);
  for (size_t l = 0; l < kLevels; ++l) {
    const double uses = std::exp2(static_cast<double>(l + 1) / 2);
    std::array<double, kBuckets> hazard;
    for (size_t b = 0; b < kBuckets; ++b) {
      const double prior_time = (edge(b) + kPriorTurns * kUnitsPerTurn) / uses;
      hazard[b] = (uses_seen_[l][b] + 1) / (time_spent_[l][b] + prior_time);
    }
    for (size_t first = 0; first < kBuckets; ++first) {
      double unused = 1;  // probability so far
      double held = wait;
      double best = 0;
      for (size_t b = first; b < kBuckets; ++b) {
        const double then = unused * std::exp(-hazard[b] * (edge(b + 1) - edge(b)));
        held += (unused - then) / hazard[b];
        unused = then;
        best = std::max(best, (1 - unused) / held);
      }
      worth_[l][first] = static_cast<float>(best);
    }
  }
}

}  // namespace te
