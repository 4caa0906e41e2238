"""`tiered-emb convert-data`: Criteo TSV files to Parquet."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tiered_emb.cli.report import bytes_progress, bytes_text
from tiered_emb.data.criteo_convert import COMPRESSIONS, Converted, ConvertOptions, convert
from tiered_emb.data.errors import DataError
from tiered_emb.data.parquet import is_parquet

SUMMARY = "convert Criteo TSV files to Parquet: a quarter of the space, and the same ids"

_DEFAULTS = ConvertOptions()
_ENDINGS = (".gz", ".tsv", ".txt", ".csv")

Jobs = Mapping[Path, Sequence[Path]]
"""For each output its inputs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb convert-data INPUT... --out FILE.parquet|DIR [OPTIONS]"
    parser.epilog = (
        "INPUT: a TSV file (label, 13 integers, 26 hexadecimal categories), gzipped or not.\n"
        "With FILE.parquet all inputs become one file, in order; with DIR each becomes one of\n"
        "its own. Columns: label, I1 to I13, C1 to C26; an empty field is null.\n\n"
        "example: tiered-emb convert-data day_*.gz --out criteo --skip-bad-lines"
    )
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help=argparse.SUPPRESS)
    add("--out", metavar="PATH", required=True, help="FILE.parquet, or a directory")
    add("--skip-bad-lines", action="store_true", help="count malformed lines, go on")
    names = ", ".join(COMPRESSIONS)
    add(
        "--compression",
        metavar="C",
        choices=COMPRESSIONS,
        default=_DEFAULTS.compression,
        help=f"{names} ({_DEFAULTS.compression})",
    )
    rows = _DEFAULTS.group_rows
    add("--rows-per-group", metavar="N", type=_count, default=rows, help=f"({rows:,})")
    workers = "files converted at a time, where --out is a directory (half of the cores)"
    add("--workers", metavar="N", type=_count, help=workers)
    add("--force", action="store_true", help="replace outputs that exist")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Converts, and says what came out."""
    inputs = [Path(name) for name in args.inputs]
    size_bytes = sum(_checked_size(path) for path in inputs)
    jobs = _jobs(inputs, Path(args.out), args.force)
    options = ConvertOptions(args.skip_bad_lines, args.compression, args.rows_per_group)
    workers = args.workers or max(1, (os.cpu_count() or 1) // 2)
    start = time.perf_counter()
    with bytes_progress(size_bytes, "converting") as progress:
        results = _convert_all(jobs, options, workers, progress)
    report = _report(jobs, results, size_bytes, time.perf_counter() - start)
    print(json.dumps(report, indent=2) if args.json else _text(report))
    return 0


def _checked_size(path: Path) -> int:
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; expected a file")
        if is_parquet(path):
            raise DataError(f"{path}: is Parquet already")
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error


def _jobs(inputs: Sequence[Path], out: Path, force: bool) -> Jobs:
    """What becomes what. Makes the directory if one is asked for."""
    jobs: dict[Path, Sequence[Path]] = {}
    if out.suffix == ".parquet" and not out.is_dir():
        jobs[out] = inputs
    else:
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is not a directory; a file's name ends in .parquet")
        for path in inputs:
            target = out / f"{_stem(path)}.parquet"
            if target in jobs:
                raise DataError(f"{path} and {jobs[target][0]} would both become {target}")
            jobs[target] = [path]
        out.mkdir(parents=True, exist_ok=True)
    for target in jobs:
        if not target.parent.is_dir():
            raise DataError(f"{target.parent}: no such directory")
        if target.exists() and not force:
            raise DataError(f"{target}: exists already (--force replaces it)")
    return jobs


def _stem(path: Path) -> str:
    name = path.name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name or path.name


class _StoppedError(Exception):
    """Another conversion has failed."""


def _convert_all(
    jobs: Jobs, options: ConvertOptions, workers: int, progress: Callable[[int], object]
) -> list[Converted]:
    """Runs the jobs in threads; the first failure, or Ctrl-C, ends all that are not done."""
    stopped = threading.Event()
    one_at_a_time = threading.Lock()

    def advance(read_bytes: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        with one_at_a_time:
            progress(read_bytes)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(convert, jobs[out], out, options, advance) for out in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _report(
    jobs: Jobs, results: Sequence[Converted], input_bytes: int, seconds: float
) -> dict[str, Any]:
    columns = zip(*(asdict(result).values() for result in results), strict=True)
    total = Converted(*map(sum, columns))
    lines = total.samples + total.bad_lines
    return {
        "outputs": [str(path) for path in jobs],
        **asdict(total),
        "input_bytes": input_bytes,
        "seconds": seconds,
        "lines_per_second": lines / seconds,
    }


def _text(report: Mapping[str, Any]) -> str:
    outputs = report["outputs"]
    name = outputs[0] if len(outputs) == 1 else f"{len(outputs)} files"
    sizes = f"{bytes_text(report['input_bytes'])} -> {bytes_text(report['output_bytes'])}"
    bad_lines = f"{report['bad_lines']:,} malformed lines left out"
    return "\n".join(
        [
            f"{name}: {report['samples']:,} samples, {sizes}",
            f"{report['missing']:,} missing values, {bad_lines}",
            f"{report['seconds']:.1f} s, {report['lines_per_second']:,.0f} lines/s",
        ]
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
