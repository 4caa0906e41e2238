"""Training against `torch.optim` and references; schedulers, accumulation, clipping, GradScaler."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

import tiered_emb as te
from tiered_emb.engine import TableEngine

ROWS, DIM = 60, 8
STEPS = 25
Tensor = torch.Tensor


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(ids, offsets, gradient) with hot and repeated ids and empty bags."""
    generator = torch.Generator().manual_seed(9)
    result = []
    for _ in range(steps):
        sizes = torch.randint(0, 6, (12,), generator=generator)
        skew = torch.rand(int(sizes.sum()), generator=generator) ** 3
        ids = (skew * ROWS).long()
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[:-1]])
        result.append((ids, offsets, torch.randn(12, DIM, generator=generator)))
    return result


def weights() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(4))


PAIRS: dict[str, tuple[Callable[..., te.optim.RowOptimizer], Callable[..., object]]] = {
    "sgd": (
        lambda **k: te.optim.SGD(0.1, **k),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ),
    "adagrad": (
        lambda **k: te.optim.Adagrad(0.1, 0.01, 0.2, 1e-8, **k),
        lambda p: torch.optim.Adagrad(p, 0.1, 0.01, 0.0, 0.2, 1e-8),
    ),
    "adam": (
        lambda **k: te.optim.Adam(0.05, (0.8, 0.99), 1e-7, **k),
        lambda p: torch.optim.SparseAdam(p, 0.05, (0.8, 0.99), 1e-7),
    ),
}


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", list(PAIRS))
def test_training(name: str, fused: bool, mode: str) -> None:
    """Against torch's optimizers on sparse gradients, state included, under a scheduler."""
    bag = nn.EmbeddingBag(ROWS, DIM, mode=mode, sparse=True, _weight=weights())
    optimizer = PAIRS[name][1](list(bag.parameters()))
    ours = te.TieredEmbedding.from_bag(bag, optimizer=PAIRS[name][0](fused=fused))
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 7, 0.5) for o in (optimizer, ours.optimizer)]
    for ids, offsets, grad in batches():
        out, expected = ours(ids, offsets), bag(ids, offsets)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        for each, opt in ((out, ours.optimizer), (expected, optimizer)):
            opt.zero_grad()
            each.backward(grad)
            opt.step()
        for scheduler in schedulers:
            scheduler.step()
    assert ours.optimizer.param_groups[0]["lr"] < 0.1 * 0.5**2
    torch.testing.assert_close(ours.to_dense(), bag.weight.detach(), rtol=1e-4, atol=1e-5)
    state = ours.state_rows(torch.arange(ROWS))
    for key, value in state.items():
        theirs = optimizer.state[bag.weight][key]
        torch.testing.assert_close(value, theirs, rtol=1e-4, atol=1e-5)
    assert len(state) == {"sgd": 0, "adagrad": 1, "adam": 2}[name]


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=30, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
                torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
            ],
            [5],
        ),
    ],
    ids=["cosine", "one cycle", "lambda", "sequential"],
)
def test_schedulers(scheduler: Callable[[object], object]) -> None:
    """The rate in force at each update is the scheduler's."""
    ours = te.TieredEmbedding(4, 2, init=te.init.Zeros(), optimizer=te.optim.SGD(1.0), mode="sum")
    parameter = torch.zeros(2, requires_grad=True)
    reference = torch.optim.SGD([parameter], lr=1.0)
    ours_schedule, schedule = scheduler(ours.optimizer), scheduler(reference)
    for _ in range(12):
        ours(torch.tensor([[1]])).sum().backward()
        ours.optimizer.step()
        parameter.grad = torch.ones(2)
        reference.step()
        ours_schedule.step()
        schedule.step()
    torch.testing.assert_close(ours.rows([1])[0], parameter.detach())


