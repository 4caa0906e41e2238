"""Whether the cost model predicts steps of configurations that it was not fitted to.

    python benchmarks/bench_wall.py --out benchmarks/results/wall.json

A few configurations of DLRM steps are measured and fitted (`predict.fit`, six coefficients); then
others are predicted from their ids and layers alone, measured, and compared. They differ in model,
dimension, batch size, dram, ids a bag, optimizer, and training or inference. No peers run. Takes
about eight minutes; the machine should do nothing else. `tiered-emb bench wall` reads the report.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiered_emb.bench import options
from tiered_emb.bench.contenders import Training
from tiered_emb.bench.demand import IdTrace, demand_of, row_bytes
from tiered_emb.bench.dlrm import Sizes, measure
from tiered_emb.bench.limits import Limits
from tiered_emb.bench.limits import measure as measure_limits
from tiered_emb.bench.predict import validation
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.workloads import named, resized
from tiered_emb.cli.report import table_text


@dataclass(frozen=True)
class Setup:
    """A configuration; `pooling` None: the model's."""

    model: str
    scale: float
    dim: int
    batch: int
    dram: float
    pooling: int | None = None
    optimizer: str | None = "rowwise-adagrad"  # None: inference

    @property
    def name(self) -> str:
        does = self.optimizer or "inference"
        bags = "" if self.pooling is None else f", {self.pooling} ids a bag"
        return (
            f"{self.model} x{self.scale:g}, dim {self.dim}, batch {self.batch}{bags}, "
            f"{self.dram:.0%} in dram, {does}"
        )


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
SMOKE = (Setup("dlrm-small", 0.05, 16, 128, 0.5), Setup("dlrm-small", 0.05, 16, 256, 0.4))
STEPS = Sizes(dram_bytes=None, warm_up=60, rounds=5, steps=20, peers=False)
SMOKE_STEPS = replace(STEPS, warm_up=4, rounds=2, steps=4)


def run(setup: Setup, steps: Sizes, limits: Limits, folder: Path) -> dict[str, Any]:
    """Predicts what the configuration asks for, then measures it."""
    workload = resized(named(setup.model, setup.scale), dim=setup.dim, batch_size=setup.batch)
    if setup.pooling is not None:
        workload = replace(workload, pooling=dict.fromkeys(workload.rows, setup.pooling))
    training = Training(setup.optimizer or "sgd", trains=setup.optimizer is not None)
    dram = None
    if setup.dram < 1:
        dram = int(setup.dram * workload.total_rows * row_bytes(workload, training))
    trace = IdTrace(workload, steps.warm_up, steps.rounds * steps.steps)
    demand = demand_of(trace, training, dram_bytes=dram, rows_ahead=steps.rows_ahead)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        result = measure(
            workload, training, replace(steps, dram_bytes=dram), options.rates_of(limits),
            Path(store), options.watch,
        )  # fmt: skip
    return {"name": setup.name, "demand": demand.as_dict(), **result}


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
    steps = SMOKE_STEPS if args.smoke else STEPS
    runs = []
    for use, setups in (("fit", fitting), ("validation", others)):
        for setup in setups:
            print(setup.name, file=sys.stderr, flush=True)
            runs.append({"use": use, **run(setup, steps, limits, folder)})
    report: dict[str, Any] = {
        "benchmark": "wall_validation",
        **provenance(__file__, argv),
        "smoke": args.smoke,
        "runs": runs,
        "limits": limits.to_json(),
    }
    by_use = {use: [r for r in runs if r["use"] == use] for use in ("fit", "validation")}
    rates = options.rates_of(limits)
    _, report["validation"] = validation(by_use["fit"], by_use["validation"], rates)
    print(text_of(report))
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
