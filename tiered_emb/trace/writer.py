"""Writing traces."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiered_emb.data.hashing import table_keys
from tiered_emb.trace.format import METADATA, VERSION, Ids, TraceTable

_GROUP_LOOKUPS = 1 << 20


class TraceWriter:
    """Writes a trace, which appears under its name when it is complete.

    Args:
        path: of the file; what is there is replaced.
        tables: by name, in the order of their rows among all.
        sample: the share of rows to keep, in (0, 1]. A row is kept or not by a hash of its id, with
            all of its lookups: spatial sampling (Waldspurger et al., "Efficient MRC construction
            with SHARDS", FAST 2015).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tables: Mapping[str, TraceTable],
        sample: float = 1.0,
    ) -> None:
        if not 0 < sample <= 1:
            raise ValueError(f"sample must be in (0, 1], got {sample!r}")
        self.lookups = 0
        self._path = Path(path)
        self._partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        self._names = list(tables)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._threshold = None if sample == 1 else np.uint64(int(sample * 2.0**64))
        about = {
            "version": VERSION,
            "sample": sample,
            "tables": {name: asdict(table) for name, table in tables.items()},
        }
        self._schema = pa.schema(
            [("batch", pa.int64()), ("table", pa.dictionary(pa.int16(), pa.string())),
             ("id", pa.int64())],
            metadata={METADATA: json.dumps(about)},
        )  # fmt: skip
        # Differences take three to four bytes a lookup, and less time than compressing them.
        self._file = pq.ParquetWriter(
            self._partial, self._schema, compression="none", use_dictionary=["table"],
            column_encoding={"batch": "DELTA_BINARY_PACKED", "id": "DELTA_BINARY_PACKED"},
            write_statistics=False,
        )  # fmt: skip
        self._parts: list[tuple[int, int, Ids]] = []
        self._waiting = 0

    def write(self, batch: int, table: str, ids: Ids) -> None:
        """The next lookups: of one batch and table, in order. Keeps a reference to `ids`."""
        if self._threshold is not None:
            ids = ids[table_keys(ids.view(np.uint64), table) < self._threshold]
        if len(ids) == 0:
            return
        self._parts.append((batch, self._numbers[table], ids))
        self._waiting += len(ids)
        self.lookups += len(ids)
        if self._waiting >= _GROUP_LOOKUPS:
            self._flush()

    def close(self) -> None:
        """Completes the file."""
        self._flush()
        self._file.close()
        os.replace(self._partial, self._path)

    def abandon(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _flush(self) -> None:
        if not self._parts:
            return
        counts = [len(ids) for _, _, ids in self._parts]
        batches = np.repeat(np.array([b for b, _, _ in self._parts], dtype=np.int64), counts)
        tables = np.repeat(np.array([t for _, t, _ in self._parts], dtype=np.int16), counts)
        columns = [
            pa.array(batches),
            pa.DictionaryArray.from_arrays(pa.array(tables), self._names),
            pa.array(np.concatenate([ids for _, _, ids in self._parts])),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._parts, self._waiting = [], 0
