"""Traces from data files: what a model would look up that trained on their samples in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiered_emb.data.criteo_format import has_criteo_columns
from tiered_emb.data.criteo_stream import CriteoStream
from tiered_emb.data.errors import DataError
from tiered_emb.data.hashing import hashed_rows, number_keys, text_keys
from tiered_emb.data.parquet import ParquetSource, is_parquet
from tiered_emb.trace.format import Ids, TraceTable
from tiered_emb.trace.reader import errors_of
from tiered_emb.trace.writer import TraceWriter

Progress = Callable[[int], object]
_SCAN_ROWS = 1 << 18
_ROWS_MAX = 1 << 48


def trace_of_data(
    data: Path,
    out: Path,
    *,
    columns: Sequence[str] | None = None,
    batch_size: int = 2048,
    hash_rows: int | None = None,
    sample: float = 1.0,
    progress: Progress = lambda samples: None,
) -> tuple[int, int]:
    """Writes the trace of a Parquet file or a Criteo log; how many samples and lookups it has.

    Args:
        columns: a table for each: of integers (ids as they are), of lists of integers (bags), or,
            with `hash_rows`, of any integers and text. None: C1 to C26 of a Criteo log.
        batch_size: samples a batch.
        hash_rows: rows of every table, to which all values are hashed (`tiered_emb.data.hashing`);
            None: ids are taken as they are, and a table has rows up to the highest.
        sample: see `TraceWriter`.
        progress: told how many more samples are done.

    Raises:
        DataError: of the data or an argument, in one line.
        OSError: the trace could not be written.
    """
    for name, number in (("--batch-size", batch_size), ("--hash-rows", hash_rows)):
        if number is not None and not 1 <= number <= _ROWS_MAX:
            raise DataError(f"{name} {number}: must be from 1 to {_ROWS_MAX}")
    if not 0 < sample <= 1:
        raise DataError(f"--sample {sample}: must be above 0 and at most 1")
    try:
        parquet = is_parquet(data)
    except OSError as error:
        raise DataError(f"{data}: cannot read: {error.strerror}") from error
    if columns is None:
        if parquet and not has_criteo_columns(ParquetSource(data).types()):
            raise DataError(f"{data}: name the columns of ids with --columns")
        return _of_criteo(data, out, batch_size, hash_rows, sample, progress)
    if not parquet:
        raise DataError(f"{data}: --columns is for a Parquet file")
    return _of_parquet(data, out, columns, batch_size, hash_rows, sample, progress)


def _of_criteo(
    data: Path, out: Path, batch_size: int, hash_rows: int | None, sample: float, progress: Progress
) -> tuple[int, int]:
    if hash_rows is None:
        raise DataError(f"{data}: a Criteo log needs --hash-rows, the rows of each table")
    stream = CriteoStream(data, batch_size, hash_rows)
    samples = 0
    with TraceWriter(out, {n: TraceTable(rows) for n, rows in stream.tables.items()}, sample) as to:
        for number, batch in enumerate(stream):
            for name, ids in batch.sparse.items():
                assert not isinstance(ids, tuple)
                to.write(number, name, ids.numpy())
            samples += len(batch.labels)
            progress(len(batch.labels))
        _check_any(data, to)
    return samples, to.lookups


def _of_parquet(
    data: Path,
    out: Path,
    columns: Sequence[str],
    batch_size: int,
    hash_rows: int | None,
    sample: float,
    progress: Progress,
) -> tuple[int, int]:
    rows = _rows_of(data, columns, hash_rows)
    samples = 0
    with (
        TraceWriter(out, {name: TraceTable(count) for name, count in rows.items()}, sample) as to,
        closing(_parts(data, columns, batch_size, hash_rows)) as parts,
    ):
        for number, (count, part) in enumerate(parts):
            for name, ids in zip(columns, part, strict=True):
                to.write(number, name, ids)
            samples += count
            progress(count)
        _check_any(data, to)
    return samples, to.lookups


def _rows_of(data: Path, columns: Sequence[str], hash_rows: int | None) -> dict[str, int]:
    """The rows of each column's table, once the file has been found to have it."""
    rows = dict.fromkeys(columns, hash_rows or 0)
    with errors_of(data), pq.ParquetFile(data) as file:
        for name in columns:
            _check_column(data, file.schema_arrow, name, hash_rows is not None)
        if len(rows) < len(columns):
            raise DataError(f"{data}: a column is named twice in --columns")
        if hash_rows is not None:
            return rows
        for part in file.iter_batches(_SCAN_ROWS, columns=list(columns)):
            for name in columns:
                ends = pc.min_max(_values(data, part, name)).as_py()
                if ends["min"] is None:
                    continue
                if ends["min"] < 0 or ends["max"] >= _ROWS_MAX:
                    bad = ends["min"] if ends["min"] < 0 else ends["max"]
                    raise DataError(
                        f"{data}: column {name!r}: {bad} is no id of a table; --hash-rows "
                        "makes ids of any values"
                    )
                rows[name] = max(rows[name], ends["max"] + 1)
    return rows


