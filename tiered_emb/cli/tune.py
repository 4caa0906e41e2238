"""`tiered-emb tune`: which tier sizes a model needs, from a trace of its lookups."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tiered_emb.bench import options
from tiered_emb.bench.bound import DeviceRates
from tiered_emb.bench.calibration import validation_line
from tiered_emb.bench.contenders import OPTIMIZERS
from tiered_emb.bench.predict import Host
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.report import write_report_of
from tiered_emb.bench.report.tune import years_text
from tiered_emb.bench.wall import GIGA, Part, parts
from tiered_emb.cli.report import bytes_text, table_text
from tiered_emb.data.errors import DataError
from tiered_emb.tiers import parse_bytes
from tiered_emb.trace.reader import Trace
from tiered_emb.tuner.advice import advice_dict, advise, curves_dict, curves_of, share_text
from tiered_emb.tuner.cost import DTYPES, Outlook, RowFormat, dims_of, format_of
from tiered_emb.tuner.model import Load
from tiered_emb.tuner.sample import take_sample
from tiered_emb.tuner.search import TIERS, Bounds, Wish

SUMMARY = "which tier sizes a model needs, from a trace of its lookups"
WARM_UP = 0.5
_ROWS_MAX = 14
_DWPD_YEARS = 5  # a drive that may be written once a day, for as long as it is guaranteed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb tune TRACE --dram-max SIZE [--ssd SIZE] [OPTIONS]"
    parser.epilog = (
        "TRACE: of te.record_trace or tiered-emb trace, or any Parquet, Arrow or CSV file of\n"
        "(table, id).\n"
        "The first time, the limits of memory and drive are measured and the engine is fitted to\n"
        "them, three or four minutes; both are saved. docs/TUNING.md is a guide.\n\n"
        "example: tiered-emb tune trace.parquet --dram-max 128GiB --ssd 2TB --layers-ms 40"
    )
    add = parser.add_argument
    add("trace", metavar="TRACE", type=Path, help=argparse.SUPPRESS)
    add = parser.add_argument_group("tiers").add_argument
    add("--dram-max", metavar="SIZE", required=True, help="dram that may be used")
    add("--hbm-max", metavar="SIZE", help="memory of a device that may be used (none)")
    add("--ssd", metavar="SIZE", help="capacity of the drive; without it all rows are in dram")
    add("--gpu", metavar="NAME", help="a device that is not here, by its data sheet: H100, ...")
    add = parser.add_argument_group("model").add_argument
    add("--dim", metavar="N", type=options.count, help="columns, where the trace does not tell")
    add("--dtype", metavar="T", choices=tuple(DTYPES), help=", ".join(DTYPES))
    add("--optimizer", metavar="O", choices=tuple(OPTIMIZERS), help=", ".join(OPTIMIZERS))
    add("--inference", action="store_true", help="rows are only looked up")
    add("--layers-ms", metavar="MS", type=float, default=0.0,
        help="a step's time without lookups and updates (0)")  # fmt: skip
    add("--batch-size", metavar="N", type=options.count, help="samples a step")
    add("--batch-lookups", metavar="N", type=options.count, default=1024,
        help="lookups a step, where the trace has no column batch (1024)")  # fmt: skip
    add = parser.add_argument_group("goal").add_argument
    add("--target", metavar="N", type=float, help="the smallest tiers with N samples/s")
    add("--cheapest", action="store_true", help="the lowest price for a sample/s; with --prices")
    add("--prices", metavar="T=X", nargs="+", help="of a GiB: hbm=20 dram=4 ssd=0.1")
    add("--ssd-endurance", metavar="SIZE",
        help="bytes that it may be written (as much as it holds a day for 5 years)")  # fmt: skip
    add = parser.add_argument_group("simulation").add_argument
    add("--sample", metavar="X", type=float,
        help="lookups of each level of the sample, of all (1%%, of short traces more)")  # fmt: skip
    add("--recalibrate", action="store_true", help="fit the engine to this machine again")
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Tunes and prints."""
    options.begin(args)
    bounds, wish, endurance = _bounds(args), _wish(args), _endurance(args)
    trace = Trace(args.trace, args.batch_lookups)
    dims_of(trace.tables, args.dim)  # raises before anything takes time
    rows = _rows(args, trace)
    load = Load(rows, args.dim, args.layers_ms / 1e3, args.batch_size)
    with _progress(trace.lookups, "lookups") as bar:
        pyramid = take_sample(trace, args.sample, bar.update, 0.0 if args.smoke else WARM_UP)
    limits = options.limits_of(args)
    device = "cuda" if args.hbm_max is not None and args.gpu is None else None
    if device is not None and limits.link is None:
        raise DataError("--hbm-max: the saved limits have no device: --remeasure")
    again = args.recalibrate or args.remeasure
    engine = options.engine_of(args, limits, again=again, device=device)
    machine = engine.host if args.gpu is None else _projected(args.gpu, engine.host)
    with _progress(curves_of(trace.tables, load), "curves") as bar:
        advice = advise(pyramid, load, machine, bounds, wish, bar.update)
    results = {
        "trace": {"lookups": float(pyramid.lookups.sum()), "batches": pyramid.batches,
                  "rows_seen": pyramid.rows_seen,
                  "sample": [level[0].rate for level in pyramid.levels]},
        **advice_dict(advice),
        "life_years": _life(advice.chosen, endurance),
        "curves": curves_dict(pyramid, advice.chosen.sizes.ids_ahead) if args.out else [],
        "is_projection": args.gpu is not None,
        "validation": engine.validation,
        "format_is_assumed": _is_assumed(args, trace),
    }  # fmt: skip
    head = provenance(__file__, _given(args), "tiered-emb tune")
    report = {"benchmark": "tune", **head, "smoke": args.smoke, **results}
    report["limits"] = limits.to_json()
    print(json.dumps(report, indent=1, default=str) if args.json else text_of(report))
    sys.stdout.flush()
    if args.out is not None:
        write_report(args.out / "tune.json", report)
        write_report_of([args.out / "tune.json"], args.out)
    return 0


