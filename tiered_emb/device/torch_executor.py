"""Plain torch operations as an executor: for any device, and no other package.

Sums run in the order of torch's own `embedding_bag`, over occurrences in input order; the gradients
of rows are pooled from those of bags by the plan's lists, without a sort and without atomics. So
results do not depend on where rows are, but they may differ in the last bit from the other
executors'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tiered_emb import _core
from tiered_emb.device.executor import (
    FeatureUpdate,
    LayoutMemory,
    PlannedFeature,
    PlannedRange,
    StagedBatch,
)
from tiered_emb.device.slots import ADAGRAD, ADAM, ROWWISE_ADAGRAD, SGD, SlotLayout
from tiered_emb.table_spec import TableSpec

_MODES = {"sum": 0, "mean": 1, "max": 2}
_ROUNDING = 1 << 30  # what random words are for; see cpp/base/philox.h
_WORD = 0xFFFFFFFF


class TorchExecutor:
    """See `Executor`.

    Args:
        tables: of the engine.
        optimizer: its number in the core.
        seed: of random words for rounding.
    """

    def __init__(self, tables: Sequence[TableSpec], optimizer: int, seed: int) -> None:
        self._layouts = [SlotLayout(t.embedding_dim, t.dtype, optimizer) for t in tables]
        self._modes = [t.mode for t in tables]
        self._keys = [_core.table_key(seed, t.name) for t in tables]

    def copy(
        self,
        source: Tensor,
        source_slots: Tensor | None,
        target: Tensor,
        target_slots: Tensor | None,
    ) -> None:
        """See `Executor`."""
        source, target = source.view(torch.int32), target.view(torch.int32)
        if source_slots is not None:
            index = source_slots.to(source.device, non_blocking=True)
            target.copy_(source.index_select(0, index), non_blocking=True)
        elif target_slots is not None:
            index = target_slots.to(target.device, torch.int64, non_blocking=True)
            target.index_copy_(0, index, source.to(target.device, non_blocking=True))

    def groups(self, batch: StagedBatch, planned: Sequence[PlannedFeature]) -> list[range]:
        """See `Executor`."""
        return [range(f, f + 1) for f in range(len(planned))]

    def pool(self, memory: LayoutMemory, batch: StagedBatch, group: range, out: Tensor) -> None:
        """See `Executor`."""
        assert batch.image is not None
        f = group.start
        planned = batch.image.features[f]
        lookup = batch.features[f].lookup
        places = batch.image.occurrence_slots[planned.occurrence_first :][: planned.occurrences]
        begin = batch.image.bag_begin[planned.begin_first :][: planned.bags + 1]
        if planned.bags == 0:
            return
        x = self._weights(memory, lookup.table, places.clamp(min=0), batch).to(torch.float32)
        pooled, argmax = _embedding_bag(x, places < 0, begin, lookup.mode, batch.weights[f])
        out.copy_(pooled)
        if lookup.mode == "max":
            batch.argmax[f] = argmax

    def backward(
        self,
        memory: Sequence[LayoutMemory],
        batch: StagedBatch,
        updates: Sequence[FeatureUpdate | None],
        hyper: _core.HyperTuple,
    ) -> None:
        """See `Executor`."""
        image = batch.image
        assert image is not None
        for f, update in enumerate(updates):
            if update is not None and update.weights_grad is not None:
                self._weight_gradients(memory[batch.layouts[f]], batch, f, update)
        for planned in image.ranges:
            update = updates[planned.feature]
            if update is None or planned.count == 0:
                continue
            gradients = self._gradients(batch, planned, update)
            if update.row_grad is not None:
                update.row_grad[planned.before :][: planned.count] = gradients
            elif update.step:
                at = slice(planned.first, planned.first + planned.count)
                self._update(
                    memory[batch.layouts[planned.feature]],
                    batch,
                    batch.features[planned.feature].lookup.table,
                    image.places[at],
                    image.rows[at],
                    gradients,
                    hyper,
                    update.step,
                )

    def _weights(
        self, memory: LayoutMemory, table: int, places: Tensor, batch: StagedBatch
    ) -> Tensor:
        """Weights [n, dim] of rows at `places`, in the table's dtype."""
        layout = self._layouts[table]
        return _read(memory, places, batch).view(layout.dtype)[:, : layout.dim]

    def _weight_gradients(
        self, memory: LayoutMemory, batch: StagedBatch, f: int, update: FeatureUpdate
    ) -> None:
        image = batch.image
        assert image is not None
        assert update.weights_grad is not None
        planned = image.features[f]
        at = slice(planned.occurrence_first, planned.occurrence_first + planned.pooled)
        places, bags = image.occurrence_slots[at], image.bag_of[at].long()
        table = batch.features[f].lookup.table
        rows = self._weights(memory, table, places.clamp(min=0), batch).to(torch.float32)
        dots = (update.grad.to(torch.float32)[bags] * rows).sum(1)
        update.weights_grad[: planned.pooled] = dots.masked_fill(places < 0, 0.0)

    def _gradients(
        self, batch: StagedBatch, planned: PlannedRange, update: FeatureUpdate
    ) -> Tensor:
        """Float32 [count, dim]: gradients of a range's rows."""
        image = batch.image
        assert image is not None
        lookup = batch.features[planned.feature].lookup
        begin = image.csr_begin[planned.first :][: planned.count + 1].long()
        here = slice(planned.csr_first, planned.csr_end)
        bags = image.csr_bags[here].long()
        grad = update.grad.to(torch.float32)
        scale: Tensor | None = None
        if update.weights is not None:
            scale = update.weights.to(torch.float32)[image.csr_occurrences[here].long()]
        if lookup.mode == "mean":
            of_bag = image.bag_scale[image.features[planned.feature].bag_first :][bags]
            scale = of_bag if scale is None else scale * of_bag
        if lookup.scale_grad_by_freq:
            counts = begin.diff()
            of_row = torch.repeat_interleave(1.0 / counts, counts, output_size=len(bags))
            scale = of_row if scale is None else scale * of_row
        if lookup.mode == "max":
            argmax = batch.argmax[planned.feature]
            assert argmax is not None
            won = argmax[bags] == image.csr_occurrences[here, None]
            grad = torch.where(won, grad[bags], 0.0)
            bags = torch.arange(len(bags), device=begin.device)
        offsets = begin - planned.csr_first
        return torch.embedding_bag(grad, bags, offsets, False, 0, False, scale, True)[0]

    def _update(
        self,
        memory: LayoutMemory,
        batch: StagedBatch,
        table: int,
        places: Tensor,
        rows: Tensor,
        g: Tensor,
        hyper: _core.HyperTuple,
        step: int,
    ) -> None:
        """Moves rows by one step of the optimizer."""
        layout = self._layouts[table]
        slots = _read(memory, places, batch)
        lr, eps, keep1, keep2, step_size, decay = _core.optimizer_numbers(
            layout.optimizer, hyper, step
        )
        weights = slots.view(layout.dtype)[:, : layout.dim]
        begin = layout.state_offset_bytes // 4
        state = slots.view(torch.float32)[:, begin : begin + layout.state_floats]
        w = weights.to(torch.float32)
        if layout.optimizer == SGD:
            w = w - lr * g
        elif layout.optimizer == ADAGRAD:
            state += g * g
            w = w - lr * (g / (state.sqrt() + eps))
        elif layout.optimizer == ROWWISE_ADAGRAD:
            if decay:
                g = g + decay * w
            state += (g * g).mean(1, keepdim=True)
            w = w - lr / (state.sqrt() + eps) * g
        elif layout.optimizer == ADAM:
            m, v = state[:, : layout.dim], state[:, layout.dim :]
            m += (g - m) * keep1
            v += (g * g - v) * keep2
            w = w - step_size * (m / (v.sqrt() + eps))
        if layout.dtype != torch.float32:
            random = _random_halves(rows, self._keys[table], step, layout.dim)
            w = _round(w, random, layout.dtype)
        weights.copy_(w)
        _write(memory, places, slots, batch)


