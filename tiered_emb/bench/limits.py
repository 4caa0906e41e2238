"""The limits of this machine: measured, saved, and reused with their date.

    limits = Limits.current("/nvme")        # measures once (about a minute), then reads a file
    limits.dram.gather(256)                 # bytes a second of rows of 256 bytes
    limits.ssd.best_reads_per_s(4096)

Saved figures belong to a machine (processor, cores, memory, kernel, GPU, the I/O engine asked for)
and to the device of the directory: `limits.json` in `tiered_emb` under `$XDG_CACHE_HOME`, else
`~/.cache`. Thread-safety: a save replaces the file atomically; of two at once one is lost.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tiered_emb.bench import provenance
from tiered_emb.bench.limits_figures import (
    DramLimits,
    LinkLimits,
    SsdLimits,
    from_json,
    to_json,
)
from tiered_emb.bench.limits_measure import (
    SMOKE,
    Progress,
    Sizes,
    all_threads,
    default_arena_bytes,
    measure_dram,
    measure_link,
    measure_ssd,
)
from tiered_emb.data.errors import DataError
from tiered_emb.tiers import format_bytes

# Another number, and what was saved is measured again: for another form, or other ways to measure.
SCHEMA = 2
SPARE_BYTES = 64 << 20  # of the drive, left free beside the file

Say = Callable[[str], None]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Limits:
    """What was measured of one machine, and when.

    `device` names the drive of `ssd`; `smoke` tells that the figures are too short to be trusted.
    `ssd` is None where it was left out, `link` without CUDA.
    """

    date: str
    took_seconds: float
    smoke: bool
    machine: dict[str, Any]
    versions: dict[str, Any]
    device: str | None
    dram: DramLimits
    ssd: SsdLimits | None
    link: LinkLimits | None

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, numbers and texts."""
        return to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> Limits:
        """What `to_json` gave; `ValueError` where the data are not of its form."""
        return from_json(cls, data)

    @classmethod
    def current(
        cls,
        directory: str | os.PathLike[str] | None,
        remeasure: bool = False,
        *,
        path: Path | None = None,
        say: Say = _to_stderr,
        progress: Progress = lambda _: None,
    ) -> Limits:
        """The saved limits of this machine and drive, or new ones, which are saved.

        Args:
            directory: on the drive; None: without the drive.
            remeasure: measure, whatever has been saved.
            path: where they are saved; None: the default place.
            say: told in one line that saved figures are used, or what is wrong with the file.
            progress: as of `measure`.
        """
        found = None if remeasure else saved(directory, path, say=say)
        if found is not None:
            say(f"limits: saved ones, measured on {found.date}")
            return found
        limits = measure(directory, progress=progress)
        try:
            save(limits, path, say=say)
        except OSError as error:
            say(f"limits: not saved: {error}")
        return limits


def measure(
    directory: str | os.PathLike[str] | None,
    *,
    seconds_each: float | None = None,
    row_bytes: tuple[int, ...] | None = None,
    arena_bytes: int | None = None,
    smoke: bool = False,
    progress: Progress = lambda _: None,
) -> Limits:
    """Measures memory, drive and link; about a minute, a few seconds with `smoke`.

    Args:
        directory: on the drive, with room for a file of 2 GiB, which is gone afterwards; None:
            without the drive.
        seconds_each: how long one figure is repeated, three times or more. Default 0.6.
        row_bytes: sizes of rows, multiples of 4. Default 16 to 1024, in steps of 2.
        arena_bytes: memory that rows lie in. Default 1 GiB, or what suits the machine.
        smoke: smaller sizes and times, for tests; the figures say little.
        progress: called with what is measured next.

    Raises:
        DataError: the directory cannot be used, or has no room.
    """
    sizes = SMOKE if smoke else Sizes(arena_bytes=default_arena_bytes())
    asked: dict[str, Any] = {
        "seconds_each": seconds_each,
        "row_bytes": row_bytes,
        "arena_bytes": arena_bytes,
    }
    sizes = replace(sizes, **{name: value for name, value in asked.items() if value is not None})
    if any(size < 4 or size % 4 for size in sizes.row_bytes):
        raise ValueError(f"row_bytes must be multiples of 4, got {sizes.row_bytes}")
    if directory is not None:
        check_directory(directory, sizes.file_bytes)
    start = time.monotonic()
    dram = measure_dram(sizes, progress)
    ssd = None if directory is None else measure_ssd(os.fspath(directory), sizes, progress)
    link = measure_link(sizes, progress)
    return Limits(
        date=provenance.now_text(),
        took_seconds=time.monotonic() - start,
        smoke=smoke,
        machine=this_machine(),
        versions=dict(provenance.versions()),
        device=None if directory is None else device_of(directory),
        dram=dram,
        ssd=ssd,
        link=link,
    )


def check_directory(directory: str | os.PathLike[str], file_bytes: int) -> None:
    """Raises `DataError` where no file of so many bytes can be made."""
    device_of(directory)  # raises where it is none
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DataError(f"{directory}: not writable")
    needed, free = file_bytes + SPARE_BYTES, shutil.disk_usage(directory).free
    if free < needed:
        raise DataError(
            f"{directory}: measuring needs {format_bytes(needed)} there, "
            f"{format_bytes(free)} are free"
        )


def this_machine() -> dict[str, Any]:
    """What the figures depend on, but for the drive."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    asked = os.environ.get("TIERED_EMB_IO")
    io = {"io": asked} if asked else {}
    return {**provenance.machine(), "threads": all_threads(), "gpu": gpu, **io}


def device_of(directory: str | os.PathLike[str]) -> str:
    """The device and file system under a directory, by the system's table of mounts.

    Raises `DataError` where there is no such directory.
    """
    if not os.path.isdir(directory):
        raise DataError(f"{directory}: no such directory")
    number = os.stat(directory).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            mount, _, rest = line.partition(" - ")
            if mount.split()[2] == device:
                kind, source = rest.split()[:2]
                return f"{source} ({kind})"
    return device


def default_path() -> Path:
    """Where limits are saved."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "tiered_emb" / "limits.json"


def saved(
    directory: str | os.PathLike[str] | None,
    path: Path | None = None,
    *,
    say: Say = _to_stderr,
) -> Limits | None:
    """The saved limits of this machine and of the drive of the directory; None without such.

    A file that cannot be read, or is of another release, is as none; `say` is told.
    """
    key = (this_machine(), None if directory is None else device_of(directory))
    found = [limits for limits in _load(path or default_path(), say) if _key(limits) == key]
    return found[-1] if found else None


def save(limits: Limits, path: Path | None = None, *, say: Say = _to_stderr) -> None:
    """Saves them in place of those of the same machine and drive; `OSError` where it cannot."""
    path = path or default_path()
    entries = [other for other in _load(path, lambda _: None) if _key(other) != _key(limits)]
    data = {"schema": SCHEMA, "limits": [entry.to_json() for entry in [*entries, limits]]}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    say(f"limits: saved in {path}")


def _key(limits: Limits) -> tuple[dict[str, Any], str | None]:
    return limits.machine, limits.device


def _load(path: Path, say: Say) -> list[Limits]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"it has schema {schema}, this release has {SCHEMA}")
        return [Limits.from_json(entry) for entry in data["limits"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        say(f"limits: {path} is not used: {' '.join(str(error).split())}")
        return []
