"""Tier sizes: how much of a table may live on a device and in dram, and where its ssd store is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal

import torch

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _UNITS[_letter + "iB"] = 1024**_power
    _UNITS[_letter + "B"] = 1000**_power

Size = int | str


def parse_bytes(size: Size) -> int:
    """Bytes of `size`: an int, or a number with a unit, as ``"8GiB"``, ``"512 MB"``, ``"1.5TiB"``.

    Raises `ValueError` for other strings and for sizes below one byte, `TypeError` for other types.

    >>> parse_bytes("1.5KiB")
    1536
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"size must be an int of bytes or a string like '8GiB', got {size!r}")
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", size)
        if match is None or match.group(2) not in _UNITS:
            raise ValueError(
                f"size {size!r} is not a number with one of the units {sorted(_UNITS)[1:]}"
            )
        size = int(float(match.group(1)) * _UNITS[match.group(2)])
    if size < 1:
        raise ValueError(f"size must be at least one byte, got {size}")
    return size


def format_bytes(size: int) -> str:
    """`size` with three digits and a binary unit.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} PiB"


@dataclass(frozen=True)
class SSD:
    """The ssd tier: a store in the directory `path`.

    Args:
        path: directory; created if absent. One that already holds a store is never overwritten:
            opening it without `resume` raises `FileExistsError`.
        capacity: most bytes of segment files, as int or ``"1TiB"``; None: the disk's free space.
        resume: True opens the store that is there, as of its last flush or close. ``"newest"``
            opens it with the newest copy of every row that has reached the disk: after a crash,
            rows of different ages, and the optimizer's step count of the last flush. Also the way
            back when an index file is damaged. The store then goes on from there.
        space_bound: segments take at most this times what all rows ever written take, packed into
            blocks; more by a handful of segments, by what a flush has just written, and by
            segments that only the last flush needs, until the next. More space means less copying
            by the reclaimer (docs/ARCHITECTURE.md, "The log", has the curve). At least 1.1.
        read_only: only with `resume`: rows are looked up and never changed, nothing in the
            directory is written and no lock is taken, so that many processes may serve one store.
            Rather the tables of a checkpoint than a store that another process trains: there the
            files of rows that were written again go in time.
    """

    path: str
    capacity: Size | None = None
    resume: bool | Literal["newest"] = False
    read_only: bool = field(default=False, kw_only=True)
    space_bound: float = field(default=1.45, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))
        if self.resume not in (False, True, "newest"):
            raise ValueError(f"SSD(resume=...): must be a bool or 'newest', got {self.resume!r}")
        if self.read_only and self.resume is not True:
            raise ValueError("SSD(read_only=True): there is nothing to read without resume=True")
        if isinstance(self.space_bound, bool) or not isinstance(self.space_bound, (int, float)):
            raise TypeError(f"SSD(space_bound): must be a number, got {self.space_bound!r}")
        if not 1.1 <= self.space_bound <= 100:
            raise ValueError(
                f"SSD(space_bound=...): must be in [1.1, 100], got {self.space_bound!r}"
            )
        if self.path == "":
            raise ValueError("SSD(path): the path is empty")
        if self.capacity is not None:
            object.__setattr__(self, "capacity", parse_bytes(self.capacity))


EXECUTORS = ("core", "torch", "triton")
_BUFFER_BYTES_MAX = 32 << 20
_BUFFERS_IN_HBM, _BUFFERS_IN_DRAM = 8, 256
PINNED_BUFFERS = 8
"""Of an hbm tier: four for rows, as much again for plans."""


def buffer_bytes_of(hbm_bytes: float, dram_bytes: float | None) -> int:
    """Of one pinned buffer, where nobody says how large it is; `dram_bytes`: the budget, if any."""
    found = min(_BUFFER_BYTES_MAX, hbm_bytes / _BUFFERS_IN_HBM)
    return int(found if dram_bytes is None else min(found, dram_bytes / _BUFFERS_IN_DRAM))


@dataclass(frozen=True)
class HBM:
    """The hbm tier: slots for rows on a device.

    Args:
        size: bytes of slots, as int or ``"8GiB"``. A row there keeps its place in dram, so hbm
            beyond what dram holds is not used. Rows of a batch that find no room take memory of the
            device besides while it is looked up or updated.
        device: a CUDA device, as torch names it; None: the current one. ``"cpu"`` emulates a device
            in this machine's memory, beside dram's budget.
        executor: what computes there. ``"triton"``: this package's kernels, the default on CUDA,
            bit-equal to the CPU's; ``"torch"``: plain torch operations, which need no other
            package; ``"core"``: the CPU's kernels, the default on ``"cpu"`` and only possible
            there.
        buffer: bytes of each of the four pinned buffers through which rows move. As much again is
            for plans on their way; those of larger batches go through memory that is not pinned.
            All of it is a part of the dram budget. None: an eighth of `size`, at most 32 MiB and a
            256th of that budget.

    Raises:
        RuntimeError: no device is given and there is no CUDA.
    """

    size: Size
    device: str | torch.device | None = None
    executor: str | None = field(default=None, kw_only=True)
    buffer: Size | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", parse_bytes(self.size))
        if self.buffer is not None:
            object.__setattr__(self, "buffer", parse_bytes(self.buffer))
        object.__setattr__(self, "device", str(_resolve_device(self)))
        executor = self.executor
        if executor is None:
            executor = "core" if self.torch_device.type == "cpu" else "triton"
            object.__setattr__(self, "executor", executor)
        if executor not in EXECUTORS:
            raise ValueError(
                f"HBM(executor=...): must be one of {', '.join(EXECUTORS)}, got {executor!r}"
            )
        if executor == "core" and self.torch_device.type != "cpu":
            raise ValueError(
                f"HBM(executor='core'): computes on the CPU, not on device {self.device!r}"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device, with its index if it is a CUDA device."""
        return torch.device(str(self.device))


