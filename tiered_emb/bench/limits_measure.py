"""How the limits of a machine are measured: repetitions of the timings of cpp/limits.

Each call of the core takes at most half a second, so Ctrl-C is heeded between them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tiered_emb import _core
from tiered_emb.bench.limits_figures import (
    DramLimits,
    Figure,
    LinkLimits,
    MixedLimits,
    ReadLimits,
    RowLimits,
    SsdLimits,
    StreamLimits,
    SyncLimits,
)
from tiered_emb.engine_arguments import available_bytes

Progress = Callable[[str], None]
Timing = tuple[float, int]  # seconds, bytes

REPETITIONS_MIN = 3
CALL_SECONDS_MAX = 0.5
GIB = 1 << 30

# Ways to prefetch: rows ahead, and into which cache.
PREFETCHES = tuple((ahead, level) for level in (1, 2) for ahead in (8, 32, 64))
NO_PREFETCH = (0, 1)

LARGE_BLOCK_BYTES = 1 << 20
LARGE_DEPTH = 8
MIXED_WRITE_DEPTH = 4
MIXED_READ_SHARE = 0.7


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how long.

    `seconds_each`: of a figure. `lines`: of 64 bytes that the rows of one repetition take, many
    times as many as a cache holds.
    """

    seconds_each: float = 0.6
    row_bytes: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    arena_bytes: int = GIB
    lines: int = 1 << 21
    file_bytes: int = 2 * GIB
    block_bytes: tuple[int, ...] = (4096, 16384, 65536)
    depths: tuple[int, ...] = (1, 4, 16, 64, 256)
    copy_bytes: int = 256 << 20

    @property
    def call_seconds(self) -> float:
        """Of one repetition."""
        return min(CALL_SECONDS_MAX, self.seconds_each / REPETITIONS_MIN)


SMOKE = Sizes(
    seconds_each=0.03,
    row_bytes=(64, 256),
    arena_bytes=64 << 20,
    lines=1 << 16,
    file_bytes=64 << 20,
    block_bytes=(4096, 65536),
    depths=(1, 16),
    copy_bytes=16 << 20,
)


def all_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def rate(timing: Timing) -> float:
    """Bytes a second of (seconds, bytes)."""
    return timing[1] / timing[0]


def repeat(seconds: float, once: Callable[[], Sequence[float]]) -> list[Figure]:
    """Repeats `once` for so long, three times or more; the figures of what it gives."""
    values: list[Sequence[float]] = []
    start = time.monotonic()
    while len(values) < REPETITIONS_MIN or time.monotonic() - start < seconds:
        values.append(once())
    return [Figure.of(column) for column in zip(*values, strict=True)]