def _bytes(option: str, size: str | None) -> float | None:
    if size is None:
        return None
    try:
        return float(parse_bytes(int(size) if size.isdigit() else size))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{option}: {error}") from error


def _bounds(args: argparse.Namespace) -> Bounds:
    dram = _bytes("--dram-max", args.dram_max)
    assert dram is not None
    hbm = _bytes("--hbm-max", args.hbm_max) or 0.0
    if args.gpu is not None and hbm == 0:
        raise DataError(f"--gpu {args.gpu}: how much of its memory may be used: --hbm-max")
    if args.gpu is not None and args.gpu not in _gpus():
        raise DataError(f"--gpu {args.gpu}: not known; there is: {', '.join(_gpus())}")
    if hbm > 0 and args.gpu is None and not torch.cuda.is_available():
        raise DataError(
            "--hbm-max: no CUDA device is here to be measured; --gpu NAME projects one from its "
            "data sheet"
        )
    return Bounds(hbm, dram, _bytes("--ssd", args.ssd))


def _wish(args: argparse.Namespace) -> Wish:
    prices: dict[str, float] | None = None
    for text in args.prices or ():
        tier, _, price = text.partition("=")
        try:
            value = float(price)
        except ValueError:
            value = -1.0
        if tier not in TIERS or not 0 <= value < float("inf"):
            raise DataError(f"--prices {text}: expected a tier and its price, as dram=4")
        prices = {**(prices or {}), tier: value}
    used = {
        "dram": True,
        "hbm": bool(_bytes("--hbm-max", args.hbm_max)),
        "ssd": args.ssd is not None,
    }
    lacking = [tier for tier, is_used in used.items() if is_used and tier not in (prices or {})]
    if prices is not None and lacking:
        raise DataError(f"--prices: what a GiB of {' and '.join(lacking)} costs is missing")
    if args.cheapest and prices is None:
        raise DataError("--cheapest: what a GiB of each tier costs: --prices hbm=X dram=Y ssd=Z")
    if args.cheapest and args.target is not None:
        raise DataError("--cheapest and --target: one of them")
    if args.target is not None and (not args.target > 0 or args.batch_size is None):
        what = "expected above 0" if args.batch_size else "samples of a step: --batch-size"
        raise DataError(f"--target {args.target:g}: {what}")
    if args.inference and args.optimizer is not None:
        raise DataError("--inference and --optimizer: one of them")
    if not 0 <= args.layers_ms < float("inf"):
        raise DataError(f"--layers-ms {args.layers_ms:g}: expected 0 or more")
    if args.sample is not None and not 0 < args.sample <= 1:
        raise DataError(f"--sample {args.sample:g}: expected a share above 0 and at most 1")
    target = None if args.target is None else args.target / args.batch_size
    return Wish(target, args.cheapest, prices)


