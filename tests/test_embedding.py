"""`TieredEmbedding` and `TieredEmbeddingCollection` as modules, their rows, and threads."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from same_bits import assert_same_bits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import tiered_emb as te

Tensor = torch.Tensor


def tight(tmp_path: Path, name: str = "s", dram: int = 640) -> te.Tiers:
    return te.Tiers(dram=dram, ssd=te.SSD(str(tmp_path / name)))


# ---- State dicts


def test_state_dict_round_trip(tmp_path: Path) -> None:
    one = te.TieredEmbedding(200, 4, tiers=tight(tmp_path), seed=1)
    other = te.TieredEmbedding(200, 4, seed=2)
    state = one.state_dict()
    assert list(state) == ["weight"]
    assert not torch.equal(one.to_dense(), other.to_dense())
    result = other.load_state_dict(state)
    assert result.missing_keys == result.unexpected_keys == []
    assert_same_bits(other.to_dense(), one.to_dense(), "loaded")
    one.load_state_dict({"weight": torch.ones(200, 4)})
    assert one.to_dense().eq(1).all()


@pytest.mark.parametrize("fused", [True, False])
def test_state_dict_of_nn_embedding_bag(fused: bool) -> None:
    """Inside a model, with other layers, both ways."""
    plain = nn.Sequential(nn.EmbeddingBag(20, 4), nn.Linear(4, 2))
    ours = nn.Sequential(
        te.TieredEmbedding(20, 4, optimizer=te.optim.SGD(fused=fused)), nn.Linear(4, 2)
    )
    ours.load_state_dict(plain.state_dict())
    ids = torch.tensor([[1, 2], [3, 4]])
    torch.testing.assert_close(ours(ids), plain(ids))
    back = nn.Sequential(nn.EmbeddingBag(20, 4), nn.Linear(4, 2))
    back.load_state_dict(ours.state_dict())
    torch.testing.assert_close(back(ids), plain(ids))


def test_wrong_state_dicts() -> None:
    bag, plain = te.TieredEmbedding(20, 4), nn.EmbeddingBag(20, 4)
    before = bag.to_dense()
    for state in (
        {},
        {"weight": torch.zeros(20, 5)},
        {"weight": torch.zeros(20, 4), "bias": torch.zeros(1)},
    ):
        with pytest.raises(RuntimeError) as theirs:
            plain.load_state_dict(state)
        with pytest.raises(RuntimeError) as ours:
            bag.load_state_dict(state)
        words = ("Missing", "Unexpected", "size mismatch")
        assert [w in str(ours.value) for w in words] == [w in str(theirs.value) for w in words]
    bag.load_state_dict({}, strict=False)
    bag.write_rows(range(20), before)
    assert torch.equal(bag.to_dense(), before)


def test_collections_state_dict(tmp_path: Path) -> None:
    tables = [te.Table("user.id", 50, 4), te.Table("item", 30, 6)]
    one = te.TieredEmbeddingCollection(tables, tiers=tight(tmp_path), seed=1)
    other = te.TieredEmbeddingCollection(tables, seed=2)
    state = one.state_dict()
    assert list(state) == ["user.id.weight", "item.weight"]
    other.load_state_dict(state)
    for name in ("user.id", "item"):
        assert_same_bits(other.to_dense(name), one.to_dense(name), name)
    with pytest.raises(RuntimeError, match="Unexpected"):
        other.load_state_dict(state | {"news.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({"item.weight": state["item.weight"]})


def test_copies_are_refused() -> None:
    bag = te.TieredEmbedding(3, 2)
    for duplicate in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(bag)
    with pytest.raises(AttributeError, match=r"rows\(ids\)"):
        _ = bag.weight


# ---- Construction


def test_from_pretrained() -> None:
    weight = torch.randn(9, 3)
    bag = te.TieredEmbedding.from_pretrained(weight, mode="max", padding_idx=-1)
    assert (bag.mode, bag.padding_idx, bag.optimizer) == ("max", 8, None)
    assert_same_bits(bag.to_dense(), weight, "rows")
    weight.zero_()
    assert bag.to_dense().ne(0).any(), "a copy was made"
    with pytest.raises(ValueError, match="freeze"):
        te.TieredEmbedding.from_pretrained(weight, optimizer=te.optim.SGD())
    with pytest.raises(AssertionError) as theirs:
        nn.EmbeddingBag.from_pretrained(torch.zeros(3))
    with pytest.raises(type(theirs.value)):
        te.TieredEmbedding.from_pretrained(torch.zeros(3))
    trained = te.TieredEmbedding.from_pretrained(
        torch.zeros(4, 2), freeze=False, optimizer=te.optim.SGD(1.0), mode="sum"
    )
    trained(torch.tensor([[1]])).sum().backward()
    assert trained.rows([1]).eq(-1).all()


def test_from_bag() -> None:
    plain = nn.EmbeddingBag(
        9, 3, max_norm=1.0, norm_type=1.0, mode="mean", include_last_offset=True, padding_idx=2
    ).half()
    bag = te.TieredEmbedding.from_bag(plain)
    for name in ("max_norm", "norm_type", "mode", "include_last_offset", "padding_idx"):
        assert getattr(bag, name) == getattr(plain, name)
    assert_same_bits(bag.to_dense(), plain.weight.detach(), "rows")


def test_repr(tmp_path: Path) -> None:
    tiers = te.Tiers(dram="1MiB", ssd=te.SSD(str(tmp_path / "store"), "2GiB"))
    with te.TieredEmbedding(
        10**6, 64, max_norm=2.0, padding_idx=3, tiers=tiers, optimizer=te.optim.RowwiseAdagrad()
    ) as bag:
        shown = repr(bag)
    for part in (
        "TieredEmbedding(1000000, 64, mode='mean'",
        "max_norm=2.0",
        "padding_idx=3",
        "RowwiseAdagrad",
        "rows=248 MiB",
        "dram=1 MiB",
        str(tmp_path / "store"),
        "2 GiB",
    ):
        assert part in shown, part
    coll = te.TieredEmbeddingCollection([te.Table("a", 5, 2), te.Table("b", 7, 3, "max")])
    assert "a: 5 x 2, mode='sum'" in repr(coll)
    assert "b: 7 x 3, mode='max'" in repr(coll)
    assert "frozen" in repr(coll)
    assert "dram=all rows" in repr(coll)


def test_many_tiny_tables() -> None:
    count = 10_000
    names = [f"t{i}" for i in range(count)]
    coll = te.TieredEmbeddingCollection(
        [te.Table(name, 2 + i % 5, 4) for i, name in enumerate(names)],
        optimizer=te.optim.SGD(1.0),
        init=te.init.Constant(0.5),
    )
    chosen = names[::97]
    out = coll({name: torch.tensor([1, 0, 1]) for name in chosen})
    before = {name: coll.rows(name, [0, 1]) for name in names[:200]}
    assert all(o.eq(0.5).all() for o in out.values())
    sum(o.sum() for o in out.values()).backward()
    for name in names[:200]:
        moved = before[name] - coll.rows(name, [0, 1])
        assert moved.eq(torch.tensor([[1.0], [2.0]]) * (name in chosen)).all(), name
    assert coll.stats().total_rows == sum(2 + i % 5 for i in range(count))


# ---- Rows


def test_rows(tmp_path: Path) -> None:
    bag = te.TieredEmbedding(200, 4, tiers=tight(tmp_path), optimizer=te.optim.RowwiseAdagrad())
    dense = bag.to_dense()
    for ids in (torch.tensor([5, 5, 199]), torch.tensor([5, 5, 199]).int(), [5, 5, 199]):
        assert_same_bits(bag.rows(ids), dense[[5, 5, 199]], "rows")
    assert bag.rows([]).shape == (0, 4)
    assert {n: tuple(v.shape) for n, v in bag.state_rows([1, 2, 3]).items()} == {"sum": (3,)}
    bag.write_rows([3, 4, 3], torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 4))
    assert bag.rows([3, 4]).eq(torch.tensor([[3.0], [2.0]])).all()
    bag.write_rows([3], None, {"sum": torch.tensor([7.0])})
    assert bag.rows([3]).eq(3).all()
    assert bag.state_rows([3])["sum"] == 7
    bag.write_rows([3], torch.zeros(1, 4))
    assert bag.state_rows([3])["sum"] == 7
    bag.write_rows([], torch.empty(0, 4), {"sum": torch.empty(0)})
    changed = bag.to_dense().ne(dense).any(1).nonzero().flatten()
    assert changed.tolist() == [3, 4]


@pytest.mark.parametrize("optimizer", [te.optim.Adagrad, te.optim.Adam, te.optim.RowwiseAdagrad])
def test_writing_no_rows(optimizer: type[te.optim.RowOptimizer]) -> None:
    bag = te.TieredEmbedding(5, 4, optimizer=optimizer())
    bag.write_rows([], torch.empty(0, 4), bag.state_rows([]))


def test_special_values(tmp_path: Path) -> None:
    """Every bit of a row survives the tiers: signed zeros, subnormals, infinities and NaNs."""
    special = [0.0, -0.0, 1e-45, -1e-40, float("inf"), float("-inf"), float("nan"), 3.4e38]
    weight = torch.tensor(special).repeat(200, 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        values = weight.to(dtype)
        tiers = tight(tmp_path, str(dtype), dram=8 * dtype.itemsize * 9)
        with te.TieredEmbedding(200, 8, dtype=dtype, tiers=tiers) as bag:
            bag.write_rows(range(200), values)
            assert_same_bits(bag.to_dense(), values, str(dtype))


# ---- Collections


class JaggedTensor:
    """The part of torchrec's class that is used."""

    def __init__(self, values: Tensor, offsets: Tensor, weights: Tensor | None = None) -> None:
        self._parts = values, offsets, weights

    def values(self) -> Tensor:
        return self._parts[0]

    def offsets(self) -> Tensor:
        return self._parts[1]

    def weights_or_none(self) -> Tensor | None:
        return self._parts[2]


