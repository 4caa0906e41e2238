"""What a step takes with tiers of some sizes: `predict`'s formulas, on what a trace asks for.

Tables whose rows have as many bytes share the slots of a pool; every pool gets the same share of
its rows, as the engine has it (docs/ARCHITECTURE.md, "Budget"), but for tables that are given a
share of their own. The misses of a pool are those of its curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tiered_emb.bench.bound import BLOCK_BYTES, StepWork
from tiered_emb.bench.demand import (
    FREE_BYTES,
    LOCATION_BYTES,
    SLOT_BYTES,
    STATE_BYTES,
    WRITTEN,
    Demand,
    LayerCost,
    blocks_of,
    hbm_slot_bytes,
    held_slots,
    slots_of,
)
from tiered_emb.bench.predict import Machine, Prediction, predict
from tiered_emb.data.errors import DataError
from tiered_emb.tiers import PINNED_BUFFERS, buffer_bytes_of
from tiered_emb.trace.format import TraceTable
from tiered_emb.tuner.curves import MissCurve

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DAY_S = 86_400.0
WINDOW_BYTES = 27.0  # of dram, an announced id (benchmarks/bench_cache.py)
HBM_SLOT_BYTES, HBM_PLACE_BYTES = 60.0, 4.0  # of dram: a slot on a device, and a row beside it
_WINDOW_FREE = 16  # batches that `slots_of` counts already


@dataclass(frozen=True)
class RowFormat:
    """How rows are kept.

    Args:
        optimizer: as the benchmarks name it; None: rows are not trained.
        dtype: of the weights.
    """

    optimizer: str | None = "rowwise-adagrad"
    dtype: str = "float32"

    def bytes_of(self, dim: int) -> tuple[int, int]:
        """Of a row of so many columns, without and with its optimizer state."""
        weights = -(-dim * DTYPES[self.dtype].itemsize // 4) * 4
        if self.optimizer is None:
            return weights, weights
        state = STATE_BYTES[self.optimizer]
        return weights, weights + state * (1 if self.optimizer == "rowwise-adagrad" else dim)


@dataclass(frozen=True)
class Pool:
    """Tables whose rows share slots.

    Args:
        tables: their names.
        rows: of all of them.
        dim: their columns.
        weight_bytes, row_bytes: of a row, without and with its optimizer state.
        lookups, unique_rows: a step.
        curves: misses, by batches that are known ahead, of a cache that begins empty.
        first_misses: a step, lookups of rows that the trace had not had before.
        rows_seen: that it had had by then, on average.
        share: of its rows that have slots; None: as the others.
    """

    tables: tuple[str, ...]
    rows: int
    dim: int
    weight_bytes: int
    row_bytes: int
    lookups: float
    unique_rows: float
    curves: Mapping[int, MissCurve]
    first_misses: float = 0.0
    rows_seen: float = 0.0
    share: float | None = None

    @property
    def bytes(self) -> int:
        """Of all its rows."""
        return self.rows * self.row_bytes

    def dram_bytes(self, sizes: Sizes) -> float:
        """Of a row's slot in dram, and of what tells where it is on a device."""
        if not sizes.hbm_bytes:
            return self.row_bytes
        return hbm_slot_bytes(self.row_bytes) + HBM_PLACE_BYTES

    @property
    def hbm_bytes(self) -> int:
        """Of slots on a device for all of them."""
        return self.rows * hbm_slot_bytes(self.row_bytes)

    def misses(self, slots: float, window: int) -> float:
        """Rows a step that so many slots have not: of none all, and straight from there to the
        curve's first size. Slots beyond the rows that the trace has had hold others, any of the
        rest as likely, so that a part of the first lookups hits."""
        if slots >= self.rows:
            return 0.0
        curve = self.curves[window]
        missing = min(curve.at(slots) * self.lookups, self.unique_rows)
        of_before = max(0.0, slots - self.rows_seen) / max(self.rows - self.rows_seen, 1.0)
        missing = max(0.0, missing - self.first_misses * of_before)
        below_first = max(0.0, 1 - slots / float(curve.rows[0]))
        return missing + (self.unique_rows - missing) * below_first


