#include "bindings/calls.h"

#include <cerrno>

namespace nb = nanobind;

namespace te {
namespace {

PyObject* budget_exceeded = nullptr;  // the module's, for the life of the process

[[noreturn]] void raise_os(int error, const std::string& message) {
  nb::object args = nb::make_tuple(error, message);
  PyErr_SetObject(PyExc_OSError, args.ptr());
  throw nb::python_error();
}

}  // namespace

void raise(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw nb::python_error();
}

void check(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk: return;
    case StatusCode::kInvalidArgument: raise(PyExc_ValueError, status.message());
    case StatusCode::kBudgetExceeded: raise(budget_exceeded, status.message());
    case StatusCode::kOutOfRange: raise(PyExc_IndexError, status.message());
    case StatusCode::kNoSpace: raise_os(ENOSPC, status.message());
    case StatusCode::kIo: raise(PyExc_OSError, status.message());
    case StatusCode::kCorruption: raise_os(EIO, status.message());
    case StatusCode::kAlreadyExists: raise_os(EEXIST, status.message());
    case StatusCode::kNotFound: raise_os(ENOENT, status.message());
    case StatusCode::kBusy: raise_os(EWOULDBLOCK, status.message());
  }
}

void add_errors(nb::module_& m) {
  budget_exceeded =
      PyErr_NewException("tiered_emb._core.BudgetExceededError", PyExc_ValueError, nullptr);
  m.attr("BudgetExceededError") = nb::handle(budget_exceeded);
}

std::vector<FeatureForward> to_forwards(const std::vector<ForwardTuple>& features) {
  std::vector<FeatureForward> forwards;
  forwards.reserve(features.size());
  for (const auto& [weights, out, max_norm, norm_type] : features)
    forwards.push_back({at<void>(weights), at<void>(out), max_norm, norm_type});
  return forwards;
}

}  // namespace te
