"""Against `nn.EmbeddingBag`: forward, gradients, initial values over all arguments and dtypes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiered_emb as te

ROWS, DIM = 50, 6
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 1e-3},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-2},
}


def pair(**arguments: object) -> tuple[nn.EmbeddingBag, te.TieredEmbedding]:
    """A bag of torch and ours, of the same weights."""
    torch.manual_seed(1)
    bag = nn.EmbeddingBag(ROWS, DIM, **arguments)
    return bag, te.TieredEmbedding.from_bag(bag)


def ids_and_offsets(dtype: torch.dtype, last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags of 0 to 5 ids, empty ones at the start, inside and at the end, with repeated ids."""
    generator = torch.Generator().manual_seed(5)
    sizes = torch.tensor([0, 3, 1, 0, 0, 5, 2, 4, 0])
    ids = torch.randint(0, 12, (int(sizes.sum()),), generator=generator)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return ids.to(dtype), (ends if last else ends[:-1]).to(dtype)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3, -ROWS, -1])
@pytest.mark.parametrize("max_norm", [None, 1.5])
@pytest.mark.parametrize("last", [False, True])
def test_forward(mode: str, padding_idx: int | None, max_norm: float | None, last: bool) -> None:
    arguments = {
        "mode": mode,
        "padding_idx": padding_idx,
        "max_norm": max_norm,
        "include_last_offset": last,
    }
    bag, ours = pair(**arguments)
    assert ours.padding_idx == bag.padding_idx
    for dtype in (torch.int64, torch.int32):
        ids, offsets = ids_and_offsets(dtype, last)
        torch.testing.assert_close(ours(ids, offsets), bag(ids, offsets), **CLOSE[torch.float32])
        square = ids[:12].reshape(4, 3)
        torch.testing.assert_close(ours(square), bag(square), **CLOSE[torch.float32])
    torch.testing.assert_close(ours.to_dense(), bag.weight.detach(), **CLOSE[torch.float32])


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, 0.5, float("inf")])
def test_renormalisation(norm_type: float) -> None:
    """Touched rows change in place, padding included; rows below the norm and others do not."""
    bag, ours = pair(max_norm=1.2, norm_type=norm_type, padding_idx=7)
    before = ours.to_dense()
    with torch.no_grad():
        before[7] = 5.0
    ours.write_rows([7], before[7:8])
    bag.weight.data[7] = 5.0
    ids = torch.tensor([[1, 2, 7], [2, 3, 4]])
    torch.testing.assert_close(ours(ids), bag(ids), **CLOSE[torch.float32])
    after = ours.to_dense()
    torch.testing.assert_close(after, bag.weight.detach(), **CLOSE[torch.float32])
    assert torch.equal(after[8:], before[8:])
    assert not torch.equal(after[[1, 2, 3, 4, 7]], before[[1, 2, 3, 4, 7]])


@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
def test_per_sample_weights(dtype: torch.dtype) -> None:
    bag, _ = pair(mode="sum", padding_idx=2)
    ours = te.TieredEmbedding.from_bag(bag.to(dtype))
    ids, offsets = ids_and_offsets(torch.int64, False)
    expected = torch.randn(len(ids)).to(dtype)
    expected_weights = expected.float().clone().requires_grad_()
    weights = expected.clone().requires_grad_()
    out = ours(ids, offsets, weights)
    expected_out = F.embedding_bag(
        ids,
        bag.weight.detach().float(),
        offsets,
        mode="sum",
        per_sample_weights=expected_weights,
        padding_idx=2,
    )
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected_out, **CLOSE[dtype])
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected_out.backward(grad.float())
    torch.testing.assert_close(weights.grad.float(), expected_weights.grad, **CLOSE[dtype])
    assert weights.grad[ids == 2].eq(0).all()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_forward(mode: str, dtype: torch.dtype) -> None:
    """Pooled in float32 and rounded once, so within half a unit of the last place."""
    weight = torch.randn(ROWS, DIM).to(dtype)
    ours = te.TieredEmbedding.from_pretrained(weight, mode=mode)
    ids, offsets = ids_and_offsets(torch.int64, False)
    expected = F.embedding_bag(ids, weight.float(), offsets, mode=mode)
    assert torch.equal(ours(ids, offsets), expected.to(dtype)) or mode == "mean"
    torch.testing.assert_close(ours(ids, offsets).float(), expected, **CLOSE[dtype])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_gradients(mode: str, padding_idx: int | None) -> None:
    bag, _ = pair(mode=mode, padding_idx=padding_idx)
    ours = te.TieredEmbedding.from_bag(bag, optimizer=te.optim.SGD(1.0))
    before = ours.to_dense()
    ids, offsets = ids_and_offsets(torch.int64, False)
    grad = torch.randn(len(offsets), DIM)
    ours(ids, offsets).backward(grad)
    bag(ids, offsets).backward(grad)
    torch.testing.assert_close(before - ours.to_dense(), bag.weight.grad, rtol=1e-5, atol=1e-5)


