"""Three tiers on a CUDA device: the tests of the emulated one, and what only a device shows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fleet import Op
from hypothesis import given
from oracle import STATES, Case, torch_configs, triton_configs
from same_bits import assert_same_bits
from test_oracle import SOAKS, programs, random_op, run

import tiered_emb as te

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is present")
CONFIGS = {"triton": triton_configs("cuda"), "torch": torch_configs("cuda")}
ROWS, DIM = 5000, 32


@pytest.mark.parametrize("executor", list(CONFIGS))
@pytest.mark.parametrize("optimizer", list(STATES))
def test_random_operations(optimizer: str, executor: str) -> None:
    """Triton: bit-equal to tables in dram on the CPU. Torch: to one another."""

    @given(programs(optimizer))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program, CONFIGS[executor])

    check()


@pytest.mark.parametrize("executor", list(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision(dtype: torch.dtype, executor: str) -> None:
    @given(programs("rowwise", dtype))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program, CONFIGS[executor])

    check()


@pytest.mark.parametrize("executor", list(CONFIGS))
@pytest.mark.parametrize("name", list(SOAKS))
def test_long_sequences(name: str, executor: str) -> None:
    rng = random.Random(11)
    run(SOAKS[name], [random_op(rng, SOAKS[name]) for _ in range(80)], CONFIGS[executor])


def make(
    hbm_rows: int | None, *, device: str = "cuda", path: Path | None = None, **options: object
) -> te.TieredEmbedding:
    hbm = None if hbm_rows is None else te.HBM(hbm_rows * (DIM * 4 + 16), device)
    tiers = te.Tiers(hbm=hbm, dram=None if path is None else "1MiB", ssd=path and str(path))
    return te.TieredEmbedding(
        ROWS, DIM, mode="sum", tiers=tiers, optimizer=te.optim.RowwiseAdagrad(lr=0.1), **options
    )


def batches(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        hot = torch.randint(0, 50, (64, 8), generator=generator)
        cold = torch.randint(0, ROWS, (64, 8), generator=generator)
        yield torch.cat([hot, cold], 1), torch.randn(64, DIM, generator=generator)


def test_the_host_runs_ahead(tmp_path: Path) -> None:
    """Much work in the caller's stream, so that the device is behind when the host goes on."""
    busy = torch.randn(2048, 2048, device="cuda")
    found = []
    for hbm_rows, path in ((700, tmp_path / "s"), (ROWS, None)):
        bag = make(hbm_rows, path=path)
        for ids, grad in batches(40):
            out = bag(ids)
            for _ in range(20):
                busy = busy @ busy * 1e-3
            out.backward(grad.cuda(non_blocking=True))
        found.append(bag.to_dense())
    assert_same_bits(found[0], found[1], "rows")
    on_cpu = make(None)
    for ids, grad in batches(40):
        on_cpu(ids).backward(grad)
    assert_same_bits(found[0], on_cpu.to_dense(), "rows")


def test_inputs_and_outputs() -> None:
    bag = make(700, device="cuda:0")
    ids = torch.randint(0, ROWS, (16, 4))
    out = bag(ids.cuda())
    assert out.device == torch.device("cuda", 0)
    assert_same_bits(out.detach().cpu(), bag(ids).detach().cpu(), "output")
    with torch.autocast("cuda", dtype=torch.float16):
        assert bag(ids).dtype == torch.float16
    with pytest.raises(ValueError, match="'cpu'"):
        te.TieredEmbedding(9, 4, device="cpu", tiers=te.Tiers(hbm=te.HBM("1MiB", "cuda:0")))


def test_other_streams() -> None:
    """The caller may change streams between batches, and within one."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    bag, plain = make(300), make(None)
    for i, (ids, grad) in enumerate(batches(20)):
        with torch.cuda.stream(streams[i % 2]):
            bag(ids).backward(grad.cuda())
        plain(ids).backward(grad)
    torch.cuda.synchronize()
    assert_same_bits(bag.to_dense(), plain.to_dense(), "rows")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_devices() -> None:
    bags = [make(300, device=f"cuda:{d}") for d in range(2)]
    plain = make(None)
    for ids, grad in batches(10):
        for d, bag in enumerate(bags):
            bag(ids).backward(grad.to(f"cuda:{d}"))
        plain(ids).backward(grad)
    for bag in bags:
        assert_same_bits(bag.to_dense(), plain.to_dense(), "rows")
    with pytest.raises(TypeError, match="cuda:0"):
        bags[0](torch.zeros(1, 1, dtype=torch.int64, device="cuda:1"))
