r"""Lookups and training steps of tiered tables beside `nn.EmbeddingBag` and sparse optimizers.

    python benchmarks/bench_embedding_bag.py --steps 40 --warm-up 10 \
        --out benchmarks/results/embedding_bag.json

Contenders take turns on the same batches within one process: a collection with all rows in dram,
the same with the rest on ssd at smaller budgets, and one `nn.EmbeddingBag(sparse=True)` a table.
Reported are the median and the quartiles of the step time, and the ratio of the medians to torch's.
A step is forward (no_grad), or forward + backward + update.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report

# OpenMP's workers spin after torch's last loop; the next contender shall not pay for it.
IDLE_SECONDS = 0.005

Batch = dict[str, tuple[torch.Tensor, torch.Tensor]]
Step = Callable[[Batch], None]

OPTIMIZERS = {
    "sgd": (lambda: te.optim.SGD(0.01), lambda p: torch.optim.SGD(p, 0.01)),
    "adagrad": (lambda: te.optim.Adagrad(0.01), lambda p: torch.optim.Adagrad(p, 0.01)),
    "adam": (lambda: te.optim.Adam(0.001), lambda p: torch.optim.SparseAdam(p, 0.001)),
}


@dataclass(frozen=True)
class Workload:
    """Shape of the tables and of the batches."""

    tables: int
    rows: int
    dim: int
    batch: int
    pooling: int
    exponent: float
    """Of the Zipf law of ids; 0 is uniform."""

    @property
    def names(self) -> list[str]:
        return [f"t{i}" for i in range(self.tables)]


def draw(workload: Workload, rng: np.random.Generator) -> Batch:
    """One batch: for each table ids [batch * pooling] and offsets [batch]."""
    n = workload.batch * workload.pooling
    offsets = torch.arange(0, n, workload.pooling)
    weights = np.arange(1, workload.rows + 1, dtype=np.float64) ** -workload.exponent
    cumulative = np.cumsum(weights)
    batch = {}
    for i, name in enumerate(workload.names):
        rank = np.searchsorted(cumulative, rng.random(n) * cumulative[-1])
        # A fixed bijection scatters the popular ids over the table.
        ids = (np.minimum(rank, workload.rows - 1) * 2_654_435_761 + 12_345 * i) % workload.rows
        batch[name] = (torch.from_numpy(ids.astype(np.int64)), offsets)
    return batch


@contextmanager
def tiered(workload: Workload, optimizer: str, share: float, train: bool) -> Iterator[Step]:
    """A collection with `share` of its rows in dram; below 1 the rest is on ssd."""
    tables = [te.Table(name, workload.rows, workload.dim) for name in workload.names]
    opt = OPTIMIZERS[optimizer][0]() if train else None
    with ExitStack() as stack:
        tiers = None
        if share < 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tiered-emb-"))
            with te.TieredEmbeddingCollection(tables, optimizer=opt) as probe:
                budget = int(probe.row_bytes * share)
            tiers = te.Tiers(dram=budget, ssd=te.SSD(folder + "/store"))
            opt = OPTIMIZERS[optimizer][0]() if train else None
        collection = stack.enter_context(
            te.TieredEmbeddingCollection(tables, tiers=tiers, optimizer=opt)
        )
        grad = torch.randn(workload.batch, workload.dim)
        with torch.no_grad():  # torch's tables hold their initial values already
            for first in range(0, workload.rows, 4096):
                ids = torch.arange(first, min(first + 4096, workload.rows))
                for name in workload.names:
                    collection({name: ids})

        def step(batch: Batch) -> None:
            outs = list(collection(batch).values())
            if train:
                torch.autograd.backward(outs, [grad] * len(outs))

        yield step


@contextmanager
def torch_bags(workload: Workload, optimizer: str, train: bool) -> Iterator[Step]:
    """One `nn.EmbeddingBag(sparse=True)` a table and one torch optimizer over all."""
    bags = {
        name: nn.EmbeddingBag(workload.rows, workload.dim, mode="sum", sparse=True)
        for name in workload.names
    }
    opt = OPTIMIZERS[optimizer][1]([bag.weight for bag in bags.values()])
    grad = torch.randn(workload.batch, workload.dim)

    def step(batch: Batch) -> None:
        outs = [bags[name](*value) for name, value in batch.items()]
        if train:
            opt.zero_grad()
            torch.autograd.backward(outs, [grad] * len(outs))
            opt.step()

    yield step


def compare(contenders: dict[str, Step], batches: list[Batch], warm_up: int) -> dict[str, object]:
    """Times every contender on every batch, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for i, batch in enumerate(batches):
        order.append(order.pop(0))  # the first finds the batch's ids in no cache
        for name, step in order:
            time.sleep(IDLE_SECONDS)
            start = time.perf_counter()
            step(batch)
            if i >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    reference = float(np.median(seconds["nn.EmbeddingBag"]))
    result = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(np.array(values) * 1e3, [25, 50, 75])
        result[name] = {
            "step_ms_p25": low,
            "step_ms_p50": median,
            "step_ms_p75": high,
            "speedup": reference * 1e3 / median,
        }
    return result


