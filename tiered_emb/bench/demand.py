"""What a step asks of a machine, found out without running it.

The layers' operations and bytes come from a pass without data (torch's meta device). The misses
come from the ids: the core's own eviction policy runs over them without their rows. Cost: seconds,
mostly of drawing ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tiered_emb import _core
from tiered_emb.bench.bound import BLOCK_BYTES, StepWork, distinct_blocks
from tiered_emb.bench.contenders import Training
from tiered_emb.bench.workloads import Workload, named, resized
from tiered_emb.data.errors import DataError

STATE_BYTES = {"sgd": 0, "rowwise-adagrad": 4, "adagrad": 4, "adam": 8}  # a row; a float otherwise
SPACE = 1.45  # bytes of the store over those of its rows, at most
# What dram is charged for besides the rows (cpp/table/budget.h), and how much of that is free: a
# slot's place in directory and policy, a row's location, headroom and in training the list of
# changed rows as parts of the budget. The last two are as measured: batches announced and planned
# ahead, for each row of a batch, and how much that gets at most: a part of the budget, and bytes.
SLOT_BYTES, LOCATION_BYTES, FREE_BYTES = 48, 4.125, 8 << 20
HEADROOM, CHANGES = 1 / 128, 1 / 32
AHEAD_BYTES, AHEAD_SHARE, AHEAD_BYTES_MAX = 600, 0.6, 8e6
HELD_SHARE = 0.25  # of the slots that a batch leaves, at most, for rows fetched before their turn
HBM_ALIGNMENT = 16  # of slots on a device, and of those that they have in dram
WRITTEN = 1.63  # bytes for each byte of rows that leave, once space is reclaimed (Zipf 1.05)


@dataclass(frozen=True)
class LayerCost:
    """The layers of one step: floating-point operations, and bytes that their operators read and
    write, each operand once an operator."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Demand:
    """What one step asks for.

    Args:
        step: lookups, rows and what the drive does; its `dense_s` is not used.
        layers: see `LayerCost`.
        batch_size: samples.
        bags: pooled vectors.
        hbm_misses: rows that come up from dram; all unique rows where there is no hbm tier.
    """

    step: StepWork
    layers: LayerCost
    batch_size: int
    bags: float
    hbm_misses: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of_dict(cls, data: Mapping[str, Any]) -> Demand:
        """What `as_dict` gave; `TypeError` or `KeyError` where it is something else."""
        fields = dict(data)
        step, layers = StepWork(**fields.pop("step")), LayerCost(**fields.pop("layers"))
        return cls(step=step, layers=layers, **fields)


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Adds up the bytes of the operands of every operator that is no view."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


