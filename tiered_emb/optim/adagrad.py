"""Adagrad: one accumulator a weight."""

from __future__ import annotations

from tiered_emb.optim.base import RowOptimizer, require


class Adagrad(RowOptimizer):
    """`torch.optim.Adagrad` on sparse gradients. State ``sum``: [dim] float32 a row.

    Args:
        lr: learning rate.
        lr_decay: ``lr / (1 + (step - 1) * lr_decay)``.
        initial_accumulator_value: of ``sum`` in a row never updated.
        eps: added to the root of ``sum``.
        fused, check_finite: see `SGD`.
    """

    kind = 2

    def __init__(
        self,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        fused: bool = True,
        check_finite: bool = False,
    ) -> None:
        require(lr >= 0, f"Adagrad: lr must not be negative, got {lr}")
        require(lr_decay >= 0, f"Adagrad: lr_decay must not be negative, got {lr_decay}")
        require(eps >= 0, f"Adagrad: eps must not be negative, got {eps}")
        require(
            initial_accumulator_value >= 0,
            f"Adagrad: initial_accumulator_value must not be negative, "
            f"got {initial_accumulator_value}",
        )
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(defaults, fused, check_finite)
