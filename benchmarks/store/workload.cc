#include "workload.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "row_stamp.h"

namespace te::bench {
namespace {

constexpr uint64_t kCheckEvery = 64;
constexpr uint32_t kFillBatch = 1 << 15;
constexpr uint64_t kUniformSeed = 1;
constexpr uint64_t kChurnSeed = 2;
constexpr uint64_t kArenaSeed = 3;

}  // namespace

// Slots are taken in turn: the oldest row gives way. Every row in it is dirty.
struct Workload::Cache {
  Cache(Popularity popularity, uint64_t rows, uint64_t cache_rows, uint32_t row_bytes)
      : stream(popularity, static_cast<uint32_t>(rows), kChurnSeed),
        is_cached(rows),
        drawn(cache_rows),
        row_of_slot(cache_rows),
        arena(cache_rows * row_bytes) {}

  IdStream stream;
  // What the cache will hold after the batches that were drawn.
  std::vector<bool> is_cached;
  std::vector<RowId> drawn;
  size_t drawn_hand = 0;
  // What it holds.
  std::vector<RowId> row_of_slot;
  size_t hand = 0;
  ReservedMemory arena;
  std::vector<RowId> evicted;
  std::vector<const std::byte*> evicted_places;
};

Workload::Workload(RowStore& store, uint64_t rows, uint32_t row_bytes)
    : store_(store), rows_(rows), row_bytes_(row_bytes), versions_(rows) {
  TE_CHECK(row_bytes >= kRowBytesMin && rows <= UINT32_MAX);
}

Workload::~Workload() = default;

Result<Outcome> Workload::fill() {
  use_batch_buffer(kFillBatch);
  Outcome outcome;
  const Usage before = Usage::now();
  for (uint64_t first = 0; first < rows_; first += ids_.size()) {
    ids_.resize(std::min<uint64_t>(kFillBatch, rows_ - first));
    for (size_t i = 0; i < ids_.size(); ++i) {
      ids_[i] = RowId(first + i);
      stamp_row(places_[i], row_bytes_, ids_[i], versions_[ids_[i].value]);
    }
    const auto places = std::span<const std::byte* const>(places_).first(ids_.size());
    TE_RETURN_IF_ERROR(store_.put_many(ids_, places));
  }
  TE_RETURN_IF_ERROR(store_.settle());
  outcome.rows_put = rows_;
  outcome.usage = Usage::now() - before;
  return outcome;
}

Result<Outcome> Workload::get(double seconds, uint32_t batch) {
  if (uniform_ == nullptr) {
    uniform_ = std::make_unique<IdStream>(Popularity::kUniform, static_cast<uint32_t>(rows_),
                                          kUniformSeed);
  }
  batch = static_cast<uint32_t>(std::min<uint64_t>(batch, rows_));
  use_batch_buffer(batch);
  Outcome outcome;
  do {
    uniform_->next_distinct(batch, ids_);
    const Usage before = Usage::now();
    TE_RETURN_IF_ERROR(read(ids_, places_));
    outcome.usage += Usage::now() - before;
    outcome.rows_got += batch;
  } while (outcome.usage.seconds < seconds);
  outcome.lookups = outcome.rows_got;
  return outcome;
}

Result<Outcome> Workload::put(uint32_t batch, uint64_t arena_bytes) {
  const uint64_t slots = std::min<uint64_t>(arena_bytes / row_bytes_, rows_);
  ReservedMemory arena(slots * row_bytes_);
  const std::vector<uint32_t> order = random_order(static_cast<uint32_t>(slots), kArenaSeed);
  places_.clear();
  Outcome outcome;
  std::vector<const std::byte*> places(batch);
  for (uint64_t first = 0; first < rows_; first += slots) {
    const uint64_t pass_rows = std::min(slots, rows_ - first);
    for (uint64_t slot = 0; slot < slots; ++slot) {
      const RowId row(first + slot);
      stamp_row(arena.data() + slot * row_bytes_, row_bytes_, row, 0);
    }
    const Usage before = Usage::now();
    for (uint64_t at = 0; at < slots;) {
      ids_.clear();
      for (; at < slots && ids_.size() < batch; ++at) {
        if (order[at] >= pass_rows) continue;  // the last pass is a short one
        places[ids_.size()] = arena.data() + uint64_t{order[at]} * row_bytes_;
        ids_.push_back(RowId(first + order[at]));
      }
      TE_RETURN_IF_ERROR(
          store_.put_many(ids_, std::span<const std::byte* const>(places).first(ids_.size())));
      outcome.rows_put += ids_.size();
    }
    outcome.usage += Usage::now() - before;
  }
  return outcome;
}

Workload::Round Workload::draw_round(uint64_t rows_evicted, uint32_t batch) {
  Cache& cache = *cache_;
  const size_t slots = cache.drawn.size();
  Round round;
  uint64_t evicted = 0;
  while (evicted < rows_evicted) {
    cache.stream.next(batch, ids_);
    round.lookups += ids_.size();
    const size_t begin = round.missing.size();
    for (RowId row : ids_) {
      if (!cache.is_cached[row.value]) round.missing.push_back(row);
    }
    TE_CHECK(round.missing.size() - begin <= slots);
    for (size_t i = begin; i < round.missing.size(); ++i) {
      RowId& place = cache.drawn[cache.drawn_hand];
      if (!place.is_none()) {
        cache.is_cached[place.value] = false;
        ++evicted;
      }
      place = round.missing[i];
      cache.is_cached[place.value] = true;
      cache.drawn_hand = (cache.drawn_hand + 1) % slots;
    }
    round.ends.push_back(round.missing.size());
  }
  return round;
}

Result<Outcome> Workload::churn(Popularity popularity, uint64_t cache_rows, uint64_t rows_evicted,
                                uint32_t batch) {
  if (cache_ == nullptr) {
    cache_ = std::make_unique<Cache>(popularity, rows_, cache_rows, row_bytes_);
  }
  const Round round = draw_round(rows_evicted, batch);
  Outcome outcome;
  outcome.lookups = round.lookups;
  const Usage before = Usage::now();
  size_t begin = 0;
  for (const size_t end : round.ends) {
    TE_RETURN_IF_ERROR(churn_batch(std::span(round.missing).subspan(begin, end - begin), outcome));
    begin = end;
  }
  const Usage worked = Usage::now();
  TE_RETURN_IF_ERROR(store_.settle());
  const Usage settled = Usage::now();
  outcome.settle_s = settled.seconds - worked.seconds;
  outcome.usage = settled - before;
  return outcome;
}

Status Workload::churn_batch(std::span<const RowId> missing, Outcome& outcome) {
  Cache& cache = *cache_;
  const size_t slots = cache.row_of_slot.size();
  places_.clear();
  cache.evicted.clear();
  cache.evicted_places.clear();
  for (size_t i = 0; i < missing.size(); ++i) {
    std::byte* place = cache.arena.data() + cache.hand * row_bytes_;
    if (const RowId victim = cache.row_of_slot[cache.hand]; !victim.is_none()) {
      cache.evicted.push_back(victim);
      cache.evicted_places.push_back(place);
    }
    cache.row_of_slot[cache.hand] = missing[i];
    places_.push_back(place);
    cache.hand = (cache.hand + 1) % slots;
  }
  TE_RETURN_IF_ERROR(store_.put_many(cache.evicted, cache.evicted_places));
  TE_RETURN_IF_ERROR(read(missing, places_));
  TE_RETURN_IF_ERROR(store_.retire(missing));
  for (size_t i = 0; i < missing.size(); ++i) change(missing[i], places_[i]);
  outcome.rows_put += cache.evicted.size();
  outcome.rows_got += missing.size();
  return Status::ok();
}

Result<Outcome> Workload::flush() {
  ids_.clear();
  std::vector<const std::byte*> places;
  if (cache_ != nullptr) {
    for (size_t slot = 0; slot < cache_->row_of_slot.size(); ++slot) {
      if (cache_->row_of_slot[slot].is_none()) continue;
      ids_.push_back(cache_->row_of_slot[slot]);
      places.push_back(cache_->arena.data() + slot * row_bytes_);
    }
  }
  Outcome outcome;
  const Usage before = Usage::now();
  for (size_t first = 0; first < ids_.size(); first += kFillBatch) {
    const size_t count = std::min<size_t>(kFillBatch, ids_.size() - first);
    TE_RETURN_IF_ERROR(store_.put_many(std::span(ids_).subspan(first, count),
                                       std::span(places).subspan(first, count)));
  }
  TE_RETURN_IF_ERROR(store_.flush());
  outcome.rows_put = ids_.size();
  outcome.usage = Usage::now() - before;
  return outcome;
}

Result<Outcome> Workload::update(uint64_t lookups, uint32_t batch) {
  if (uniform_ == nullptr) {
    uniform_ = std::make_unique<IdStream>(Popularity::kUniform, static_cast<uint32_t>(rows_),
                                          kUniformSeed);
  }
  use_batch_buffer(batch);
  std::vector<std::vector<RowId>> batches((lookups + batch - 1) / batch);
  for (auto& ids : batches) uniform_->next(batch, ids);
  Outcome outcome;
  const Usage before = Usage::now();
  for (const auto& ids : batches) {
    const auto places = std::span<std::byte* const>(places_).first(ids.size());
    TE_RETURN_IF_ERROR(read(ids, places));
    for (size_t i = 0; i < ids.size(); ++i) change(ids[i], places_[i]);
    TE_RETURN_IF_ERROR(
        store_.put_many(ids, std::span<const std::byte* const>(places_.data(), ids.size())));
    outcome.lookups += ids.size();
  }
  outcome.rows_got = outcome.rows_put = outcome.lookups;
  const Usage worked = Usage::now();
  TE_RETURN_IF_ERROR(store_.settle());
  const Usage settled = Usage::now();
  outcome.settle_s = settled.seconds - worked.seconds;
  outcome.usage = settled - before;
  return outcome;
}

Status Workload::read(std::span<const RowId> rows, std::span<std::byte* const> places) {
  TE_RETURN_IF_ERROR(store_.get_many(rows, places));
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!is_row(places[i], rows[i])) return wrong(rows[i]);
    if (++rows_checked_ % kCheckEvery != 0) continue;
    if (!is_row_version(places[i], row_bytes_, rows[i], versions_[rows[i].value])) {
      return wrong(rows[i]);
    }
  }
  return Status::ok();
}

void Workload::change(RowId row, std::byte* place) {
  stamp_row(place, row_bytes_, row, ++versions_[row.value]);
}

void Workload::use_batch_buffer(size_t rows) {
  if (buffer_.bytes() < rows * row_bytes_) buffer_ = AlignedBuffer(rows * row_bytes_);
  places_.resize(rows);
  for (size_t i = 0; i < rows; ++i) places_[i] = buffer_.data() + i * row_bytes_;
}

Status Workload::wrong(RowId row) const {
  return Status(StatusCode::kCorruption,
                "row " + std::to_string(row.value) + " is not what was written last");
}

}  // namespace te::bench
