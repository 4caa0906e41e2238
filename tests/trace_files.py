"""What tests write and read of trace files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiered_emb.trace.format import METADATA
from tiered_emb.trace.reader import Trace


def lookups_of(path: Path) -> list[tuple[int, str, int]]:
    """(batch, table, id) of each lookup, as any program would read them."""
    if path.suffix == ".arrow":
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
            columns = file.read_all().to_pydict()
    else:
        columns = pq.read_table(path).to_pydict()
    return list(zip(columns["batch"], columns["table"], columns["id"], strict=True))


def read(trace: Trace) -> tuple[list[int], list[int]]:
    """Batch and row of each lookup, through `Trace`."""
    pieces = list(trace.pieces())
    return (
        np.concatenate([piece.batch for piece in pieces]).tolist(),
        np.concatenate([piece.row for piece in pieces]).tolist(),
    )


def write(path: Path, columns: Mapping[str, Any], about: Any = None) -> Path:
    table = pa.table(dict(columns))
    if about is not None:
        table = table.replace_schema_metadata({METADATA: json.dumps(about)})
    pq.write_table(table, path)
    return path