def layer_cost(workload: Workload, trains: bool) -> LayerCost:
    """Of the layers alone: forward; in training backward and Adam, too."""
    size = workload.batch_size
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        pooled = {
            name: torch.empty(size, workload.dim, requires_grad=trains) for name in workload.rows
        }
        model = workload.model(lambda _: pooled)
        dense = torch.empty(size, workload.dense_features)
        labels = torch.empty(size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    counter = FlopCounterMode(display=False)
    with counter, _Bytes() as moved, torch.set_grad_enabled(trains):
        logits = model(dense, {})
        if trains:
            loss = F.binary_cross_entropy_with_logits(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimizer.step()
    return LayerCost(float(counter.get_total_flops()), float(moved.total))


def row_bytes(workload: Workload, training: Training) -> int:
    """Of a row with its optimizer state."""
    weights = workload.dim * training.dtype.itemsize
    if not training.trains:
        return weights
    state = STATE_BYTES[training.optimizer]
    return weights + (state if training.optimizer == "rowwise-adagrad" else state * workload.dim)


def slots_of(
    dram_bytes: float, rows: int, one_row_bytes: int, unique_rows: float, trains: bool
) -> int:
    """Rows that a budget of dram holds, of so many, with batches of `unique_rows` ahead.

    Of budgets above 5 MB within a tenth of what engines say, if locations take less than the rows.
    """
    ahead = min(AHEAD_BYTES * unique_rows, AHEAD_SHARE * dram_bytes, AHEAD_BYTES_MAX)
    other = LOCATION_BYTES * rows + ahead + dram_bytes * HEADROOM
    other += dram_bytes * CHANGES if trains else 0.0
    with_overhead = (dram_bytes + FREE_BYTES - other) / (one_row_bytes + SLOT_BYTES)
    return max(0, int(min(rows, dram_bytes / one_row_bytes, with_overhead)))


def held_slots(slots: int, largest_batch: float, missing_rows: float) -> int:
    """Of so many slots those that are taken before their turn by rows of batches ahead."""
    return int(min(missing_rows, (slots - largest_batch) * HELD_SHARE))


def hbm_slot_bytes(one_row_bytes: float) -> int:
    """Of a row on a device, and of the same in dram."""
    return -(-math.ceil(one_row_bytes) // HBM_ALIGNMENT) * HBM_ALIGNMENT


class IdTrace:
    """The ids of the first batches of a workload, of all tables in one range.

    Args:
        warm_up: batches before the first that counts.
        counted: that count.
    """

    def __init__(self, workload: Workload, warm_up: int = 100, counted: int = 40) -> None:
        self.workload = workload
        self._warm_up, self._counted = warm_up, counted
        ends = np.cumsum([0, *workload.rows.values()])
        first_row = dict(zip(workload.rows, ends[:-1].tolist(), strict=True))
        batches = []
        for batch in islice(workload.batches(), warm_up + counted):
            parts = []
            for name, value in batch.sparse.items():
                ids = value[0] if isinstance(value, tuple) else value
                parts.append(ids.numpy().reshape(-1) + first_row[name])
            batches.append(np.concatenate(parts).astype(np.int64))
        self._lookups = len(batches[0])
        if any(len(ids) != self._lookups for ids in batches):
            raise DataError(f"{workload.name}: its batches have different numbers of ids")
        counts = [len(np.unique(ids)) for ids in batches]
        self._unique_rows_max = max(counts)
        self.unique_rows = float(np.mean(counts[warm_up:]))
        # The rows that occur, and the batches in terms of these.
        self._rows, self._ids = np.unique(np.concatenate(batches), return_inverse=True)

    @property
    def lookups(self) -> float:
        """Ids of a batch."""
        return float(self._lookups)

    def misses(self, slots: int, held_batches: int = 0) -> float:
        """Rows of a batch that a cache of so many slots has not.

        The core's own policy chooses, without knowing what comes. (Of `dlrm.measure`'s short
        rounds that is as far as it gets, with 16 batches announced: what it spares by knowing
        them, fetching before the first is used costs.)

        The cache starts with the last rows of the last tables, as one does whose tables have just
        been filled; every row has been written, so that its first use, too, has to fetch it.

        Args:
            held_batches: whose missing rows take slots before their turn.

        Raises:
            DataError: the slots are fewer than the rows of a batch.
        """
        if slots >= self.workload.total_rows:
            return 0.0
        if slots < self._unique_rows_max:
            raise DataError(
                f"{slots:,} rows fit, but a batch has up to {self._unique_rows_max:,}: "
                "give the tier more, or take a smaller --batch-size"
            )
        found = self._simulated(slots)
        held = held_slots(slots, self._unique_rows_max, held_batches * found)
        return found if held == 0 else self._simulated(slots - held)

    def _simulated(self, slots: int) -> float:
        # Ids of the simulation: rows that occur first, then the others that fill slots.
        size, oldest = self._lookups, self.workload.total_rows - slots
        filled = np.arange(len(self._rows), len(self._rows) + slots)
        is_filled = self._rows >= oldest
        filled[self._rows[is_filled] - oldest] = np.flatnonzero(is_filled)
        # In batches as long as the others, which hold no more rows than there are slots.
        step = min(size, slots)
        filling = [np.resize(filled[at : at + step], size) for at in range(0, slots, step)]
        ids = np.ascontiguousarray(
            np.concatenate([*filling, self._ids.reshape(-1)]), dtype=np.int64
        )
        before = (len(filling) + self._warm_up) * size
        counts = _core.simulate_cache(
            "lookahead", slots, len(self._rows) + slots, ids.ctypes.data, len(ids), size, 0, before
        )
        return (counts["misses"] + counts["first_touches"]) / self._counted


def demand_of(
    trace: IdTrace,
    training: Training,
    *,
    dram_bytes: float | None = None,
    hbm_bytes: float | None = None,
    rows_ahead: int = 4,
) -> Demand:
    """What a step asks for with tiers of these sizes.

    Args:
        dram_bytes: budget; None: all rows, and no drive.
        hbm_bytes: slots above it; None: no hbm tier.
        rows_ahead: batches whose rows are fetched before their turn.

    Raises:
        DataError: a tier is too small for a batch.
    """
    workload = trace.workload
    rows, row = workload.total_rows, row_bytes(workload, training)
    misses = 0.0
    if dram_bytes is not None:
        in_dram = row if hbm_bytes is None else hbm_slot_bytes(row)
        slots = slots_of(dram_bytes, rows, in_dram, trace.unique_rows, training.trains)
        misses = trace.misses(slots, rows_ahead)
    work = StepWork(
        dense_s=0.0,
        lookups=trace.lookups,
        unique_rows=trace.unique_rows,
        weight_bytes=workload.dim * training.dtype.itemsize,
        row_bytes=row,
        trains=training.trains,
        misses=misses,
        store_blocks=rows * row / BLOCK_BYTES if misses else 0.0,
    )
    written = misses * row if training.trains else 0.0  # as many leave as come, all changed
    work = replace(work, blocks_read=blocks_of(misses, rows * row), written_bytes=written)
    up = trace.unique_rows
    if hbm_bytes is not None:
        up = trace.misses(int(hbm_bytes / hbm_slot_bytes(row)))
        down = up if training.trains else 0.0
        work = replace(work, rows_up=up, rows_down=down, on_device=True)
    bags = float(workload.batch_size * len(workload.rows))
    return Demand(work, layer_cost(workload, training.trains), workload.batch_size, bags, up)


def blocks_of(misses: float, rows_bytes: float) -> float:
    """Distinct blocks that so many rows lie in, at random places of a store that is full of
    garbage to its limit: of a small one several in one block."""
    return distinct_blocks(misses, max(1.0, SPACE * rows_bytes / BLOCK_BYTES))


def demand_of_run(run: Mapping[str, Any]) -> Demand:
    """Of a measured run (of `dlrm.measure`) of a named model: its own rows and misses.

    Raises:
        DataError: the model has no name.
    """
    load = run["workload"]
    workload = resized(named(load["name"], 1.0), dim=load["dim"], batch_size=load["batch_size"])
    layers = layer_cost(workload, run["training"]["trains"])
    work = StepWork(**run["work"])
    bags = float(load["batch_size"] * load["tables"])
    return Demand(work, layers, load["batch_size"], bags, work.unique_rows)
