r"""The store alone beside its peers: reads, writes, write amplification, updates of a mapped file.

    python benchmarks/bench_store.py --dir /nvme/tmp --only get put update --scale 0.5 \
        --out benchmarks/results/store.json
    python benchmarks/bench_store.py --dir /nvme/tmp --only churn --scale 0.5 --rounds 3 \
        --out benchmarks/results/store_churn.json

Ours is LogStore with both I/O engines; peers are the drive itself (`fio`), RocksDB, an in-place
store of 4 KiB pages and a mapped file under a memory limit (benchmarks/store says how each is set
up). All contenders are filled first, each in its own folder; then they take turns, round by round,
and figures are medians with quartiles over the rounds; a ratio is that of one round's figures. A
setting of a peer (threads, shards, compaction) is the best of a sweep, which is in the report.
Device bytes are the kernel's count of the process. Processor time is that of all its threads.
What is not installed is left out, with a word.

get     uniformly random rows, batches of distinct ones
put     rows gathered from random places of an arena into a new store
churn   a training job behind a cache of 10% of the rows: missing rows are read, their copies
        retired, evicted rows put; until every background job is done. Beside the drive's reads
update  the same with uniform ids, beside read-change-write of a mapped file
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from native import build
from store_contenders import (
    DEPTHS,
    Contender,
    can_limit_memory,
    fio_reads,
    fio_writes,
    works,
)
from store_rounds import churn_figures, figures, show, sweep_threads, take_turns

from tiered_emb.bench.provenance import provenance, write_report

Report = dict[str, Any]
SLACK_BYTES = 64 << 20  # a mapped file's process: its code, batches and page tables


@dataclass(frozen=True)
class Sizes:
    """How large everything is; rows as row_bytes -> rows."""

    rounds: int = 5
    get_rows: tuple[tuple[int, int], ...] = ((132, 40_000_000), (516, 12_000_000))
    get_seconds: float = 4
    get_batch: int = 32768
    depths: tuple[int, ...] = DEPTHS
    put_rows: int = 30_000_000
    put_batch: int = 4096
    put_arena_bytes: int = 1 << 30
    churn_rows: int = 4_000_000
    churn_batch: int = 16384
    churn_round: float = 1.0  # evicted bytes of a round, in sizes of the store
    page_round: float = 0.05  # the same of the in-place store, whose cost is linear
    update_rows: int = 10_000_000
    update_round: int = 400_000  # rows that the mapped file updates in a round
    threads: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    shards: tuple[int, ...] = (1, 4)
    compactions: tuple[str, ...] = ("level", "universal")

    def scaled(self, factor: float, rounds: int | None) -> Sizes:
        return replace(
            self,
            rounds=rounds or self.rounds,
            get_rows=tuple((size, int(rows * factor)) for size, rows in self.get_rows),
            put_rows=int(self.put_rows * factor),
            churn_rows=int(self.churn_rows * factor),
            update_rows=int(self.update_rows * factor),
            update_round=int(self.update_round * factor),
        )


SMOKE = Sizes(
    rounds=1,
    get_rows=((132, 200_000), (516, 50_000)),
    get_seconds=0.2,
    get_batch=4096,
    depths=(128,),
    put_rows=500_000,
    put_arena_bytes=16 << 20,
    churn_rows=100_000,
    churn_batch=2048,
    churn_round=0.5,
    update_rows=100_000,
    update_round=10_000,
    threads=(16,),
    shards=(1,),
)


@dataclass(frozen=True)
class Bench:
    """What every measurement needs."""

    program: Path
    top: Path
    sizes: Sizes
    engines: tuple[str, ...]  # ours comes first
    rocksdb: bool
    cgroup: bool
    running: ExitStack

    def start(self, name: str, peer: str, rows: int, row_bytes: int, **options: Any) -> Contender:
        if peer == "rocksdb":  # as much as LogStore takes for location words and buffers
            options["memtable_bytes"] = rows * 4 + (16 << 20)
        folder = self.top / name
        return self.running.enter_context(
            Contender(self.program, folder, peer, rows, row_bytes, **options)
        )

    def drive_reads(self, folder: Path, size: int) -> dict[str, Callable[[], Report | None]]:
        """Turns of the drive alone: random reads at every depth."""
        seconds = self.sizes.get_seconds / 2
        return {
            f"fio, depth {depth}": partial(fio_reads, folder, size, seconds, depth)
            for depth in self.sizes.depths
        }

    def start_mapped(self, rows: int, row_bytes: int, limit_bytes: int) -> tuple[Contender, str]:
        """A filled mapped file under a memory limit, and what limits it."""
        drop = 0 if self.cgroup else limit_bytes
        mapped = self.start("mmap", "mmap", rows, row_bytes, drop_bytes=drop)
        mapped.ask("fill")
        mapped.ask("get", 0, self.sizes.get_batch)  # so that it has its memory
        how = mapped.limit_memory(limit_bytes) if self.cgroup else "posix_fadvise"
        mapped.ask("drop_cache")
        return mapped, f"{how}, {limit_bytes >> 20} MiB"


def bench_get(bench: Bench, row_bytes: int, rows: int) -> Report:
    sizes = bench.sizes
    folder = bench.top / "fio"
    folder.mkdir()
    contenders = {
        name: bench.start(name, "log", rows, row_bytes, io=name) for name in bench.engines
    }
    rocks = [
        bench.start(f"rocksdb-{shards}", "rocksdb", rows, row_bytes, shards=shards, threads=16)
        for shards in sizes.shards
        if bench.rocksdb
    ]
    for contender in (*contenders.values(), *rocks):
        contender.ask("fill")
        contender.ask("prepare_for_reads")
    # About what LogStore takes for location words and buffers.
    mapped, limited = bench.start_mapped(rows, row_bytes, rows * row_bytes // 20 + SLACK_BYTES)
    contenders["mmap"] = mapped
    trial = ("rows_got", "get", sizes.get_seconds / 4, sizes.get_batch)
    sweep = {"mmap": sweep_threads(mapped, sizes.threads, *trial)}
    if rocks:
        sweeps = [sweep_threads(contender, sizes.threads, *trial) for contender in rocks]
        fastest = max(range(len(rocks)), key=lambda i: max(d["rows_per_s"] for d in sweeps[i]))
        contenders["rocksdb"] = rocks[fastest]
        sweep["rocksdb"] = [row for part in sweeps for row in part]

    def turn(contender: Contender, threads: int) -> Callable[[], Report]:
        def get() -> Report:
            contender.set_threads(threads)
            return figures(contender.ask("get", sizes.get_seconds, sizes.get_batch), "rows_got")

        return get

    turns: dict[str, Callable[[], Report | None]] = {
        name: turn(contender, contender.options.get("threads", 1))
        for name, contender in contenders.items()
    }
    turns["mmap, a thread a core"] = turn(mapped, os.cpu_count() or 1)
    drive = bench.drive_reads(folder, rows * row_bytes)
    turns |= drive
    settings = {name: dict(contender.options) for name, contender in contenders.items()}
    result = take_turns(sizes.rounds, turns)
    for contender in (*contenders.values(), *rocks):
        contender.close()
    shutil.rmtree(folder)
    ours, rate = bench.engines[0], "rows_per_s"
    limit = result.most(drive, "blocks_per_s")
    report = {
        "row_bytes": row_bytes,
        "rows": rows,
        "batch": sizes.get_batch,
        "settings": settings,
        "drive": limit,
        "mmap_memory": limited,
        "figures": result.report(),
        "sweep": sweep,
        "ratios": {
            "blocks/s, ours / fio": result.ratio((ours, "blocks_per_s"), (limit, "blocks_per_s")),
            **{
                f"rows/s, ours / {peer}": result.ratio((ours, rate), (peer, rate))
                for peer in ("portable", "rocksdb", "mmap", "mmap, a thread a core")
            },
            "cpu a row, ours / rocksdb": result.ratio(
                (ours, "cpu_us_per_row"), ("rocksdb", "cpu_us_per_row")
            ),
        },
    }
    show(f"get: {rows:,} rows of {row_bytes} bytes", report)
    return report


def bench_put(bench: Bench) -> Report:
    sizes = bench.sizes
    row_bytes = 132
    folder = bench.top / "fio"
    folder.mkdir()

    def turn(peer: str, rows: int, **options: Any) -> Callable[[], Report]:
        def put() -> Report:
            with bench.start("put", peer, rows, row_bytes, **options) as contender:
                answer = contender.ask("put", sizes.put_batch, sizes.put_arena_bytes)
                flushed = contender.ask("flush")
                contender.ask("get", 0, sizes.get_batch)  # checks some
            durable_s = answer["seconds"] + flushed["seconds"]
            return {
                **figures(answer, "rows_put"),
                "bytes_per_s": rows * row_bytes / answer["seconds"],
                "rows_per_caller_cpu_s": rows / answer["caller_cpu_s"],
                "rows_per_cpu_s": rows / answer["cpu_s"],
                "rows_per_s_with_flush": rows / durable_s,
            }

        return put

    turns: dict[str, Callable[[], Report | None]] = {
        name: turn("log", sizes.put_rows, io=name) for name in bench.engines
    }
    if bench.rocksdb:  # for comparison only, and so slow that a part must do
        cores = os.cpu_count() or 1
        turns["rocksdb"] = turn("rocksdb", sizes.put_rows // 10, threads=cores, shards=cores)
    drive = {f"fio, depth {depth}": depth for depth in (8, 32)}
    for name, depth in drive.items():
        turns[name] = partial(fio_writes, folder, sizes.put_rows * row_bytes, depth)
    result = take_turns(sizes.rounds, turns)
    shutil.rmtree(folder)
    ours = bench.engines[0]
    limit = result.most(drive, "bytes_per_s")
    report = {
        "row_bytes": row_bytes,
        "rows": sizes.put_rows,
        "drive": limit,
        "batch": sizes.put_batch,
        "arena_bytes": sizes.put_arena_bytes,
        "figures": result.report(),
        "ratios": {
            "bytes/s, ours / fio": result.ratio((ours, "bytes_per_s"), (limit, "bytes_per_s")),
            "rows/s, ours / rocksdb": result.ratio((ours, "rows_per_s"), ("rocksdb", "rows_per_s")),
        },
    }
    show(f"put: {sizes.put_rows:,} rows of {row_bytes} bytes", report)
    return report


class Churn:
    """One stream of the churn workload, for any contender."""

    def __init__(self, bench: Bench, stream: str, rows: int, row_bytes: int) -> None:
        self.bench, self.stream, self.rows, self.row_bytes = bench, stream, rows, row_bytes

    def start(self, name: str, peer: str, **options: Any) -> Contender:
        contender = self.bench.start(name, peer, self.rows, self.row_bytes, **options)
        contender.ask("fill")
        return contender

    def command(self, share: float) -> tuple[Any, ...]:
        """`share`: evicted rows, in sizes of the store."""
        batch = self.bench.sizes.churn_batch
        return ("churn", self.stream, self.rows // 10, max(1, int(self.rows * share)), batch)

    def run(self, contender: Contender, share: float) -> Report:
        return churn_figures(contender.ask(*self.command(share)), self.row_bytes)

    def sweep_rocksdb(self) -> tuple[dict[str, Contender], list[Report]]:
        """The fastest and the most sparing of RocksDB's settings, and what each setting did."""
        sizes = self.bench.sizes
        tried: list[tuple[Contender, Report]] = []
        report: list[Report] = []
        for compaction in sizes.compactions:
            for shards in sizes.shards:
                name = f"rocksdb-{compaction}-{shards}"
                options = {"compaction": compaction, "shards": shards, "threads": 16}
                contender = self.start(name, "rocksdb", **options)
                contender.ask(*self.command(sizes.churn_round / 2))
                report += sweep_threads(
                    contender, sizes.threads, "rows_got", *self.command(sizes.churn_round / 16)
                )
                tried.append((contender, self.run(contender, sizes.churn_round)))
                report.append({**contender.options, **tried[-1][1]})
        fastest = max(tried, key=lambda t: t[1]["rows_per_s"])[0]
        sparing = min(tried, key=lambda t: t[1]["written_per_evicted_byte"])[0]
        for contender, _ in tried:
            if contender not in (fastest, sparing):
                contender.close()
        return {"rocksdb fastest": fastest, "rocksdb sparing": sparing}, report


