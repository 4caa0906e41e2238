"""Prefetched batches: the same bits as without, whatever comes between, and nothing left behind."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from prefetched import ALL, DIM, MIN, ROWS, SOME, Tensor, make_bag, random_batches

import tiered_emb as te

OPTIMIZERS = {
    "sgd": lambda fused: te.optim.SGD(0.1, fused=fused),
    "adagrad": lambda fused: te.optim.Adagrad(0.1, fused=fused),
    "rowwise": lambda fused: te.optim.RowwiseAdagrad(0.1, fused=fused),
    "adam": lambda fused: te.optim.Adam(0.1, fused=fused),
}


def run_program(bag: Any, batches: Any, seed: int) -> list[Tensor]:
    """Trains on the batches, with other calls in between; everything that can be seen."""
    rng = random.Random(seed)
    seen: list[Tensor] = []
    pending: list[Tensor] = []
    for step, (ids, offsets) in enumerate(batches):
        draw = rng.random()
        if draw < 0.1:
            continue  # announced and never looked up
        if draw < 0.2:
            with torch.no_grad():
                seen.append(bag(ids, offsets))
            continue
        out = bag(ids, offsets)
        seen.append(out.detach().clone())
        if draw < 0.3:
            del out  # a forward without a backward
        elif draw < 0.4:
            pending.append(out)  # two forwards, then their backwards
        else:
            pending.append(out)
            for i, y in enumerate(pending):
                (y * (0.5 + 0.01 * i * step)).sum().backward()
            pending.clear()
        between(bag, rng, step, seen)
    seen.append(bag.to_dense())
    seen.extend(bag.state_rows(torch.arange(ROWS)).values())
    return seen


def between(bag: Any, rng: random.Random, step: int, seen: list[Tensor]) -> None:
    draw = rng.random()
    some = torch.tensor([rng.randrange(ROWS) for _ in range(4)])
    if not bag.optimizer.fused:
        bag.optimizer.step()
        bag.optimizer.zero_grad()
    if draw < 0.1:
        seen.append(bag.rows(some))
    elif draw < 0.2:
        bag.write_rows(some, torch.full((4, DIM), step / 7).to(bag.rows(some).dtype))
    elif draw < 0.3:
        with torch.no_grad():
            seen.append(bag(some, torch.tensor([0, 2])))
    elif draw < 0.4:
        with te.not_prefetched():
            bag(some, torch.tensor([0])).sum().backward()
    elif draw < 0.45:
        bag.flush()
    elif draw < 0.5:
        bag.cancel_prefetch()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("slots", [MIN, SOME, ALL])
def test_the_same_bits_at_any_depth(tmp_path: Path, name: str, slots: int | None) -> None:
    fused = name != "adagrad"
    options = {"dtype": torch.float16} if name == "rowwise" else {}
    if name == "sgd":
        options = {"max_norm": 1.5, "padding_idx": 4}
    for seed in range(3):
        batches = random_batches(60, seed)
        results = []
        for depth in (0, 1, 3, 10):
            te.set_num_threads(1 + depth % 2)
            bag = make_bag(tmp_path / f"{seed}-{depth}", slots, OPTIMIZERS[name](fused), **options)
            loop = batches if depth == 0 else te.Prefetcher(batches, bag, rows_ahead=depth)
            results.append(run_program(bag, loop, seed))
            bag.close()
        for other in results[1:]:
            assert len(other) == len(results[0])
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("slots", [MIN, SOME, ALL])
def test_the_same_bits_at_any_depth_on_a_device(
    tmp_path: Path, name: str, slots: int | None
) -> None:
    fused = name != "adagrad"
    options = {"max_norm": 1.5, "padding_idx": 4} if name == "sgd" else {}
    batches = random_batches(60, 5)
    results = []
    for depth, hbm in ((0, None), (0, 12), (1, 70), (3, 300), (10, 30)):
        optimizer = OPTIMIZERS[name](fused)
        bag = make_bag(tmp_path / f"{depth}-{hbm}", slots, optimizer, hbm, **options)
        loop = batches if depth == 0 else te.Prefetcher(batches, bag, rows_ahead=depth)
        results.append(run_program(bag, loop, 5))
        bag.close()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_announced_batches_are_taken_and_most_are_ready(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "store", SOME)
    loop = te.Prefetcher(random_batches(50, 1), bag, rows_ahead=2)
    for ids, offsets in loop:
        time.sleep(0.005)  # the model computes
        bag(ids, offsets).sum().backward()
    stats = bag.stats()
    assert stats.prefetched_batches == 50
    assert stats.prefetched_batches_ready >= 40
    report = loop.report
    assert report.batches == report.taken_batches == 50
    assert report.dropped_batches == 0
    assert report.total_s >= report.rows_s + report.planning_s + report.loader_s
    assert "50 batches in" in str(report)
    bag.close()


def test_another_batch_than_the_next_raises(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "store", SOME, name="items")
    first, second = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    bag.prefetch(first)
    bag.prefetch(second)
    with pytest.raises(ValueError, match="table 'items': id 3 at position 0, prefetched was 1"):
        bag(second)
    with pytest.raises(ValueError, match="prefetched next"), torch.no_grad():
        bag(second)  # it was announced, but for later
    with torch.no_grad():
        bag(torch.tensor([[9]]))  # an evaluation in between
    with te.not_prefetched():
        bag(torch.tensor([[9]])).sum().backward()
    bag(first)
    bag(second)
    bag(torch.tensor([[9]])).sum().backward()  # nothing is announced any more
    bag.prefetch(first)
    assert bag.cancel_prefetch() == 1
    bag(second)
    bag.close()


def test_errors_come_with_the_forward(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "store", MIN)
    bag.prefetch(torch.tensor([[1, ROWS]]))
    bag.prefetch(torch.arange(200).unsqueeze(0))
    bag.prefetch(torch.tensor([[5]]))
    with pytest.raises(IndexError, match=f"id {ROWS} at position 1"):
        bag(torch.tensor([[1, ROWS]]))
    with pytest.raises(ValueError, match="budget"):
        bag(torch.arange(200).unsqueeze(0))
    bag(torch.tensor([[5]])).sum().backward()
    with pytest.raises(ValueError, match="1-D or 2-D"):
        bag.prefetch(torch.tensor(3))
    bag.close()
    with pytest.raises(ValueError, match="closed"):
        bag.prefetch(torch.tensor([[1]]))


def test_soak(tmp_path: Path) -> None:
    """Random depths and exceptions on a budget of two batches: no leak, no hang, the same bits.

    TIERED_EMB_SOAK=10000 pytest --timeout 0 tests/test_prefetch.py -k soak
    """
    steps = int(os.environ.get("TIERED_EMB_SOAK", "400"))
    rng = random.Random(1)
    reference = make_bag(tmp_path / "reference", ALL)
    bag = make_bag(tmp_path / "store", MIN)
    done = 0
    resident: list[int] = []
    while done < steps:
        batches = random_batches(min(rng.randrange(1, 60), steps - done), rng.randrange(1 << 30))
        loop = te.Prefetcher(
            batches, bag, rows_ahead=rng.randrange(1, 9), ids_ahead=rng.choice([1, 40])
        )
        fails_at = rng.randrange(120)
        for i, batch in enumerate(loop):
            out, expected = bag(*batch), reference(*batch)
            assert torch.equal(out, expected)
            if i == fails_at:
                break  # as an exception would: in the middle of a step, batches announced
            out.sum().backward()
            expected.sum().backward()
        done += len(batches)
        resident.append(resident_bytes())
    assert torch.equal(bag.to_dense(), reference.to_dense())
    # Flat after the first third, in which buffers grow.
    assert max(resident) <= max(resident[: len(resident) // 3 + 1]) + (8 << 20)
    stats = bag.stats()
    assert stats.resident_rows <= stats.slots
    bag.close()
    reference.close()


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


ENDING = """
import sys, torch
import tiered_emb as te
bag = te.TieredEmbedding(100_000, 16, mode="sum", optimizer=te.optim.SGD(0.1),
                         tiers=te.Tiers(dram="1MiB", ssd=te.SSD(sys.argv[1])))
for i in range(4):
    bag(torch.randint(100_000, (1, 5000))).sum().backward()
batches = [torch.randint(100_000, (1, 5000)) for _ in range(20)]
loop = iter(te.Prefetcher(batches, bag, rows_ahead=6))
y = bag(next(loop))
for batch in batches:
    bag.prefetch(batch)
how = sys.argv[2]
if how == "del":
    del bag, loop, y
elif how == "close":
    bag.close()
elif how == "raise":
    raise SystemExit(7)
print("end")
"""


@pytest.mark.parametrize("how", ["exit", "del", "close", "raise"])
def test_a_process_ends_with_batches_announced(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", ENDING, str(tmp_path / "store"), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7 if how == "raise" else 0, "")
    assert done.stdout == ("" if how == "raise" else "end\n")
