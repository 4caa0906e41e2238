"""Random operations on three tiers at once: bit-equal whatever is on the (emulated) device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from fleet import Op
from hypothesis import given, settings
from kernel_contracts import KernelContracts
from oracle import (
    HBM_CONFIGS,
    STATES,
    Case,
    Config,
    torch_configs,
    triton_configs,
)
from same_bits import assert_same_bits
from test_oracle import SOAKS, programs, random_op, run
from triton_sanitizer import Sanitizer

import tiered_emb as te
from tiered_emb.device.executor import LayoutMemory, StagedBatch
from tiered_emb.device.slots import Slots
from tiered_emb.device.triton_executor import TritonExecutor

# Seven engines an example.
EXAMPLES = -(-hypothesis.settings.default.max_examples // 8)
CONFIGS = {"core": HBM_CONFIGS, "torch": torch_configs(), "triton": triton_configs()}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sanitizer]:
    """The kernels' accesses are checked, of slots and of guests; programs run backwards."""
    contracts, slots_of = KernelContracts(), TritonExecutor._slots

    def slots(self: TritonExecutor, memory: LayoutMemory, table: int, batch: StagedBatch) -> Slots:
        contracts.elsewhere = [batch.guests[n] for n in (memory.number,) if n in batch.guests]
        return slots_of(self, memory, table, batch)

    monkeypatch.setattr(TritonExecutor, "_slots", slots)
    with Sanitizer(contracts, lambda programs: programs[::-1]) as sanitizer:
        yield sanitizer


def check(
    configs: tuple[Config, ...],
    optimizer: str,
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
) -> None:
    @settings(max_examples=EXAMPLES)
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


@pytest.mark.parametrize("executor", ["core", "torch"])
@pytest.mark.parametrize("name", list(SOAKS))
def test_long_sequences(name: str, executor: str) -> None:
    rng = random.Random(7)
    run(SOAKS[name], [random_op(rng, SOAKS[name]) for _ in range(25)], CONFIGS[executor])


@pytest.mark.parametrize(
    ("name", "operations"),
    [("options", 8), ("layouts share a tight budget", 3), ("bfloat16", 1)],
)
def test_sequences_of_triton_kernels(name: str, operations: int, watched: Sanitizer) -> None:
    rng = random.Random(3)
    ops = [random_op(rng, SOAKS[name]) for _ in range(operations)]
    run(SOAKS[name], ops, CONFIGS["triton"])
    assert watched.launched.keys() >= {"copy_rows", "pool", "update"}


def test_a_table_with_a_share_is_served_by_itself(tmp_path: Path) -> None:
    """Its slots on the device are its own."""
    found = []
    for shares in ((None, None, None), (None, 0.5, None), (0.2, 0.5, 1.0)):
        tables = [te.Table(f"t{i}", 60, 8, dram_share=share) for i, share in enumerate(shares)]
        tiers = te.Tiers(
            te.HBM("3KiB", "cpu", executor="triton"), "6KiB", str(tmp_path / str(len(found)))
        )
        generator = torch.Generator().manual_seed(3)
        with te.TieredEmbeddingCollection(
            tables, tiers=tiers, optimizer=te.optim.RowwiseAdagrad(lr=0.1)
        ) as coll:
            seen = []
            for _ in range(4):
                batch = {t.name: torch.randint(0, 60, (9,), generator=generator) for t in tables}
                outs = coll(batch)
                seen += [out.detach().clone() for out in outs.values()]
                torch.autograd.backward(
                    list(outs.values()),
                    [torch.randn(out.shape, generator=generator) for out in outs.values()],
                )
            found.append(seen + [coll.to_dense(t.name) for t in tables])
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            assert_same_bits(a, b, "outputs and rows")


def test_one_launch_serves_neighbouring_tables(watched: Sanitizer) -> None:
    """As tables in dram alone: outputs, also written to, unused ones, rows that occur often."""
    modes = ["sum", "sum", "sum", "mean", "mean", "max", "sum"]
    dims = [8, 8, 8, 8, 8, 8, 16]
    tables = [
        te.Table(f"t{i}", 40, dim, mode)
        for i, (dim, mode) in enumerate(zip(dims, modes, strict=True))
    ]
    found = []
    for hbm in (te.HBM("5KiB", "cpu", executor="triton"), None):
        generator = torch.Generator().manual_seed(3)
        coll = te.TieredEmbeddingCollection(
            tables, tiers=te.Tiers(hbm=hbm), optimizer=te.optim.RowwiseAdagrad(lr=0.1)
        )
        seen = []
        for unused in (None, "t1", "t0", "t3", None):
            batch = {}
            for number, table in enumerate(tables):
                ids = torch.randint(0, 40, (90 + number,), generator=generator)
                ids[:70] = number  # a row that occurs often
                batch[table.name] = (ids, torch.tensor([0, 3, 3, 30 + number]))
            before = watched.launched.copy()
            outs = coll(batch)
            launched = (watched.launched - before)["pool"]
            assert launched == (4 if hbm is not None else 0)
            seen += [out.detach().clone() for out in outs.values()]
            outs["t0"].mul_(2.0)
            assert_same_bits(outs["t1"], seen[-6], "the output beside one that was written to")
            grads = [torch.randn(out.shape, generator=generator) for out in outs.values()]
            used = [
                (out, grad)
                for (name, out), grad in zip(outs.items(), grads, strict=True)
                if name != unused
            ]
            torch.autograd.backward(*zip(*used, strict=True))
        found.append(seen + [coll.to_dense(table.name) for table in tables])
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b, "outputs and rows")
