"""From a trace to what `cost` computes with: pools of tables, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tiered_emb.tuner.cost import Model, Pool, RowFormat, dims_of
from tiered_emb.tuner.curves import MissCurve, policy_curve, sizes_of
from tiered_emb.tuner.sample import Pyramid

WINDOWS = (16, 64, 256)
"""Batches known ahead that are looked at."""
Progress = Callable[[], object]


def no_progress() -> None:
    """For those that nobody watches."""


@dataclass(frozen=True)
class Load:
    """How the model is run.

    Args:
        rows: how rows are kept; its optimizer None: they are only looked up.
        dim: of tables of which the trace does not tell.
        layers_s: seconds of a step that are not lookups and updates.
        batch_size: samples of a step; None: not known.
        repeats: lookups for each of those that the samples have.
        shares: of their rows that tables have slots of their own for (`te.Table(dram_share=)`).
    """

    rows: RowFormat
    dim: int | None = None
    layers_s: float = 0.0
    batch_size: int | None = None
    repeats: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)


def model_of(
    pyramid: Pyramid,
    load: Load,
    windows: Sequence[int] = WINDOWS,
    progress: Progress = no_progress,
) -> Model:
    """Simulates the pools of a trace.

    Args:
        windows: batches known ahead for which there will be curves.
        progress: called after each curve.

    Raises:
        DataError: a table's dim is not known.
    """
    pools = []
    for dim, tables in dims_of(pyramid.tables, load.dim).items():
        together = [name for name in tables if name not in load.shares]
        alone = [[name] for name in tables if name in load.shares]
        for names in [together, *alone] if together else alone:
            pool = pool_of(pyramid, names, dim, load.rows, windows, progress=progress)
            pools.append(replace(pool, share=load.shares.get(names[0])))
    return Model(
        pools=pools,
        largest_batch=pyramid.rows_of_a_batch()[1],
        trains=load.rows.optimizer is not None,
        layers_s=load.layers_s,
        batch_size=load.batch_size,
        repeats=load.repeats,
    )


def pool_of(
    pyramid: Pyramid,
    tables: Sequence[str],
    dim: int,
    row_format: RowFormat,
    windows: Sequence[int],
    with_error: bool = True,
    progress: Progress = no_progress,
) -> Pool:
    """Tables that share slots, by themselves."""
    names = list(pyramid.tables)
    part = pyramid.of_tables([names.index(name) for name in tables])
    weight_bytes, row_bytes = row_format.bytes_of(dim)
    if part.lookups.sum() == 0:  # they only take room
        first_misses, rows_seen = 0.0, 0.0
        curves = dict.fromkeys(windows, MissCurve(np.ones(1), np.zeros(1), np.zeros(1)))
    else:
        sizes = sizes_of(part)
        first_misses, rows_seen = _first_lookups(part)
        curves = {}
        for window in windows:
            curves[window] = policy_curve(part, sizes, window=window, with_error=with_error)
            progress()
    return Pool(
        tables=tuple(tables),
        rows=sum(pyramid.tables[name].rows for name in tables),
        dim=dim,
        weight_bytes=weight_bytes,
        row_bytes=row_bytes,
        lookups=part.lookups_a_batch,
        unique_rows=part.rows_of_a_batch()[0],
        curves=curves,
        first_misses=first_misses,
        rows_seen=rows_seen,
    )


def _first_lookups(pyramid: Pyramid) -> tuple[float, float]:
    """Lookups of a step that are the first of their row, and rows that had come by then."""
    whole = pyramid.whole
    warm, every = whole.warm_rows, len(whole.table_of)
    steps = max(1, whole.batches - whole.warm_up)
    return (every - warm) / whole.rate / steps, (warm + every) / 2 / whole.rate


def with_format(model: Model, rows: RowFormat) -> Model:
    """The same model with its rows kept otherwise."""
    pools = []
    for pool in model.pools:
        weight_bytes, row_bytes = rows.bytes_of(pool.dim)
        pools.append(replace(pool, weight_bytes=weight_bytes, row_bytes=row_bytes))
    return replace(model, pools=pools, trains=rows.optimizer is not None)
