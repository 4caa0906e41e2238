"""The measured limits of this machine beside fio and a STREAM-like reference, in turn.

    python benchmarks/bench_limits.py --dir /nvme/tmp --out benchmarks/results/limits.json

The timings are those of `tiered-emb bench limits`. The reference of the memory is independent of
the package: loops of Numba on as many Python threads, over arrays in huge pages, compiled for any
processor of the kind (vectors of 512 bits made copy and triad a fifth slower on a Zen 4).
That of the drive is fio, with the same block size, depth and size of file; it is left out where fio
is not there. Each round takes ours and theirs one after the other, in changing order; the ratio is
the median over rounds of ours / theirs, and it should be within 10% of 1.
"""

from __future__ import annotations

import argparse
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["NUMBA_CPU_NAME"] = "generic"  # before Numba is imported
import numba
import numpy as np
import numpy.typing as npt
from store_contenders import fio

from tiered_emb import _core
from tiered_emb.bench.limits import check_directory
from tiered_emb.bench.limits_measure import (
    LARGE_BLOCK_BYTES,
    LARGE_DEPTH,
    all_threads,
    default_arena_bytes,
    filled_drive,
    rate,
    sequential_read,
    sequential_write,
)
from tiered_emb.bench.provenance import provenance, write_report

Report = dict[str, Any]
Array = npt.NDArray[np.float64]
Call = Callable[[], float]

BAR = 0.10
READ_BLOCK_BYTES = 4096
READ_DEPTH = 64
SPARE = 5000  # doubles left out of each array, so that no two begin at the same place of a page


@dataclass(frozen=True)
class Sizes:
    rounds: int = 15
    drive_rounds: int = 25  # a drive in a cloud may give four times as much as a second before
    drive_seconds: float = 0.5
    arena_bytes: int = 0  # 0: the package's default
    file_bytes: int = 2 << 30


SMOKE = Sizes(
    rounds=2, drive_rounds=1, drive_seconds=0.1, arena_bytes=48 << 20, file_bytes=64 << 20
)


@numba.njit(nogil=True)
def total_of(words: npt.NDArray[np.int64]) -> int:
    total = 0
    for i in range(words.size):
        total += words[i]
    return total


@numba.njit(nogil=True)
def copy(to: Array, values: Array) -> None:
    for i in range(to.size):
        to[i] = values[i]


@numba.njit(nogil=True)
def triad(a: Array, b: Array, c: Array) -> None:
    for i in range(a.size):
        a[i] = b[i] + 3.0 * c[i]


class Reference:
    """Streams of the memory without the package.

    Args:
        arena_bytes: of all arrays together.
        threads: Python threads; the loops do not hold the interpreter's lock.
    """

    def __init__(self, arena_bytes: int, threads: int) -> None:
        self.memory = mmap.mmap(-1, arena_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.all = np.frombuffer(self.memory, dtype=np.float64)
        self.all[:] = 1.0
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)

    def _parts(self, arrays: int) -> list[list[Array]]:
        """For each thread its part of each array."""
        count = self.all.size // arrays - SPARE
        bounds = [count * t // self.threads for t in range(self.threads + 1)]
        return [
            [self.all[a * count + bounds[t] : a * count + bounds[t + 1]] for a in range(arrays)]
            for t in range(self.threads)
        ]

    def _bytes_per_s(self, arrays: int, call: Callable[..., Any]) -> float:
        parts = self._parts(arrays)
        start = time.perf_counter()
        list(self.pool.map(lambda part: call(*part), parts))
        taken = time.perf_counter() - start
        return sum(array.nbytes for part in parts for array in part) / taken

    def read(self) -> float:
        return self._bytes_per_s(1, lambda a: total_of(a.view(np.int64)))

    def copy(self) -> float:
        return self._bytes_per_s(2, lambda a, b: copy(b, a))

    def triad(self) -> float:
        return self._bytes_per_s(3, lambda a, b, c: triad(c, a, b))


def spread(values: list[float]) -> Report:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"p25": float(low), "p50": float(median), "p75": float(high)}


