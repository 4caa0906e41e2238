"""Loops over a `te.Prefetcher`: whole models, ends of all kinds, loops within loops."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prefetched import DIM, ROWS, SOME, Tensor, make_bag, random_batches
from torch import nn

import tiered_emb as te


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
        loader = torch.utils.data.DataLoader(source, batch_size=None, num_workers=2, timeout=60)
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


@pytest.mark.parametrize("who", ["loader", "ids"])
def test_batches_before_one_that_fails_are_trained(who: str) -> None:
    bag = te.TieredEmbedding(100, 4, mode="sum", optimizer=te.optim.SGD(0.1))
    asked = 0

    def batches() -> Iterator[int]:
        nonlocal asked
        for asked in range(20):
            if asked == 10 and who == "loader":
                raise RuntimeError("the tenth")
            yield asked

    def ids(number: int) -> Tensor:
        if number == 10:
            raise RuntimeError("the tenth")
        return torch.tensor([[number]])

    seen = []

    def train() -> None:
        for number in te.Prefetcher(batches(), bag, ids, rows_ahead=4):
            bag(torch.tensor([[number]])).sum().backward()
            seen.append(number)

    with pytest.raises(RuntimeError, match="the tenth"):
        train()
    assert seen == list(range(10))
    assert asked == 10
    assert bag.cancel_prefetch() == 0


def test_a_loader_is_asked_once_for_what_comes_after_its_end() -> None:
    class Loader:
        ends = 0
        left = 5

        def __iter__(self) -> Loader:
            return self

        def __next__(self) -> Tensor:
            if self.left == 0:
                self.ends += 1
                raise StopIteration
            self.left -= 1
            return torch.tensor([[self.left]])

    bag = te.TieredEmbedding(100, 4, mode="sum")
    loader = Loader()
    assert len([bag(ids) for ids in te.Prefetcher(loader, bag, rows_ahead=3)]) == 5
    assert loader.ends == 1


def test_a_loop_within_a_loop(tmp_path: Path) -> None:
    """Validation, with batches prefetched: the same rows as without."""
    results = []
    for nested in (False, True):
        bag = make_bag(tmp_path / str(nested), SOME)
        for step, batch in enumerate(te.Prefetcher(random_batches(12, 3), bag, rows_ahead=3)):
            if nested and step in (0, 5):
                with torch.no_grad():
                    for other in te.Prefetcher(random_batches(6, 4), bag, rows_ahead=2):
                        bag(*other)
            bag(*batch).sum().backward()
        assert bag.cancel_prefetch() == 0
        results.append(bag.to_dense())
        bag.close()
    assert torch.equal(*results)


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
