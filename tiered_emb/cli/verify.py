"""`tiered-emb verify`: reads every block of a store and names what is damaged."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tiered_emb.cli.report import bytes_text, progress_bar
from tiered_emb.data.errors import DataError
from tiered_emb.stores import open_store, stores_of

SUMMARY = "read every block of a store or a checkpoint; name file, block and rows of every fault"

_ROWS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb verify PATH [--json]"
    parser.epilog = (
        "PATH: the directory of te.SSD(...), or what was given to te.save. It is only read.\n"
        "Exit status 1 if anything is damaged.\n\n"
        "example: tiered-emb verify /nvme/ads"
    )
    parser.add_argument("path", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the faults of every store at the path."""
    faults: list[dict[str, Any]] = []
    segments = read_bytes = 0
    try:
        paths = stores_of(args.path)
    except ValueError as error:
        raise DataError(str(error)) from None
    for path in paths:
        try:
            found, count, size = _verify(path)
        except OSError as error:  # the manifest or an index: what they name cannot be trusted
            found, count, size = [{"what": str(error), "rows": None}], 0, 0
        except ValueError as error:
            raise DataError(str(error)) from None
        faults += found
        segments += count
        read_bytes += size
    if args.json:
        print(json.dumps({"segments": segments, "bytes": read_bytes, "faults": faults}, indent=2))
    else:
        for fault in faults:
            print(_text(fault))
        print(
            f"{segments} segments, {bytes_text(read_bytes)} read: "
            + (f"{len(faults)} faults" if faults else "no fault")
        )
    return 1 if faults else 0


def _verify(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Faults of one store, its segments and their bytes."""
    engine = open_store(path)
    faults: list[dict[str, Any]] = []
    try:
        segments = engine.segments()
        for segment, _, _ in progress_bar(segments, len(segments), str(path), "segment"):
            for file, block, blocks, what, rows in engine.verify(segment):
                named = [{"table": engine.tables[table].name, "row": row} for table, row in rows]
                faults.append(
                    {"file": file, "block": block, "blocks": blocks, "what": what, "rows": named}
                )
        return faults, len(segments), engine.stats().ssd_used_bytes
    finally:
        engine.close()


def _text(fault: dict[str, Any]) -> str:
    place = ""
    if "file" in fault:
        place = f"{fault['file']}: "
        if fault["blocks"] == 1:
            place += f"block {fault['block']}: "
        elif fault["blocks"] > 1:
            place += f"blocks {fault['block']} to {fault['block'] + fault['blocks'] - 1}: "
    rows = fault["rows"]
    if rows is None:
        return f"{place}{fault['what']}; which rows are lost is not known"
    shown = ", ".join(f"{row['table']}[{row['row']}]" for row in rows[:_ROWS_SHOWN])
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    return f"{place}{fault['what']}; " + (f"rows lost: {shown}{more}" if rows else "no row is lost")
