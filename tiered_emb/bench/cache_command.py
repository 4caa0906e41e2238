"""`tiered-emb bench cache`: misses of the eviction policies beside Belady's optimum.

The core's own policies run over streams of ids without rows. Misses of rows that were used before
are counted, a lookup, after the first 40% of a stream; first touches are the same for all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiered_emb import _core
from tiered_emb.bench import options
from tiered_emb.bench.optimum import optimal_misses
from tiered_emb.bench.streams import Ids, MetaIds, ZipfIds
from tiered_emb.cli.report import table_text

SUMMARY = "misses of the eviction policies beside the optimum"
POLICIES = ("lookahead", "lfu", "lru", "s3fifo")
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_WARM_UP = 0.4
_WINDOW = 8  # times the capacity, in lookups, that the lookahead knows
_BATCH_MAX = 1024


@dataclass(frozen=True)
class Stream:
    """Ids in order."""

    name: str
    about: str
    rows: int
    ids: Ids


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb bench cache [OPTIONS]"
    parser.epilog = "example: tiered-emb bench cache --lookups 4000000 --out report"
    parser.add_argument("--rows", metavar="N", type=options.count, default=150_000,
                        help="of the table (150,000)")  # fmt: skip
    parser.add_argument("--lookups", metavar="N", type=options.count, default=2_000_000,
                        help="of a stream (2,000,000)")  # fmt: skip
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Simulates and prints."""
    options.begin(args)
    if args.smoke:
        args.rows, args.lookups = 2000, 20_000
    streams = list(_streams(args.rows, args.lookups))
    cells = [(stream, share) for stream in streams for share in SHARES]
    points: dict[str, list[dict[str, Any]]] = {stream.name: [] for stream in streams}
    for stream, share in options.watch(cells, len(cells), "caches"):
        points[stream.name].append(_misses(stream, share))
    found = [
        {
            "name": stream.name,
            "about": stream.about,
            "rows": stream.rows,
            "lookups": len(stream.ids),
            "points": points[stream.name],
        }
        for stream in streams
    ]
    argv = [f"--rows {args.rows}", f"--lookups {args.lookups}"]
    return options.finish(args, "cache", argv, {"streams": found}, None, text_of)


def _streams(rows: int, lookups: int) -> Iterator[Stream]:
    for exponent in (0.8, 1.05):
        ids = ZipfIds(rows, exponent, "cache", 0).draw(lookups)
        yield Stream(f"zipf {exponent:g}", f"Zipf's law, exponent {exponent:g}", rows, ids)
    yield Stream(
        "meta-2022", "reused as in Meta's published traces of 2022", rows,
        MetaIds(rows, "cache", 0).draw(lookups),
    )  # fmt: skip


def _misses(stream: Stream, share: float) -> dict[str, Any]:
    """Misses a lookup with a cache of a share of the rows."""
    capacity = max(1, round(share * stream.rows))
    batch = min(max(capacity // 20, 1), _BATCH_MAX)
    warm_up = int(len(stream.ids) * _WARM_UP)
    ids = np.ascontiguousarray(stream.ids, dtype=np.int64)
    best, _ = optimal_misses(ids, stream.rows, capacity, batch, warm_up)
    misses = {}
    for policy in POLICIES:
        window = _WINDOW * capacity if policy == "lookahead" else 0
        counts = _core.simulate_cache(
            policy, capacity, stream.rows, ids.ctypes.data, len(ids), batch, window, warm_up
        )
        misses[policy] = counts["misses"] / counts["lookups"]
        misses["optimum"] = best / counts["lookups"]
    return {"share": share, "capacity": capacity, "batch": batch, "misses": misses}


def text_of(report: Mapping[str, Any]) -> str:
    """For people: hit ratios."""
    parts = []
    for stream in report["streams"]:
        names = ("optimum", *POLICIES)
        rows = [
            (f"{p['share']:.1%}", *(f"{1 - p['misses'][name]:.2%}" for name in names))
            for p in stream["points"]
        ]
        head = f"{stream['about']}: {stream['rows']:,} rows, {stream['lookups']:,} lookups"
        parts.append(head + "; hits\n" + table_text(("rows in dram", *names), rows))
    return "\n\n".join(parts)
