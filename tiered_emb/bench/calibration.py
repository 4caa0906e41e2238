"""The engine on this machine, as the cost model needs it: fitted to a few short runs, and saved.

    engine = calibrated("/nvme", limits)   # measures once, two or three minutes, then reads a file

What limits cannot say (how long planning a row takes, how much fetching costs the layers) is found
from DLRM steps of a few small configurations: see `predict.fit`, and for tables on a device
`predict.fit_staging`. Some others are predicted with it and then measured, so that users see how
far predictions can be trusted here. What is saved belongs to the limits that it was fitted with, so
to a machine, a drive and a time.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import tiered_emb as te
from tiered_emb.bench.bound import MachineRates
from tiered_emb.bench.contenders import Training
from tiered_emb.bench.demand import IdTrace, demand_of, hbm_slot_bytes, row_bytes
from tiered_emb.bench.dlrm import Sizes, measure
from tiered_emb.bench.limits import Limits, default_path
from tiered_emb.bench.predict import (
    Coefficients,
    Host,
    Staging,
    fit_staging,
    validation,
    validation_of,
)
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
        hbm: share of the rows that a device has slots for; None: no device.
    """

    model: str
    scale: float
    dim: int
    batch: int
    dram: float
    pooling: int | None = None
    optimizer: str | None = "rowwise-adagrad"
    hbm: float | None = None

    @property
    def name(self) -> str:
        """For reports."""
        does = self.optimizer or "inference"
        bags = "" if self.pooling is None else f", {self.pooling} ids a bag"
        hbm = "" if self.hbm is None else f"{self.hbm:.0%} in hbm, "
        return (
            f"{self.model} x{self.scale:g}, dim {self.dim}, batch {self.batch}{bags}, "
            f"{hbm}{self.dram:.0%} in dram, {does}"
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
        """What its steps do, on this processor."""
        return Training(self.optimizer or "sgd", trains=self.optimizer is not None)

    @property
    def hbm_bytes(self) -> int | None:
        """Of slots on a device."""
        if self.hbm is None:
            return None
        workload = self.workload
        slot = hbm_slot_bytes(row_bytes(workload, self.training))
        return int(self.hbm * workload.total_rows * slot)

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
STEPS_HBM = replace(STEPS, warm_up=120)  # a device begins empty, and is full by then
FITTING_HBM = (
    Setup("dlrm-small", 1.0, 32, 2048, 1.0, hbm=0.10),
    Setup("dlrm-small", 0.5, 128, 1024, 1.0, hbm=0.10),
    Setup("dlrm-small", 1.0, 64, 1024, 1.0, pooling=4, hbm=0.20),
    Setup("dlrm-small", 1.0, 32, 1024, 1.0, optimizer=None, hbm=0.05),
    Setup("meta-2022", 0.4, 64, 512, 1.0, hbm=0.25),
    Setup("meta-2022", 0.4, 32, 512, 1.0, optimizer=None, hbm=0.30),
    Setup("meta-2022", 0.2, 64, 512, 1.0, hbm=0.60),
)
CHECKING_HBM = (
    Setup("dlrm-small", 0.8, 64, 1024, 1.0, hbm=0.08),
    Setup("dlrm-small", 1.0, 32, 2048, 1.0, pooling=2, optimizer=None, hbm=0.15),
    Setup("meta-2022", 0.3, 64, 256, 1.0, hbm=0.25),
)
SMOKE = (Setup("dlrm-small", 0.05, 16, 128, 0.5), Setup("dlrm-small", 0.05, 16, 256, 0.4))
SMOKE_CHECKING = (Setup("dlrm-small", 0.05, 16, 192, 0.6),)
SMOKE_HBM = tuple(replace(setup, dram=1.0, hbm=share) for setup in SMOKE for share in (0.5, 1.0))
SMOKE_CHECKING_HBM = (replace(SMOKE_CHECKING[0], dram=1.0, hbm=0.7),)
Setups = tuple[Sequence[Setup], Sequence[Setup]]
"""To fit to, and to check."""
ON_HOST: Sequence[Setups] = ((FITTING, CHECKING), (SMOKE, SMOKE_CHECKING))
ON_DEVICE: Sequence[Setups] = ((FITTING_HBM, CHECKING_HBM), (SMOKE_HBM, SMOKE_CHECKING_HBM))
"""As they are, and for smoke."""
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
    setup: Setup,
    steps: Sizes,
    rates: MachineRates,
    folder: Path,
    watch: Watch,
    device: str = "cuda",
    predicts: bool = True,
) -> dict[str, Any]:
    """Finds out what the configuration asks for, then measures it; for JSON.

    Args:
        device: of its hbm tier, if it has one.
        predicts: whether what it asks for is wanted, which takes as long as drawing its ids.
    """
    workload, training, dram = setup.workload, setup.training, setup.dram_bytes
    hbm_bytes = setup.hbm_bytes
    hbm = None if hbm_bytes is None else te.HBM(hbm_bytes, device)
    if hbm is not None:
        training = replace(training, device=torch.device(device))
    found: dict[str, Any] = {"name": setup.name}
    if predicts:
        trace = IdTrace(workload, steps.warm_up, steps.rounds * steps.steps)
        found["demand"] = demand_of(
            trace, training, dram_bytes=dram, hbm_bytes=hbm_bytes, rows_ahead=steps.rows_ahead
        ).as_dict()
    with tempfile.TemporaryDirectory(dir=folder) as store:
        sizes = replace(steps, dram_bytes=dram, hbm=hbm)
        result = measure(workload, training, sizes, rates, Path(store), watch)
    return {**found, **result}


