"""Misses of the eviction policies relative to Belady's optimum, and what choosing victims costs.

    python benchmarks/bench_cache.py --out benchmarks/results/cache.json

The core's own policies and window run without rows (cpp/cache/simulation.h), one batch in flight.
A batch is a twentieth of the cache, at most 1,024 lookups. A miss is a row of a batch that is not
resident and was used before: each costs a read. The first touch of a row costs none; it takes a
slot, and is counted apart, for all policies and the optimum alike. The bars are checked on ratios
of reads; ratios with first touches among the misses stand beside them. The first 40% of a stream
warm the cache up and are not counted. Windows are in lookups: eight times the capacity, two
turnovers (a turnover is the lookups in which as many rows enter, first touches included, as the
cache holds, in the run with the long window), a tenth of the capacity, and none. Where
`libcachesim` can be imported (PyPI), LRU, S3-FIFO and the optimum are compared to it, a row at a
time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cache_streams import Stream, meta_curve, meta_fit, real_streams, zipf_streams

from tiered_emb import _core
from tiered_emb.bench.optimum import optimal_misses
from tiered_emb.bench.provenance import provenance, write_report

Report = dict[str, Any]
PLAIN = ("lru", "lfu", "s3fifo")
WARM_UP = 0.4
BAR_TURNOVERS = 1.10
BAR_SHORT = 1.05  # of the misses of the best of PLAIN
BAR_NS = 40.0


@dataclass(frozen=True)
class Sizes:
    rows: int = 200_000
    lookups: int = 4_000_000
    meta_rows: int = 600_000
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    cost_rows: int = 2_000_000
    cost_lookups: int = 8_000_000
    cost_rounds: int = 5
    check_rows: int = 20_000
    check_lookups: int = 400_000


SMOKE = Sizes(
    rows=20_000,
    lookups=100_000,
    meta_rows=10_000,
    shares=(0.02, 0.1),
    cost_rows=20_000,
    cost_lookups=100_000,
    cost_rounds=1,
    check_rows=2000,
    check_lookups=20_000,
)


def simulate(
    policy: str, stream: Stream, capacity: int, batch: int, window: int, warm_up: int
) -> dict[str, int]:
    ids = np.ascontiguousarray(stream.ids, dtype=np.int64)
    return _core.simulate_cache(
        policy, capacity, stream.rows, ids.ctypes.data, len(ids), batch, window, warm_up
    )


def all_streams(sizes: Sizes, report: Report) -> Iterator[Stream]:
    ids = meta_curve(sizes.meta_rows)
    fit = meta_fit(ids)
    report["meta_curve_fit"] = fit
    print(f"meta curve: {len(ids)} lookups; shares of rows and lookups within {fit:.4f} of Meta's")
    yield Stream("meta curve", ids, int(ids.max()) + 1, 1.02)
    yield from zipf_streams(sizes.rows, sizes.lookups)
    yield from real_streams(sizes.lookups if sizes is SMOKE else 1 << 40)


def compare(stream: Stream, share: float) -> Report:
    """All policies on a stream with a cache of a share of its rows."""
    capacity = round(share * stream.rows)
    batch = min(max(capacity // 20, 1), 1024)
    warm_up = int(len(stream.ids) * WARM_UP)
    optimum, first_touches = optimal_misses(stream.ids, stream.rows, capacity, batch, warm_up)

    def run(policy: str, window: int = 0) -> dict[str, int]:
        counts = simulate(policy, stream, capacity, batch, window, warm_up)
        if counts["first_touches"] != first_touches:
            raise AssertionError(f"{policy}: first touches {counts}, optimum {first_touches}")
        return counts

    long = run("lookahead", 8 * capacity)
    turnover = capacity * long["lookups"] / max(long["misses"] + long["first_touches"], 1)
    windows = {"8x": 8 * capacity, "2t": round(2 * turnover), "0.1x": capacity // 10, "none": 0}
    misses = {policy: run(policy)["misses"] for policy in PLAIN}
    for label, window in windows.items():
        misses[label] = run("lookahead", window)["misses"]
    best = min(misses[policy] for policy in PLAIN)
    ratios = {label: count / max(optimum, 1) for label, count in misses.items()}
    checks = {
        "8x": (ratios["8x"], stream.bar_at(share)),
        "2t": (ratios["2t"], BAR_TURNOVERS),
        "0.1x": (misses["0.1x"] / max(best, 1), BAR_SHORT),
        "none": (misses["none"] / max(best, 1), BAR_SHORT),
    }
    return {
        "stream": stream.name,
        "share": share,
        "capacity": capacity,
        "batch": batch,
        "lookups": long["lookups"],
        "first_touches_per_lookup": first_touches / long["lookups"],
        "optimum_misses_per_lookup": optimum / long["lookups"],
        "turnover": turnover,
        "windows": windows,
        "ratios": ratios,
        "ratios_with_first_touches": {
            label: (count + first_touches) / (optimum + first_touches)
            for label, count in misses.items()
        },
        "checks": {
            label: {"value": value, "bar": bar, "pass": value <= bar}
            for label, (value, bar) in checks.items()
        },
    }


def print_row(row: Report) -> None:
    marks = []
    for label, check in row["checks"].items():
        verdict = "pass " if check["pass"] else "SHORT"
        marks.append(f"{label} {check['value']:.3f}/{check['bar']:.2f} {verdict}")
    full = row["ratios_with_first_touches"]
    marks.append(f"with first touches: 8x {full['8x']:.3f} 2t {full['2t']:.3f} ")
    plain = " ".join(f"{policy} {row['ratios'][policy]:.3f}" for policy in PLAIN)
    print(
        f"{row['stream']:20} {row['share']:4.0%} misses {row['optimum_misses_per_lookup']:.4f} "
        f"T {row['turnover'] / row['capacity']:5.1f}x  {'  '.join(marks)}  {plain}",
        flush=True,
    )


def bench_cost(sizes: Sizes) -> Report:
    """Nanoseconds a lookup, cache of a tenth of the rows, while as many enter the window as leave.

    What the policy takes, for which there is a bar, and what the window of announced ids takes,
    which is off the step. Of all rounds the fastest: others share the machine.
    """
    stream = next(zipf_streams(sizes.cost_rows, sizes.cost_lookups))
    capacity = sizes.cost_rows // 10
    warm_up = int(len(stream.ids) * WARM_UP)
    report: Report = {"rows": sizes.cost_rows, "capacity": capacity, "bar_ns": BAR_NS}
    report["policies"] = {}
    runs = {policy: (policy, 0) for policy in (*PLAIN, "lookahead")}
    for label, window in (("0.1x", capacity // 10), ("8x", 8 * capacity)):
        runs[f"lookahead {label}"] = ("lookahead", window)
    taken: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
    for _ in range(sizes.cost_rounds):
        for label, (policy, window) in runs.items():
            counts = simulate(policy, stream, capacity, min(capacity // 20, 1024), window, warm_up)
            lookups = counts["timed_lookups"]
            taken[label].append((counts["policy_ns"] / lookups, counts["window_ns"] / lookups))
            if window:
                report[f"window_bytes_per_lookup {label}"] = counts["window_bytes"] / window
    for label, rounds in taken.items():
        policy_ns, window_ns = np.array(rounds).T
        report["policies"][label] = {
            "ns_per_lookup": float(policy_ns.min()),
            "median_ns_per_lookup": float(np.median(policy_ns)),
            "window_ns_per_lookup": float(window_ns.min()),
            "median_window_ns_per_lookup": float(np.median(window_ns)),
            "pass": bool(policy_ns.min() <= BAR_NS),
        }
        verdict = "pass" if policy_ns.min() <= BAR_NS else "SHORT"
        print(
            f"cost {label:16} policy {policy_ns.min():5.1f} ns a lookup "
            f"(median {np.median(policy_ns):5.1f}), {verdict} (at most {BAR_NS:.0f}); "
            f"window {window_ns.min():5.1f} (median {np.median(window_ns):5.1f})",
            flush=True,
        )
    return report


def cross_check(sizes: Sizes) -> Report | None:
    """Misses beside libcachesim's, first touches included, a row at a time."""
    try:
        import libcachesim
    except ImportError:
        print("libcachesim: cannot be imported, no cross-check")
        return None
    stream = next(zipf_streams(sizes.check_rows, sizes.check_lookups))
    ids, rows = stream.ids, stream.rows
    following = np.full(len(ids), np.iinfo(np.int64).max)
    last = np.full(rows, -1)
    for i, row in enumerate(ids):
        if last[row] >= 0:
            following[last[row]] = i
        last[row] = i
    report: Report = {"lookups": len(ids), "rows": rows, "misses": []}
    theirs = {"lru": "LRU", "s3fifo": "S3FIFO", "optimum": "Belady"}
    for share in sizes.shares:
        capacity = round(share * rows)
        for name, theirs_name in theirs.items():
            cache = getattr(libcachesim, theirs_name)(capacity)
            request = libcachesim.Request()
            request.obj_size = 1
            misses = 0
            for row, after in zip(ids.tolist(), following.tolist(), strict=True):
                request.obj_id = row
                request.next_access_vtime = after
                misses += not cache.get(request)
            if name == "optimum":
                ours = sum(optimal_misses(ids, rows, capacity, 1, 0))
            else:
                counts = simulate(name, stream, capacity, 1, 0, 0)
                ours = counts["misses"] + counts["first_touches"]
            report["misses"].append(
                {"policy": name, "capacity": capacity, "ours": ours, "libcachesim": misses}
            )
            print(
                f"libcachesim {theirs_name:6} {capacity:6} rows: {misses} misses, ours {ours} "
                f"({ours / misses - 1:+.3%})"
            )
    return report


PARTS = ("misses", "cost", "check")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    args = parser.parse_args(argv)
    sizes = SMOKE if args.smoke else Sizes()
    report: Report = {"benchmark": "cache", **provenance(__file__, argv)}
    if "misses" in args.only:
        report["misses"] = []
        for stream in all_streams(sizes, report):
            for share in sizes.shares:
                row = compare(stream, share)
                report["misses"].append(row)
                print_row(row)
        checks = [check for row in report["misses"] for check in row["checks"].values()]
        print(f"{sum(check['pass'] for check in checks)} of {len(checks)} bars passed")
    if "cost" in args.only:
        report["cost"] = bench_cost(sizes)
    if "check" in args.only:
        report["libcachesim"] = cross_check(sizes)
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