def run(
    workload: Workload, optimizer: str, train: bool, shares: list[float], steps: int, warm_up: int
) -> dict[str, object]:
    """One row of the report."""
    rng = np.random.default_rng(0)
    with ExitStack() as stack, torch.set_grad_enabled(train):
        contenders = {
            f"tiered {share:.0%}": stack.enter_context(tiered(workload, optimizer, share, train))
            for share in shares
        }
        contenders["nn.EmbeddingBag"] = stack.enter_context(torch_bags(workload, optimizer, train))
        batches = [draw(workload, rng) for _ in range(warm_up + steps)]
        result = compare(contenders, batches, warm_up)
    return {
        **asdict(workload),
        "step": f"train, {optimizer}" if train else "forward",
        "contenders": result,
    }


def plan(smoke: bool) -> list[tuple[Workload, str, bool, list[float]]]:
    """The rows of the report: (workload, optimizer, train, shares of rows in dram)."""
    if smoke:
        small = Workload(2, 2_000, 16, 64, 2, 1.05)
        return [(small, "adagrad", True, [1.0, 0.5]), (small, "adagrad", False, [1.0])]
    single = [Workload(26, 100_000, dim, 2048, 1, e) for dim in (32, 128) for e in (1.05, 0.0)]
    bags = [Workload(8, 200_000, 64, 1024, 20, e) for e in (1.05, 0.0)]
    rows: list[tuple[Workload, str, bool, list[float]]] = []
    for workload in single + bags:
        rows.append((workload, "sgd", False, [1.0]))
        rows += [(workload, name, True, [1.0]) for name in OPTIMIZERS]
    # The price of a small budget: Zipf ids, the case of the README's chart.
    rows.append((single[0], "adagrad", True, [1.0, 0.5, 0.25, 0.1, 0.05]))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--steps", type=int, default=60, help="measured steps a row (default 60)")
    parser.add_argument("--warm-up", type=int, default=30, help="steps before them (default 30)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    steps, warm_up = (4, 2) if args.smoke else (args.steps, args.warm_up)
    rows = []
    for workload, optimizer, train, shares in plan(args.smoke):
        row = run(workload, optimizer, train, shares, steps, warm_up)
        rows.append(row)
        label = f"{workload.tables}x{workload.rows} d{workload.dim} b{workload.batch}"
        label += f" p{workload.pooling} zipf {workload.exponent} {row['step']}"
        for name, figures in row["contenders"].items():  # type: ignore[attr-defined]
            print(
                f"{label:56} {name:16} {figures['step_ms_p50']:9.2f} ms {figures['speedup']:6.2f}x"
            )
    write_report(
        args.out, {"benchmark": "embedding_bag", **provenance(__file__, argv), "rows": rows}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
