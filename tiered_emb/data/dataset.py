"""Encoded samples: what a training loop reads, by sample number, in any order.

Arrays too large for memory are memory maps of unlinked temporary files, so a data set much larger
than DRAM can be shuffled, and nothing is left behind. Everything is read-only after construction
and may be shared between threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tiered_emb.data.errors import DataError
from tiered_emb.data.hashing import Ids, Keys, number_keys

Array = npt.NDArray[Any]
BagInput = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

_SPOOL_MEMORY_BYTES = 256 << 20


class Spool:
    """An array that grows at its end: in memory while small, in an unlinked file once large."""

    def __init__(self, dtype: npt.DTypeLike, width: int | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._width = width
        self._parts: list[Array] = []
        self._held_bytes = 0
        self._length = 0
        self._file: Any = None

    def append(self, part: Array) -> None:
        """Adds rows; ``part`` is copied or kept, so it must not be changed later."""
        part = np.ascontiguousarray(part, dtype=self._dtype)
        self._parts.append(part)
        self._length += len(part)
        self._held_bytes += part.nbytes
        if self._held_bytes > _SPOOL_MEMORY_BYTES:
            self._spill()

    def array(self) -> Array:
        """Everything appended, as one array."""
        shape = (self._length,) if self._width is None else (self._length, self._width)
        if self._file is None:
            empty = np.zeros((0, *shape[1:]), dtype=self._dtype)
            return np.concatenate([empty, *self._parts])
        self._spill()
        with self._file:  # the mapping outlives it
            return np.memmap(self._file, dtype=self._dtype, mode="r", shape=shape)

    def _spill(self) -> None:
        if self._file is None:
            # Closed by array().
            self._file = tempfile.TemporaryFile(prefix="tiered-emb-")  # noqa: SIM115
        for part in self._parts:
            self._file.write(part.data if part.size else b"")
        self._file.flush()
        self._parts.clear()
        self._held_bytes = 0


class Feature(Protocol):
    """The row numbers that samples look up in one table."""

    def take(self, samples: Ids) -> tuple[Ids, Ids | None]:
        """Row numbers of the samples, and where each sample's bag starts (None: one id each)."""


@dataclass(frozen=True)
class OneHot:
    """One id a sample."""

    ids: Array

    def take(self, samples: Ids) -> tuple[Ids, None]:
        """See `Feature`."""
        return self.ids[samples].astype(np.int64), None


@dataclass(frozen=True)
class MultiHot:
    """A bag of ids a sample: sample i has ``values[offsets[i]:offsets[i + 1]]``."""

    values: Array
    offsets: Ids

    def take(self, samples: Ids) -> tuple[Ids, Ids]:
        """See `Feature`."""
        starts = self.offsets[samples]
        positions, offsets = _ranges(starts, self.offsets[samples + 1] - starts)
        return self.values[positions].astype(np.int64), offsets


@dataclass(frozen=True)
class GroupBag:
    """The ids of the other rows of a sample's group, without those equal to the sample's own.

    Args:
        ids: ids of all rows, group after group.
        place: for each row, where it stands in `ids`.
        start, end: for each row, its group's range in `ids`.
        length_max: at most so many rows next to the sample's own are looked at.
    """

    ids: Array
    place: Ids
    start: Ids
    end: Ids
    length_max: int

    @staticmethod
    def build(ids: Array, groups: Keys, length_max: int) -> GroupBag:
        """From the id and the group key of every row, in order."""
        order = np.argsort(groups, kind="stable")
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        ordered = groups[order]
        return GroupBag(
            ids[order],
            place,
            np.searchsorted(ordered, groups, side="left"),
            np.searchsorted(ordered, groups, side="right"),
            length_max,
        )

    def take(self, samples: Ids) -> tuple[Ids, Ids]:
        """See `Feature`."""
        place, start, end = self.place[samples], self.start[samples], self.end[samples]
        window = self.length_max + 1
        first = np.maximum(start, np.minimum(place - self.length_max // 2, end - window))
        length = np.minimum(end, first + window) - first
        positions, offsets = _ranges(first, length)
        owner = np.repeat(np.arange(len(samples)), length)
        ids = self.ids[positions]
        kept = ids != self.ids[place][owner]
        counts = np.bincount(owner[kept], minlength=len(samples))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)[:-1]])
        return ids[kept].astype(np.int64), offsets[: len(samples)]


def _ranges(starts: Ids, lengths: Ids) -> tuple[Ids, Ids]:
    """The concatenation of ``arange(start, start + length)``, and where each begins in it."""
    ends = np.cumsum(lengths)
    offsets = ends - lengths
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - offsets, lengths), offsets


