"""Parquet's form of a trace, made of the Arrow form that is recorded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiered_emb.trace.format import COLUMNS, METADATA

TABLES_MAX = (1 << 15) - 1
"""They are numbered by int16."""


def to_parquet(recorded: Path, path: Path) -> None:
    """Writes a trace in the Arrow form as a Parquet file, which is on the disk at the return."""
    with (
        pa.OSFile(str(recorded)) as source,
        pa.ipc.open_file(source) as file,
        pa.OSFile(str(path), "wb") as sink,
    ):
        names = pa.array(json.loads(file.schema.metadata[METADATA])["tables"])
        table = pa.dictionary(pa.int16(), pa.string())
        fields = [
            pa.field(name, kind, False)
            for name, kind in zip(COLUMNS, (pa.int64(), table, pa.int64()), strict=True)
        ]
        schema = pa.schema(fields, file.schema.metadata)
        # Differences take one to three bytes a lookup, and less time than compressing them.
        with pq.ParquetWriter(
            sink, schema, compression="none", use_dictionary=["table"],
            column_encoding={"batch": "DELTA_BINARY_PACKED", "id": "DELTA_BINARY_PACKED"},
            write_statistics=False,
        ) as parquet:  # fmt: skip
            for i in range(file.num_record_batches):
                parquet.write_table(_plain(file.get_batch(i), names, schema))
        os.fsync(sink.fileno())


def _plain(group: pa.RecordBatch, names: pa.Array, schema: pa.Schema) -> pa.Table:
    """A group without its runs."""
    batch, table, ids = group.columns
    numbers = pc.index_in(table.values, names).cast(pa.int16())
    numbers = pa.RunEndEncodedArray.from_arrays(table.run_ends, numbers)
    columns: list[Any] = [
        pc.run_end_decode(batch),
        pa.DictionaryArray.from_arrays(pc.run_end_decode(numbers), names),
        ids.cast(pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
