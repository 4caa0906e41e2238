"""Trains a DLRM on synthetic Zipf clicks whose table is far larger than its DRAM budget.

The default is 50 M rows x 32 over 26 tables, rowwise Adagrad (6.6 GB), 512 MB of DRAM, 2,000 steps.
Every step draws a batch anew, so the stream never repeats; each table's ids follow Zipf's law and
are scattered over its rows by a fixed bijection, so that hot rows do not share pages.

    python benchmarks/bench_zipf_train.py --threads 1 --out benchmarks/results/zipf_train.json
    python benchmarks/bench_zipf_train.py --smoke

Figures: samples/s, step time by percentile and over time, hit ratio, bytes read and written, space
amplification, peak RSS. Drawing samples is not part of the step time and is reported apart.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tqdm import tqdm

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.streams import Scatter, Zipf
from tiered_emb.bench.workloads import KAGGLE_ROWS
from tiered_emb.data.hashing import mix64, number_keys
from tiered_emb.models.dlrm import DLRM
from tiered_emb.stats import Stats

Ids = npt.NDArray[np.int64]

WINDOWS = 20
MLP = (128, 64)  # hidden sizes, below and above the tables; small, for the tables are the subject


@dataclass(frozen=True)
class Draw:
    """One step's samples."""

    dense: torch.Tensor
    sparse: dict[str, torch.Tensor]
    labels: torch.Tensor


