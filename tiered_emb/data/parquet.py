"""Parquet files as a source of columns: numbers, text, booleans, times, and lists of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Column, ColumnType, Frame, Kind
from tiered_emb.data.hashing import Ids, text_keys

_CHUNK_ROWS = 1 << 18
_MAGIC = b"PAR1"


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet by its first bytes or its name. `OSError`: it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC or path.suffix == ".parquet"


class ParquetSource:
    """A Parquet file as a `Source`. `types` leaves out columns that cannot be used.

    Args:
        chunk_rows: how many rows are read at a time.
        cheap_to_rescan: False to have every column hashed, as those of a source read only once.
    """

    def __init__(
        self, path: Path, chunk_rows: int = _CHUNK_ROWS, cheap_to_rescan: bool = True
    ) -> None:
        self.name = str(path)
        self.cheap_to_rescan = cheap_to_rescan
        self._chunk_rows = chunk_rows
        pq = _import_parquet()
        try:
            self._file = pq.ParquetFile(path)
        except Exception as error:
            raise DataError(f"{path}: not a readable Parquet file: {_first_line(error)}") from error
        self._types: dict[str, ColumnType] = {}
        for field in self._file.schema_arrow:
            column_type = _column_type(field.type)
            if column_type is not None:
                self._types[field.name] = column_type

    def types(self) -> Mapping[str, ColumnType]:
        """Every usable column and its type, in file order."""
        return self._types

    def chunks(self, columns: Sequence[str]) -> Iterator[Frame]:
        """The rows in file order, `chunk_rows` at a time."""
        batches = self._file.iter_batches(batch_size=self._chunk_rows, columns=list(columns))
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                frame = {name: _column(batch.column(name)) for name in columns}
            except OSError as error:
                raise DataError(f"{self.name}: damaged: {_first_line(error)}") from error
            yield frame


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow.parquet


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _column_type(arrow_type: Any) -> ColumnType | None:
    import pyarrow.types as pt

    if pt.is_dictionary(arrow_type):
        return _column_type(arrow_type.value_type)
    if pt.is_list(arrow_type) or pt.is_large_list(arrow_type):
        inner = _column_type(arrow_type.value_type)
        return None if inner is None or inner.is_list else ColumnType(inner.kind, is_list=True)
    if pt.is_integer(arrow_type) or pt.is_boolean(arrow_type) or pt.is_temporal(arrow_type):
        return None if pt.is_interval(arrow_type) else ColumnType(Kind.INTEGER)
    if pt.is_floating(arrow_type) or pt.is_decimal(arrow_type):
        return ColumnType(Kind.FLOAT)
    if pt.is_string(arrow_type) or pt.is_large_string(arrow_type) or pt.is_binary(arrow_type):
        return ColumnType(Kind.TEXT)
    return None


def _column(array: Any) -> Column:
    import pyarrow as pa
    import pyarrow.types as pt

    if pt.is_list(array.type) or pt.is_large_list(array.type):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        offsets: Ids = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        inner = _column(array.flatten())
        return Column(inner.kind, inner.values, inner.valid, offsets)
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = _column_type(array.type)
    if kind is None:
        raise DataError(f"cannot use values of type {array.type}")
    valid = None if array.null_count == 0 else array.is_valid().to_numpy(zero_copy_only=False)
    if kind.kind is Kind.TEXT:
        return Column(Kind.TEXT, _text_column_keys(array), valid)
    if pt.is_temporal(array.type):
        array = array.cast(pa.int64() if array.type.bit_width == 64 else pa.int32())
    if pt.is_decimal(array.type):
        array = array.cast(pa.float64())
    filled = array.fill_null(False if pt.is_boolean(array.type) else 0)
    values = filled.to_numpy(zero_copy_only=False)
    if kind.kind is Kind.FLOAT:
        values = values.astype(np.float64)
    elif values.dtype != np.uint64:
        values = values.astype(np.int64)
    return Column(kind.kind, values, valid)


def _text_column_keys(array: Any) -> Any:
    """Keys of a text array: each distinct text of the chunk is hashed once."""
    encoded = array.dictionary_encode()
    distinct = text_keys("" if t is None else t for t in encoded.dictionary.to_pylist())
    index = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return distinct[index] if len(distinct) else np.zeros(len(index), dtype=np.uint64)