def _rows(args: argparse.Namespace, trace: Trace) -> RowFormat:
    """As the options say, or as the trace's rows are."""
    known = format_of(trace.tables) or RowFormat()
    if args.inference:
        return RowFormat(None, args.dtype or known.dtype)
    return RowFormat(args.optimizer or known.optimizer, args.dtype or known.dtype)


def _is_assumed(args: argparse.Namespace, trace: Trace) -> bool:
    """Whether neither the trace nor the options tell how rows are kept."""
    told = args.dtype is not None and (args.inference or args.optimizer is not None)
    return not told and format_of(trace.tables) is None


def _projected(gpu: str, host: Host) -> Host:
    """With a device that is not here. What the host does for one, beside moving rows, is not known
    then."""
    link = parts()["PCIe 5.0 x16"].bandwidth_gb_s * GIGA
    device = DeviceRates(_gpus()[gpu].bandwidth_gb_s * GIGA, link, link)
    return replace(host, rates=replace(host.rates, device=device))


def _gpus() -> dict[str, Part]:
    return {name: part for name, part in parts().items() if part.kind == "gpu"}


def _endurance(args: argparse.Namespace) -> float:
    """Bytes that the drive may be written."""
    given = _bytes("--ssd-endurance", args.ssd_endurance)
    return (_bytes("--ssd", args.ssd) or 0.0) * 365.25 * _DWPD_YEARS if given is None else given


def _life(chosen: Outlook, endurance: float) -> float | None:
    """Years until the drive may be worn out; None if nothing is written."""
    years = chosen.life_years(endurance)
    return years if years < float("inf") else None


def _given(args: argparse.Namespace) -> list[str]:
    """The options, as they would be typed; of the trace its name alone."""
    names = (
        "dram_max", "hbm_max", "ssd", "gpu", "dim", "dtype", "optimizer", "layers_ms",
        "batch_size", "batch_lookups", "target", "ssd_endurance", "sample",
    )  # fmt: skip
    given = {name: getattr(args, name) for name in names}
    argv = [f"--{k.replace('_', '-')} {v:.15g}" if isinstance(v, float) else
            f"--{k.replace('_', '-')} {v}" for k, v in given.items() if v is not None]  # fmt: skip
    flags = [f"--{f}" for f in ("inference", "cheapest", "smoke") if getattr(args, f)]
    prices = ["--prices", *args.prices] if args.prices else []
    return [args.trace.name, *argv, *flags, *prices]


@contextmanager
def _progress(total: int, unit: str) -> Iterator[Any]:
    with tqdm(
        total=total, unit=f" {unit}", unit_scale=True, file=sys.stderr, leave=False, disable=None
    ) as bar:
        yield bar


def text_of(report: Mapping[str, Any]) -> str:
    """For people."""
    model, best = report["model"], report["recommended"]
    does = model["optimizer"] or "inference"
    head = (
        f"{model['tables']} tables, {model['rows']:,} rows, {bytes_text(model['bytes'])} "
        f"({model['dtype']}, {does}); a step: {model['lookups_a_step']:,.0f} lookups of "
        f"{model['unique_rows_a_step']:,.0f} rows, layers {model['layers_ms']:.1f} ms"
    )
    told = [head]
    if report["format_is_assumed"]:
        told.append("How rows are kept is assumed: --dtype, and --optimizer or --inference.")
    told += ["", *(f"    {line}" for line in best["python"].splitlines()), ""]
    told.append(_outlook_text(report))
    if best["dram_bytes"] is not None and best["slots"] > report["trace"]["rows_seen"]:
        told.append(
            f"Dram holds more rows than the trace has, {report['trace']['rows_seen']:,.0f}: what "
            "misses it then are first lookups, whose rows are taken to be there as often as any. A "
            "longer trace would tell more."
        )
    if report["is_projection"]:
        told.append("A projection: the device's figures are those of its data sheet.")
    told += ["", _front_text(report), "", _extra_text(report), "", _what_if_text(report)]
    told += ["", _placement_text(report), "", _validation_text(report)]
    return "\n".join(told)


