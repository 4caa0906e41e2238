"""What a lookup costs, against everything that it may depend on: the scaling studies.

Steps without layers: lookups, backward and updates by rowwise Adagrad, side by side with
`nn.EmbeddingBag` and FBGEMM where their tables fit. Reported are nanoseconds a lookup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiered_emb as te
from tiered_emb.bench.contenders import (
    INIT_LIMIT,
    Contender,
    Fbgemm,
    Tiered,
    TorchBags,
    Training,
    Watch,
    make_tables,
)
from tiered_emb.bench.workloads import ZIPF, Workload

_LOGICAL_DRAM_BYTES = 256 << 20
_INDEX_BYTES = 5  # of dram for each row that was ever written, wherever it is
_PEER_ROWS_MAX = 4_000_000  # of all tables; larger ones take long to make
_TRAINING = Training()


@dataclass(frozen=True)
class Point:
    """One measurement of a study.

    Args:
        x: where it stands.
        load: without layers.
        dram_share: of the rows in dram; 1: no drive.
        is_logical: the tables are as large as they say, but only rows that are used are written.
        threads: None: all.
    """

    x: float
    load: Workload
    dram_share: float = 1.0
    is_logical: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Study:
    """Points along one axis."""

    title: str
    x: str
    x_unit: str
    points: Sequence[Point]
    log_x: bool = True
    peers: bool = True


@dataclass
class Effort:
    """How long each point is measured: rounds of steps, after steps to warm up."""

    rounds: int = 5
    steps: int = 8
    warm_up: int = 4
    folder: Path = field(default_factory=Path)


def load(
    rows: int = 200_000,
    tables: int = 8,
    dim: int = 64,
    batch: int = 512,
    pooling: int = 10,
    exponent: float = ZIPF,
) -> Workload:
    """Lookups and updates of some tables."""
    names = {f"t{i}": rows for i in range(tables)}
    return Workload(
        "lookups", names, dict.fromkeys(names, pooling), dim, 1, (), (), batch,
        f"{tables} tables", exponent=exponent,
    )  # fmt: skip


def studies(scale: float = 1.0) -> dict[str, Study]:
    """All of them, with `scale` times the rows of the base."""
    rows = max(1000, round(200_000 * scale))
    cores = te.get_num_threads()
    each = partial(load, rows)
    counts = [1, *([cores] if cores > 1 else [])]
    exponents = (0.0, 0.6, 0.8, 1.05, 1.2)
    shares = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
    logical = (10**5, 10**6, 10**7, 10**8, 10**9, 10**10)
    return {
        "rows": Study(
            "Cost of a lookup against the rows of one table, dram 256 MiB", "rows", "", [
                Point(n, load(n, 1, 32, 2048, 10), 0.0, is_logical=True)
                for n in logical if n <= logical[-1] * scale
            ],
        ),
        "batch": Study(
            "... against samples a step", "batch", "samples",
            [Point(n, each(batch=n)) for n in (64, 128, 256, 512, 1024, 2048, 4096)],
        ),
        "pooling": Study(
            "... against ids a bag", "pooling", "ids",
            [Point(n, each(pooling=n)) for n in (1, 2, 5, 10, 20, 50, 100)],
        ),
        "dim": Study(
            "... against the embedding dimension", "dim", "floats",
            [Point(n, each(dim=n)) for n in (8, 16, 32, 64, 128, 256)],
        ),
        "threads": Study(
            "... against threads", "threads", "",
            [Point(n, each(), threads=n) for n in counts], log_x=False,
        ),
        "skew": Study(
            "... against the exponent of Zipf's law", "exponent", "",
            [Point(s, each(exponent=s)) for s in exponents], log_x=False,
        ),
        "cache_ratio": Study(
            "... against the share of rows in dram, not prefetched", "rows in dram", "share",
            [
                Point(s, each(dim=32, batch=max(8, round(64 * scale)), pooling=5), dram_share=s)
                for s in shares
            ],
            peers=False,
        ),
    }  # fmt: skip


def measure(wanted: dict[str, Study], effort: Effort, watch: Watch) -> dict[str, Any]:
    """All studies, as for JSON: see `report`."""
    points = [(name, p) for name, study in wanted.items() for p in study.points]
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in wanted}
    for i, (name, point) in enumerate(watch(points, len(points), "lookups")):
        folder = effort.folder / str(i)
        for label, ns in _measure_point(point, wanted[name].peers, effort, folder).items():
            low, middle, high = np.percentile(ns, [25, 50, 75])
            found[name].setdefault(label, []).append(
                {"x": point.x, "p25": low, "p50": middle, "p75": high}
            )
    return {
        name: {
            "title": study.title,
            "x": study.x,
            "x_unit": study.x_unit,
            "y": "lookup, gradient and update",
            "y_unit": "ns a lookup",
            "log_x": study.log_x,
            "series": [{"label": label, "points": p} for label, p in found[name].items()],
        }
        for name, study in wanted.items()
    }


def _measure_point(
    point: Point, peers: bool, effort: Effort, folder: Path
) -> dict[str, list[float]]:
    """Nanoseconds a lookup of each round, by contender."""
    threads = torch.get_num_threads(), te.get_num_threads()
    if point.threads is not None:
        torch.set_num_threads(point.threads)
        te.set_num_threads(point.threads)
    try:
        with ExitStack() as stack:
            contenders = list(_contenders(point, peers, folder, stack))
            lookups = sum(point.load.pooling.values()) * point.load.batch_size
            _take_turns(contenders, point, effort)
            return {c.name: [s * 1e9 / lookups for s in c.steps.rounds] for c in contenders}
    finally:
        torch.set_num_threads(threads[0])
        te.set_num_threads(threads[1])


def _take_turns(contenders: Sequence[Contender], point: Point, effort: Effort) -> None:
    batches = point.load.batches()
    warm_up = list(islice(batches, effort.warm_up * (8 if point.dram_share < 1 else 1)))
    for contender in contenders:
        contender.run(warm_up, counts=False)
    for _ in range(effort.rounds):
        taken = list(islice(batches, effort.steps))
        for contender in contenders:
            contender.run(taken)


def _contenders(point: Point, peers: bool, folder: Path, stack: ExitStack) -> Iterable[Contender]:
    workload = point.load
    if point.is_logical:
        tiers = te.Tiers(dram=_LOGICAL_DRAM_BYTES, ssd=str(folder))
        tables = te.TieredEmbeddingCollection(
            [te.Table(name, rows, workload.dim) for name, rows in workload.rows.items()],
            tiers=tiers,
            optimizer=te.optim.RowwiseAdagrad(lr=_TRAINING.lr),
            init=te.init.Uniform(-INIT_LIMIT, INIT_LIMIT),
        )
    else:
        some = None
        if point.dram_share < 1:
            a_row = (workload.dim + 1) * 4 * point.dram_share + _INDEX_BYTES
            some = te.Tiers(dram=int(workload.total_rows * a_row), ssd=str(folder))
        tables = make_tables(workload, _TRAINING, some, lambda parts, _n, _what: parts)
    ours = Tiered("tiered", workload, _TRAINING, tables)
    stack.callback(ours.close)
    yield ours
    if peers and workload.total_rows <= _PEER_ROWS_MAX:
        yield TorchBags(workload, _TRAINING)
        if Fbgemm.why_not(_TRAINING) is None:
            yield Fbgemm(workload, _TRAINING)


def smoke() -> dict[str, Study]:
    """Two points in the middle of each, of small tables."""
    found = {}
    for name, study in studies(0.01).items():
        middle = len(study.points) // 2
        found[name] = replace(study, points=study.points[max(middle - 1, 0) : middle + 1])
    return found
