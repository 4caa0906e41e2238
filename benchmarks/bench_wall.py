"""Whether the cost model predicts steps of configurations that it was not fitted to.

    python benchmarks/bench_wall.py --out benchmarks/results/wall.json

A few configurations of DLRM steps are measured and fitted (`predict.fit`, seven coefficients); then
others are predicted from their ids and layers alone, measured, and compared. They differ in model,
dimension, batch size, dram, ids a bag, optimizer, and training or inference. No peers run. Takes
about eight minutes; the machine should do nothing else. `tiered-emb bench wall` reads the report.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiered_emb.bench import calibration, options
from tiered_emb.bench.calibration import SMOKE, Setup, run
from tiered_emb.bench.limits import Limits
from tiered_emb.bench.limits import measure as measure_limits
from tiered_emb.bench.predict import validation
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.cli.report import table_text

FITTING = (
    Setup("dlrm-small", 1.0, 32, 2048, 0.10),
    Setup("dlrm-small", 1.0, 64, 1024, 0.30, optimizer=None),
    Setup("dlrm-small", 1.0, 32, 512, 0.05, optimizer=None),
    Setup("dlrm-small", 0.5, 128, 1024, 0.20),
    Setup("dlrm-kaggle", 0.02, 16, 2048, 1.0),
    Setup("dlrm-kaggle", 0.03, 128, 512, 0.10),
    Setup("dlrm-kaggle", 0.03, 32, 1024, 0.10, optimizer=None),
    Setup("meta-2022", 0.2, 64, 512, 0.40),
)
# Chosen before any of them had been run.
OTHERS = (
    Setup("dlrm-small", 1.0, 32, 4096, 0.10),
    Setup("dlrm-small", 1.0, 64, 1024, 0.15),
    Setup("dlrm-small", 0.7, 128, 512, 0.25),
    Setup("dlrm-small", 1.0, 16, 2048, 0.40),
    Setup("dlrm-small", 1.0, 64, 4096, 0.10, optimizer=None),
    Setup("dlrm-small", 0.5, 64, 512, 0.30, pooling=6),
    Setup("dlrm-small", 0.7, 32, 1024, 1.0, pooling=10),
    Setup("dlrm-kaggle", 0.02, 64, 2048, 0.10),
    Setup("dlrm-kaggle", 0.03, 32, 1024, 0.15, optimizer="adagrad"),
    Setup("dlrm-kaggle", 0.02, 128, 1024, 0.50),
    Setup("dlrm-kaggle", 0.03, 16, 2048, 0.05, optimizer=None),
    Setup("dlrm-kaggle", 0.02, 32, 4096, 1.0, optimizer="sgd"),
    Setup("meta-2022", 0.15, 128, 256, 0.50),
    Setup("meta-2022", 0.3, 32, 512, 0.70, optimizer=None),
)
STEPS = replace(calibration.STEPS, warm_up=60, rounds=5, steps=20)


def text_of(report: dict[str, Any]) -> str:
    """The comparison as a table."""
    rows = [
        (r["name"], f"{r['measured_ms']:.2f}", f"{r['predicted_ms']:.2f}", f"{r['error']:+.0%}",
         r["binding"], f"{r['misses_measured']:,.0f}", f"{r['misses_predicted']:,.0f}")
        for r in report["validation"]["predicted"]
    ]  # fmt: skip
    header = ("", "measured ms", "predicted ms", "error", "binding", "misses", "predicted")
    within = report["validation"]["within_15_percent"]
    return f"{table_text(header, rows)}\n{within} of {len(rows)} within 15%"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--dir", type=Path, help="for the stores (the temporary folder)")
    args = parser.parse_args(argv)
    folder = args.dir or Path(tempfile.gettempdir())
    limits = measure_limits(folder, smoke=True) if args.smoke else Limits.current(folder)
    fitting, others = (SMOKE[:1], SMOKE[1:]) if args.smoke else (FITTING, OTHERS)
    steps = calibration.SMOKE_STEPS if args.smoke else STEPS
    rates = options.rates_of(limits)
    runs = []
    for use, setups in (("fit", fitting), ("validation", others)):
        for setup in setups:
            print(setup.name, file=sys.stderr, flush=True)
            runs.append({"use": use, **run(setup, steps, rates, folder, options.watch)})
    report: dict[str, Any] = {
        "benchmark": "wall_validation",
        **provenance(__file__, argv),
        "smoke": args.smoke,
        "runs": runs,
        "limits": limits.to_json(),
    }
    by_use = {use: [r for r in runs if r["use"] == use] for use in ("fit", "validation")}
    _, report["validation"] = validation(by_use["fit"], by_use["validation"], rates)
    print(text_of(report))
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
