// Status and Result: how the world's failures and the user's mistakes travel through the core.
//
// The bindings turn each code into one Python exception type. Messages carry the facts (path,
// table, position, value, bytes). Ownership: values. Thread-safety: values.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "base/check.h"

namespace te {

enum class StatusCode {
  kOk,
  kInvalidArgument,  // ValueError
  kOutOfRange,       // IndexError: an id outside its table
  kBudgetExceeded,   // ValueError: does not fit in a tier; nothing was changed
  kNoSpace,          // OSError(ENOSPC): the disk or the ssd capacity is full
  kIo,               // OSError
  kCorruption,       // OSError(EIO): bytes read are not what was written
  kAlreadyExists,    // FileExistsError
  kNotFound,         // FileNotFoundError
  kBusy,             // BlockingIOError: another process holds the store
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}
  static Status ok() { return Status(); }

  bool is_ok() const { return code_ == StatusCode::kOk; }
  explicit operator bool() const { return is_ok(); }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A value, or the reason why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit
  Result(Status status) : status_(std::move(status)) { TE_CHECK(!status_.is_ok()); }  // NOLINT

  bool is_ok() const { return value_.has_value(); }
  explicit operator bool() const { return is_ok(); }
  const Status& status() const { return status_; }
  T& value() {
    TE_CHECK(value_.has_value());
    return *value_;
  }
  T take() {
    TE_CHECK(value_.has_value());
    return std::move(*value_);
  }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace te

// Returns the status of an expression from the enclosing function unless it is ok.
#define TE_RETURN_IF_ERROR(expression)                                          \
  do {                                                                          \
    if (::te::Status te_status_ = (expression); !te_status_) return te_status_; \
  } while (false)