class KeyedJaggedTensor:
    """As torchrec's, as far as it is used."""

    def __init__(self, parts: dict[str, JaggedTensor]) -> None:
        self._parts = parts

    def to_dict(self) -> dict[str, JaggedTensor]:
        return self._parts


def test_inputs_of_a_collection() -> None:
    tables = [te.Table("a", 9, 2), te.Table("b", 9, 3, "mean"), te.Table("c", 9, 2, "max")]
    coll = te.TieredEmbeddingCollection(tables, seed=3)
    rows = {t.name: coll.to_dense(t.name) for t in tables}
    ids, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 1])
    weights = torch.tensor([1.0, 2.0, 3.0])
    out = coll({"a": (ids, offsets, weights), "b": torch.tensor([[1, 2], [3, 4]]), "c": ids})
    assert list(out) == ["a", "b", "c"]
    weighted = rows["a"][2] * 2 + rows["a"][3] * 3
    torch.testing.assert_close(out["a"], torch.stack([rows["a"][1], weighted]))
    torch.testing.assert_close(out["b"], rows["b"][1:5].reshape(2, 2, 3).mean(1))
    assert_same_bits(out["c"], rows["c"][ids], "one id a bag")
    ends = torch.tensor([0, 1, 3])
    jagged = KeyedJaggedTensor(
        {"a": JaggedTensor(ids, ends, weights), "c": JaggedTensor(ids, ends)}
    )
    from_jagged = coll(jagged)
    assert_same_bits(from_jagged["a"], out["a"], "jagged")
    assert_same_bits(from_jagged["c"][1], torch.maximum(*rows["c"][2:4]), "jagged max")
    assert coll({}) == {}
    assert [tuple(o.shape) for o in coll({"a": ids[:0], "b": ids[:0]}).values()] == [(0, 2), (0, 3)]


