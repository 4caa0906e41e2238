"""The ssd tier beside the drive: random reads, flushes, write amplification, saves, opening.

    python benchmarks/bench_ssd.py --dir /nvme/tmp --out benchmarks/results/ssd.json

The limits are measured by `fio` (io_uring, O_DIRECT, best of several queue depths) on the same file
system, in turn with ours; without fio they are left out, with a word. A read is `rows(ids)` of
uniformly random rows from a store that is many times the dram budget, by both I/O engines. Write
amplification is bytes written to segments for each byte of evicted rows, in steady state. A save's
pause is the time until `te.save(..., wait=False)` returns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

import tiered_emb as te
from tiered_emb.stores import open_store

DATA = Path(
    os.environ.get(
        "TIERED_EMB_SHARED_DATA",
        Path(__file__).resolve().parent.parent.parent / "shared" / "data",
    )
)
DIM = 32
ROW_BYTES = DIM * 4 + 4  # float32 with rowwise Adagrad
BATCH = 4096
DEPTHS = (64, 128, 256)

Report = dict[str, Any]


def spread(values: list[float]) -> Report:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"p25": float(low), "p50": float(median), "p75": float(high)}


def fio(folder: Path, *options: str) -> Report | None:
    """The job's report, or None without fio."""
    if shutil.which("fio") is None:
        return None
    command = [
        "fio", "--name=limit", f"--filename={folder / 'fio'}", "--ioengine=io_uring", "--direct=1",
        "--output-format=json", "--randrepeat=0", "--norandommap", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job: Report = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job


def read_limit(folder: Path, size: int, seconds: float) -> float | None:
    """4 KiB random reads/s of the drive at its best queue depth."""
    best = None
    for depth in DEPTHS:
        job = fio(
            folder, "--rw=randread", "--bs=4k", f"--size={size}", f"--iodepth={depth}",
            f"--runtime={seconds}", "--time_based",
        )  # fmt: skip
        if job is not None:
            best = max(best or 0.0, float(job["read"]["iops"]))
    return best


@contextmanager
def table(folder: Path, rows: int, dram: int, resume: bool = False) -> Iterator[te.TieredEmbedding]:
    """One table of 132-byte rows, with its store in `folder`."""
    bag = te.TieredEmbedding(
        rows,
        DIM,
        mode="sum",
        tiers=te.Tiers(dram=dram, ssd=te.SSD(str(folder / "store"), resume=resume)),
        optimizer=te.optim.RowwiseAdagrad(0.01),
        name="bench",
    )
    try:
        yield bag
    finally:
        bag.close()


def write_all(bag: te.TieredEmbedding, rows: int) -> None:
    """Writes every row once."""
    values = torch.randn(1 << 16, DIM)
    for first in range(0, rows, len(values)):
        ids = torch.arange(first, min(first + len(values), rows))
        bag.write_rows(ids, values[: len(ids)])


def bench_reads(folder: Path, rows: int, rounds: int, seconds: float) -> Report:
    """Random rows through both engines, and the drive's limit, in turn."""
    with table(folder, rows, rows * ROW_BYTES // 20) as bag:
        write_all(bag, rows)
    readers = {}
    for engine in ("io_uring", "portable"):
        os.environ["TIERED_EMB_IO"] = engine
        try:
            readers[engine] = open_store(folder / "store")
        except OSError as error:
            print(f"{engine}: left out, {error}")
    del os.environ["TIERED_EMB_IO"]
    rates: dict[str, list[float]] = {name: [] for name in (*readers, "fio")}
    cores: dict[str, list[float]] = {name: [] for name in readers}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name, reader in readers.items():
            before = reader.stats()
            start, cpu = time.perf_counter(), time.process_time()
            while time.perf_counter() - start < seconds:
                reader.rows(0, torch.from_numpy(rng.integers(0, rows, 1 << 15)))
            elapsed = time.perf_counter() - start
            rates[name].append((reader.stats().ssd_blocks_read - before.ssd_blocks_read) / elapsed)
            cores[name].append((time.process_time() - cpu) / elapsed)
        limit = read_limit(folder, rows * ROW_BYTES, seconds / 2)
        if limit is not None:
            rates["fio"].append(limit)
    report: Report = {
        name: {"blocks_per_s": spread(values)} for name, values in rates.items() if values
    }
    for name, reader in readers.items():
        stats = reader.stats()
        report[name]["cores"] = spread(cores[name])
        report[name]["latency_us_p50"] = stats.ssd_read_latency_p50_us
        report[name]["latency_us_p99"] = stats.ssd_read_latency_p99_us
        reader.close()
    return {"rows": rows, "store_bytes": rows * ROW_BYTES, **report}


def streams(rows: int, batch: int) -> dict[str, Callable[[], Iterator[np.ndarray]]]:
    """Endless batches of ids, by name."""
    order = np.random.default_rng(1).permutation(rows)
    cumulative = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -1.05)

    def uniform() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(2)
        while True:
            yield rng.integers(0, rows, batch)

    def zipf(drift: int = 0) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(3)
        shift = 0
        while True:
            ranks = np.searchsorted(cumulative, rng.random(batch) * cumulative[-1])
            yield order[(np.minimum(ranks, rows - 1) + shift) % rows]
            shift += drift

    return {"uniform": uniform, "zipf 1.05": zipf, "zipf 1.05, drifting": lambda: zipf(20)}


def trace() -> tuple[int, Callable[[], Iterator[np.ndarray]]] | None:
    """Rows and batches of the real trace, if it is there."""
    path = DATA / "orm_busy_trace.parquet"
    if not path.is_file():
        print(f"orm_busy_trace: left out, {path} is absent")
        return None
    import pyarrow.parquet as pq

    columns = pq.read_table(path, columns=["table", "id"])
    pairs = columns["table"].to_numpy().astype(np.int64) << 40 | columns["id"].to_numpy()
    _, ids = np.unique(pairs, return_inverse=True)
    rows = int(ids.max()) + 1
    ids = np.random.default_rng(4).permutation(rows)[ids]  # as data/README.md asks

    def batches() -> Iterator[np.ndarray]:
        while True:
            for first in range(0, len(ids) - BATCH, BATCH):
                yield ids[first : first + BATCH]

    return rows, batches


def bench_amplification(
    folder: Path, name: str, rows: int, batches: Iterator[np.ndarray], turnovers: float
) -> Report:
    """Writes of a table with a cache of 10% of its rows in front, from its second turnover on."""
    with table(folder, rows, rows * ROW_BYTES // 10) as bag:
        write_all(bag, rows)

        def run(times: float) -> te.Stats:
            goal = bag.stats().ssd_row_written_bytes + times * rows * ROW_BYTES
            while True:
                for _ in range(20):
                    ids = torch.from_numpy(np.ascontiguousarray(next(batches)))
                    out = bag(ids, torch.arange(len(ids)))
                    out.backward(torch.ones(len(ids), DIM))  # type: ignore[no-untyped-call]
                if bag.stats().ssd_row_written_bytes >= goal:
                    return bag.stats()

        before = run(turnovers / 4)
        after = run(turnovers)
    evicted = after.ssd_row_written_bytes - before.ssd_row_written_bytes
    lookups = after.lookups - before.lookups
    return {
        "stream": name,
        "rows": rows,
        "evicted_bytes": evicted,
        "write_amplification": (after.ssd_written_bytes - before.ssd_written_bytes) / evicted,
        "space_amplification": after.space_amplification,
        "hit_ratio": (after.lookup_hits - before.lookup_hits) / lookups,
        "blocks_read_per_1000_lookups": 1000
        * (after.ssd_blocks_read - before.ssd_blocks_read)
        / lookups,
    }


def bench_saves(folder: Path, rows: int, rounds: int) -> Report:
    """Opening a store, and saves after 1% of its rows were written anew."""
    with table(folder, rows, rows * ROW_BYTES // 10) as bag:
        write_all(bag, rows)
    start = time.perf_counter()
    with table(folder, rows, rows * ROW_BYTES // 10, resume=True) as bag:
        opened = time.perf_counter() - start
        te.save(bag, folder / "ck")
        rng = np.random.default_rng(5)
        pauses, totals, ratios = [], [], []
        for _ in range(rounds):
            ids = torch.from_numpy(rng.choice(rows, rows // 100, replace=False))
            before = bag.stats()
            bag.write_rows(ids, torch.randn(len(ids), DIM))
            start = time.perf_counter()
            saving = te.save(bag, folder / "ck", wait=False)
            pauses.append((time.perf_counter() - start) * 1e3)
            saving.wait()
            totals.append((time.perf_counter() - start) * 1e3)
            after = bag.stats()
            written = (
                after.ssd_written_bytes
                - before.ssd_written_bytes
                + after.ssd_checkpoint_written_bytes
                - before.ssd_checkpoint_written_bytes
            )
            ratios.append(written / (len(ids) * ROW_BYTES))
    return {
        "store_bytes": rows * ROW_BYTES,
        "open_s": opened,
        "changed_rows": rows // 100,
        "pause_ms": spread(pauses),
        "save_ms": spread(totals),
        "written_per_changed_byte": spread(ratios),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--dir", type=Path, help="a folder on the drive (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    small = args.smoke
    report: Report = {"benchmark": "ssd", **provenance(__file__, argv)}
    with tempfile.TemporaryDirectory(prefix="tiered-emb-", dir=args.dir) as top:

        def place(name: str) -> Path:
            path = Path(top) / name
            path.mkdir()
            return path

        reads = place("reads")
        report["reads"] = (
            bench_reads(reads, 20_000, 1, 0.2) if small else bench_reads(reads, 40_000_000, 5, 4)
        )
        shutil.rmtree(reads)
        print(json.dumps(report["reads"], indent=1))
        rows = 5_000 if small else 300_000
        report["amplification"] = []
        cases = [(name, rows, make) for name, make in streams(rows, min(BATCH, rows // 50)).items()]
        real = None if small else trace()
        if real is not None:
            cases.append(("orm_busy_trace", *real))
        for i, (name, count, make) in enumerate(cases):
            folder = place(f"amplification-{i}")
            row = bench_amplification(folder, name, count, make(), 0.5 if small else 5)
            shutil.rmtree(folder)
            report["amplification"].append(row)
            print(json.dumps(row))
        saves = place("saves")
        report["saves"] = bench_saves(saves, 20_000 if small else 31_000_000, 2 if small else 7)
        print(json.dumps(report["saves"]))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
