"""The cost model: how long a step takes on a machine, from what it asks for.

A machine turns a `Demand` into seconds for which each of its resources is busy. Resources of one
group take turns, groups work side by side: a step that prefetches takes as long as the busiest
group. A step in line takes as long as all together, but for `fetch`.

`Host`: measured rates, and seven coefficients that `fit` finds from measured runs. Without a device
the cores do the layers and all that is done to rows; beside them a batch is planned and then
fetched, and so is the next:

    layers = measured, or flop_s * flops + byte_s * bytes of the layers' operators
    dram   = what bound.busy says + lookup_s * lookups * passes
    fetch  = miss_s * misses + fetch_s, if there are any
    plan   = plan_s * misses
    ssd    = drive * what bound.busy says

The maximum, not a softer one: on a machine whose cores are busy what prefetching hides is the wait
for the drive alone. `fetch` is what the threads that plan and fetch take from the layers, whose own
threads wait for one another: more than their own time. A lookup is one pass over ids and rows;
training has `TRAIN_PASSES`: ids are planned, occurrences listed (three), rows pooled, gradients
summed. `fetch_s` is what waking the threads that fetch, and waiting for the last row, takes however
few rows.

With a device (`rates.device`) layers and rows in hbm take turns on it, as bound.busy says; beside
it run the link, the processor and the drive. The processor launches the layers, which of small
models takes as long as they run; then it stages the next batch, for which no layers are launched:

    stage  = pass_s * passes + lookup_s * lookups + row_s * unique rows + move_s * rows moved

Training has two passes, forward and backward; rows move up or down. The coefficients are found by
`fit_staging` from runs on the device. Where the layers are so large that the processor is done
before them, a step takes less than that says. Where no row has a slot on the device, the processor
pools and updates in dram, and the layers wait for that as well.

`Platform`, with a device, from data sheets; nothing of it is measured. The device does the layers
(as fast as its arithmetic or its memory allows) and then pools and updates rows in hbm; beside it
run the link, dram and the drive. What is not in it: the planner's time on the host's processor,
launches of kernels, and how far from its data sheet a part stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from tiered_emb.bench.bound import BLOCK_BYTES, MachineRates, StepWork, busy
from tiered_emb.bench.demand import Demand, demand_of_run
from tiered_emb.bench.dlrm import IN_DRAM, IN_LINE, LAYERS, TIERED

ID_BYTES = 8
COPIES = 3  # of a row that goes up or down: read, written to a pinned buffer, read from there
WITHIN = 0.15
TRAIN_PASSES = 6
_PASSES = 2  # on a device: forward and backward
_NS = 1e9
_ROUNDS = 10  # of choosing which steps the processor decides


class Machine(Protocol):
    """What a prediction is made for."""

    @property
    def groups(self) -> Sequence[Sequence[str]]:
        """Resources; those of one group take turns."""

    def busy_s(self, demand: Demand) -> dict[str, float]:
        """Seconds of a step for which each resource has work."""


@dataclass(frozen=True)
class Prediction:
    """A step on a machine.

    Args:
        busy_s: by resource.
        step_s: where everything that can overlap does.
        in_line_s: where nothing does.
        binding: the resource that has most to do in the busiest group.
    """

    busy_s: Mapping[str, float]
    step_s: float
    in_line_s: float
    binding: str


def predict(demand: Demand, machine: Machine) -> Prediction:
    """How long the step takes, and why."""
    busy_s = machine.busy_s(demand)
    busiest = max(machine.groups, key=lambda group: sum(busy_s[name] for name in group))
    return Prediction(
        busy_s=busy_s,
        step_s=sum(busy_s[name] for name in busiest),
        in_line_s=sum(busy_s.values()) - busy_s.get("fetch", 0.0),
        binding=max(busiest, key=lambda name: busy_s[name]),
    )


@dataclass(frozen=True)
class Coefficients:
    """Of a `Host`.

    Args:
        flop_s, byte_s: seconds an operation and a byte of the layers' operators.
        lookup_s: seconds an id and pass: finding its slot, adding its row.
        miss_s: seconds that a row that is fetched takes from the layers.
        fetch_s: likewise a step that fetches any.
        plan_s: seconds a row of planning that waits for the drive, and the drive for it.
        drive: how many times longer the drive takes than at its best measured rates.
    """

    flop_s: float
    byte_s: float
    lookup_s: float
    miss_s: float
    fetch_s: float
    plan_s: float
    drive: float


@dataclass(frozen=True)
class Staging:
    """What the processor does for batches that are pooled and updated on a device, in seconds.

    Args:
        pass_s: forward, or backward: launches, and what does not depend on the batch.
        lookup_s, row_s: an id, and a distinct row, of its plan there.
        move_s: a row that moves, up or down: choosing it, and its copies through pinned memory.
    """

    pass_s: float
    lookup_s: float
    row_s: float
    move_s: float

    def seconds(self, lookups: float, unique_rows: float, moved: float, *, trains: bool) -> float:
        """Of a step with so many lookups, distinct rows, and rows that move."""
        passes = _PASSES if trains else 1
        of_rows = self.row_s * unique_rows + self.move_s * moved
        return self.pass_s * passes + self.lookup_s * lookups + of_rows


@dataclass(frozen=True)
class Host:
    """A machine, by measured rates and coefficients fitted to it; with a device, if these have.

    `staging` None: what the processor does for that is not known, and taken for nothing.
    """

    rates: MachineRates
    coefficients: Coefficients
    staging: Staging | None = None

    @property
    def groups(self) -> Sequence[Sequence[str]]:
        """See `Machine`."""
        if self.rates.device is None:
            return (("layers", "dram", "fetch"), ("plan", "ssd"))
        device, processor = ("layers", "hbm"), ("layers", "stage", "dram")
        return (device, processor, ("link",), ("dram", "fetch"), ("plan", "ssd"))

    def busy_s(self, demand: Demand) -> dict[str, float]:
        """See `Machine`."""
        c, step, layers = self.coefficients, demand.step, demand.layers
        at_best = busy(step, self.rates)
        of_device = {}
        if at_best.hbm is not None:
            stage = 0.0
            if self.staging is not None and step.on_device:
                # With what is read and written in dram for it.
                moved = step.rows_up + step.rows_down
                stage = self.staging.seconds(
                    step.lookups, step.unique_rows, moved, trains=step.trains
                )
            of_device = {"hbm": at_best.hbm, "stage": stage, "link": at_best.link}
        in_dram = at_best.dram + c.lookup_s * _passes(step)
        if at_best.hbm is not None and step.on_device:
            in_dram = at_best.dram if self.staging is None else 0.0
        return {
            "layers": step.dense_s or c.flop_s * layers.flops + c.byte_s * layers.bytes,
            **of_device,
            "dram": in_dram,
            "fetch": c.miss_s * step.misses + c.fetch_s * (step.misses > 0),
            "plan": c.plan_s * step.misses,
            "ssd": c.drive * at_best.ssd,
        }


@dataclass(frozen=True)
class Platform:
    """A machine with a device, by its parts' data sheets.

    Args:
        flops: a second, dense.
        hbm, link, dram: bytes a second; the link's in one direction.
        reads_per_s: random blocks of 4 KiB of the drive.
        write_bytes_per_s: of the drive.
    """

    name: str
    flops: float
    hbm: float
    link: float
    dram: float
    reads_per_s: float
    write_bytes_per_s: float

    @property
    def groups(self) -> Sequence[Sequence[str]]:
        """See `Machine`."""
        return (("layers", "hbm"), ("link",), ("dram",), ("ssd",))

    def busy_s(self, demand: Demand) -> dict[str, float]:
        """See `Machine`."""
        moved, step = bytes_by_tier(demand), demand.step
        drive = step.blocks_read / self.reads_per_s + step.written_bytes / self.write_bytes_per_s
        return {
            "layers": max(demand.layers.flops / self.flops, demand.layers.bytes / self.hbm),
            "hbm": moved["hbm"] / self.hbm,
            "link": moved["link"] / self.link,
            "dram": moved["dram"] / self.dram,
            "ssd": drive,
        }


def bytes_by_tier(demand: Demand) -> dict[str, float]:
    """What a step on a machine with a device moves through each tier.

    hbm: a row read for each lookup, a vector written for each bag; in training the gradient of its
    bag read for each lookup, and each unique row read and written once; rows that come up are
    written, and read when they leave. link: the ids and those rows, one direction: the other moves
    no more. dram: those rows, copied through a pinned buffer each way; blocks from the drive,
    written by it and read once, and the rows taken from them. ssd: blocks and rows written.
    """
    step, up = demand.step, demand.hbm_misses
    ways = 2 if step.trains else 1
    hbm = (step.lookups + demand.bags) * step.weight_bytes + ways * up * step.row_bytes
    if step.trains:
        hbm += step.lookups * step.weight_bytes + 2 * step.unique_rows * step.row_bytes
    blocks = step.blocks_read * BLOCK_BYTES
    return {
        "hbm": hbm,
        "link": step.lookups * ID_BYTES + up * step.row_bytes,
        "dram": ways * COPIES * up * step.row_bytes + 2 * blocks + step.misses * step.row_bytes,
        "ssd": blocks + step.written_bytes,
    }


def _passes(step: StepWork) -> float:
    """Ids, in all passes over them."""
    return step.lookups * (TRAIN_PASSES if step.trains else 1)


def fit(runs: Sequence[Mapping[str, Any]], rates: MachineRates) -> Host:
    """The machine on which `dlrm.measure` gave these runs, by least squares of relative errors.

    The layers by themselves; planning and drive as the engine's counters have them; the rest from
    steps with all rows in dram, and from those that prefetched and where, by the coefficients
    found, the processor decides, not the drive.
    """
    if not runs:
        raise ValueError("no runs to fit to")
    flop_s, byte_s = _layers(runs)
    plan_s, drive = _counted(runs, rates)
    equations = [e for run in runs for e in _equations(run, rates, plan_s, drive)]
    found, chosen = np.zeros(3), list(equations)
    for _ in range(_ROUNDS):
        rows = np.array([e.relative for e in chosen])
        found = _least_squares(rows[:, :3], rows[:, 3])
        kept = [e for e in equations if e.drive_s <= e.takes_s(found)]
        if len(kept) in (0, len(chosen)):
            break
        chosen = kept
    lookup_s, miss_s, fetch_s = (float(x) for x in found)
    return Host(rates, Coefficients(flop_s, byte_s, lookup_s, miss_s, fetch_s, plan_s, drive))


def fit_staging(runs: Sequence[Mapping[str, Any]]) -> Staging:
    """From runs of `dlrm.measure` with hbm tiers, all rows in dram, by least squares of relative
    errors; what the layers took, and how many rows moved, is as measured."""
    if not runs:
        raise ValueError("no runs to fit to")
    rows, values = [], []
    for run in runs:
        step, taken_s = StepWork(**run["work"]), _taken(run)[TIERED]
        passes, moved = _PASSES if step.trains else 1, step.rows_up + step.rows_down
        rows.append([n / taken_s for n in (passes, step.lookups, step.unique_rows, moved)])
        values.append(1 - run["work"]["dense_s"] / taken_s)
    return Staging(*_least_squares(np.array(rows), np.array(values)).tolist())


def _counted(runs: Sequence[Mapping[str, Any]], rates: MachineRates) -> tuple[float, float]:
    """Seconds of planning a row that is fetched, while prefetching, and how many times longer than
    at its best the drive takes, in line: medians of what the counters say."""
    planned, moved = [], []
    for run in runs:
        step, contenders = _demand(run).step, run["contenders"]
        if not run["tiers"]["ssd"] or not step.misses:
            continue
        planned.append(contenders[TIERED]["a_step"]["plan_ahead_ns"] / _NS / step.misses)
        if IN_LINE in contenders:
            moved.append(contenders[IN_LINE]["a_step"]["move_ns"] / _NS / busy(step, rates).ssd)
    return (
        float(np.median(planned)) if planned else 0.0,
        float(np.median(moved)) if moved else 1.0,
    )


def _layers(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds an operation and a byte, of the layers alone."""
    rows = []
    for run in runs:
        if LAYERS in run["contenders"]:
            measured_s, layers = _taken(run)[LAYERS], _demand(run).layers
            rows.append((layers.flops / measured_s, layers.bytes / measured_s))
    if not rows:
        return 0.0, 0.0
    flop_s, byte_s = _least_squares(np.array(rows), np.ones(len(rows)))
    return float(flop_s), float(byte_s)