@dataclass(frozen=True)
class Model:
    """What a step asks for, whatever the sizes.

    Args:
        pools: all tables.
        largest_batch: distinct rows of the batch that has the most.
        trains: rows are updated.
        layers_s: seconds of a step that are not lookups and updates.
        batch_size: samples of a step; None: not known.
        repeats: lookups a step for each that the pools have.
    """

    pools: Sequence[Pool]
    largest_batch: float
    trains: bool
    layers_s: float = 0.0
    batch_size: int | None = None
    repeats: float = 1.0

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(pool.rows for pool in self.pools)

    @property
    def bytes(self) -> int:
        """Of all rows with their optimizer state."""
        return sum(pool.bytes for pool in self.pools)

    @property
    def hbm_bytes(self) -> int:
        """Of slots on a device for all rows."""
        return sum(pool.hbm_bytes for pool in self.pools)

    @property
    def lookups(self) -> float:
        """A step."""
        return sum(pool.lookups for pool in self.pools) * self.repeats

    @property
    def unique_rows(self) -> float:
        """A step."""
        return sum(pool.unique_rows for pool in self.pools)

    @property
    def windows(self) -> list[int]:
        """Batches known ahead for which there are curves, rising."""
        return sorted(self.pools[0].curves)

    def per_row(self, name: str) -> float:
        """`weight_bytes` or `row_bytes`, of the rows that a step uses on average."""
        used = sum(float(getattr(pool, name)) * pool.unique_rows for pool in self.pools)
        return float(used / max(self.unique_rows, 1e-9))


@dataclass(frozen=True)
class Sizes:
    """Of the tiers.

    Args:
        hbm_bytes: slots on a device; 0: none.
        dram_bytes: budget; None: all rows, and no ssd.
        rows_ahead, ids_ahead: batches; see `te.Prefetcher`. The latter is one of the model's
            `windows`.
    """

    hbm_bytes: float = 0.0
    dram_bytes: float | None = None
    rows_ahead: int = 4
    ids_ahead: int = 16


@dataclass(frozen=True)
class Outlook:
    """A step with tiers of some sizes.

    Args:
        step_s: seconds.
        binding: the resource that has most to do in it.
        busy_s: by resource.
        hbm_hits, dram_hits: of the distinct rows of a step; the latter of all of them.
        bytes_a_step: that go up over the link, or are read from and written to the ssd.
        reads_a_step: blocks of 4 KiB.
        slots: rows that dram holds.
        dram_bytes: the budget, or what all rows take with what belongs to them.
        error: standard error of `step_s`, of the sampling alone, relative.
    """

    sizes: Sizes
    step_s: float
    binding: str
    busy_s: Mapping[str, float]
    hbm_hits: float
    dram_hits: float
    bytes_a_step: Mapping[str, float]
    reads_a_step: float
    slots: int
    dram_bytes: float
    demand: Demand = field(repr=False)
    error: float = 0.0

    @property
    def steps_per_s(self) -> float:
        """Steps a second."""
        return 1 / self.step_s

    @property
    def reads_per_s(self) -> float:
        """Blocks of 4 KiB a second that the ssd is asked for."""
        return self.reads_a_step / self.step_s

    @property
    def written_bytes_a_day(self) -> float:
        """To the ssd."""
        return self.bytes_a_step["ssd written"] / self.step_s * DAY_S

    def life_years(self, endurance_bytes: float) -> float:
        """Until an ssd that may be written so many bytes has been; infinite if none are."""
        daily = self.written_bytes_a_day
        return float("inf") if daily == 0 else endurance_bytes / daily / 365.25


