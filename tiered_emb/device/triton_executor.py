"""The Triton kernels as an executor: bit-equal to the core's kernels, on a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiered_emb import _core
from tiered_emb.device import launch
from tiered_emb.device.executor import (
    FeatureUpdate,
    Image,
    LayoutMemory,
    PlannedFeature,
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

    def groups(self, batch: StagedBatch, planned: Sequence[PlannedFeature]) -> list[range]:
        """See `Executor`."""
        groups: list[range] = []
        kind_before = None
        for f, (feature, of_plan) in enumerate(zip(batch.features, planned, strict=True)):
            lookup = feature.lookup
            # A table with a share of dram has a layout, and so slots on the device, of its own.
            kind: tuple[int, int, str, bool] | None
            kind = (batch.layouts[f], lookup.dim, lookup.mode, lookup.scale_grad_by_freq)
            if (
                feature.weights is not None
                or lookup.mode == "max"
                or lookup.dtype != torch.float32  # others are rounded with a key of their table
                or of_plan.pooled != of_plan.occurrences
            ):
                kind = None
            if kind is not None and kind == kind_before:
                groups[-1] = range(groups[-1].start, f + 1)
            else:
                groups.append(range(f, f + 1))
            kind_before = kind
        return groups

    def pool(
        self, memory: LayoutMemory, batch: StagedBatch, group: range, out: torch.Tensor
    ) -> None:
        """See `Executor`."""
        image = batch.image
        assert image is not None
        if out.shape[0] == 0:
            return
        f = group.start
        planned, lookup = image.features[f], batch.features[f].lookup
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
        runs = _runs(image, updates)
        steps = self._steps(batch, image, runs, updates, hyper)
        gradients: dict[int, launch.Gradients] = {}
        for run, step in zip(runs, steps, strict=True):
            f = run.ranges[0].feature
            if run.group.start not in gradients:
                gradients[run.group.start] = _gradients(batch, image, run.group, updates)
            grad = gradients[run.group.start]
            lookup = batch.features[f].lookup
            occurrences = _occurrences(image)
            update = updates[f]
            assert update is not None
            if update.row_grad is not None:
                for planned in run.ranges:
                    rows = torch.arange(
                        planned.first,
                        planned.first + planned.count,
                        dtype=torch.int32,
                        device=grad.grad.device,
                    )
                    out = update.row_grad[planned.before :][: planned.count]
                    launch.sum_gradients(rows, occurrences, lookup.mode, grad, out)
                continue
            assert step is not None
            slots = self._slots(memory[batch.layouts[f]], lookup.table, batch)
            seldom, often = run.which(image)
            if seldom.numel():
                launch.update(slots, seldom, occurrences, lookup.mode, grad, step)
            if often.numel():
                sums = torch.empty(often.numel(), lookup.dim, device=often.device)
                launch.sum_gradients(often, occurrences, lookup.mode, grad, sums)
                launch.update(slots, often, occurrences, lookup.mode, sums, step)

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
        runs: Sequence[_Run],
        updates: Sequence[FeatureUpdate | None],
        hyper: _core.HyperTuple,
    ) -> list[launch.StepNumbers | None]:
        """Numbers of the runs' updates, on the device; None where rows stay."""
        host, device = image.numbers
        steps: list[launch.StepNumbers | None] = []
        for run in runs:
            f = run.ranges[0].feature
            update = updates[f]
            if update is None or update.row_grad is not None:
                steps.append(None)
                continue
            key = self._keys[batch.features[f].lookup.table]
            decays = launch.write_step_numbers(self._optimizer, hyper, update.step, key, host[f])
            steps.append(launch.StepNumbers.at(device[f], decays))
        device.copy_(host, non_blocking=True)
        return steps


@dataclass(frozen=True)
class _Run:
    """Neighbouring ranges of a group whose rows are updated alike."""

    group: range
    ranges: list[PlannedRange]

    def which(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Their rows that occur seldom, and the others."""
        first, last = self.ranges[0], self.ranges[-1]
        seldom_end = last.seldom_first + last.seldom
        often_end = last.often_first + last.count - last.seldom
        return (
            image.which[first.seldom_first : seldom_end],
            image.which[first.often_first : often_end],
        )


def _runs(image: Image, updates: Sequence[FeatureUpdate | None]) -> list[_Run]:
    """All ranges whose rows are updated, or their gradients summed."""
    group_of = [group for group in image.groups for _ in group]
    runs: list[_Run] = []
    kind_before: tuple[int, ...] | None = None
    for planned in image.ranges:
        group, update = group_of[planned.feature], updates[planned.feature]
        kind: tuple[int, ...] | None = None
        if update is not None and update.row_grad is not None:
            kind = (group.start, 0, planned.feature)
        elif update is not None and update.step:
            kind = (group.start, update.step)
        if kind is not None and kind == kind_before:
            runs[-1].ranges.append(planned)
        elif kind is not None:
            runs.append(_Run(group, [planned]))
        kind_before = kind
    return runs


def _occurrences(image: Image) -> launch.Occurrences:
    positions = image.csr_occurrences if image.csr_occurrences.numel() else None
    return launch.Occurrences(image.places, image.rows, image.csr_begin, image.csr_bags, positions)


def _gradients(
    batch: StagedBatch, image: Image, group: range, updates: Sequence[FeatureUpdate | None]
) -> launch.Gradients:
    first = group.start
    lookup = batch.features[first].lookup
    grads = []
    for f in group:
        update = updates[f]
        if update is not None:
            grads.append(update.grad)
        else:  # is not read, but others count bags behind it
            grads.append(image.bag_scale.new_empty((image.features[f].bags, lookup.dim)))
    alone = updates[first] if len(group) == 1 else None
    return launch.Gradients(
        grads[0] if len(grads) == 1 else torch.cat(grads),
        None if alone is None else alone.weights,
        image.bag_scale[image.features[first].bag_first :] if lookup.mode == "mean" else None,
        batch.argmax[first],
        lookup.scale_grad_by_freq,
    )
