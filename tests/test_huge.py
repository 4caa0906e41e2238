"""A table of 10 TB on whatever machine this is: opens at once, trains, stays small in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from same_bits import assert_same_bits

import tiered_emb as te

ROWS, DIM = 20_000_000_000, 128
BATCHES, BATCH = 3000, 256

# In a process of its own, for its peak memory: opens, trains scattered rows, closes.
TRAIN = """
    import json, sys, time, torch
    sys.path.insert(0, {tests!r})
    import test_huge
    # The quickest of three: a sync may wait for what other processes write to the disk.
    opened = []
    for i in range(3):
        start = time.perf_counter()
        bag = test_huge.open_table({path!r} + str(i))
        opened.append(time.perf_counter() - start)
    test_huge.train(bag, range(test_huge.BATCHES))
    stats = bag.stats().as_dict()
    status = open("/proc/self/status").read()
    # Not the libraries' pages, of which more or fewer are mapped as the page cache has them.
    peak = int(status.split("RssAnon:")[1].split()[0]) * 1024
    bag.close()
    print(json.dumps({{"opened_s": min(opened), "peak_bytes": peak, "stats": stats}}))
"""


def open_table(path: str, resume: bool = False, dram: str = "256MiB") -> te.TieredEmbedding:
    return te.TieredEmbedding(
        ROWS,
        DIM,
        mode="sum",
        tiers=te.Tiers(dram=dram, ssd=te.SSD(path, resume=resume)),
        optimizer=te.optim.RowwiseAdagrad(0.1),
        init=te.init.Uniform(-0.01, 0.01),
        seed=42,
        name="huge",
    )


def batch_of(step: int) -> torch.Tensor:
    """Scattered rows; the last 300 batches come back to those of the first, long gone from dram."""
    generator = torch.Generator().manual_seed(step % 2700)
    ids = torch.randint(0, ROWS, (BATCH,), generator=generator)
    ids[0], ids[1] = 0, ROWS - 1
    return ids


def train(bag: te.TieredEmbedding, steps: range) -> None:
    for step in steps:
        out = bag(batch_of(step).reshape(64, 4))
        out.backward(torch.ones_like(out))


@pytest.mark.slow
def test_ten_terabytes(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    code = textwrap.dedent(TRAIN.format(tests=str(Path(__file__).parent), path=path))
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert ROWS * DIM * 4 > 10e12
    assert result["opened_s"] < 1
    assert result["peak_bytes"] < 0.8e9
    stats = result["stats"]
    assert stats["steps"] == BATCHES
    assert stats["dram_bytes"] <= 256 * 2**20
    assert stats["resident_rows"] < stats["unique_rows"]
    assert stats["rows_filled_from_ssd"] > 10_000
    assert stats["total_rows"] == ROWS

    start = time.perf_counter()
    path += "2"  # of the last one that was opened
    resumed = open_table(path, resume=True, dram="32MiB")
    opened = time.perf_counter() - start
    # The same rows alone, all in dram: a row's values depend on its own updates only.
    chosen = [0, 1, 2, 1003, 1004, 1005, 2998, 2999]
    sample = torch.cat([batch_of(step)[2:] for step in chosen]).unique()
    expected, total = replay(sample, tmp_path / "initial")
    assert_same_bits(resumed.rows(sample), expected, "rows after resume")
    assert_same_bits(resumed.state_rows(sample)["sum"], total, "state after resume")
    train(resumed, range(20))
    resumed.close()
    assert opened < 3  # reads the index of 600,000 rows
    untouched = torch.tensor([7, ROWS // 2 + 1])
    fresh = open_table(str(tmp_path / "fresh"), dram="8MiB")
    resumed = open_table(path, resume=True)
    assert_same_bits(resumed.rows(untouched), fresh.rows(untouched), "rows never touched")
    assert resumed.rows(untouched).abs().max() <= 0.01
    resumed.close()
    fresh.close()


def replay(sample: torch.Tensor, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and state of `sample`, trained in a table that holds nothing else."""
    small = te.TieredEmbedding(len(sample), DIM, mode="sum", optimizer=te.optim.RowwiseAdagrad(0.1))
    initial = open_table(str(folder), dram="64MiB")
    small.write_rows(range(len(sample)), initial.rows(sample))
    initial.close()
    for step in range(BATCHES):
        ids = batch_of(step)
        known = torch.isin(ids, sample)
        if known.any():
            own = torch.searchsorted(sample, ids[known])
            out = small(own[:, None])
            out.backward(torch.ones_like(out))
    return small.rows(range(len(sample))), small.state_rows(range(len(sample)))["sum"]


def test_opening_takes_little_space(tmp_path: Path) -> None:
    for rows, dim in ((10**10, 1024), (10**11, 128)):
        folder = tmp_path / str(rows)
        tiers = te.Tiers(dram="64MiB", ssd=str(folder))
        with te.TieredEmbedding(rows, dim, tiers=tiers, optimizer=te.optim.SGD()) as bag:
            out = bag(torch.tensor([[0, rows // 2, rows - 1]]))
            out.sum().backward()
        # A few segments, reserved in advance.
        assert sum(f.stat().st_size for f in folder.rglob("*")) < 256 << 20