def _validation_text(report: Mapping[str, Any]) -> str:
    line = validation_line(report["validation"])
    return line[0].upper() + line[1:] + "."


def _rate(report: Mapping[str, Any], step_ms: float) -> str:
    size = report["model"]["batch_size"]
    return f"{size / step_ms * 1e3:,.0f} samples/s" if size else f"{1e3 / step_ms:,.1f} steps/s"


def _outlook_text(report: Mapping[str, Any]) -> str:
    best = report["recommended"]
    error = f" +- {best['step_ms_error']:.1f}" if best["step_ms_error"] >= 0.05 else ""
    parts_ms = ", ".join(f"{k} {v:.1f}" for k, v in best["busy_ms"].items() if v > 0)
    rate = _rate(report, best["step_ms"])
    head = f"predicted: {best['step_ms']:.1f}{error} ms a step, {rate}; {best['binding']} binds"
    lines = [f"{head} ({parts_ms} ms)"]
    hits = f"in dram {best['dram_row_hit_ratio']:.1%} of a step's rows"
    if best["hbm_bytes"]:
        hits = f"in hbm {best['hbm_row_hit_ratio']:.1%}, {hits}"
    lines.append(hits)
    if best["dram_bytes"] is not None:
        years = report["life_years"]
        life = "" if years is None else f", of which the drive lasts {years_text(years)}"
        lines.append(
            f"ssd: {best['ssd_reads_per_s']:,.0f} reads/s, "
            f"{best['ssd_written_bytes_a_day'] / 1e12:.2f} TB written a day{life}; "
            f"{bytes_text(best['ssd_bytes'])} of it used"
        )
    return "\n".join(lines)


def _front_text(report: Mapping[str, Any]) -> str:
    points = report["front"]
    shown = points
    if len(points) > _ROWS_MAX:
        shown = [points[i * (len(points) - 1) // (_ROWS_MAX - 1)] for i in range(_ROWS_MAX)]
    rows = [
        (
            "all rows" if p["dram_bytes"] is None else bytes_text(p["dram_bytes"]),
            bytes_text(p["hbm_bytes"]) if p["hbm_bytes"] else "-",
            f"{p['step_ms']:.1f}",
            _rate(report, p["step_ms"]),
            f"{p['dram_row_hit_ratio']:.1%}",
            f"{p['ssd_reads_per_s']:,.0f}",
            f"{p['ssd_written_bytes_a_day'] / 1e12:.2f}",
            p["binding"],
        )
        for p in shown
    ]
    header = ("dram", "hbm", "step ms", "rate", "in dram", "reads/s", "TB/day", "binds")
    return "Sizes that no other beats:\n" + table_text(header, rows)


def _extra_text(report: Mapping[str, Any]) -> str:
    told = [
        f"{bytes_text(extra['bytes'])} more {extra['tier']}: {extra['gain']:+.1%}"
        for extra in report["extra"]
    ]
    return "What more would buy: " + ("; ".join(told) if told else "nothing, all is in dram")


def _what_if_text(report: Mapping[str, Any]) -> str:
    now = report["model"]
    rows = []
    for other in report["what_if"]:
        mark = (
            " *" if (other["optimizer"], other["dtype"]) == (now["optimizer"], now["dtype"]) else ""
        )
        step = other["step_ms"]
        rows.append((
            f"{other['optimizer'] or 'inference'}, {other['dtype']}{mark}",
            bytes_text(other["bytes"]),
            "too small" if step is None else f"{step:.1f}",
            "" if step is None else _rate(report, step),
        ))  # fmt: skip
    return "The same tiers with other rows:\n" + table_text(
        ("rows", "in all", "step ms", "rate"), rows
    )


def _placement_text(report: Mapping[str, Any]) -> str:
    found = report["placement"]
    if found is None:
        return "Shares of single tables: none, there is nothing to divide."
    if not found["worth_it"]:
        return (
            f"Shares of single tables: none. The best division would give {found['gain']:+.1%}, "
            f"{found['misses']:,.0f} rows read a step instead of {found['misses_shared']:,.0f}."
        )
    shares = ", ".join(f"{name} {share_text(share)}" for name, share in found["shares"].items())
    return (
        f"Shares of single tables would give {found['gain']:+.1%}: te.Table(..., dram_share=X) "
        f"with X of\n    {shares}"
    )
