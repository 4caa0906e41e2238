"""Tables as files that other programs read: Parquet and safetensors, streamed both ways.

A file holds the rows that were ever written or looked up, ascending; all others have their initial
values. Columns, respectively tensors: ``id`` (int64), ``weight`` ([n, dim]) and ``state.<name>``
([n, dim], or [n] where a row has one number; float32). What belongs to the table (name, number of
rows, dim, dtype) is in the file's metadata under ``tiered_emb``. bfloat16 weights, which Parquet
does not know, are float32 there, exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from tiered_emb.engine import TableEngine
from tiered_emb.stores import open_store, table_number

_KEY = "tiered_emb"
_CHUNK_ROWS = 1 << 16
_STATE = "state."
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Columns = dict[str, torch.Tensor]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iteration over pieces of rows, given the number of pieces, to show how far it is."""


def export_rows(
    source: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    table: str | None = None,
    *,
    progress: Progress | None = None,
) -> int:
    """Writes the rows of one table to a ``.parquet`` or ``.safetensors`` file.

    Args:
        source: a `TieredEmbedding`, a `TieredEmbeddingCollection`, or the directory of a store
            (for a checkpoint of `te.save`: one of its ``tables-*``), which is only read.
        path: the file; replaced once all is written.
        table: its name, where there are several.
        progress: see `Progress`.

    Returns:
        The number of rows written.

    Raises:
        ValueError: `path` ends in neither. KeyError: no such table.
    """
    target = Path(path)
    if target.suffix not in _FORMATS:
        raise ValueError(f"{target}: must end in one of {sorted(_FORMATS)}")
    write, _ = _FORMATS[target.suffix]
    engine = _engine_of(source) if isinstance(source, nn.Module) else open_store(source)
    partial = target.with_name(target.name + ".tmp")
    try:
        count = write(engine, _number(source, engine, table), partial, progress or _no_progress)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
        if not isinstance(source, nn.Module):
            engine.close()
    return count


def import_rows(
    module: nn.Module,
    path: str | os.PathLike[str],
    table: str | None = None,
    *,
    progress: Progress | None = None,
) -> int:
    """Writes the rows of a file as `export_rows` makes it into a table.

    Rows that the file does not have stay as they are. The optimizer's state is replaced if the file
    has it; one from elsewhere may have none.

    Args:
        module: a `TieredEmbedding` or `TieredEmbeddingCollection`.
        path: a ``.parquet`` or ``.safetensors`` file.
        table: its name, where there are several.
        progress: see `Progress`.

    Returns:
        The number of rows written.

    Raises:
        ValueError: the file's columns are not those of the table. Nothing has changed then.
        IdOutOfRangeError: an id that the table does not have; rows before its piece are written.
    """
    source = Path(path)
    if source.suffix not in _FORMATS:
        raise ValueError(f"{source}: must end in one of {sorted(_FORMATS)}")
    _, read = _FORMATS[source.suffix]
    engine = _engine_of(module)
    number = _number(module, engine, table)
    pieces, count = read(source, engine, number)
    done = 0
    for columns in (progress or _no_progress)(pieces, count):
        state = {k.removeprefix(_STATE): v for k, v in columns.items() if k.startswith(_STATE)}
        engine.write_rows(number, columns["id"], columns["weight"], state or None)
        done += len(columns["id"])
    return done


def _no_progress(pieces: Iterable[Any], total: int) -> Iterable[Any]:
    return pieces


def _engine_of(module: nn.Module) -> TableEngine:
    engine = getattr(module, "_engine", None)
    if not isinstance(engine, TableEngine):
        raise TypeError(f"expected a tiered table or collection, got {type(module).__name__}")
    return engine


def _number(source: Any, engine: TableEngine, name: str | None) -> int:
    if name is None and hasattr(source, "_table"):  # one table, of an engine that may have more
        return int(source._table)
    return table_number(engine, name)


def _count(engine: TableEngine, table: int) -> tuple[int, int]:
    """Rows that an export has, and in how many pieces they come."""
    pieces = [len(ids) for ids in engine.known_rows(table)]
    return sum(pieces), len(pieces)


def _columns(engine: TableEngine, table: int, ids: torch.Tensor) -> Columns:
    state = engine.state_rows(table, ids)
    return {
        "id": ids,
        "weight": engine.rows(table, ids),
        **{_STATE + name: value for name, value in state.items()},
    }


