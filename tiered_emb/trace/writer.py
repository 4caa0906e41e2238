"""Writing traces: lookups are copied by the caller, and encoded and written by a thread."""

from __future__ import annotations

import itertools
import json
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from tiered_emb.compiled import compiled
from tiered_emb.data.hashing import mix64, text_key
from tiered_emb.files import sync_directory
from tiered_emb.trace.format import ARROW_SUFFIX, COLUMNS, METADATA, VERSION, Ids, TraceTable
from tiered_emb.trace.to_parquet import TABLES_MAX, to_parquet

_GROUP_LOOKUPS = 1 << 20
_GROUPS_MAX = 3  # one that is filled, others on their way to the file
_NARROW_ROWS = 1 << 31  # whose ids fit int32
_HASHED_AT_ONCE = 256
_NO_ROOM = np.empty(0, dtype=np.int64)
_NO_ID = int(np.iinfo(np.int64).min)
_serial = itertools.count()


class TraceWriter:
    """Writes a trace, which appears under its name when it is complete. Lookups are written in the
    Arrow form, which takes the least time; Parquet is made of it at the end.

    Args:
        path: of the file, Arrow's where it ends with ``.arrow`` and else Parquet; what is there is
            replaced.
        tables: by name, in the order of their rows among all.
        sample: the share of rows to keep, in (0, 1]. A row is kept or not by a hash of its id, with
            all of its lookups: spatial sampling (Waldspurger et al., "Efficient MRC construction
            with SHARDS", FAST 2015).
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
        own = f".{self._path.name}.{os.getpid()}-{next(_serial)}.partial"
        self._partial = self._path.with_name(own)
        self._is_over = False
        self._names = list(tables)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._keys = {name: np.uint64(text_key(name)) for name in self._names}
        self._keeps_all = sample == 1
        self._threshold = np.uint64(min(int(sample * 2.0**64), 2**64 - 1))
        about = {
            "version": VERSION,
            "sample": sample,
            "tables": {name: asdict(table) for name, table in tables.items()},
        }
        self._is_arrow = self._path.suffix == ARROW_SUFFIX
        if not self._is_arrow and len(tables) > TABLES_MAX:
            raise ValueError(
                f"{self._path}: {len(tables)} tables; a Parquet trace holds {TABLES_MAX}, one "
                "whose name ends with .arrow any number"
            )
        is_narrow = all(t.rows <= _NARROW_ROWS for t in tables.values())
        self._id_type: type[Any] = np.int32 if is_narrow else np.int64
        self._schema = _schema(self._id_type).with_metadata({METADATA: json.dumps(about)})
        self._sink = pa.OSFile(str(self._partial), "wb")
        try:
            self._file = pa.ipc.new_file(self._sink, self._schema)
        except BaseException:
            self._sink.close()
            self._partial.unlink(missing_ok=True)
            raise
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="trace")
        self._on_their_way: deque[Future[Any]] = deque()
        self._group = np.empty(_GROUP_LOOKUPS, dtype=self._id_type)
        self._filled = 0
        self._runs: list[tuple[int, int, int]] = []  # batch, table, lookups

    def write(self, batch: int, table: str, ids: Ids, padding: int | None = None) -> None:
        """The next lookups: of one batch and table, in order, but those of `padding`. `ids` is
        int32 or int64, within the table's rows, and may change after the call."""
        left_out = _NO_ID if padding is None else padding
        at = 0
        while at < len(ids):
            taken, kept = _keep(
                ids[at:], left_out, self._keeps_all, self._keys[table], self._threshold,
                self._group[self._filled :],
            )  # fmt: skip
            at += taken
            if kept > 0:
                self._runs.append((batch, self._numbers[table], kept))
                self._filled += kept
                self.lookups += kept
            if self._filled == len(self._group):
                self._hand_over()
                if len(self._group) == 0:
                    raise RuntimeError(f"{self._path}: writing the trace was interrupted")

    def wait(self) -> None:
        """Until all groups that are complete have been written."""
        while self._on_their_way:
            self._written()

    def close(self) -> None:
        """Completes the file, on the disk; removes it where that fails.

        Raises:
            OSError: it could not be written. If only making Parquet failed, what was recorded is
                there in the Arrow form: beside `path`, with ``.arrow`` after its name.
        """
        if self._is_over:
            return
        try:
            self._hand_over()
            self.wait()
            self._encoder.shutdown()
            self._file.close()
            os.fsync(self._sink.fileno())
            self._sink.close()
            if not self._is_arrow:
                self._make_parquet()
            os.replace(self._partial, self._path)
            sync_directory(self._path.parent)
            self._is_over = True
        except BaseException:
            self.abandon()
            raise

    def _make_parquet(self) -> None:
        parquet = self._partial.with_suffix(".parquet.partial")
        try:
            to_parquet(self._partial, parquet)
            os.replace(parquet, self._partial)
        except BaseException as error:
            parquet.unlink(missing_ok=True)
            kept = self._path.with_name(self._path.name + ARROW_SUFFIX)
            os.replace(self._partial, kept)
            if isinstance(error, OSError | pa.ArrowException):
                raise OSError(
                    f"{self._path}: cannot write, but all is in {kept}: {error}"
                ) from error
            raise

    def abandon(self) -> None:
        """Removes what was written."""
        if self._is_over:
            return
        self._is_over = True
        self._encoder.shutdown(cancel_futures=True)
        with suppress(OSError, pa.ArrowException):
            self._file.close()
        with suppress(OSError, pa.ArrowException):
            self._sink.close()
        self._partial.unlink(missing_ok=True)

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
        lookups = self._group[: self._filled]
        self._on_their_way.append(self._encoder.submit(self._encode, lookups, self._runs))
        self._group, self._filled, self._runs = _NO_ROOM, 0, []
        if len(self._on_their_way) < _GROUPS_MAX:
            self._group = np.empty(_GROUP_LOOKUPS, dtype=self._id_type)
        else:
            written = self._written()
            self._group = written if written.base is None else written.base

    def _written(self) -> Any:
        """The ids of the first group that is on its way, once it has been written."""
        try:
            ids = self._on_their_way[0].result()
        except (OSError, pa.ArrowException) as error:
            raise OSError(f"{self._path}: cannot write: {error}") from error
        self._on_their_way.popleft()
        return ids

    def _encode(self, ids: Any, runs: list[tuple[int, int, int]]) -> Any:
        batch, table, counts = np.array(runs, dtype=np.int64).T
        ends = pa.array(np.cumsum(counts), pa.int32())
        columns = [
            pa.RunEndEncodedArray.from_arrays(ends, pa.array(batch)),
            pa.RunEndEncodedArray.from_arrays(ends, pa.array(self._names).take(pa.array(table))),
            pa.array(ids),
        ]
        self._file.write(pa.Table.from_arrays(columns, schema=self._schema))
        self._settle()
        return ids

    def _settle(self) -> None:
        """Sends what was written to the disk and out of the page cache, whose pages are used again:
        new ones would cost more than encoding. The end then does not wait for all of it either."""
        os.fdatasync(self._sink.fileno())
        os.posix_fadvise(self._sink.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _schema(id_type: type[Any]) -> pa.Schema:
    types = (
        pa.run_end_encoded(pa.int32(), pa.int64()),
        pa.run_end_encoded(pa.int32(), pa.string()),
        pa.from_numpy_dtype(id_type),
    )
    return pa.schema([pa.field(*named, False) for named in zip(COLUMNS, types, strict=True)])


_mix = compiled(mix64)


@compiled
def _keep(
    ids: Any, padding: int, keeps_all: bool, key: Any, threshold: Any, out: Any
) -> tuple[int, int]:
    """Copies ids that are to be kept until all are looked at or `out` is full; how many of each."""
    if keeps_all and padding == _NO_ID:
        kept = min(len(ids), len(out))
        out[:kept] = ids[:kept]
        return kept, kept
    kept = 0
    hashed = np.zeros(_HASHED_AT_ONCE, dtype=np.uint64)  # where all are kept it stays so
    for at in range(0, len(ids), _HASHED_AT_ONCE):
        part = ids[at : at + _HASHED_AT_ONCE]
        if not keeps_all:
            found = 0
            for j in range(len(part)):  # loops of their own become vector instructions
                hashed[j] = _mix(np.uint64(part[j]) ^ key)
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
