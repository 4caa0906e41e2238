"""The Triton kernels against the CPU's, bit for bit: under Triton's interpreter, or on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from device_case import OPTIMIZERS, Case, check

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


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


def test_empty_bags_only() -> None:
    check(Case(dim=8, sizes=[0, 0, 0], steps=1), DEVICE)
