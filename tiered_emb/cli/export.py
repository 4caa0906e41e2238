"""`tiered-emb export`: a table of a store as a Parquet or safetensors file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiered_emb.cli.report import bytes_text, progress_bar
from tiered_emb.data.errors import DataError
from tiered_emb.stores import open_store, stores_of
from tiered_emb.table_files import export_rows

SUMMARY = "write a table of a store or a checkpoint to a Parquet or safetensors file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb export PATH FILE [--table NAME]"
    parser.epilog = (
        "PATH: the directory of te.SSD(...), or what was given to te.save. It is only read.\n"
        "FILE ends in .parquet or .safetensors. It gets the rows that were ever written: id,\n"
        "weight, and the optimizer's state. te.import_rows reads it into a table.\n\n"
        "example: tiered-emb export /nvme/ads ads.parquet --table item"
    )
    parser.add_argument("path", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("file", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--table", metavar="NAME", help="which, where there are several")


def run(args: argparse.Namespace) -> int:
    """Exports the table and says how much it was."""

    def progress(pieces: Iterable[Any], total: int) -> Iterable[Any]:
        return progress_bar(pieces, total, args.file, "piece")

    try:
        store = _store_with(args.path, args.table)
        count = export_rows(store, args.file, args.table, progress=progress)
    except (ValueError, KeyError) as error:
        raise DataError(str(error.args[0] if error.args else error)) from None
    print(f"{count:,} rows, {bytes_text(Path(args.file).stat().st_size)}: {args.file}")
    return 0


def _store_with(path: str, table: str | None) -> Path:
    """The store at `path` that has the table."""
    stores = stores_of(path)
    names = []
    for store in stores:
        engine = open_store(store)
        tables = [spec.name for spec in engine.tables]
        engine.close()
        if table in tables:
            return store
        names += tables
    if table is None and len(names) == 1:
        return stores[0]
    raise KeyError(f"{path}: --table must be one of {names}")
