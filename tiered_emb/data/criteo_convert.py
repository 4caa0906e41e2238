"""Criteo TSV files to Parquet, as a stream: one thread reads, one parses, one encodes.

Columns: label (int8), I1..I13 (int32) and C1..C26 (uint32), null where a field is empty. A value of
more than 32 bits, which the real logs do not have, makes the conversion start again with int64 and
uint64. A column gets a dictionary in each row group where that takes at most 32 KiB; other values
are stored plainly, since hashed categories do not compress. Ids hashed from the Parquet file are
those of the TSV files.

Memory: three row groups (some 150 MB of the default size) and three blocks of text.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiered_emb.data.criteo import Block, CriteoSource, Parsed
from tiered_emb.data.criteo_format import CATEGORIES, INTEGERS
from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Column
from tiered_emb.data.pipeline import in_order
from tiered_emb.files import sync_directory

COMPRESSIONS = ("none", "lz4", "zstd")
_DICTIONARY_BYTES_MAX = 32 << 10
_WRITE_BATCH_ROWS = 1 << 16
_GROUPS_WAITING_MAX = 2

Progress = Callable[[int], object]


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert.

    Args:
        skip_bad_lines: count malformed lines and leave them out.
        compression: one of `COMPRESSIONS`, of every page.
        group_rows: rows of a row group.
    """

    skip_bad_lines: bool = False
    compression: str = "none"
    group_rows: int = 1 << 18


@dataclass(frozen=True)
class Converted:
    """What a conversion came to: rows, empty fields, lines left out, and the size of the file."""

    samples: int
    missing: int
    bad_lines: int
    output_bytes: int


def convert(
    inputs: Sequence[Path],
    output: Path,
    options: ConvertOptions | None = None,
    progress: Progress = lambda read_bytes: None,
) -> Converted:
    """Writes the lines of TSV files (gzipped or not), in order, to one Parquet file.

    The output appears, or is replaced, once it is complete and on the disk. Until then it grows
    under another name beside it, which a run that fails or is interrupted removes.

    Args:
        progress: is told how many bytes of the inputs were read since it was last told; a negative
            number if it starts again. What it raises ends the conversion.

    Raises:
        DataError: a malformed line, with file and line number; a damaged or empty input; an output
            that cannot be written.
    """
    options = options or ConvertOptions()
    partial_output = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        try:
            return _convert(inputs, output, partial_output, options, progress, wide=False)
        except _TooWideError:
            return _convert(inputs, output, partial_output, options, progress, wide=True)
    finally:
        partial_output.unlink(missing_ok=True)


class _TooWideError(Exception):
    """A value needs 64 bits."""


def _convert(
    inputs: Sequence[Path],
    output: Path,
    partial_output: Path,
    options: ConvertOptions,
    progress: Progress,
    wide: bool,
) -> Converted:
    samples = missing = bad_lines = read_bytes = 0

    def count_bytes(more: int) -> None:
        nonlocal read_bytes
        read_bytes += more
        progress(more)

    with _Writer(partial_output, output, options, _schema(wide)) as writer:
        for path in inputs:
            source = CriteoSource(path, options.skip_bad_lines)
            work = partial(_arrow, source, wide)
            for parsed, batch in in_order(source.blocks(count_bytes), work, workers=1):
                if parsed.wide and not wide:
                    progress(-read_bytes)
                    raise _TooWideError
                samples += batch.num_rows
                missing += parsed.missing
                bad_lines += parsed.bad_lines
                writer.add(batch)
        if samples == 0:
            raise DataError(f"{', '.join(map(str, inputs))}: no samples")
        return Converted(samples, missing, bad_lines, writer.publish())


def _schema(wide: bool) -> pa.Schema:
    integer, category = (pa.int64(), pa.uint64()) if wide else (pa.int32(), pa.uint32())
    return pa.schema(
        [
            pa.field("label", pa.int8(), nullable=False),
            *(pa.field(name, integer) for name in INTEGERS),
            *(pa.field(name, category) for name in CATEGORIES),
        ]
    )


def _arrow(source: CriteoSource, wide: bool, block: Block) -> tuple[Parsed, pa.RecordBatch]:
    parsed = source.parse(block, wide)
    arrays = [_array(column) for column in parsed.frame.values()]
    return parsed, pa.RecordBatch.from_arrays(arrays, schema=_schema(parsed.wide))


def _array(column: Column) -> pa.Array:
    """The column without a copy of its values."""
    bits = None
    if column.valid is not None:
        bits = pa.py_buffer(np.packbits(column.valid, bitorder="little"))
    values = column.values
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(values)])


class _Writer:
    """A Parquet file that encodes row groups in a thread while the next is gathered."""

    def __init__(
        self, partial_output: Path, output: Path, options: ConvertOptions, schema: pa.Schema
    ) -> None:
        self._partial = partial_output
        self._output = output
        self._group_rows = options.group_rows
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._encoder = ThreadPoolExecutor(1)
        self._encoding: deque[Future[Any]] = deque()
        with self._errors():
            self._file = pa.OSFile(str(partial_output), "wb")
            self._parquet = pq.ParquetWriter(
                self._file,
                schema,
                compression=options.compression,
                dictionary_pagesize_limit=_DICTIONARY_BYTES_MAX,
                write_batch_size=_WRITE_BATCH_ROWS,
                write_statistics=False,
            )

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._encoder.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):  # published already, or failed with a better message
            self._parquet.close()
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Appends rows."""
        self._held.append(batch)
        self._held_rows += batch.num_rows
        while self._held_rows >= self._group_rows:
            self._encode(self._group_rows)

    def publish(self) -> int:
        """Ends the file and gives it its name; gives its size in bytes."""
        if self._held_rows:
            self._encode(self._held_rows)
        with self._errors():
            self._wait(0)
            self._parquet.close()
            self._file.close()
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            os.replace(self._partial, self._output)
            sync_directory(self._output.parent)
        return size

    def _encode(self, rows: int) -> None:
        table = pa.Table.from_batches(self._held)
        self._held = table.slice(rows).to_batches()
        self._held_rows -= rows
        with self._errors():
            self._wait(_GROUPS_WAITING_MAX - 1)
        write = partial(self._parquet.write_table, table.slice(0, rows), row_group_size=rows)
        self._encoding.append(self._encoder.submit(write))

    def _wait(self, groups: int) -> None:
        """Until at most so many groups wait to be encoded."""
        while len(self._encoding) > groups:
            self._encoding.popleft().result()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise DataError(f"{self._output}: cannot write: {reason}") from error