def rowwise_reference(
    weight: Tensor, total: Tensor, grad: Tensor, touched: Tensor, lr: float, eps: float, wd: float
) -> None:
    """FBGEMM's EXACT_ROWWISE_ADAGRAD with L2 decay, one row after the other."""
    for row in touched.tolist():
        g = grad[row] + wd * weight[row]
        total[row] += (g * g).mean()
        weight[row] -= lr / (total[row].sqrt() + eps) * g


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
def test_rowwise_adagrad(weight_decay: float, fused: bool) -> None:
    bag = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights())
    ours = te.TieredEmbedding.from_bag(
        bag, optimizer=te.optim.RowwiseAdagrad(0.1, 1e-5, weight_decay, 0.3, fused=fused)
    )
    total = torch.full((ROWS,), 0.3)
    for ids, offsets, grad in batches():
        bag.weight.grad = None
        bag(ids, offsets).backward(grad)
        rowwise_reference(
            bag.weight.data, total, bag.weight.grad, ids.unique(), 0.1, 1e-5, weight_decay
        )
        ours.optimizer.zero_grad()
        ours(ids, offsets).backward(grad)
        ours.optimizer.step()
    torch.testing.assert_close(ours.to_dense(), bag.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_rows(range(ROWS))["sum"], total, rtol=1e-4, atol=1e-5)


def fbgemm() -> object:
    try:
        import fbgemm_gpu.split_table_batched_embeddings_ops_training as training
    except Exception as error:  # whatever a wheel for another torch raises
        if os.environ.get("REQUIRE_FBGEMM") == "1":
            raise
        pytest.skip(f"FBGEMM is not usable here: {error!r:.200}")
    return training


def test_rowwise_adagrad_as_fbgemm() -> None:
    """The same trajectory as FBGEMM's split table-batched embeddings on the CPU."""
    training = fbgemm()
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    table = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, training.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-6,
    )
    table.split_embedding_weights()[0].copy_(weights())
    ours = te.TieredEmbedding.from_pretrained(
        weights(), False, mode="sum", optimizer=te.optim.RowwiseAdagrad(0.1, 1e-6)
    )
    for ids, offsets, grad in batches():
        out = ours(ids, offsets)
        expected = table(ids, torch.cat([offsets, torch.tensor([len(ids)])]))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        out.backward(grad)
        expected.backward(grad)
    dense = table.split_embedding_weights()[0]
    torch.testing.assert_close(ours.to_dense(), dense.detach(), rtol=1e-4, atol=1e-5)
    total = table.split_optimizer_states()[0][0]
    torch.testing.assert_close(ours.state_rows(range(ROWS))["sum"], total, rtol=1e-4, atol=1e-5)


def test_accumulation() -> None:
    """Four backwards and one step equal one backward over the whole batch."""
    adams = [te.optim.Adam(0.05, fused=False) for _ in range(2)]
    micro, whole = (
        te.TieredEmbedding.from_pretrained(weights(), False, mode="sum", optimizer=adam)
        for adam in adams
    )
    for _ in range(3):
        parts = batches(4)
        before = micro.to_dense()
        for ids, offsets, grad in parts:
            micro(ids, offsets).backward(grad)
        assert torch.equal(micro.to_dense(), before), "backward alone moves nothing"
        outs = [whole(ids, offsets) for ids, offsets, _ in parts]
        torch.autograd.backward(outs, [grad for *_, grad in parts])
        for adam in adams:
            adam.step()
            adam.zero_grad()
        assert not torch.equal(micro.to_dense(), before)
        torch.testing.assert_close(micro.to_dense(), whole.to_dense())


def test_zero_grad_forgets() -> None:
    ours = te.TieredEmbedding(10, 2, mode="sum", optimizer=te.optim.Adam(0.1, fused=False))
    before = ours.to_dense()
    for set_to_none in (True, False):
        ours(torch.tensor([[1, 2]])).sum().backward()
        ours.optimizer.zero_grad(set_to_none=set_to_none)
        ours.optimizer.step()
        assert torch.equal(ours.to_dense(), before)
    ours(torch.tensor([[1, 2]])).sum().backward()
    nn.Module.zero_grad(ours)
    ours.optimizer.step()
    assert torch.equal(ours.to_dense(), before)


