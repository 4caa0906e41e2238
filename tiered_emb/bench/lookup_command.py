"""`tiered-emb bench lookup`: see `lookup`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tiered_emb.bench import options
from tiered_emb.bench.lookup import Effort, measure, smoke, studies
from tiered_emb.cli.report import table_text

SUMMARY = "cost of a lookup against rows, batch, pooling, dim, threads, cache ratio, skew"
_STORE_BYTES = 4 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    names = tuple(studies())
    parser.usage = "tiered-emb bench lookup [OPTIONS]"
    parser.epilog = "example: tiered-emb bench lookup --only batch dim --out report"
    parser.add_argument("--only", nargs="+", choices=names, metavar="STUDY", default=names,
                        help=", ".join(names))  # fmt: skip
    parser.add_argument("--rounds", metavar="N", type=options.count, default=5, help="(5)")
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    options.begin(args)
    every = smoke() if args.smoke else studies()
    effort = Effort(2, 2, 1) if args.smoke else Effort(rounds=args.rounds)
    with options.store_folder(args, 0 if args.smoke else _STORE_BYTES) as folder:
        effort.folder = folder
        wanted = {name: study for name, study in every.items() if name in args.only}
        found = measure(wanted, effort, options.watch)
    argv = [] if set(args.only) == set(every) else ["--only", *args.only]
    argv += [] if args.smoke else ["--rounds", str(args.rounds)]
    return options.finish(args, "lookup", argv, {"studies": found}, None, text_of)


def text_of(report: Mapping[str, Any]) -> str:
    """For people: nanoseconds a lookup."""
    parts = []
    for study in report["studies"].values():
        labels = [series["label"] for series in study["series"]]
        by_x: dict[float, dict[str, str]] = {}
        for series in study["series"]:
            for p in series["points"]:
                cell = f"{p['p50']:.1f} ({p['p25']:.0f}-{p['p75']:.0f})"
                by_x.setdefault(p["x"], {})[series["label"]] = cell
        rows = [(f"{x:g}", *(cells.get(n, "-") for n in labels)) for x, cells in by_x.items()]
        parts.append(study["title"] + ", ns a lookup\n" + table_text((study["x"], *labels), rows))
    return "\n\n".join(parts)
