"""Random operations on three tiers at once: bit-equal whatever is on the (emulated) device."""

from __future__ import annotations

import random

import pytest
import torch
from fleet import Op
from hypothesis import given, settings
from oracle import HBM_CONFIGS, STATES, Case, torch_configs, triton_configs
from test_oracle import SOAKS, programs, random_op, run


@pytest.mark.parametrize("optimizer", list(STATES))
def test_the_core_on_a_device(optimizer: str) -> None:
    @given(programs(optimizer))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program, HBM_CONFIGS)

    check()


@pytest.mark.parametrize("optimizer", list(STATES))
def test_torch_operations_on_a_device(optimizer: str) -> None:
    @given(programs(optimizer))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program, torch_configs())

    check()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("configs", [HBM_CONFIGS, torch_configs()], ids=["core", "torch"])
def test_not_fused(optimizer: str, configs: tuple) -> None:
    @given(programs(optimizer, fused=False))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program, configs)

    check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("configs", [HBM_CONFIGS, torch_configs()], ids=["core", "torch"])
def test_low_precision(dtype: torch.dtype, configs: tuple) -> None:
    @given(programs("rowwise", dtype))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program, configs)

    check()


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [("rowwise", torch.float32), ("adam", torch.float32), ("sgd", torch.bfloat16)],
    ids=str,
)
def test_triton_kernels_on_a_device(optimizer: str, dtype: torch.dtype) -> None:
    """Under the interpreter, which is slow: few examples."""

    @settings(max_examples=4)
    @given(programs(optimizer, dtype))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program, triton_configs())

    check()


@pytest.mark.parametrize("configs", [HBM_CONFIGS, torch_configs()], ids=["core", "torch"])
@pytest.mark.parametrize("name", list(SOAKS))
def test_long_sequences(name: str, configs: tuple) -> None:
    case = SOAKS[name]
    rng = random.Random(7)
    run(case, [random_op(rng, case) for _ in range(80)], configs)
