"""Whether the tuner is right in its curves, predictions and advice, and what it costs.

    python benchmarks/bench_tuner.py --only curves --out benchmarks/results/tuner_curves.json
    python benchmarks/bench_tuner.py --only speed --out benchmarks/results/tuner_speed.json
    python benchmarks/bench_tuner.py --only predict --out benchmarks/results/tuner.json
    python benchmarks/bench_tuner.py --only placement --out benchmarks/results/tuner_placement.json
    python benchmarks/bench_tuner.py --only hbm --out benchmarks/results/tuner_hbm.json

curves      curves from samples beside those of the whole stream: the mean absolute error over 24
            sizes, evenly spaced by their logarithm from two batches to all rows. LRU beside
            `libcachesim` where it can be imported (PyPI).
speed       lookups a second and core: exact stack distances, and a sampled curve of the engine's
            policy; and a trace of 100 M lookups from file to recommendation, with its memory.
predict     three models at five sizes of dram each: predicted from a trace of other batches of the
            same streams, then measured. Nothing is fitted to these runs; what a step's layers take
            is measured beside, as the tuner is told it. And the recommended point of each, measured
            beside the grid.
placement   two models of tables that need dram differently: what shares of their own are predicted
            to give, and what they gave.
hbm         three models at several sizes of hbm, all rows in dram, likewise. Needs a GPU: without
            one it says so and measures nothing.

Takes about twenty minutes; the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cache_streams import meta_curve, real_streams, zipf_streams
from tuner_hbm import bench_hbm
from tuner_placement import bench_placement
from tuner_tables import APART, all_runs, in_order, runs_text, slower_than_best

from tiered_emb.bench import options
from tiered_emb.bench.bound import DeviceRates
from tiered_emb.bench.calibration import SMOKE_STEPS, STEPS, Engine, Setup, calibrated
from tiered_emb.bench.dlrm import TIERED, measure
from tiered_emb.bench.limits import Limits
from tiered_emb.bench.limits import measure as measure_limits
from tiered_emb.bench.predict import WITHIN, Host
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.streams import ZipfIds
from tiered_emb.bench.workloads import Workload
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.reader import Trace
from tiered_emb.trace.writer import TraceWriter
from tiered_emb.tuner.advice import tiers_text
from tiered_emb.tuner.cost import Model, RowFormat, Sizes, outlook
from tiered_emb.tuner.curves import (
    MissCurve,
    lru_curve,
    optimum_curve,
    policy_curve,
    sizes_of,
)
from tiered_emb.tuner.model import Load, model_of
from tiered_emb.tuner.sample import Pyramid, take_sample
from tiered_emb.tuner.search import Bounds, Wish, explore, recommended
from tiered_emb.tuner.stack import distance_counts

Report = dict[str, Any]
PARTS = ("curves", "speed", "predict", "placement", "hbm")
WINDOW = 16
LONG = 10_000_000
BAR_LONG, BAR_SHORT = 0.01, 0.02
TURNS = 3
GIB = 1 << 30


@dataclass(frozen=True)
class Scale:
    """How large the streams are."""

    meta_rows: int = 1_800_000
    zipf_rows: int = 1_000_000
    zipf_lookups: int = LONG + 2048
    real_lookups: int = 1 << 40
    check_lookups: int = 400_000
    long_lookups: int = 100_000_000
    trace_batches: int = 260


FULL = Scale()
SMOKE = Scale(20_000, 10_000, 200_000, 100_000, 20_000, 400_000, 20)

# Five sizes of dram each, and no more than the largest for the recommendation.
MODELS = (
    (Setup("dlrm-small", 1.0, 32, 2048, 1.0), (0.05, 0.10, 0.20, 0.35, 0.60)),
    (Setup("dlrm-kaggle", 0.05, 32, 1024, 1.0), (0.05, 0.10, 0.20, 0.35, 0.60)),
    (Setup("meta-2022", 0.2, 64, 256, 1.0), (0.20, 0.30, 0.45, 0.60, 0.80)),
)
SMOKE_MODELS = ((Setup("dlrm-small", 0.05, 16, 128, 1.0), (0.4, 0.6)),)


def streams(scale: Scale) -> Iterator[tuple[str, np.ndarray, int]]:
    """Name, rows and lookups a batch."""
    for stream in real_streams(scale.real_lookups):
        yield stream.name, np.asarray(stream.ids, dtype=np.int64), 256
    yield "zipf 1.05", next(zipf_streams(scale.zipf_rows, scale.zipf_lookups)).ids, 2048
    yield "meta 2021", meta_curve(scale.meta_rows), 2048


def trace_of(ids: np.ndarray, batch: int, path: Path) -> Trace:
    """A trace file of one table."""
    table = pa.table({"batch": np.arange(len(ids)) // batch, "id": ids})
    pq.write_table(table, path)
    return Trace(path)


def all_curves(pyramid: Pyramid, sizes: np.ndarray) -> dict[str, MissCurve]:
    return {
        "lru": lru_curve(pyramid, sizes),
        "policy": policy_curve(pyramid, sizes, window=WINDOW),
        "optimum": optimum_curve(pyramid, sizes),
    }


def bench_curves(scale: Scale, folder: Path) -> list[Report]:
    found = []
    for name, ids, batch in streams(scale):
        trace = trace_of(ids, batch, folder / "stream.parquet")
        whole = take_sample(trace, 1.0)
        sizes = sizes_of(whole)
        exact = all_curves(whole, sizes)
        is_long = len(ids) >= LONG
        for share in (0.01,) if is_long else (None, 0.01):
            pyramid = take_sample(trace, share)
            sampled = all_curves(pyramid, sizes)
            errors = {
                kind: float(np.abs(sampled[kind].misses - exact[kind].misses).mean())
                for kind in exact
            }
            bar = BAR_LONG if is_long else BAR_SHORT
            found.append({
                "stream": name, "lookups": len(ids), "rows": len(whole.whole.table_of),
                "share": share or len(pyramid.whole.rows) / len(ids), "is_default": share is None,
                "mean_absolute_error": errors, "bar": bar,
                "standard_error_said": float(sampled["policy"].error.mean()),
                "pass": errors["lru"] <= bar and errors["policy"] <= bar,
                "rows_of_sizes": sizes.tolist(),
                "curves": {
                    kind: {"whole": exact[kind].misses.tolist(),
                           "sampled": sampled[kind].misses.tolist()}
                    for kind in exact
                },
            })  # fmt: skip
            told = "  ".join(f"{kind} {error:.4f}" for kind, error in errors.items())
            print(f"{name:20} {len(ids):,} lookups, {found[-1]['share']:.1%} a level: {told}"
                  f"  (at most {bar})", flush=True)  # fmt: skip
    return found


def cross_check(scale: Scale) -> list[Report] | None:
    """Misses of LRU beside libcachesim's, a row at a time."""
    try:
        import libcachesim
    except ImportError:
        print("libcachesim: cannot be imported, no cross-check")
        return None
    found = []
    for name, every, _ in streams(scale):
        ids = every[: scale.check_lookups]
        distinct, rows = np.unique(ids, return_inverse=True)
        counts = distance_counts(rows, len(distinct))
        for share in (0.01, 0.1, 0.5):
            capacity = max(1, round(share * len(distinct)))
            ours = int(counts[0] + counts[capacity + 1 :].sum())
            cache, request = libcachesim.LRU(capacity), libcachesim.Request()
            request.obj_size = 1
            theirs = 0
            for row in rows.tolist():
                request.obj_id = row
                theirs += not cache.get(request)
            found.append({"stream": name, "capacity": capacity, "ours": ours, "theirs": theirs})
            print(f"libcachesim LRU: {name}, {capacity:,} rows: {theirs:,} misses, ours {ours:,}")
    return found


