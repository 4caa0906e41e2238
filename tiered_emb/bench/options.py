"""What the subcommands of `tiered-emb bench` share: options, sizes, limits, progress, output."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tiered_emb.bench.bound import DeviceRates, MachineRates
from tiered_emb.bench.calibration import Engine, calibrated
from tiered_emb.bench.limits import Limits, measure
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.report import drawing, files_in, write_report_of
from tiered_emb.cli.report import progress_bar
from tiered_emb.data.errors import DataError
from tiered_emb.tiers import format_bytes

_SPARE_BYTES = 1 << 30


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every subcommand that runs something."""
    group = parser.add_argument_group("common")
    add = group.add_argument
    add("--dir", metavar="DIR", help="where stores go, on the drive (the temporary folder)")
    add("--remeasure", action="store_true", help="measure the machine's limits again")
    add("--smoke", action="store_true", help="smallest size, in seconds; figures say nothing")
    add("--json", action="store_true", help="print JSON")
    add("--out", metavar="DIR", type=Path, help="write JSON, report.html and charts there")


def begin(args: argparse.Namespace) -> None:
    """Before anything takes time: that what it comes to can be written where it should go."""
    if args.out is None:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if not os.access(args.out, os.W_OK | os.X_OK):
        raise DataError(f"--out {args.out}: not writable")
    drawing.require()


def count(text: str) -> int:
    """A whole number above 0, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def limits_of(args: argparse.Namespace, with_drive: bool = True) -> Limits:
    """The machine's limits: saved ones, or measured now, about a minute."""
    directory = (args.dir or tempfile.gettempdir()) if with_drive else None
    with tqdm(unit=" figures", file=sys.stderr, leave=False, disable=None) as bar:

        def progress(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        def say(text: str) -> None:
            bar.write(text, file=sys.stderr)

        if args.smoke:
            return measure(directory, smoke=True, progress=progress)
        return Limits.current(directory, args.remeasure, say=say, progress=progress)


def rates_of(limits: Limits, threads: int | None = None, with_device: bool = False) -> MachineRates:
    """What the bound computes with; `threads` of the processor, None: all."""
    ssd, dram, link = limits.ssd, limits.dram, limits.link
    device = None
    if with_device:
        assert link is not None  # measured wherever there is CUDA
        device = DeviceRates(
            link.device_copy_bytes_per_s.median,
            link.host_to_device_bytes_per_s.median,
            link.device_to_host_bytes_per_s.median,
        )
    if threads is not None:
        kept = tuple(r for r in dram.rows if r.threads == threads)
        if not kept:
            measured = sorted({r.threads for r in dram.rows})
            raise DataError(f"--threads {threads}: limits are known of {measured} threads only")
        streams = tuple(s for s in dram.streams if s.threads == threads)
        dram = replace(dram, rows=kept, streams=streams)
    return MachineRates(
        gather=dram.gather,
        update=dram.update,
        reads_per_s=0.0 if ssd is None else ssd.best_reads_per_s(4096),
        write_bytes_per_s=0.0 if ssd is None else ssd.sequential_write_bytes_per_s.median,
        reads=None if ssd is None else ssd.best_reads_per_s,
        device=device,
    )


def engine_of(
    args: argparse.Namespace, limits: Limits, again: bool, device: str | None = None
) -> Engine:
    """The engine on this machine, and on a device: saved, or fitted now, two or three minutes."""
    directory = args.dir or tempfile.gettempdir()
    with tqdm(unit=" runs", file=sys.stderr, leave=False, disable=None) as bar:
        return calibrated(
            directory, limits, rates_of(limits, with_device=device is not None),
            device=device, again=again, smoke=args.smoke,
            say=lambda text: bar.write(text, file=sys.stderr), watch=lambda items, *_: items,
            progress=bar.update,
        )  # fmt: skip


@contextmanager
def store_folder(args: argparse.Namespace, needed_bytes: float) -> Iterator[Path]:
    """An empty folder on the drive, removed in the end; `DataError` where there is no room."""
    where = args.dir or tempfile.gettempdir()
    if not Path(where).is_dir():
        raise DataError(f"--dir {where}: no such directory")
    free = shutil.disk_usage(where).free
    if free < needed_bytes + _SPARE_BYTES:
        raise DataError(
            f"{where}: the stores need {format_bytes(int(needed_bytes))}, "
            f"{format_bytes(free)} are free (another place: --dir; smaller tables: --scale)"
        )
    folder = Path(tempfile.mkdtemp(prefix="tiered-emb-bench-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def watch(items: Iterable[Any], total: int, caption: str) -> Iterable[Any]:
    """A progress bar around a long loop, where stderr is a terminal."""
    return progress_bar(items, total, caption, " rounds" if caption == "steps" else " parts")


def finish(
    args: argparse.Namespace,
    name: str,
    argv: Sequence[str],
    results: Mapping[str, Any],
    limits: Limits | None,
    text: Callable[[Mapping[str, Any]], str],
) -> int:
    """Prints results, and writes them to `NAME.json` of --out with all that they depend on.

    With --out, `report.html` and charts are made there of all benchmarks' JSON in it, unless the
    command `is_part` of a longer one.
    """
    given = [*argv, *["--smoke"] * args.smoke]
    head = provenance(__file__, given, f"tiered-emb bench {name}")
    report = {"benchmark": name, **head, "smoke": args.smoke, **results}
    if limits is not None:
        report["limits"] = limits.to_json()
    print(json.dumps(report, indent=1, default=str) if args.json else text(report))
    sys.stdout.flush()
    if args.out is not None:
        write_report(args.out / f"{name}.json", report)
    if args.out is not None and not getattr(args, "is_part", False):
        write_report_of(files_in(args.out), args.out)
    return 0
