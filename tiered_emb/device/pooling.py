"""Lookups of tables with an hbm tier: as `autograd.Pooling`, on the tier's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiered_emb import _core
from tiered_emb.autograd import Pooling, batch_errors, may_be_prefetched
from tiered_emb.batch import Feature
from tiered_emb.device.executor import FeatureUpdate, StagedBatch
from tiered_emb.device.tier import HbmTier
from tiered_emb.optim import RowOptimizer


class DevicePooling(Pooling):
    """See `Pooling`; outputs are on the device, in autocast's dtype where that is enabled."""

    def __init__(
        self,
        core: _core.Engine,
        optimizer: RowOptimizer | None,
        grad_parameters: Sequence[torch.nn.Parameter | None],
        tier: HbmTier,
    ) -> None:
        super().__init__(core, optimizer, grad_parameters)
        self._tier = tier

    def lookup(self, features: list[Feature]) -> list[torch.Tensor]:
        """Pooled rows of each feature, [bags, dim] each, differentiable."""
        outs = super().lookup(features)
        device = self._tier.device.type
        if torch.is_autocast_enabled(device):
            outs = [out.to(torch.get_autocast_dtype(device)) for out in outs]
        return outs

    def _pool(self, features: list[Feature]) -> list[torch.Tensor]:
        """Pooled rows without a graph."""
        with self._tier.lock:
            outs, batch = self._forward(features, False, may_be_prefetched())
            self._tier.end(batch)
            return outs

    def forward(
        self, features: list[Feature], will_update: bool, prefetched: bool = True
    ) -> tuple[list[torch.Tensor], StagedBatch]:
        """Plans the batch, or takes the plan made ahead of it, brings its rows and pools them."""
        with self._tier.lock:
            return self._forward(features, will_update, prefetched and may_be_prefetched())

    def _forward(
        self, features: list[Feature], will_update: bool, prefetched: bool
    ) -> tuple[list[torch.Tensor], StagedBatch]:
        calls = [f.core for f in features]
        self._tier.leave_stranded()
        with batch_errors():
            plan = self._tier.with_room(lambda: self._core.plan(calls, will_update, prefetched))
        batch = self._tier.batch(plan, features, will_update)
        self._renormalise(batch)
        self._tier.stage(batch)
        return self._tier.pool(batch), batch

    def _renormalise(self, batch: StagedBatch) -> None:
        """Bounds norms in dram, where the rows come down for it and from where they go up again."""
        bounded = [f for f in batch.features if f.lookup.max_norm > 0]
        if not bounded:
            return
        ids = [_ids(f) for f in bounded]
        for f, rows in zip(bounded, ids, strict=True):
            self._tier.bring_down(f.lookup.table, rows)
        bounds = [(0, 0, f.lookup.max_norm, f.lookup.norm_type) for f in batch.features]
        try:
            self._core.renormalise(batch.plan, bounds)
            for f in bounded:
                self._renormalise_padding(f)
        finally:
            for f, rows in zip(bounded, ids, strict=True):
                self._tier.renew(f.lookup.table, rows)

    def _renormalise_row(self, call: _core.FeatureTuple, feature: Feature) -> None:
        plan = self._tier.with_room(lambda: self._core.plan([call], False, False))
        self._core.renormalise(plan, [(0, 0, feature.lookup.max_norm, feature.lookup.norm_type)])
        plan.release()

    def is_over(self, batch: StagedBatch) -> bool:
        """Whether the batch has had its backward."""
        return batch.plan.is_released

    def backward(
        self,
        batch: StagedBatch,
        features: list[Feature],
        grads: Sequence[torch.Tensor | None],
        wants_weights_grad: Sequence[bool],
    ) -> list[torch.Tensor | None]:
        """Updates the rows, or collects their gradients, and ends the plan; see `Pooling`."""
        with self._tier.lock:
            return self._backward(batch, features, grads, wants_weights_grad)

    def _backward(
        self,
        batch: StagedBatch,
        features: list[Feature],
        grads: Sequence[torch.Tensor | None],
        wants_weights_grad: Sequence[bool],
    ) -> list[torch.Tensor | None]:
        if self._core.is_closed:
            raise ValueError("the table is closed")
        optimizer, device = self._optimizer, self._tier.device
        collects = optimizer is not None and not optimizer.fused
        counts = batch.plan.unique_counts() if collects else []
        updates: list[FeatureUpdate | None] = []
        for i, (f, grad) in enumerate(zip(features, grads, strict=True)):
            if grad is None:
                updates.append(None)
                continue
            grad = grad.to(f.lookup.dtype).contiguous()
            if optimizer is not None and optimizer.check_finite:
                _check_finite(f, grad)
            weights = batch.weights[i]
            weights_grad = None
            if weights is not None and wants_weights_grad[i]:
                weights_grad = torch.zeros_like(weights)
            updates.append(
                FeatureUpdate(
                    grad,
                    weights,
                    row_grad=(
                        torch.empty((counts[i], f.lookup.dim), device=device) if collects else None
                    ),
                    weights_grad=weights_grad,
                )
            )
        self._tier.stage(batch)
        self._tier.backward(batch, updates, None if optimizer is None else optimizer.hyper())
        if collects and optimizer is not None:
            row_grads = [None if u is None else u.row_grad for u in updates]
            on_host = [None if g is None else g.cpu() for g in row_grads]
            self._collect(optimizer, batch.plan, features, on_host)
        self._tier.end(batch)
        return [
            None if u is None or u.weights_grad is None else u.weights_grad.to(_device_of(f))
            for u, f in zip(updates, features, strict=True)
        ]


def _device_of(feature: Feature) -> torch.device:
    """Of its per-sample weights."""
    assert feature.weights is not None
    return feature.weights.device


def _ids(feature: Feature) -> torch.Tensor:
    """Ids of a batch as int64 [n], padding too: `max_norm` bounds that row as well."""
    return feature.ids.reshape(-1).to(torch.int64)


def _check_finite(feature: Feature, grad: torch.Tensor) -> None:
    """Raises `ValueError` naming the first element of `grad` [bags, dim] that is not finite."""
    finite = torch.isfinite(grad)
    if bool(finite.all()):
        return
    bag, column = (int(i) for i in (~finite).nonzero()[0])
    raise ValueError(
        f"table '{feature.lookup.name}': gradient of bag {bag}, column {column} is "
        f"{grad[bag, column].item()}; nothing was updated"
    )
