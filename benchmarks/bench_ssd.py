r"""The ssd tier behind a cache: write amplification, blocks read, saves, opening.

    python benchmarks/bench_ssd.py --dir /nvme/tmp --only amplification \
        --out benchmarks/results/ssd.json
    python benchmarks/bench_ssd.py --dir /nvme/tmp --only opening saves \
        --out benchmarks/results/ssd_saves.json

A table trains on streams of ids with a cache of a part of its rows in front. Counted are, from the
second turnover on, bytes written to segments for each byte of evicted rows, over a range of space
bounds and cache sizes, and blocks read for 1,000 lookups. Beside the latter stands a hashed layout:
every row at a fixed, random place, as many rows a block, the same misses; "lookahead" counts them
once more where the ids of batches to come are announced. A save's pause is the
time until `te.save(..., wait=False)` returns. `bench_store.py` measures the speed of the store.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_folder import DATA

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report

DIM = 32
ROW_BYTES = DIM * 4 + 4  # float32 with rowwise Adagrad
ROWS_PER_BLOCK = 29
SLOT_BYTES = 48  # what a slot costs beside its row, once that is counted
ON_SSD = 1  # of tier_of
BATCH = 1024
SPACE_BOUNDS = (1.15, 1.2, 1.3, 1.45, 1.6, 1.8, 2.0)
CACHE_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

Report = dict[str, Any]


def spread(values: list[float]) -> Report:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"p25": float(low), "p50": float(median), "p75": float(high)}


@contextmanager
def table(
    folder: Path, rows: int, dram: int, resume: bool = False, space_bound: float = 1.45
) -> Iterator[te.TieredEmbedding]:
    """One table of 132-byte rows, with its store in `folder`."""
    ssd = te.SSD(str(folder / "store"), resume=resume, space_bound=space_bound)
    bag = te.TieredEmbedding(
        rows,
        DIM,
        mode="sum",
        tiers=te.Tiers(dram=dram, ssd=ssd),
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

    return {"uniform": uniform, "zipf 1.05": zipf, "zipf 1.05, drifting": lambda: zipf(5)}


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


class Hashed:
    """Counts the blocks that a hashed layout would read for the misses of a table."""

    def __init__(self, rows: int) -> None:
        self.block = np.random.default_rng(9).permutation(rows) // ROWS_PER_BLOCK
        self.blocks_read = 0.0

    def count(self, bag: te.TieredEmbedding, ids: torch.Tensor) -> None:
        unique = torch.unique(ids)
        missing = unique[bag.tier_of(unique) == ON_SSD].numpy()
        self.blocks_read += len(np.unique(self.block[missing]))

    def expected(self, rows_a_batch: float) -> float:
        """Blocks that so many rows at random places lie in, on average."""
        blocks = int(self.block.max()) + 1
        return float(blocks * (1 - (1 - 1 / blocks) ** rows_a_batch))


def bench_amplification(
    folder: Path,
    name: str,
    rows: int,
    batches: Iterator[np.ndarray],
    turnovers: float,
    cache_share: float = 0.1,
    space_bound: float = 1.45,
    ids_ahead: int = 0,
) -> Report:
    """A table in steady state: after it has evicted its own size once, `turnovers` times that."""
    slots = int(rows * cache_share)
    dram = slots * ROW_BYTES
    with table(folder, rows, dram) as bag:
        write_all(bag, rows)
    for _ in range(3):  # what the rest of the budget costs is known once the rows are there
        with table(folder, rows, dram, True) as bag:
            dram += (slots - bag.stats().slots) * (ROW_BYTES + SLOT_BYTES)
    with table(folder, rows, dram, True, space_bound) as bag:
        hashed = Hashed(rows)
        inputs = ((torch.from_numpy(np.array(b)), torch.arange(len(b))) for b in batches)
        if ids_ahead > 0:
            inputs = iter(
                te.Prefetcher(inputs, bag, lambda b: b, rows_ahead=1, ids_ahead=ids_ahead)
            )

        def run(times: float) -> te.Stats:
            goal = bag.stats().ssd_row_written_bytes + times * rows * ROW_BYTES
            while True:
                for _ in range(20):
                    ids, offsets = next(inputs)
                    if ids_ahead == 0:
                        hashed.count(bag, ids)
                    out = bag(ids, offsets)
                    out.backward(torch.ones(len(ids), DIM))  # type: ignore[no-untyped-call]
                if bag.stats().ssd_row_written_bytes >= goal:
                    return bag.stats()

        before = run(min(turnovers, 1))
        hashed.blocks_read = 0
        after = run(turnovers)
    evicted = after.ssd_row_written_bytes - before.ssd_row_written_bytes
    lookups = after.lookups - before.lookups
    blocks = after.ssd_blocks_read - before.ssd_blocks_read
    fetched = after.ssd_rows_read - before.ssd_rows_read
    fetched += after.ssd_rows_from_write_buffer - before.ssd_rows_from_write_buffer
    if ids_ahead > 0:  # rows come before their batch, so that they are not seen to be missing
        steps = after.steps - before.steps
        hashed.blocks_read = steps * hashed.expected(fetched / steps)
    return {
        "stream": name,
        "rows": rows,
        "cache_share": after.slots / rows,
        "space_bound": space_bound,
        "ids_ahead": ids_ahead,
        "evicted_per_store_size": evicted / (rows * ROW_BYTES),
        "write_amplification": (after.ssd_written_bytes - before.ssd_written_bytes) / evicted,
        "space_amplification": after.space_amplification,
        "hit_ratio": (after.lookup_hits - before.lookup_hits) / lookups,
        "rows_read_per_1000_lookups": 1000 * fetched / lookups,
        "blocks_read_per_1000_lookups": 1000 * blocks / lookups,
        "hashed_blocks_read_per_1000_lookups": 1000 * hashed.blocks_read / lookups,
    }


Case = tuple[str, int, Callable[[], Iterator[np.ndarray]]]


def cases(rows: int, real: tuple[int, Callable[[], Iterator[np.ndarray]]] | None) -> list[Case]:
    """The streams over so many rows, and the real trace."""
    made = [(name, rows, make) for name, make in streams(rows, min(BATCH, rows // 50)).items()]
    return made if real is None else [*made, ("orm_busy_trace", *real)]


def bench_curves(place: Callable[[], Path], small: bool) -> list[Report]:
    """The streams at the defaults, then over space bounds and over cache sizes."""
    turnovers = 0.5 if small else 5
    real = None if small else trace()
    few, many = (5_000, 5_000) if small else (300_000, 1_000_000)
    bounds = SPACE_BOUNDS[:2] if small else SPACE_BOUNDS
    shares = CACHE_SHARES[-2:] if small else CACHE_SHARES
    runs: list[tuple[Case, float, float]] = [(case, 0.1, 1.45) for case in cases(many, real)]
    runs += [(case, 0.1, bound) for case in cases(few, real) for bound in bounds]
    runs += [(case, share, 1.45) for case in cases(few, real) for share in shares]
    rows = []
    for (name, count, make), share, bound in runs:
        batch = len(next(make()))
        if count * share < 1.5 * batch:
            continue  # the cache holds little more than one batch
        folder = place()
        rows.append(bench_amplification(folder, name, count, make(), turnovers, share, bound))
        shutil.rmtree(folder)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def bench_lookahead(place: Callable[[], Path], small: bool) -> list[Report]:
    """The streams, without and with the ids of batches to come."""
    rows = []
    for name, count, make in cases(5_000 if small else 300_000, None if small else trace()):
        for ids_ahead in (0, 64):
            folder = place()
            turnovers = 0.5 if small else 3
            rows.append(
                bench_amplification(folder, name, count, make(), turnovers, ids_ahead=ids_ahead)
            )
            shutil.rmtree(folder)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def bench_opening(folder: Path, rows: int, rounds: int) -> Report:
    """Opening a store that was closed, as a resumed training does."""
    with table(folder, rows, rows * ROW_BYTES // 20) as bag:
        write_all(bag, rows)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        with table(folder, rows, rows * ROW_BYTES // 20, resume=True):
            seconds.append(time.perf_counter() - start)
    return {"rows": rows, "store_bytes": rows * ROW_BYTES, "open_s": spread(seconds)}


def wait_for_reclaim(bag: te.TieredEmbedding) -> None:
    """Until the background has nothing left to do."""
    done = -1
    while done != (done := bag.stats().ssd_reclaim_read_bytes):
        time.sleep(0.2)


def bench_saves(folder: Path, rows: int, rounds: int) -> Report:
    """Saves after 1% of the rows were written anew, of a store whose space is at its bound."""
    block_bytes = 4096 / ROWS_PER_BLOCK  # a row's share of one
    with table(folder, rows, rows * ROW_BYTES // 10) as bag:
        write_all(bag, rows)
        rng = np.random.default_rng(5)
        for _ in range(rows // (1 << 16) // 2):
            ids = torch.from_numpy(rng.integers(0, rows, 1 << 16))
            bag.write_rows(ids, torch.randn(len(ids), DIM), {"sum": torch.zeros(len(ids))})
        te.save(bag, folder / "ck")
        pauses, totals, ratios, with_reclaim = [], [], [], []
        for _ in range(rounds):
            wait_for_reclaim(bag)
            ids = torch.from_numpy(rng.choice(rows, rows // 100, replace=False))
            before = bag.stats()
            bag.write_rows(ids, torch.randn(len(ids), DIM))
            start = time.perf_counter()
            saving = te.save(bag, folder / "ck", wait=False)
            pauses.append((time.perf_counter() - start) * 1e3)
            saving.wait()
            totals.append((time.perf_counter() - start) * 1e3)
            wait_for_reclaim(bag)
            after = bag.stats()
            written = after.ssd_written_bytes - before.ssd_written_bytes
            written += after.ssd_checkpoint_written_bytes - before.ssd_checkpoint_written_bytes
            moved = (after.ssd_rows_reclaimed - before.ssd_rows_reclaimed) * block_bytes
            ratios.append((written - moved) / (len(ids) * ROW_BYTES))
            with_reclaim.append(written / (len(ids) * ROW_BYTES))
        space = bag.stats().space_amplification
    return {
        "store_bytes": rows * ROW_BYTES,
        "space_amplification": space,
        "changed_rows": rows // 100,
        "pause_ms": spread(pauses),
        "save_ms": spread(totals),
        "written_per_changed_byte": spread(ratios),
        "written_per_changed_byte_with_reclaim": spread(with_reclaim),
    }


PARTS = ("saves", "opening", "amplification", "lookahead")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--dir", type=Path, help="a folder on the drive (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    args = parser.parse_args(argv)
    small = args.smoke
    report: Report = {"benchmark": "ssd", **provenance(__file__, argv)}
    with tempfile.TemporaryDirectory(prefix="tiered-emb-", dir=args.dir) as top:

        def place() -> Path:
            return Path(tempfile.mkdtemp(dir=top))

        if "saves" in args.only:
            rows, rounds = (20_000, 2) if small else (31_000_000, 7)
            report["saves"] = bench_saves(place(), rows, rounds)
            print(json.dumps(report["saves"]), flush=True)
        if "opening" in args.only:
            rows, rounds = (20_000, 2) if small else (76_000_000, 5)
            report["opening"] = bench_opening(place(), rows, rounds)
            print(json.dumps(report["opening"]), flush=True)
        if "amplification" in args.only:
            report["amplification"] = bench_curves(place, small)
        if "lookahead" in args.only:
            report["lookahead"] = bench_lookahead(place, small)
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
