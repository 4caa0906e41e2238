"""Lookups through autograd: pooled rows forward; their update, or their gradients, backward.

A forward that may be followed by a backward leaves its plan waiting in the graph; the backward ends
it. This is the step path: the tensors made here are the results and nothing else, save copies of
gradients that are not contiguous or not of the table's dtype. Thread-safe as the core is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tiered_emb import _core
from tiered_emb.batch import Feature
from tiered_emb.errors import IdOutOfRangeError, OffsetsError
from tiered_emb.optim import RowOptimizer

_NO_HYPER = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class _Scope(threading.local):
    may_be_prefetched = True


_scope = _Scope()


@contextmanager
def not_prefetched() -> Iterator[None]:
    """Lookups of this thread within are of batches that were not prefetched.

    While prefetched batches wait, a lookup in training has to be of the next of them. Within this,
    a model looks up others in between, negative samples for instance, and they keep waiting.
    """
    before = _scope.may_be_prefetched
    _scope.may_be_prefetched = False
    try:
        yield
    finally:
        _scope.may_be_prefetched = before


def may_be_prefetched() -> bool:
    """Whether the next lookup of this thread may be of a batch that was prefetched."""
    return _scope.may_be_prefetched


@contextmanager
def batch_errors() -> Iterator[None]:
    """What the core raises of a batch becomes the package's own type."""
    try:
        yield
    except (IndexError, ValueError) as error:
        raise _error_of_a_batch(error) from None


class Pooling:
    """Looks batches up in the tables of one core engine, and trains them with one optimizer.

    `grad_parameters` holds, for each table, the parameter that carries its gradients with
    `fused=False`, otherwise None.
    """

    def __init__(
        self,
        core: _core.Engine,
        optimizer: RowOptimizer | None,
        grad_parameters: Sequence[torch.nn.Parameter | None],
    ) -> None:
        self._core = core
        self._optimizer = optimizer
        self._grad_parameters = grad_parameters
        # Autograd runs a backward only if an input requires a gradient; the tables are no tensors.
        self._anchor = torch.zeros((), requires_grad=True)

    def lookup(self, features: list[Feature]) -> list[torch.Tensor]:
        """Pooled rows of each feature, [bags, dim] each, differentiable."""
        if not self._has_backward(features):
            return self._pool(features)
        weights = [f.weights for f in features]
        outs_with_graph: tuple[torch.Tensor, ...] = _Lookup.apply(  # type: ignore[no-untyped-call]
            self, features, self._anchor, *weights
        )
        return list(outs_with_graph)

    def announce(self, features: list[Feature]) -> int:
        """Tells of a batch before its lookup: what it needs is kept in dram if possible.

        Ids and offsets are copied. Returns a ticket, higher than all before it.
        """
        return self._core.announce([f.core for f in features], self._has_backward(features))

    def _has_backward(self, features: list[Feature]) -> bool:
        """Whether a lookup now may be followed by a backward."""
        if not torch.is_grad_enabled():
            return False
        if self._optimizer is not None:
            return True
        return any(f.weights is not None and f.weights.requires_grad for f in features)

    def _pool(self, features: list[Feature]) -> list[torch.Tensor]:
        """Pooled rows without a graph, planned only if some row is not in dram."""
        # A list is faster than a generator.
        renormalises = any([f.lookup.max_norm > 0 for f in features])  # noqa: C419
        if renormalises or not _scope.may_be_prefetched:
            outs, plan = self.forward(features, will_update=False)
            plan.release()
            return outs
        outs, tensors = _outputs(features)
        try:
            self._core.lookup([f.core for f in features], tensors)
        except (IndexError, ValueError) as error:
            raise _error_of_a_batch(error) from None
        return outs

    def forward(
        self, features: list[Feature], will_update: bool, prefetched: bool = True
    ) -> tuple[list[torch.Tensor], Any]:
        """Plans the batch, or takes the plan made ahead of it, brings its rows and pools them.

        The second result is what `backward` takes.
        """
        prefetched = prefetched and _scope.may_be_prefetched
        try:
            plan = self._core.plan([f.core for f in features], will_update, prefetched)
        except (IndexError, ValueError) as error:
            raise _error_of_a_batch(error) from None
        for f in features:
            if f.lookup.max_norm > 0:
                self._renormalise_padding(f)
        outs, tensors = _outputs(features)
        self._core.forward(plan, tensors)
        return outs, plan

    def is_over(self, plan: Any) -> bool:
        """Whether the plan of a forward has had its backward."""
        return bool(plan.is_released)

    def backward(
        self,
        plan: Any,
        features: list[Feature],
        grads: Sequence[torch.Tensor | None],
        wants_weights_grad: Sequence[bool],
    ) -> list[torch.Tensor | None]:
        """Updates the rows, or collects their gradients, and ends the plan.

        Args:
            plan: of the forward.
            features: the batch.
            grads: of each feature's output, [bags, dim]; None leaves the feature's rows alone.
            wants_weights_grad: which features want the gradient of their per-sample weights.

        Returns:
            Gradients of the per-sample weights, None where not wanted.
        """
        optimizer = self._optimizer
        collects = optimizer is not None and not optimizer.fused
        counts = plan.unique_counts() if collects else []
        dense: list[torch.Tensor | None] = []
        weights_grads: list[torch.Tensor | None] = [None] * len(features)
        row_grads: list[torch.Tensor | None] = [None] * len(features)
        calls: list[_core.BackwardTuple] = []
        for i, (f, grad) in enumerate(zip(features, grads, strict=True)):
            lookup = f.lookup
            if grad is None:
                calls.append((0, 0, 0, 0, lookup.scale_grad_by_freq))
                continue
            if grad.dtype is not lookup.dtype:
                grad = grad.to(lookup.dtype)
            grad = grad.contiguous()
            dense.append(grad)  # alive until the core has read it
            if f.weights is None and not collects:
                calls.append((grad.data_ptr() or 1, 0, 0, 0, lookup.scale_grad_by_freq))
                continue
            if f.weights is not None and wants_weights_grad[i]:
                weights_grads[i] = torch.zeros_like(f.weights)
            if collects:
                row_grads[i] = torch.empty((counts[i], lookup.dim))
            calls.append(
                (
                    grad.data_ptr() or 1,
                    _address(f.weights),
                    _address(weights_grads[i]),
                    _address(row_grads[i]),
                    lookup.scale_grad_by_freq,
                )
            )
        if optimizer is None:
            self._core.backward(plan, calls, _NO_HYPER, False)
        else:
            self._core.backward(plan, calls, optimizer.hyper(), optimizer.check_finite)
            if collects:
                self._collect(optimizer, plan, features, row_grads)
        plan.release()
        return weights_grads

    def _collect(
        self,
        optimizer: RowOptimizer,
        plan: _core.Plan,
        features: list[Feature],
        row_grads: Sequence[torch.Tensor | None],
    ) -> None:
        """Gives the summed gradients of the plan's rows to the optimizer, for its `step()`."""
        for i, (f, grads) in enumerate(zip(features, row_grads, strict=True)):
            parameter = self._grad_parameters[f.lookup.table]
            if grads is not None and parameter is not None:
                rows = torch.empty(len(grads), dtype=torch.int64)
                plan.unique_rows(i, rows.data_ptr())
                optimizer.accumulate(parameter, rows, grads)

    def _renormalise_padding(self, feature: Feature) -> None:
        """As torch, `max_norm` also bounds the padding row, although it is not pooled."""
        lookup = feature.lookup
        padding = lookup.padding_idx
        if padding < 0 or not bool((feature.ids == padding).any()):
            return
        ids = torch.tensor([padding])
        call = (lookup.table, ids.data_ptr(), 1, True, 0, 0, True, False, 1, 1, -1, False)
        self._renormalise_row(call, feature)

    def _renormalise_row(self, call: _core.FeatureTuple, feature: Feature) -> None:
        """Renormalises the only row of a batch."""
        lookup = feature.lookup
        plan = self._core.plan([call], False, False)
        out = torch.empty((1, lookup.dim), dtype=lookup.dtype)
        self._core.forward(plan, [(0, out.data_ptr(), lookup.max_norm, lookup.norm_type)])
        plan.release()


