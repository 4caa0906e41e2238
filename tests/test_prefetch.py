"""Prefetched batches: the same bits as without, whatever comes between, and nothing left behind."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiered_emb as te

Tensor = torch.Tensor
ROWS, DIM = 300, 5
MIN, SOME, ALL = 40, 120, None  # rows in dram

OPTIMIZERS = {
    "sgd": lambda fused: te.optim.SGD(0.1, fused=fused),
    "adagrad": lambda fused: te.optim.Adagrad(0.1, fused=fused),
    "rowwise": lambda fused: te.optim.RowwiseAdagrad(0.1, fused=fused),
    "adam": lambda fused: te.optim.Adam(0.1, fused=fused),
}


def make_bag(path: Path, slots: int | None, optimizer: Any = None, **options: Any) -> Any:
    """A table of ROWS rows with room in dram for `slots` of them."""
    optimizer = te.optim.SGD(0.1) if optimizer is None else optimizer
    options = {"mode": "sum", **options}
    probe = te.TieredEmbedding(ROWS, DIM, dtype=options.get("dtype"), optimizer=optimizer)
    row_bytes = probe.row_bytes // ROWS
    dram = None if slots is None else slots * row_bytes
    return te.TieredEmbedding(
        ROWS, DIM, optimizer=OPTIMIZERS_OF[type(optimizer)](optimizer), seed=3,
        tiers=te.Tiers(dram=dram, ssd=te.SSD(str(path))), **options,
    )  # fmt: skip


OPTIMIZERS_OF: dict[type, Any] = {
    te.optim.SGD: lambda o: te.optim.SGD(0.1, fused=o.fused),
    te.optim.Adagrad: lambda o: te.optim.Adagrad(0.1, fused=o.fused),
    te.optim.RowwiseAdagrad: lambda o: te.optim.RowwiseAdagrad(0.1, fused=o.fused),
    te.optim.Adam: lambda o: te.optim.Adam(0.1, fused=o.fused),
}


def random_batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(ids, offsets) of up to 20 ids, some of which come in every batch."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(count):
        n = int(torch.randint(1, 21, (), generator=generator))
        spread = ROWS if i % 3 else 30
        ids = torch.randint(spread, (n,), generator=generator)
        begin = torch.randint(n, (3,), generator=generator).sort().values
        begin[0] = 0
        batches.append((ids.to(torch.int32) if i % 4 == 0 else ids, begin))
    return batches


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


class TwoTables(nn.Module):
    """Two bags of different dims, one of them looked up twice a step."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.EmbeddingBag(ROWS, DIM, mode="sum")
        self.item = nn.EmbeddingBag(ROWS, 2 * DIM, mode="mean")

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.user(user).sum() + self.item(item).pow(2).sum()


def converted(path: Path, model: TwoTables) -> Any:
    tiers = te.Tiers(dram=8 * 1024, ssd=te.SSD(str(path)))
    return te.convert(model, tiers=tiers, optimizer=te.optim.SGD(0.1))


def as_mapping(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"user": batch[0], "item": batch[1]}