def bench_speed(scale: Scale, folder: Path) -> Report:
    ids = next(zipf_streams(scale.zipf_rows, scale.zipf_lookups)).ids
    distinct, rows = np.unique(ids, return_inverse=True)
    distance_counts(rows[:1000], len(distinct))  # compiles
    start = time.thread_time()
    distance_counts(rows, len(distinct))
    exact = len(ids) / (time.thread_time() - start)
    trace = trace_of(ids, 2048, folder / "stream.parquet")
    for _ in range(2):  # the first compiles
        start = time.process_time()
        pyramid = take_sample(trace, 0.01)
        policy_curve(pyramid, sizes_of(pyramid), window=WINDOW, with_error=False)
        sampled = len(ids) / (time.process_time() - start)
    found = {
        "exact_lookups_per_core_s": exact,
        "sampled_lookups_per_core_s": sampled,
        "tune": bench_tune(scale, folder),
    }
    print(f"exact {exact / 1e6:.1f} M lookups a second and core, sampled {sampled / 1e6:.1f}")
    return found


def bench_tune(scale: Scale, folder: Path) -> Report:
    """A long trace of 26 tables, from the file to the recommendation, in a process of its own."""
    path, batch = folder / "long.parquet", 26 * 2048
    tables = {f"C{i}": TraceTable(1 + (40_000_000 >> i), 64) for i in range(26)}
    if scale is SMOKE:
        tables = {f"C{i}": TraceTable(1 + (10_000 >> i), 64) for i in range(13)}
    made = {name: ZipfIds(max(table.rows, 2), 1.05, name, 0) for name, table in tables.items()}
    with TraceWriter(path, tables) as writer:
        for number in range(max(2, scale.long_lookups // batch)):
            for name, stream in made.items():
                ids = np.minimum(stream.draw(batch // len(tables)), tables[name].rows - 1)
                writer.write(number, name, ids)
        lookups = writer.lookups
    argv = [sys.executable, "-m", "tiered_emb.cli.main", "tune", str(path), "--dram-max", "2GiB",
            "--ssd", "1TiB", "--layers-ms", "40", "--batch-size", "2048", "--json"]  # fmt: skip
    start = time.perf_counter()
    if scale is SMOKE:
        argv.append("--smoke")
    # Not in a checkout, whose package has no core.
    done = subprocess.run(argv, capture_output=True, text=True, cwd=folder)
    took_s = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    path.unlink()
    print(f"a trace of {lookups:,} lookups: {took_s:.1f} s, {peak / GIB:.2f} GiB at most")
    return {
        "lookups": lookups,
        "seconds": took_s,
        "peak_bytes": peak,
        "recommended": json.loads(done.stdout)["recommended"]["python"],
    }


def record(workload: Workload, batches: int, path: Path) -> Trace:
    """Other batches than those that are measured, of the same streams."""
    tables = {name: TraceTable(rows, workload.dim) for name, rows in workload.rows.items()}
    with TraceWriter(path, tables) as writer:
        for number, batch in enumerate(islice(workload.batches(seed=1), batches)):
            for name, value in batch.sparse.items():
                ids = value[0] if isinstance(value, tuple) else value
                writer.write(number, name, ids.numpy().reshape(-1))
    return Trace(path)


@dataclass(frozen=True)
class Bench:
    """What the runs of a model share."""

    setup: Setup
    model: Model
    host: Host
    steps: Any
    folder: Path
    turns: int

    def run(self, sizes: Sizes) -> Report:
        """Predicts a step, then measures it."""
        workload, training = self.setup.workload, self.setup.training
        assert sizes.dram_bytes is not None
        with tempfile.TemporaryDirectory(dir=self.folder) as store:
            run = measure(
                workload, training,
                replace(self.steps, dram_bytes=int(sizes.dram_bytes), rows_ahead=sizes.rows_ahead,
                        ids_ahead=sizes.ids_ahead),
                self.host.rates, Path(store), options.watch,
            )  # fmt: skip
        told = replace(self.model, layers_s=run["work"]["dense_s"])
        found = outlook(told, sizes, self.host)
        taken = run["contenders"][TIERED]
        measured_ms, predicted_ms = taken["round_ms_p50"], found.step_s * 1e3
        row = {
            "model": self.setup.name, "dram_share": run["tiers"]["dram_share"],
            "dram_bytes": sizes.dram_bytes, "rows_ahead": sizes.rows_ahead,
            "ids_ahead": sizes.ids_ahead, "layers_ms": run["work"]["dense_s"] * 1e3,
            "measured_ms": measured_ms,
            "measured_ms_quartiles": [taken["round_ms_p25"], taken["round_ms_p75"]],
            "predicted_ms": predicted_ms, "error": predicted_ms / measured_ms - 1,
            "samples_per_s": self.setup.batch / measured_ms * 1e3, "binding": found.binding,
            "misses_measured": run["work"]["misses"], "misses_predicted": found.demand.step.misses,
        }  # fmt: skip
        print(
            f"{self.setup.name}: {row['dram_share']:.0%} in dram, {measured_ms:.2f} ms, "
            f"predicted {predicted_ms:.2f} ({row['error']:+.0%})", flush=True,
        )  # fmt: skip
        return row


def bench_model(bench: Bench, shares: tuple[float, ...]) -> Report:
    """The grid; then the recommended point within its largest size beside the grid's best, in
    turn, as two runs of one configuration differ by more than what is to be told apart."""
    budgets = [share * bench.model.bytes for share in shares]
    grid = [bench.run(Sizes(dram_bytes=budget)) for budget in budgets]
    layers_s = float(np.median([row["layers_ms"] for row in grid])) / 1e3
    told = replace(bench.model, layers_s=layers_s)
    points = explore(told, bench.host, Bounds(0.0, budgets[-1], float(1 << 40)))
    chosen = recommended(points, told, Wish())
    best = Sizes(dram_bytes=min(grid, key=lambda row: row["measured_ms"])["dram_bytes"])
    runs = [(bench.run(chosen.sizes), bench.run(best)) for _ in range(bench.turns)]
    of_chosen, of_best = ([row["measured_ms"] for row in each] for each in zip(*runs, strict=True))
    pairs = in_order(grid)
    found = {
        "model": bench.setup.name, "grid": grid, "recommended": runs[0][0],
        "tiers": tiers_text(chosen), "best_of_grid": runs[0][1], "recommended_ms": of_chosen,
        "best_of_grid_ms": of_best,
        "pairs_apart": len(pairs), "pairs_in_order": sum(pairs),
    }  # fmt: skip
    print(
        f"recommended: {slower_than_best(found):+.1%} beside the best of the grid; of "
        f"{len(pairs)} pairs of sizes more than {APART:.0%} apart "
        f"{sum(pairs)} are in order", flush=True,
    )  # fmt: skip
    return found


def engine_here(
    args: argparse.Namespace, folder: Path, device: str | None = None
) -> tuple[Limits, Engine]:
    """This machine and the engine on it, as `tiered-emb tune` knows them."""
    limits = measure_limits(folder, smoke=True) if args.smoke else Limits.current(folder)
    rates = options.rates_of(limits, with_device=device == "cuda")
    if device == "cpu":  # emulated, so that all is gone through
        rates = replace(rates, device=DeviceRates(1e10, 1e10, 1e10))
    engine = calibrated(
        folder, limits, rates, device=device, smoke=args.smoke, watch=options.watch,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    return limits, engine


def bench_predict(args: argparse.Namespace, scale: Scale, folder: Path) -> Report:
    limits, engine = engine_here(args, folder)
    host = engine.host
    steps = SMOKE_STEPS if args.smoke else replace(STEPS, warm_up=100, rounds=5, steps=20)
    models = []
    for setup, shares in SMOKE_MODELS if args.smoke else MODELS:
        trace = record(setup.workload, scale.trace_batches, folder / "trace.parquet")
        load = Load(RowFormat(setup.optimizer), batch_size=setup.batch)
        model = model_of(take_sample(trace, warm_up=0.5), load)
        turns = 1 if args.smoke else TURNS
        models.append(bench_model(Bench(setup, model, host, steps, folder, turns), shares))
    rows = [row for model in models for row in all_runs(model)]
    within = sum(abs(row["error"]) <= WITHIN for row in rows)
    print(runs_text(rows, "dram", "misses"))
    print(f"{within} of {len(rows)} within 15%")
    return {
        "models": models,
        "within_15_percent": within,
        "pairs": len(rows),
        "coefficients": vars(host.coefficients),
        "limits": limits.to_json(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--dir", type=Path, help="for stores and traces (the temporary folder)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    args = parser.parse_args(argv)
    scale = SMOKE if args.smoke else FULL
    report: Report = {"benchmark": "tuner", **provenance(__file__, argv), "smoke": args.smoke}
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        if "curves" in args.only:
            report["curves"] = bench_curves(scale, folder)
            report["libcachesim"] = cross_check(scale)
        if "speed" in args.only:
            report["speed"] = bench_speed(scale, folder)
        if "predict" in args.only:
            report["predict"] = bench_predict(args, scale, folder)
        if "placement" in args.only:
            _, engine = engine_here(args, folder)
            report["placement"] = bench_placement(engine.host, folder, args.smoke)
        if "hbm" in args.only and (args.smoke or torch.cuda.is_available()):
            device = "cuda" if torch.cuda.is_available() else "cpu"
            limits, engine = engine_here(args, folder, device)
            found = bench_hbm(engine.host, device, folder, args.smoke, record)
            report["hbm"] = {**found, "validation": engine.validation, "limits": limits.to_json()}
        elif "hbm" in args.only:
            print("no GPU is present: predictions for hbm were not measured")
    if args.only != ["hbm"] or "hbm" in report:  # else what is there stays
        write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