def outlook(model: Model, sizes: Sizes, machine: Machine) -> Outlook:
    """What a step takes.

    Raises:
        DataError: dram does not hold the rows of a batch.
    """
    shares, slots = _shares(model, sizes)
    missing = _missing(model, sizes, shares, slots)
    misses, row_bytes = sum(missing), model.per_row("row_bytes")
    missing_bytes = sum(n * pool.row_bytes for n, pool in zip(missing, model.pools, strict=True))
    has_device = any("link" in group for group in machine.groups)
    up = _hbm_misses(model, sizes) if has_device else 0.0
    pools = [(n, pool) for n, pool in zip(missing, model.pools, strict=True) if n > 0]
    work = StepWork(
        dense_s=model.layers_s,
        lookups=model.lookups,
        unique_rows=model.unique_rows,
        weight_bytes=round(model.per_row("weight_bytes")),
        row_bytes=round(row_bytes),
        trains=model.trains,
        misses=misses,
        blocks_read=sum(blocks_of(n, pool.bytes) for n, pool in pools),
        written_bytes=missing_bytes * WRITTEN if model.trains else 0.0,
        store_blocks=model.bytes / BLOCK_BYTES if misses else 0.0,
        rows_up=up,
        rows_down=up if model.trains else 0.0,
        on_device=has_device and sizes.hbm_bytes > 0,
    )
    demand = Demand(work, LayerCost(0.0, 0.0), model.batch_size or 0, 0.0, up)
    found = predict(demand, machine)
    unique = max(model.unique_rows, 1e-9)
    # A batch that leaves no room for the next one is not overlapped.
    overlaps = sizes.rows_ahead > 0 and (misses == 0 or slots >= 2 * model.largest_batch)
    return Outlook(
        sizes=sizes,
        step_s=found.step_s if overlaps else found.in_line_s,
        binding=found.binding,
        busy_s=found.busy_s,
        hbm_hits=1 - up / unique if sizes.hbm_bytes else 0.0,
        dram_hits=1 - misses / unique,
        bytes_a_step={
            "link": up * row_bytes * (2 if model.trains else 1),
            "ssd read": work.blocks_read * BLOCK_BYTES,
            "ssd written": work.written_bytes,
        },
        reads_a_step=work.blocks_read,
        slots=slots,
        dram_bytes=(
            dram_for_all(model, sizes.hbm_bytes) if sizes.dram_bytes is None else sizes.dram_bytes
        ),
        demand=demand,
        error=_error(model, sizes, shares, misses) * _share_of_misses(found, machine, overlaps),
    )


def _error(model: Model, sizes: Sizes, shares: Sequence[float], misses: float) -> float:
    """Standard error of the misses, relative to them."""
    if misses == 0:
        return 0.0
    errors = [
        pool.curves[sizes.ids_ahead].error_at(share * pool.rows) * pool.lookups
        for pool, share in zip(model.pools, shares, strict=True)
        if share < 1
    ]
    return float(np.linalg.norm(errors)) / misses


def _share_of_misses(found: Prediction, machine: Machine, overlaps: bool) -> float:
    """Of a step's time that grows with its misses."""
    busy_s = found.busy_s
    groups = machine.groups if overlaps else [list(busy_s)]
    busiest = max(groups, key=lambda group: sum(busy_s[name] for name in group))
    grows = sum(busy_s[name] for name in busiest if name in ("fetch", "plan", "ssd"))
    return grows / max(sum(busy_s[name] for name in busiest), 1e-12)


def dram_for_all(model: Model, hbm_bytes: float = 0.0) -> float:
    """Bytes of dram that hold every row with what belongs to it, and to slots on a device."""
    of_row = SLOT_BYTES + LOCATION_BYTES
    if not hbm_bytes:
        return model.bytes + model.rows * of_row
    of_row += HBM_PLACE_BYTES
    return model.hbm_bytes + model.rows * of_row + _for_device(model, hbm_bytes, None)


def _for_device(model: Model, hbm_bytes: float, dram_bytes: float | None) -> float:
    """Bytes of dram that slots on a device take, and what rows pass through on their way."""
    if not hbm_bytes:
        return 0.0
    slots = model.rows * _hbm_share(model, hbm_bytes)
    return HBM_SLOT_BYTES * slots + PINNED_BUFFERS * buffer_bytes_of(hbm_bytes, dram_bytes)


def _hbm_share(model: Model, hbm_bytes: float) -> float:
    """Of the rows of each pool those that have slots on a device of so many bytes."""
    return min(1.0, hbm_bytes / max(model.hbm_bytes, 1))


