"""Reading Criteo click logs: parsing on one core, streaming batches, converting to Parquet.

    python benchmarks/bench_criteo.py --out benchmarks/results/criteo.json

A log of the real form is generated: heavy-tailed integers, Zipf-like categories of 8 digits with
the cardinalities of the Kaggle data set, and its shares of missing values; 243 bytes a line. It
is read several times in a row, as if it were several files. All contenders take turns; medians of
the rounds. Lines a second of the wall clock, and the processor time that a million lines took in
all threads. The files are in the page cache.

"parse" is what one core can do: reading, and parsing to columns, in one thread. The bar: converting
takes at most 1 / 0.9 of its time, with the two cores that a pipeline of reading, parsing and
encoding needs. Where other programs keep the cores busy, the wall clock says little: then half of
the processor time of a conversion is what it would take on two idle cores, at best. Beside all that
pyarrow's CSV reader, on one thread, which leaves categories as text.
"""

from __future__ import annotations

import argparse
import gzip
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.data import CriteoStream
from tiered_emb.data.criteo import CriteoSource
from tiered_emb.data.criteo_convert import ConvertOptions, convert
from tiered_emb.data.criteo_format import CATEGORIES, COLUMNS, INTEGERS
from tiered_emb.data.hashing import number_keys

BAR = 0.9  # of the lines a second of one core's parsing
ROWS = 1_000_000
BATCH_SIZE = 8192
PIECE_LINES = 50_000

# Medians of the integers, distinct values of the categories, and shares of missing values in
# percent, near those of the Kaggle data set.
MEDIANS = (1, 3, 6, 4, 2000, 40, 4, 8, 40, 0.7, 2, 0.3, 5)
INTEGERS_MISSING = (45, 0, 21, 22, 3, 22, 4, 0, 4, 45, 4, 77, 22)
CARDINALITIES = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194)
CARDINALITIES += (27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572)
CATEGORIES_MISSING = (0, 0, 3, 3, 0, 12, *[0] * 5, 3, 0, 0, 0, 3, 0, 0, 44, 44, 3, 76, 0, 3, 44, 44)


@dataclass(frozen=True)
class Sizes:
    lines: int = 1_000_000
    repeats: int = 4
    rounds: int = 3


SMOKE = Sizes(lines=20_000, repeats=1, rounds=1)


