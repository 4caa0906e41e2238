"""What the optimizers of rows share: a `torch.optim.Optimizer` outside, the engine's inside.

Pass one to a table; it is then the table's `.optimizer`. Hyperparameters are read from
`param_groups[0]` at every update, so schedulers work. By default an update is *fused*: it happens
in `backward`, and `step()` and `zero_grad()` have nothing left to do. With `fused=False` the
gradients of the touched rows collect in `param_groups[0]["params"]`, one parameter a table with a
dense `.grad` of shape [touched rows, dim] in ascending order of row, and `step()` applies them:
gradient accumulation, clipping and `GradScaler` work as usual.

Semantics are those of `torch.optim` on sparse gradients: only touched rows move.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tiered_emb.engine import TableEngine

Hyper = tuple[float, float, float, float, float, float]


@dataclass
class _Touched:
    """Rows, ascending, whose gradients wait for `step()` in the parameter that this belongs to."""

    engine: weakref.ref[TableEngine]
    table: int
    rows: torch.Tensor
    is_begun: bool = False
    """A `step()` failed after it had moved some rows; these are the others."""


def require(condition: bool, what: str) -> None:
    """Raises `ValueError(what)` unless `condition` holds."""
    if not condition:
        raise ValueError(what)


class RowOptimizer(torch.optim.Optimizer):
    """Base of the optimizers below; use one of them."""

    kind: int = 0
    """The core's number of the optimizer."""

    def __init__(self, defaults: dict[str, Any], fused: bool, check_finite: bool) -> None:
        super().__init__([torch.nn.Parameter(torch.empty(0))], defaults)
        self.param_groups[0]["params"] = []
        self.fused = fused
        self.check_finite = check_finite
        self._touched: dict[torch.nn.Parameter, _Touched] = {}

    def hyper(self) -> Hyper:
        """(lr, eps, beta1, beta2, lr_decay, weight_decay) at present; 0 for what it has not."""
        group = self.param_groups[0]
        beta1, beta2 = group.get("betas", (0.0, 0.0))
        return (
            float(group["lr"]),
            float(group.get("eps", 0.0)),
            float(beta1),
            float(beta2),
            float(group.get("lr_decay", 0.0)),
            float(group.get("weight_decay", 0.0)),
        )

    def initial_state(self) -> float:
        """Value that every element of a new row's state has."""
        return float(self.defaults.get("initial_accumulator_value", 0.0))

    def add_table(self, engine: TableEngine, table: int, dim: int) -> torch.nn.Parameter | None:
        """Binds a table. Returns the parameter that will carry its gradients, or None if fused."""
        if self.fused:
            return None
        parameter = torch.nn.Parameter(torch.empty(0, dim))
        self.param_groups[0]["params"].append(parameter)
        self._touched[parameter] = _Touched(
            weakref.ref(engine), table, torch.empty(0, dtype=torch.int64)
        )
        return parameter

    def accumulate(
        self, parameter: torch.nn.Parameter, rows: torch.Tensor, grads: torch.Tensor
    ) -> None:
        """Adds gradients [n, dim] of distinct `rows` to those that wait in `parameter.grad`."""
        touched = self._touched[parameter]
        if parameter.grad is not None:
            rows = torch.cat([touched.rows, rows])
            grads = torch.cat([parameter.grad, grads])
        # Ascending order, so that a norm over the gradients is summed alike whatever the tiers are.
        unique, inverse = torch.unique(rows, return_inverse=True)
        summed = torch.zeros(len(unique), grads.shape[1]).index_add_(0, inverse, grads)
        touched.is_begun = touched.is_begun and parameter.grad is not None
        self._hold(parameter, unique, summed)

    def _hold(self, parameter: torch.nn.Parameter, rows: torch.Tensor, grads: torch.Tensor) -> None:
        self._touched[parameter].rows = rows
        parameter.grad = None
        # The parameter stands for rows that live in the engine: it has their shape, and no memory.
        parameter.data = torch.zeros(1).expand(grads.shape)
        parameter.grad = grads

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets waiting gradients. Not by zeros: a row whose gradient is 0 would still move."""
        super().zero_grad(set_to_none=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Applies waiting gradients (`fused=False`); fused updates happened in `backward`.

        If that fails midway (a full disk), the gradients of rows that have moved are forgotten and
        the others wait on, so that `step()` may be tried again.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        done: list[torch.nn.Parameter] = []
        try:
            for parameter, touched in self._touched.items():
                engine = touched.engine()
                if parameter.grad is not None and engine is not None:
                    self._apply(engine, parameter, touched)
                    done.append(parameter)
        except BaseException:
            for parameter in done:
                parameter.grad = None
            raise
        return loss

    def _apply(self, engine: TableEngine, parameter: torch.nn.Parameter, touched: _Touched) -> None:
        grad = parameter.grad
        assert grad is not None
        applied = torch.zeros(1, dtype=torch.int64)
        try:
            engine.apply_gradients(touched.table, touched.rows, grad, touched.is_begun, applied)
        except BaseException:
            moved = int(applied)
            if moved > 0:
                touched.is_begun = True
                self._hold(parameter, touched.rows[moved:], grad[moved:])
            raise
        touched.is_begun = False
