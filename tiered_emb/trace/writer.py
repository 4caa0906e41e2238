"""Writing traces: lookups are copied by the caller, and written by a thread."""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from tiered_emb.compiled import compiled
from tiered_emb.data.hashing import text_key
from tiered_emb.files import sync_directory
from tiered_emb.trace.format import ARROW_SUFFIX, Ids, TraceTable
from tiered_emb.trace.forms import PARQUET_TABLES_MAX, write_trace
from tiered_emb.trace.spool import Run, Spool

_GROUP_LOOKUPS = 1 << 20
_GROUPS_MAX = 3  # one that is filled, others on their way to the disk
_NARROW_ROWS = 1 << 31  # whose ids fit int32
_HASHED_AT_ONCE = 128
_NO_ROOM = np.empty(0, dtype=np.int64)
_NO_ID = int(np.iinfo(np.int64).min)
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
        self._tables = dict(tables)
        self._numbers = {name: number for number, name in enumerate(tables)}
        self._keys = {name: np.uint64(text_key(name)) for name in tables}
        self._sample = sample
        self._threshold = np.uint32(min(math.ceil(sample * 2.0**32), 2**32 - 1))
        is_narrow = all(t.rows <= _NARROW_ROWS for t in tables.values())
        self._id_type: type[Any] = np.int32 if is_narrow else np.int64
        with self._errors_told():
            self._spool = Spool(self._path.parent, _GROUP_LOOKUPS, self._id_type)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trace")
        self._on_their_way: deque[Future[Any]] = deque()
        self._group = self._spool.new_group()
        self._filled = 0
        self._runs: list[Run] = []

    def write(self, batch: int, table: str, ids: Ids, padding: int | None = None) -> None:
        """The next lookups: of one batch and table, in order, but those of `padding`. `ids` is
        int32 or int64, within the table's rows, and may change after the call."""
        left_out = _NO_ID if padding is None else padding
        at = 0
        while at < len(ids):
            taken, kept = _keep(
                ids[at:], left_out, self._sample == 1, self._keys[table], self._threshold,
                self._group[self._filled : _GROUP_LOOKUPS],
            )  # fmt: skip
            at += taken
            if kept > 0:
                self._runs.append((batch, self._numbers[table], kept))
                self._filled += kept
                self.lookups += kept
            if self._filled == _GROUP_LOOKUPS:
                self._hand_over()
            elif len(self._group) == 0:
                raise RuntimeError(f"{self._path}: writing the trace was interrupted")

    def wait(self) -> None:
        """Until all groups that are full have been written."""
        while self._on_their_way:
            self._written()

    def close(self) -> None:
        """Makes the file of what was written: it is complete, on the disk, or not there."""
        if self._is_over:
            return
        own = f".{self._path.name}.{os.getpid()}-{next(_serial)}.partial"
        partial = self._path.with_name(own)
        try:
            self._hand_over()
            self.wait()
            with self._errors_told():
                write_trace(
                    partial, self._is_arrow, self._tables, self._sample, self._id_type,
                    self._spool.groups(),
                )  # fmt: skip
                os.replace(partial, self._path)
                sync_directory(self._path.parent)
        finally:
            partial.unlink(missing_ok=True)
            self.abandon()

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
        if self._filled == 0:
            return
        group, filled, runs = self._group, self._filled, self._runs
        self._on_their_way.append(self._thread.submit(self._spooled, group, filled, runs))
        self._group, self._filled, self._runs = _NO_ROOM, 0, []
        if len(self._on_their_way) < _GROUPS_MAX:
            self._group = self._spool.new_group()
        else:
            self._group = self._written()

    def _spooled(self, group: Any, lookups: int, runs: list[Run]) -> Any:
        self._spool.append(group, lookups, runs)
        return group

    def _written(self) -> Any:
        """The first group that is on its way, once it has been written."""
        with self._errors_told():
            group = self._on_their_way[0].result()
        self._on_their_way.popleft()
        return group

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise OSError(f"{self._path}: cannot write: {error}") from error


@compiled
def _keep(
    ids: Any, padding: int, keeps_all: bool, key: Any, threshold: Any, out: Any
) -> tuple[int, int]:
    """Copies ids that are to be kept until all are looked at or `out` is full; how many of each."""
    if keeps_all and padding == _NO_ID:
        kept = min(len(ids), len(out))
        for j in range(kept):  # faster than slices, whose bounds are checked against each other
            out[j] = ids[j]
        return kept, kept
    kept = 0
    hashed = np.zeros(_HASHED_AT_ONCE, dtype=np.uint32)  # where all are kept it stays so
    for at in range(0, len(ids), _HASHED_AT_ONCE):
        part = ids[at : at + _HASHED_AT_ONCE]
        if not keeps_all:
            found = 0
            for j in range(len(part)):  # loops of their own become vector instructions
                hashed[j] = _hash(np.uint64(part[j]) ^ key)
            for j in range(len(part)):
                found += hashed[j] < threshold
            if found == 0:
                continue
        for j in range(len(part)):
            if hashed[j] < threshold and part[j] != padding:
                if kept == len(out):
                    return at + j, kept
                out[kept] = part[j]
                kept += 1
    return len(ids), kept


@compiled
def _hash(keyed: Any) -> Any:
    """Its high bits depend on all bits of the id. Of 32 bits: more products fit in a vector.
    Multipliers: C. Wellons, "Prospecting for Hash Functions", 2018."""
    h = np.uint32(keyed) + np.uint32(keyed >> np.uint64(32)) * np.uint32(0x9E3779B9)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    return np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0xD35A2D97))
