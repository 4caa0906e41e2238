"""What recording a trace costs a training step.

    python benchmarks/bench_trace.py --out benchmarks/results/trace.json

Models with their layers, all rows in dram. While a recording lasts, blocks of a few steps that are
recorded and blocks that are not take turns; the ratio is the mean over pairs of blocks, without the
tenth at each end. Lookups are written a million at a time; the last of a block's are waited for
after its time, so that none are written in the next. Completing the file is timed by itself.
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
from block_pairs import bounds, trimmed_mean

import tiered_emb as te
from tiered_emb.bench.contenders import Tiered, Training, make_tables
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.workloads import named
from tiered_emb.trace.record import TraceRecorder

SAMPLES = (1.0, 0.01)
"""Shares of the rows that are recorded."""


@dataclass(frozen=True)
class Case:
    model: str
    scale: float
    steps: int
    """Of a block."""
    pairs: int


CASES = (
    Case("dlrm-small", 1.0, 5, 800),
    Case("dlrm-kaggle", 0.05, 3, 400),
    Case("meta-2022", 1.0, 5, 800),
)
SMOKE = (Case("dlrm-small", 0.05, 3, 2),)
BLOCKS_APART = 8
"""Blocks of different batches."""


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Of one model: a step's time without recording, and ratios with it."""
    workload, training = named(case.model, case.scale), Training()
    batches = list(islice(workload.batches(), BLOCKS_APART * case.steps))
    blocks = [batches[i::BLOCKS_APART] for i in range(BLOCKS_APART)]
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
                    [
                        pair_of(model, blocks[i // 2 % BLOCKS_APART], trace, i % 2)
                        for i in range(case.pairs)
                    ]
                )
                end = time.perf_counter()
            end = time.perf_counter() - end
            ratios = seconds[:, 1] / seconds[:, 0]
            without.append(seconds[:, 0])
            samples.append(
                {
                    "sample": sample,
                    "ratio": trimmed_mean(ratios),
                    "ratio_within_95pct": bounds(ratios, trimmed_mean),
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
        f"sample {s['sample']}: {s['ratio']:.3f} ({low:.3f} to {high:.3f})"
        for s in samples
        for low, high in [s["ratio_within_95pct"]]
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
            seconds[is_recorded] = time.perf_counter() - start
            trace._writer.wait()
    return seconds


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
