// The in-place store: rows at fixed places in a file of 4 KiB pages.
//
// Pages are numbered by a fixed permutation, so that neighbours in id are not neighbours on the
// disk: a hash table's layout. A get reads each page of its batch once; a put reads, changes and
// writes each once. Both are one stream of the package's I/O engine with a full queue, so that what
// differs from LogStore is the layout. No checksums.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "row_store.h"

namespace te::bench {
namespace {

constexpr uint64_t kPageBytes = 4096;
// About the golden section of 2^32: far from every small fraction.
constexpr uint64_t kMultiplierFirst = 2654435761;

class PagePeer final : public RowStore {
 public:
  PagePeer(const StoreOptions& options, std::unique_ptr<IoEngine> io, IoFile file)
      : row_bytes_(options.row_bytes),
        rows_per_page_(kPageBytes / options.row_bytes),
        pages_((options.rows + rows_per_page_ - 1) / rows_per_page_),
        io_(std::move(io)),
        file_(std::move(file)),
        staging_(io_->depth() * kPageBytes) {
    while (std::gcd(multiplier_, pages_) != 1) multiplier_ += 2;
    file_.set_long_lived();
    io_->add_buffer(staging_.data(), staging_.bytes());
  }
  ~PagePeer() override {
    io_->remove_buffer(staging_.data());
    io_->forget(file_);
  }

  Status prepare() { return file_.allocate(pages_ * kPageBytes); }

  Status get_many(std::span<const RowId> rows, std::span<std::byte* const> out) override {
    return run(rows, false,
               [&](size_t i, std::byte* in_page) { std::memcpy(out[i], in_page, row_bytes_); });
  }

  Status put_many(std::span<const RowId> rows, std::span<const std::byte* const> data) override {
    return run(rows, true,
               [&](size_t i, std::byte* in_page) { std::memcpy(in_page, data[i], row_bytes_); });
  }

  Status flush() override { return file_.sync(); }

  Counters counters() const override {
    return {{"device_read_bytes", io_->read_stats().bytes},
            {"device_written_bytes", io_->write_stats().bytes}};
  }

 private:
  // The rows of one page: order_[begin, end).
  struct Page {
    uint64_t number = 0;
    size_t begin = 0;
    size_t end = 0;
    uint32_t place = 0;
  };

  uint64_t page_of(RowId row) const { return row.value / rows_per_page_ * multiplier_ % pages_; }

  void find_pages(std::span<const RowId> rows) {
    order_.clear();
    for (size_t i = 0; i < rows.size(); ++i) order_.push_back(page_of(rows[i]) << 24 | i);
    std::sort(order_.begin(), order_.end());
    wanted_.clear();
    for (size_t at = 0; at < order_.size(); ++at) {
      const uint64_t number = order_[at] >> 24;
      if (wanted_.empty() || wanted_.back().number != number) wanted_.push_back({number, at, 0, 0});
      wanted_.back().end = at + 1;
    }
  }

  // Reads every page of the rows, copies from or to it, and with `write` writes it back.
  Status run(std::span<const RowId> rows, bool write, FunctionRef<void(size_t, std::byte*)> copy) {
    TE_CHECK(rows.size() < size_t{1} << 24);
    find_pages(rows);
    free_places_.resize(staging_.bytes() / kPageBytes);
    std::iota(free_places_.begin(), free_places_.end(), 0u);
    started_.clear();
    to_write_.clear();
    size_t next_read = 0;
    size_t unfinished = wanted_.size();
    const auto next = [&](IoRequest& request) {
      const bool is_write = !to_write_.empty();
      if (unfinished == 0) return IoEngine::Next::kEnd;
      if (!is_write && (next_read == wanted_.size() || free_places_.empty()))
        return IoEngine::Next::kLater;
      size_t page = next_read;
      if (is_write) {
        page = to_write_.back();
        to_write_.pop_back();
      } else {
        wanted_[next_read++].place = free_places_.back();
        free_places_.pop_back();
      }
      started_.push_back({page, is_write});
      request = {is_write ? IoRequest::Kind::kWrite : IoRequest::Kind::kRead, &file_,
                 wanted_[page].number * kPageBytes, place_of(wanted_[page]), kPageBytes};
      return IoEngine::Next::kRequest;
    };
    const auto on_done = [&](size_t i) {
      const auto [index, was_write] = started_[i];
      const Page& page = wanted_[index];
      if (!was_write) {
        for (size_t at = page.begin; at < page.end; ++at) {
          const size_t row = order_[at] & ((1 << 24) - 1);
          copy(row, place_of(page) + rows[row].value % rows_per_page_ * row_bytes_);
        }
      }
      if (write && !was_write) {
        to_write_.push_back(index);
        return;
      }
      free_places_.push_back(page.place);
      --unfinished;
    };
    return io_->run_stream(next, on_done);
  }

  std::byte* place_of(const Page& page) { return staging_.data() + page.place * kPageBytes; }

  const uint32_t row_bytes_;
  const uint64_t rows_per_page_;
  const uint64_t pages_;
  uint64_t multiplier_ = kMultiplierFirst;
  const std::unique_ptr<IoEngine> io_;
  IoFile file_;
  AlignedBuffer staging_;
  std::vector<uint64_t> order_;  // page << 24 | index into the batch
  std::vector<Page> wanted_;
  std::vector<std::pair<size_t, bool>> started_;  // of each request: its page, whether it writes
  std::vector<size_t> to_write_;
  std::vector<uint32_t> free_places_;
};

}  // namespace

Result<std::unique_ptr<RowStore>> make_page_store(const StoreOptions& options) {
  if (options.row_bytes > kPageBytes) {
    return Status(StatusCode::kInvalidArgument, "a row is larger than a page");
  }
  auto io = make_named_engine(options.io);
  if (!io) return io.status();
  auto file = IoFile::open(options.directory + "/pages", IoFile::Mode::kCreate);
  if (!file) return file.status();
  auto store = std::make_unique<PagePeer>(options, io.take(), file.take());
  TE_RETURN_IF_ERROR(store->prepare());
  return std::unique_ptr<RowStore>(std::move(store));
}

}  // namespace te::bench
