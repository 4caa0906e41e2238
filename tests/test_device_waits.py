"""Every wait between the host and a device's streams is needed: without any one, a test fails.

The emulated device does nothing that nobody waits for. Here it forgets the waits of one place in
the code at a time, and some result has to differ.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from same_bits import same_bits

import tiered_emb as te
from tiered_emb.device import tier
from tiered_emb.device.runtime import EmulatedRuntime, RaceError

WAITS = ("copy_waits", "compute_waits", "host_waits")
Site = tuple[str, int]


def wait_sites() -> set[Site]:
    """(file, line) of every wait in the device layer."""
    sites = set()
    for path in Path(inspect.getfile(tier)).parent.glob("*.py"):
        if path.name == "runtime.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in WAITS
            ):
                sites.add((path.name, node.func.value.lineno))
    return sites


class Forgetful(EmulatedRuntime):
    """Forgets the waits of one place."""

    def __init__(self, forgotten: Site | None) -> None:
        super().__init__(hostile=True)
        self.forgotten = forgotten
        self.seen: set[Site] = set()

    def _is_forgotten(self) -> bool:
        frame = sys._getframe(2)
        site = (Path(frame.f_code.co_filename).name, frame.f_lineno)
        self.seen.add(site)
        return site == self.forgotten

    def copy_waits(self, event: Any) -> None:
        if not self._is_forgotten():
            super().copy_waits(event)

    def compute_waits(self, event: Any) -> None:
        if not self._is_forgotten():
            super().compute_waits(event)

    def host_waits(self, event: Any) -> None:
        if not self._is_forgotten():
            super().host_waits(event)


ROWS, DIM = 120, 4


def batches(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    while True:
        hot = torch.randint(0, 20, (12,), generator=random)
        cold = torch.randint(0, ROWS, (12,), generator=random)
        ids = torch.cat([hot, cold])[torch.randperm(24, generator=random)]
        yield ids, torch.arange(0, 24, 3), torch.randn(8, DIM, generator=random)


def results(tiers: te.Tiers, max_norm: float | None = None) -> list[torch.Tensor]:
    """What a user sees of some training: lookups, evaluations, reads, writes and kept outputs."""
    bag = te.TieredEmbedding(
        ROWS, DIM, max_norm, mode="sum", tiers=tiers, optimizer=te.optim.Adagrad(lr=0.1), seed=3
    )
    seen = []
    kept = []
    stream = batches(11)
    for step in range(30):
        ids, offsets, grad = next(stream)
        if step % 4 == 1:
            bag(ids.flip(0), offsets)  # nobody wants its gradient
            ids, offsets, grad = next(stream)
        out = bag(ids, offsets)
        seen.append(out.detach().clone())
        if step % 8 == 6:
            bag.write_rows(ids[:4], torch.full((4, DIM), float(-step)))  # before its backward
        if step % 7 == 3:
            kept.append((out, grad))
            continue
        out.backward(grad)
        if step % 5 == 0:
            with torch.no_grad():
                seen.append(bag(ids[:6], torch.tensor([0, 2])))
        if step % 6 == 2:
            seen.append(bag.rows(ids))
        if step % 9 == 4:
            bag.write_rows(ids[:4], torch.full((4, DIM), float(step)))
    for out, grad in kept:
        out.backward(grad)
    seen.append(bag.to_dense())
    bag.close()
    return seen


ROW_BYTES = 2 * DIM * 4
SCENARIOS: dict[str, dict[str, Any]] = {
    "all steps": {"hbm": 40},
    "rows in dram too": {"hbm": 7},
    "little dram": {"hbm": 20, "dram": 48},
    "little dram, rows in dram too": {"hbm": 6, "dram": 40},
    "bounded norms": {"hbm": 30, "max_norm": 1.0},
    "the core": {"hbm": 30, "executor": "core"},
}


def run(name: str, folder: Path, forgotten: Site | None) -> tuple[list[torch.Tensor], set[Site]]:
    scenario = SCENARIOS[name]
    runtime = Forgetful(forgotten)
    # Buffers of three rows, so that a stage needs several.
    executor = scenario.get("executor", "torch")
    hbm = te.HBM(scenario["hbm"] * ROW_BYTES, "cpu", executor=executor, buffer=16 + 3 * 36 + 15)
    dram, ssd = None, None
    if "dram" in scenario:
        dram, ssd = scenario["dram"] * ROW_BYTES, str(folder / "store")
    before = tier.runtime_of
    tier.runtime_of = lambda device: runtime
    try:
        found = results(te.Tiers(hbm=hbm, dram=dram, ssd=ssd), scenario.get("max_norm"))
        return found, runtime.seen
    finally:
        tier.runtime_of = before


@pytest.fixture(scope="module")
def wanted() -> dict[str, list[torch.Tensor]]:
    """The results with everything on the device, where nothing can be late."""
    found = {}
    for name, scenario in SCENARIOS.items():
        executor = scenario.get("executor", "torch")
        hbm = te.HBM(ROWS * ROW_BYTES, "cpu", executor=executor)
        found[name] = results(te.Tiers(hbm=hbm), scenario.get("max_norm"))
    return found


def differs(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return not all(same_bits(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_nothing_differs_with_all_waits(
    name: str, wanted: dict[str, list[torch.Tensor]], tmp_path: Path
) -> None:
    assert not differs(run(name, tmp_path, None)[0], wanted[name])


def test_every_wait_is_met(tmp_path: Path) -> None:
    seen = set()
    for name in SCENARIOS:
        seen |= run(name, tmp_path / name, None)[1]
    assert seen == wait_sites()


@pytest.mark.parametrize("site", sorted(wait_sites()), ids=lambda site: f"{site[0]}:{site[1]}")
def test_a_wait_that_is_missing_shows(
    site: Site, wanted: dict[str, list[torch.Tensor]], tmp_path: Path
) -> None:
    for name in SCENARIOS:
        try:
            found, _ = run(name, tmp_path / name, site)
        except (RaceError, IndexError):  # an id or slot that was not there yet is noticed, too
            return
        if differs(found, wanted[name]):
            return
    pytest.fail("nothing differs without it")


def test_moves_of_a_batch_do_not_wait_for_the_batch_before() -> None:
    """Rows move while the device computes: only what used the overwritten slots comes first."""
    runtime = Forgetful(None)
    before, tier.runtime_of = tier.runtime_of, lambda device: runtime
    try:
        hbm = te.HBM(60 * ROW_BYTES, "cpu", executor="torch")
        bag = te.TieredEmbedding(
            ROWS, DIM, tiers=te.Tiers(hbm=hbm, policy="lru"), optimizer=te.optim.Adagrad(lr=0.1)
        )
    finally:
        tier.runtime_of = before
    compute, copy = runtime._compute, runtime._copy
    launched = []
    for batch in range(12):
        out = bag((torch.arange(10) + 10 * batch)[None] % ROWS)
        # The moves of this batch came before its own launches.
        if batch >= 7:
            assert copy.after[compute] <= launched[-3]
        out.sum().backward()
        launched.append(compute.end())
    assert bag.stats().hbm_rows_spilled > 0
