"""Trace files: which rows were looked up, in order.

A trace has one row a lookup, in the order of the lookups:

    batch   int64, never falling: the step that the lookup belongs to
    table   string
    id      int64, of the table's row

It is a Parquet file, whose tables are a dictionary of int16 to string. Or it is an Arrow IPC file,
where its name ends with ``.arrow``: two to three times as large, and made several times as fast.
There batch and table are run-end encoded, and ids are int32 if all fit.

The schema's metadata hold, under ``tiered_emb.trace``, a JSON object: ``version`` (1), ``sample``
(the share of rows that was kept, see `TraceWriter`), and ``tables``: for each name ``rows`` and, if
known, ``dim`` and ``row_bytes`` (with optimizer state).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

ARROW_SUFFIX = ".arrow"
METADATA = b"tiered_emb.trace"
VERSION = 1
COLUMNS = ("batch", "table", "id")


@dataclass(frozen=True)
class TraceTable:
    """A table of a trace; `dim` and `row_bytes`, with its optimizer state, where they are known."""

    rows: int
    dim: int | None = None
    row_bytes: int | None = None
