"""Adam on touched rows (`torch.optim.SparseAdam`)."""

from __future__ import annotations

from tiered_emb.optim.base import RowOptimizer, require


class Adam(RowOptimizer):
    """`torch.optim.SparseAdam`: moments of touched rows only.

    State ``exp_avg`` and ``exp_avg_sq``: [dim] float32 a row each.

    Args:
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        fused, check_finite: see `SGD`.
    """

    kind = 4

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        fused: bool = True,
        check_finite: bool = False,
    ) -> None:
        require(lr > 0, f"Adam: lr must be positive, got {lr}")
        require(eps > 0, f"Adam: eps must be positive, got {eps}")
        require(
            0 <= betas[0] < 1 and 0 <= betas[1] < 1, f"Adam: betas must be in [0, 1), got {betas}"
        )
        super().__init__({"lr": lr, "betas": betas, "eps": eps}, fused, check_finite)