def test_scale_grad_by_freq() -> None:
    """As nn.Embedding. (embedding_bag on the CPU takes the count of another row where ids repeat:
    its backward reads `counts[indices[i]]` for the i-th distinct row; torch 2.13.)"""
    weight = torch.randn(ROWS, DIM)
    ids = torch.tensor([[1, 0, 0], [4, 4, 4], [2, 1, 7]])
    plain = nn.Embedding.from_pretrained(weight.clone(), freeze=False, scale_grad_by_freq=True)
    grad = torch.randn(3, DIM)
    for mode in ("sum", "mean"):
        plain.weight.grad = None
        getattr(plain(ids), mode)(1).backward(grad)
        ours = te.TieredEmbedding.from_pretrained(
            weight, False, scale_grad_by_freq=True, mode=mode, optimizer=te.optim.SGD(1.0)
        )
        ours(ids).backward(grad)
        moved = weight - ours.to_dense()
        torch.testing.assert_close(moved, plain.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_empty_input(mode: str) -> None:
    bag, _ = pair(mode=mode)
    ours = te.TieredEmbedding.from_bag(bag, optimizer=te.optim.Adagrad(0.1))
    before = ours.to_dense()
    none = torch.empty(0, dtype=torch.int64)
    for ids, offsets, shape in (
        (none, none, (0, DIM)),
        (none, torch.zeros(3, dtype=torch.int64), (3, DIM)),
        (torch.empty(0, 4, dtype=torch.int64), None, (0, DIM)),
    ):
        out = ours(ids, offsets)
        assert tuple(out.shape) == shape
        assert torch.equal(out, torch.zeros(shape))
        assert tuple(bag(ids, offsets).shape) == shape
        out.sum().backward()
    # torch raises RuntimeError here; two empty bags are no mistake.
    assert torch.equal(ours(torch.empty(2, 0, dtype=torch.int64)), torch.zeros(2, DIM))
    assert torch.equal(ours.to_dense(), before)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bag_of_padding_only(mode: str) -> None:
    bag, ours = pair(mode=mode, padding_idx=3)
    ids, offsets = torch.tensor([3, 3, 1, 3]), torch.tensor([0, 2])
    torch.testing.assert_close(ours(ids, offsets), bag(ids, offsets))


def test_one_row() -> None:
    bag = nn.EmbeddingBag(1, 3, mode="sum")
    ours = te.TieredEmbedding.from_bag(bag, optimizer=te.optim.SGD(0.5))
    ids = torch.zeros(4, 2, dtype=torch.int32)
    torch.testing.assert_close(ours(ids), bag(ids))
    ours(ids).sum().backward()
    torch.testing.assert_close(ours.to_dense(), bag.weight.detach() - 0.5 * 8)


def test_non_contiguous_input_and_gradient() -> None:
    bag, _ = pair(mode="sum")
    ours = te.TieredEmbedding.from_bag(bag, optimizer=te.optim.SGD(1.0))
    before = ours.to_dense()
    ids = torch.arange(24).reshape(4, 6).t()[:, ::2]
    weights = torch.randn(2, 6).t()
    grad = torch.randn(DIM, 6).t()
    assert not ids.is_contiguous()
    assert not weights.is_contiguous()
    assert not grad.is_contiguous()
    out, expected = ours(ids, None, weights), bag(ids, None, weights)
    torch.testing.assert_close(out, expected)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(before - ours.to_dense(), bag.weight.grad, rtol=1e-5, atol=1e-5)


def test_argument_order() -> None:
    """All positional arguments of nn.EmbeddingBag mean the same."""
    arguments = (ROWS, DIM, 1.5, 1.0, False, "max", False, None, True, 4)
    bag, ours = nn.EmbeddingBag(*arguments), te.TieredEmbedding(*arguments)
    names = (
        "num_embeddings embedding_dim max_norm norm_type scale_grad_by_freq mode sparse "
        "include_last_offset padding_idx"
    )
    for name in names.split():
        assert getattr(ours, name) == getattr(bag, name), name


def test_default_mode_is_mean() -> None:
    assert te.TieredEmbedding(3, 2).mode == nn.EmbeddingBag(3, 2).mode == "mean"


def test_initial_values() -> None:
    """Standard normal by default, as nn.EmbeddingBag; the padding row is zeros."""
    ours = te.TieredEmbedding(20_000, 8, padding_idx=-2, seed=3)
    dense = ours.to_dense()
    assert dense[-2].eq(0).all()
    assert dense.mean().abs() < 0.01
    assert (dense.std() - 1).abs() < 0.01
    # A third moment and tails that a uniform or a clipped sample would not have.
    assert (dense**3).mean().abs() < 0.05
    assert (dense.abs() > 3).double().mean() == pytest.approx(0.0027, rel=0.2)
    assert torch.corrcoef(dense[:, :2].t())[0, 1].abs() < 0.03
    uniform = te.TieredEmbedding(20_000, 8, init=te.init.Uniform(-2, 1)).to_dense()
    assert uniform.min() >= -2
    assert uniform.max() < 1
    assert uniform.mean() == pytest.approx(-0.5, abs=0.02)
    assert te.TieredEmbedding(3, 2, init=te.init.Constant(1.5)).to_dense().eq(1.5).all()
    assert te.TieredEmbedding(3, 2, init=te.init.Zeros()).to_dense().eq(0).all()
    shifted = te.TieredEmbedding(20_000, 8, init=te.init.Normal(2, 0.1)).to_dense()
    assert shifted.mean() == pytest.approx(2, abs=0.01)
    assert shifted.std() == pytest.approx(0.1, rel=0.02)


def test_initial_values_depend_on_seed_and_name_only() -> None:
    def dense(**arguments: object) -> torch.Tensor:
        return te.TieredEmbedding(100, 5, **arguments).to_dense()

    tables = [dense(seed=1, name="a"), dense(seed=2, name="a"), dense(seed=1, name="b")]
    assert torch.equal(tables[0], dense(seed=1, name="a", optimizer=te.optim.Adam()))
    for one, other in itertools.combinations(tables, 2):
        assert not one.eq(other).any()
    larger = te.TieredEmbedding(1000, 5, seed=1, name="a").to_dense()
    assert torch.equal(larger[:100], tables[0])
