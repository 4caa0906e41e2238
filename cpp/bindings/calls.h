// Calls into the core from Python: without the GIL, with a Status turned into the exception of its
// code (status.h), and the handle of a plan.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/owned_engine.h"
#include "bindings/without_gil.h"
#include "table/engine.h"

namespace te {

[[noreturn]] void raise(PyObject* type, const std::string& message);
void check(const Status& status);
// Adds BudgetExceededError, a ValueError, to the module: what `check` raises where a batch or table
// does not fit.
void add_errors(nanobind::module_& m);

// A tensor's data_ptr().
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs a call into the core without the GIL and raises if it failed.
template <class F>
void run(F&& call) {
  Status status;
  {
    const WithoutGil without_gil;
    status = call();
  }
  check(status);
}

// A plan in flight; dropping it ends its pins.
class PlanHandle {
 public:
  PlanHandle(nanobind::object engine_object, const OwnedEngine& engine, Plan& plan)
      : engine_object_(std::move(engine_object)), engine_(engine), plan_(&plan) {}
  ~PlanHandle() { release(); }
  PlanHandle(const PlanHandle&) = delete;
  PlanHandle& operator=(const PlanHandle&) = delete;

  void release() {
    if (plan_ == nullptr) return;
    Plan* plan = std::exchange(plan_, nullptr);
    if (!engine_.is_usable()) return;
    const WithoutGil without_gil;
    engine_->release(*plan);
  }
  bool is_released() const { return plan_ == nullptr; }
  const OwnedEngine& engine() const { return engine_; }
  Plan& plan() {
    if (plan_ == nullptr) raise(PyExc_RuntimeError, "the plan of this batch has ended");
    return *plan_;
  }

 private:
  nanobind::object engine_object_;  // keeps the engine alive
  const OwnedEngine& engine_;
  Plan* plan_;
};

// (sample_weights, out, max_norm, norm_type)
using ForwardTuple = std::tuple<uintptr_t, uintptr_t, float, float>;
std::vector<FeatureForward> to_forwards(const std::vector<ForwardTuple>& features);

}  // namespace te
