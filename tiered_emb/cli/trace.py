"""`tiered-emb trace`: which rows a model would look up, from a data file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from tiered_emb.cli.report import bytes_text
from tiered_emb.data.errors import DataError
from tiered_emb.trace.from_data import trace_of_data
from tiered_emb.trace.reader import Trace

SUMMARY = "write which rows a model would look up that trains on a data file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb trace DATA --out FILE [OPTIONS]"
    parser.epilog = (
        "DATA: a Parquet file, with --columns; or a Criteo log (TSV, gzipped or not, or what\n"
        "convert-data made of it), with --hash-rows. A column is a table: of integers, which are\n"
        "ids, of lists of them, or of text with --hash-rows. A model's own lookups are recorded\n"
        "by te.record_trace.\n\n"
        "example: tiered-emb trace clicks.parquet --columns user item --out trace.parquet"
    )
    add = parser.add_argument
    add("data", metavar="DATA", type=Path, help=argparse.SUPPRESS)
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="the trace: Arrow if its name ends with .arrow, else Parquet",
    )
    add("--columns", metavar="COL", nargs="+", help="the columns of ids")
    add("--batch-size", metavar="N", type=int, default=2048, help="samples a batch (2048)")
    add("--hash-rows", metavar="N", type=int, help="hash values to so many rows a table")
    add("--force", action="store_true", help="replace an output that exists")
    add("--sample", metavar="X", type=float, default=1.0, help="keep this share of the rows (1)")


def run(args: argparse.Namespace) -> int:
    """Writes the trace and says what is in it."""
    if not args.out.parent.is_dir():
        raise DataError(f"--out {args.out}: no such directory: {args.out.parent}")
    if args.out.exists() and (not args.force or not args.out.is_file()):
        raise DataError(f"--out {args.out}: exists already (--force replaces a file)")
    if args.out.exists() and args.data.exists() and args.out.samefile(args.data):
        raise DataError(f"--out {args.out}: is the data file")
    with tqdm(unit=" samples", file=sys.stderr, leave=False, disable=None) as bar:
        samples, lookups = trace_of_data(
            args.data, args.out, columns=args.columns, batch_size=args.batch_size,
            hash_rows=args.hash_rows, sample=args.sample, progress=bar.update,
        )  # fmt: skip
    trace = Trace(args.out)
    print(
        f"{args.out}: {lookups:,} lookups of {samples:,} samples, {len(trace.tables)} tables of "
        f"{trace.total_rows:,} rows, {bytes_text(args.out.stat().st_size)}"
    )
    return 0