def bench_churn(bench: Bench, stream: str) -> Report:
    sizes = bench.sizes
    row_bytes = 132
    churn = Churn(bench, stream, sizes.churn_rows, row_bytes)
    contenders = {"ours": churn.start("ours", "log", io=bench.engines[0])}
    page = churn.start("page", "page", io=bench.engines[0])
    sweep: list[Report] = []
    if bench.rocksdb:
        chosen, sweep = churn.sweep_rocksdb()
        contenders |= chosen
    churn.run(contenders["ours"], sizes.churn_round)  # until it reclaims as it always will
    churn.run(page, sizes.page_round)
    folder = bench.top / "fio"
    folder.mkdir()

    def turn(contender: Contender, share: float) -> Callable[[], Report]:
        return lambda: churn.run(contender, share)

    turns: dict[str, Callable[[], Report | None]] = {}
    for name, contender in contenders.items():
        if name == "rocksdb sparing" and contender is contenders["rocksdb fastest"]:
            continue  # one setting is both
        turns[name] = turn(contender, sizes.churn_round)
    turns["page"] = turn(page, sizes.page_round)
    drive = bench.drive_reads(folder, sizes.churn_rows * row_bytes)
    result = take_turns(sizes.rounds, turns | drive)
    shutil.rmtree(folder)
    settings = {name: c.options for name, c in contenders.items() if c.peer == "rocksdb"}
    flushes = {n: c.ask("flush")["written_bytes"] for n, c in contenders.items() if n in turns}
    for contender in {*contenders.values(), page}:
        contender.close()
    written, rate = "written_per_evicted_byte", "rows_per_s"
    rocks = [name for name in turns if name.startswith("rocksdb")] or ["rocksdb"]
    sparing, fastest = result.least(rocks, written), result.most(rocks, rate)
    limit = result.most(drive, "blocks_per_s")
    report = {
        "stream": stream,
        "row_bytes": row_bytes,
        "rows": sizes.churn_rows,
        "batch": sizes.churn_batch,
        "drive": limit,
        "evicted_of_store": sizes.churn_round * sizes.rounds,
        "evicted_of_store_page": sizes.page_round * sizes.rounds,
        "flush_written_bytes": flushes,
        "rocksdb_settings": settings,
        "figures": result.report(),
        "sweep": {"rocksdb": sweep},
        "ratios": {
            "blocks/s, ours / fio": result.ratio(("ours", "blocks_per_s"), (limit, "blocks_per_s")),
            "bytes written, rocksdb / ours": result.ratio((sparing, written), ("ours", written)),
            "bytes written, in place / ours": result.ratio(("page", written), ("ours", written)),
            "rows/s, ours / rocksdb": result.ratio(("ours", rate), (fastest, rate)),
            "rows/s, ours / in place": result.ratio(("ours", rate), ("page", rate)),
        },
    }
    show(f"churn: {stream}, {sizes.churn_rows:,} rows of {row_bytes} bytes", report)
    return report


