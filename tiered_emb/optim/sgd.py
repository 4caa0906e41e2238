"""Stochastic gradient descent."""

from __future__ import annotations

from tiered_emb.optim.base import RowOptimizer, require


class SGD(RowOptimizer):
    """Stochastic gradient descent: ``w -= lr * g``. No state.

    Args:
        lr: learning rate.
        fused: update in `backward` (default), or collect gradients for `step()`.
        check_finite: raise `ValueError` in `backward`, before any row changes, if a gradient is not
            finite.
    """

    kind = 1

    def __init__(self, lr: float = 1e-3, *, fused: bool = True, check_finite: bool = False) -> None:
        require(lr >= 0, f"SGD: lr must not be negative, got {lr}")
        super().__init__({"lr": lr}, fused, check_finite)
