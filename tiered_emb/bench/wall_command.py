"""`tiered-emb bench wall`: see `wall`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiered_emb.bench import options
from tiered_emb.bench.contenders import OPTIMIZERS, Training
from tiered_emb.bench.demand import IdTrace, demand_of, row_bytes
from tiered_emb.bench.wall import RESULTS, projection, trends, validated, years_of
from tiered_emb.bench.workloads import MODELS, named, resized
from tiered_emb.cli.report import bytes_text, table_text
from tiered_emb.cli.train_job import dram_bytes

SUMMARY = "project a step onto GPU platforms and along the memory wall's trends"
_TIERS = ("layers", "hbm", "link", "dram", "ssd")
_NOTE = (
    "A projection from data sheets (platforms.csv), nothing of it measured: no step is shorter.\n"
    "Not in it: the planner on the host, launches, and what a part falls short of its sheet."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb bench wall MODEL [OPTIONS]"
    parser.epilog = (
        f"MODEL: {', '.join(MODELS)}. Misses are those of simulated\n"
        "caches; the first batches after a start miss more often than later ones.\n\n"
        "example: tiered-emb bench wall dlrm-kaggle --hbm 5% --dram 25% --batch-size 16384"
    )
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add = parser.add_argument_group("model").add_argument
    add("--scale", metavar="X", type=float, default=1.0, help="rows of the model, times X (1)")
    add("--dim", metavar="N", type=options.count, help="embedding dimension (the model's)")
    add("--batch-size", metavar="N", type=options.count, help="samples a step (the model's)")
    add("--optimizer", metavar="O", choices=tuple(OPTIMIZERS), default="rowwise-adagrad",
        help=", ".join(OPTIMIZERS))  # fmt: skip
    add("--inference", action="store_true", help="forward only")
    add = parser.add_argument_group("tiers").add_argument
    add("--hbm", metavar="SIZE", default="5%", help="8GiB, or 5%% of the rows (5%%)")
    add("--dram", metavar="SIZE", default="25%", help="likewise (25%%); 100%%: no SSD")
    add("--warm-up", metavar="N", type=options.count, default=100,
        help="batches before the first that counts (100)")  # fmt: skip
    add = parser.add_argument_group("trends and check").add_argument
    add("--years", metavar="Y-Y", default="2024-2036", help="of the trends (2024-2036)")
    add("--from", metavar="JSON", dest="runs", type=Path,
        help="measured runs to fit to and check against (a checkout's, if there)")  # fmt: skip
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Projects and prints."""
    options.begin(args)
    years = years_of(args.years)
    if args.smoke:
        args.scale, args.batch_size, args.warm_up = 0.01, 64, 4
    workload = named(args.model, args.scale)
    changes = {"dim": args.dim, "batch_size": args.batch_size}
    workload = resized(workload, **{k: v for k, v in changes.items() if v is not None})
    training = Training(args.optimizer, trains=not args.inference)
    total = row_bytes(workload, training) * workload.total_rows
    hbm = dram_bytes("--hbm", args.hbm, total)
    dram = dram_bytes("--dram", args.dram, total)
    path = args.runs or (RESULTS if RESULTS.is_file() else None)
    machine, checked = validated(path) if path is not None else (None, None)
    trace = IdTrace(workload, args.warm_up, 4 if args.smoke else 40)
    demand = demand_of(
        trace,
        training,
        dram_bytes=None if dram >= total else dram,
        hbm_bytes=None if hbm == 0 else hbm,
    )
    results = {
        "is_projection": True,
        "workload": {
            "name": workload.name,
            "rows": workload.total_rows,
            "dim": workload.dim,
            "batch_size": workload.batch_size,
            "all_rows_bytes": total,
            "hbm_bytes": hbm,
            "dram_bytes": dram,
            "warm_up": args.warm_up,
        },
        "demand": demand.as_dict(),
        "projection": projection(demand, hbm, dram, machine),
        "trends": trends(demand, years),
        "validation": checked if checked is not None and checked["predicted"] else None,
    }
    names = ("scale", "dim", "batch_size", "optimizer", "hbm", "dram", "warm_up", "years")
    given = {name: getattr(args, name) for name in names}
    argv = [f"--{k.replace('_', '-')} {v}" for k, v in given.items() if v is not None]
    argv = [args.model, *argv, *["--inference"] * args.inference]
    return options.finish(args, "wall", argv, results, None, text_of)


def text_of(report: Mapping[str, Any]) -> str:
    """For people."""
    load, demand = report["workload"], report["demand"]
    step = demand["step"]
    head = (
        f"{load['name']}: {load['rows']:,} rows, {bytes_text(load['all_rows_bytes'])}; hbm "
        f"{bytes_text(load['hbm_bytes'])}, dram {bytes_text(load['dram_bytes'])}; batch "
        f"{load['batch_size']}: {step['lookups']:,.0f} lookups of {step['unique_rows']:,.0f} rows, "
        f"{demand['hbm_misses']:,.0f} not in hbm, {step['misses']:,.0f} not in dram; "
        f"{demand['layers']['flops'] / 1e9:,.2f} GFLOP"
    )
    parts = [head, _NOTE, _platforms_text(report["projection"]), _trends_text(report["trends"])]
    if report["validation"] is not None:
        parts.append(validation_text(report["validation"]))
    return "\n\n".join(parts)


def _busy_cells(row: Mapping[str, Any]) -> list[str]:
    ratios = [row.get("model_flop_per_byte"), row.get("machine_flop_per_byte")]
    return [
        f"{row['step_s'] * 1e3:.3f}",
        row["binding"],
        *(f"{row['busy_s'].get(tier, 0.0) * 1e3:.3f}" for tier in _TIERS),
        *("" if ratio is None else f"{ratio:,.1f}" for ratio in ratios),
    ]


_HEADER = ("step ms", "binds", *(f"{tier} ms" for tier in _TIERS), "FLOP/B of model", "machine")


def _platforms_text(rows: list[Mapping[str, Any]]) -> str:
    cells = [
        (
            row["platform"] + ("" if row["fits"] else " (too small)"),
            f"{row['samples_per_s'] / 1e6:,.2f}",
            *_busy_cells(row),
        )
        for row in rows
    ]
    return table_text(("projected", "M samples/s", *_HEADER), cells)


def _trends_text(rows: list[Mapping[str, Any]]) -> str:
    cells = [(f"{row['edition']} edition, {row['year']}", *_busy_cells(row)) for row in rows]
    base = rows[0]["base"] if rows else ""
    return (
        f'{base}, grown as "AI and Memory Wall" (Gholami et al.) has it; drives as links:\n'
        + table_text(("projected", *_HEADER), cells)
    )


def validation_text(found: Mapping[str, Any]) -> str:
    """The check on the machine whose runs were measured."""
    rows = [
        (row["name"], f"{row['measured_ms']:.2f}", f"{row['predicted_ms']:.2f}",
         f"{row['error']:+.1%}", row["binding"])
        for row in found["predicted"]
    ]  # fmt: skip
    head = (
        f"On the machine of the runs, fitted on {len(found['fitted_on'])} of them: "
        f"{found['within_15_percent']} of {len(rows)} others within 15%"
    )
    return "\n".join([
        head, table_text(("run", "measured ms", "predicted ms", "error", "binds"), rows)
    ])  # fmt: skip
