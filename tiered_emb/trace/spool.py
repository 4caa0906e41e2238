"""Lookups on their way to a trace: on the disk as they are, until a file is made of them."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


class Group:
    """Room for so many lookups, in whole pages, as direct writes want it.

    Args:
        id_type: int32 or int64.
    """

    def __init__(self, lookups_max: int, id_type: type[Any]) -> None:
        self.lookups = 0
        self.used_runs = 0
        ids, runs = np.dtype(id_type), np.dtype((np.int64, 3))
        own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # not a forked process's too
        self._ids = mmap.mmap(-1, _rounded(lookups_max * ids.itemsize), flags=own)
        self._runs = mmap.mmap(-1, _rounded(lookups_max * runs.itemsize), flags=own)
        with suppress(OSError):  # kernels without huge pages
            self._ids.madvise(mmap.MADV_HUGEPAGE)
        self.ids: Any = np.frombuffer(self._ids, ids, lookups_max)
        """[lookups_max] The first `lookups` are used."""
        self.runs: Any = np.frombuffer(self._runs, runs, lookups_max)
        """[lookups_max, 3] Batch, table and number of lookups, `used_runs` times."""

    def pages(self) -> list[memoryview]:
        """What is used."""
        return [
            memoryview(memory)[: _rounded(count * array[:1].nbytes)]
            for memory, count, array in (
                (self._ids, self.lookups, self.ids),
                (self._runs, self.used_runs, self.runs),
            )
        ]


class Spool:
    """Groups of lookups, in order. They are in a file without a name, which goes when it is closed
    or the process ends; written past the page cache, whose pages would cost more than all else.
    """

    def __init__(self, folder: Path) -> None:
        self._counts: list[tuple[int, int]] = []
        self._end = 0
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._process = os.getpid()
        with suppress(OSError):  # file systems that refuse go through the page cache
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT)

    def append(self, group: Group) -> None:
        """Writes the next group, which may then be filled anew."""
        for data in group.pages():
            while data:
                written = os.pwrite(self._file.fileno(), data, self._end)
                data, self._end = data[written:], self._end + written
        self._counts.append((group.lookups, group.used_runs))

    def groups(self, into: Group) -> Iterator[Group]:
        """Each group, until the next is read."""
        at = 0
        for into.lookups, into.used_runs in self._counts:
            for data in into.pages():
                while data:
                    there = os.preadv(self._file.fileno(), [data], at)
                    if there == 0:
                        raise OSError("the lookups recorded so far have been cut off")
                    data, at = data[there:], at + there
            yield into

    def close(self) -> None:
        """Gives the file's space back, though forked processes may have the file open."""
        if os.getpid() == self._process:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), 0)
        self._file.close()


def _rounded(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