def default_arena_bytes() -> int:
    """1 GiB or an eighth of the memory, the less, but eight times the last cache, and never more
    than half of what is free."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cache = 0
    if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names:
        cache = max(0, os.sysconf("SC_LEVEL3_CACHE_SIZE"))
    wanted = max(min(GIB, memory // 8), min(8 * cache, memory // 4))
    return max(1 << 20, min(wanted, available_bytes() // 2))


def measure_dram(sizes: Sizes, progress: Progress) -> DramLimits:
    """Streams and rows, on one thread and on all."""
    counts = sorted({1, all_threads()})
    progress("memory: arena")
    memory = _core.MemoryLimits(sizes.arena_bytes, counts[-1])
    streams = []
    for threads in counts:
        progress(f"memory: streams, {threads} threads")

        def stream(threads: int = threads) -> list[float]:
            return [rate(call(threads)) for call in (memory.read, memory.copy, memory.triad)]

        streams.append(StreamLimits(threads, *repeat(3 * sizes.seconds_each, stream)))
    rows = []
    for row_bytes in sizes.row_bytes:
        for threads in counts:
            progress(f"memory: rows of {row_bytes} bytes, {threads} threads")
            rows.append(_measure_rows(memory, sizes, row_bytes, threads))
    return DramLimits(sizes.arena_bytes, tuple(streams), tuple(rows))


def _measure_rows(
    memory: _core.MemoryLimits, sizes: Sizes, row_bytes: int, threads: int
) -> RowLimits:
    count = sizes.lines * 64 // max(64, row_bytes)
    seed = 0

    def on_fresh_rows(call: Callable[[int, int, int], Timing], way: tuple[int, int]) -> float:
        nonlocal seed
        seed += 1
        memory.draw(row_bytes, count, seed)
        return rate(call(*way, threads))

    best = max(2 * PREFETCHES, key=lambda way: on_fresh_rows(memory.gather, way))

    def once() -> list[float]:
        return [
            on_fresh_rows(memory.gather, NO_PREFETCH),
            on_fresh_rows(memory.gather, best),
            on_fresh_rows(memory.update, best),
        ]

    return RowLimits(row_bytes, threads, *best, *repeat(3 * sizes.seconds_each, once))


def filled_drive(
    directory: str, file_bytes: int, progress: Progress = lambda _: None
) -> _core.DriveLimits:
    """A file for the timings of a drive, all of it written."""
    progress(f"drive: writing {file_bytes / GIB:.2g} GiB")
    drive = _core.make_drive_limits(directory, file_bytes)
    while drive.written_bytes < file_bytes:
        drive.write_sequential(LARGE_BLOCK_BYTES, LARGE_DEPTH, CALL_SECONDS_MAX)
    return drive


def measure_ssd(directory: str, sizes: Sizes, progress: Progress) -> SsdLimits:
    """Reads over block sizes and depths, streams, both at once, syncs."""
    seconds_each, call_seconds = sizes.seconds_each, sizes.call_seconds
    drive = filled_drive(directory, sizes.file_bytes, progress)
    deepest = sizes.depths[-1]
    points = [(block, depth, 1) for block in sizes.block_bytes for depth in sizes.depths]
    several = min(4, all_threads())
    if several > 1:
        points += [(block, deepest // several * several, several) for block in sizes.block_bytes]
    reads = []
    for block, depth, threads in points:
        progress(f"drive: reads of {block} bytes, depth {depth}, {threads} threads")

        def read(point: tuple[int, int, int] = (block, depth, threads)) -> list[float]:
            seconds, (requests, _, p50, p99), _ = drive.read_random(*point, call_seconds)
            return [requests / seconds, p50, p99]

        reads.append(ReadLimits(block, depth, threads, *repeat(seconds_each, read)))

    small = sizes.block_bytes[0]

    def mixed() -> list[float]:
        seconds, read, written = drive.read_and_write(
            small, deepest, LARGE_BLOCK_BYTES, MIXED_WRITE_DEPTH, MIXED_READ_SHARE, call_seconds
        )
        return [read[1] / seconds, written[1] / seconds]

    progress("drive: in order")
    (sequential_reads,) = repeat(seconds_each, lambda: [sequential_read(drive, call_seconds)])
    (sequential_writes,) = repeat(seconds_each, lambda: [sequential_write(drive, call_seconds)])
    progress("drive: reads and writes")
    both = repeat(seconds_each, mixed)
    progress("drive: syncs")
    syncs = repeat(seconds_each, lambda: _sync_percentiles(drive, call_seconds))
    return SsdLimits(
        is_direct=drive.is_direct,
        file_bytes=sizes.file_bytes,
        reads=tuple(reads),
        sequential_read_bytes_per_s=sequential_reads,
        sequential_write_bytes_per_s=sequential_writes,
        mixed=MixedLimits(small, LARGE_BLOCK_BYTES, MIXED_READ_SHARE, *both),
        fsync_us=SyncLimits(*syncs),
    )


def sequential_read(drive: _core.DriveLimits, seconds: float) -> float:
    """Bytes a second of one repetition."""
    taken, reads, _ = drive.read_sequential(LARGE_BLOCK_BYTES, LARGE_DEPTH, seconds)
    return reads[1] / taken


def sequential_write(drive: _core.DriveLimits, seconds: float) -> float:
    """Bytes a second of one repetition."""
    taken, _, writes = drive.write_sequential(LARGE_BLOCK_BYTES, LARGE_DEPTH, seconds)
    return writes[1] / taken


def _sync_percentiles(drive: _core.DriveLimits, seconds: float) -> list[float]:
    times_us = sorted(drive.sync_us(seconds))
    return [times_us[int(share * (len(times_us) - 1))] for share in (0.5, 0.99)]


def measure_link(sizes: Sizes, progress: Progress) -> LinkLimits | None:
    """Copies of pinned memory each way, and within the device; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    progress("link: copies")
    copy_bytes = sizes.copy_bytes
    host = torch.empty(copy_bytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(copy_bytes, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(device)
    pairs = ((device, host, 1), (host, device, 1), (other, device, 2))  # to, from, bytes a byte

    def once() -> list[float]:
        return [
            times * copy_bytes / _copy_seconds(target, source) for target, source, times in pairs
        ]

    once()  # the first ones take longer
    name = torch.cuda.get_device_name()
    return LinkLimits(name, *repeat(3 * sizes.seconds_each, once))


def _copy_seconds(target: torch.Tensor, source: torch.Tensor) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    target.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
