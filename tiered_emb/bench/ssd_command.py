"""`tiered-emb bench ssd`: what tables whose rows are almost all on the drive get out of it."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiered_emb as te
from tiered_emb.bench import options
from tiered_emb.bench.bound import BLOCK_BYTES, read_seconds
from tiered_emb.bench.contenders import INIT_LIMIT, WRITE_ROWS
from tiered_emb.bench.limits import Limits
from tiered_emb.cli.report import table_text
from tiered_emb.data.errors import DataError

SUMMARY = "rows read from and written to the drive, flushes, opening"
_DRAM_SHARE = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb bench ssd [OPTIONS]"
    parser.epilog = "example: tiered-emb bench ssd --rows 8000000 --dir /nvme"
    add = parser.add_argument
    add("--rows", metavar="N", type=options.count, default=4_000_000, help="(4,000,000)")
    add("--dim", metavar="N", type=options.count, default=32, help="of a row (32)")
    add("--batch", metavar="N", type=options.count, default=20_000, help="rows a step (20,000)")
    add("--rounds", metavar="N", type=options.count, default=15, help="of each figure (15)")
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    options.begin(args)
    if args.smoke:
        args.rows, args.batch, args.rounds = 40_000, 500, 3
    needed = 2 * args.rows * (args.dim + 1) * 4
    with options.store_folder(args, needed) as folder:
        limits = options.limits_of(args)
        try:
            points = _measure(args, limits, folder / "store")
        except (ValueError, MemoryError) as error:  # a budget too small
            raise DataError(str(error)) from error
    argv = [f"--rows {args.rows}", f"--dim {args.dim}", f"--batch {args.batch}",
            f"--rounds {args.rounds}"]  # fmt: skip
    return options.finish(args, "ssd", argv, {"points": points}, limits, text_of)


def _open(args: argparse.Namespace, path: Path, resume: bool) -> te.TieredEmbedding:
    row_bytes = (args.dim + 1) * 4
    return te.TieredEmbedding(
        args.rows,
        args.dim,
        mode="sum",
        tiers=te.Tiers(
            dram=max(int(args.rows * row_bytes * _DRAM_SHARE), 4 * args.batch * row_bytes),
            ssd=te.SSD(str(path), resume=resume),
        ),
        optimizer=te.optim.RowwiseAdagrad(lr=0.05),
        init=te.init.Uniform(-INIT_LIMIT, INIT_LIMIT),
        name="t",
    )


def _measure(args: argparse.Namespace, limits: Limits, path: Path) -> list[dict[str, Any]]:
    bag = _open(args, path, resume=False)
    values = torch.rand(WRITE_ROWS, args.dim)
    parts = range(0, args.rows, WRITE_ROWS)
    for first in options.watch(parts, len(parts), "filling"):
        ids = torch.arange(first, min(first + WRITE_ROWS, args.rows))
        bag.write_rows(ids, values[: len(ids)])
    bag.flush()
    rng = np.random.default_rng(0)
    reads = _Series(bag)
    for _ in options.watch(range(args.rounds), args.rounds, "reading"):
        ids = torch.from_numpy(rng.integers(0, args.rows, (args.batch, 1)))
        with torch.no_grad():
            reads.time(lambda ids=ids: bag(ids))
    churn, flushes = _Series(bag), _Series(bag)
    grad = torch.randn(args.batch, args.dim)
    for _ in options.watch(range(args.rounds), args.rounds, "training"):
        ids = torch.from_numpy(rng.integers(0, args.rows, (args.batch, 1)))
        churn.time(lambda ids=ids: bag(ids).backward(grad))
    for _ in options.watch(range(args.rounds), args.rounds, "flushing"):
        ids = torch.from_numpy(rng.integers(0, args.rows, (args.batch, 1)))
        bag(ids).backward(grad)
        flushes.time(bag.flush)
    evicted = churn.total("ssd_row_written_bytes")
    bag.close()
    opening = []
    for _ in range(min(args.rounds, 5)):
        start = time.perf_counter()
        bag = _open(args, path, resume=True)
        opening.append((time.perf_counter() - start) * 1e3)
        bag.close()
    ssd = limits.ssd
    store_blocks = bag.stats().ssd_rows_bytes / BLOCK_BYTES
    written = churn.total("ssd_written_bytes")
    points = [
        _point("uniform rows looked up: blocks read", "blocks/s", reads.per_s("ssd_blocks_read"),
               _limit(reads, store_blocks, limits)),
        _point("uniform rows looked up", "rows/s", reads.per_s("unique_rows"), None),
        _point("uniform rows trained: blocks read", "blocks/s", churn.per_s("ssd_blocks_read"),
               _limit(churn, store_blocks, limits)),
        _point(f"flush after a step of {args.batch:,} rows", "ms",
               [s * 1e3 for s in flushes.seconds], None),
        _point(f"opening a store of {args.rows:,} rows", "ms", opening, None),
    ]  # fmt: skip
    if written and evicted:  # they gather until a buffer is full
        points.append(_point("bytes written a byte of evicted rows", "", [written / evicted], None))
        limit = None if ssd is None else ssd.sequential_write_bytes_per_s.median
        points.append(_point("uniform rows trained: bytes written", "bytes/s", [written], limit))
    return points


def _limit(series: _Series, store_blocks: float, limits: Limits) -> float | None:
    """Blocks/s that the drive gives where so many of a store are read at once."""
    if limits.ssd is None:
        return None
    blocks = series.mean("ssd_blocks_read")
    if not blocks:
        return None
    return blocks / read_seconds(blocks, store_blocks, options.rates_of(limits))


class _Series:
    """Repetitions of one thing: seconds, and what the counters grew by."""

    def __init__(self, bag: te.TieredEmbedding) -> None:
        self._bag = bag
        self.seconds: list[float] = []
        self._grown: list[dict[str, float]] = []

    def time(self, call: Any) -> None:
        before = self._bag.stats().as_dict()
        start = time.perf_counter()
        call()
        self.seconds.append(time.perf_counter() - start)
        after = self._bag.stats().as_dict()
        self._grown.append({
            k: v - before[k] for k, v in after.items() if isinstance(v, (int, float))
        })  # fmt: skip

    def total(self, name: str) -> float:
        """A counter's growth a second, over all repetitions."""
        return sum(grown[name] for grown in self._grown) / sum(self.seconds)

    def mean(self, name: str) -> float:
        """A counter's growth, by repetition."""
        return statistics.mean(grown[name] for grown in self._grown)

    def per_s(self, name: str) -> list[float]:
        """A counter's growth a second, by repetition."""
        pairs = zip(self._grown, self.seconds, strict=True)
        return [grown[name] / seconds for grown, seconds in pairs]


def _point(title: str, unit: str, values: list[float], limit: float | None) -> dict[str, Any]:
    low, middle, high = np.percentile(values, [25, 50, 75]).tolist()
    return {
        "title": title,
        "unit": unit,
        "ours": {"p25": low, "p50": middle, "p75": high},
        "limit": limit,
        "of_limit": None if not limit else statistics.median(values) / limit,
    }


def text_of(report: Mapping[str, Any]) -> str:
    """For people."""
    rows = []
    for p in report["points"]:
        ours = p["ours"]
        limit = "-" if p["limit"] is None else f"{p['limit']:,.0f}"
        of_limit = "-" if p["of_limit"] is None else f"{p['of_limit']:.2f}"
        rows.append((
            p["title"], _number(ours["p50"]), f"{_number(ours['p25'])}-{_number(ours['p75'])}",
            p["unit"], limit, of_limit,
        ))  # fmt: skip
    header = ("", "median", "p25-p75", "", "drive's limit", "of it")
    return table_text(header, rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
