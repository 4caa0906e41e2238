"""`tiered-emb train` on real clicks and ratings, beside `nn.EmbeddingBag` on the same samples.

    python benchmarks/bench_real_data.py --out benchmarks/results/real_data.json

Every data set is trained three times side by side: tiered with dram for 10% of the rows, plain
`nn.EmbeddingBag` with torch's optimizer, and tiered with all rows in dram, whose predictions and
rows must be identical to those of the first. MovieLens 100k comes with the `demo` extra. The
Parquet files (online_retail, nycflights) are looked for in the folder that TIERED_EMB_SHARED_DATA
names; those that are absent are left out, with a word.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

from data_folder import DATA

from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.cli.main import main as tiered_emb

FLIGHTS = [
    "nycflights.parquet", "--label", "y_late15", "--dense", "sched_dep_minute,distance",
    "--categorical", "carrier,flight,tailnum,origin,dest,month,hour,dow",
    "--cross", "tailnum,dest:60000", "--cross", "flight,month:40000",
]  # fmt: skip
RUNS = {
    "movielens-100k": ["movielens-100k"],
    "online_retail": [
        "online_retail.parquet", "--label", "y_repeat", "--unlabelled", "255",
        "--time", "minute", "--train-from", "259200", "--order", "time",
        "--cross", "customer,sku:500000", "--bag", "customer,sku:invoice:500000",
    ],
    "nycflights, split by time": FLIGHTS,
    "nycflights, random split": [*FLIGHTS, "--split", "random"],
}  # fmt: skip
COMPARISON = ["--dram", "10%", "--peer", "--compare-dram", "100%", "--threads", "1", "--json"]


def train(arguments: list[str]) -> dict[str, object]:
    """The report of one `tiered-emb train`; raises `RuntimeError` if it fails."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = tiered_emb(["train", *arguments])
    if code != 0:
        raise RuntimeError(f"tiered-emb train {' '.join(arguments)} ended with {code}")
    report: dict[str, object] = json.loads(output.getvalue())
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps of MovieLens 100k")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    reports = {}
    for name, arguments in RUNS.items():
        data, *options = arguments
        if data.endswith(".parquet"):
            if args.smoke:
                continue
            if not (DATA / data).is_file():
                print(f"{name}: left out, {DATA / data} is absent")
                continue
            data = str(DATA / data)
        steps = ["--steps", "20"] if args.smoke else []
        report = train([data, *options, *COMPARISON, *steps])
        report["data"] = report["options"]["data"] = Path(data).name  # type: ignore[index]
        for run in report["runs"]:  # type: ignore[attr-defined]
            print(
                f"{name:26} {run['title']:16} AUC {run['test_auc']:.5f} "
                f"logloss {run['test_logloss']:.5f} {run['samples_per_second']:10,.0f} samples/s"
            )
        print(f"{name:26} DRAM 10% and 100% identical: {report['identical']}")
        reports[name] = report
    write_report(
        args.out, {"benchmark": "real_data", **provenance(__file__, argv), "data": reports}
    )
    return 0 if all(report["identical"] for report in reports.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