def _parts(
    data: Path, columns: Sequence[str], batch_size: int, hash_rows: int | None
) -> Generator[tuple[int, list[Ids]]]:
    """Of each batch how many samples it has, and the ids of each column."""
    with errors_of(data), pq.ParquetFile(data) as file:
        for part in _batches(file, columns, batch_size):
            yield part.num_rows, [_ids(data, part, name, hash_rows) for name in columns]


def _check_any(data: Path, written: TraceWriter) -> None:
    if written.lookups == 0:
        raise DataError(f"{data}: there are no lookups to write")


def _batches(
    file: pq.ParquetFile, columns: Sequence[str], batch_size: int
) -> Iterator[pa.RecordBatch]:
    """Of exactly so many samples, but for the last: pieces of a file end where row groups do."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for part in file.iter_batches(max(batch_size, _SCAN_ROWS), columns=list(columns)):
        at = 0
        while part.num_rows - at >= batch_size - count:
            taken = batch_size - count
            whole = [*waiting, part.slice(at, taken)]
            yield _joined(whole)
            waiting, count, at = [], 0, at + taken
        if at < part.num_rows:
            waiting.append(part.slice(at))
            count += part.num_rows - at
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(parts) == 1:
        return parts[0]
    return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def _check_column(data: Path, schema: pa.Schema, name: str, hashed: bool) -> None:
    if schema.names.count(name) > 1:
        raise DataError(f"{data}: there are several columns {name!r}")
    if name not in schema.names:
        raise DataError(f"{data}: no column {name!r}; there is: {', '.join(schema.names)}")
    kind = schema.field(name).type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_integer(inner):
        return
    text = pa.types.is_dictionary(inner) and pa.types.is_string(inner.value_type)
    if not (text or pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise DataError(f"{data}: column {name!r} is of type {kind}; expected integers or text")
    if not hashed:
        raise DataError(f"{data}: column {name!r} is text: --hash-rows says to how many rows")


def _values(data: Path, part: pa.RecordBatch, name: str) -> pa.Array:
    """The values of a column, those of lists one after another."""
    column = part.column(name)
    if column.null_count:
        raise DataError(f"{data}: column {name!r} has empty places")
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    if column.null_count:
        raise DataError(f"{data}: column {name!r} has empty places")
    return column


def _ids(data: Path, part: pa.RecordBatch, name: str, hash_rows: int | None) -> Ids:
    values = _values(data, part, name)
    if hash_rows is None:
        ids: Ids = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return ids
    if pa.types.is_integer(values.type):
        keys = number_keys(values.to_numpy(zero_copy_only=False))
        return hashed_rows(keys, name, hash_rows)
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    keys = text_keys(values.dictionary.to_pylist())
    rows: Ids = hashed_rows(keys, name, hash_rows)[
        values.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    ]
    return rows
