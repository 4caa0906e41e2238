"""Misuse raises what `nn.EmbeddingBag` raises, says where and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_bits import assert_same_bits
from torch import nn

import tiered_emb as te

ROWS, DIM = 30, 4
Tensor = torch.Tensor


def ids(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def table(path: Path | None = None, **arguments: Any) -> te.TieredEmbedding:
    """A trained table named 'ads': ten of its rows in dram, or all without a path."""
    tiers = None if path is None else te.Tiers(dram=10 * 2 * DIM * 4, ssd=str(path / "store"))
    arguments = {"mode": "sum", "optimizer": te.optim.Adagrad(0.1), "name": "ads"} | arguments
    bag = te.TieredEmbedding(ROWS, DIM, tiers=tiers, **arguments)
    lookup(bag, torch.arange(8)).sum().backward()
    return bag


def lookup(bag: te.TieredEmbedding, one_bag: Tensor) -> Tensor:
    last = ids(0, len(one_bag)) if bag.include_last_offset else ids(0)
    return bag(one_bag, last)


def call_with(bag: te.TieredEmbedding, call: tuple[Any, ...], grad: bool) -> Tensor:
    with torch.set_grad_enabled(grad):
        return bag(*call)


class Unchanged:
    """Within this, nothing changes; afterwards the table trains as if nothing had happened."""

    def __init__(self, bag: te.TieredEmbedding) -> None:
        self.bag = bag

    def __enter__(self) -> None:
        self.rows = self.bag.to_dense()
        self.state = self.bag.state_rows(range(ROWS))
        self.stats = self._counters()

    def _counters(self) -> dict[str, Any]:
        # The comparison itself reads from ssd; time goes by.
        counters = self.bag.stats().as_dict()
        return {
            key: value
            for key, value in counters.items()
            if not key.startswith("ssd_") and not key.endswith(("_ns", "_per_block"))
        }

    def __exit__(self, *exc: object) -> None:
        assert_same_bits(self.bag.to_dense(), self.rows, "rows after a refused call")
        for name, value in self.bag.state_rows(range(ROWS)).items():
            assert_same_bits(value, self.state[name], "state after a refused call")
        assert self._counters() == self.stats
        before = self.bag.rows([9, 20])
        lookup(self.bag, ids(9, 20)).sum().backward()
        assert self.bag.rows([9, 20]).ne(before).any()


# ---- The arguments of a lookup

WRONG_CALLS: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "id too large, first": ({}, (ids(ROWS, 1, 2), ids(0)), r"id 30 at position 0 .*30 rows"),
    "id too large, middle": ({}, (ids(1, 1000, 2), ids(0)), r"id 1000 at position 1 "),
    "id too large, last": ({}, (ids(1, 2, 2**40), ids(0)), r"id 1099511627776 at position 2 "),
    "negative id": ({}, (ids(1, -1), ids(0)), r"id -1 at position 1 "),
    "smallest id": ({}, (ids(-(2**63)), ids(0)), r"id -9223372036854775808 at position 0 "),
    "int32 id": ({}, (ids(1, -7, dtype=torch.int32), ids(0).int()), r"id -7 at position 1 "),
    "2-D id": ({}, (ids(1, 2, 3, 99).reshape(2, 2),), r"id 99 at position 3 "),
    "id beside padding": ({"padding_idx": 3}, (ids(3, 31), ids(0)), r"id 31 at position 1 "),
    "id under max_norm": (
        {"max_norm": 0.1, "padding_idx": 0},
        (ids(0, 1, 77), ids(0)),
        r"id 77 at position 2 ",
    ),
    "float ids": ({}, (torch.rand(3), ids(0)), r"input must be int64 or int32, got torch.float32"),
    "bool ids": ({}, (torch.tensor([True]), ids(0)), r"input must be .*torch.bool"),
    "float offsets": ({}, (ids(1, 2), torch.zeros(1)), r"offsets must be .*torch.float32"),
    "3-D ids": ({}, (torch.zeros(1, 1, 1, dtype=torch.int64),), r"1-D or 2-D, got 3-D"),
    "0-D ids": ({}, (torch.tensor(1), ids(0)), r"1-D or 2-D, got 0-D"),
    "1-D without offsets": ({}, (ids(1, 2),), r"offsets has to be a 1-D Tensor.*None"),
    "2-D with offsets": ({}, (ids(1, 2).reshape(1, 2), ids(0)), r"offsets has to be None"),
    "2-D offsets": ({}, (ids(1, 2), ids(0, 1).reshape(1, 2)), r"1-D Tensor, got 2-D"),
    "first offset": ({}, (ids(1, 2, 3), ids(1, 2)), r"offset 1 at position 0 must be 0"),
    "decreasing offsets": ({}, (ids(1, 2, 3), ids(0, 2, 1)), r"offset 1 at position 2 .*before, 2"),
    "offset beyond": ({}, (ids(1, 2, 3), ids(0, 4)), r"offset 4 at position 1 .*ids, 3"),
    "negative offset": ({}, (ids(1, 2, 3), ids(0, -1)), r"offset -1 at position 1 "),
    "last offset missing": ({"include_last_offset": True}, (ids(), ids()), r"at least one offset"),
    "weights' shape": ({}, (ids(1, 2), ids(0), torch.ones(3)), r"the shape of the input, \(2,\)"),
    "weights' shape, 2-D": ({}, (ids(1, 2)[None], None, torch.ones(2)), r"\(1, 2\).*\(2,\)"),
    "weights' dtype": ({}, (ids(1), ids(0), torch.ones(1).double()), r"torch.float32.*float64"),
    "weights with mean": ({"mode": "mean"}, (ids(1), ids(0), torch.ones(1)), r"mode='sum'.*'mean'"),
    "weights with max": ({"mode": "max"}, (ids(1), ids(0), torch.ones(1)), r"mode='sum'.*'max'"),
}  # fmt: skip

# nn.EmbeddingBag accepts these, or reads beyond its memory; what we raise is ours to choose.
ONLY_OURS = {
    "bool ids",
    "decreasing offsets",
    "negative offset",
    "id under max_norm",
    "offset beyond",
}


def torch_error(arguments: dict[str, Any], call: tuple[Any, ...]) -> type[Exception] | None:
    bag = nn.EmbeddingBag(ROWS, DIM, **({"mode": "sum"} | arguments))
    try:
        bag(*call)
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("ssd", [False, True], ids=["dram", "ssd"])
@pytest.mark.parametrize("name", list(WRONG_CALLS))
def test_wrong_call(name: str, ssd: bool, tmp_path: Path) -> None:
    arguments, call, message = WRONG_CALLS[name]
    expected = None if name in ONLY_OURS else torch_error(arguments, call)
    assert expected is not None or name in ONLY_OURS, "nn.EmbeddingBag takes this: document it"
    bag = table(tmp_path if ssd else None, **arguments)
    for grad in (True, False):
        with Unchanged(bag), pytest.raises(Exception, match=message) as caught:
            call_with(bag, call, grad)
        assert isinstance(caught.value, expected or (ValueError, IndexError, TypeError))
        assert "'ads'" in str(caught.value)


def test_not_tensors() -> None:
    bag = table()
    for call in (([1, 2], ids(0)), (ids(1, 2), [0]), (ids(1), ids(0), [1.0])):
        with pytest.raises(TypeError, match=r"'ads'.*must be a Tensor, got list"):
            bag(*call)


def test_wrong_id_in_the_kth_table() -> None:
    names = ["a", "b", "c", "d"]
    coll = te.TieredEmbeddingCollection(
        [te.Table(n, 10 + 10 * i, 3) for i, n in enumerate(names)], optimizer=te.optim.SGD(1.0)
    )
    before = {n: coll.to_dense(n) for n in names}
    batch = {n: (ids(1, 2, 3), ids(0, 1)) for n in names}
    for k, n in enumerate(names):
        wrong = batch | {n: (ids(1, 10 + 10 * k, 3), ids(0, 1))}
        message = rf"table '{n}': id {10 + 10 * k} at position 1 "
        with pytest.raises(IndexError, match=message):
            coll(wrong)
    with pytest.raises(KeyError, match=r"no table 'e'.*'a', 'b', 'c', 'd'"):
        coll(batch | {"e": ids(1)})
    with pytest.raises(TypeError, match=r"table 'b'.*expected ids"):
        coll({"b": (ids(1),)})
    with pytest.raises(TypeError, match="mapping"):
        coll([ids(1)])
    assert all(torch.equal(coll.to_dense(n), before[n]) for n in names)
    sum(out.sum() for out in coll(batch).values()).backward()
    assert all(coll.rows(n, [1, 2, 3]).ne(before[n][1:4]).all() for n in names)


# ---- Rows


ROW_CALLS: dict[str, tuple[Callable[[te.TieredEmbedding], object], type[Exception], str]] = {
    "read": (lambda b: b.rows([0, 30]), IndexError, r"'ads': id 30 at position 1 "),
    "read state": (lambda b: b.state_rows([-1]), IndexError, r"id -1 at position 0 "),
    "float ids": (lambda b: b.rows(torch.rand(2)), TypeError, r"1-D integer Tensor"),
    "2-D ids": (lambda b: b.rows(torch.zeros(1, 1).long()), TypeError, r"shape \(1, 1\)"),
    "write": (lambda b: b.write_rows([1, 99], torch.ones(2, DIM)), IndexError, r"id 99 .* 1 "),
    "write shape": (lambda b: b.write_rows([1], torch.ones(2, DIM)), ValueError, r"\(1, 4\)"),
    "write dtype": (lambda b: b.write_rows([1], ids(1, 1)), TypeError, r"floating point"),
    "state's keys": (
        lambda b: b.write_rows([1], torch.ones(1, DIM), {"exp_avg": torch.ones(1, DIM)}),
        ValueError,
        r"keys \['sum'\], got \['exp_avg'\]",
    ),
    "state's shape": (
        lambda b: b.write_rows([1], torch.ones(1, DIM), {"sum": torch.ones(1)}),
        ValueError,
        r"state 'sum' must have shape \(1, 4\)",
    ),
}


@pytest.mark.parametrize("name", list(ROW_CALLS))
def test_wrong_rows(name: str, tmp_path: Path) -> None:
    call, error, message = ROW_CALLS[name]
    bag = table(tmp_path)
    with Unchanged(bag), pytest.raises(error, match=message):
        call(bag)


# ---- Construction: the same mistake made with nn.EmbeddingBag

CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "padding_idx too large": ((5, 2), {"padding_idx": 5}),
    "padding_idx too small": ((5, 2), {"padding_idx": -6}),
    "weight's shape": ((5, 2), {"_weight": torch.zeros(5, 3)}),
    "negative rows": ((-1, 2), {}),
    "mode": ((5, 2), {"mode": "median"}),
    "max with scaling": ((5, 2), {"mode": "max", "scale_grad_by_freq": True}),
}


@pytest.mark.parametrize("name", list(CONSTRUCTIONS))
def test_wrong_construction(name: str) -> None:
    args, kwargs = CONSTRUCTIONS[name]
    with pytest.raises((ValueError, RuntimeError, AssertionError)) as theirs:
        nn.EmbeddingBag(*args, **kwargs)(ids(1), ids(0))
    with pytest.raises(type(theirs.value)):
        te.TieredEmbedding(*args, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "cuda"}, ValueError, "needs an hbm tier"),
        ({"device": "meta"}, ValueError, "needs an hbm tier"),
        ({"dtype": torch.float64}, ValueError, "float32, float16 or bfloat16, got torch.float64"),
        ({"dtype": torch.int8}, ValueError, "got torch.int8"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be positive, got -1"),
        ({"norm_type": 0.0}, ValueError, "norm_type must be positive"),
        ({"optimizer": torch.optim.SGD}, TypeError, "te.optim"),
        ({"init": "uniform"}, TypeError, "te.init"),
        ({"tiers": "8GiB"}, TypeError, "te.Tiers"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_argument(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        te.TieredEmbedding(5, 2, **arguments)


def test_wrong_embedding_dim() -> None:
    with pytest.raises(ValueError, match="embedding_dim >= 1"):
        te.TieredEmbedding(5, 0)
    with pytest.raises(ValueError, match="embedding_dim"):
        te.TieredEmbedding(5, 1 << 21)


def test_collections_construction() -> None:
    with pytest.raises(ValueError, match="at least one table"):
        te.TieredEmbeddingCollection([])
    with pytest.raises(ValueError, match=r"differ.*'a'"):
        te.TieredEmbeddingCollection([te.Table("a", 2, 2), te.Table("a", 3, 2)])
    with pytest.raises(ValueError, match=r"table 'a': padding_idx"):
        te.TieredEmbeddingCollection([te.Table("a", 2, 2, padding_idx=2)])


@pytest.mark.parametrize("size", ["", "8 XiB", "GiB", "-1", "1e3", "8GiB8", "1.2.3MB", 0, "0.1B"])
def test_wrong_size(size: Any) -> None:
    with pytest.raises(ValueError):
        te.Tiers(dram=size)
    with pytest.raises(ValueError):
        te.SSD("x", capacity=size)


@pytest.mark.parametrize("size", [True, 1.5, [1], b"8GiB"])
def test_wrong_type_of_size(size: Any) -> None:
    with pytest.raises(TypeError):
        te.Tiers(dram=size)


def test_sizes() -> None:
    sizes = ["8GiB", "512 MB", " 1.5TiB", "77", ".5kB".upper(), "3B", 12]
    expected = [8 << 30, 512 * 10**6, 3 << 39, 77, 500, 3, 12]
    assert [te.Tiers(dram=size).dram for size in sizes] == expected


def test_wrong_tiers() -> None:
    with pytest.raises(ValueError, match=r"policy.*'fifo'"):
        te.Tiers(policy="fifo")
    with pytest.raises(ValueError, match="path is empty"):
        te.SSD("")
    for bound in (1.0, 0, 1000, float("nan")):
        with pytest.raises(ValueError, match="space_bound"):
            te.SSD("x", space_bound=bound)
    for other in ("2", None, True):
        with pytest.raises(TypeError, match="space_bound"):
            te.SSD("x", space_bound=other)  # type: ignore[arg-type]


# ---- Budgets


def test_budget_without_ssd() -> None:
    needed = 10**6 * (4 * 4 + 4 * 4)
    with pytest.raises(ValueError, match=r"need (\d+) bytes.*budget is 1000 .*ssd") as caught:
        te.TieredEmbedding(10**6, 4, tiers=te.Tiers(dram=1000), optimizer=te.optim.Adagrad())
    named = int(str(caught.value).split(" need ")[1].split()[0])
    assert needed <= named < 2 * needed
    # What the message asks for is enough.
    bag = te.TieredEmbedding(
        10**6, 4, tiers=te.Tiers(dram=named), optimizer=te.optim.Adagrad(), mode="sum"
    )
    assert bag(ids(0, 999_999), ids(0)).shape == (1, 4)


def test_more_than_this_machine_has() -> None:
    with pytest.raises(ValueError, match=r"more than this machine's memory.*ssd"):
        te.TieredEmbedding(10**12, 64)


def test_batch_larger_than_dram(tmp_path: Path) -> None:
    """Names the bytes of the batch; nothing changes; a batch that fits goes on."""
    bag = table(tmp_path)
    assert bag.stats().slots == 10
    message = r"'ads'.* 11 rows .* 352 bytes of dram, the budget is 320"
    for grad in (True, False):
        with Unchanged(bag), pytest.raises(ValueError, match=message):
            call_with(bag, (torch.arange(3, 14), ids(0)), grad)
    assert bag(torch.arange(20, 30).repeat(5), ids(0)).shape == (1, DIM)


def test_rows_that_wait_for_backward_make_room(tmp_path: Path) -> None:
    """Outputs that are kept do not block later batches, and their backward still counts."""
    bag, free = table(tmp_path), table()
    outs = [(lookup(b, torch.arange(i, i + 10)), b) for i in (0, 10, 20) for b in (bag, free)]
    assert bag.stats().plans_revoked >= 2
    for out, _ in outs:
        out.sum().backward()
    assert_same_bits(bag.to_dense(), free.to_dense(), "after late backwards")


def test_dense_copy_larger_than_memory(tmp_path: Path) -> None:
    bag = te.TieredEmbedding(10**11, 8, tiers=te.Tiers(dram="1MiB", ssd=str(tmp_path / "s")))
    with pytest.raises(ValueError, match=r"to_dense needs 3200000000000 bytes"):
        bag.to_dense()
    with pytest.raises(ValueError, match=r"to_dense needs 3200000000000 bytes"):
        bag.state_dict()
