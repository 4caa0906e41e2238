"""`bench_tuner --only placement`: shares of dram for single tables, predicted and then measured.

Models whose tables need dram differently: what the tuner would have its tables keep of their own is
predicted, and steps with those shares are measured beside steps with one budget for all, in turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiered_emb as te
from tiered_emb.bench.predict import Host
from tiered_emb.bench.streams import ZipfIds
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.reader import Trace
from tiered_emb.trace.writer import TraceWriter
from tiered_emb.tuner.cost import RowFormat, Sizes, outlook
from tiered_emb.tuner.model import Load, model_of
from tiered_emb.tuner.placement import placement
from tiered_emb.tuner.sample import take_sample

Report = dict[str, Any]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Table:
    """Of a model.

    Args:
        rows, dim: its size.
        lookups: a step.
        exponent: of Zipf's law; 0: any row is as likely.
    """

    rows: int
    dim: int
    lookups: int
    exponent: float = 0.0


MODELS: dict[str, dict[str, Table]] = {
    "rows of different dim": {
        "users": Table(2_000_000, 64, 1024),
        "items": Table(2_000_000, 32, 8192, 1.05),
    },
    "a wide table of rare rows": {
        "history": Table(500_000, 128, 512),
        "words": Table(4_000_000, 16, 8192, 0.95),
        "items": Table(1_000_000, 32, 4096, 1.05),
    },
}
DRAM = 0.1
WARM_UP, ROUNDS, STEPS = 150, 7, 25
FILLED_AT_ONCE = 1 << 18
AHEAD = Sizes(rows_ahead=2, ids_ahead=16)


def batches(tables: Mapping[str, Table], seed: int) -> Iterator[Batch]:
    """Without end."""
    streams = {name: ZipfIds(t.rows, t.exponent, name, seed) for name, t in tables.items()}
    while True:
        yield {
            name: torch.from_numpy(np.asarray(stream.draw(tables[name].lookups), dtype=np.int64))
            for name, stream in streams.items()
        }


def fill(model: te.TieredEmbeddingCollection, tables: Mapping[str, Table]) -> None:
    """Writes every row: one that never was is not on the drive, and is not read from it."""
    for name, t in tables.items():
        values = torch.full((FILLED_AT_ONCE, t.dim), 0.01)
        for ids in torch.arange(t.rows).split(FILLED_AT_ONCE):
            model.write_rows(name, ids, values[: len(ids)])


class Contender:
    """A model with a store of its own, on its way through the batches."""

    def __init__(
        self, tables: Mapping[str, Table], shares: Mapping[str, float], dram: int, folder: Path
    ) -> None:
        self.model = te.TieredEmbeddingCollection(
            [
                te.Table(n, t.rows, t.dim, mode="sum", dram_share=shares.get(n))
                for n, t in tables.items()
            ],
            tiers=te.Tiers(dram=dram, ssd=te.SSD(folder)),
            optimizer=te.optim.RowwiseAdagrad(lr=0.01),
        )
        fill(self.model, tables)
        self._steps = iter(
            te.Prefetcher(
                batches(tables, seed=1), self.model,
                rows_ahead=AHEAD.rows_ahead, ids_ahead=AHEAD.ids_ahead,
            )
        )  # fmt: skip

    def run(self, steps: int) -> tuple[float, float]:
        """Milliseconds of a step, and rows that each read."""
        before = self.model.stats().rows_filled_from_ssd
        start = time.perf_counter()
        for batch in islice(self._steps, steps):
            outs = self.model(batch)
            torch.autograd.backward([out.sum() for out in outs.values()])
        took_s = time.perf_counter() - start
        return took_s / steps * 1e3, (self.model.stats().rows_filled_from_ssd - before) / steps


def bench_placement(host: Host, folder: Path, smoke: bool) -> list[Report]:
    """For each model what was predicted and what came of it."""
    found = []
    for name, full in MODELS.items():
        shrink = 40 if smoke else 1
        tables = {
            n: Table(t.rows // shrink, t.dim, t.lookups // shrink, t.exponent)
            for n, t in full.items()
        }
        with TraceWriter(
            folder / "placement.parquet", {n: TraceTable(t.rows, t.dim) for n, t in tables.items()}
        ) as writer:
            for number, batch in enumerate(islice(batches(tables, seed=2), 40 if smoke else 400)):
                for table, ids in batch.items():
                    writer.write(number, table, ids.numpy())
        pyramid = take_sample(Trace(folder / "placement.parquet"), warm_up=0.5)
        rows = RowFormat("rowwise-adagrad")
        model = model_of(pyramid, Load(rows), (AHEAD.ids_ahead,))
        dram = int((0.4 if smoke else DRAM) * model.bytes)
        point = outlook(model, Sizes(0.0, dram, AHEAD.rows_ahead, AHEAD.ids_ahead), host)
        divided = placement(pyramid, model, rows, point, host)
        if divided is None:
            raise RuntimeError(f"{name}: the dram cannot be divided")
        found.append({
            "model": name, "dram_bytes": dram, "shares": dict(divided.shares),
            "is_proposed": divided.is_worth_it,
            "predicted_gain": divided.gain,
            "predicted_misses": [o.demand.step.misses for o in (divided.before, divided.after)],
            "predicted_ms": [o.step_s * 1e3 for o in (divided.before, divided.after)],
            **_measured(tables, divided.shares, dram, folder, smoke),
        })  # fmt: skip
        print(_line(found[-1]), flush=True)
    return found


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["gain_quartiles"]
    reads = " -> ".join(f"{misses:,.0f}" for misses in row["misses"])
    told = " -> ".join(f"{misses:,.0f}" for misses in row["predicted_misses"])
    took = " -> ".join(f"{ms:.1f}" for ms in row["measured_ms"])
    return (
        f"{row['model']}: shares predicted to give {row['predicted_gain']:+.1%}, measured "
        f"{row['gain']:+.1%} ({low:+.1%} to {high:+.1%}): {took} ms; rows read a step {reads}, "
        f"predicted {told}"
    )


def _measured(
    tables: Mapping[str, Table], shares: Mapping[str, float], dram: int, folder: Path, smoke: bool
) -> Report:
    """Rounds of both in turn."""
    warm_up, rounds, steps = (4, 2, 4) if smoke else (WARM_UP, ROUNDS, STEPS)
    with ExitStack() as stack:
        both = [
            Contender(tables, of, dram, folder / f"placement-{i}-{time.time_ns()}")
            for i, of in enumerate(({}, shares))
        ]
        for contender in both:
            stack.callback(contender.model.close)
        for contender in both:
            contender.run(warm_up)
        runs = np.array([[contender.run(steps) for contender in both] for _ in range(rounds)])
    ms, misses = runs[:, :, 0], runs[:, :, 1]
    gains = ms[:, 0] / ms[:, 1] - 1
    return {
        "measured_ms": np.median(ms, axis=0).tolist(),
        "gain": float(np.median(gains)),
        "gain_quartiles": [float(q) for q in np.quantile(gains, (0.25, 0.75))],
        "misses": misses.mean(axis=0).tolist(),
    }
