r"""What fetching rows ahead of the model is worth, and how close the step comes to its bounds.

A DLRM over 26 tables in Criteo's proportions, Zipf ids, rowwise Adagrad, the store warmed up by
training; its DRAM budget is a tenth of the rows. The same batches go in turn through

    prefetch           te.Prefetcher, --rows-ahead batches
    in line            the same tables without it
    in dram            all rows in DRAM: the compute of the step
    in dram, prefetch  the same with te.Prefetcher, where it can only cost

    python benchmarks/bench_prefetch.py --rows 4000000 --mlp 64 32 --dram 0.1 --warm-up 300 \
        --steps 50 --rounds 7 --out benchmarks/results/prefetch.json
    python benchmarks/bench_prefetch.py --smoke

A step with prefetch can take no less than the largest of: the step in DRAM; the fetches alone (what
the step in line waits for them, with nothing else to do); its CPU time over the cores. The median
of rounds, each of the same number of steps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_zipf_train import Clicks, Draw, table_rows
from store_contenders import fio_reads
from tqdm import tqdm

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.models.dlrm import DLRM

WRITE_ROWS = 1 << 18  # of one call, while the store is filled
DENSE_FEATURES = 13


def parse_arguments(
    parser: argparse.ArgumentParser, argv: list[str] | None, **defaults: Any
) -> argparse.Namespace:
    """The arguments of a benchmark of DLRM steps; `defaults` where they differ from these."""
    add = parser.add_argument
    add("--rows", type=int, default=10_000_000, help="over all 26 tables (%(default)s)")
    add("--dim", type=int, default=32, help="embedding dimension (%(default)s)")
    add("--dram", type=float, default=0.1, help="budget, of the bytes of all rows (%(default)s)")
    add("--batch-size", type=int, default=2048, help="samples a step (%(default)s)")
    add("--exponent", type=float, default=1.05, help="of Zipf's law (%(default)s)")
    add("--mlp", type=int, nargs="+", default=[512, 256], help="hidden sizes (%(default)s)")
    add("--rows-ahead", type=int, default=4, help="batches (%(default)s)")
    add("--warm-up", type=int, default=200, help="steps before the first that counts (%(default)s)")
    add("--rounds", type=int, default=7, help="(%(default)s)")
    add("--steps", type=int, default=20, help="of each contender a round (%(default)s)")
    add("--dir", metavar="DIR", help="where the stores go (default: a temporary folder)")
    add("--smoke", action="store_true", help="a few seconds: 100,000 rows, 2 rounds")
    add("--out", metavar="FILE.json", type=Path, help="where the figures go")
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)
    if args.smoke:
        args.rows, args.batch_size, args.warm_up = 100_000, 128, 5
        args.rounds, args.steps, args.mlp = 2, 5, [32]
    return args


@dataclass
class Contender:
    """A model and what its steps took: one entry a round, in milliseconds a step."""

    tables: te.TieredEmbeddingCollection
    model: DLRM
    rows_ahead: int
    step_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    fetch_ms: list[float] = field(default_factory=list)
    stall_ms: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    written_bytes: list[float] = field(default_factory=list)
    misses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.dense_parameters(), lr=1e-3)

    def run(self, batches: list[Draw], counts: bool = True) -> None:
        """Trains on the batches; the time of a step is that of all of them over their number."""
        before = self.tables.stats()
        start, cpu = time.perf_counter(), time.process_time()
        loop: Iterable[Draw] = batches
        if self.rows_ahead:
            loop = te.Prefetcher(
                batches, self.tables, lambda batch: batch.sparse, rows_ahead=self.rows_ahead
            )
        for batch in loop:
            self.optimizer.zero_grad()
            logits = self.model(batch.dense, batch.sparse)
            F.binary_cross_entropy_with_logits(logits, batch.labels).backward()
            self.optimizer.step()
        ms = 1e3 / len(batches)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        after = self.tables.stats()
        if not counts:
            return
        self.step_ms.append(wall * ms)
        self.cpu_ms.append(cpu * ms)
        self.fetch_ms.append((after.move_ns - before.move_ns) * ms / 1e9)
        waited_ns = sum(
            getattr(after, name) - getattr(before, name)
            for name in ("move_ns", "plan_ns", "prefetch_stall_ns")
        )
        if isinstance(loop, te.Prefetcher):
            waited_ns += loop.report.announce_s * 1e9
        self.stall_ms.append(waited_ns * ms / 1e9)
        self.blocks.append((after.ssd_blocks_read - before.ssd_blocks_read) / len(batches))
        self.written_bytes.append(
            (after.ssd_written_bytes - before.ssd_written_bytes) / len(batches)
        )
        self.misses.append((after.missing_rows - before.missing_rows) / len(batches))

    def figures(self) -> dict[str, float]:
        names = ("step_ms", "cpu_ms", "fetch_ms", "stall_ms", "blocks", "written_bytes", "misses")
        figures = {name: statistics.median(getattr(self, name)) for name in names}
        spread = statistics.quantiles(self.step_ms, n=4) if len(self.step_ms) > 1 else [0, 0, 0]
        return {**figures, "step_ms_p25": spread[0], "step_ms_p75": spread[2]}


def row_bytes(args: argparse.Namespace) -> int:
    """Of all rows, with their optimizer state."""
    return args.rows * (args.dim + 1) * 4


def make_contender(args: argparse.Namespace, tiers: te.Tiers | None, rows_ahead: int) -> Contender:
    rows = table_rows(args.rows)
    tables = te.TieredEmbeddingCollection(
        [
            te.Table(name, n, args.dim, init=te.init.Uniform(-0.05, 0.05))
            for name, n in rows.items()
        ],
        tiers=tiers,
        optimizer=te.optim.RowwiseAdagrad(lr=0.05),
    )
    # Every row is written, so that a miss is a read.
    for name, n in tqdm(rows.items(), desc="filling", unit=" tables", disable=None):
        for first in range(0, n, WRITE_ROWS):
            ids = torch.arange(first, min(first + WRITE_ROWS, n))
            tables.write_rows(name, ids, torch.rand(len(ids), args.dim) / 10 - 0.05)
    tables.flush()
    torch.manual_seed(0)
    model = DLRM(tables, list(rows), args.dim, DENSE_FEATURES, args.mlp, args.mlp)
    return Contender(tables, model, rows_ahead)


def drive_reads(folder: Path, args: argparse.Namespace) -> float | None:
    """Random 4 KiB reads a second that `fio` gets at its best queue depth; None without it."""
    if shutil.which("fio") is None:
        return None
    place = folder / "fio"
    place.mkdir()
    size = 64 << 20 if args.smoke else 2 << 30
    rates = []
    for depth in (64, 128, 256):
        answer = fio_reads(place, size, 0.3 if args.smoke else 2.0, depth)
        rates.append(0.0 if answer is None else float(answer["blocks_per_s"]))
    shutil.rmtree(place)
    return max(rates)


def judge(contenders: dict[str, Contender], reads_per_s: float | None) -> dict[str, Any]:
    """The step with prefetch beside its bounds, round by round."""
    ahead, line, dram = (contenders[n] for n in ("prefetch", "in line", "in dram"))
    cores = os.cpu_count() or 1
    bounds = [
        {"compute": c, "fetch": f, "cpu": cpu / cores}
        for c, f, cpu in zip(dram.step_ms, line.fetch_ms, ahead.cpu_ms, strict=True)
    ]
    over = [t / max(b.values()) for t, b in zip(ahead.step_ms, bounds, strict=True)]

    def ratios(a: list[float], b: list[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    hits = contenders["in dram, prefetch"]
    result = {
        "bounds_ms": {k: statistics.median(b[k] for b in bounds) for k in bounds[0]},
        "step_over_bound": statistics.median(over),
        "in_line_over_prefetch": ratios(line.step_ms, ahead.step_ms),
        "prefetch_over_in_dram": ratios(ahead.step_ms, dram.step_ms),
        "stall_of_step_when_all_hit": ratios(hits.stall_ms, hits.step_ms),
        "step_when_all_hit_over_in_line": ratios(hits.step_ms, dram.step_ms),
    }
    if reads_per_s:
        rates = [b / t * 1e3 for b, t in zip(ahead.blocks, ahead.step_ms, strict=True)]
        result["drive_reads_per_s"] = reads_per_s
        result["reads_per_s_of_drive"] = statistics.median(rates) / reads_per_s
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time a DLRM step with and without fetching rows ahead.",
        epilog="example: python benchmarks/bench_prefetch.py --rows-ahead 4 --out result.json",
    )
    args = parse_arguments(parser, argv)
    folder = Path(tempfile.mkdtemp(prefix="tiered-emb-prefetch-", dir=args.dir))
    try:
        reads_per_s = drive_reads(folder, args)
        dram = int(row_bytes(args) * args.dram)
        contenders = {
            "prefetch": make_contender(
                args, te.Tiers(dram=dram, ssd=str(folder / "ahead")), args.rows_ahead
            ),
            "in line": make_contender(args, te.Tiers(dram=dram, ssd=str(folder / "line")), 0),
            "in dram": make_contender(args, None, 0),
            "in dram, prefetch": make_contender(args, None, args.rows_ahead),
        }
        clicks = Clicks(table_rows(args.rows), DENSE_FEATURES, args.exponent, 0)
        for _ in tqdm(range(args.warm_up // args.steps + 1), desc="warm-up", disable=None):
            batches = [clicks.draw(args.batch_size) for _ in range(args.steps)]
            for name in ("prefetch", "in line"):
                contenders[name].run(batches, counts=False)
        for contender in contenders.values():
            contender.run(batches, counts=False)
        for _ in tqdm(range(args.rounds), desc="rounds", disable=None):
            batches = [clicks.draw(args.batch_size) for _ in range(args.steps)]
            for contender in contenders.values():
                contender.run(batches)
        for contender in contenders.values():
            contender.tables.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = {
        "benchmark": "prefetch",
        **provenance(__file__, argv),
        "options": {k: v for k, v in vars(args).items() if k not in ("out", "dir")},
        "contenders": {name: c.figures() for name, c in contenders.items()},
        "result": judge(contenders, reads_per_s),
    }
    write_report(args.out, report)
    print(summary(report))
    return 0


def summary(report: dict[str, Any]) -> str:
    lines = [
        f"{'':18}  step ms (p25-p75)      cpu   fetch  waited  misses  blocks  written MB",
    ]
    for name, c in report["contenders"].items():
        lines.append(
            f"{name:18} {c['step_ms']:8.2f} ({c['step_ms_p25']:.1f}-{c['step_ms_p75']:.1f})"
            f" {c['cpu_ms']:9.1f} {c['fetch_ms']:7.2f} {c['stall_ms']:7.2f} {c['misses']:7.0f}"
            f" {c['blocks']:7.0f} {c['written_bytes'] / 1e6:7.2f}"
        )
    lines += [f"{name}: {value}" for name, value in report["result"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