def _taken(run: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a step of each contender."""
    return {name: c["round_ms_p50"] / 1e3 for name, c in run["contenders"].items()}


@dataclass(frozen=True)
class _Equation:
    """A step of `measured_s`: `known_s`, and factors of seconds a lookup, a row that is fetched and
    a step that fetches; or `drive_s`, if that is more."""

    measured_s: float
    known_s: float
    factors: tuple[float, float, float]
    drive_s: float = 0.0

    @property
    def relative(self) -> list[float]:
        """Factors, and what they should come to, in parts of the measured time."""
        return [*(f / self.measured_s for f in self.factors), 1 - self.known_s / self.measured_s]

    def takes_s(self, coefficients: np.ndarray) -> float:
        """What the processor takes."""
        return self.known_s + float(np.dot(self.factors, coefficients))


def _equations(
    run: Mapping[str, Any], rates: MachineRates, plan_s: float, drive: float
) -> Iterable[_Equation]:
    step, taken = _demand(run).step, _taken(run)
    parts = busy(step, rates)
    known_s, lookups = run["work"]["dense_s"] + parts.dram, _passes(step)
    in_dram = taken.get(IN_DRAM) if run["tiers"]["ssd"] else taken[TIERED]
    if in_dram is not None:
        yield _Equation(in_dram, known_s, (lookups, 0.0, 0.0))
    if run["tiers"]["ssd"]:
        fetching_s = plan_s * step.misses + drive * parts.ssd
        yield _Equation(taken[TIERED], known_s, (lookups, step.misses, 1.0), fetching_s)


def _least_squares(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The x of no negative element with the least |rows x - values|: of all sets of elements that
    may be above 0 the best. Exact, and fast enough for six."""
    count = rows.shape[1]
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    best, least = np.zeros(count), float(np.dot(values, values))
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            columns = list(chosen)
            x = np.linalg.lstsq(rows[:, columns] / scale[columns], values, rcond=None)[0]
            if (x < 0).any():
                continue
            error = float(np.sum((rows[:, columns] / scale[columns] @ x - values) ** 2))
            if error < least * (1 - 1e-12):
                least, best = error, np.zeros(count)
                best[columns] = x / scale[columns]
    return best


def compare(runs: Sequence[Mapping[str, Any]], machine: Machine) -> list[dict[str, Any]]:
    """Predicted beside measured, of runs that prefetch, for JSON; errors are relative.

    A run's "demand" (of `Demand.as_dict`) is used where there is one: found without running it.
    """
    rows = []
    for run in runs:
        demand = _demand(run)
        prediction = predict(demand, machine)
        measured_ms = run["contenders"][TIERED]["round_ms_p50"]
        predicted_ms = prediction.step_s * 1e3
        rows.append({
            "name": name_of(run),
            "measured_ms": measured_ms,
            "predicted_ms": predicted_ms,
            "error": predicted_ms / measured_ms - 1,
            "binding": prediction.binding,
            "misses_measured": run["work"]["misses"],
            "misses_predicted": demand.step.misses,
        })  # fmt: skip
    return rows


def _demand(run: Mapping[str, Any]) -> Demand:
    """What was found without running it, if it was: what a prediction will have, also in a fit."""
    known = run.get("demand")
    return demand_of_run(run) if known is None else Demand.of_dict(known)


def name_of(run: Mapping[str, Any]) -> str:
    """What a run is called in reports."""
    if "name" in run:
        return str(run["name"])
    load, tiers = run["workload"], run["tiers"]
    return (
        f"{load['name']}, dim {load['dim']}, batch {load['batch_size']}, "
        f"{tiers['dram_share']:.0%} in dram"
    )


def validation(
    fitting: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    rates: MachineRates,
) -> tuple[Host, dict[str, Any]]:
    """The fitted machine, and for JSON how well it predicts other runs."""
    machine = fit(fitting, rates)
    return machine, validation_of(machine, fitting, others)


def validation_of(
    machine: Host, fitting: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """For JSON how well a machine, fitted to some runs, predicts others."""
    rows = compare(others, machine)
    return {
        "fitted_on": [name_of(run) for run in fitting],
        "coefficients": asdict(machine.coefficients),
        **({} if machine.staging is None else {"staging": asdict(machine.staging)}),
        "predicted": rows,
        "within_15_percent": sum(abs(row["error"]) <= WITHIN for row in rows),
    }