@pytest.mark.parametrize("form", ["mapping", "sequence"])
def test_a_converted_model(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    source = TwoTables()
    batches = [(torch.randint(ROWS, (4, 3)), torch.randint(ROWS, (4, 2))) for _ in range(30)]
    dense = []
    for depth in (0, 3):
        copy = TwoTables()
        copy.load_state_dict(source.state_dict())
        model = converted(tmp_path / str(depth), copy)
        loop: Any = batches
        if depth > 0:
            ids = as_mapping if form == "mapping" else list
            loop = te.Prefetcher(batches, model, ids=ids, rows_ahead=depth)
        for user, item in loop:
            model(user, item).backward()
        if depth > 0:
            assert loop.report.taken_batches == 60
        dense.append([model.user.to_dense(), model.item.to_dense()])
        model.user.close()
    for a, b in zip(*dense, strict=True):
        assert torch.equal(a, b)


def test_a_collection_with_workers(tmp_path: Path) -> None:
    tables = [te.Table("a", ROWS, DIM), te.Table("b", ROWS, DIM, mode="mean")]
    data = [{"a": torch.randint(ROWS, (6, 2)), "b": torch.randint(ROWS, (6, 4))} for _ in range(20)]
    results = []
    for depth in (0, 2):
        coll = te.TieredEmbeddingCollection(
            tables,
            tiers=te.Tiers(dram=8 * 1024, ssd=te.SSD(str(tmp_path / str(depth)))),
            optimizer=te.optim.RowwiseAdagrad(0.1),
        )
        source: Any = data
        loader = torch.utils.data.DataLoader(source, batch_size=None, num_workers=2)
        loop: Any = te.Prefetcher(loader, coll, rows_ahead=depth) if depth else loader
        for batch in loop:
            sum(y.sum() for y in coll(batch).values()).backward()
        results.append(coll.to_dense("b"))
        coll.close()
    assert torch.equal(*results)


def test_arguments_of_a_prefetcher(tmp_path: Path) -> None:
    bag = te.TieredEmbedding(ROWS, DIM)
    with pytest.raises(ValueError, match="at least 1"):
        te.Prefetcher([], bag, rows_ahead=0)
    with pytest.raises(ValueError, match="no tiered table in this Linear"):
        te.Prefetcher([], nn.Linear(2, 2))
    model = converted(tmp_path / "store", TwoTables())
    with pytest.raises(TypeError, match="mapping or a sequence"):
        next(iter(te.Prefetcher([1], model)))
    with pytest.raises(ValueError, match="'users', which is no tiered table"):
        next(iter(te.Prefetcher([1], model, ids=lambda b: {"users": None})))
    with pytest.raises(ValueError, match="1 inputs for 2 tables"):
        next(iter(te.Prefetcher([1], model, ids=lambda b: [None])))
    assert len(te.Prefetcher([1, 2], bag)) == 2


def test_a_loop_that_ends_early_leaves_nothing_behind(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "store", SOME)

    def failing() -> Iterator[tuple[Tensor, Tensor]]:
        yield from random_batches(7, 2)
        raise RuntimeError("the loader fails")

    for batch in te.Prefetcher(random_batches(20, 1), bag, rows_ahead=5):
        bag(*batch).sum().backward()
        break
    gc.collect()
    assert bag.cancel_prefetch() == 0

    def train(loop: Any) -> None:
        for batch in loop:
            bag(*batch).sum().backward()

    with pytest.raises(RuntimeError, match="the loader fails"):
        train(te.Prefetcher(failing(), bag, rows_ahead=3))
    assert bag.cancel_prefetch() == 0
    bag(torch.tensor([[1]])).sum().backward()
    bag.close()


@pytest.mark.parametrize("last", [3, 5])
def test_a_batch_that_is_not_looked_up_is_dropped(tmp_path: Path, last: int) -> None:
    bag = make_bag(tmp_path / "store", SOME)
    loop = te.Prefetcher(random_batches(6, 1), bag, rows_ahead=2)
    for i, batch in enumerate(loop):
        if i == last:
            break
        bag(*batch).sum().backward()
    assert bag.cancel_prefetch() == 0
    assert loop.report.dropped_batches == 1
    bag(*batch).sum().backward()  # nothing waits
    bag.close()


def test_a_bad_input_of_one_module_leaves_nothing_announced() -> None:
    model = nn.ModuleDict(
        {n: te.TieredEmbedding(100, 4, mode="sum", optimizer=te.optim.SGD(0.1)) for n in "ab"}
    )
    good = torch.randint(100, (4, 5))
    batches = [(good, good), (good, torch.rand(3, 4))]
    with pytest.raises(TypeError):
        for _ in te.Prefetcher(batches, model, ids=lambda pair: dict(zip("ab", pair, strict=True))):
            pass
    assert [bag.cancel_prefetch() for bag in model.values()] == [0, 0]


def test_load_in_the_middle_of_a_loop(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "store", SOME)
    batches = random_batches(30, 5)
    te.save(bag, tmp_path / "saved")
    results = []
    for depth in (1, 4):
        te.load(bag, tmp_path / "saved")
        for step, batch in enumerate(te.Prefetcher(batches, bag, rows_ahead=depth)):
            if step == 10:
                te.load(bag, tmp_path / "saved")
            bag(*batch).sum().backward()
        results.append(bag.to_dense())
    assert torch.equal(*results)
    bag.close()


def test_ids_ahead_save_reads(tmp_path: Path) -> None:
    """Uniform ids, of which nothing can be learned from the past."""
    torch.manual_seed(0)
    batches = [torch.randint(ROWS, (1, 20)) for _ in range(200)]
    misses = {}
    for policy, ids_ahead in (("lookahead", 50), ("lookahead", 1), ("lfu", 50), ("lru", 50)):
        bag = te.TieredEmbedding(
            ROWS, DIM, mode="sum", optimizer=te.optim.SGD(0.1),
            tiers=te.Tiers(dram=SOME * DIM * 4, ssd=te.SSD(str(tmp_path / f"{policy}{ids_ahead}")),
                           policy=policy),
        )  # fmt: skip
        for ids in te.Prefetcher(batches, bag, rows_ahead=1, ids_ahead=ids_ahead):
            bag(ids).sum().backward()
        misses[policy, ids_ahead] = bag.stats().missing_rows
        bag.close()
    assert misses["lookahead", 50] < 0.75 * min(misses["lfu", 50], misses["lru", 50])
    assert misses["lookahead", 1] > 1.2 * misses["lookahead", 50]


def test_soak(tmp_path: Path) -> None:
    """Random depths and exceptions on a budget of two batches: no leak, no hang, the same bits.

    TIERED_EMB_SOAK=10000 pytest tests/test_prefetch.py -k soak
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
