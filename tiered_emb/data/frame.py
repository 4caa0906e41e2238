"""Columns in memory, and the interface of a source of columns.

A source hands out its rows in chunks, each a mapping from column name to `Column`. Nothing here
knows what a column is used for; `features.py` decides that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiered_emb.data.errors import DataError
from tiered_emb.data.hashing import MISSING_KEY, Ids, Keys, number_keys

Mask = npt.NDArray[np.bool_]


class Kind(Enum):
    """What the values of a column are."""

    INTEGER = "integer"
    FLOAT = "float"
    TEXT = "text"


@dataclass(frozen=True)
class ColumnType:
    """The type of a column, known before any of its rows is read."""

    kind: Kind
    is_list: bool = False


@dataclass(frozen=True)
class Column:
    """Values of one column for a run of rows.

    Args:
        kind: `Kind` of the values. Text is held as its 64-bit keys.
        values: integers, float64, or uint64 keys: one a row, or one a list element.
        valid: which values are present; None if all are.
        offsets: None, or for a list column int64 of length rows + 1: row i holds
            ``values[offsets[i]:offsets[i + 1]]``.
    """

    kind: Kind
    values: npt.NDArray[np.generic]
    valid: Mask | None = None
    offsets: Ids | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def keys(self) -> Keys:
        """The 64-bit key of every value; missing values share `MISSING_KEY`."""
        if self.kind is Kind.TEXT:
            keys = np.asarray(self.values, dtype=np.uint64)
        else:
            keys = number_keys(self.values)
        return keys if self.valid is None else np.where(self.valid, keys, MISSING_KEY)

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """The values as float64, NaN where missing. Text raises `DataError`."""
        if self.kind is Kind.TEXT or self.offsets is not None:
            what = "lists" if self.offsets is not None else "text"
            raise DataError(f"column {name!r} holds {what}; a number is needed here")
        numbers = self.values.astype(np.float64)
        return numbers if self.valid is None else np.where(self.valid, numbers, np.nan)


Frame = Mapping[str, Column]


class Source(Protocol):
    """Rows of named columns, readable more than once."""

    @property
    def name(self) -> str:
        """What to call it in messages: usually the path."""

    @property
    def cheap_to_rescan(self) -> bool:
        """Whether a second pass costs little, so that exact vocabularies can be built."""

    def types(self) -> Mapping[str, ColumnType]:
        """Every column and its type, in file order."""

    def chunks(self, columns: Sequence[str]) -> Iterator[Frame]:
        """The rows in order, some thousands at a time, with the given columns only."""


@dataclass(frozen=True)
class MemorySource:
    """A source whose columns are already in memory."""

    name: str
    frame: Frame
    cheap_to_rescan: bool = True

    def types(self) -> Mapping[str, ColumnType]:
        """Every column and its type."""
        return {n: ColumnType(c.kind, c.offsets is not None) for n, c in self.frame.items()}

    def chunks(self, columns: Sequence[str]) -> Iterator[Frame]:
        """All rows in one chunk."""
        yield {name: self.frame[name] for name in columns}
