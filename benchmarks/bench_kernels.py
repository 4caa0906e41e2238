"""Planner and kernels, all rows in dram, beside FBGEMM, `nn.EmbeddingBag` and the memory's limit.

    python benchmarks/bench_kernels.py --out benchmarks/results/kernels.json

Contenders take turns on the same batches within one process, on the same threads. The limit is the
same rows, known in advance, gathered and written with no planning (benchmarks/kernels). Parts:

    grid        forward, and training step with rowwise Adagrad, over shapes and ids
    optimizers  training step with every optimizer, and in float16
    planner     nanoseconds an id: validation, slots, unique rows, occurrences
    threads     one thread against all, of the package and of the limit
    rows        time a lookup from 1e5 to 1e8 rows
    cliffs      one id 100,000 times, one giant bag, 10,000 tables, dims from 1 to 4096
    overhead    a step of a collection whose batches are all but empty
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from kernel_contenders import (
    AHEAD,
    TORCH,
    Batches,
    Contender,
    Fbgemm,
    Limit,
    Ours,
    TorchBags,
    Workload,
)
from provenance import provenance

Report = dict[str, Any]
# OpenMP's workers spin after a loop; the next contender shall not pay for it.
IDLE_SECONDS = 0.005
BATCHES = 8  # distinct ones; their rows are far more than caches near a core hold
SLOW_ROUND_SECONDS = 1.0  # a contender slower than that takes part in every eighth round


@dataclass(frozen=True)
class Sizes:
    tables: int = 26
    rows: int = 200_000
    batch: tuple[int, ...] = (512, 2048, 8192)
    pooling: tuple[int, ...] = (1, 20)
    dim: tuple[int, ...] = (16, 32, 64, 128)
    exponent: tuple[float, ...] = (0.0, 1.05)
    steps: int = 30
    warm_up: int = 8
    sweep_rows: tuple[int, ...] = (10**5, 10**6, 10**7, 10**8)
    sweep_dims: tuple[int, ...] = (1, 3, 8, 16, 31, 32, 33, 64, 100, 128, 256, 512, 1024, 4096)
    tiny_tables: int = 10_000
    repeats: int = 100_000


SMOKE = Sizes(
    tables=3,
    rows=500,
    batch=(32,),
    pooling=(1, 3),
    dim=(16, 32),
    steps=2,
    warm_up=1,
    sweep_rows=(1000, 10_000),
    sweep_dims=(1, 33),
    tiny_tables=50,
    repeats=1000,
)


def spread(values: list[float]) -> Report:
    low, median, high = np.percentile(np.array(values), [25, 50, 75])
    return {"p25": low, "p50": median, "p75": high, "n": len(values)}


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(calls: dict[str, Callable[[int], Any]], sizes: Sizes) -> dict[str, list[float]]:
    """Milliseconds of every call on every batch, in turn; each round begins with another."""
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    last: dict[str, float] = dict.fromkeys(calls, 0.0)
    order = list(calls)
    for step in range(sizes.warm_up + sizes.steps):
        order.append(order.pop(0))
        for name in order:
            if last[name] > SLOW_ROUND_SECONDS and step % 8 != 0:
                continue
            time.sleep(IDLE_SECONDS)
            last[name] = timed(lambda name=name: calls[name](step % BATCHES))
            if step >= sizes.warm_up:
                milliseconds[name].append(last[name] * 1e3)
    return milliseconds


def compare(calls: dict[str, Callable[[int], Any]], sizes: Sizes, lookups: int) -> Report:
    """Spreads of the times, and how many times as fast "ours" is as each other, by medians."""
    milliseconds = take_turns(calls, sizes)
    report: Report = {
        name: {
            "ms": spread(values),
            "lookups_per_s": lookups / float(np.median(values)) * 1e3,
        }
        for name, values in milliseconds.items()
    }
    ours = report["ours"]["ms"]["p50"]
    ratios = {name: figures["ms"]["p50"] / ours for name, figures in report.items()}
    ratios.pop("ours")
    return {"figures": report, "speedup": ratios}


def tune_limit(limit: Limit) -> None:
    """Finds the prefetch distances that are fastest."""
    for key, call in (("forward", limit.forward), ("update", limit.update)):
        seconds = {}
        for ahead in AHEAD:
            limit.ahead[key] = ahead
            call(0)
            seconds[ahead] = float(np.median([timed(lambda: call(1)) for _ in range(5)]))
        limit.ahead[key] = min(seconds, key=lambda a: seconds[a])


@contextmanager
def contenders(batches: Batches, names: tuple[str, ...]) -> Iterator[dict[str, Contender]]:
    """Those of `names` that can do the workload."""
    w = batches.workload
    made: dict[str, Contender] = {}
    try:
        if "ours" in names:
            made["ours"] = Ours(batches)
        if "fbgemm" in names and Fbgemm.is_possible(w):
            made["fbgemm"] = Fbgemm(batches)
        if "torch" in names:
            made["torch"] = TorchBags(batches)
        if "limit" in names and Limit.is_possible(w):
            made["limit"] = limit = Limit(batches)
            tune_limit(limit)
        yield made
    finally:
        for contender in made.values():
            contender.close()


def show(label: str, report: Report) -> None:
    times = "  ".join(f"{n} {f['ms']['p50']:.3f} ms" for n, f in report["figures"].items())
    ratios = "  ".join(f"{r:.2f}x {n}" for n, r in report["speedup"].items())
    print(f"{label:64}{times}   ours: {ratios}", flush=True)


def cell(
    workload: Workload, sizes: Sizes, names: tuple[str, ...], kinds: tuple[str, ...]
) -> Report:
    """One workload: forward, training step, or both."""
    batches = Batches(workload, BATCHES)
    row: Report = asdict(workload)
    with contenders(batches, names) as made:
        for kind in kinds:
            calls = {
                name: getattr(c, kind)
                for name, c in made.items()
                if not (kind == "train" and name == "torch" and workload.optimizer not in TORCH)
            }
            row[kind] = compare(calls, sizes, workload.lookups)
            show(f"{kind} {workload.label()}", row[kind])
    return row


def bench_grid(sizes: Sizes) -> list[Report]:
    rows = []
    for dim, exponent, pooling, batch in product(
        sizes.dim, sizes.exponent, sizes.pooling, sizes.batch
    ):
        workload = Workload(sizes.tables, sizes.rows, dim, batch, pooling, exponent)
        rows.append(
            cell(workload, sizes, ("ours", "fbgemm", "torch", "limit"), ("forward", "train"))
        )
    return rows


def bench_optimizers(sizes: Sizes) -> list[Report]:
    rows = []
    dims, batch = (
        (sizes.dim[min(1, len(sizes.dim) - 1)], sizes.dim[-1]),
        sizes.batch[len(sizes.batch) // 2],
    )
    for dim, exponent, pooling in product(sorted(set(dims)), sizes.exponent, sizes.pooling):
        shape = Workload(sizes.tables, sizes.rows // 2, dim, batch, pooling, exponent)
        for optimizer in ("sgd", "adagrad", "adam"):
            workload = replace(shape, optimizer=optimizer)
            rows.append(cell(workload, sizes, ("ours", "fbgemm", "torch"), ("train",)))
        for optimizer in ("sgd", "rowwise_adagrad"):
            half = replace(shape, optimizer=optimizer, dtype="float16")
            rows.append(cell(half, sizes, ("ours", "fbgemm"), ("train",)))
    return rows


PARTS: dict[str, Callable[[Sizes], Any]] = {
    "grid": bench_grid,
    "optimizers": bench_optimizers,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--steps", type=int, help="measured steps of each (default 30)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    for name in ("dim", "batch", "pooling"):
        parser.add_argument(f"--{name}", nargs="+", type=int, help=f"these alone of each {name}")
    parser.add_argument("--exponent", nargs="+", type=float, help="likewise; 0 is uniform")
    args = parser.parse_args(argv)
    sizes = SMOKE if args.smoke else Sizes()
    for name in ("dim", "batch", "pooling", "exponent"):
        if getattr(args, name):
            sizes = replace(sizes, **{name: tuple(getattr(args, name))})
    if args.steps:
        sizes = replace(sizes, steps=args.steps)
    report: Report = {"benchmark": "kernels", **provenance(__file__, argv)}
    for part in args.only:
        report[part] = PARTS[part](sizes)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
