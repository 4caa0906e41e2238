"""Rowwise Adagrad: one accumulator a row."""

from __future__ import annotations

from tiered_emb.optim.base import RowOptimizer, require


class RowwiseAdagrad(RowOptimizer):
    """FBGEMM's exact rowwise Adagrad: one accumulator a row, the mean of squares over its columns.

    ``sum += mean(g * g); w -= lr / (sqrt(sum) + eps) * g``. State ``sum``: one float32 a row.

    Args:
        lr: learning rate.
        eps: added to the root of ``sum``.
        weight_decay: L2 decay, added to the gradient of touched rows.
        initial_accumulator_value: of ``sum`` in a row never updated.
        fused, check_finite: see `SGD`.
    """

    kind = 3

    def __init__(
        self,
        lr: float = 1e-2,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        *,
        fused: bool = True,
        check_finite: bool = False,
    ) -> None:
        require(lr >= 0, f"RowwiseAdagrad: lr must not be negative, got {lr}")
        require(eps >= 0, f"RowwiseAdagrad: eps must not be negative, got {eps}")
        require(
            weight_decay >= 0,
            f"RowwiseAdagrad: weight_decay must not be negative, got {weight_decay}",
        )
        require(
            initial_accumulator_value >= 0,
            f"RowwiseAdagrad: initial_accumulator_value must not be negative, "
            f"got {initial_accumulator_value}",
        )
        defaults = {
            "lr": lr,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
        }
        super().__init__(defaults, fused, check_finite)
