"""`tiered-emb bench report`: see `report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tiered_emb.bench.report import files_in, write_report_of
from tiered_emb.data.errors import DataError

SUMMARY = "one HTML file and PNG charts from the JSON of other benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb bench report FILE.json... --out DIR"
    parser.epilog = (
        "FILE.json: what --out of another benchmark wrote, or a directory of such files. Runs of\n"
        "one workload with different --dram make the charts against cache size.\n\n"
        "example: tiered-emb bench report small/dlrm.json large/dlrm.json --out report"
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="write report.html and charts there"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the report and says where it is."""
    files: list[Path] = []
    for path in args.files:
        found = files_in(path) if path.is_dir() else [path]
        if not found:
            raise DataError(f"{path}: no JSON of tiered-emb bench there")
        files += found
    print(write_report_of(files, args.out))
    return 0
