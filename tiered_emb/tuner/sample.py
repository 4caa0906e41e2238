"""The part of a trace that the tuner works on: the lookups of some rows, in some stretches of time.

Rows are chosen by a hash of their number, so that every lookup of a chosen row is there (spatial
sampling: Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015). Among a share of
the rows a cache with this share of the slots behaves as the whole one does among all; but one that
is left with a handful of slots shows little more than chance. A small cache, though, forgets soon:
it needs no long trace. So there is a pyramid of samples, in one pass: level k has a share of 2**-k
of the rows, and a stretch of the trace 2**k times as long as level 0, up to all of it; each about
as many lookups. A size is simulated on the level that leaves it `SLOTS` slots or more. A level's
stretch is in `SEGMENTS` parts over the trace, so that times of the day are met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tiered_emb.compiled import compiled
from tiered_emb.data.errors import DataError
from tiered_emb.data.hashing import mix64
from tiered_emb.trace.format import Ids, TraceTable
from tiered_emb.trace.reader import Trace

SLOTS = 1024
SEGMENTS = 4
GROUPS = 8
SHARE = 0.01
"""Lookups of a level, of all; but as many as these where there are:"""
LOOKUPS_MIN, LOOKUPS_MAX = 1 << 18, 1 << 20
_WARM_UP = 0.5  # of a segment
_FILLED = 8  # times the slots: rows that come within the warm-up; the policy learns from them
_KNOWN = 0.95  # or this share of all that there are
_BATCHES_MIN = 4
_LEVELS_MAX = 48
_NO_NAME = int(np.iinfo(np.int64).min)
_GAPS_MAX = 64  # of a sampled trace: batches for each lookup that all rows had
_BATCHES_MAX = 1 << 27  # numbered
_SHARE_GROWS = 8  # where no row of a small table was in the sample
_SALT, _GROUP_SALT = 0x5851F42D4C957F2D, 0x2545F4914F6CDD1D

Progress = Callable[[int], object]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Small = npt.NDArray[np.uint8]
_mix = compiled(mix64)


@dataclass(frozen=True)
class Sample:
    """A stretch of lookups of the sampled rows, in order.

    Args:
        rate: the share of rows that was taken, of all that the model has.
        rows: int64 [n], numbers of sampled rows, in the order in which they come for the first
            time: each below `len(table_of)`.
        begins: int64 [batches + 1]; batch b is rows[begins[b]:begins[b + 1]]. Batches of which
            nothing was sampled count.
        warm_up: batches before the first that counts.
        table_of: int32, by number of a sampled row: its table.
        group_of: uint8, likewise: one of `GROUPS` parts of the sample, each a sample too.
        lookups: of each table, of all rows in these batches.
    """

    rate: float
    rows: Ids
    begins: Ids
    warm_up: int
    table_of: npt.NDArray[np.int32]
    group_of: Small
    lookups: Floats

    @property
    def batches(self) -> int:
        """All of them."""
        return len(self.begins) - 1

    @property
    def counted_lookups(self) -> float:
        """Of all rows, in the batches that count."""
        if len(self.rows) > 0:
            share = 1 - self.begins[self.warm_up] / len(self.rows)
        else:
            share = 1 - self.warm_up / self.batches
        return max(1.0, float(self.lookups.sum() * share))

    @cached_property
    def rows_of_batches(self) -> Ids:
        """Distinct sampled rows of each batch, int64 [batches]."""
        found: Ids = _rows_of_batches(self.rows, self.begins, len(self.table_of))
        return found

    @cached_property
    def warm_rows(self) -> int:
        """Distinct sampled rows of the warm-up."""
        before = self.rows[: self.begins[self.warm_up]]
        return int(before.max()) + 1 if len(before) else 0  # numbered as they come

    def is_warm(self, slots: float) -> bool:
        """Whether the warm-up shows a policy with so many slots what rows there are."""
        rows = len(self.table_of)
        return rows > 0 and self.warm_rows >= min(_FILLED * slots, _KNOWN * rows)

    def of_tables(self, is_in: Bools) -> Sample:
        """The lookups of some tables alone."""
        return self._part(is_in[self.table_of], self.rate, np.where(is_in, self.lookups, 0.0))

    def of_group(self, group: int) -> Sample:
        """The lookups of one of the `GROUPS` parts: a sample of a smaller rate."""
        return self._part(self.group_of == group, self.rate / GROUPS, self.lookups)

    def _part(self, keep: Bools, rate: float, lookups: Floats) -> Sample:
        number = np.cumsum(keep) - 1
        kept = keep[self.rows]
        ends = np.concatenate([[0], np.cumsum(kept)])
        return replace(
            self, rate=rate, rows=number[self.rows[kept]], begins=ends[self.begins],
            table_of=self.table_of[keep], group_of=self.group_of[keep], lookups=lookups,
        )  # fmt: skip


@dataclass(frozen=True)
class Pyramid:
    """Samples of a trace.

    Args:
        tables: by name.
        lookups: of each table, in the whole trace.
        batches: of the trace.
        levels: each in its segments; one of all lookups for the last, which may be the only one.
    """

    tables: dict[str, TraceTable]
    lookups: Floats
    batches: int
    levels: list[list[Sample]]

    @property
    def whole(self) -> Sample:
        """The one that spans the trace."""
        return self.levels[-1][0]

    @property
    def lookups_a_batch(self) -> float:
        """Of all rows."""
        return float(self.lookups.sum()) / self.batches

    @property
    def rows_seen(self) -> float:
        """Distinct rows of the trace, as far as the samples tell: of a small table those of the
        first levels do, of a large one the last."""
        known = sum(
            table.rows for table, n in zip(self.tables.values(), self.lookups, strict=True) if n > 0
        )
        counts = [len(sample.table_of) / sample.rate for level in self.levels for sample in level]
        return min(float(known), max(counts))

    def for_rows(self, rows: float) -> list[Sample]:
        """Samples on which a cache of so many rows is to be simulated."""
        for level in self.levels:
            slots = rows * level[0].rate
            if slots < 2 * SLOTS and all(sample.is_warm(slots) for sample in level):
                return level
        return self.levels[-1]

    def of_tables(self, tables: Sequence[int]) -> Pyramid:
        """The lookups of some tables alone."""
        is_in = np.zeros(len(self.tables), dtype=np.bool_)
        is_in[list(tables)] = True
        levels = [[sample.of_tables(is_in) for sample in level] for level in self.levels]
        return replace(self, lookups=np.where(is_in, self.lookups, 0.0), levels=levels)

    def rows_of_a_batch(self) -> tuple[float, float]:
        """Distinct rows of a batch: on average, and of the one that has the most, as far as the
        samples tell."""
        for level in self.levels:
            # The first and the last of a stretch may be cut.
            whole = [
                s.rows_of_batches[1:-1] if len(level) > 1 else s.rows_of_batches for s in level
            ]
            counts = np.concatenate(whole)
            if len(counts) >= _BATCHES_MIN:
                break
        return float(counts.mean()) / level[0].rate, float(counts.max()) / level[0].rate


class _Taking:
    """Samples on their way: of the kept lookups their rows, levels, segments and batches."""

    def __init__(self, trace: Trace, share: float) -> None:
        sizes, lookups = [table.rows for table in trace.tables.values()], trace.lookups
        self._has_numbers = trace.has_batch_numbers
        self.first_row = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        self.levels = 1 + min(max(0, int(np.ceil(-np.log2(share)))), _LEVELS_MAX)
        ends = [lookups * (s + 1) // SEGMENTS for s in range(SEGMENTS)]
        self._segment_ends = np.array(ends, dtype=np.int64)
        self._stretch = max(1, round(share * lookups / SEGMENTS))  # of level 0, in a segment
        self.counts = np.zeros((SEGMENTS, self.levels, len(sizes)), dtype=np.int64)
        self._kept: list[tuple[np.ndarray, ...]] = []
        self._state = np.array([0, -1, _NO_NAME, _NO_NAME], dtype=np.int64)

    def take(self, batch: Ids, row: Ids) -> None:
        """The next lookups."""
        rows, batches = np.empty(len(row), dtype=np.int64), np.empty(len(row), dtype=np.int64)
        places = np.empty((3, len(row)), dtype=np.uint8)
        kept = _take(
            batch, row, self._has_numbers, self.first_row, self._segment_ends, self._stretch,
            self._state, self.counts, rows, batches, places,
        )  # fmt: skip
        self._kept.append((rows[:kept].copy(), batches[:kept].copy(), places[:, :kept].copy()))

    @property
    def batches(self) -> int:
        """That have come."""
        return int(self._state[1]) + 1

    def sample(self, level: int, segment: int | None, rate: float) -> Sample | None:
        """Of a level, its stretch in a segment or in all; None if there are too few batches."""
        parts = []
        for rows, batches, (row_level, from_level, in_segment) in self._kept:
            keep = (row_level >= level) & (from_level <= level)
            if segment is not None:
                keep &= in_segment == segment
            parts.append((rows[keep], batches[keep]))
        rows, batches = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(rows) == 0:
            return None
        span = (0, self.batches - 1) if segment is None else (int(batches[0]), int(batches[-1]))
        counts = self.counts if segment is None else self.counts[segment : segment + 1]
        return sample_of(
            rows, batches, span, self.first_row, rate,
            lookups=counts[:, : level + 1].sum(axis=(0, 1)),
            warm_up=0.0 if segment is None else _WARM_UP,
        )  # fmt: skip


def sample_of(
    rows: Ids,
    batches: Ids,
    span: tuple[int, int],
    first_row: Ids,
    rate: float,
    lookups: Floats,
    warm_up: float,
) -> Sample:
    """Of sampled lookups, in order.

    Args:
        rows: numbered one table after another.
        batches: of each lookup, never falling.
        span: the first and the last batch.
        first_row: of each table.
        rate: the share of rows that was sampled.
        lookups: of each table, of all rows.
        warm_up: share of the batches before those that count.
    """
    first, last = span
    distinct, numbers = _numbered(rows)
    return Sample(
        rate=rate,
        rows=numbers,
        begins=np.searchsorted(batches, np.arange(first, last + 2)).astype(np.int64),
        warm_up=int((last - first + 1) * warm_up),
        table_of=(np.searchsorted(first_row, distinct, "right") - 1).astype(np.int32),
        group_of=_groups(distinct),
        lookups=lookups,
    )


def take_sample(
    trace: Trace, share: float | None = None, progress: Progress | None = None, warm_up: float = 0.0
) -> Pyramid:
    """Reads a trace once, keeping a few lookups of each hundred.

    Args:
        trace: of which some rows may have been left out already.
        share: of the lookups, for each level; None: `SHARE`, but at least `LOOKUPS_MIN` of them
            and at most `LOOKUPS_MAX`. 1: all, in one level.
        progress: called with lookups that were read.
        warm_up: share of the trace before what counts, where all of it is simulated. Without it
            a cache begins empty, and the first lookup of each row misses.

    Raises:
        DataError: the trace is damaged or empty.
        ValueError: `share` is not in (0, 1], or `warm_up` not in [0, 1).
    """
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")
    if not 0 <= warm_up < 1:
        raise ValueError(f"warm_up must be in [0, 1), got {warm_up!r}")
    tried = share
    if tried is None:
        wanted = min(max(SHARE * trace.lookups, LOOKUPS_MIN), LOOKUPS_MAX)
        tried = min(1.0, wanted / trace.lookups)
    found = _sampled(trace, tried, progress, warm_up)
    while found is None and share is None and tried < 1:  # a few rows, and none of them by chance
        tried = min(1.0, _SHARE_GROWS * tried)
        found = _sampled(trace, tried, None, warm_up)
    if found is None:
        raise DataError(f"{trace.path}: none of its rows was sampled; take a larger share, up to 1")
    return found


def _sampled(
    trace: Trace, share: float, progress: Progress | None, warm_up: float
) -> Pyramid | None:
    """None where no row is in the sample that spans the trace."""
    taking = _Taking(trace, share)
    for piece in trace.pieces():
        taking.take(piece.batch, piece.row)
        if progress is not None:
            progress(len(piece.row))
    gaps_max = 1 if trace.sample == 1 else _GAPS_MAX
    if taking.batches > min(gaps_max * (trace.lookups / trace.sample + 1), _BATCHES_MAX):
        raise DataError(
            f"{trace.path}: {taking.batches:,} batches by their numbers, and {trace.lookups:,} "
            "lookups; a recorded trace numbers batches one after another"
        )
    levels = []
    for level in range(taking.levels - 1):
        rate = trace.sample * 0.5**level
        parts = [taking.sample(level, segment, rate) for segment in range(SEGMENTS)]
        if all(part is not None and part.batches >= _BATCHES_MIN for part in parts):
            levels.append([_scaled(part, trace.sample) for part in parts if part is not None])
    whole = taking.sample(taking.levels - 1, None, trace.sample * 0.5 ** (taking.levels - 1))
    if whole is None:
        return None
    whole = replace(whole, warm_up=int(warm_up * whole.batches))
    levels.append([_scaled(whole, trace.sample)])
    return Pyramid(trace.tables, levels[-1][0].lookups, taking.batches, levels)


def _scaled(sample: Sample, trace_rate: float) -> Sample:
    """With the lookups of the rows that the trace left out, too."""
    return replace(sample, lookups=sample.lookups / trace_rate)


@compiled
def _take(
    batch: Ids,
    row: Ids,
    has_numbers: bool,
    first_row: Ids,
    segment_ends: Ids,
    stretch: int,
    state: Ids,
    counts: Ids,
    rows: Ids,
    batches: Ids,
    places: Small,
) -> int:
    """Counts lookups by segment, level and table; keeps those of rows of the level that has begun.

    `state`: lookups before these, number of the last batch, its name in the trace, and that of the
    first.
    """
    done, number, name, first_name = state
    levels, tables = counts.shape[1], len(first_row)
    kept, table, segment, level = 0, 0, 0, levels - 1
    for i in range(len(row)):
        if batch[i] != name:
            name = batch[i]
            if first_name == _NO_NAME:
                first_name = name
            number = name - first_name if has_numbers else number + 1
        while done + i >= segment_ends[segment]:
            segment += 1
            level = levels - 1
        left = segment_ends[segment] - (done + i)
        while level > 0 and left <= stretch << (level - 1):
            level -= 1
        r = row[i]
        if r < first_row[table] or (table + 1 < tables and r >= first_row[table + 1]):
            table = np.searchsorted(first_row, r, side="right") - 1
        counts[segment, level, table] += 1
        mixed = _mix(np.uint64(r) ^ np.uint64(_SALT))
        if level > 0 and mixed >> np.uint64(64 - level) != 0:
            continue
        row_level = level
        while row_level < levels - 1 and mixed >> np.uint64(63 - row_level) == 0:
            row_level += 1
        rows[kept] = r
        batches[kept] = number
        places[0, kept], places[1, kept], places[2, kept] = row_level, level, segment
        kept += 1
    state[0], state[1], state[2], state[3] = done + len(row), number, name, first_name
    return kept


@compiled
def _numbered(rows: Ids) -> tuple[Ids, Ids]:
    """The distinct rows in the order of their first use, and of each lookup its row's number."""
    numbers = np.empty(len(rows), dtype=np.int64)
    distinct = np.empty(512, dtype=np.int64)
    known = np.full((1024, 2), -1, dtype=np.int64)  # row and number, open addressing
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        place = np.int64(_mix(np.uint64(row)) & np.uint64(len(known) - 1))
        while known[place, 0] != row and known[place, 0] >= 0:
            place = (place + 1) & (len(known) - 1)
        if known[place, 0] == row:
            numbers[i] = known[place, 1]
            continue
        known[place, 0], known[place, 1] = row, count
        numbers[i] = count
        distinct[count] = row
        count += 1
        if count < len(distinct):
            continue
        distinct = np.concatenate((distinct, np.empty(count, dtype=np.int64)))
        known = np.full((4 * count, 2), -1, dtype=np.int64)
        for number in range(count):
            place = np.int64(_mix(np.uint64(distinct[number])) & np.uint64(len(known) - 1))
            while known[place, 0] >= 0:
                place = (place + 1) & (len(known) - 1)
            known[place, 0], known[place, 1] = distinct[number], number
    return distinct[:count].copy(), numbers


@compiled
def _groups(rows: Ids) -> Small:
    found = np.empty(len(rows), dtype=np.uint8)
    for i in range(len(rows)):
        found[i] = _mix(np.uint64(rows[i]) ^ np.uint64(_GROUP_SALT)) % np.uint64(GROUPS)
    return found


@compiled
def _rows_of_batches(rows: Ids, begins: Ids, distinct: int) -> Ids:
    seen_in = np.full(distinct, -1, dtype=np.int64)
    counts = np.zeros(len(begins) - 1, dtype=np.int64)
    for b in range(len(begins) - 1):
        for i in range(begins[b], begins[b + 1]):
            if seen_in[rows[i]] != b:
                seen_in[rows[i]] = b
                counts[b] += 1
    return counts
