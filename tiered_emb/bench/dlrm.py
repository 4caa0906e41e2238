"""Throughput of a DLRM over tiers, beside its peers and its bound, and where its time went."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiered_emb as te
from tiered_emb.bench import mmap_peer
from tiered_emb.bench.bound import BLOCK_BYTES, MachineRates, StepWork, account, efficiency
from tiered_emb.bench.contenders import (
    Contender,
    Dense,
    Fbgemm,
    Steps,
    Tiered,
    TorchBags,
    Training,
    Watch,
    free_bytes,
    make_tables,
)
from tiered_emb.bench.optimum import optimal_misses_of_batches
from tiered_emb.bench.workloads import Workload
from tiered_emb.data.dataset import Batch
from tiered_emb.data.errors import DataError
from tiered_emb.tiers import format_bytes

TIERED, IN_LINE, IN_DRAM = "tiered", "tiered, in line", "tiered, all in dram"
LAYERS = "layers alone"
_MEMORY_SHARE = 0.8  # of the free memory that a contender may take
_NS = 1e9
# The mapped peer is slow, and a few steps touch more pages than it may keep.
_MMAP_WARM_UP_ROUNDS = 4
_MMAP_STEPS_LESS = 4


@dataclass(frozen=True)
class Sizes:
    """Tiers and steps of a run.

    Args:
        dram_bytes: budget; None: all rows, and no drive.
        hbm: slots on a device, above dram; None: none.
        rows_ahead, ids_ahead: batches; see `te.Prefetcher`.
        warm_up: steps before the first that counts.
        rounds, steps: that count, and steps of a round.
        peers: whether others run beside.
        scale: of the named workload, for peers in processes of their own.
    """

    dram_bytes: int | None
    hbm: te.HBM | None = None
    rows_ahead: int = 4
    ids_ahead: int = 16
    warm_up: int = 100
    rounds: int = 5
    steps: int = 20
    peers: bool = True
    scale: float = 1.0


@dataclass
class _Run:
    """What is measured side by side, and the ids that the tiered tables have seen."""

    workload: Workload
    training: Training
    sizes: Sizes
    watch: Watch
    contenders: dict[str, Contender] = field(default_factory=dict)
    mmap: mmap_peer.MmapPeer | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    ids: list[np.ndarray] = field(default_factory=list)
    begins: list[int] = field(default_factory=lambda: [0])
    uniques: list[int] = field(default_factory=list)
    first_row: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = np.cumsum(list(self.workload.rows.values()))
        self.first_row = dict(zip(self.workload.rows, [0, *ends[:-1].tolist()], strict=True))

    def note(self, batch: Batch) -> None:
        """The tiered tables are about to see this batch."""
        rows = []
        for name, value in batch.sparse.items():
            ids = value[0] if isinstance(value, tuple) else value
            rows.append(ids.numpy().reshape(-1) + self.first_row[name])
        self.ids.append(np.concatenate(rows).astype(np.int64))
        self.begins.append(self.begins[-1] + len(self.ids[-1]))

    def optimal_misses(self, capacity: int, warm_up: int, is_filled: bool = True) -> float:
        """Rows a step that the best cache of so many rows would have read, of steps that count.

        It begins as dram does, with the rows that were written last, or empty, as a device.
        """
        total = self.workload.total_rows
        uniques = [len(np.unique(ids)) for ids in self.ids]
        least = 0.0
        if capacity < max(uniques):
            # No fewer than have no room, nor than the best cache that holds every batch would read.
            least = statistics.mean(max(0, unique - capacity) for unique in uniques[warm_up:])
            capacity = max(uniques)
        filled = np.arange(max(total - capacity, 0) if is_filled else total, total)
        ids = np.concatenate([filled, *self.ids])
        begins = np.array([0, *(len(filled) + b for b in self.begins)], dtype=np.int64)
        found: tuple[int, int] = optimal_misses_of_batches(
            ids, total, capacity, begins, warm_up + 1
        )
        return max(least, sum(found) / (len(self.begins) - 1 - warm_up))

    def unique_rows(self, warm_up: int) -> float:
        """Distinct rows of a batch."""
        return statistics.mean(len(np.unique(ids)) for ids in self.ids[warm_up:][:20])


def measure(
    workload: Workload,
    training: Training,
    sizes: Sizes,
    rates: MachineRates,
    folder: Path,
    watch: Watch,
) -> dict[str, Any]:
    """Trains the model on all contenders in turn; the result as for JSON.

    Args:
        rates: limits of this machine, measured in the same run.
        folder: for the stores; exists, and is empty.
        watch: wraps long loops, given their number and a caption.
    """
    with ExitStack() as stack:
        run = _Run(workload, training, sizes, watch)
        _open_contenders(run, folder, stack)
        warm_up = _take_turns(run)
        return _report(run, rates, warm_up)


def row_bytes(workload: Workload, training: Training) -> int:
    """Of one row with its optimizer state."""
    small = replace(workload, rows=dict.fromkeys(workload.rows, 1))
    with make_tables(small, training, None, lambda parts, _n, _what: parts) as tables:
        return int(tables.row_bytes) // len(workload.rows)


def _open_contenders(run: _Run, folder: Path, stack: ExitStack) -> None:
    workload, training, sizes = run.workload, run.training, run.sizes

    def add(contender: Contender) -> None:
        stack.callback(contender.close)
        run.contenders[contender.name] = contender

    tiers = None
    if sizes.dram_bytes is not None:
        tiers = te.Tiers(hbm=sizes.hbm, dram=sizes.dram_bytes, ssd=str(folder / "tiered"))
    elif sizes.hbm is not None:
        tiers = te.Tiers(hbm=sizes.hbm)
    try:
        tables = make_tables(workload, training, tiers, run.watch)
    except RuntimeError as error:
        if sizes.hbm is None:
            raise
        raise DataError(f"the device: {error}") from error  # has no room, or no Triton
    stack.callback(tables.close)
    ahead = (sizes.rows_ahead, sizes.ids_ahead) if sizes.dram_bytes is not None else (0, 0)
    add(Tiered(TIERED, workload, training, tables, *ahead))
    if ahead[0]:
        add(Tiered(IN_LINE, workload, training, tables))
    add(Dense(workload, training))
    bytes_of_rows = tables.row_bytes
    makers: dict[str, tuple[int, Callable[[], Contender]]] = {}
    hbm_alone = None if sizes.hbm is None else te.Tiers(hbm=sizes.hbm)
    if sizes.dram_bytes is not None:
        makers[IN_DRAM] = (bytes_of_rows, lambda: Tiered(
            IN_DRAM, workload, training,
            make_tables(workload, training, hbm_alone, run.watch),
        ))  # fmt: skip
    if sizes.peers:
        as_made = workload.total_rows * workload.dim * 4  # before they are of another dtype
        needed = bytes_of_rows + (as_made if training.dtype is not torch.float32 else 0)
        makers["nn.EmbeddingBag"] = (needed, lambda: TorchBags(workload, training))
        why = Fbgemm.why_not(training)
        if why is None:
            makers["FBGEMM (CPU)"] = (bytes_of_rows, lambda: Fbgemm(workload, training))
        else:
            run.left_out["FBGEMM (CPU)"] = why
    for name, (needed, make) in makers.items():
        free = int(free_bytes(None if name == IN_DRAM else training.device) * _MEMORY_SHARE)
        slots = int(free_bytes(training.device) * _MEMORY_SHARE)
        if needed > free:
            run.left_out[name] = f"needs {format_bytes(needed)}; {format_bytes(free)} may be used"
        elif name == IN_DRAM and sizes.hbm is not None and int(sizes.hbm.size) > slots:
            more = format_bytes(int(sizes.hbm.size))
            run.left_out[name] = f"its own hbm tier needs {more} besides"
        else:
            add(make())
    if sizes.peers and sizes.dram_bytes is not None:
        _open_mmap(run, folder, stack)


def _open_mmap(run: _Run, folder: Path, stack: ExitStack) -> None:
    name = mmap_peer.NAME
    assert run.sizes.dram_bytes is not None
    if run.workload.samples is not None:
        run.left_out[name] = "for named models only"
    elif run.training.optimizer not in ("sgd", "rowwise-adagrad") or not run.training.trains:
        run.left_out[name] = "for training with sgd or rowwise-adagrad only"
    elif run.training.dtype is not torch.float32:
        run.left_out[name] = "for float32 only"
    elif run.sizes.hbm is not None:
        run.left_out[name] = "its rows and layers are the processor's"
    else:
        try:
            run.mmap = mmap_peer.MmapPeer(
                run.workload, run.sizes.scale, run.training, run.sizes.dram_bytes,
                folder / "mmap", run.watch,
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            run.left_out[name] = str(error)
            return
        stack.callback(run.mmap.close)


def _take_turns(run: _Run) -> int:
    """Warms up and measures; how many batches the tiered tables saw before those that count."""
    sizes = run.sizes
    batches: Iterator[Batch] = run.workload.batches()
    shared = [c for c in (run.contenders.get(TIERED), run.contenders.get(IN_LINE)) if c]
    others = [c for c in run.contenders.values() if c not in shared]
    rounds_before = -(-sizes.warm_up // sizes.steps)
    mmap_at = 0
    for i in run.watch(range(rounds_before + sizes.rounds), rounds_before + sizes.rounds, "steps"):
        counts = i >= rounds_before
        for contender in shared if counts else shared[:1]:
            # A batch that these tables have just seen would find its rows there.
            taken = list(islice(batches, sizes.steps))
            for batch in taken:
                run.note(batch)
            contender.run(taken, counts)
        if counts or i == rounds_before - 1:
            for contender in others:
                contender.run(taken, counts)
        if run.mmap is not None and i >= rounds_before - _MMAP_WARM_UP_ROUNDS:
            steps = max(2, sizes.steps // _MMAP_STEPS_LESS)
            try:
                run.mmap.round(mmap_at, steps, counts)
            except RuntimeError as error:  # it was killed
                run.left_out[run.mmap.name] = str(error)
                run.mmap = None
            mmap_at += steps
    return rounds_before * sizes.steps


def _report(run: _Run, rates: MachineRates, warm_up: int) -> dict[str, Any]:
    workload, training, sizes = run.workload, run.training, run.sizes
    tiered = run.contenders[TIERED]
    assert isinstance(tiered, Tiered)
    stats = tiered.tables.stats()
    all_rows = tiered.tables.row_bytes
    work = _work(run, stats.slots, warm_up)
    every: dict[str, Steps] = {name: c.steps for name, c in run.contenders.items()}
    if run.mmap is not None:
        every[run.mmap.name] = run.mmap.steps
    lookups = work.lookups
    line = run.contenders.get(IN_LINE, tiered).steps
    dense_s = statistics.median(run.contenders[LAYERS].steps.rounds)
    parts = _parts(line, dense_s, training.device.type == "cuda")
    line_s = statistics.median(line.rounds)
    fetch_s = _median(line, "move_ns") / _NS
    step_s = statistics.median(tiered.steps.rounds)
    busy_s = min(max(line_s - fetch_s, fetch_s), step_s)
    result: dict[str, Any] = {
        "workload": {
            "name": workload.name,
            "about": workload.about,
            "tables": len(workload.rows),
            "rows": workload.total_rows,
            "dim": workload.dim,
            "batch_size": workload.batch_size,
            "lookups_a_step": lookups,
            "exponent": workload.exponent,
            "row_bytes": work.row_bytes,
            "all_rows_bytes": all_rows,
        },
        "training": {
            "optimizer": training.optimizer if training.trains else None,
            "dtype": str(training.dtype).removeprefix("torch."),
            "trains": training.trains,
        },
        "tiers": {
            "dram_bytes": sizes.dram_bytes if sizes.dram_bytes is not None else all_rows,
            "dram_share": min(1.0, (sizes.dram_bytes or all_rows) / all_rows),
            "ssd": sizes.dram_bytes is not None,
            "slots": stats.slots,
            "hbm_bytes": 0 if sizes.hbm is None else sizes.hbm.size,
            "hbm_slots": stats.hbm_slots,
            "device": None if sizes.hbm is None else _name_of(training.device),
        },
        "rows_ahead": sizes.rows_ahead,
        "ids_ahead": sizes.ids_ahead,
        "contenders": {
            name: _figures(steps, workload.batch_size, lookups) for name, steps in every.items()
        },
        "left_out": run.left_out,
        "limited_by": run.mmap.limited_by if run.mmap is not None else None,
        "work": vars(work),
        "efficiency": efficiency(work, rates, step_s, busy_s).as_dict(),
        "accounting": account(line_s, parts),
        "hit_ratio": _hit_ratio(tiered.steps),
        "optimal_hit_ratio": 1 - work.optimal_misses / max(work.unique_rows, 1),
        "row_hit_ratio": 1 - work.misses / max(work.unique_rows, 1),
        "space_amplification": stats.space_amplification,
        "write_amplification": _grown(tiered.steps, "ssd_written_bytes")
        / max(_grown(tiered.steps, "ssd_row_written_bytes"), 1),
    }
    return result


def _work(run: _Run, slots: int, warm_up: int) -> StepWork:
    tiered = run.contenders[TIERED]
    assert isinstance(tiered, Tiered)
    on_drive, has_hbm = run.sizes.dram_bytes is not None, run.sizes.hbm is not None
    steps = [run.contenders[name].steps for name in (TIERED, IN_LINE) if name in run.contenders]

    def mean(name: str) -> float:
        """Of both, as the optimum counts the batches of both."""
        return statistics.mean(c[name] for s in steps for c in s.counters)

    size = run.training.dtype.itemsize
    # Rows without room go to the device in forward and in backward, and come back.
    moves = run.sizes.hbm is not None and run.sizes.hbm.executor != "core"
    guests = mean("hbm_rows_in_dram") if moves else 0.0
    return StepWork(
        dense_s=statistics.median(run.contenders[LAYERS].steps.rounds),
        lookups=(run.begins[-1] - run.begins[warm_up]) / (len(run.begins) - 1 - warm_up),
        unique_rows=run.unique_rows(warm_up),
        weight_bytes=run.workload.dim * size,
        row_bytes=tiered.tables.row_bytes // run.workload.total_rows,
        trains=run.training.trains,
        optimal_misses=run.optimal_misses(slots, warm_up) if on_drive else 0.0,
        misses=mean("rows_filled_from_ssd") if on_drive else 0.0,
        blocks_read=mean("ssd_blocks_read") if on_drive else 0.0,
        written_bytes=mean("ssd_written_bytes") if on_drive else 0.0,
        store_blocks=tiered.tables.stats().ssd_rows_bytes / BLOCK_BYTES if on_drive else 0.0,
        optimal_hbm_misses=(
            run.optimal_misses(tiered.tables.stats().hbm_slots, warm_up, False) if has_hbm else 0.0
        ),
        rows_up=mean("hbm_rows_filled") + guests * (1 + run.training.trains),
        rows_down=mean("hbm_rows_spilled") + guests * run.training.trains,
        on_device=has_hbm,
    )


def _parts(steps: Steps, dense_s: float, on_device: bool) -> dict[str, float]:
    """Where the time of a step in line goes, in seconds. What a device does with rows has no
    counter."""
    names = {
        "ssd": "move_ns",
        "upkeep of the store": "upkeep_ns",
        "planning": "plan_ns",
    }
    if not on_device:
        names |= {"pooling": "forward_ns", "update": "backward_ns"}
    parts = {part: _median(steps, name) / _NS for part, name in names.items()}
    return {**parts, "layers": dense_s}


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "emulated by the processor"


def _median(steps: Steps, name: str) -> float:
    return statistics.median(c.get(name, 0.0) for c in steps.counters)


def _hit_ratio(steps: Steps) -> float:
    lookups = _grown(steps, "lookups")
    return _grown(steps, "lookup_hits") / lookups if lookups else 1.0


def _grown(steps: Steps, name: str) -> float:
    """What a counter grew by in all rounds, a step of each."""
    return sum(c[name] for c in steps.counters)


def _figures(steps: Steps, batch_size: int, lookups: float) -> dict[str, Any]:
    """Of one contender."""
    ms = np.array(steps.seconds) * 1e3
    rounds: Sequence[float] = [s * 1e3 for s in steps.rounds]
    middle = statistics.median(rounds)
    low, high = np.percentile(rounds, [25, 75]).tolist()
    kept = ("move_ns", "upkeep_ns", "plan_ns", "plan_ahead_ns", "forward_ns", "backward_ns",
            "announce_ns", "prefetch_stall_ns", "missing_rows", "ssd_blocks_read",
            "ssd_read_bytes", "ssd_written_bytes", "hbm_rows_hit", "hbm_rows_filled",
            "hbm_rows_spilled", "hbm_rows_in_dram")  # fmt: skip
    return {
        "step_ms": dict(zip(
            ("p50", "p95", "p99"), np.percentile(ms, [50, 95, 99]).tolist(), strict=True
        )),
        "round_ms": rounds,
        "round_ms_p25": low,
        "round_ms_p50": middle,
        "round_ms_p75": high,
        "samples_per_s": batch_size / middle * 1e3,
        "lookups_per_s": lookups / middle * 1e3,
        "cpu_ms": statistics.median(steps.cpu_seconds) * 1e3 if steps.cpu_seconds else None,
        "a_step": {
            name: statistics.median(c[name] for c in steps.counters)
            for name in kept
            if steps.counters and name in steps.counters[0]
        },
    }  # fmt: skip
