"""The two forms of a trace file, as they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiered_emb.trace.format import COLUMNS, METADATA, VERSION, Ids, TraceTable
from tiered_emb.trace.spool import Group

PARQUET_TABLES_MAX = (1 << 15) - 1
"""Tables are numbered by int16 there."""


def metadata(tables: Mapping[str, TraceTable], sample: float) -> str:
    """What the schema's metadata say of a trace (see `format`)."""
    of_tables = {name: asdict(table) for name, table in tables.items()}
    return json.dumps({"version": VERSION, "sample": sample, "tables": of_tables})


def write_trace(
    path: Path,
    is_arrow: bool,
    about: str,
    id_type: type[Any],
    groups: Iterable[Group],
) -> None:
    """Writes a trace, which is on the disk at the return.

    Args:
        about: see `metadata`.
        id_type: of ids, in the Arrow form.
        groups: of lookups; a run's table is its place in the metadata.
    """
    schema = pa.schema(_fields(is_arrow, id_type), {METADATA: about})
    names = pa.array(list(json.loads(about)["tables"]), pa.string())
    columns = _arrow_columns if is_arrow else _parquet_columns
    with pa.OSFile(str(path), "wb") as sink, _writer(is_arrow, sink, schema) as file:
        for group in groups:
            ids, runs = group.ids[: group.lookups], group.runs[: group.used_runs]
            file.write(pa.Table.from_arrays(columns(ids, runs, names), schema=schema))
            # Sent to the disk and out of the page cache, whose pages are used again: new ones would
            # cost more than encoding. The end then does not wait for all of it either.
            os.fdatasync(sink.fileno())
            os.posix_fadvise(sink.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.close()
        os.fsync(sink.fileno())


def _fields(is_arrow: bool, id_type: type[Any]) -> list[pa.Field]:
    types = [pa.int64(), pa.dictionary(pa.int16(), pa.string()), pa.int64()]
    if is_arrow:
        types = [
            pa.run_end_encoded(pa.int32(), pa.int64()),
            pa.run_end_encoded(pa.int32(), pa.string()),
            pa.from_numpy_dtype(id_type),
        ]
    return [pa.field(*named, False) for named in zip(COLUMNS, types, strict=True)]


def _writer(is_arrow: bool, sink: pa.NativeFile, schema: pa.Schema) -> Any:
    if is_arrow:
        return pa.ipc.new_file(sink, schema)
    # Differences take one to three bytes a lookup, and less time than compressing them.
    return pq.ParquetWriter(
        sink, schema, compression="none", use_dictionary=["table"],
        column_encoding={"batch": "DELTA_BINARY_PACKED", "id": "DELTA_BINARY_PACKED"},
        write_statistics=False,
    )  # fmt: skip


def _arrow_columns(ids: Any, runs: Ids, names: pa.Array) -> list[Any]:
    batch, table, counts = runs.T
    ends = pa.array(np.cumsum(counts), pa.int32())
    return [
        pa.RunEndEncodedArray.from_arrays(ends, pa.array(batch)),
        pa.RunEndEncodedArray.from_arrays(ends, names.take(pa.array(table))),
        pa.array(ids),
    ]


def _parquet_columns(ids: Any, runs: Ids, names: pa.Array) -> list[Any]:
    batch, table, counts = runs.T
    numbers = pa.array(np.repeat(table.astype(np.int16), counts))
    return [
        pa.array(np.repeat(batch, counts)),
        pa.DictionaryArray.from_arrays(numbers, names),
        pa.array(ids.astype(np.int64)),
    ]
