"""Writing traces: lookups are copied by the caller, and written by a thread."""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from tiered_emb.data.hashing import text_key
from tiered_emb.files import sync_directory
from tiered_emb.trace.format import ARROW_SUFFIX, Ids, TraceTable
from tiered_emb.trace.forms import PARQUET_TABLES_MAX, metadata, write_trace
from tiered_emb.trace.keep import NO_ID, keep
from tiered_emb.trace.spool import Group, Spool

_GROUP_LOOKUPS = 1 << 20
_GROUPS_MAX = 3  # one that is filled, others on their way to the disk
_NARROW_ROWS = 1 << 31  # whose ids fit int32
_serial = itertools.count()


class TraceWriter:
    """Writes a trace, which appears under its name when it is complete. Lookups are spooled, which
    takes the least time, and the file is made of them at the end.

    Args:
        path: of the file, Arrow's where it ends with ``.arrow`` and else Parquet; what is there is
            replaced.
        tables: by name, in the order of their rows among all.
        sample: the share of rows to keep, in (0, 1]. A row is kept or not by a hash of its id, with
            all of its lookups: spatial sampling (Waldspurger et al., "Efficient MRC construction
            with SHARDS", FAST 2015).

    Raises:
        OSError: a file cannot be written; also by `write`, of what was written before, and `close`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tables: Mapping[str, TraceTable],
        sample: float = 1.0,
    ) -> None:
        if not 0 < sample <= 1:
            raise ValueError(f"sample must be in (0, 1], got {sample!r}")
        self.lookups = 0
        self._path = Path(path)
        if self._path.is_dir():
            raise IsADirectoryError(f"{self._path}: is a directory; expected a file")
        self._is_arrow = self._path.suffix == ARROW_SUFFIX
        if not self._is_arrow and len(tables) > PARQUET_TABLES_MAX:
            raise ValueError(
                f"{self._path}: {len(tables)} tables; a Parquet trace holds {PARQUET_TABLES_MAX}, "
                "one whose name ends with .arrow any number"
            )
        self._is_over = False
        self._about = metadata(tables, sample)
        self._numbers = {name: number for number, name in enumerate(tables)}
        self._keys = np.array([text_key(name) for name in tables], dtype=np.uint64)
        self._sample = sample
        self._threshold = np.uint32(min(math.ceil(sample * 2.0**32), 2**32 - 1))
        is_narrow = all(t.rows <= _NARROW_ROWS for t in tables.values())
        self._id_type: type[Any] = np.int32 if is_narrow else np.int64
        with self._errors_told():
            self._spool = Spool(self._path.parent)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trace")
        self._on_their_way: deque[Future[Group]] = deque()
        self._written: list[Group] = []
        self._group: Group | None = self._new_group()
        self._at = np.zeros(4, dtype=np.int64)  # see `keep`

    def write(self, batch: int, table: str, ids: Ids, padding: int | None = None) -> None:
        """The next lookups: of one batch and table, in order, but those of `padding`. `ids` is
        int32 or int64, within the table's rows, and may change after the call."""
        ids = np.ascontiguousarray(ids)
        if ids.dtype not in (np.int32, np.int64):
            raise TypeError(f"table '{table}': ids must be int32 or int64, got {ids.dtype}")
        left_out = NO_ID if padding is None else padding
        self._write(
            batch, [ids.ctypes.data, len(ids), ids.itemsize, self._numbers[table], left_out]
        )

    def write_tensors(self, batch: int, lookups: Sequence[tuple[str, Any, int | None]]) -> None:
        """The same of several tables: name, ids, which are a contiguous tensor [n], and padding."""
        numbers, of_tables = self._numbers, list[int]()
        for name, ids, padding in lookups:
            left_out = NO_ID if padding is None else padding
            of_tables += (ids.data_ptr(), ids.numel(), ids.itemsize, numbers[name], left_out)
        self._write(batch, of_tables)

    def _write(self, batch: int, lookups: list[int]) -> None:
        of_tables = np.array(lookups, dtype=np.int64).reshape(-1, 5)
        self._at[:2] = 0
        while self._at[0] < len(of_tables):
            if self._group is None:
                raise RuntimeError(f"{self._path}: writing the trace was interrupted")
            kept = self._at[2]
            keep(
                batch, of_tables, self._keys, self._threshold, self._sample == 1,
                self._group.ids, self._group.runs, self._at,
            )  # fmt: skip
            self.lookups += int(self._at[2] - kept)
            if self._at[2] == len(self._group.ids):
                self._hand_over()

    def wait(self) -> None:
        """Until all groups that are full have been written."""
        while self._on_their_way:
            self._take_back()

    def close(self) -> None:
        """Makes the file of what was written: it is complete, on the disk, or not there."""
        if self._is_over:
            return
        partial = self._path.with_name(f".trace-{os.getpid()}-{next(_serial)}.partial")
        try:
            self._hand_over()
            self.wait()
            with self._errors_told():
                write_trace(
                    partial, self._is_arrow, self._about, self._id_type,
                    self._spool.groups(self._new_group()),
                )  # fmt: skip
                os.replace(partial, self._path)
                sync_directory(self._path.parent)
        finally:
            self.abandon()
            partial.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Drops what was written, unless the file has been made of it."""
        if self._is_over:
            return
        self._is_over = True
        self._thread.shutdown(cancel_futures=True)
        self._spool.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _hand_over(self) -> None:
        group = self._group
        if group is None or self._at[2] == 0:
            return
        group.lookups, group.used_runs = self._at[2:].tolist()
        self._on_their_way.append(self._thread.submit(self._spooled, group))
        self._group = None
        self._at[2:] = 0
        while self._on_their_way and (
            self._on_their_way[0].done() or len(self._on_their_way) == _GROUPS_MAX
        ):
            self._take_back()
        self._group = self._written.pop() if self._written else self._new_group()

    def _new_group(self) -> Group:
        return Group(_GROUP_LOOKUPS, self._id_type)

    def _spooled(self, group: Group) -> Group:
        self._spool.append(group)
        return group

    def _take_back(self) -> None:
        """The first group that is on its way, once it has been written: its pages are there, which
        new ones would take longer to be than all else."""
        with self._errors_told():
            group = self._on_their_way[0].result()
        self._on_their_way.popleft()
        self._written.append(group)

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise OSError(f"{self._path}: cannot write: {error}") from error