def _resolve_device(hbm: HBM) -> torch.device:
    name = "cuda" if hbm.device is None else str(hbm.device)
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"HBM(device=...): must be a CUDA device or 'cpu', got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"HBM({format_bytes(int(hbm.size))}, {name!r}): no CUDA device is present; "
            "device='cpu' emulates one in this machine's memory"
        )
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


POLICIES = ("lookahead", "lfu", "lru", "s3fifo")


@dataclass(frozen=True)
class Tiers:
    """Budgets of the tiers.

    Args:
        hbm: an `HBM`, or bytes of slots on the current CUDA device, as int or ``"8GiB"``; None: no
            hbm tier, rows are looked up and updated in dram by the CPU.
        dram: bytes for rows and what belongs to them (docs/ARCHITECTURE.md, "Budget"), as int or
            ``"64GiB"``; None: as much as all rows take.
        ssd: an `SSD`, or a path; None: no ssd tier, and then `dram` must hold every row.
        policy: which unused row leaves dram first. ``"lookahead"``: of rows that announced batches
            need, the one needed last, but before them all others, by how often and how long ago
            they were used; ``"lfu"``: by the latter alone; ``"lru"``; ``"s3fifo"``. Changes time,
            never results.

    >>> Tiers(dram="64GiB", ssd=SSD("/nvme/bag", "1TiB")).dram
    68719476736
    """

    hbm: HBM | Size | None = None
    dram: Size | None = None
    ssd: SSD | str | None = None
    policy: str = field(default="lookahead", kw_only=True)

    def __post_init__(self) -> None:
        if self.hbm is not None and not isinstance(self.hbm, HBM):
            object.__setattr__(self, "hbm", HBM(self.hbm))
        if self.dram is not None:
            object.__setattr__(self, "dram", parse_bytes(self.dram))
        if self.ssd is not None and not isinstance(self.ssd, SSD):
            object.__setattr__(self, "ssd", SSD(self.ssd))
        if self.policy not in POLICIES:
            raise ValueError(
                f"Tiers(policy=...): must be one of {', '.join(POLICIES)}, got {self.policy!r}"
            )

    @property
    def buffer_bytes(self) -> int:
        """Bytes of one pinned buffer of the hbm tier."""
        if not isinstance(self.hbm, HBM):
            return 0
        if self.hbm.buffer is not None:
            return int(self.hbm.buffer)
        return buffer_bytes_of(
            float(self.hbm.size), None if self.dram is None else float(self.dram)
        )

    def __str__(self) -> str:
        dram = "all rows" if self.dram is None else format_bytes(int(self.dram))
        parts = [f"dram={dram}"]
        if isinstance(self.hbm, HBM):
            parts.insert(0, f"hbm={format_bytes(int(self.hbm.size))} on {self.hbm.device}")
        if isinstance(self.ssd, SSD):
            limit = "" if self.ssd.capacity is None else f", {format_bytes(int(self.ssd.capacity))}"
            parts.append(f"ssd={self.ssd.path!r}{limit}")
        return ", ".join(parts)
