"""How fast a step could be on a machine, and where the rest of its time goes.

A step is bound by each resource that it uses: it takes no less than the work that it asks of the
busiest. Without a device the layers, the lookups and the updates share the processor, so their
times add up there; the drive works beside it. With one they share the device, and beside it work
the link, dram (rows on their way) and the drive. (Of DESIGN.md's formula this is the sum within the
processor or device instead of the maximum of what cannot overlap there.)

From the bound to the step that was measured in four factors, whose product is eta:

    policy         bound with the fewest misses (Belady), of each tier / with those there were
    amplification  ... / with the blocks and bytes that were moved for them
    bandwidth      ... / what each resource was busy, by itself
    overlap        ... / the step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

BLOCK_BYTES = 4096
_SHARE_MAX = 0.94  # of blocks read: runs of 64 KiB, the longest reads that are measured


@dataclass(frozen=True)
class DeviceRates:
    """Bytes a second of a device's memory (read and written count), and of the link each way."""

    hbm: float
    up: float
    down: float


@dataclass(frozen=True)
class MachineRates:
    """What a machine can do.

    Args:
        gather: bytes/s of reading rows of a size (in bytes) all over dram, with all cores.
        update: likewise of rewriting them: bytes of rows, each counted once.
        reads_per_s: random reads/s of one block of the drive; 0: no drive.
        write_bytes_per_s: of long writes to the drive.
        reads: reads/s of so many bytes (longer than a block); None: as many as of one block.
        device: that does layers and rows; None: the processor does.
    """

    gather: Callable[[float], float]
    update: Callable[[float], float]
    reads_per_s: float
    write_bytes_per_s: float
    reads: Callable[[float], float] | None = None
    device: DeviceRates | None = None


@dataclass(frozen=True)
class StepWork:
    """What one step asks for.

    Args:
        dense_s: of the layers alone, in seconds.
        lookups: ids.
        unique_rows: rows that the batch uses.
        weight_bytes, row_bytes: of a row, without and with its optimizer state.
        trains: whether rows are updated.
        optimal_misses: rows read from the drive by the best cache of this size.
        misses: rows that were.
        blocks_read, written_bytes: what the drive was asked for.
        store_blocks: that all rows take, packed; 0: very many more than are read.
        optimal_hbm_misses: rows moved to the device by the best cache of its size.
        rows_up, rows_down: that were moved to it and back.
        on_device: lookups and updates are done there.
    """

    dense_s: float
    lookups: float
    unique_rows: float
    weight_bytes: int
    row_bytes: int
    trains: bool
    optimal_misses: float = 0.0
    misses: float = 0.0
    blocks_read: float = 0.0
    written_bytes: float = 0.0
    store_blocks: float = 0.0
    optimal_hbm_misses: float = 0.0
    rows_up: float = 0.0
    rows_down: float = 0.0
    on_device: bool = False


@dataclass(frozen=True)
class Busy:
    """Seconds of a step for which each resource has work; `hbm` and `link` with a device only."""

    dense: float
    dram: float
    ssd: float = 0.0
    hbm: float | None = None
    link: float = 0.0

    @property
    def groups(self) -> tuple[dict[str, float], ...]:
        """Resources that work side by side; those of one group take turns."""
        layers, dram, ssd = {"layers": self.dense}, {"dram": self.dram}, {"ssd": self.ssd}
        if self.hbm is None:
            return {**layers, **dram}, ssd
        return {**layers, "hbm": self.hbm}, {"link": self.link}, dram, ssd

    @property
    def bound(self) -> float:
        """Of the busiest group."""
        return max(sum(group.values()) for group in self.groups)

    @property
    def binding(self) -> str:
        """The busiest of the busiest group: "layers", "hbm", "link", "dram" or "ssd"."""
        busiest = max(self.groups, key=lambda group: sum(group.values()))
        return max(busiest, key=lambda name: busiest[name])

    @property
    def without_overlap(self) -> float:
        """Their sum."""
        return sum(sum(group.values()) for group in self.groups)