class _Lookup(torch.autograd.Function):
    """The graph's node of one `Pooling.lookup`."""

    @staticmethod
    def forward(
        ctx: Any, pooling: Pooling, features: list[Feature], anchor: torch.Tensor, *weights: Any
    ) -> tuple[torch.Tensor, ...]:
        outs, plan = pooling.forward(features, will_update=True)
        ctx.pooling, ctx.features, ctx.plan = pooling, features, plan
        ctx.save_for_backward(*[w for w in weights if w is not None])  # torch checks their version
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        pooling: Pooling = ctx.pooling
        _ = ctx.saved_tensors
        plan = ctx.plan
        if pooling.is_over(plan):  # a second backward over a retained graph
            _, plan = pooling.forward(ctx.features, will_update=True, prefetched=False)
        weights_grads = pooling.backward(plan, ctx.features, grads, ctx.needs_input_grad[3:])
        return (None, None, None, *weights_grads)


def _outputs(features: list[Feature]) -> tuple[list[torch.Tensor], list[_core.ForwardTuple]]:
    """Tensors for the pooled rows, and the tuples that `_core` takes."""
    outs = []
    tensors = []
    for f in features:
        lookup = f.lookup
        # Sizes one by one: a tuple of them takes torch longer.
        out = torch.empty(f.bags, lookup.dim, dtype=lookup.dtype)
        outs.append(out)
        weights = 0 if f.weights is None else _address(f.weights)
        tensors.append((weights, out.data_ptr(), lookup.max_norm, lookup.norm_type))
    return outs, tensors


def _error_of_a_batch(error: Exception) -> Exception:
    """The core's error as the package's type."""
    if isinstance(error, IndexError):
        return IdOutOfRangeError(*error.args)
    if ": offset " in str(error) or "include_last_offset" in str(error):
        return OffsetsError(*error.args)
    return error


def _address(tensor: torch.Tensor | None) -> int:
    """0 for None, which the core takes for "none"; a tensor without elements has no address: 1."""
    return 0 if tensor is None else tensor.data_ptr() or 1