@dataclass(frozen=True)
class Batch:
    """Samples in the form a model takes them.

    Args:
        dense: float32 [batch, dense features], scaled, nothing missing.
        sparse: for each table, ids [batch], or (ids, offsets) of bags.
        labels: float32 [batch] of 0 and 1.
    """

    dense: torch.Tensor
    sparse: dict[str, BagInput]
    labels: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """All encoded rows of a source.

    Args:
        name: what to call it.
        dense: float32 [rows, dense features], raw, NaN where missing.
        labels: int8 [rows]; -1 for rows that are context only.
        time: float64 [rows] or None, which orders the rows.
        tables: rows of each table.
        features: for each table, what samples look up in it.
        groups: group key of each row, for the first group bag; None without one.
        bad_lines: lines that the source left out.
    """

    name: str
    dense: Array
    labels: Array
    time: Array | None
    tables: Mapping[str, int]
    features: Mapping[str, Feature]
    groups: Keys | None = None
    bad_lines: int = 0


@dataclass(frozen=True)
class Samples:
    """The training and the test part of a data set, with the scaling of dense features."""

    dataset: Dataset
    train: Ids
    test: Ids
    dense_mean: Array
    dense_scale: Array

    def batches(
        self, samples: Ids, batch_size: int, shuffle_seed: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """The given samples in order, or shuffled by a seed; the last batch may be smaller."""
        if shuffle_seed is not None:
            samples = np.random.default_rng(shuffle_seed).permutation(samples)
        for first in range(0, len(samples), batch_size):
            yield self.batch(samples[first : first + batch_size])

    def batch(self, samples: Ids) -> Batch:
        """One batch of the given samples."""
        dense = (self.dataset.dense[samples] - self.dense_mean) / self.dense_scale
        sparse: dict[str, BagInput] = {}
        for name, feature in self.dataset.features.items():
            ids, offsets = feature.take(samples)
            tensor = torch.from_numpy(ids)
            sparse[name] = tensor if offsets is None else (tensor, torch.from_numpy(offsets))
        labels = self.dataset.labels[samples].astype(np.float32)
        clean = np.nan_to_num(dense, nan=0.0).astype(np.float32)
        return Batch(torch.from_numpy(clean), sparse, torch.from_numpy(labels))


def split_samples(
    dataset: Dataset,
    how: str,
    test_fraction: float,
    seed: int,
    train_from: float | None = None,
) -> Samples:
    """Divides the labelled rows into training and test samples.

    Args:
        how: "time": the last part in time order is the test set, and samples of one instant are
            never divided; "random": a random part is, and rows of one group are never divided.
        test_fraction: share of the samples that becomes the test set.
        train_from: training samples before this time are left out.
    """
    if not 0.0 < test_fraction < 1.0:
        raise DataError(f"--test-fraction {test_fraction}: must be between 0 and 1")
    labelled = np.flatnonzero(np.asarray(dataset.labels) >= 0)
    if how == "time":
        train, test = _split_by_time(dataset, labelled, test_fraction)
    else:
        train, test = _split_at_random(dataset, labelled, test_fraction, seed)
    if train_from is not None:
        if dataset.time is None:
            raise DataError("--train-from needs --time")
        train = train[dataset.time[train] >= train_from]
    for part, name in ((train, "training"), (test, "test")):
        if len(part) == 0:
            raise DataError(f"{dataset.name}: no samples left for the {name} set")
    if len(np.unique(dataset.labels[test])) < 2:
        raise DataError(f"{dataset.name}: all labels of the test set are alike; AUC is not defined")
    return Samples(dataset, train, test, *_dense_scaling(dataset, train))


def _split_by_time(dataset: Dataset, labelled: Ids, fraction: float) -> tuple[Ids, Ids]:
    cut = len(labelled) - round(len(labelled) * fraction)
    if dataset.time is None:
        return labelled[:cut], labelled[cut:]
    times = dataset.time[labelled]
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    if 0 < cut < len(ordered):
        cut = int(np.searchsorted(ordered, ordered[cut], side="left"))
    return labelled[order[:cut]], labelled[order[cut:]]


def _split_at_random(
    dataset: Dataset, labelled: Ids, fraction: float, seed: int
) -> tuple[Ids, Ids]:
    unit = dataset.groups[labelled] if dataset.groups is not None else number_keys(labelled)
    distinct, inverse = np.unique(unit, return_inverse=True)
    draws = np.random.default_rng(seed).random(len(distinct))
    in_test = draws[inverse] < fraction
    return labelled[~in_test], labelled[in_test]


def _dense_scaling(dataset: Dataset, train: Ids) -> tuple[Array, Array]:
    """Mean and spread of the dense features over the (first million) training samples."""
    values = np.asarray(dataset.dense[train[:1_000_000]], dtype=np.float64)
    present = ~np.isnan(values)
    count = np.maximum(present.sum(axis=0), 1)
    mean = np.where(present, values, 0.0).sum(axis=0) / count
    spread = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / count)
    scale = np.where(spread > 0, spread, 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)
