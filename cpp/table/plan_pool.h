// PlanPool: plans that have ended, kept for reuse with their buffers.
//
// Thread-safety: none; the engine's mutex guards it. Ownership: owns all plans; one that was taken
// stays valid until the pool goes. Cost: allocates only when more plans are out than ever before.
#pragma once

#include <memory>
#include <vector>

#include "table/plan.h"

namespace te {

class PlanPool {
 public:
  Plan& take() {
    if (free_.empty()) {
      plans_.push_back(std::make_unique<Plan>());
      return *plans_.back();
    }
    Plan* plan = free_.back();
    free_.pop_back();
    plan->window_batch = 0;
    plan->state = Plan::State::kReleased;
    plan->was_pooled = false;
    plan->is_noted = false;
    return *plan;
  }
  void give_back(Plan& plan) { free_.push_back(&plan); }
  // All plans, those that have ended too.
  template <class F>
  void visit(F f) const {
    for (const auto& plan : plans_) f(*plan);
  }

 private:
  std::vector<std::unique_ptr<Plan>> plans_;
  std::vector<Plan*> free_;
};

}  // namespace te