def bench_update(bench: Bench) -> Report:
    sizes = bench.sizes
    row_bytes = 132
    rows = sizes.update_rows
    churn = Churn(bench, "uniform", rows, row_bytes)
    ours = churn.start("ours", "log", io=bench.engines[0])
    # What ours has: a cache of a tenth of the rows, and a location word a row.
    limit = rows * row_bytes // 10 + rows * 4 + SLACK_BYTES
    mapped, limited = bench.start_mapped(rows, row_bytes, limit)
    mapped.ask("update", sizes.update_round, sizes.churn_batch)
    trial = ("lookups", "update", sizes.update_round // 4, sizes.churn_batch)
    sweep = sweep_threads(mapped, sizes.threads, *trial)
    churn.run(ours, sizes.churn_round)

    def turn(threads: int) -> Callable[[], Report]:
        def update() -> Report:
            mapped.set_threads(threads)
            answer = mapped.ask("update", sizes.update_round, sizes.churn_batch)
            report = figures(answer, "lookups")
            return {**report, "lookups_per_s": report["rows_per_s"], "settle_s": answer["settle_s"]}

        return update

    turns: dict[str, Callable[[], Report | None]] = {
        "ours": lambda: churn.run(ours, sizes.churn_round / 4),
        "mmap": turn(mapped.options["threads"]),
        "mmap, a thread a core": turn(os.cpu_count() or 1),
    }
    settings = dict(mapped.options)
    result = take_turns(sizes.rounds, turns)
    ours.close()
    mapped.close()
    report = {
        "row_bytes": row_bytes,
        "rows": rows,
        "batch": sizes.churn_batch,
        "mmap_memory": limited,
        "mmap_settings": settings,
        "figures": result.report(),
        "sweep": {"mmap": sweep},
        "ratios": {
            f"rows/s, ours / {peer}": result.ratio(
                ("ours", "lookups_per_s"), (peer, "lookups_per_s")
            )
            for peer in ("mmap", "mmap, a thread a core")
        },
    }
    show(f"update: {rows:,} rows of {row_bytes} bytes", report)
    return report


PARTS = ("get", "put", "churn", "update")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--dir", type=Path, help="a folder on the drive (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--scale", type=float, default=1, help="multiplies all numbers of rows")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    args = parser.parse_args(argv)
    sizes = (SMOKE if args.smoke else Sizes()).scaled(args.scale, args.rounds)
    program = build("te_store_bench", "store_bench/te_store_bench")
    if shutil.which("fio") is None:
        print("left out: fio, it is not installed")
    report: Report = {"benchmark": "store", **provenance(__file__, argv)}
    with (
        tempfile.TemporaryDirectory(prefix="tiered-emb-", dir=args.dir) as folder,
        ExitStack() as running,
    ):
        top = Path(folder)
        bench = Bench(
            program,
            top,
            sizes,
            tuple(io for io in ("io_uring", "portable") if works(program, top, "log", io=io)),
            works(program, top, "rocksdb"),
            can_limit_memory(),
            running,
        )
        if "get" in args.only:
            report["get"] = [bench_get(bench, *shape) for shape in bench.sizes.get_rows]
        if "put" in args.only:
            report["put"] = bench_put(bench)
        if "churn" in args.only:
            report["churn"] = [bench_churn(bench, stream) for stream in ("uniform", "zipf")]
        if "update" in args.only:
            report["update"] = bench_update(bench)
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