def _read(memory: LayoutMemory, places: Tensor, batch: StagedBatch) -> Tensor:
    """Slots [n, stride] at `places`."""
    guests = batch.guests.get(memory.number)
    if guests is None:
        return memory.device.index_select(0, places)
    slots = memory.device.index_select(0, places.clamp(max=memory.slots - 1))
    others = guests.index_select(0, (places - memory.slots).clamp(min=0))
    return torch.where((places < memory.slots)[:, None], slots, others)


def _write(memory: LayoutMemory, places: Tensor, slots: Tensor, batch: StagedBatch) -> None:
    """Slots at `places` become `slots` [n, stride]."""
    guests = batch.guests.get(memory.number)
    if guests is None:
        memory.device.index_copy_(0, places.long(), slots)
        return
    here = places < memory.slots
    memory.device[places[here].long()] = slots[here]
    guests[(places[~here] - memory.slots).long()] = slots[~here]


def _embedding_bag(
    x: Tensor, left_out: Tensor, begin: Tensor, mode: str, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Pools float32 rows `x` [occurrences, dim] by bag; also which occurrence won (mode "max")."""
    count = len(x)
    rows = torch.cat([x, x.new_zeros(1, x.shape[1])])
    index = torch.arange(count, device=x.device).masked_fill(left_out, count)
    pooled = torch.embedding_bag(
        rows, index, begin, False, _MODES[mode], False,
        None if weights is None else weights.to(torch.float32), True, count,
    )  # fmt: skip
    return pooled[0], pooled[3]


def _random_halves(rows: Tensor, key: tuple[int, int], step: int, dim: int) -> Tensor:
    """Sixteen random bits a column, int64 [n, dim]: halves of Philox4x32-10 words, low first.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the
    counter is that of `cpp/base/philox.h`.
    """
    groups = -(-dim // 8)
    k0, k1 = key
    purpose = _ROUNDING | (step >> 32 & 0xFFFF) << 8
    c0 = (rows & _WORD)[:, None].expand(-1, groups)
    c1 = torch.full_like(c0, step & _WORD)
    c2 = torch.arange(groups, device=rows.device).expand(len(rows), -1)
    c3 = ((rows >> 32) | purpose)[:, None].expand(-1, groups)
    for _ in range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + 0x9E3779B9) & _WORD
        k1 = (k1 + 0xBB67AE85) & _WORD
    words = torch.stack([c0, c1, c2, c3], dim=2)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=3)
    return halves.reshape(len(rows), -1)[:, :dim]


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit numbers."""
    low, high = b & 0xFFFF, b >> 16
    return (a * high + (a * low >> 16)) >> 16, a * b & _WORD


def _round(x: Tensor, random: Tensor, dtype: torch.dtype) -> Tensor:
    """To 16 bits, up with the probability of what is cut off; to nearest beyond float16's range."""
    bits = x.view(torch.int32)
    if dtype == torch.bfloat16:
        up = ((bits.long() & _WORD) + random) & 0xFFFF0000
        up = (up - ((up >> 31) << 32)).to(torch.int32).view(torch.float32)
        return torch.where(x.isfinite(), up, x).to(dtype)
    size = x.abs()
    normal = ((bits.long() & _WORD) + (random >> 3)) & 0xFFFFE000
    normal = (normal - ((normal >> 31) << 32)).to(torch.int32).view(torch.float32)
    is_tiny = size < 2.0**-14
    places = torch.where(is_tiny, size, 0.0) * 2.0**24
    lower = places.floor()
    part = ((places - lower) * 65536.0).long()
    tiny = (lower + ((part + random) >> 16).to(torch.float32)) * 2.0**-24
    tiny = torch.copysign(tiny, x)
    rounded = torch.where(is_tiny, tiny, normal)
    return torch.where(size < 65504.0, rounded, x).to(dtype)
