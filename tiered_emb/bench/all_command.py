"""`tiered-emb bench all`: every subcommand once, within a quarter of an hour, and the report."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from tiered_emb.bench import dlrm_command, options
from tiered_emb.bench.dlrm_command import measure_all, plan_of
from tiered_emb.bench.report import files_in, write_report_of

SUMMARY = "all of them, and the report"
_FIRST = {
    "limits": [],
    "lookup": ["--rounds", "3"],
    "cache": ["--lookups", "1000000"],
    "ssd": ["--rows", "2000000"],
}
_STEPS = ["--warm-up", "80", "--rounds", "5", "--steps", "20"]
_DLRM = (
    ["dlrm-kaggle", "--scale", "0.25", "--dram", "10%", "25%", "50%", "100%", *_STEPS],
    ["meta-2022", "--dram", "10%", "100%", *_STEPS],
)
_LAST = {"wall": ["dlrm-kaggle"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb bench all --out DIR [OPTIONS]"
    parser.epilog = (
        "Writes JSON of each subcommand, charts and report.html to DIR.\n\n"
        "example: tiered-emb bench all --out report"
    )
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Runs them one after another."""
    if args.out is None:
        args.out = Path("report")
    options.begin(args)
    shared = ["--out", str(args.out)]
    shared += ["--dir", args.dir] if args.dir else []
    shared += ["--smoke"] if args.smoke else []
    for name, argv in _FIRST.items():
        more = ["--remeasure"] if name == "limits" else []  # in the same run
        _say(f"bench {name}")
        _command(name, [*argv, *shared, *more])
    limits = options.limits_of(args)
    runs: list[dict[str, Any]] = []
    for argv in _DLRM:
        _say(f"bench dlrm {argv[0]}")
        parsed = _parse(dlrm_command, [*argv, *shared])
        runs += measure_all(parsed, plan_of(parsed), limits)
    given = [" and ".join(" ".join(argv) for argv in _DLRM)]
    shown = argparse.Namespace(**{**vars(args), "json": False, "is_part": True})
    options.finish(shown, "dlrm", given, {"runs": runs}, limits, dlrm_command.text_of)
    for name, argv in _LAST.items():
        _say(f"bench {name}")
        _command(name, [*argv, *shared])
    write_report_of(files_in(args.out), args.out)
    if args.json:
        files = sorted(args.out.glob("*.json"))
        print(json.dumps({"reports": [json.loads(file.read_text()) for file in files]}))
    print(f"the report is {args.out / 'report.html'}", file=sys.stderr)
    return 0


def _command(name: str, argv: list[str]) -> None:
    module = importlib.import_module(f"tiered_emb.bench.{name}_command")
    module.run(_parse(module, argv))


def _parse(module: Any, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.set_defaults(is_part=True)
    return parser.parse_args(argv)


def _say(what: str) -> None:
    print(f"== {what}", file=sys.stderr, flush=True)
