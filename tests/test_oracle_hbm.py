"""Random operations on three tiers at once: bit-equal whatever is on the (emulated) device."""

from __future__ import annotations

import random

import hypothesis
import pytest
import torch
from fleet import Op
from hypothesis import given, settings
from oracle import HBM_CONFIGS, STATES, Case, Config, torch_configs, triton_configs
from test_oracle import SOAKS, programs, random_op, run

# Seven engines an example, and a hundred kernel launches by an interpreter.
EXAMPLES = -(-hypothesis.settings.default.max_examples // 8)
TRITON_EXAMPLES = -(-hypothesis.settings.default.max_examples // 30)
CONFIGS = {"core": HBM_CONFIGS, "torch": torch_configs(), "triton": triton_configs()}


def check(
    configs: tuple[Config, ...],
    optimizer: str,
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
    examples: int = EXAMPLES,
) -> None:
    @settings(max_examples=examples)
    @given(programs(optimizer, dtype, fused))
    def run_program(program: tuple[Case, list[Op]]) -> None:
        run(*program, configs)

    run_program()


@pytest.mark.parametrize("executor", ["core", "torch"])
@pytest.mark.parametrize("optimizer", list(STATES))
def test_fused(optimizer: str, executor: str) -> None:
    check(CONFIGS[executor], optimizer)


@pytest.mark.parametrize(
    ("optimizer", "executor"), [("adam", "core"), ("rowwise", "torch")], ids=str
)
def test_not_fused(optimizer: str, executor: str) -> None:
    check(CONFIGS[executor], optimizer, fused=False)


@pytest.mark.parametrize(
    ("dtype", "executor"),
    [(torch.bfloat16, "core"), (torch.float16, "torch")],
    ids=str,
)
def test_low_precision(dtype: torch.dtype, executor: str) -> None:
    check(CONFIGS[executor], "rowwise", dtype)


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [("rowwise", torch.float32), ("adam", torch.bfloat16)],
    ids=str,
)
def test_triton_kernels(optimizer: str, dtype: torch.dtype) -> None:
    check(CONFIGS["triton"], optimizer, dtype, examples=TRITON_EXAMPLES)


@pytest.mark.parametrize("executor", ["core", "torch"])
@pytest.mark.parametrize("name", list(SOAKS))
def test_long_sequences(name: str, executor: str) -> None:
    rng = random.Random(7)
    run(SOAKS[name], [random_op(rng, SOAKS[name]) for _ in range(25)], CONFIGS[executor])


def test_long_sequence_of_triton_kernels() -> None:
    rng = random.Random(3)
    run(SOAKS["options"], [random_op(rng, SOAKS["options"]) for _ in range(8)], CONFIGS["triton"])
