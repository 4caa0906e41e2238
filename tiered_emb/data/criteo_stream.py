"""Criteo click logs of any size as a stream of training batches.

Files are read block by block, in order; one thread reads and unzips, others parse and hash, and
the batches are the same whatever their number. At most ``workers + 2`` blocks of 8 MiB of text are
in memory. Nothing is shuffled and nothing is fitted to the data, so one pass is enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tiered_emb.data.criteo import Block, CriteoSource
from tiered_emb.data.criteo_format import CATEGORIES, COLUMNS, INTEGERS, has_criteo_columns
from tiered_emb.data.dataset import BagInput, Batch
from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Column, Frame, Mask
from tiered_emb.data.hashing import Ids, text_key
from tiered_emb.data.parquet import ParquetSource, is_parquet
from tiered_emb.data.pipeline import in_order

_PARQUET_ROWS = 1 << 14

Floats = npt.NDArray[np.float32]
Rows = int | Sequence[int] | Mapping[str, int]


@dataclass(frozen=True)
class _Samples:
    """Samples: dense float32 [n, 13], ids int64 [26, n], labels float32 [n]; and lines left out."""

    dense: Floats
    ids: Ids
    labels: Floats
    bad_lines: int = 0

    def part(self, first: int, end: int) -> _Samples:
        return _Samples(self.dense[first:end], self.ids[:, first:end], self.labels[first:end])

    def batch(self) -> Batch:
        ids = torch.from_numpy(self.ids).unbind()
        sparse: dict[str, BagInput] = dict(zip(CATEGORIES, ids, strict=True))
        return Batch(torch.from_numpy(self.dense), sparse, torch.from_numpy(self.labels))


_Task = Callable[[], _Samples]


class CriteoStream(IterableDataset[Batch]):
    """The samples of Criteo logs, in the order of the files, as `Batch` after `Batch`.

    Each batch has ``dense``, float32 [batch, 13]: log(1 + max(x, 0)) of the integers, 0 where
    missing; ``sparse``, for each of C1..C26 the int64 ids [batch], hashed to ``[0, rows)`` as
    `tiered-emb train` hashes them, where a missing value is a value like others; ``labels``,
    float32 [batch]. The last batch may be smaller.

    After a pass, ``bad_lines`` says how many lines that pass left out.

    In a `DataLoader` (with ``batch_size=None``, since batches are made here) each worker process
    takes a share of the samples: every n-th file if there are as many files as processes, else
    every n-th block of all files, whose lines the others only count. Each sample comes once; the
    batches are others than without worker processes, which count their own ``bad_lines``.

    Args:
        paths: one or more files: TSV, gzipped or not, or Parquet of `tiered-emb convert-data`.
        batch_size: samples a batch.
        rows: of the tables: one number for all, one for each, or by name.
        workers: threads that parse and hash.
        skip_bad_lines: count malformed lines and go on.

    Raises:
        DataError: at once for a file that is absent, a wrong column or a number below 1; during
            iteration for a malformed line, with file and line number, or a damaged file.

    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "day_0")
    >>> with open(path, "w") as file:
    ...     _ = file.write("1" + "\\t7" * 13 + "\\t68fd1e64" * 26 + "\\n")
    >>> stream = CriteoStream(path, batch_size=2048, rows=1000)
    >>> batch = next(iter(stream))
    >>> batch.dense.shape, batch.sparse["C1"].dtype, batch.labels.tolist()
    (torch.Size([1, 13]), torch.int64, [1.0])
    >>> stream.tables["C26"]
    1000
    >>> folder.cleanup()
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        batch_size: int,
        rows: Rows,
        workers: int = 1,
        skip_bad_lines: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise DataError(f"{name} is {value}; expected 1 or more")
        several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not several:
            raise DataError("no files")
        self.tables = _tables(rows)
        self.bad_lines = 0
        self._paths = [Path(path) for path in several]
        self._batch_size = batch_size
        self._workers = workers
        self._skip = skip_bad_lines
        for path in self._paths:
            self._open(path)

    def __iter__(self) -> Iterator[Batch]:
        self.bad_lines = 0
        held: list[_Samples] = []
        count = 0
        for samples in in_order(self._tasks(), _call, self._workers):
            self.bad_lines += samples.bad_lines
            held.append(samples)
            count += len(samples.labels)
            if count < self._batch_size:
                continue
            whole = _joined(held)
            rest = count % self._batch_size
            for first in range(0, count - rest, self._batch_size):
                yield whole.part(first, first + self._batch_size).batch()
            held, count = [whole.part(count - rest, count)], rest
        if count:
            yield _joined(held).batch()

    def _tasks(self) -> Iterator[_Task]:
        """What gives the samples of each block that is this process's share."""
        info = get_worker_info()
        share, shares = (0, 1) if info is None else (info.id, info.num_workers)
        by_file = len(self._paths) >= shares
        paths = self._paths[share::shares] if by_file else self._paths
        tasks = (task for path in paths for task in self._tasks_of(path))
        return tasks if by_file else islice(tasks, share, None, shares)

    def _tasks_of(self, path: Path) -> Iterator[_Task]:
        source = self._open(path)
        if isinstance(source, CriteoSource):
            for block in source.blocks():
                yield partial(self._parse, source, block)
        else:
            row = 0
            for frame in source.chunks(COLUMNS):
                yield partial(self._encode, frame, f"{path}: row {row:,} and after")
                row += len(frame["label"])

    def _open(self, path: Path) -> CriteoSource | ParquetSource:
        try:
            if not is_parquet(path):
                return CriteoSource(path, self._skip)
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from error
        source = ParquetSource(path, chunk_rows=_PARQUET_ROWS)
        if not has_criteo_columns(source.types()):
            found = ", ".join(list(source.types())[:5])
            raise DataError(
                f"{path}: expected integer columns label, I1 to I13 and C1 to C26, as "
                f"tiered-emb convert-data writes them; it has {found}, ..."
            )
        return source

    def _parse(self, source: CriteoSource, block: Block) -> _Samples:
        parsed = source.parse(block)
        return replace(self._encode(parsed.frame, source.name), bad_lines=parsed.bad_lines)

    def _encode(self, frame: Frame, where: str) -> _Samples:
        # Numba is slow to import, and not every user of this package streams.
        from tiered_emb.data.criteo_kernels import hash_column, log_column

        label = frame["label"].numbers("label")
        if not ((label == 0) | (label == 1)).all():
            raise DataError(f"{where}: a label is neither 0 nor 1")
        dense = np.empty((len(label), len(INTEGERS)), dtype=np.float32)
        for column, name in enumerate(INTEGERS):
            log_column(*_values_and_valid(frame[name]), dense[:, column])
        ids = np.empty((len(CATEGORIES), len(label)), dtype=np.int64)
        for table, (name, rows) in enumerate(self.tables.items()):
            salt = np.uint64(text_key(name))
            hash_column(*_values_and_valid(frame[name]), salt, np.uint64(rows), ids[table])
        return _Samples(dense, ids, label.astype(np.float32))


def _tables(rows: Rows) -> dict[str, int]:
    """Rows by table, in the order of the columns."""
    if isinstance(rows, Mapping):
        if set(rows) != set(CATEGORIES):
            raise DataError("rows must have exactly the keys C1 to C26")
        counts = [rows[name] for name in CATEGORIES]
    else:
        counts = [rows] * len(CATEGORIES) if isinstance(rows, int) else list(rows)
    if len(counts) != len(CATEGORIES):
        raise DataError(f"rows has {len(counts)} numbers; expected 26, or one for all tables")
    if min(counts) < 1:
        raise DataError(f"rows has a {min(counts)}; expected 1 or more")
    return dict(zip(CATEGORIES, counts, strict=True))


def _values_and_valid(column: Column) -> tuple[npt.NDArray[np.generic], Mask]:
    values = column.values
    return values, np.ones(len(values), np.bool_) if column.valid is None else column.valid


def _call(task: _Task) -> _Samples:
    return task()


def _joined(parts: list[_Samples]) -> _Samples:
    if len(parts) == 1:
        return parts[0]
    return _Samples(
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.ids for part in parts], axis=1),
        np.concatenate([part.labels for part in parts]),
    )