def _shares(model: Model, sizes: Sizes) -> tuple[list[float], int]:
    """Of each pool's rows the share that has slots, and all slots."""
    if sizes.dram_bytes is None:
        return [1.0] * len(model.pools), model.rows
    fixed = [pool for pool in model.pools if pool.share is not None]
    kept = sum(
        (pool.dram_bytes(sizes) + SLOT_BYTES) * pool.rows * (pool.share or 0.0) for pool in fixed
    )
    if kept > sizes.dram_bytes + FREE_BYTES:
        raise DataError(
            f"shares of single tables take {kept:,.0f} bytes, dram has {sizes.dram_bytes:,.0f}"
        )
    own = int(sum(pool.rows * (pool.share or 0.0) for pool in fixed))
    others = [pool for pool in model.pools if pool.share is None]
    rows = sum(pool.rows for pool in others)
    slots = 0
    if rows > 0:
        mean_bytes = round(sum(pool.dram_bytes(sizes) * pool.rows for pool in others) / rows)
        ahead = max(0, sizes.ids_ahead - _WINDOW_FREE) * model.lookups * WINDOW_BYTES
        of_device = _for_device(model, sizes.hbm_bytes, sizes.dram_bytes)
        left = max(0.0, sizes.dram_bytes - kept - ahead - of_device)
        unique = sum(pool.unique_rows for pool in others)
        slots = slots_of(left, rows, mean_bytes, unique, model.trains)
    if slots + own < model.largest_batch:
        locations = LOCATION_BYTES * model.rows
        raise DataError(
            f"dram of {sizes.dram_bytes:,.0f} bytes holds {slots + own:,} rows, a batch has up to "
            f"{model.largest_batch:,.0f}"
            + (f" (where rows are takes {locations:,.0f} bytes of it)" if 4 * locations >
               sizes.dram_bytes else "")
        )  # fmt: skip
    common = slots / max(rows, 1)
    return [common if p.share is None else p.share for p in model.pools], slots + own


def _missing(model: Model, sizes: Sizes, shares: Sequence[float], slots: int) -> list[float]:
    """Rows of each pool that a step reads from the ssd."""
    window = sizes.ids_ahead

    def of(shares: Sequence[float]) -> list[float]:
        return [
            pool.misses(share * pool.rows, window)
            for pool, share in zip(model.pools, shares, strict=True)
        ]

    missing = of(shares)
    held = held_slots(slots, model.largest_batch, sizes.rows_ahead * sum(missing))
    if held <= 0:
        return missing
    return of([share if share == 1 else share * (1 - held / slots) for share in shares])


def _hbm_misses(model: Model, sizes: Sizes) -> float:
    """Rows a step that come up from dram: each pool's slots are the same share of its rows.
    Without slots all of them: they are read and updated in dram, and what is made of them goes up.
    """
    share = _hbm_share(model, sizes.hbm_bytes)
    first = model.windows[0]
    return sum(pool.misses(share * pool.rows, first) for pool in model.pools)


def format_of(tables: Mapping[str, TraceTable]) -> RowFormat | None:
    """How a trace's rows are kept, if it tells how long all of them are and one format fits."""
    for dtype in DTYPES:
        for optimizer in ("rowwise-adagrad", *STATE_BYTES, None):
            rows = RowFormat(optimizer, dtype)
            if all(
                t.dim is not None and t.row_bytes == rows.bytes_of(t.dim)[1]
                for t in tables.values()
            ):
                return rows
    return None


def dims_of(tables: Mapping[str, TraceTable], dim: int | None) -> dict[int, list[str]]:
    """Tables by the columns of their rows.

    Args:
        dim: of tables whose trace does not tell.

    Raises:
        DataError: a table's dim is not known.
    """
    found: dict[int, list[str]] = {}
    for name, table in tables.items():
        columns = table.dim or dim
        if columns is None:
            raise DataError(f"table {name!r}: the trace does not say how long its rows are: --dim")
        found.setdefault(columns, []).append(name)
    return found


def as_dict(found: Outlook, model: Model) -> dict[str, Any]:
    """For JSON."""
    return {
        "hbm_bytes": round(found.sizes.hbm_bytes),
        "dram_bytes": None if found.sizes.dram_bytes is None else round(found.sizes.dram_bytes),
        "rows_ahead": found.sizes.rows_ahead,
        "ids_ahead": found.sizes.ids_ahead,
        "step_ms": found.step_s * 1e3,
        "step_ms_error": found.step_s * found.error * 1e3,
        "samples_per_s": None if model.batch_size is None else model.batch_size / found.step_s,
        "steps_per_s": found.steps_per_s,
        "binding": found.binding,
        "busy_ms": {name: s * 1e3 for name, s in found.busy_s.items()},
        "hbm_row_hit_ratio": found.hbm_hits,
        "dram_row_hit_ratio": found.dram_hits,
        "bytes_a_step": dict(found.bytes_a_step),
        "ssd_reads_per_s": found.reads_per_s,
        "ssd_written_bytes_a_day": found.written_bytes_a_day,
        "slots": found.slots,
    }