def calibrated(
    directory: str | os.PathLike[str],
    limits: Limits,
    rates: MachineRates,
    *,
    device: str | None = None,
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
        device: also with tables on it; the rates have to have one.
        again: measure, whatever has been saved; what is not asked for stays.
        smoke: a few runs of a second; nothing is saved, and the figures say nothing.
        path: where they are saved; None: beside the limits.
        say: told in one line what is used or saved.
        watch: as of `dlrm.measure`.
        progress: called after each run.
    """
    path = path or _default_path()
    entry = (None if smoke else _saved(path, limits)) or {"limits": _key(limits)}
    for part in ["coefficients", *["staging"] * (device is not None)] if again else ():
        entry.pop(part, None)

    def keep(**found: Any) -> None:
        entry.update(found)
        if not smoke:
            _save(path, entry, say)

    def measured(every: Sequence[Setups], rates: MachineRates, what: str) -> list[list[Any]]:
        """Runs to fit to, and runs to be predicted."""
        fitting, checking = every[smoke]
        say(
            f"{what}: {len(fitting)} short runs, to fit its coefficients to this machine, and "
            f"{len(checking)} to check them"
        )
        runs = []
        for setup in [*fitting, *checking]:
            steps = STEPS if setup.hbm is None else STEPS_HBM
            steps = SMOKE_STEPS if smoke else steps
            predicts = setup.hbm is None or setup in checking
            runs.append(
                run(setup, steps, rates, Path(directory), watch, device or "cuda", predicts)
            )
            progress()
        return [runs[: len(fitting)], runs[len(fitting) :]]

    on_host = replace(rates, device=None)
    if "coefficients" in entry:
        say(f"engine: saved coefficients, fitted on {entry['date']}")
    else:
        fitting, checking = measured(ON_HOST, on_host, "engine")
        host, checked = validation(fitting, _told(checking), on_host)
        say(f"engine: {validation_line(checked)}")
        keep(date=now_text(), coefficients=asdict(host.coefficients), validation=checked)
    if device is not None and "staging" not in entry:
        fitting, checking = measured(ON_DEVICE, rates, f"engine on {device}")
        staging = fit_staging(fitting)
        host = replace(_host(entry, rates), staging=staging)
        checked = validation_of(host, fitting, _told(checking))
        say(f"engine on {device}: {validation_line(checked)}")
        keep(staging=asdict(staging), staging_validation=checked)
    if device is None:
        return Engine(_host(entry, on_host), entry["validation"])
    return Engine(_host(entry, rates), entry["staging_validation"])


def _told(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs to be predicted: told what the layers take, as the tuner is."""
    for told in runs:
        told["demand"]["step"]["dense_s"] = told["work"]["dense_s"]
    return runs


def _host(entry: Mapping[str, Any], rates: MachineRates) -> Host:
    staging = None
    if rates.device is not None and "staging" in entry:
        staging = Staging(**entry["staging"])
    return Host(rates, Coefficients(**entry["coefficients"]), staging)


def validation_line(checked: Mapping[str, Any]) -> str:
    """How far predictions were from what was measured, of an `Engine`, in one line."""
    errors = [row["error"] for row in checked["predicted"]]
    return (
        f"predicted against measured here, of steps that it was not fitted to: "
        f"{', '.join(f'{error:+.0%}' for error in errors)} "
        f"({checked['within_15_percent']} of {len(errors)} within 15%)"
    )


def saved_host(limits: Limits, rates: MachineRates, path: Path | None = None) -> Host | None:
    """The machine with what was saved of the engine for these limits, on a device too if the rates
    have one; None without such."""
    found = _saved(path or _default_path(), limits)
    if found is None or (rates.device is not None and "staging" not in found):
        return None
    return _host(found, rates)


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
            Staging(**entry.get("staging", dict.fromkeys(Staging.__dataclass_fields__, 0.0)))
            validation_line(entry.get("staging_validation", entry["validation"]))
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