def compare(name: str, unit: str, ours: Call, theirs: Call, rounds: int) -> Report:
    """Ours and theirs in turn, after a round that does not count."""
    pairs: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        if number % 2:
            mine, other = ours(), theirs()
        else:
            other, mine = theirs(), ours()
        if number > 0:
            pairs.append((mine, other))
    ratio = spread([mine / other for mine, other in pairs])
    report = {
        "name": name,
        "unit": unit,
        "rounds": rounds,
        "ours": spread([mine for mine, _ in pairs]),
        "theirs": spread([other for _, other in pairs]),
        "ratio": ratio,
        "is_within_bar": abs(ratio["p50"] - 1) <= BAR,
    }
    print(
        f"{name:44} ours {report['ours']['p50']:.4g} theirs {report['theirs']['p50']:.4g} {unit}, "
        f"ratio {ratio['p50']:.3f} ({ratio['p25']:.3f} to {ratio['p75']:.3f})"
    )
    return report


def memory_part(sizes: Sizes) -> list[Report]:
    """Streams on one thread and on all."""
    arena_bytes = sizes.arena_bytes or default_arena_bytes()
    ours = _core.MemoryLimits(arena_bytes, all_threads())
    reports = []
    for threads in sorted({1, all_threads()}):
        theirs = Reference(arena_bytes, threads)
        for name in ("read", "copy", "triad"):
            call = getattr(ours, name)
            reports.append(
                compare(
                    f"memory: {name}, {threads} threads", "bytes/s",
                    lambda call=call, threads=threads: rate(call(threads)),
                    getattr(theirs, name), sizes.rounds,
                )
            )  # fmt: skip
    return reports


def drive_part(folder: Path, sizes: Sizes) -> list[Report] | None:
    """Random reads, and both ways in order; None without fio."""
    file = f"--size={sizes.file_bytes}"
    try:
        is_there = fio(folder, "--rw=write", "--bs=1M", file, "--iodepth=8") is not None
    except subprocess.CalledProcessError as error:
        print(f"drive: left out, fio cannot use io_uring here: {error.stderr.strip()}")
        return None
    if not is_there:
        print("drive: left out, there is no fio")
        return None
    drive = filled_drive(str(folder), sizes.file_bytes)
    timed = (file, "--time_based", f"--runtime={int(sizes.drive_seconds * 1e3)}ms")
    large = (f"--bs={LARGE_BLOCK_BYTES}", f"--iodepth={LARGE_DEPTH}", *timed)
    small = (f"--bs={READ_BLOCK_BYTES}", f"--iodepth={READ_DEPTH}", *timed)

    def their(kind: str, figure: str, *options: str) -> float:
        job = fio(folder, *options)
        assert job is not None
        return float(job[kind][figure])

    def our_reads() -> float:
        seconds, (requests, *_), _ = drive.read_random(
            READ_BLOCK_BYTES, READ_DEPTH, 1, sizes.drive_seconds
        )
        return requests / seconds

    def pair(name: str, unit: str, ours: Call, theirs: Call) -> Report:
        return compare(f"drive: {name}", unit, ours, theirs, sizes.drive_rounds)

    return [
        pair(
            f"random reads of 4 KiB, depth {READ_DEPTH}", "reads/s",
            our_reads, lambda: their("read", "iops", "--rw=randread", *small),
        ),
        pair(
            "read in order", "bytes/s",
            lambda: sequential_read(drive, sizes.drive_seconds),
            lambda: their("read", "bw_bytes", "--rw=read", *large),
        ),
        pair(
            "written in order", "bytes/s",
            lambda: sequential_write(drive, sizes.drive_seconds),
            lambda: their("write", "bw_bytes", "--rw=write", "--overwrite=1", *large),
        ),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--dir", type=Path, help="a folder on the drive (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    sizes = SMOKE if args.smoke else Sizes()
    report: Report = {"benchmark": "limits", **provenance(__file__, argv), "bar": BAR}
    report["memory"] = memory_part(sizes)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        check_directory(folder, 2 * sizes.file_bytes)
        report["drive"] = drive_part(Path(folder), sizes)
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
