r"""What an hbm tier costs where its device is this processor: three tiers against two.

A DLRM over 26 tables in Criteo's proportions, Zipf ids, rowwise Adagrad. Three pairs of the same
tables, one without and one with an emulated device, take turns at the same batches:

    ssd       DRAM holds --dram of the rows, the device --hbm; te.Prefetcher on both
    in line   the same without prefetching
    dram      DRAM holds all rows, the device --hbm of them
    all       the device holds all rows too

Rows pass through the same pinned buffers as on their way to a GPU, so that here every move is four
copies in memory. `rows up` are those that a step moves to the device, `rows down` those that it
moves back, of `rows` different ones that it looks up.

    python benchmarks/bench_hbm.py --out benchmarks/results/hbm.json
    python benchmarks/bench_hbm.py --smoke
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_prefetch
from bench_prefetch import Contender, make_contender, parse_arguments, row_bytes
from bench_zipf_train import Clicks, table_rows
from tqdm import tqdm

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report

SLOT_GROWTH = 1.1  # a slot on the device begins at a multiple of 16 bytes


def make_pairs(args: argparse.Namespace, folder: Path) -> dict[str, tuple[Contender, Contender]]:
    """Name -> without and with a device."""
    everything = row_bytes(args)

    def pair(name: str, dram: float | None, hbm: float, rows_ahead: int) -> Any:
        device = te.HBM(int(everything * hbm * SLOT_GROWTH), "cpu")
        contenders = []
        for part in (None, device):
            ssd = None if dram is None else str(folder / f"{name}-{part is not None}")
            budget = None if dram is None else int(everything * dram)
            tiers = te.Tiers(hbm=part, dram=budget, ssd=ssd)
            contenders.append(make_contender(args, tiers, rows_ahead))
        return tuple(contenders)

    return {
        "ssd": pair("ssd", args.dram, args.hbm, args.rows_ahead),
        "in line": pair("line", args.dram, args.hbm, 0),
        "dram": pair("dram", None, args.hbm, 0),
        "all": pair("all", None, 1.0, 0),
    }


def figures(pair: tuple[Contender, Contender]) -> dict[str, Any]:
    """Ratios round by round, and what a step of the three tiers moves."""
    two, three = pair
    ratios = [b / a for a, b in zip(two.step_ms, three.step_ms, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    stats = three.tables.stats()
    return {
        "two": two.figures(),
        "three": three.figures(),
        "ratio": statistics.median(ratios),
        "ratio_p25": quartiles[0],
        "ratio_p75": quartiles[2],
        "rows": stats.unique_rows / stats.steps,
        "rows_up": stats.hbm_rows_filled / stats.steps,
        "rows_down": stats.hbm_rows_spilled / stats.steps,
        "rows_in_dram": stats.hbm_rows_in_dram / stats.steps,
        "hbm_slots": stats.hbm_slots,
        "slots": [two.tables.stats().slots, stats.slots],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time a DLRM step with and without an hbm tier on an emulated device.",
        epilog="example: python benchmarks/bench_hbm.py --hbm 0.05 --out result.json",
    )
    help = "budget of the device, of the bytes of all rows (%(default)s)"
    parser.add_argument("--hbm", type=float, default=0.05, help=help)
    args = parse_arguments(parser, argv, rows=4_000_000, dram=0.2, mlp=[64, 32], steps=40)
    folder = Path(tempfile.mkdtemp(prefix="tiered-emb-hbm-", dir=args.dir))
    try:
        pairs = make_pairs(args, folder)
        contenders = [contender for pair in pairs.values() for contender in pair]
        clicks = Clicks(table_rows(args.rows), bench_prefetch.DENSE_FEATURES, args.exponent, 0)
        for number in tqdm(range(args.warm_up // args.steps + 1 + args.rounds), disable=None):
            batches = [clicks.draw(args.batch_size) for _ in range(args.steps)]
            for contender in contenders:
                contender.run(batches, counts=number > args.warm_up // args.steps)
        report = {
            "benchmark": "hbm",
            **provenance(__file__, argv),
            "options": {k: v for k, v in vars(args).items() if k not in ("out", "dir")},
            "pairs": {name: figures(pair) for name, pair in pairs.items()},
        }
        for contender in contenders:
            contender.tables.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_report(args.out, report)
    print(summary(report))
    return 0


def summary(report: dict[str, Any]) -> str:
    lines = [
        f"{'':8}  two ms  three ms  ratio (p25-p75)       rows  rows up  rows down   misses",
    ]
    for name, p in report["pairs"].items():
        lines.append(
            f"{name:8} {p['two']['step_ms']:7.2f} {p['three']['step_ms']:9.2f}"
            f"  {p['ratio']:.2f} ({p['ratio_p25']:.2f}-{p['ratio_p75']:.2f})"
            f" {p['rows']:10.0f} {p['rows_up']:8.0f} {p['rows_down']:10.0f}"
            f"   {p['two']['misses']:.0f} {p['three']['misses']:.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
