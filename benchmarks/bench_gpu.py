r"""Training steps of a table with an hbm tier on a GPU, beside FBGEMM's tables there.

    python benchmarks/bench_gpu.py --out benchmarks/results/gpu.json

One table, bags of 20 ids, sums, rowwise Adagrad; lookup and update of the same batches in turn:

    all in hbm            ours, every row on the device: the hit path
    hbm 10%               ours, the rest in dram: rows move through pinned buffers
    fbgemm, hbm           FBGEMM's table on the device
    fbgemm, uvm caching   FBGEMM's cache on the device, of as many rows, over managed memory
    torch                 nn.EmbeddingBag(sparse=True) on the device and torch.optim.SGD

Beside them what pinned memory gives each way in the same run, and which part of it our moves took.
Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_device import POOLING, some_rows
from torch import nn

import tiered_emb as te
from tiered_emb.bench.provenance import provenance, write_report

Step = Callable[[torch.Tensor], None]
Report = dict[str, Any]
HBM_SHARE = 0.1


def link_bytes_per_s(nbytes: int) -> dict[str, float]:
    """Bytes a second from and to pinned memory."""
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    rates = {}
    for name, target, source in (("up", device, host), ("down", host, device)):
        times = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        rates[name] = nbytes / statistics.median(times)
    return rates


def ours(rows: int, dim: int, share: float, grad: torch.Tensor) -> tuple[te.TieredEmbedding, Step]:
    slot_bytes = -(-(dim + 1) * 4 // 16) * 16
    bag = te.TieredEmbedding(
        rows,
        dim,
        mode="sum",
        tiers=te.Tiers(hbm=te.HBM(int(rows * share) * slot_bytes, "cuda", buffer="32MiB")),
        optimizer=te.optim.RowwiseAdagrad(lr=0.01),
        init=te.init.Uniform(-0.01, 0.01),
    )
    offsets = torch.arange(0, len(grad) * POOLING, POOLING)
    return bag, lambda ids: bag(ids, offsets).backward(grad)


def fbgemm(rows: int, dim: int, place: str, grad: torch.Tensor) -> Step | None:
    """None where FBGEMM has no CUDA here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fbgemm_gpu.split_embedding_configs import EmbOptimType
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )

            table = SplitTableBatchedEmbeddingBagsCodegen(
                [(rows, dim, EmbeddingLocation[place], ComputeDevice.CUDA)],
                optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
                learning_rate=0.01,
                eps=1e-8,
                cache_load_factor=HBM_SHARE,
                device=torch.device("cuda"),
            )
            table.init_embedding_weights_uniform(-0.01, 0.01)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        print(f"fbgemm, {place}: left out: {error}")
        return None
    offsets = torch.arange(0, len(grad) * POOLING + 1, POOLING, device="cuda")
    return lambda ids: table(ids.cuda(non_blocking=True), offsets).backward(grad)


def torch_bag(rows: int, dim: int, grad: torch.Tensor) -> Step:
    bag = nn.EmbeddingBag(rows, dim, mode="sum", sparse=True, device="cuda")
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.01)
    offsets = torch.arange(0, len(grad) * POOLING, POOLING, device="cuda")

    def step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        bag(ids.cuda(non_blocking=True), offsets).backward(grad)
        optimizer.step()

    return step


def measure(
    rows: int, dim: int, bags: int, stream: str, rounds: int, steps: int, link: dict[str, float]
) -> Report:
    grad = torch.randn(bags, dim, device="cuda") * 1e-3
    everything, all_in_hbm = ours(rows, dim, 1.0, grad)
    tiered, some_in_hbm = ours(rows, dim, HBM_SHARE, grad)
    turns: dict[str, Step | None] = {
        "all in hbm": all_in_hbm,
        "hbm 10%": some_in_hbm,
        "fbgemm, hbm": fbgemm(rows, dim, "DEVICE", grad),
        "fbgemm, uvm caching": fbgemm(rows, dim, "MANAGED_CACHING", grad),
        "torch": torch_bag(rows, dim, grad),
    }
    ids = some_rows(rows, bags * POOLING * steps, stream)
    batches = [part.pin_memory() for part in ids.view(steps, -1)]
    taken: dict[str, list[float]] = {name: [] for name, step in turns.items() if step is not None}
    before = tiered.stats()
    for number in range(rounds + 1):
        for name, step in turns.items():
            if step is None:
                continue
            torch.cuda.synchronize()
            start = time.perf_counter()
            for batch in batches:
                step(batch)
            torch.cuda.synchronize()
            if number > 0:
                taken[name].append((time.perf_counter() - start) / steps)
    after = tiered.stats()
    done = (rounds + 1) * steps
    slot_bytes = after.total_row_bytes / after.total_rows
    up = (after.hbm_rows_filled - before.hbm_rows_filled) * slot_bytes / done
    down = (after.hbm_rows_spilled - before.hbm_rows_spilled) * slot_bytes / done
    step_s = statistics.median(taken["hbm 10%"])
    everything.close()
    tiered.close()
    return {
        "dim": dim,
        "stream": stream,
        "rows": rows,
        "bags": bags,
        "lookups_per_s": {
            name: bags * POOLING / statistics.median(times) for name, times in taken.items()
        },
        "step_ms": {
            name: [1e3 * q for q in statistics.quantiles(times, n=4)]
            for name, times in taken.items()
        },
        "moved_bytes_a_step": {"up": up, "down": down},
        "moved_of_link": max(up / link["up"], down / link["down"]) / step_s,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count (default: 7)")
    parser.add_argument("--steps", type=int, default=10, help="batches a turn (default: 10)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU is present: nothing was measured")
        return 0
    rows, bags = (100_000, 512) if args.smoke else (8_000_000, 65_536)
    rounds, steps = (2, 3) if args.smoke else (args.rounds, args.steps)
    link = link_bytes_per_s(1 << (24 if args.smoke else 30))
    report = provenance(__file__, argv)
    report["gpu"] = torch.cuda.get_device_name()
    report["link_bytes_per_s"] = link
    parts = []
    for stream in ("uniform", "zipf"):
        parts.append(measure(rows, 64, bags, stream, rounds, steps, link))
        print(parts[-1], flush=True)
    report["parts"] = parts
    write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