def test_output_without_gradient_leaves_its_table_alone() -> None:
    """A table whose output is not used makes no step, as a parameter without gradient."""
    for fused in (True, False):
        used, control = (
            te.TieredEmbeddingCollection(
                [te.Table("a", 9, 2), te.Table("b", 9, 2)],
                optimizer=te.optim.Adam(0.1, fused=fused),
            )
            for _ in range(2)
        )
        ids = torch.tensor([1, 2])
        for coll in (used, control):
            for _ in range(3):
                batch = {"a": ids, "b": ids} if coll is used else {"a": ids}
                coll(batch)["a"].sum().backward()
            coll.optimizer.step()
            coll.optimizer.zero_grad()
            coll({"b": ids})["b"].sum().backward()
            coll.optimizer.step()
        for name in ("a", "b"):
            assert_same_bits(used.to_dense(name), control.to_dense(name), f"{name}, fused={fused}")


# ---- Processes and threads


class Ids(Dataset):
    """Bags of ids, made in worker processes."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Tensor:
        return torch.arange(i, i + 3) % 200


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_data_loader_workers(tmp_path: Path) -> None:
    """Workers forked while tables are in use neither hang nor disturb them."""
    te.set_num_threads(2)
    bag = te.TieredEmbedding(200, 4, tiers=tight(tmp_path), optimizer=te.optim.SGD(0.1))
    free = te.TieredEmbedding(200, 4, optimizer=te.optim.SGD(0.1))
    both = (bag, free)
    for table in both:
        table(torch.arange(20)[None]).sum().backward()
    loader = DataLoader(
        Ids(), batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for _ in range(2):
        for ids in loader:
            for table in both:
                table(ids).square().sum().backward()
    assert_same_bits(bag.to_dense(), free.to_dense(), "trained")
    bag.close()


def test_two_threads(tmp_path: Path) -> None:
    """Two threads train two tables of one engine, and one reads: as one after the other."""

    def bags() -> nn.ModuleList:
        torch.manual_seed(0)
        return nn.ModuleList(nn.EmbeddingBag(300, 8, mode="sum") for _ in range(2))

    tiers = te.Tiers(dram=4000, ssd=str(tmp_path / "s"))
    together = te.convert(bags(), tiers=tiers, optimizer=te.optim.SGD(0.1))
    alone = te.convert(bags(), optimizer=te.optim.SGD(0.1))

    def train(bag: te.TieredEmbedding, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(150):
            bag(torch.randint(0, 300, (4, 5), generator=generator)).square().sum().backward()

    failures: list[BaseException] = []

    def guarded(target: Any, *args: Any) -> None:
        try:
            target(*args)
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        for i in range(100):
            assert together[i % 2].rows(range(300)).isfinite().all()
            together[0].stats()
            if i % 20 == 0:
                together[0].flush()

    jobs = [(train, together[0], 1), (train, together[1], 2), (read,)]
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    train(alone[0], 1)
    train(alone[1], 2)
    for one, other in zip(together, alone, strict=True):
        assert_same_bits(one.to_dense(), other.to_dense(), "trained by two threads")


def test_num_threads() -> None:
    for threads in (1, 5, 2):
        te.set_num_threads(threads)
        assert te.get_num_threads() == threads
    for wrong in (0, -3):
        with pytest.raises(ValueError, match="at least 1"):
            te.set_num_threads(wrong)
    assert te.get_num_threads() == 2


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_results_do_not_depend_on_threads(mode: str) -> None:
    """A batch that is large enough to be split, with one row in most bags."""
    results = []
    for threads in (1, 2, 3, 7):
        te.set_num_threads(threads)
        bag = te.TieredEmbedding(5000, 20, mode=mode, optimizer=te.optim.RowwiseAdagrad(0.1))
        generator = torch.Generator().manual_seed(1)
        skewed = torch.rand(20_000, generator=generator) ** 8 * 5000
        offsets = torch.randint(0, 20_000, (3000,), generator=generator).sort().values
        offsets[0] = 0
        for _ in range(2):
            out = bag(skewed.long(), offsets)
            out.backward(torch.randn(out.shape, generator=generator))
        results.append((out.detach(), bag.to_dense()))
    for out, dense in results[1:]:
        assert_same_bits(out, results[0][0], "outputs")
        assert_same_bits(dense, results[0][1], "rows")


def test_lookups_without_a_graph_while_rows_arrive() -> None:
    """All rows fit: the same bits whether a row is new, or the table is partly or wholly there."""
    bag = te.TieredEmbedding(700, 20, mode="mean", padding_idx=3, include_last_offset=True)
    other = te.TieredEmbedding(700, 20, mode="mean", padding_idx=3, include_last_offset=True)
    rows = other.to_dense()
    generator = torch.Generator().manual_seed(2)
    for count in (1, 40, 400, 3000, 8000):
        ids = torch.randint(0, 700, (count,), generator=generator)
        ids[::7] = 3
        offsets = torch.tensor([0, 0, count // 3, count // 2, count // 2])  # the rest in no bag
        for dtype in (torch.int32, torch.int64):
            with torch.no_grad():
                out = bag(ids.to(dtype), offsets)
            for b, (first, last) in enumerate(itertools.pairwise(offsets.tolist())):
                inside = ids[first:last]
                inside = inside[inside != 3]
                want = rows[inside].double().mean(0) if len(inside) else torch.zeros(20)
                torch.testing.assert_close(out[b].double(), want.double(), rtol=1e-5, atol=1e-6)
    assert_same_bits(bag.to_dense(), rows, "rows after lookups")
    assert bag.stats().lookups > 0


@pytest.mark.parametrize("offsets", [[0, 2], [0], [0, 0, 0], [0, 1, 3]])
@pytest.mark.parametrize("bad", [-1, 50, 2**40])
def test_bad_ids_of_lookups_without_a_graph(offsets: list[int], bad: int) -> None:
    """Also behind the last bag, and where there is no bag at all."""
    bag = te.TieredEmbedding(50, 4, include_last_offset=True, name="ads")
    bag.write_rows(torch.arange(50), torch.ones(50, 4))
    with torch.no_grad():
        for position in range(3):
            ids = torch.tensor([7, 8, 9])
            ids[position] = bad
            with pytest.raises(IndexError, match=f"'ads': id {bad} at position {position} "):
                bag(ids, torch.tensor(offsets))
        assert bag(torch.tensor([7, 8, 9]), torch.tensor([0, 3])).eq(1).all()
