"""Advice for tables that are in use, from what their engine has seen lately.

The engine keeps a sample of the rows that batches looked up (`lookup_sample`); caches of all sizes
are simulated on it, and steps predicted with the limits of this machine and the coefficients of the
engine there, both as saved: nothing is measured while a model trains.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from tiered_emb.bench import limits as limits_file
from tiered_emb.bench.calibration import saved_host
from tiered_emb.bench.options import rates_of
from tiered_emb.bench.predict import Host
from tiered_emb.data.errors import DataError
from tiered_emb.lookup_sample import LookupSample, lookup_sample
from tiered_emb.tiers import HBM, SSD, Size, parse_bytes
from tiered_emb.trace.format import TraceTable
from tiered_emb.tuner.advice import Advice, advise
from tiered_emb.tuner.cost import DTYPES, RowFormat
from tiered_emb.tuner.model import Load
from tiered_emb.tuner.sample import Pyramid, sample_of
from tiered_emb.tuner.search import Bounds, Wish

if TYPE_CHECKING:
    from tiered_emb.engine import TableEngine

BATCHES_MIN = 16
_WARM_UP = 0.5
_OPTIMIZERS = {1: "sgd", 2: "adagrad", 3: "rowwise-adagrad", 4: "adam"}  # the core's numbers
_NS = 1e9


def recommend(
    engine: TableEngine,
    *,
    dram_max: Size | None = None,
    hbm_max: Size | None = None,
    layers_ms: float | None = None,
    machine: Host | None = None,
) -> Advice:
    """See `Stats.recommend`."""
    if layers_ms is not None and not 0 <= layers_ms < float("inf"):
        raise DataError(f"recommend(layers_ms={layers_ms}): expected 0 or more")
    pyramid = pyramid_of(engine, lookup_sample(engine))
    ssd = engine.tiers.ssd
    if hbm_max is None and isinstance(engine.tiers.hbm, HBM):
        hbm_max = engine.tiers.hbm.size
    hbm_bytes = 0 if hbm_max is None else parse_bytes(hbm_max)
    if machine is None:
        machine = _saved_machine(engine, with_device=hbm_bytes > 0)
    if hbm_bytes > 0 and machine.rates.device is None:
        raise DataError("recommend(): hbm_max, and a machine without a device")
    dram = engine.tiers.dram if dram_max is None else parse_bytes(dram_max)
    bounds = Bounds(
        hbm_max=float(hbm_bytes),
        dram_max=float("inf") if dram is None else float(dram),
        ssd_max=float("inf") if isinstance(ssd, SSD) else None,
    )
    stats = engine.stats()
    kind = 0 if engine.optimizer is None else engine.optimizer.kind
    load = Load(
        rows=RowFormat(_OPTIMIZERS.get(kind), _dtype_of(engine)),
        layers_s=_layers_s(engine, machine) if layers_ms is None else layers_ms / 1e3,
        repeats=max(1.0, stats.lookups / max(stats.unique_rows, 1)),
        shares={t.name: t.dram_share for t in engine.tables if t.dram_share is not None},
    )
    return advise(pyramid, load, machine, bounds, Wish())


def pyramid_of(engine: TableEngine, found: LookupSample) -> Pyramid:
    """The engine's sample, as the tuner simulates on it.

    Raises:
        DataError: there are too few batches in it.
    """
    if found.batches_spanned < BATCHES_MIN or len(found.ids) == 0:
        raise DataError(
            f"recommend(): {found.batches_spanned} batches are in the sample of lookups; "
            f"{BATCHES_MIN} or more are needed"
        )
    tables = {
        spec.name: TraceTable(spec.num_embeddings, spec.embedding_dim) for spec in engine.tables
    }
    first_row = np.cumsum([0, *(table.rows for table in list(tables.values())[:-1])])
    last = int(found.batches[-1])
    sample = sample_of(
        rows=first_row[found.tables] + found.ids,
        batches=found.batches,
        span=(last - found.batches_spanned + 1, last),
        first_row=first_row.astype(np.int64),
        rate=found.rate,
        lookups=np.bincount(found.tables, minlength=len(tables)) / found.rate,
        warm_up=_WARM_UP,
    )
    return Pyramid(tables, sample.lookups, sample.batches, [[sample]])


def _dtype_of(engine: TableEngine) -> str:
    dtype = engine.tables[0].dtype
    return next(name for name, known in DTYPES.items() if known is dtype)


def _saved_machine(engine: TableEngine, with_device: bool) -> Host:
    where = tempfile.gettempdir() if engine.store_path is None else engine.store_path
    limits = limits_file.saved(where, say=lambda _: None)
    if limits is not None and with_device and limits.link is None:
        raise DataError("recommend(): the saved limits of this machine have no device")
    host = None if limits is None else saved_host(limits, rates_of(limits, None, with_device))
    if host is None:
        raise DataError(
            f"recommend(): what this machine can do is not known yet: tiered-emb bench limits "
            f"--engine --dir {os.fspath(where)!r} measures it, once, while nothing else runs"
        )
    return host


def _layers_s(engine: TableEngine, machine: Host) -> float:
    """What a step takes besides: the time from one lookup to the next, without the engine's."""
    intervals = np.diff(list(engine.lookup_times))
    if len(intervals) == 0:
        raise DataError("recommend(): no time between lookups is known; give layers_ms")
    stats = engine.stats()
    steps = max(stats.steps, 1)
    own = stats.plan_ns + stats.move_ns + stats.upkeep_ns + stats.forward_ns + stats.backward_ns
    own_s = (own + stats.prefetch_stall_ns) / _NS / steps
    if machine.staging is not None and isinstance(engine.tiers.hbm, HBM):
        # Most of it has no counter, and planning is a part of it.
        staged_s = machine.staging.seconds(
            stats.lookups / steps,
            stats.unique_rows / steps,
            (stats.hbm_rows_filled + stats.hbm_rows_spilled) / steps,
            trains=engine.optimizer is not None,
        )
        own_s += staged_s - stats.plan_ns / _NS / steps
    misses = stats.rows_filled_from_ssd / steps
    c = machine.coefficients
    fetching_s = c.miss_s * misses + c.fetch_s * (misses > 0)
    return max(0.0, float(np.median(intervals)) - own_s - fetching_s)
