"""Reading traces, as a stream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tiered_emb.data.errors import DataError
from tiered_emb.data.parquet import is_parquet
from tiered_emb.trace.format import COLUMNS, METADATA, VERSION, Ids, TraceTable

_READ_LOOKUPS = 1 << 20
_CSV_BLOCK_BYTES = 16 << 20
_ARROW_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class Lookups:
    """A piece of a trace: of each lookup its batch, and its row among those of all tables."""

    batch: Ids
    row: Ids


class Trace:
    """A trace to be read, as often as wanted. Rows of all tables are numbered one table after
    another, in the order of `tables`.

    Args:
        path: a trace file; or any Parquet, Arrow IPC or CSV file of lookups in order, with a column
            `id` of integers and, if there are several tables, a column `table`. Such a file is read
            once to find its tables: up to their highest ids.
        batch_lookups: lookups of a batch where the file has no column `batch`.

    Raises:
        DataError: it is none, is damaged or is empty, in one line.
    """

    def __init__(self, path: str | os.PathLike[str], batch_lookups: int = 1024) -> None:
        self.path = Path(path)
        self._batch_lookups = batch_lookups
        with errors_of(self.path):
            self._kind = _kind_of(self.path)
            schema = self._schema()
            about = _about(self.path, schema)
            self._columns = _wanted_columns(self.path, schema)
        # A recorded trace numbers its batches; those of which no row was sampled are missing.
        self.has_batch_numbers = about is not None
        if about is not None:
            with errors_of(self.path):
                self.lookups = self._length()
            self.sample: float = about["sample"]
            self.tables = {name: TraceTable(**table) for name, table in about["tables"].items()}
        else:
            self.sample = 1.0
            self.lookups, self.tables = self._scan()
        if self.lookups == 0:
            raise DataError(f"{self.path}: there are no lookups in it")
        self._first_row: dict[str, int] = {}
        first = 0
        for name, table in self.tables.items():
            self._first_row[name] = first
            first += table.rows
        if first >= 1 << 63:
            raise DataError(f"{self.path}: ids up to {first - 1}; there are no such tables")

    @property
    def total_rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.tables.values())

    def pieces(self) -> Iterator[Lookups]:
        """All lookups in order, a million at a time; a batch may be cut."""
        done, last = 0, 0
        for piece in self._pieces():
            batch = piece.batch
            if batch is None:
                batch = np.arange(done, done + len(piece.ids), dtype=np.int64)
                batch //= self._batch_lookups
            falls = np.flatnonzero(np.diff(batch, prepend=last if done else batch[:1]) < 0)
            if len(falls):
                at = int(falls[0])
                raise DataError(
                    f"{self.path}: lookup {done + at}: batch {batch[at]} comes after batch "
                    f"{batch[at - 1] if at else last}; a trace is in the order of its batches"
                )
            self._check_ids(piece, done)
            first = np.array([self._first_row[name] for name in piece.names], dtype=np.int64)
            yield Lookups(batch, first[piece.table] + piece.ids)
            done, last = done + len(piece.ids), int(batch[-1])

    def _check_ids(self, piece: _Piece, done: int) -> None:
        for name in piece.names:
            if name not in self.tables:
                raise DataError(f"{self.path}: table {name!r} is not in the trace's metadata")
        rows = np.array([self.tables[name].rows for name in piece.names], dtype=np.int64)
        bad = np.flatnonzero((piece.ids < 0) | (piece.ids >= rows[piece.table]))
        if len(bad) == 0:
            return
        name = piece.names[int(piece.table[bad[0]])]
        raise DataError(
            f"{self.path}: lookup {done + int(bad[0])}: table {name!r}: id {piece.ids[bad[0]]} is "
            f"not in [0, {self.tables[name].rows})"
        )

    def _scan(self) -> tuple[int, dict[str, TraceTable]]:
        """How many lookups a file has that does not tell, and of which tables."""
        lookups, rows = 0, dict[str, int]()
        for piece in self._pieces():
            lookups += len(piece.ids)
            highest = np.full(len(piece.names), -1, dtype=np.int64)
            np.maximum.at(highest, piece.table, piece.ids)
            used = np.unique(piece.table)  # a dictionary may hold names that do not occur
            for number in used.tolist():
                name = piece.names[number]
                rows[name] = max(rows.get(name, 0), int(highest[number]) + 1)
        return lookups, {name: TraceTable(count) for name, count in rows.items()}

    def _pieces(self) -> Iterator[_Piece]:
        with errors_of(self.path):
            for part in self._record_batches():
                if part.num_rows > 0:
                    yield _piece_of(self.path, part)

    def _schema(self) -> pa.Schema:
        if self._kind == "parquet":
            return pq.read_schema(self.path)
        if self._kind == "arrow":
            with pa.OSFile(str(self.path)) as source, pa.ipc.open_file(source) as file:
                return file.schema
        return self._open_csv().schema

    def _length(self) -> int:
        if self._kind == "parquet":
            return int(pq.read_metadata(self.path).num_rows)
        # Only the pages that say how long a batch is are read.
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as file:
            return sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))

    def _record_batches(self) -> Iterator[pa.RecordBatch]:
        if self._kind == "parquet":
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(_READ_LOOKUPS, columns=self._columns)
        elif self._kind == "arrow":
            with pa.OSFile(str(self.path)) as source, pa.ipc.open_file(source) as file:
                for i in range(file.num_record_batches):
                    batch = file.get_batch(i).select(self._columns)
                    batch.validate(full=True)
                    for at in range(0, batch.num_rows, _READ_LOOKUPS):
                        yield batch.slice(at, _READ_LOOKUPS)
        else:
            yield from self._open_csv(self._columns)

    def _open_csv(self, columns: Sequence[str] | None = None) -> pa.csv.CSVStreamingReader:
        types = {"batch": pa.int64(), "table": pa.string(), "id": pa.int64()}
        return pa.csv.open_csv(
            self.path,
            read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            convert_options=pa.csv.ConvertOptions(
                column_types=types, include_columns=columns, strings_can_be_null=True
            ),
        )


@dataclass(frozen=True)
class _Piece:
    """Of each lookup its table, as a place in `names`, its id and its batch, if the file has it."""

    names: list[str]
    table: Ids
    ids: Ids
    batch: Ids | None


def _piece_of(path: Path, part: pa.RecordBatch) -> _Piece:
    columns = {
        name: _runs_of(column) for name, column in zip(part.schema.names, part.columns, strict=True)
    }
    for name, (values, _) in columns.items():
        if values.null_count:
            raise DataError(f"{path}: column {name!r} has empty places")
    ids = _integers(*columns["id"])
    names, table = ["table"], np.zeros(len(ids), dtype=np.int64)
    if "table" in columns:
        texts, lengths = columns["table"]
        if not pa.types.is_dictionary(texts.type):
            texts = texts.cast(pa.string()).dictionary_encode()
        elif texts.dictionary.null_count:
            raise DataError(f"{path}: column 'table' has a name that is empty")
        names = [str(name) for name in texts.dictionary.to_pylist()]
        table = _integers(texts.indices, lengths)
    batch = _integers(*columns["batch"]) if "batch" in columns else None
    return _Piece(names, table, ids, batch)


def _runs_of(column: pa.Array) -> tuple[pa.Array, Ids | None]:
    """The values of a column, and how often each occurs where it is encoded in runs."""
    if not pa.types.is_run_end_encoded(column.type):
        return column, None
    first, runs = column.find_physical_offset(), column.find_physical_length()
    ends = column.run_ends.slice(first, runs).to_numpy().astype(np.int64) - column.offset
    lengths = np.diff(np.minimum(ends, len(column)), prepend=0)
    return column.values.slice(first, runs), lengths


def _integers(values: pa.Array, lengths: Ids | None) -> Ids:
    numbers: Ids = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return numbers if lengths is None else np.repeat(numbers, lengths)


def _wanted_columns(path: Path, schema: pa.Schema) -> list[str]:
    if "id" not in schema.names:
        raise DataError(f"{path}: no column 'id'; there is: {', '.join(schema.names)}")
    for name in COLUMNS:
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: there are several columns {name!r}")
    for name in ("id", "batch"):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        if not pa.types.is_integer(kind):
            raise DataError(f"{path}: column {name!r} is of type {kind}; expected integers")
    return [name for name in COLUMNS if name in schema.names]


def _kind_of(path: Path) -> str:
    if is_parquet(path):
        return "parquet"
    with path.open("rb") as file:
        return "arrow" if file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC else "csv"


def _about(path: Path, schema: pa.Schema) -> dict[str, Any] | None:
    text = (schema.metadata or {}).get(METADATA)
    if text is None:
        return None
    try:
        about: dict[str, Any] = json.loads(text)
        version = about["version"]
        if version != VERSION:
            raise DataError(f"{path}: a trace of version {version}; this release reads {VERSION}")
        tables = {name: TraceTable(**table) for name, table in about["tables"].items()}
        if not 0 < about["sample"] <= 1 or any(table.rows < 0 for table in tables.values()):
            raise ValueError("a number is out of range")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: the trace's metadata are damaged: {error}") from error
    return about


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read becomes a `DataError` of one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot read: {' '.join(said.split())}") from error