def _shapes(engine: TableEngine, table: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape of a row, and dtype, of each column."""
    spec = engine.tables[table]
    states = spec.state_shapes(engine.optimizer_kind)
    return {
        "id": ((), torch.int64),
        "weight": ((spec.embedding_dim,), spec.dtype),
        **{_STATE + name: (shape, torch.float32) for name, shape in states.items()},
    }


def _check(path: Path, have: dict[str, Any], want: dict[str, Any]) -> None:
    """The file must have ids and weights, and state either in full or not at all."""
    states = {name for name in want if name.startswith(_STATE)}
    if {name for name in have if name.startswith(_STATE)} not in (states, set()):
        found = sorted(name for name in have if name.startswith(_STATE))
        raise ValueError(f"{path}: the table has {sorted(states)}, the file {found}")
    for name in want:
        if name in have and have[name] != want[name]:
            raise ValueError(f"{path}: {name!r} is {have[name]}, in the table {want[name]}")
        if name not in have and name not in states:
            raise ValueError(f"{path}: there is no {name!r}; it has {sorted(have)}")


def _description(engine: TableEngine, table: int) -> str:
    spec = engine.tables[table]
    return json.dumps(
        {
            "table": spec.name,
            "num_embeddings": spec.num_embeddings,
            "embedding_dim": spec.embedding_dim,
            "dtype": str(spec.dtype).removeprefix("torch."),
        }
    )


# ---- Parquet


def _arrow_type(shape: tuple[int, ...], dtype: torch.dtype) -> pa.DataType:
    element = {torch.int64: pa.int64(), torch.float16: pa.float16()}.get(dtype, pa.float32())
    return pa.list_(element, shape[0]) if shape else element


def _schema(engine: TableEngine, table: int) -> pa.Schema:
    shapes = _shapes(engine, table)
    fields = [pa.field(n, _arrow_type(*shape), nullable=False) for n, shape in shapes.items()]
    return pa.schema(fields, {_KEY: _description(engine, table)})


def _write_parquet(engine: TableEngine, table: int, path: Path, progress: Progress) -> int:
    schema = _schema(engine, table)
    count, pieces = _count(engine, table)
    with pq.ParquetWriter(path, schema) as writer:
        for ids in progress(engine.known_rows(table), pieces):
            arrays = []
            for name, values in _columns(engine, table, ids).items():
                if values.dtype == torch.bfloat16:
                    values = values.float()
                flat = pa.array(values.reshape(-1).numpy())
                kind = schema.field(name).type
                arrays.append(
                    pa.FixedSizeListArray.from_arrays(flat, type=kind) if values.dim() > 1 else flat
                )
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return count


def _read_parquet(path: Path, engine: TableEngine, table: int) -> tuple[Iterator[Columns], int]:
    file = pq.ParquetFile(path)
    shapes = _shapes(engine, table)
    have = {field.name: _loose(field.type) for field in file.schema_arrow}
    _check(path, have, {n: _loose(_arrow_type(*shape)) for n, shape in shapes.items()})
    names = [name for name in shapes if name in have]

    def pieces() -> Iterator[Columns]:
        for batch in file.iter_batches(batch_size=_CHUNK_ROWS, columns=names):
            columns = {}
            for name in names:
                column = batch.column(name)
                if column.null_count:
                    raise ValueError(f"{path}: {name!r} has nulls")
                shape, dtype = shapes[name]
                flat = column.flatten() if shape else column
                values = torch.from_numpy(np.array(flat.to_numpy(zero_copy_only=False)))
                columns[name] = values.reshape(len(column), *shape).to(dtype)
            yield columns

    return pieces(), -(-file.metadata.num_rows // _CHUNK_ROWS)


def _loose(kind: pa.DataType) -> str:
    """An arrow type as text, without the names and nullability of list elements."""
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type}[{kind.list_size}]"
    return str(kind)


# ---- safetensors: the length of a JSON header, the header, the tensors one after another. The
# format is that of the safetensors project; its library holds whole tensors in memory.


def _write_safetensors(engine: TableEngine, table: int, path: Path, progress: Progress) -> int:
    count, pieces = _count(engine, table)
    header: dict[str, Any] = {"__metadata__": {_KEY: _description(engine, table)}}
    end = 0
    for name, (shape, dtype) in _shapes(engine, table).items():
        begin, end = end, end + count * int(np.prod(shape)) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": [count, *shape],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        done = 0
        for piece in progress(engine.known_rows(table), pieces):
            ids = piece[: count - done]  # not rows that have come since they were counted
            if len(ids) == 0:
                break
            for name, values in _columns(engine, table, ids).items():
                row_bytes = values[0].numel() * values.dtype.itemsize
                file.seek(start + header[name]["data_offsets"][0] + done * row_bytes)
                file.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)
            done += len(ids)
    return count


def _read_safetensors(path: Path, engine: TableEngine, table: int) -> tuple[Iterator[Columns], int]:
    with open(path, "rb") as file:
        header, start = _safetensors_header(path, file)
    shapes = _shapes(engine, table)
    count = header["id"]["shape"][0] if "id" in header else 0
    have = {name: (tuple(info["shape"]), info["dtype"]) for name, info in header.items()}
    want = {name: ((count, *shape), _NAMES[dtype]) for name, (shape, dtype) in shapes.items()}
    _check(path, have, want)
    data = np.memmap(path, np.uint8, "r", offset=start)

    def pieces() -> Iterator[Columns]:
        for first in range(0, count, _CHUNK_ROWS):
            rows = min(_CHUNK_ROWS, count - first)
            columns = {}
            for name, (shape, dtype) in shapes.items():
                if name not in header:
                    continue
                row_bytes = int(np.prod(shape)) * dtype.itemsize
                begin = header[name]["data_offsets"][0] + first * row_bytes
                raw = torch.from_numpy(np.array(data[begin : begin + rows * row_bytes]))
                columns[name] = raw.view(dtype).reshape(rows, *shape)
            yield columns

    return pieces(), -(-count // _CHUNK_ROWS)


def _safetensors_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The tensors of the file, and where their bytes begin. Trusts nothing."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"{path}: not a safetensors file")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for info in header.values():
            begin, end = info["data_offsets"]
            elements = int(np.prod(info["shape"], dtype=object))
            bytes_needed = elements * _DTYPES[info["dtype"]].itemsize
            if not 0 <= begin <= end <= size - 8 - length or end - begin != bytes_needed:
                raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a safetensors file, or one of other dtypes") from None
    return header, 8 + length


_FORMATS: dict[str, tuple[Callable[..., int], Callable[..., tuple[Iterator[Columns], int]]]] = {
    ".parquet": (_write_parquet, _read_parquet),
    ".safetensors": (_write_safetensors, _read_safetensors),
}