class Clicks:
    """An endless stream of samples. Labels follow a hidden logistic model of the ids."""

    def __init__(self, tables: dict[str, int], dense: int, exponent: float, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._dense = dense
        self._tables = {n: (Zipf(r, exponent), Scatter(r, n)) for n, r in tables.items()}

    def draw(self, batch: int) -> Draw:
        dense = self._rng.normal(size=(batch, self._dense)).astype(np.float32)
        score = dense[:, 0] - 1.0
        sparse = {}
        for name, (zipf, scatter) in self._tables.items():
            ids = scatter(zipf.draw(self._rng, batch) - 1)
            hidden = (mix64(number_keys(ids)) >> np.uint64(40)).astype(np.float64) / 2**24
            score = score + (hidden - 0.5)
            sparse[name] = torch.from_numpy(ids)
        clicked = self._rng.random(batch) < 1.0 / (1.0 + np.exp(-score))
        return Draw(torch.from_numpy(dense), sparse, torch.from_numpy(clicked.astype(np.float32)))


def table_rows(total: int) -> dict[str, int]:
    """Rows of the 26 tables, in Criteo's proportions, summing to `total`."""
    shares = np.array(KAGGLE_ROWS, dtype=np.float64)
    rows = np.maximum(1, np.floor(shares / shares.sum() * total)).astype(np.int64)
    rows[int(shares.argmax())] += total - int(rows.sum())
    if rows.min() < 1:
        raise SystemExit(f"--rows {total}: too few for {len(rows)} tables")
    return {f"C{i + 1}": int(n) for i, n in enumerate(rows)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a DLRM on Zipf clicks with a table larger than DRAM.",
        epilog="example: python benchmarks/bench_zipf_train.py --dram 512MB --out result.json",
    )
    add = parser.add_argument
    add("--rows", type=int, default=50_000_000, help="over all 26 tables (50,000,000)")
    add("--dim", type=int, default=32, help="embedding dimension (32)")
    add("--dram", default="512MB", help="DRAM budget (512MB)")
    add("--ssd", metavar="DIR", help="directory of the store (default: temporary, removed)")
    add("--steps", type=int, default=2000, help="(2,000)")
    add("--batch-size", type=int, default=4096, help="samples a step (4,096)")
    add("--exponent", type=float, default=1.05, help="of Zipf's law (1.05)")
    add("--seed", type=int, default=0, help="(0)")
    add("--threads", type=int, help="CPU threads of torch (default: all)")
    add("--smoke", action="store_true", help="a few seconds: 200,000 rows, 1.5 MB, 40 steps")
    add("--out", metavar="FILE.json", type=Path, help="where the figures go")
    args = parser.parse_args(argv)
    if args.smoke:
        args.rows, args.dram, args.steps, args.batch_size = 200_000, "1500KB", 40, 256
    return args


def train(
    model: DLRM, collection: te.TieredEmbeddingCollection, clicks: Clicks, args: argparse.Namespace
) -> tuple[dict[str, object], Stats]:
    """Runs all steps; gives the figures, and the counters at the end."""
    optimizer = torch.optim.Adam(model.dense_parameters(), lr=1e-3)
    step_ms = np.zeros(args.steps)
    losses = np.zeros(args.steps)
    windows: list[dict[str, float]] = []
    every = max(1, args.steps // WINDOWS)
    draw_seconds = 0.0
    before = collection.stats()
    for step in tqdm(range(args.steps), desc="training", unit=" steps", disable=None):
        start = time.perf_counter()
        samples = clicks.draw(args.batch_size)
        drawn = time.perf_counter()
        draw_seconds += drawn - start
        optimizer.zero_grad()
        logits = model(samples.dense, samples.sparse)
        loss = F.binary_cross_entropy_with_logits(logits, samples.labels)
        loss.backward()
        optimizer.step()
        losses[step] = loss.item()
        step_ms[step] = (time.perf_counter() - drawn) * 1e3
        if (step + 1) % every == 0:
            now = collection.stats()
            windows.append(window(step + 1, step_ms[step + 1 - every : step + 1], before, now))
            before = now
    figures: dict[str, object] = {
        "samples_per_second": args.steps * args.batch_size / (step_ms.sum() / 1e3),
        "step_ms": percentiles(step_ms),
        "step_ms_after_warm_up": percentiles(step_ms[args.steps // 10 :]),
        "draw_ms_mean": draw_seconds * 1e3 / args.steps,
        "loss_first": float(losses[:every].mean()),
        "loss_last": float(losses[-every:].mean()),
        "windows": windows,
    }
    return figures, collection.stats()


def window(
    last_step: int, step_ms: npt.NDArray[np.float64], a: Stats, b: Stats
) -> dict[str, float]:
    """Figures of the steps between two readings of the counters."""
    lookups = max(b.lookups - a.lookups, 1)
    return {
        "last_step": last_step,
        **{f"step_ms_{name}": value for name, value in percentiles(step_ms).items()},
        "hit_ratio": (b.lookup_hits - a.lookup_hits) / lookups,
        "ssd_read_bytes": b.ssd_read_bytes - a.ssd_read_bytes,
        "ssd_written_bytes": b.ssd_written_bytes - a.ssd_written_bytes,
        "ssd_blocks_read_per_1000_lookups": (b.ssd_blocks_read - a.ssd_blocks_read) * 1e3 / lookups,
        "space_amplification": b.space_amplification,
    }


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"p50": p50, "p95": p95, "p99": p99, "max": float(values.max())}


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    tables = table_rows(args.rows)
    directory = args.ssd or tempfile.mkdtemp(prefix="tiered-emb-zipf-")
    collection = te.TieredEmbeddingCollection(
        [te.Table(n, r, args.dim, init=te.init.Uniform(-0.05, 0.05)) for n, r in tables.items()],
        tiers=te.Tiers(dram=args.dram, ssd=te.SSD(directory)),
        optimizer=te.optim.RowwiseAdagrad(lr=0.05),
        seed=args.seed,
    )
    try:
        with collection:
            torch.manual_seed(args.seed)
            model = DLRM(collection, list(tables), args.dim, 13, MLP, MLP)
            figures, stats = train(
                model, collection, Clicks(tables, 13, args.exponent, args.seed), args
            )
    finally:
        if args.ssd is None:
            shutil.rmtree(directory, ignore_errors=True)
    report = {
        "benchmark": "zipf_train",
        **provenance(__file__, argv),
        "options": {k: v for k, v in vars(args).items() if k not in ("out", "ssd")},
        "table_bytes": stats.total_row_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **figures,
        "tiers": stats.as_dict(),
    }
    write_report(args.out, report)
    print(summary(report, stats))
    return 0


def summary(report: dict[str, object], stats: Stats) -> str:
    step = report["step_ms"]
    assert isinstance(step, dict)
    read, written = stats.ssd_read_bytes / 1e9, stats.ssd_written_bytes / 1e9
    lines = [
        f"{stats.total_rows:,} rows, {stats.total_row_bytes / 1e9:.2f} GB with state",
        f"budget {stats.dram_bytes / 1e6:.0f} MB, peak RSS {report['peak_rss_bytes'] / 1e6:.0f} MB",
        f"{report['samples_per_second']:,.0f} samples/s",
        f"step {step['p50']:.1f} / {step['p95']:.1f} / {step['p99']:.1f} ms (p50/p95/p99)",
        f"loss {report['loss_first']:.4f} -> {report['loss_last']:.4f}",
        f"hit ratio {stats.hit_ratio:.1%}",
        f"ssd read {read:.2f} GB, written {written:.2f} GB",
        f"space amplification {stats.space_amplification:.2f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
