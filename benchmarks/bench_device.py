r"""The kernels of the hbm tier on a GPU, beside torch's own and the memory's limit.

    python benchmarks/bench_device.py --out benchmarks/results/device.json

Lookups and updates over slots whose numbers are known, as the executor of a plan meets them;
nothing is planned and nothing moves between tiers. Contenders take turns on the same batches.
Beside each figure stands the rate of its own bytes (rows read and written, gradients, outputs,
indices) as a share of what a copy within the GPU's memory moves in the same run. Without a GPU it
says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tiered_emb.bench.provenance import provenance, write_report

DIMS = (32, 64, 128)
POOLING = 20
WARM_UP = 5

Report = dict[str, Any]


def time_ms(work: list[Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """Quartiles of the milliseconds of each, which take turns, by the GPU's own clock."""
    taken: list[list[float]] = [[] for _ in work]
    for turn in range(WARM_UP + rounds):
        for i, step in enumerate(work):
            torch.cuda._sleep(400_000)  # so that all is queued before the first kernel begins
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                taken[i].append(begin.elapsed_time(end))
    quartiles = [np.percentile(times, [25, 50, 75]) for times in taken]
    return [{"p25": float(a), "p50": float(b), "p75": float(c)} for a, b, c in quartiles]


def copy_bytes_per_s(rounds: int, copied_bytes: int) -> float:
    """Bytes read and written a second by a copy within the GPU's memory."""
    source = torch.zeros(copied_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    (taken,) = time_ms([lambda: target.copy_(source)], rounds)
    return 2 * copied_bytes / (taken["p50"] / 1e3)


def some_rows(rows: int, count: int, stream: str) -> torch.Tensor:
    """Row numbers [count]: uniform, or Zipf 1.05 over shuffled rows."""
    random = np.random.default_rng(7)
    if stream == "uniform":
        return torch.from_numpy(random.integers(0, rows, count))
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -1.05
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), random.random(count))
    return torch.from_numpy(random.permutation(rows)[np.minimum(ranks, rows - 1)])


def bench_lookup(slots: Any, ids: torch.Tensor, bags: int, rounds: int, copy: float) -> Report:
    """Pooled lookup of the ids, beside torch's of the same rows."""
    from tiered_emb.device import launch

    dim = slots.layout.dim
    table = slots.weights[:, :dim].contiguous()
    number = ids.to(torch.int32)
    begin = torch.arange(0, bags * POOLING + 1, POOLING, device="cuda")
    out = torch.empty(bags, dim, device="cuda")

    def ours() -> None:
        launch.pool(slots, number, begin, "sum", out)

    def torchs() -> torch.Tensor:
        return F.embedding_bag(ids, table, begin[:-1], mode="sum")

    ours_ms, torch_ms = time_ms([ours, torchs], rounds)
    assert torch.allclose(out, torchs(), rtol=1e-4, atol=1e-4)
    moved = bags * POOLING * (4 * dim + 4) + bags * (4 * dim + 8)
    return {
        "forward_ms": ours_ms,
        "forward_lookups_per_s": bags * POOLING / (ours_ms["p50"] / 1e3),
        "forward_of_copy": moved / (ours_ms["p50"] / 1e3) / copy,
        "torch_embedding_bag_ms": torch_ms,
    }


def bench_update(slots: Any, ids: torch.Tensor, bags: int, rounds: int, copy: float) -> Report:
    """Update of the ids' rows by rowwise Adagrad, beside torch's operations for the same."""
    from tiered_emb.device import launch

    dim, count = slots.layout.dim, len(slots.bytes)
    unique, inverse = torch.unique(ids, return_inverse=True)
    order = torch.argsort(inverse, stable=True)
    counts = torch.bincount(inverse, minlength=len(unique))
    csr = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    occurrences = launch.Occurrences(
        unique.to(torch.int32), unique, csr, (order // POOLING).to(torch.int32)
    )
    gradients = launch.Gradients(torch.randn(bags, dim, device="cuda") * 1e-3)
    step = launch.step_numbers(3, (0.01, 1e-8, 0.0, 0.0, 0.0, 0.0), 1, (1, 2), "cuda")
    every = torch.arange(len(unique), dtype=torch.int32, device="cuda")
    few, many = every[counts <= launch.OFTEN], every[counts > launch.OFTEN]
    summed = torch.empty(len(many), dim, device="cuda")
    table = slots.weights[:, :dim].contiguous()
    sums = torch.zeros(count, device="cuda")
    bag_of = torch.arange(len(ids), device="cuda") // POOLING

    def ours() -> None:
        launch.update(slots, few, occurrences, "sum", gradients, step)
        if len(many) > 0:
            launch.sum_gradients(many, occurrences, "sum", gradients, summed)
            launch.update(slots, many, occurrences, "sum", summed, step)

    def torchs() -> None:
        total = torch.zeros(len(unique), dim, device="cuda")
        total.index_add_(0, inverse, gradients.grad[bag_of])
        accumulated = sums[unique] + total.pow(2).mean(1)
        sums[unique] = accumulated
        table[unique] -= 0.01 / (accumulated.sqrt() + 1e-8)[:, None] * total

    ours_ms, torch_ms = time_ms([ours, torchs], rounds)
    moved = len(ids) * (4 * dim + 4) + len(unique) * (2 * (4 * dim + 4) + 16)
    return {
        "unique_rows": len(unique),
        "rows_that_occur_often": len(many),
        "occurrences_of_one_row_most": int(counts.max()),
        "update_ms": ours_ms,
        "update_lookups_per_s": len(ids) / (ours_ms["p50"] / 1e3),
        "update_of_copy": moved / (ours_ms["p50"] / 1e3) / copy,
        "torch_operations_ms": torch_ms,
    }


def bench_dim(dim: int, rows: int, bags: int, stream: str, rounds: int, copy: float) -> Report:
    """Forward and update of one shape."""
    from tiered_emb.device.slots import SlotLayout, Slots

    slots = Slots.zeros(SlotLayout(dim, torch.float32, 3), rows, "cuda")
    slots.weights[:, :dim] = torch.randn(rows, dim, device="cuda")
    ids = some_rows(rows, bags * POOLING, stream).cuda()
    shape = {"dim": dim, "stream": stream, "rows": rows, "bags": bags, "pooling": POOLING}
    lookup = bench_lookup(slots, ids, bags, rounds, copy)
    return {**shape, **lookup, **bench_update(slots, ids, bags, rounds, copy)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--rounds", type=int, default=50, help="turns that count (default: 50)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU is present: nothing was measured")
        return 0
    rounds = 3 if args.smoke else args.rounds
    rows, bags = (100_000, 1024) if args.smoke else (8_000_000, 65_536)
    copy = copy_bytes_per_s(rounds, 1 << (24 if args.smoke else 32))
    report = provenance(__file__, argv)
    report["gpu"] = torch.cuda.get_device_name()
    report["copy_bytes_per_s"] = copy
    parts = []
    for dim in DIMS:
        for stream in ("uniform", "zipf"):
            parts.append(bench_dim(dim, rows, bags, stream, rounds, copy))
            print(json.dumps(parts[-1]), flush=True)
    report["parts"] = parts
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
