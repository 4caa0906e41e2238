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

from tiered_emb.trace.format import Ids

Run = tuple[int, int, int]
"""Batch, table and how many lookups."""


class Spool:
    """Groups of lookups, in order. They are in a file without a name, which goes when it is closed
    or the process ends; written past the page cache, whose pages would cost more than all else.

    Args:
        folder: where the file is.
        group_lookups: at most, of a group.
        id_type: int32 or int64.
    """

    def __init__(self, folder: Path, group_lookups: int, id_type: type[Any]) -> None:
        self._group_lookups = group_lookups
        self._id_type = np.dtype(id_type)
        self._groups: list[tuple[int, int, int]] = []  # where, lookups, runs
        self._end = 0
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        with suppress(OSError):  # file systems that cannot, go through the page cache
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT)

    def new_group(self) -> Any:
        """[n] Room for a group's ids, and some more: a multiple of pages, as direct writes are."""
        return _pages(self._group_lookups, self._id_type)

    def append(self, ids: Any, lookups: int, runs: list[Run]) -> None:
        """The first ids of `new_group`, and the runs that they are of."""
        counts = _pages(3 * len(runs), np.dtype(np.int64))
        counts[: 3 * len(runs)] = np.array(runs, dtype=np.int64).reshape(-1)
        self._groups.append((self._end, lookups, len(runs)))
        self._write(ids, lookups)
        self._write(counts, 3 * len(runs))

    def groups(self) -> Iterator[tuple[Any, Ids]]:
        """Ids of each group, until the next; and its runs, [n, 3]."""
        ids = self.new_group()
        for at, lookups, runs in self._groups:
            at = self._read(ids, lookups, at)
            counts = _pages(3 * runs, np.dtype(np.int64))
            self._read(counts, 3 * runs, at)
            yield ids[:lookups], counts[: 3 * runs].reshape(-1, 3)

    def close(self) -> None:
        """Gives the file's space back."""
        self._file.close()

    def _write(self, values: Any, count: int) -> None:
        data = memoryview(values).cast("B")[: _rounded(count * values.itemsize)]
        while data:
            written = os.pwrite(self._file.fileno(), data, self._end)
            data, self._end = data[written:], self._end + written

    def _read(self, values: Any, count: int, at: int) -> int:
        data = memoryview(values).cast("B")[: _rounded(count * values.itemsize)]
        while data:
            there = os.preadv(self._file.fileno(), [data], at)
            if there == 0:
                raise OSError("the lookups recorded so far have been cut off")
            data, at = data[there:], at + there
        return at


def _pages(count: int, kind: np.dtype[Any]) -> Any:
    memory = mmap.mmap(-1, max(_rounded(count * kind.itemsize), mmap.PAGESIZE))
    return np.frombuffer(memory, dtype=kind)


def _rounded(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