def write_log(path: Path, lines: int) -> None:
    """Generates a log; 10 us a line."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for first in range(0, lines, PIECE_LINES):
            count = min(PIECE_LINES, lines - first)
            columns = [(rng.random(count) < 0.256).astype(int).astype(str)]
            for median, missing in zip(MEDIANS, INTEGERS_MISSING, strict=True):
                values = np.exp(rng.normal(np.log(median), 1.5, count)).astype(int).astype(str)
                columns.append(np.where(rng.random(count) * 100 < missing, "", values))
            shapes = zip(CARDINALITIES, CATEGORIES_MISSING, strict=True)
            for number, (cardinality, missing) in enumerate(shapes):
                values = np.floor(cardinality ** rng.random(count)).astype(np.int64)
                keys = number_keys(values + (number << 32)) & np.uint64(0xFFFFFFFF)
                texts = np.array([f"{key:08x}" for key in keys.tolist()])
                columns.append(np.where(rng.random(count) * 100 < missing, "", texts))
            rows = zip(*(column.tolist() for column in columns), strict=True)
            file.write("".join("\t".join(row) + "\n" for row in rows))


def parse(paths: list[Path]) -> int:
    sources = [CriteoSource(path) for path in paths]
    parsed = (source.parse(block) for source in sources for block in source.blocks())
    return sum(len(samples.frame["label"]) for samples in parsed)


def stream(paths: list[Path], workers: int) -> int:
    batches = CriteoStream(paths, BATCH_SIZE, ROWS, workers=workers)
    return sum(len(batch.labels) for batch in batches)


def arrow_csv(paths: list[Path]) -> int:
    return sum(batch.num_rows for path in paths for batch in arrow_reader(path))


def arrow_reader(path: Path) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, column_names=COLUMNS, block_size=8 << 20
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t"),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={
                "label": pa.int8(),
                **dict.fromkeys(INTEGERS, pa.int32()),
                **dict.fromkeys(CATEGORIES, pa.string()),
            }
        ),
    )


def contenders(folder: Path, log: Path, repeats: int) -> dict[str, Callable[[], int]]:
    """Each reads the log several times and gives the number of lines."""
    (folder / "day_0.gz").write_bytes(gzip.compress(log.read_bytes(), 6))
    convert([log], folder / "day_0.parquet")
    logs, zipped, parquet = (
        [folder / name] * repeats for name in (log.name, "day_0.gz", "day_0.parquet")
    )

    def converts(sources: list[Path], compression: str = "none") -> Callable[[], int]:
        options = ConvertOptions(compression=compression)
        return lambda: convert(sources, folder / f"{compression}.parquet", options).samples

    return {
        "parse": lambda: parse(logs),
        "pyarrow.csv, 1 thread": lambda: arrow_csv(logs),
        "stream, 1 worker": lambda: stream(logs, 1),
        "stream, 2 workers": lambda: stream(logs, 2),
        "stream of gz, 1 worker": lambda: stream(zipped, 1),
        "stream of Parquet, 1 worker": lambda: stream(parquet, 1),
        "convert": converts(logs),
        "convert, zstd": converts(logs, "zstd"),
        "convert from gz": converts(zipped),
    }


def measure(runs: dict[str, Callable[[], int]], sizes: Sizes) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    total = sizes.lines * sizes.repeats
    for number in range(sizes.rounds + 1):  # the first compiles, and is not counted
        for name, run in runs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            lines = run()
            if lines != total:
                raise AssertionError(f"{name}: {lines} lines, expected {total}")
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    return {
        name: {
            "lines_per_second": total / statistics.median(seconds[name]),
            "lines_per_second_best": total / min(seconds[name]),
            "cpu_seconds_per_million_lines": statistics.median(cpu[name]) / total * 1e6,
        }
        for name in runs
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a small log, one round")
    parser.add_argument("--dir", type=Path, help="where the files lie (temporary)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    sizes = SMOKE if args.smoke else Sizes()
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        log = folder / "day_0"
        write_log(log, sizes.lines)
        load = os.getloadavg()[0]
        results = measure(contenders(folder, log, sizes.repeats), sizes)
        line_bytes = {
            "tsv": log.stat().st_size / sizes.lines,
            "gz": (folder / "day_0.gz").stat().st_size / sizes.lines,
            "parquet": (folder / "day_0.parquet").stat().st_size / sizes.lines,
            "parquet, zstd": (folder / "zstd.parquet").stat().st_size / sizes.lines / sizes.repeats,
        }
    for name, result in results.items():
        print(
            f"{name:28} {result['lines_per_second'] / 1e6:6.2f} M lines/s (best "
            f"{result['lines_per_second_best'] / 1e6:.2f}), "
            f"{result['cpu_seconds_per_million_lines']:.2f} s of CPU a million"
        )
    print(", ".join(f"{form} {size:.0f} bytes a line" for form, size in line_bytes.items()))
    speed, cpu = "lines_per_second", "cpu_seconds_per_million_lines"
    ratio = results["convert"][speed] / results["parse"][speed]
    cpu_ratio = 2 * results["parse"][cpu] / results["convert"][cpu]
    verdict = "pass" if ratio >= BAR else "SHORT"
    print(
        f"converting beside one core's parsing: {ratio:.2f}, bar {BAR} {verdict}; by processor "
        f"time, on two idle cores: at best {cpu_ratio:.2f} (load average now {load:.1f})"
    )
    report = {
        "benchmark": "criteo",
        **provenance(__file__, argv),
        "load_average": load,
        "lines": sizes.lines,
        "repeats": sizes.repeats,
        "rounds": sizes.rounds,
        "bytes_per_line": line_bytes,
        "results": results,
        "convert_to_parse": {"value": ratio, "bar": BAR, "pass": ratio >= BAR},
        "convert_to_parse_by_cpu_of_two_cores": cpu_ratio,
    }
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
