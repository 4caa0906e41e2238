#include "bindings/device_module.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <string>
#include <tuple>

#include "base/philox.h"
#include "table/executor.h"

namespace te {
namespace {

// lr, eps, beta1, beta2, lr_decay, weight_decay; of the result: lr, eps, 1 - beta1, 1 - beta2,
// Adam's step size, weight decay.
using Numbers = std::tuple<double, double, double, double, double, double>;

Numbers optimizer_numbers(uint8_t kind, const Numbers& h, uint64_t step) {
  const Hyperparameters hyper{std::get<0>(h), std::get<1>(h), std::get<2>(h),
                              std::get<3>(h), std::get<4>(h), std::get<5>(h)};
  const OptimizerParams p = params_at(hyper, static_cast<OptimizerKind>(kind), step);
  const double step_size = p.lr * std::sqrt(p.bias_correction2) / p.bias_correction1;
  return {p.lr, p.eps, 1 - p.beta1, 1 - p.beta2, step_size, p.weight_decay};
}

}  // namespace

void add_device_functions(nanobind::module_& m) {
  m.def("table_key", [](uint64_t seed, const std::string& name) {
    const PhiloxKey key = philox_table_key(seed, name);
    return std::make_tuple(key.k0, key.k1);
  });
  m.def("optimizer_numbers", &optimizer_numbers);
}

}  // namespace te