def test_step_twice_applies_twice() -> None:
    """As torch: gradients stay until zero_grad."""
    ours = te.TieredEmbedding(
        10, 2, mode="sum", init=te.init.Zeros(), optimizer=te.optim.SGD(1.0, fused=False)
    )
    ours(torch.tensor([[1]])).sum().backward()
    ours.optimizer.step()
    ours.optimizer.step()
    assert ours.rows([1]).eq(-2).all()


def test_a_step_that_failed_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three tables fails once; each gets one update all the same."""
    optimizer = te.optim.SGD(lr=1.0, fused=False)
    tables = [te.Table(name, 10, 4) for name in "abc"]
    coll = te.TieredEmbeddingCollection(tables, optimizer=optimizer)
    before = {name: coll.to_dense(name) for name in "abc"}
    sum(out.sum() for out in coll({name: torch.arange(3) for name in "abc"}).values()).backward()
    apply = TableEngine.apply_gradients

    def fail(engine: TableEngine, table: int, *args: torch.Tensor) -> None:
        if table == 1:
            raise OSError("the disk is full")
        apply(engine, table, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TableEngine, "apply_gradients", fail)
        with pytest.raises(OSError, match="full"):
            optimizer.step()
    optimizer.step()
    for name in "abc":
        torch.testing.assert_close(coll.rows(name, range(3)), before[name][:3] - 1)


def test_closure() -> None:
    ours = te.TieredEmbedding(
        10, 2, mode="sum", init=te.init.Zeros(), optimizer=te.optim.SGD(1.0, fused=False)
    )

    def closure() -> Tensor:
        loss = ours(torch.tensor([[1]])).sum()
        loss.backward()
        return loss.detach()

    assert float(ours.optimizer.step(closure)) == 0.0
    assert ours.rows([1]).eq(-1).all()


def test_clipping() -> None:
    """The norm and the clipped update are those of a dense nn.EmbeddingBag."""
    bag = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights())
    reference = torch.optim.SGD(bag.parameters(), lr=0.1)
    ours = te.TieredEmbedding.from_bag(bag, optimizer=te.optim.SGD(0.1, fused=False))
    for ids, offsets, grad in batches():
        for module, optimizer in ((ours, ours.optimizer), (bag, reference)):
            optimizer.zero_grad()
            module(ids, offsets).backward(grad)
        norms = [nn.utils.clip_grad_norm_(m.parameters(), 1.0) for m in (ours, bag)]
        torch.testing.assert_close(norms[0], norms[1])
        assert norms[0] > 1.0
        ours.optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.to_dense(), bag.weight.detach(), rtol=1e-4, atol=1e-5)


def test_grad_scaler() -> None:
    """Scaled gradients are unscaled before the update, and a step with an infinity is skipped."""
    ours, plain = (
        te.TieredEmbedding.from_pretrained(
            weights(), False, mode="sum", optimizer=te.optim.SGD(0.1, fused=False)
        )
        for _ in range(2)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for ids, offsets, grad in batches(4):
        scaler.scale((ours(ids, offsets) * grad).sum()).backward()
        (plain(ids, offsets) * grad).sum().backward()
        scaler.step(ours.optimizer)
        scaler.update()
        plain.optimizer.step()
        for each in (ours, plain):
            each.optimizer.zero_grad()
    torch.testing.assert_close(ours.to_dense(), plain.to_dense(), rtol=1e-5, atol=1e-6)
    before = ours.to_dense()
    scaler.scale((ours(ids, offsets) * float("inf")).sum()).backward()
    scaler.step(ours.optimizer)
    scaler.update()
    assert torch.equal(ours.to_dense(), before)
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("fused", [True, False])
def test_two_bags_share_an_optimizer(fused: bool) -> None:
    shared = te.optim.Adagrad(0.1, fused=fused)
    tables = [te.TieredEmbedding(20, d, mode="sum", optimizer=shared, name=f"t{d}") for d in (2, 5)]
    alone = [
        te.TieredEmbedding(20, d, mode="sum", optimizer=te.optim.Adagrad(0.1), name=f"t{d}")
        for d in (2, 5)
    ]
    for step in range(5):
        shared.zero_grad()
        ids = torch.arange(step, step + 6).reshape(3, 2)
        for table in tables + alone:
            table(ids).square().sum().backward()
        shared.step()
    for together, single in zip(tables, alone, strict=True):
        torch.testing.assert_close(together.to_dense(), single.to_dense())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype) -> None:
    """Updates far below half a unit of the last place add up to what they would in float32."""
    rows, steps, lr = 2000, 200, 1e-5
    ours = te.TieredEmbedding(
        rows, 8, mode="sum", dtype=dtype, init=te.init.Constant(1.0), optimizer=te.optim.SGD(lr)
    )
    ids = torch.arange(rows)[:, None]
    for _ in range(steps):
        ours(ids).backward(torch.ones(rows, 8, dtype=dtype))
    moved = 1.0 - ours.to_dense().double()
    # Below 1.0 the unit is 2^-11 (fp16) or 2^-8 (bf16); each weight walks randomly.
    unit = 2.0**-11 if dtype == torch.float16 else 2.0**-8
    deviation = (steps * lr * unit) ** 0.5 / (rows * 8) ** 0.5
    assert moved.mean() == pytest.approx(steps * lr, abs=6 * deviation)
    assert moved.std() > 0
    # Rounded to nearest, none of it would have moved.
    assert torch.tensor(1.0 - lr).to(dtype) == 1.0


def test_check_finite() -> None:
    for fused in (True, False):
        ours = te.TieredEmbedding(
            10,
            3,
            mode="sum",
            name="ads",
            optimizer=te.optim.SGD(0.1, fused=fused, check_finite=True),
        )
        before = ours.to_dense()
        out = ours(torch.tensor([[1, 2], [3, 4]]))
        grad = torch.zeros(2, 3)
        grad[1, 2] = float("nan")
        with pytest.raises(ValueError, match=r"table 'ads'.*bag 1, column 2 is -?nan"):
            out.backward(grad)
        assert torch.equal(ours.to_dense(), before)
        ours(torch.tensor([[1, 2]])).sum().backward()
        ours.optimizer.step()
        assert ours.rows([1, 2]).ne(before[1:3]).all()
        assert torch.equal(ours.rows([3, 4]), before[3:5])


@pytest.mark.parametrize(
    "make",
    [
        lambda: te.optim.SGD(-1),
        lambda: te.optim.Adagrad(lr_decay=-1),
        lambda: te.optim.Adagrad(initial_accumulator_value=-1),
        lambda: te.optim.RowwiseAdagrad(eps=-1),
        lambda: te.optim.Adam(betas=(1.0, 0.9)),
        lambda: te.optim.Adam(lr=0),
    ],
)
def test_bad_hyperparameters(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


def test_frozen_rows() -> None:
    """Without an optimizer nothing moves, but sample weights still get gradients."""
    ours = te.TieredEmbedding(10, 3, mode="sum")
    before = ours.to_dense()
    assert ours.optimizer is None
    assert not ours(torch.tensor([[1, 2]])).requires_grad
    sample = torch.ones(1, 2, requires_grad=True)
    ours(torch.tensor([[1, 2]]), None, sample).sum().backward()
    torch.testing.assert_close(sample.grad[0], before[1:3].sum(1))
    assert torch.equal(ours.to_dense(), before)
