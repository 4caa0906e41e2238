"""The Triton kernels as an executor: bit-equal to the core's kernels, on a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiered_emb import _core
from tiered_emb.device import launch
from tiered_emb.device.executor import (
    FeatureUpdate,
    Image,
    LayoutMemory,
    PlannedRange,
    StagedBatch,
)
from tiered_emb.device.slots import SlotLayout, Slots
from tiered_emb.table_spec import TableSpec


class TritonExecutor:
    """See `Executor`.

    Args:
        tables: of the engine.
        optimizer: its number in the core.
        seed: of random words for rounding.
    """

    def __init__(self, tables: Sequence[TableSpec], optimizer: int, seed: int) -> None:
        self._optimizer = optimizer
        self._layouts = [SlotLayout(t.embedding_dim, t.dtype, optimizer) for t in tables]
        self._keys = [_core.table_key(seed, t.name) for t in tables]

    def copy(
        self,
        source: torch.Tensor,
        source_slots: torch.Tensor | None,
        target: torch.Tensor,
        target_slots: torch.Tensor | None,
    ) -> None:
        """See `Executor`."""
        launch.copy_rows(
            source.view(torch.int32), source_slots, target.view(torch.int32), target_slots
        )

    def pool(self, memory: LayoutMemory, batch: StagedBatch, f: int, out: torch.Tensor) -> None:
        """See `Executor`."""
        image = batch.image
        assert image is not None
        planned, lookup = image.features[f], batch.features[f].lookup
        if planned.bags == 0:
            return
        if lookup.mode == "max" and batch.will_update:
            batch.argmax[f] = torch.empty_like(out, dtype=torch.int32)
        launch.pool(
            self._slots(memory, lookup.table, batch),
            image.occurrence_slots[planned.occurrence_first :],
            image.bag_begin[planned.begin_first :],
            lookup.mode,
            out,
            batch.weights[f],
            batch.argmax[f],
        )

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
        steps = self._steps(batch, image, updates, hyper)
        for r, planned in enumerate(image.ranges):
            update, step = updates[planned.feature], steps[planned.feature]
            if update is None or planned.count == 0:
                continue
            occurrences = _occurrences(image, r, planned)
            grad = _gradients(batch, image, planned, update)
            mode = batch.features[planned.feature].lookup.mode
            which = image.which[planned.first :][: planned.count]
            if update.row_grad is not None:
                rows = torch.arange(planned.count, dtype=torch.int32, device=which.device)
                out = update.row_grad[planned.before :][: planned.count]
                launch.sum_gradients(rows, occurrences, mode, grad, out)
            elif step is not None:
                table = batch.features[planned.feature].lookup.table
                slots = self._slots(memory[batch.layouts[planned.feature]], table, batch)
                seldom, often = which[: planned.seldom], which[planned.seldom :]
                if planned.seldom:
                    launch.update(slots, seldom, occurrences, mode, grad, step)
                if often.numel():
                    dim = update.grad.shape[1]
                    sums = torch.empty(often.numel(), dim, device=which.device)
                    launch.sum_gradients(often, occurrences, mode, grad, sums)
                    launch.update(slots, often, occurrences, mode, sums, step)

    def _slots(self, memory: LayoutMemory, table: int, batch: StagedBatch) -> Slots:
        """Slots of a table's layout, and behind them the batch's guests."""
        guests = batch.guests.get(memory.number)
        if guests is None:
            return Slots(self._layouts[table], memory.device)
        end = memory.device.data_ptr() + memory.slots * memory.stride
        shift = guests.data_ptr() - end
        return Slots(self._layouts[table], memory.device, memory.slots, shift)

    def _weight_gradients(
        self, memory: LayoutMemory, batch: StagedBatch, f: int, update: FeatureUpdate
    ) -> None:
        image = batch.image
        assert image is not None
        assert update.weights_grad is not None
        planned = image.features[f]
        if planned.pooled == 0:
            return
        at = slice(planned.occurrence_first, planned.occurrence_first + planned.pooled)
        launch.sample_weight_gradients(
            self._slots(memory, batch.features[f].lookup.table, batch),
            image.occurrence_slots[at],
            image.bag_of[at],
            update.grad,
            update.weights_grad,
        )

    def _steps(
        self,
        batch: StagedBatch,
        image: Image,
        updates: Sequence[FeatureUpdate | None],
        hyper: _core.HyperTuple,
    ) -> list[launch.StepNumbers | None]:
        """Numbers of the features' updates, on the device."""
        host, device = image.numbers
        steps: list[launch.StepNumbers | None] = []
        for f, update in enumerate(updates):
            if update is None or not update.step:
                steps.append(None)
                continue
            key = self._keys[batch.features[f].lookup.table]
            decays = launch.write_step_numbers(self._optimizer, hyper, update.step, key, host[f])
            steps.append(launch.StepNumbers.at(device[f], decays))
        device.copy_(host, non_blocking=True)
        return steps


def _occurrences(image: Image, r: int, planned: PlannedRange) -> launch.Occurrences:
    at = slice(planned.first, planned.first + planned.count)
    return launch.Occurrences(
        image.places[at],
        image.rows[at],
        image.csr_begin[planned.first + r :],
        image.csr_bags,
        image.csr_occurrences,
    )


def _gradients(
    batch: StagedBatch, image: Image, planned: PlannedRange, update: FeatureUpdate
) -> launch.Gradients:
    feature = image.features[planned.feature]
    lookup = batch.features[planned.feature].lookup
    return launch.Gradients(
        update.grad,
        update.weights,
        image.bag_scale[feature.bag_first :] if lookup.mode == "mean" else None,
        batch.argmax[planned.feature],
        lookup.scale_grad_by_freq,
    )
