"""What recording a trace costs a training step.

    python benchmarks/bench_trace.py --out benchmarks/results/trace.json

Models with their layers, all rows in dram. Rounds with and without `te.record_trace` take turns;
those with it include completing the file. The ratio is the median over rounds of the time with /
without.
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

import numpy as np

import tiered_emb as te
from tiered_emb.bench.contenders import Tiered, Training, make_tables
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.workloads import named

SAMPLES = (1.0, 0.01)


@dataclass(frozen=True)
class Sizes:
    models: tuple[tuple[str, float, int], ...] = (
        ("dlrm-small", 1.0, 8),
        ("dlrm-kaggle", 0.05, 3),
        ("meta-2022", 1.0, 8),
    )
    """Scale, and how often a round goes through its batches: it takes several seconds."""
    rounds: int = 5
    batches: int = 40


SMOKE = Sizes(models=(("dlrm-small", 0.05, 1),), rounds=2, batches=3)


def compare(name: str, scale: float, times: int, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Of one model: seconds a step without recording, and ratios with it."""
    workload, training = named(name, scale), Training()
    batches = list(islice(workload.batches(), sizes.batches)) * times
    with make_tables(workload, training, None, lambda parts, *_: parts) as tables:
        model = Tiered("recorded", workload, training, tables)
        model.run(batches, counts=False)
        seconds: dict[float, list[float]] = {sample: [] for sample in (0.0, *SAMPLES)}
        order = list(seconds)
        path = folder / "trace.parquet"
        for _ in range(sizes.rounds):
            order.append(order.pop(0))
            for sample in order:
                start = time.perf_counter()
                with te.record_trace(tables, path, sample=sample) if sample else nullcontext():
                    model.run(batches, counts=False)
                seconds[sample].append((time.perf_counter() - start) / len(batches))
                if sample == 1:
                    size = path.stat().st_size
    lookups = sum(len(v[0]) if isinstance(v, tuple) else len(v) for v in batches[0].sparse.values())
    ratios = {}
    for sample in SAMPLES:
        of_rounds = np.array(seconds[sample]) / np.array(seconds[0.0])
        low, median, high = np.percentile(of_rounds, [25, 50, 75]).tolist()
        ratios[str(sample)] = {"p25": low, "p50": median, "p75": high}
    report = {
        "model": name,
        "scale": scale,
        "lookups_a_step": lookups,
        "step_ms": float(np.median(seconds[0.0])) * 1e3,
        "file_bytes_a_lookup": size / (lookups * len(batches)),
        "ratios": ratios,
    }
    shown = ", ".join(
        f"sample {sample}: {r['p50']:.3f} ({r['p25']:.3f} to {r['p75']:.3f})"
        for sample, r in ratios.items()
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
