"""What the sample of lookups costs that every engine keeps for `recommend()`.

    python benchmarks/bench_lookup_sample.py --out benchmarks/results/lookup_sample.json

Batches are watched in bursts, with rests between. Without layers, so that nothing hides it: lookups
alone or with their updates, of rows in dram or on ssd, too. Blocks of a few milliseconds take turns
in one process. `watching`: all batches are watched, against none; the geometric mean over pairs of
blocks, without the tenth at each end. `share`: of all batches, those that are watched when nothing
is forced, over one whole burst and rest. `cost`: the one times the other. `measured`: as users have
it, against none; the sums of all blocks, for at least a whole burst and rest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from block_pairs import Floats, bounds, ratio_of_sums, trimmed_mean

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report
from tiered_emb.bench.streams import ZipfIds
from tiered_emb.lookup_sample import lookup_sample

BATCHES = 61
"""Different ones, over and over; a prime, so that every batch comes in blocks of either kind."""
BLOCK_S = 3e-3


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    dim: int
    ids: int
    """Of a batch."""
    exponent: float
    """Of Zipf's law; 0: uniform."""
    trains: bool
    bag: int = 1
    dram: float | None = None
    """Share of the rows' bytes; the others are on ssd."""


LARGE = 2_000_000
CASES = (
    Case("lookups, uniform", LARGE, 32, 16384, 0, False),
    Case("lookups, Zipf", LARGE, 32, 16384, 1.05, False),
    Case("lookups, Zipf, dim 128", LARGE, 128, 16384, 1.05, False),
    Case("lookups, Zipf, bags of 32", LARGE, 32, 65536, 1.05, False, 32),
    Case("lookups, Zipf, dim 4, bags of 32", LARGE, 4, 65536, 1.05, False, 32),
    Case("lookups, 5,000 rows of 4, bags of 32", 5_000, 4, 65536, 1.05, False, 32),
    Case("lookups, 1,000 rows of 4, bags of 32", 1_000, 4, 65536, 1.05, False, 32),
    Case("lookups, Zipf, 64 ids", LARGE, 32, 64, 1.05, False),
    Case("lookups, Zipf, 2 ids", LARGE, 32, 2, 1.05, False),
    Case("lookups, Zipf, half in dram", LARGE, 32, 16384, 1.05, False, 1, 0.5),
    Case("training, uniform", LARGE, 32, 16384, 0, True),
    Case("training, Zipf", LARGE, 32, 16384, 1.05, True),
    Case("training, 5,000 rows of 4, bags of 32", 5_000, 4, 65536, 1.05, True, 32),
    Case("training, Zipf, half in dram", LARGE, 32, 16384, 1.05, True, 1, 0.5),
)
SMOKE = (
    Case("lookups, uniform", 100_000, 4, 16384, 0, False),
    Case("training, uniform", 100_000, 4, 16384, 0, True),
)


class Bag:
    """A table of a case, and its batches."""

    def __init__(self, case: Case, folder: str) -> None:
        tiers = None
        if case.dram is not None:
            dram = int(case.dram * case.rows * case.dim * 4)
            tiers = te.Tiers(dram=dram, ssd=te.SSD(str(Path(folder) / "store")))
        optimizer = te.optim.SGD(0.01) if case.trains else None
        self.table = te.TieredEmbedding(
            case.rows, case.dim, mode="sum", optimizer=optimizer, tiers=tiers
        )
        stream = ZipfIds(case.rows, case.exponent, "table", 0)
        self._batches = [
            torch.from_numpy(stream.draw(case.ids)).view(-1, case.bag) for _ in range(BATCHES)
        ]
        self._grad = torch.full((case.ids // case.bag, case.dim), 1e-3)
        self._trains = case.trains
        self._next = 0

    def run(self, batches: int) -> float:
        """Seconds that they take."""
        start = time.perf_counter()
        with torch.set_grad_enabled(self._trains):
            for _ in range(batches):
                pooled = self.table(self._batches[self._next % BATCHES])
                self._next += 1
                if self._trains:
                    pooled.backward(self._grad)
        return time.perf_counter() - start

    def watch(self, watches: bool | None) -> int:
        """Every batch from now on, or none; None: as users have it. Those watched so far."""
        return self.table._engine._core.hold_lookup_sample(watches)

    def run_until(self, done: Callable[[int], bool]) -> tuple[int, int]:
        """Until that holds of the batches watched meanwhile; batches run and watched by then."""
        before = self.watch(None)
        while True:
            self.run(1)
            watched = self.watch(None)
            if done(watched - before):
                return self._next, watched
            before = watched

    def cycle(self) -> tuple[int, int]:
        """Batches of one burst and rest, and those of them that are watched."""
        rests, watches = (lambda new: new == 0), (lambda new: new > 0)
        self.run_until(watches)
        start = self.run_until(rests)
        self.run_until(watches)
        end = self.run_until(rests)
        return end[0] - start[0], end[1] - start[1]


def pairs_of(bag: Bag, watches: bool | None, steps: int, pairs: int) -> Floats:
    """[pairs, 2] seconds of a block of which no batch is watched, and of one with."""
    seconds = np.zeros((pairs, 2))
    for pair in range(pairs):
        for side in (pair % 2, 1 - pair % 2):
            bag.watch(watches if side else False)
            seconds[pair, side] = bag.run(steps)
    return seconds


def compare(case: Case, is_smoke: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bag = Bag(case, folder)
        bag.watch(True)
        bag.run(BATCHES)
        steps = max(1, round(BLOCK_S / (bag.run(BATCHES) / BATCHES)))
        while bag.watch(True) == lookup_sample(bag.table._engine).batches_spanned:
            bag.run(BATCHES)  # until it is full
        always = pairs_of(bag, True, steps, 4 if is_smoke else 1000)
        logs = np.log(always[:, 1] / always[:, 0])
        bag.watch(None)
        batches, watched = bag.cycle()
        blocks = 4 if is_smoke else max(10_000, -(-batches // steps))
        measured = pairs_of(bag, None, steps, blocks)
        bag.table.close()
    watching = float(np.expm1(trimmed_mean(logs)))
    watching_bounds = [float(np.expm1(r)) for r in bounds(logs, trimmed_mean)]
    share = watched / batches
    report = {
        **asdict(case),
        "batch_us": float(np.median(always[:, 0])) / steps * 1e6,
        "watching": watching,
        "watching_within_95pct": watching_bounds,
        "cycle_batches": batches,
        "share": share,
        "cost": watching * share,
        "cost_within_95pct": [r * share for r in watching_bounds],
        "measured": ratio_of_sums(measured) - 1,
        "measured_within_95pct": [r - 1 for r in bounds(measured, ratio_of_sums)],
        "measured_cycles": blocks * steps / batches,
    }
    low, high = report["measured_within_95pct"]
    print(
        f"{case.name:40} {report['batch_us']:8.1f} us; watching {watching:+7.1%} of one "
        f"in {1 / share:6.1f}: {watching * share:.2%}; measured {report['measured']:+.2%} "
        f"({low:+.2%} to {high:+.2%})",
        flush=True,
    )
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    cases = [compare(case, args.smoke) for case in (SMOKE if args.smoke else CASES)]
    write_report(
        args.out, {"benchmark": "lookup_sample", **provenance(__file__, argv), "cases": cases}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