def busy(work: StepWork, rates: MachineRates) -> Busy:
    """What the work takes each resource at its limit."""
    read = work.unique_rows * work.weight_bytes
    updated = work.unique_rows * work.row_bytes if work.trains else 0.0
    ssd = _ssd_seconds(work, rates)
    if rates.device is None:
        dram = read / rates.gather(work.weight_bytes)
        dram += updated / rates.update(work.row_bytes)
        return Busy(work.dense_s, dram, ssd)
    up, down = work.rows_up * work.row_bytes, work.rows_down * work.row_bytes
    return Busy(
        dense=work.dense_s,
        dram=up / rates.gather(work.row_bytes) + down / rates.update(work.row_bytes),
        ssd=ssd,
        hbm=(read + 2 * updated) / rates.device.hbm,
        link=max(up / rates.device.up, down / rates.device.down),
    )


def _ssd_seconds(work: StepWork, rates: MachineRates) -> float:
    ssd = 0.0
    if work.blocks_read:
        ssd += read_seconds(work.blocks_read, work.store_blocks, rates)
    if work.written_bytes:
        ssd += work.written_bytes / rates.write_bytes_per_s
    return ssd


def read_seconds(blocks: float, store_blocks: float, rates: MachineRates) -> float:
    """What reading so many random blocks of a store takes the drive.

    Of a share f of all blocks, in order, each run of neighbours has 1 / (1 - f) on average, and is
    one read.
    """
    share = min(blocks / store_blocks, _SHARE_MAX) if store_blocks else 0.0
    run = 1 / (1 - share)
    rate = rates.reads_per_s if rates.reads is None else rates.reads(run * BLOCK_BYTES)
    return blocks / run / rate


def distinct_blocks(rows: float, blocks: float) -> float:
    """How many of so many blocks hold `rows` rows at random places, on average."""
    return -blocks * math.expm1(-rows / blocks)


def ideal(work: StepWork, misses: float, rows_up: float = 0.0) -> StepWork:
    """The same with so many misses and rows moved to the device: the blocks that they lie in are
    read. In training each row that leaves for one is written back, but no more than was: some leave
    as they came."""
    written = min(misses * work.row_bytes, work.written_bytes) if work.trains else 0.0
    blocks = distinct_blocks(misses, work.store_blocks) if work.store_blocks else misses
    return replace(
        work, blocks_read=blocks, written_bytes=written,
        rows_up=rows_up, rows_down=min(rows_up, work.rows_down),
    )  # fmt: skip


@dataclass(frozen=True)
class Efficiency:
    """A step beside its bound.

    Args:
        step_s: measured.
        bound_s: T_min.
        policy, amplification, bandwidth, overlap: factors of eta.
        binding: the resource that T_min is of.
        no_overlap_s: what T_min's resources would take one after another.
    """

    step_s: float
    bound_s: float
    policy: float
    amplification: float
    bandwidth: float
    overlap: float
    binding: str
    no_overlap_s: float

    @property
    def eta(self) -> float:
        """T_min / T."""
        return self.bound_s / self.step_s

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "eta": self.eta}


def efficiency(work: StepWork, rates: MachineRates, step_s: float, busy_s: float) -> Efficiency:
    """Eta of a step of `step_s` seconds, and its factors.

    Args:
        busy_s: what the busiest resource took by itself, measured: the processor's part of a step
            that fetches in line, or the fetching.
    """
    best = busy(ideal(work, work.optimal_misses, work.optimal_hbm_misses), rates)
    as_missed = busy(ideal(work, work.misses, work.rows_up), rates)
    as_moved = busy(work, rates)
    return Efficiency(
        step_s=step_s,
        bound_s=best.bound,
        policy=best.bound / as_missed.bound,
        amplification=as_missed.bound / as_moved.bound,
        bandwidth=as_moved.bound / busy_s,
        overlap=busy_s / step_s,
        binding=best.binding,
        no_overlap_s=best.without_overlap,
    )


def account(step_s: float, parts: Mapping[str, float]) -> dict[str, Any]:
    """Parts of a step that is done in line, and whether they are the whole."""
    total = sum(parts.values())
    return {
        "step_s": step_s,
        "parts_s": dict(parts),
        "sum_over_step": total / step_s,
        "closes": abs(total / step_s - 1) <= 0.05,
    }
