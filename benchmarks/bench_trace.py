"""What recording a trace costs a training step.

    python benchmarks/bench_trace.py --out benchmarks/results/trace.json

Models with their layers, all rows in dram. Rounds with and without `te.record_trace`, to Parquet
and to Arrow, take turns; those with it include completing the file. The ratio is the median over
rounds of the time with / without.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import tiered_emb as te
from tiered_emb.bench.contenders import Tiered, Training, make_tables
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.workloads import named

KINDS = (("parquet", 1.0), ("arrow", 1.0), ("parquet", 0.01))
"""Form of the file, and share of the rows."""


@dataclass(frozen=True)
class Sizes:
    models: tuple[tuple[str, float, int], ...] = (
        ("dlrm-small", 1.0, 4),
        ("dlrm-kaggle", 0.05, 2),
        ("meta-2022", 1.0, 4),
    )
    """Scale, and how often a round goes through its batches: it takes some seconds."""
    rounds: int = 15
    batches: int = 40


SMOKE = Sizes(models=(("dlrm-small", 0.05, 1),), rounds=2, batches=3)


def compare(name: str, scale: float, times: int, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Of one model: seconds a step without recording, and ratios with it."""
    workload, training = named(name, scale), Training()
    batches = list(islice(workload.batches(), sizes.batches)) * times
    with make_tables(workload, training, None, lambda parts, *_: parts) as tables:
        model = Tiered("recorded", workload, training, tables)
        model.run(batches, counts=False)
        for form, sample in KINDS:  # compiles what records
            with te.record_trace(tables, folder / f"trace.{form}", sample=sample):
                model.run(batches[:2], counts=False)
        seconds: dict[tuple[str, float] | None, list[float]] = {kind: [] for kind in (None, *KINDS)}
        order, sizes_of = list(seconds), dict[str, int]()
        for _ in range(sizes.rounds):
            order.append(order.pop(0))
            for kind in order:
                start = time.perf_counter()
                if kind is None:
                    model.run(batches, counts=False)
                else:
                    form, sample = kind
                    path = folder / f"trace.{form}"
                    with te.record_trace(tables, path, sample=sample):
                        model.run(batches, counts=False)
                seconds[kind].append((time.perf_counter() - start) / len(batches))
                if kind is not None and kind[1] == 1:
                    sizes_of[kind[0]] = path.stat().st_size
    lookups = sum(len(v[0]) if isinstance(v, tuple) else len(v) for v in batches[0].sparse.values())
    ratios = []
    for form, sample in KINDS:
        of_rounds = np.array(seconds[form, sample]) / np.array(seconds[None])
        low, median, high = np.percentile(of_rounds, [25, 50, 75]).tolist()
        ratios.append({"form": form, "sample": sample, "p25": low, "p50": median, "p75": high})
    report = {
        "model": name,
        "scale": scale,
        "lookups_a_step": lookups,
        "step_ms": float(np.median(seconds[None])) * 1e3,
        "file_bytes_a_lookup": {
            form: size / (lookups * len(batches)) for form, size in sizes_of.items()
        },
        "ratios": ratios,
    }
    shown = ", ".join(
        f"{r['form']}, sample {r['sample']}: {r['p50']:.3f} ({r['p25']:.3f} to {r['p75']:.3f})"
        for r in ratios
    )
    print(f"{name:12} {report['step_ms']:.1f} ms, {lookups:,} lookups a step; {shown}")
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    sizes = SMOKE if args.smoke else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        models = [compare(*model, sizes, Path(folder)) for model in sizes.models]
    write_report(args.out, {"benchmark": "trace", **provenance(__file__, argv), "models": models})
    return 0


if __name__ == "__main__":
    sys.exit(main())
