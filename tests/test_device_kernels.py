"""The Triton kernels against the CPU's, bit for bit: on a GPU, or under Triton's interpreter.

There every launch is watched (triton_sanitizer.py), and its programs run in a shuffled order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from device_case import OPTIMIZERS, Case, bits, check
from kernel_contracts import KernelContracts
from triton_sanitizer import Sanitizer

import tiered_emb as te
from tiered_emb import _core
from tiered_emb.device import launch
from tiered_emb.device.slots import SlotLayout, Slots

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ORDERS: dict[str, Callable[[Sequence[Any]], list[Any]]] = {
    "forwards": list,
    "backwards": lambda programs: list(programs)[::-1],
    "shuffled": lambda programs: random.Random(5).sample(programs, len(programs)),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[list[torch.Tensor]]:
    """Memory that launches reach by a shift is to be appended, for the sanitizer."""
    if DEVICE != "cpu":
        yield []
        return
    contracts = KernelContracts()
    with Sanitizer(contracts, ORDERS[getattr(request, "param", "shuffled")]):
        yield contracts.elsewhere


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(optimizer: str, dtype: torch.dtype) -> None:
    check(Case(dim=32, dtype=dtype, optimizer=optimizer, steps=3), DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [False, True])
def test_modes(mode: str, dtype: torch.dtype, padding: bool) -> None:
    check(Case(dim=16, dtype=dtype, mode=mode, padding=padding, optimizer="rowwise"), DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_count", [False, True])
def test_sample_weights(dtype: torch.dtype, by_count: bool) -> None:
    case = Case(dim=24, dtype=dtype, weighted=True, padding=True, by_count=by_count)
    check(case, DEVICE)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 17, 31, 33, 64, 100, 128, 257])
@pytest.mark.parametrize("optimizer", ["rowwise, decay", "adam"])
def test_dims(dim: int, optimizer: str) -> None:
    check(Case(dim=dim, optimizer=optimizer, mode="mean", by_count=True), DEVICE)


@pytest.mark.parametrize("dim", [7, 2000])
def test_odd_and_wide_rows_of_16_bits(dim: int) -> None:
    check(Case(dim=dim, dtype=torch.bfloat16, optimizer="adagrad", rows=6), DEVICE)


def test_one_giant_bag_and_a_row_that_occurs_everywhere() -> None:
    check(Case(dim=8, rows=3, sizes=[0, 300, 0, 1], optimizer="rowwise", mode="mean"), DEVICE)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("dim", [5, 16, 80])
def test_gradients_of_rows_that_occur_often(mode: str, dim: int) -> None:
    sizes = [1, 0, 3, 2, 150, 1, 0]
    case = Case(dim, mode=mode, rows=3, sizes=sizes, often=1, optimizer="adagrad")
    check(replace(case, by_count=mode != "max"), DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise, decay"])
@pytest.mark.parametrize("often", [0, 100])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # to infinity, as it should be
def test_zeros_of_both_signs_and_extremes(dtype: torch.dtype, optimizer: str, often: int) -> None:
    case = Case(20, dtype=dtype, optimizer=optimizer, weighted=True, extremes=True, often=often)
    check(case, DEVICE)
    check(replace(case, weighted=False, mode="max"), DEVICE)


def test_a_row_of_zero_weight_is_a_zero_of_its_sign() -> None:
    slots = Slots.zeros(SlotLayout(4, torch.float32, 0), 2, DEVICE)
    slots.weights[:, :4] = torch.tensor([[-1.0, 1.0, -0.0, 0.0], [-0.0, -0.0, -0.0, -0.0]])
    numbers = torch.tensor([0, 1, 1], dtype=torch.int32, device=DEVICE)
    begin = torch.tensor([0, 1, 3], device=DEVICE)
    out = torch.empty(2, 4, device=DEVICE)
    weights = torch.tensor([0.0, 1.0, 1.0], device=DEVICE)
    launch.pool(slots, numbers, begin, "sum", out, weights)
    assert torch.signbit(out).tolist() == [[True, False, True, False], [True] * 4]


def test_random_words_of_rows_beyond_32_bits(tmp_path: Path) -> None:
    rows, dim, dtype = 2**33, 16, torch.bfloat16
    bag = te.TieredEmbedding(
        rows,
        dim,
        mode="sum",
        dtype=dtype,
        tiers=te.Tiers(dram="16MiB", ssd=te.SSD(str(tmp_path / "store"))),
        optimizer=te.optim.SGD(0.1),
        init=te.init.Normal(0, 1),
        seed=3,
        name="t",
    )
    ids = torch.tensor([5, 2**32 + 5, rows - 1])
    slots = Slots.zeros(SlotLayout(dim, dtype, 1), 3, DEVICE)
    slots.weights[:, :dim] = bag.rows(ids).to(DEVICE)
    grad = torch.randn(3, dim).to(dtype)
    bag(ids, torch.arange(3)).backward(grad)
    few = torch.arange(4, dtype=torch.int32, device=DEVICE)
    occurrences = launch.Occurrences(few[:3], ids.to(DEVICE), few, few[:3])
    key = _core.table_key(3, "t")
    step = launch.step_numbers(1, bag.optimizer.hyper(), 1, key, DEVICE)
    launch.update(slots, few[:3], occurrences, "sum", launch.Gradients(grad.to(DEVICE)), step)
    assert torch.equal(bits(slots.weights[:, :dim].cpu()), bits(bag.rows(ids)))
    bag.close()


def test_step_numbers_are_float32_whatever_the_default_is() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        step = launch.step_numbers(4, (0.1, 1e-8, 0.8, 0.95, 0.0, 0.0), 2**33 + 1, (1, 2), DEVICE)
    finally:
        torch.set_default_dtype(before)
    assert step.numbers.dtype is torch.float32
    assert step.counters.tolist() == [1, 2, 1, 1 << 30 | 2 << 8]


def test_empty_bags_only() -> None:
    check(Case(dim=8, sizes=[0, 0, 0], steps=1), DEVICE)


# With tiles of few elements, so that a launch has many programs.
MANY_PROGRAMS = [
    Case(7, optimizer="adagrad", mode="mean", padding=True, by_count=True, rows=12),
    Case(33, optimizer="adam", mode="max", sizes=[0, 40, 3], rows=9, often=4),
    Case(100, torch.bfloat16, "rowwise, decay", weighted=True, padding=True, rows=9, often=2),
    Case(5, torch.float16, "sgd", weighted=True, sizes=[3, 0, 0, 1, 2, 4, 1, 0, 9, 1], rows=30),
]


@pytest.mark.parametrize("case", MANY_PROGRAMS, ids=lambda case: f"{case.optimizer} {case.dim}")
@pytest.mark.parametrize("elsewhere", ORDERS, indirect=True)
def test_many_programs_in_any_order_and_guests(
    case: Case, elsewhere: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "TILE", 64)
    monkeypatch.setattr(launch, "WARPS", 1)  # no threads with copies of others' elements
    check(replace(case, guests=6), DEVICE, elsewhere)
