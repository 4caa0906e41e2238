"""The engine on this machine, as the cost model needs it: fitted to a few short runs, and saved.

    engine = calibrated("/nvme", limits)   # measures once, two minutes, then reads a file

What limits cannot say (how long planning a row takes, how much fetching costs the layers) is found
from DLRM steps of a few small configurations: see `predict.fit`. Some others are predicted with it
and then measured, so that users see how far predictions can be trusted here. What is saved belongs
to the limits that it was fitted with, so to a machine, a drive and a time.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tiered_emb.bench.bound import MachineRates
from tiered_emb.bench.contenders import Training
from tiered_emb.bench.demand import IdTrace, demand_of, row_bytes
from tiered_emb.bench.dlrm import Sizes, measure
from tiered_emb.bench.limits import Limits, default_path
from tiered_emb.bench.predict import Coefficients, Host, validation
from tiered_emb.bench.provenance import now_text
from tiered_emb.bench.workloads import Workload, named, resized

SCHEMA = 2
SPACE_BYTES = 1 << 30  # of the drive, while it runs
Watch = Callable[[Any, int, str], Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """A configuration of a DLRM; `pooling` None: the model's ids a bag.

    Args:
        model, scale: see `workloads.named`.
        dim, batch: of it.
        dram: share of the rows.
        optimizer: None: inference.
    """

    model: str
    scale: float
    dim: int
    batch: int
    dram: float
    pooling: int | None = None
    optimizer: str | None = "rowwise-adagrad"

    @property
    def name(self) -> str:
        """For reports."""
        does = self.optimizer or "inference"
        bags = "" if self.pooling is None else f", {self.pooling} ids a bag"
        return (
            f"{self.model} x{self.scale:g}, dim {self.dim}, batch {self.batch}{bags}, "
            f"{self.dram:.0%} in dram, {does}"
        )

    @property
    def workload(self) -> Workload:
        """Its tables, layers and batches."""
        workload = resized(named(self.model, self.scale), dim=self.dim, batch_size=self.batch)
        if self.pooling is None:
            return workload
        return replace(workload, pooling=dict.fromkeys(workload.rows, self.pooling))

    @property
    def training(self) -> Training:
        """What its steps do."""
        return Training(self.optimizer or "sgd", trains=self.optimizer is not None)

    @property
    def dram_bytes(self) -> int | None:
        """Its budget; None: all rows."""
        if self.dram >= 1:
            return None
        workload = self.workload
        return int(self.dram * workload.total_rows * row_bytes(workload, self.training))


FITTING = (
    Setup("dlrm-small", 1.0, 32, 2048, 0.10),
    Setup("dlrm-small", 1.0, 64, 1024, 0.30, optimizer=None),
    Setup("dlrm-small", 0.5, 128, 1024, 0.20),
    Setup("dlrm-small", 0.7, 32, 1024, 0.30, pooling=8),
    Setup("meta-2022", 0.1, 64, 256, 0.40),
)
CHECKING = (
    Setup("dlrm-small", 0.8, 64, 2048, 0.15),
    Setup("dlrm-small", 0.6, 32, 1024, 0.40, pooling=4, optimizer=None),
    Setup("meta-2022", 0.12, 32, 256, 1.0),
)
STEPS = Sizes(dram_bytes=None, warm_up=40, rounds=4, steps=15, peers=False)
SMOKE = (Setup("dlrm-small", 0.05, 16, 128, 0.5), Setup("dlrm-small", 0.05, 16, 256, 0.4))
SMOKE_CHECKING = (Setup("dlrm-small", 0.05, 16, 192, 0.6),)
SMOKE_STEPS = replace(STEPS, warm_up=4, rounds=2, steps=4)


@dataclass(frozen=True)
class Engine:
    """The engine on this machine.

    Args:
        host: predicts its steps.
        validation: of `predict.validation`: how it did on runs that it was not fitted to.
    """

    host: Host
    validation: dict[str, Any]


def run(
    setup: Setup, steps: Sizes, rates: MachineRates, folder: Path, watch: Watch
) -> dict[str, Any]:
    """Finds out what the configuration asks for, then measures it; for JSON."""
    workload, training, dram = setup.workload, setup.training, setup.dram_bytes
    trace = IdTrace(workload, steps.warm_up, steps.rounds * steps.steps)
    demand = demand_of(trace, training, dram_bytes=dram, rows_ahead=steps.rows_ahead)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        result = measure(
            workload, training, replace(steps, dram_bytes=dram), rates, Path(store), watch
        )
    return {"name": setup.name, "demand": demand.as_dict(), **result}


def calibrated(
    directory: str | os.PathLike[str],
    limits: Limits,
    rates: MachineRates,
    *,
    again: bool = False,
    smoke: bool = False,
    path: Path | None = None,
    say: Say,
    watch: Watch,
    progress: Callable[[], object] = lambda: None,
) -> Engine:
    """The engine as saved for these limits, or measured now, and saved.

    Args:
        directory: on the drive, with room for `SPACE_BYTES`.
        rates: of the limits.
        again: measure, whatever has been saved.
        smoke: three runs of a second; nothing is saved, and the figures say nothing.
        path: where they are saved; None: beside the limits.
        say: told in one line what is used or saved.
        watch: as of `dlrm.measure`.
        progress: called after each run.
    """
    path = path or _default_path()
    found = None if again or smoke else _saved(path, limits)
    if found is not None:
        say(f"engine: saved coefficients, fitted on {found['date']}")
        return Engine(Host(rates, Coefficients(**found["coefficients"])), found["validation"])
    fitting: Sequence[Setup] = SMOKE if smoke else FITTING
    checking: Sequence[Setup] = SMOKE_CHECKING if smoke else CHECKING
    say(
        f"engine: {len(fitting)} short runs, to fit its coefficients to this machine, and "
        f"{len(checking)} to check them"
    )
    steps = SMOKE_STEPS if smoke else STEPS
    runs = []
    for setup in [*fitting, *checking]:
        runs.append(run(setup, steps, rates, Path(directory), watch))
        progress()
    for checked_run in runs[len(fitting) :]:  # told what the layers take, as the tuner is
        checked_run["demand"]["step"]["dense_s"] = checked_run["work"]["dense_s"]
    host, checked = validation(runs[: len(fitting)], runs[len(fitting) :], rates)
    say(f"engine: {validation_line(checked)}")
    if not smoke:
        entry = {
            "limits": _key(limits),
            "date": now_text(),
            "coefficients": asdict(host.coefficients),
            "validation": checked,
        }
        _save(path, entry, say)
    return Engine(host, checked)


def validation_line(checked: Mapping[str, Any]) -> str:
    """How far predictions were from what was measured, of an `Engine`, in one line."""
    errors = [row["error"] for row in checked["predicted"]]
    return (
        f"predicted against measured here, of steps that it was not fitted to: "
        f"{', '.join(f'{error:+.0%}' for error in errors)} "
        f"({checked['within_15_percent']} of {len(errors)} within 15%)"
    )


def saved_host(limits: Limits, rates: MachineRates, path: Path | None = None) -> Host | None:
    """The machine with the coefficients that were saved for these limits; None without such."""
    found = _saved(path or _default_path(), limits)
    return None if found is None else Host(rates, Coefficients(**found["coefficients"]))


def _default_path() -> Path:
    return default_path().with_name("calibration.json")


def _key(limits: Limits) -> list[Any]:
    return [limits.machine, limits.device, limits.date]


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            return []
        for entry in data["engines"]:
            Coefficients(**entry["coefficients"])
            validation_line(entry["validation"])
        return list(data["engines"])
    except (OSError, ValueError, KeyError, TypeError):
        return []  # as none: it is measured again


def _saved(path: Path, limits: Limits) -> dict[str, Any] | None:
    key = json.loads(json.dumps(_key(limits)))
    return next((e for e in _entries(path) if e.get("limits") == key), None)


def _save(path: Path, entry: dict[str, Any], say: Say) -> None:
    others = [e for e in _entries(path) if e.get("limits", [])[:2] != entry["limits"][:2]]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        data = {"schema": SCHEMA, "engines": [*others, entry]}
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        say(f"engine: coefficients not saved: {error}")
        return
    say(f"engine: coefficients saved in {path}")
