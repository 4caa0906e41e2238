"""What is measured of a machine: figures with their spread, and what follows for other sizes.

All are frozen dataclasses; `to_json` and `from_json` turn them into plain dicts and back. Sizes in
bytes, rates in bytes or reads a second, latencies in microseconds.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


@dataclass(frozen=True)
class Figure:
    """The median of three or more repetitions, and the quartiles around it."""

    median: float
    p25: float
    p75: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of these repetitions."""
        low, median, high = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class StreamLimits:
    """Memory in order. Copy counts what is read and what is written, triad three arrays; a line
    that is fetched only to be overwritten counts once, as in STREAM."""

    threads: int
    sequential_read_bytes_per_s: Figure
    copy_bytes_per_s: Figure
    triad_bytes_per_s: Figure


@dataclass(frozen=True)
class RowLimits:
    """Rows in random order; only bytes of rows count, and those of an update once.

    The second and third figures prefetch each row `ahead_rows` before its turn, into the first or
    second cache (`cache_level`): the fastest of a few ways.
    """

    row_bytes: int
    threads: int
    ahead_rows: int
    cache_level: int
    gather_bytes_per_s: Figure
    gather_prefetched_bytes_per_s: Figure
    update_bytes_per_s: Figure


@dataclass(frozen=True)
class DramLimits:
    """Memory of `arena_bytes`, in pages as the tables have them. A table much larger than that may
    be slower, where the processor does not know as many pages at once."""

    arena_bytes: int
    streams: tuple[StreamLimits, ...]
    rows: tuple[RowLimits, ...]

    @property
    def threads(self) -> int:
        """All threads: the largest number that was measured."""
        return max(s.threads for s in self.streams)

    def stream(self, threads: int | None = None) -> StreamLimits:
        """The streams of so many threads; None: of all."""
        wanted = self.threads if threads is None else threads
        found = [s for s in self.streams if s.threads == wanted]
        if not found:
            measured = [s.threads for s in self.streams]
            raise ValueError(f"{threads} threads were not measured, only {measured}")
        return found[0]

    def gather(self, row_bytes: float) -> float:
        """Bytes of rows a second that all threads read in random order, prefetched or not,
        whichever is faster; by rows of other sizes as `interpolate` says."""
        return self._by_row_bytes(
            row_bytes,
            lambda r: max(r.gather_bytes_per_s.median, r.gather_prefetched_bytes_per_s.median),
        )

    def update(self, row_bytes: float) -> float:
        """Likewise, bytes of rows a second that are read, changed and written back."""
        return self._by_row_bytes(row_bytes, lambda r: r.update_bytes_per_s.median)

    def _by_row_bytes(
        self, row_bytes: float, rate_of: typing.Callable[[RowLimits], float]
    ) -> float:
        rows = [r for r in self.rows if r.threads == self.threads]
        return interpolate(row_bytes, [(r.row_bytes, rate_of(r)) for r in rows])


@dataclass(frozen=True)
class ReadLimits:
    """Random reads of blocks; `queue_depth` counts the requests in flight of all threads.

    Latencies are medians over repetitions of the percentiles, which are right to 9%.
    """

    block_bytes: int
    queue_depth: int
    threads: int
    reads_per_s: Figure
    latency_p50_us: Figure
    latency_p99_us: Figure


@dataclass(frozen=True)
class MixedLimits:
    """Random reads and sequential writes at once, `read_share` of the bytes read."""

    read_block_bytes: int
    write_block_bytes: int
    read_share: float
    read_bytes_per_s: Figure
    write_bytes_per_s: Figure


@dataclass(frozen=True)
class SyncLimits:
    """fdatasync after the append of 4 KiB, the append itself left out."""

    p50: Figure
    p99: Figure


@dataclass(frozen=True)
class SsdLimits:
    """The drive under a directory, through the package's own I/O engine.

    `is_direct` False: the file system has no O_DIRECT, and the figures are those of the page cache.
    Sequential: requests of 1 MiB, eight in flight; writes go over a file that exists.
    """

    is_direct: bool
    file_bytes: int
    reads: tuple[ReadLimits, ...]
    sequential_read_bytes_per_s: Figure
    sequential_write_bytes_per_s: Figure
    mixed: MixedLimits
    fsync_us: SyncLimits

    def best_reads_per_s(self, block_bytes: float) -> float:
        """Reads a second at the best queue depth; for other block sizes as `interpolate` says."""
        best: dict[int, float] = {}
        for read in self.reads:
            rate = read.reads_per_s.median
            best[read.block_bytes] = max(rate, best.get(read.block_bytes, 0.0))
        points = [(size, rate * size) for size, rate in best.items()]
        return interpolate(block_bytes, points) / block_bytes


@dataclass(frozen=True)
class LinkLimits:
    """Between pinned memory and a CUDA device, and within the device (read and written count)."""

    device: str
    host_to_device_bytes_per_s: Figure
    device_to_host_bytes_per_s: Figure
    device_copy_bytes_per_s: Figure


def interpolate(size_bytes: float, points: Sequence[tuple[int, float]]) -> float:
    """The rate (bytes a second) at a size, from rates at other sizes.

    Between two of them both logarithms go in a straight line. Below the smallest, as many pieces a
    second as of the smallest; above the largest, as many bytes a second as of the largest.

    >>> interpolate(32, [(16, 1e9), (64, 4e9)])
    2000000000.0
    >>> interpolate(8, [(16, 1e9), (64, 4e9)])
    500000000.0
    """
    if not size_bytes > 0 or not points:
        raise ValueError(f"no rate for {size_bytes} bytes from {len(points)} measured sizes")
    known = sorted(points)
    first, last = known[0], known[-1]
    if size_bytes <= first[0]:
        return first[1] * size_bytes / first[0]
    if size_bytes >= last[0]:
        return last[1]
    at = next(i for i, (size, _) in enumerate(known) if size >= size_bytes)
    (low, low_rate), (high, high_rate) = known[at - 1], known[at]
    part = math.log(size_bytes / low) / math.log(high / low)
    return low_rate * math.exp(part * math.log(high_rate / low_rate))


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass of this kind as plain dicts, lists, numbers and texts."""
    return asdict(value)


def from_json(kind: type[_T], data: Any) -> _T:
    """The dataclass that `to_json` wrote; `ValueError` where the data are not of its form."""
    value: _T = _parse(kind, data, kind.__name__)
    return value


def _parse(kind: Any, data: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None
        return None if data is None else _parse(inner[0], data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise ValueError(f"{where} is no list")
        return tuple(_parse(inner[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [f.name for f in fields(kind)]
        if not isinstance(data, dict) or set(data) != set(names):
            raise ValueError(f"{where} does not have the fields {', '.join(names)}")
        values = {name: _parse(hints[name], data[name], f"{where}.{name}") for name in names}
        return typing.cast(Any, kind)(**values)
    if kind is float and type(data) in (int, float) and math.isfinite(data):
        return float(data)
    if kind is Any or (kind in (int, bool, str) and type(data) is kind):
        return data
    if origin is dict and isinstance(data, dict):
        return data
    raise ValueError(f"{where} is not of type {getattr(kind, '__name__', kind)}")
