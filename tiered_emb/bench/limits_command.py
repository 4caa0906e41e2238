"""`tiered-emb bench limits`: what the memory, the drive and the link of this machine give."""

from __future__ import annotations

import argparse

from tiered_emb.bench import options
from tiered_emb.bench.limits import Limits
from tiered_emb.bench.limits_figures import Figure, SsdLimits
from tiered_emb.cli.report import bytes_text, table_text
from tiered_emb.data.errors import DataError

SUMMARY = "measure what memory, drive and link of this machine give"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb bench limits [--dir DIR] [OPTIONS]"
    parser.epilog = (
        "Takes about a minute, once: later runs show what was saved, with its date. Figures are\n"
        "medians of three or more repetitions, with their quartiles.\n\n"
        "example: tiered-emb bench limits --dir /nvme"
    )
    parser.add_argument("--no-ssd", action="store_true", help="leave the drive out")
    parser.add_argument("--engine", action="store_true",
        help="fit the tuner's model of the engine to them, too: 2 or 3 minutes more")  # fmt: skip
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, or finds what was measured, and prints it."""
    options.begin(args)
    if args.engine and args.no_ssd:
        raise DataError("--engine: it is fitted to the drive, too; without --no-ssd")
    limits = options.limits_of(args, with_drive=not args.no_ssd)
    if args.engine:
        device = "cuda" if limits.link is not None else None
        options.engine_of(args, limits, again=args.remeasure, device=device)
    argv = [*["--no-ssd"] * args.no_ssd, *["--engine"] * args.engine]
    return options.finish(args, "limits", argv, {}, limits, lambda _: limits_text(limits))


def limits_text(limits: Limits) -> str:
    """The figures as tables for people."""
    machine = limits.machine
    cpu = machine["cpu"] or "unknown processor"
    head = (
        f"{cpu}, {machine['threads']} threads, {bytes_text(machine['memory_bytes'])}; "
        f"measured on {limits.date} in {limits.took_seconds:.0f} s"
    )
    parts = [head + (", smoke: not to be trusted" if limits.smoke else ""), _dram_text(limits)]
    if limits.ssd is not None:
        parts += [_reads_text(limits.ssd, limits.device), _ssd_text(limits.ssd)]
    if limits.link is not None:
        link = limits.link
        rows = [
            ("host to device", *_bytes_cells(link.host_to_device_bytes_per_s)),
            ("device to host", *_bytes_cells(link.device_to_host_bytes_per_s)),
            ("within the device, read + written", *_bytes_cells(link.device_copy_bytes_per_s)),
        ]
        parts.append(table_text((f"link, {link.device}", "GB/s", "p25-p75"), rows))
    return "\n\n".join(parts)


def _dram_text(limits: Limits) -> str:
    dram = limits.dram
    streams = [
        (name, str(s.threads), *_bytes_cells(figure))
        for s in dram.streams
        for name, figure in (
            ("read in order", s.sequential_read_bytes_per_s),
            ("copy, read + written", s.copy_bytes_per_s),
            ("triad, three arrays", s.triad_bytes_per_s),
        )
    ]
    rows = [
        (
            f"{r.row_bytes} bytes",
            str(r.threads),
            *_bytes_cells(r.gather_bytes_per_s),
            *_bytes_cells(r.gather_prefetched_bytes_per_s),
            *_bytes_cells(r.update_bytes_per_s),
        )
        for r in dram.rows
    ]
    rows_header = (
        "rows in random order", "threads", "gather GB/s", "p25-p75", "prefetched GB/s", "p25-p75",
        "update GB/s", "p25-p75",
    )  # fmt: skip
    return "\n\n".join(
        (
            table_text(("memory", "threads", "GB/s", "p25-p75"), streams),
            table_text(rows_header, rows),
        )
    )


def _reads_text(ssd: SsdLimits, device: str | None) -> str:
    rows = [
        (
            bytes_text(r.block_bytes),
            str(r.queue_depth),
            str(r.threads),
            *_cells(r.reads_per_s, 1e3),
            f"{r.latency_p50_us.median:.0f}",
            f"{r.latency_p99_us.median:.0f}",
        )
        for r in ssd.reads
    ]
    title = f"random reads, {device}" + ("" if ssd.is_direct else ", by the page cache")
    header = (title, "depth", "threads", "1000 reads/s", "p25-p75", "p50 us", "p99 us")
    return table_text(header, rows)


def _ssd_text(ssd: SsdLimits) -> str:
    mixed = ssd.mixed
    rows = [
        ("read in order", *_bytes_cells(ssd.sequential_read_bytes_per_s)),
        ("written in order", *_bytes_cells(ssd.sequential_write_bytes_per_s)),
        ("both: random reads", *_bytes_cells(mixed.read_bytes_per_s)),
        ("both: written in order", *_bytes_cells(mixed.write_bytes_per_s)),
    ]
    syncs = [("p50", *_cells(ssd.fsync_us.p50)), ("p99", *_cells(ssd.fsync_us.p99))]
    return "\n\n".join(
        (
            table_text(("drive", "GB/s", "p25-p75"), rows),
            table_text(("sync after an append", "us", "p25-p75"), syncs),
        )
    )


def _bytes_cells(figure: Figure) -> tuple[str, str]:
    return _cells(figure, 1e9)


def _cells(figure: Figure, unit: float = 1.0) -> tuple[str, str]:
    """The median and the quartiles, with three digits or so."""
    low, median, high = (value / unit for value in (figure.p25, figure.median, figure.p75))
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}"
