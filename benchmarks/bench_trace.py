"""What recording a trace costs a training step.

    python benchmarks/bench_trace.py --out benchmarks/results/trace.json

Models with their layers, all rows in dram. While a recording lasts, blocks of steps that are
recorded and blocks that are not take turns; the ratio is the median over pairs of blocks.
Lookups are encoded a million at a time, so some of a block's may be in the next. Completing the
file, at the end, is timed by itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import tiered_emb as te
from tiered_emb.bench.contenders import Tiered, Training, make_tables
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.workloads import named
from tiered_emb.trace.record import TraceRecorder

KINDS = (("parquet", 1.0), ("arrow", 1.0), ("parquet", 0.01))
"""Form of the file, and share of the rows."""


@dataclass(frozen=True)
class Sizes:
    models: tuple[tuple[str, float, int], ...] = (
        ("dlrm-small", 1.0, 40),
        ("dlrm-kaggle", 0.05, 20),
        ("meta-2022", 1.0, 40),
    )
    """Scale, and steps of a block: it takes about a second."""
    pairs: int = 40


SMOKE = Sizes(models=(("dlrm-small", 0.05, 3),), pairs=2)


def compare(name: str, scale: float, steps: int, pairs: int, folder: Path) -> dict[str, Any]:
    """Of one model: a step's time without recording, and ratios with it."""
    workload, training = named(name, scale), Training()
    batches = list(islice(workload.batches(), steps))
    kinds, without = [], []
    with make_tables(workload, training, None, lambda parts, *_: parts) as tables:
        model = Tiered("recorded", workload, training, tables)
        model.run(batches, counts=False)
        for form, sample in KINDS:
            path = folder / f"trace.{form}"
            with te.record_trace(tables, path, sample=sample):  # compiles what records
                model.run(batches[:2], counts=False)
            with te.record_trace(tables, path, sample=sample) as trace:
                seconds = np.array([pair_of(model, batches, trace, i % 2) for i in range(pairs)])
                end = time.perf_counter()
            end = time.perf_counter() - end
            low, median, high = np.percentile(seconds[:, 1] / seconds[:, 0], [25, 50, 75]).tolist()
            without.append(seconds[:, 0])
            kinds.append(
                {
                    "form": form,
                    "sample": sample,
                    "p25": low,
                    "p50": median,
                    "p75": high,
                    "completing_ms": end * 1e3,
                    "file_bytes_a_lookup": path.stat().st_size / trace.lookups,
                }
            )
    report = {
        "model": name,
        "scale": scale,
        "lookups_a_step": sum(
            len(v[0]) if isinstance(v, tuple) else len(v) for v in batches[0].sparse.values()
        ),
        "step_ms": float(np.median(without)) / steps * 1e3,
        "kinds": kinds,
    }
    shown = ", ".join(
        f"{k['form']}, sample {k['sample']}: {k['p50']:.3f} ({k['p25']:.3f} to {k['p75']:.3f})"
        for k in kinds
    )
    print(f"{name:12} {report['step_ms']:.1f} ms, {report['lookups_a_step']:,} lookups; {shown}")
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
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    sizes = SMOKE if args.smoke else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        models = [compare(*model, sizes.pairs, Path(folder)) for model in sizes.models]
    write_report(args.out, {"benchmark": "trace", **provenance(__file__, argv), "models": models})
    return 0


if __name__ == "__main__":
    sys.exit(main())
