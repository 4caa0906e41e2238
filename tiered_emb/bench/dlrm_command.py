"""`tiered-emb bench dlrm`: see `dlrm`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

import tiered_emb as te
from tiered_emb.bench import options
from tiered_emb.bench.contenders import OPTIMIZERS, Training
from tiered_emb.bench.dlrm import Sizes, measure, row_bytes
from tiered_emb.bench.limits import Limits
from tiered_emb.bench.workloads import MODELS, Workload, named, of_samples, resized
from tiered_emb.cli.report import bytes_text, table_text
from tiered_emb.cli.train_job import dram_bytes
from tiered_emb.data.dataset import split_samples
from tiered_emb.data.encode import encode
from tiered_emb.data.errors import DataError
from tiered_emb.data.open import open_data

SUMMARY = "training and inference throughput of a DLRM, beside its peers and its bound"
_SMOKE_SCALES = {"dlrm-small": 0.1, "dlrm-kaggle": 0.003, "dlrm-dcnv2": 0.0002, "meta-2022": 0.05}
_TEST_FRACTION = 0.01  # of real samples; none is tested here
_COPIES = 2.5  # of all rows: the store, which may take 1.45 times as much, and the mapped peer's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb bench dlrm MODEL|DATA [OPTIONS]"
    parser.epilog = (
        f"MODEL: {', '.join(MODELS)}. DATA: a Parquet or Criteo TSV file.\n\n"
        "example: tiered-emb bench dlrm dlrm-kaggle --scale 0.25 --dram 10% 50%"
    )
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    _add_model(parser.add_argument_group("model"))
    _add_tiers(parser.add_argument_group("tiers"))
    _add_steps(parser.add_argument_group("steps"))
    options.add_common(parser)


def _add_model(group: Any) -> None:
    add = group.add_argument
    add("--scale", metavar="X", type=float, default=1.0, help="rows of a named model, times X (1)")
    add("--dim", metavar="N", type=options.count, help="embedding dimension (the model's)")
    add("--batch-size", metavar="N", type=options.count, help="samples a step (the model's)")
    names = tuple(OPTIMIZERS)
    add("--optimizer", metavar="O", choices=names, default="rowwise-adagrad",
        help=", ".join(names))  # fmt: skip
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", metavar="T", choices=dtypes, default=dtypes[0], help=", ".join(dtypes))
    add("--inference", action="store_true", help="forward only")
    add("--label", metavar="COL", help="of a Parquet file (label)")


def _add_tiers(group: Any) -> None:
    add = group.add_argument
    add(
        "--dram",
        metavar="SIZE",
        nargs="+",
        default=["10%"],
        help="64MiB, or 10%% of the rows (10%%); 100%%: no SSD; of several, peers run at the first",
    )
    add("--hbm", metavar="SIZE", help="slots on a device, above dram: 8GiB, or 5%% of the rows")
    add("--device", choices=("cuda", "cpu"), metavar="D",
        help="of --hbm: cuda, or cpu, which emulates one (cuda)")  # fmt: skip
    add("--rows-ahead", metavar="N", type=int, default=4, help="batches prefetched (4)")
    add("--ids-ahead", metavar="N", type=int, default=16, help="batches known ahead (16)")


def _add_steps(group: Any) -> None:
    add = group.add_argument
    add("--warm-up", metavar="N", type=int, default=100, help="steps before the first one (100)")
    add("--rounds", metavar="N", type=options.count, default=5, help="of each contender (5)")
    add("--steps", metavar="N", type=options.count, default=20, help="of a round (20)")
    add("--threads", metavar="N", type=options.count, help="CPU threads (all)")
    add("--no-peers", action="store_true", help="leave the peers out")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    options.begin(args)
    plan = plan_of(args)
    limits = options.limits_of(args)
    runs = measure_all(args, plan, limits)
    return options.finish(args, "dlrm", given(args), {"runs": runs}, limits, text_of)


@dataclass(frozen=True)
class Plan:
    """What the options come to: checked before anything is measured."""

    workload: Workload
    training: Training
    budgets: list[int]
    total_bytes: int
    hbm: te.HBM | None = None


def plan_of(args: argparse.Namespace) -> Plan:
    """Reads the options; `DataError` where they are none."""
    if args.smoke:
        args.scale, args.batch_size = _SMOKE_SCALES.get(args.model, 1.0), 32
        args.warm_up, args.rounds, args.steps = 4, 2, 4
    if args.threads is not None:
        torch.set_num_threads(args.threads)
        te.set_num_threads(args.threads)
    workload = _workload(args)
    training = Training(args.optimizer, 0.05, getattr(torch, args.dtype), not args.inference)
    if args.device is not None and args.hbm is None:
        raise DataError(f"--device {args.device}: only with --hbm")
    total = row_bytes(workload, training) * workload.total_rows
    budgets = [dram_bytes("--dram", size, total) for size in args.dram]
    hbm = None if args.hbm is None else _hbm(args, total)
    if hbm is not None:
        training = replace(training, device=hbm.torch_device)
    with options.store_folder(args, _COPIES * total if min(budgets) < total else 0):
        pass  # it says what is wrong with --dir
    return Plan(workload, training, budgets, total, hbm)


def measure_all(args: argparse.Namespace, plan: Plan, limits: Limits) -> list[dict[str, Any]]:
    """A run for each size of dram."""
    workload, training, total = plan.workload, plan.training, plan.total_bytes
    rates = options.rates_of(limits, args.threads, with_device=training.device.type == "cuda")
    runs = []
    for i, budget in enumerate(plan.budgets):
        sizes = Sizes(
            dram_bytes=None if budget >= total else budget,
            hbm=plan.hbm,
            rows_ahead=args.rows_ahead,
            ids_ahead=args.ids_ahead,
            warm_up=args.warm_up,
            rounds=args.rounds,
            steps=args.steps,
            peers=i == 0 and not args.no_peers,
            scale=args.scale,
        )
        with options.store_folder(args, _COPIES * total if budget < total else 0) as folder:
            try:
                runs.append(measure(workload, training, sizes, rates, folder, options.watch))
            except (ValueError, MemoryError) as error:  # a budget too small
                raise DataError(str(error)) from error
    return runs


def given(args: argparse.Namespace) -> list[str]:
    """What decides the figures, as it would be typed."""
    flags = [
        f"--{name.replace('_', '-')}" for name in ("inference", "no_peers") if getattr(args, name)
    ]
    names = ("hbm", "device", "label", "threads", "scale", "dim", "batch_size", "optimizer",
             "dtype", "warm_up", "rounds", "steps", "rows_ahead", "ids_ahead")  # fmt: skip
    options_given = [
        f"--{name.replace('_', '-')} {getattr(args, name)}"
        for name in names
        if getattr(args, name) is not None
    ]
    return [args.model, f"--dram {' '.join(args.dram)}", *options_given, *flags]


def _hbm(args: argparse.Namespace, total_bytes: int) -> te.HBM:
    size = dram_bytes("--hbm", args.hbm, total_bytes)
    try:
        return te.HBM(size, args.device)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"--hbm {args.hbm}: {error}") from error


def _workload(args: argparse.Namespace) -> Workload:
    if args.model in MODELS:
        workload = named(args.model, args.scale)
    else:
        source, spec = open_data(args.model, args.label)
        samples = split_samples(encode(source, spec), "time", _TEST_FRACTION, 0)
        workload = of_samples(args.model, samples, args.dim or 16, args.batch_size or 2048)
    changes = {"dim": args.dim, "batch_size": args.batch_size}
    return resized(workload, **{k: v for k, v in changes.items() if v is not None})


def text_of(report: Mapping[str, Any]) -> str:
    """For people."""
    return "\n\n".join(run_text(run) for run in report["runs"])


def run_text(run: Mapping[str, Any]) -> str:
    """One run: contenders, then the bound and where the time goes."""
    work, tiers, load = run["work"], run["tiers"], run["workload"]
    device = tiers["device"]
    hbm = f"hbm {bytes_text(tiers['hbm_bytes'])} ({device}), " if device else ""
    size = (
        f"{load['rows']:,} rows, {bytes_text(load['all_rows_bytes'])}; {hbm}dram "
        f"{bytes_text(tiers['dram_bytes'])} ({tiers['dram_share']:.0%}); batch "
        f"{load['batch_size']}, {load['lookups_a_step']:,.0f} lookups of "
        f"{work['unique_rows']:,.0f} rows a step"
    )
    lines = [f"{load['name']}: {load['about']}", size, ""]
    rows = []
    for name, c in run["contenders"].items():
        ms = c["step_ms"]
        rows.append((
            name, f"{c['round_ms_p50']:.2f}", f"{c['round_ms_p25']:.1f}-{c['round_ms_p75']:.1f}",
            f"{ms['p95']:.1f}", f"{ms['p99']:.1f}", f"{c['samples_per_s']:,.0f}",
            f"{c['lookups_per_s'] / 1e6:.2f}",
        ))  # fmt: skip
    header = ("", "step ms", "p25-p75", "p95", "p99", "samples/s", "M lookups/s")
    lines += [table_text(header, rows), ""]
    lines += [f"left out: {name}: {why}" for name, why in run["left_out"].items()]
    e = run["efficiency"]
    eta = (
        f"eta {e['eta']:.2f} = T_min {e['bound_s'] * 1e3:.2f} ms ({e['binding']}) / "
        f"{e['step_s'] * 1e3:.2f} ms = policy {e['policy']:.2f} x amplification "
        f"{e['amplification']:.2f} x bandwidth {e['bandwidth']:.2f} x overlap {e['overlap']:.2f}"
    )
    lines += [eta, f"without overlap T_min is {e['no_overlap_s'] * 1e3:.2f} ms"]
    a = run["accounting"]
    parts = ", ".join(f"{name} {s * 1e3:.2f}" for name, s in a["parts_s"].items())
    closes = "closes" if a["closes"] else "does not close"
    lines.append(
        f"a step in line, {a['step_s'] * 1e3:.2f} ms: {parts}; "
        f"the sum is {a['sum_over_step']:.0%}, it {closes} within 5%"
    )
    if tiers["ssd"]:
        lines.append(
            f"rows in dram: {run['row_hit_ratio']:.1%} of a batch's; the best cache of this size "
            f"would have {run['optimal_hit_ratio']:.1%}"
        )
    if device:
        lines.append(
            f"rows moved to the device: {work['rows_up']:,.0f} a step, {work['rows_down']:,.0f} "
            f"back; the best cache of this size would have moved {work['optimal_hbm_misses']:,.0f}"
        )
    return "\n".join(lines)
