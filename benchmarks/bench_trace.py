"""What recording a trace costs a training step.

    python benchmarks/bench_trace.py --out benchmarks/results/trace.json

Models with their layers, all rows in dram. While a recording lasts, blocks of steps that are
recorded and blocks that are not take turns; the ratio is the median over pairs of blocks. Lookups
are encoded a million at a time, and what a block has handed over is waited for within its time.
Completing the file, at the end, is timed by itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

import tiered_emb as te
from tiered_emb.bench.contenders import Tiered, Training, make_tables
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.workloads import named
from tiered_emb.trace.record import TraceRecorder

SAMPLES = (1.0, 0.01)
"""Shares of the rows that are recorded."""


@dataclass(frozen=True)
class Case:
    """Blocks have two million lookups and more, which take half a second to two: their
    last group takes 5 ms to reach the disk."""

    model: str
    scale: float
    steps: int
    """Of a block."""
    pairs: int


CASES = (
    Case("dlrm-small", 1.0, 40, 100),
    Case("dlrm-kaggle", 0.05, 40, 40),
    Case("meta-2022", 1.0, 60, 70),
)
SMOKE = (Case("dlrm-small", 0.05, 3, 2),)


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Of one model: a step's time without recording, and ratios with it."""
    workload, training = named(case.model, case.scale), Training()
    batches = list(islice(workload.batches(), case.steps))
    path = folder / "trace.parquet"
    samples, without = [], []
    with make_tables(workload, training, None, lambda parts, *_: parts) as tables:
        model = Tiered("recorded", workload, training, tables)
        model.run(batches, counts=False)
        for sample in SAMPLES:
            with te.record_trace(tables, path, sample=sample):  # compiles what records
                model.run(batches[:2], counts=False)
            with te.record_trace(tables, path, sample=sample) as trace:
                seconds = np.array(
                    [pair_of(model, batches, trace, i % 2) for i in range(case.pairs)]
                )
                end = time.perf_counter()
            end = time.perf_counter() - end
            ratios = seconds[:, 1] / seconds[:, 0]
            low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
            without.append(seconds[:, 0])
            samples.append(
                {
                    "sample": sample,
                    "p25": low,
                    "p50": median,
                    "p75": high,
                    "p50_within_95pct": bounds_of_median(ratios),
                    "lookups": trace.lookups,
                    "completing_ns_a_lookup": end / trace.lookups * 1e9,
                    "file_bytes_a_lookup": path.stat().st_size / trace.lookups,
                }
            )
    report = {
        **asdict(case),
        "lookups_a_step": sum(
            len(v[0]) if isinstance(v, tuple) else len(v) for v in batches[0].sparse.values()
        ),
        "step_ms": float(np.median(np.concatenate(without))) / case.steps * 1e3,
        "samples": samples,
    }
    shown = ", ".join(
        f"sample {s['sample']}: {s['p50']:.3f} ({s['p25']:.3f} to {s['p75']:.3f})" for s in samples
    )
    print(
        f"{case.model:12} {report['step_ms']:.1f} ms, {report['lookups_a_step']:,} lookups; {shown}"
    )
    return report


def pair_of(
    model: Tiered, batches: list[Any], trace: TraceRecorder, is_recorded_first: int
) -> list[float]:
    """Seconds of a block that is not recorded and of one that is."""
    seconds = [0.0, 0.0]
    for is_recorded in (1, 0) if is_recorded_first else (0, 1):
        with nullcontext() if is_recorded else patch.object(trace, "note", lambda _: None):
            start = time.perf_counter()
            model.run(batches, counts=False)
            trace._writer.wait()
            seconds[is_recorded] = time.perf_counter() - start
    return seconds


def bounds_of_median(values: npt.NDArray[np.float64]) -> list[float]:
    """Within which the median is with a probability of 95%, by the values' ranks."""
    half = 0.98 * np.sqrt(len(values))  # 1.96 standard deviations of a binomial's half
    middle = (len(values) - 1) / 2
    ranks = np.clip([middle - half, middle + half], 0, len(values) - 1)
    return [float(v) for v in np.sort(values)[[int(ranks[0]), int(np.ceil(ranks[1]))]]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        models = [compare(case, Path(folder)) for case in (SMOKE if args.smoke else CASES)]
    write_report(args.out, {"benchmark": "trace", **provenance(__file__, argv), "models": models})
    return 0


if __name__ == "__main__":
    sys.exit(main())
