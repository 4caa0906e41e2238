"""From columns to encoded samples: vocabularies, hashing, crosses and bags.

The rows are read in chunks, so memory is bounded by the encoded samples (see `dataset.Spool`), not
by the source. Where a second pass is cheap, each column first gets an exact vocabulary: its
distinct keys in sorted order. Keys are hashes, so the position of a value in that order is a fixed
pseudo-random number below the number of values: no collisions, and nothing left of the source's
numbering. A column with more than ``hash_rows`` values, and every column of a source that is read
only once, is hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tiered_emb.data.dataset import Array, Dataset, Feature, GroupBag, MultiHot, OneHot, Spool
from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Column, Frame, Source
from tiered_emb.data.hashing import Ids, Keys, cross_keys, hashed_rows, table_keys
from tiered_emb.data.spec import Bag, Cross, Spec

Progress = Callable[[Iterable[Frame], str], Iterable[Frame]]
_ROWS_INT32_MAX = 2**31


def encode(source: Source, spec: Spec, progress: Progress | None = None) -> Dataset:
    """Reads a source once or twice and gives its encoded rows.

    Args:
        progress: wraps each pass over the chunks, given a caption; for a progress bar.
    """
    spec.check(source.name, source.types())
    watch: Progress = progress if progress is not None else (lambda chunks, _: chunks)
    vocabularies = _vocabularies(source, spec, watch) if source.cheap_to_rescan else {}
    encoder = _Encoder(source, spec, vocabularies)
    for frame in watch(source.chunks(spec.columns()), "encoding"):
        encoder.add(frame)
    return encoder.finish()


def _vocabularies(source: Source, spec: Spec, watch: Progress) -> dict[str, Keys]:
    """Sorted distinct keys of each categorical column that has at most ``hash_rows`` of them."""
    names = [*spec.categorical, *spec.multihot]
    found: dict[str, Keys] = {name: np.zeros(0, dtype=np.uint64) for name in names}
    if not names:
        return found
    for frame in watch(source.chunks(names), "scanning"):
        for name in list(found):
            keys = table_keys(np.unique(frame[name].keys()), name)
            found[name] = np.union1d(found[name], keys)
            if len(found[name]) > spec.hash_rows:
                del found[name]
    return found


class _Table:
    """The ids of one table as they are encoded, chunk by chunk."""

    def __init__(self, name: str, rows: int, vocabulary: Keys | None) -> None:
        self.name = name
        self.rows = max(1, rows)
        self._vocabulary = vocabulary
        self._ids = Spool(np.int32 if self.rows < _ROWS_INT32_MAX else np.int64)
        self._offsets: Spool | None = None
        self._length = 0

    def add(self, keys: Keys, offsets: Ids | None) -> None:
        self._ids.append(self._rows_of(keys))
        if offsets is not None:
            if self._offsets is None:
                self._offsets = Spool(np.int64)
            self._offsets.append(offsets[:-1] - offsets[0] + self._length)
        self._length += len(keys)

    def _rows_of(self, keys: Keys) -> Ids:
        if self._vocabulary is None:
            return hashed_rows(keys, self.name, self.rows)
        return np.searchsorted(self._vocabulary, table_keys(keys, self.name))

    def ids(self) -> Array:
        return self._ids.array()

    def feature(self) -> Feature:
        if self._offsets is None:
            return OneHot(self.ids())
        self._offsets.append(np.array([self._length]))
        return MultiHot(self.ids(), self._offsets.array())


class _Encoder:
    def __init__(self, source: Source, spec: Spec, vocabularies: Mapping[str, Keys]) -> None:
        self._source = source
        self._spec = spec
        self._rows_seen = 0
        self._labels = Spool(np.int8)
        self._dense = Spool(np.float32, width=len(spec.dense))
        self._time = Spool(np.float64)
        self._groups = [Spool(np.uint64) for _ in spec.bags]
        self._tables: dict[str, _Table] = {}
        for name in (*spec.categorical, *spec.multihot):
            vocabulary = vocabularies.get(name)
            rows = spec.hash_rows if vocabulary is None else len(vocabulary)
            self._tables[name] = _Table(name, rows, vocabulary)
        for made in spec.hashed():
            if made.name in self._tables:
                raise DataError(f"{made.name!r} is asked for twice")
            self._tables[made.name] = _Table(made.name, made.rows or spec.hash_rows, None)

    def add(self, frame: Frame) -> None:
        spec = self._spec
        self._add_labels(frame[spec.label])
        self._add_dense(frame)
        if spec.time is not None:
            self._add_time(frame[spec.time])
        for name in spec.categorical:
            self._tables[name].add(frame[name].keys(), None)
        for name in spec.multihot:
            self._tables[name].add(frame[name].keys(), frame[name].offsets)
        for made in spec.hashed():
            keys, offsets = _crossed(frame, made)
            self._tables[made.name].add(keys, offsets)
        for bag, groups in zip(spec.bags, self._groups, strict=True):
            groups.append(frame[bag.group].keys())
        self._rows_seen += len(frame[spec.label])

    def _add_labels(self, column: Column) -> None:
        values = column.numbers(self._spec.label)
        context = np.zeros(len(values), dtype=np.bool_)
        if self._spec.unlabelled is not None:
            context = values == self._spec.unlabelled
        wrong = ~context & (values != 0) & (values != 1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            shown = "missing" if np.isnan(values[row]) else f"{values[row]:g}"
            where = f"row {self._rows_seen + row}"
            name, label = self._source.name, self._spec.label
            raise DataError(f"{name}: label {label!r} at {where} is {shown}; expected 0 or 1")
        self._labels.append(np.where(context, -1, values))

    def _add_dense(self, frame: Frame) -> None:
        columns = [frame[name].numbers(name) for name in self._spec.dense]
        none = np.zeros((len(frame[self._spec.label]), 0))
        values = np.stack(columns, axis=1) if columns else none
        if self._spec.log_dense:
            values = np.log1p(np.maximum(values, 0.0))
        values[np.isinf(values)] = np.nan
        self._dense.append(values)

    def _add_time(self, column: Column) -> None:
        values = column.numbers(str(self._spec.time))
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            where = f"row {self._rows_seen + int(missing[0])}"
            raise DataError(f"{self._source.name}: time {self._spec.time!r} is missing at {where}")
        self._time.append(values)

    def finish(self) -> Dataset:
        spec = self._spec
        if self._rows_seen == 0:
            raise DataError(f"{self._source.name}: no rows")
        groups = [spool.array() for spool in self._groups]
        features = {name: table.feature() for name, table in self._tables.items()}
        for bag, keys in zip(spec.bags, groups, strict=True):
            ids = self._tables[bag.name].ids()
            features[bag.name] = GroupBag.build(ids, keys, bag.length_max)
        return Dataset(
            name=self._source.name,
            dense=self._dense.array(),
            labels=self._labels.array(),
            time=None if spec.time is None else self._time.array(),
            tables={name: table.rows for name, table in self._tables.items()},
            features=features,
            groups=groups[0] if groups else None,
            bad_lines=int(getattr(self._source, "bad_lines", 0)),
        )


def _crossed(frame: Frame, made: Cross | Bag) -> tuple[Keys, Ids | None]:
    """Keys of a cross for a chunk; with a list column, one an element, and the list's offsets."""
    columns = [frame[name] for name in made.columns]
    offsets = next((c.offsets for c in columns if c.offsets is not None), None)
    if offsets is None:
        return cross_keys([c.keys() for c in columns]), None
    lengths = np.diff(offsets)
    parts = [c.keys() if c.offsets is not None else np.repeat(c.keys(), lengths) for c in columns]
    return cross_keys(parts), offsets
