r"""Planner and kernels, all rows in dram, beside FBGEMM, `nn.EmbeddingBag` and the memory's limit.

    python benchmarks/bench_kernels.py --only grid --steps 30 --out benchmarks/results/kernels.json
    python benchmarks/bench_kernels.py --only planner overhead threads rows cliffs --steps 30 \
        --out benchmarks/results/kernels_parts.json
    python benchmarks/bench_kernels.py --only optimizers --steps 30 \
        --out benchmarks/results/kernels_optimizers.json

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
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
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

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report

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
            start = time.perf_counter()
            calls[name](step % BATCHES)
            last[name] = time.perf_counter() - start
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
            times = []
            for _ in range(5):
                start = time.perf_counter()
                call(1)
                times.append(time.perf_counter() - start)
            seconds[ahead] = float(np.median(times))
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


def set_threads(count: int, limit: Limit | None = None) -> None:
    torch.set_num_threads(count)
    te.set_num_threads(count)
    if limit is not None:
        limit.lib.te_limits_set_threads(count)


def plan_ns(ours: Ours, sizes: Sizes) -> list[float]:
    """Planning alone, without pooling: nanoseconds an id, of each step."""
    core = ours.collection._engine._core
    names = list(ours.collection._lookups)
    calls = [
        [ours.collection._feature(name, batch[name]) for name in names] for batch in ours.batches
    ]
    ids = ours.workload.lookups
    found = []
    for step in range(sizes.warm_up + sizes.steps):
        features = [feature.core for feature in calls[step % BATCHES]]
        before = ours.collection.stats().plan_ns
        core.plan(features, True, True).release()
        if step >= sizes.warm_up:
            found.append((ours.collection.stats().plan_ns - before) / ids)
    return found


def bench_planner(sizes: Sizes) -> list[Report]:
    """Ranges of ids, slots, unique rows and their occurrences: one thread, and all."""
    rows = []
    cores = torch.get_num_threads()
    for exponent, pooling in product(sizes.exponent, sizes.pooling):
        w = Workload(sizes.tables, sizes.rows, 32, sizes.batch[-2:][0], pooling, exponent)
        ours = Ours(Batches(w, BATCHES))
        row: Report = {**asdict(w), "ns_per_id": {}}
        for threads in sorted({1, cores}):
            set_threads(threads)
            row["ns_per_id"][str(threads)] = spread(plan_ns(ours, sizes))
        ours.close()
        rows.append(row)
        figures = "  ".join(
            f"{t} threads: {f['p50']:.1f} ns an id, {1e3 / f['p50']:.0f} M ids/s"
            for t, f in row["ns_per_id"].items()
        )
        print(f"planner {w.label():56}{figures}", flush=True)
    return rows


def bench_threads(sizes: Sizes) -> list[Report]:
    """All threads over one, of the package and of the limit."""
    rows = []
    cores = torch.get_num_threads()
    for dim, exponent, pooling in product(sizes.dim[1::2], sizes.exponent, sizes.pooling):
        w = Workload(sizes.tables, sizes.rows, dim, sizes.batch[-2:][0], pooling, exponent)
        with contenders(Batches(w, BATCHES), ("ours", "limit")) as made:
            limit = made["limit"]
            assert isinstance(limit, Limit)
            row: Report = asdict(w)
            for kind in ("forward", "train"):
                calls = {name: getattr(c, kind) for name, c in made.items()}
                times: dict[str, list[float]] = {}
                for _, threads in product(range(3), (1, cores)):  # a change of teams takes time
                    set_threads(threads, limit)
                    for name, values in take_turns(calls, sizes).items():
                        times.setdefault(f"{name} {threads}", []).extend(values)
                median = {name: float(np.median(v)) for name, v in times.items()}
                row[kind] = {"ms": {name: spread(v) for name, v in times.items()}} | {
                    name: median[f"{name} 1"] / median[f"{name} {cores}"] for name in made
                }
                print(
                    f"threads {kind} {w.label():56}ours {row[kind]['ours']:.2f}x  "
                    f"limit {row[kind]['limit']:.2f}x",
                    flush=True,
                )
        rows.append(row)
    set_threads(cores)
    return rows


def bench_rows(sizes: Sizes) -> list[Report]:
    """One table that grows: nanoseconds a lookup, beside those of the limit."""
    rows = []
    for count in sizes.sweep_rows:
        w = Workload(1, count, 16, sizes.batch[-1], sizes.pooling[-1], 0.0)
        row = cell(w, sizes, ("ours", "limit"), ("forward", "train"))
        rows.append(row)
        for kind in ("forward", "train"):
            ns = {n: f["ms"]["p50"] * 1e6 / w.lookups for n, f in row[kind]["figures"].items()}
            row[kind]["ns_per_lookup"] = ns
            print(f"rows {count:11,} {kind}: ours {ns['ours']:.1f} ns  limit {ns['limit']:.1f} ns")
    return rows


def cliff(name: str, sizes: Sizes, batches: Batches, offsets: list[int] | None = None) -> Report:
    """Nanoseconds a float of rows that are gathered, and trained."""
    if offsets is not None:
        batches.offsets = torch.tensor(offsets)
    w = batches.workload
    ours = Ours(batches)
    ours.set_bags(len(batches.offsets))
    times = take_turns({"forward": ours.forward, "train": ours.train}, sizes)
    ours.close()
    floats = batches.ids[0].size * w.dim
    row = {
        "name": name,
        **asdict(w),
        **{
            f"{kind}_ns_per_float": spread([v * 1e6 / floats for v in times[kind]])
            for kind in times
        },
    }
    print(
        f"cliffs {name:32}forward {row['forward_ns_per_float']['p50']:8.3f} ns a float   "
        f"train {row['train_ns_per_float']['p50']:8.3f}",
        flush=True,
    )
    return row


def bench_cliffs(sizes: Sizes) -> list[Report]:
    """Odd shapes, each beside an ordinary one of as many lookups."""
    n = sizes.repeats
    found = []
    for dim in sizes.sweep_dims:
        lookups = max(64, min(n, 2**22 // dim))
        w = Workload(1, max(1000, 2**23 // dim), dim, lookups, 1, 0.0)
        found.append(cliff(f"dim {dim}", sizes, Batches(w, BATCHES)))
    plain = Workload(1, 10 * n, 64, n, 1, 0.0)
    found.append(cliff("ordinary", sizes, Batches(plain, BATCHES)))
    same = Batches(plain, BATCHES)
    same.ids = np.zeros_like(same.ids)
    found.append(cliff("one id, many times", sizes, same))
    found.append(cliff("one giant bag", sizes, Batches(plain, BATCHES), [0]))
    tiny = Workload(sizes.tiny_tables, 10, 64, max(1, n // sizes.tiny_tables), 1, 0.0)
    found.append(cliff("many tiny tables", sizes, Batches(tiny, BATCHES)))
    return found


def bench_overhead(sizes: Sizes) -> Report:
    """Microseconds of a step that looks one row up in each table.

    The gradients are handed to autograd's engine as a loss's backward would; torch's own part is a
    node with as many outputs that does nothing.
    """
    w = Workload(26, 1000, 16, 1, 1, 0.0)
    ours = Ours(Batches(w, BATCHES))
    engine = torch.autograd.Variable._execution_engine
    grads = tuple(ours.grads)

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, anchor: torch.Tensor) -> Any:
            return tuple(torch.empty(1, w.dim) for _ in grads)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> None:
            return None

    anchor = torch.zeros((), requires_grad=True)

    def backward(outs: Any) -> None:
        options = {"allow_unreachable": True, "accumulate_grad": True}
        engine.run_backward(tuple(outs), grads, False, False, (), **options)

    calls: dict[str, Callable[[int], Any]] = {
        "lookup": ours.forward,
        "train": lambda i: backward(ours.collection(ours.batches[i]).values()),
        "torch's part of train": lambda i: backward(Nothing.apply(anchor)),
    }
    report: Report = {}
    for name, call in calls.items():
        values = []
        for _ in range(sizes.steps + 1):
            start = time.perf_counter()
            for i in range(50):
                call(i % BATCHES)
            values.append((time.perf_counter() - start) / 50 * 1e6)
        report[name] = spread(values[1:])
        print(f"overhead {name:24}{report[name]['p50']:.0f} us", flush=True)
    ours.close()
    return report


PARTS: dict[str, Callable[[Sizes], Any]] = {
    "grid": bench_grid,
    "optimizers": bench_optimizers,
    "planner": bench_planner,
    "threads": bench_threads,
    "rows": bench_rows,
    "cliffs": bench_cliffs,
    "overhead": bench_overhead,
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
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
