"""`te.convert`: every `nn.EmbeddingBag` of a model becomes a table, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from same_bits import assert_same_bits
from torch import nn

import tiered_emb as te


class Model(nn.Module):
    """Bags at several depths, one of them shared, among other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.EmbeddingBag(40, 4, mode="sum")
        self.again = self.first
        self.nested = nn.ModuleDict(
            {
                "list": nn.ModuleList(
                    [nn.EmbeddingBag(20, 6, mode="max"), nn.EmbeddingBag(30, 4, padding_idx=2)]
                ),
                "shared": nn.Sequential(self.first),
            }
        )
        self.plain = nn.Embedding(5, 2)
        self.top = nn.Linear(18, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts = [
            self.first(ids),
            self.nested["list"][0](ids),
            self.nested["list"][1](ids),
            self.nested["shared"](ids),
        ]
        return self.top(torch.cat(parts, 1))


IDS = torch.tensor([[1, 2, 3], [2, 5, 7]])


def test_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model()
    expected = model(IDS)
    names = [name for name, _ in model.named_modules()]
    tiers = te.Tiers(dram=1200, ssd=str(tmp_path / "s"))
    converted = te.convert(model, tiers=tiers, optimizer=te.optim.SGD(0.1))
    assert converted is model
    assert [name for name, _ in model.named_modules()] == names
    assert not any(isinstance(m, nn.EmbeddingBag) for m in model.modules())
    assert model.first is model.again is model.nested["shared"][0]
    assert isinstance(model.plain, nn.Embedding)
    torch.testing.assert_close(model(IDS), expected)
    assert model.first.stats().total_rows == 40 + 20 + 30
    assert {n for n, _ in model.named_parameters()} == {"plain.weight", "top.weight", "top.bias"}


@pytest.mark.parametrize("fused", [True, False])
def test_training(fused: bool) -> None:
    """As the model with torch's optimizer; one optimizer moves all tables."""
    torch.manual_seed(0)
    plain, model = Model(), Model()
    model.load_state_dict(plain.state_dict())
    plain_sgd = torch.optim.SGD(plain.parameters(), lr=0.1)
    rows = te.optim.SGD(0.1, fused=fused)
    model = te.convert(model, optimizer=rows)
    dense = [p for n, p in model.named_parameters() if "touched_rows" not in n]
    model_sgd = torch.optim.SGD(dense, lr=0.1)
    for step in range(5):
        for each, optimizers in ((plain, [plain_sgd]), (model, [model_sgd, rows])):
            for optimizer in optimizers:
                optimizer.zero_grad()
            each((IDS + step) % 20).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    if fused:  # the shared bag is looked up twice: two updates of one gradient each are one of both
        assert model.first.optimizer is rows
    torch.testing.assert_close(model(IDS), plain(IDS), rtol=1e-4, atol=1e-5)
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)


def test_model_that_is_a_bag() -> None:
    bag = nn.EmbeddingBag(9, 3, mode="max", padding_idx=1)
    table = te.convert(bag)
    assert isinstance(table, te.TieredEmbedding)
    assert_same_bits(table.to_dense(), bag.weight.detach(), "rows")
    torch.testing.assert_close(table(IDS), bag(IDS))


def test_dtypes_and_training_flag() -> None:
    model = nn.ModuleList([nn.EmbeddingBag(9, 3).half(), nn.EmbeddingBag(9, 3).bfloat16()])
    weights = [bag.weight.detach() for bag in model]
    model.eval()
    te.convert(model)
    for table, weight in zip(model, weights, strict=True):
        assert_same_bits(table.to_dense(), weight, "rows")
        assert not table.training


def test_refusals_change_nothing() -> None:
    with pytest.raises(ValueError, match=r"no nn\.EmbeddingBag"):
        te.convert(nn.Linear(2, 2))
    for make, tiers, message in (
        (lambda: nn.EmbeddingBag(9, 3).double(), None, "float64"),
        (lambda: nn.EmbeddingBag(10**4, 300), te.Tiers(dram=1000), "need"),
    ):
        model = nn.ModuleDict({"a": nn.EmbeddingBag(5, 2), "b": make()})
        bags = list(model.values())
        with pytest.raises(ValueError, match=message):
            te.convert(model, tiers=tiers)
        assert all(x is y for x, y in zip(model.values(), bags, strict=True))


def test_resume(tmp_path: Path) -> None:
    """A model converted again takes the trained rows from its store, not the bags' weights."""

    def build(resume: bool) -> nn.Module:
        torch.manual_seed(7)
        tiers = te.Tiers(dram=1200, ssd=te.SSD(str(tmp_path / "s"), resume=resume))
        return te.convert(Model(), tiers=tiers, optimizer=te.optim.Adagrad(0.1))

    model = build(resume=False)
    fresh = model.first.to_dense()
    for _ in range(3):
        model(IDS).sum().backward()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    model.first.close()
    again = build(resume=True)
    for name, value in again.state_dict().items():
        if name.startswith(("first", "nested")):
            assert_same_bits(value, trained[name], name)
    assert not torch.equal(again.first.to_dense(), fresh)
    assert (again.first.state_rows([1])["sum"] > 0).all()
