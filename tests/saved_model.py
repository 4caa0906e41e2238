"""A small model that the tests of checkpoints save and load, and how its states are compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from same_bits import assert_same_bits
from torch import nn

import tiered_emb as te

ROWS = {"a": 3000, "b": 200}


class Model(nn.Module):
    """Two tables, a dense layer and a buffer."""

    def __init__(self, tiers: te.Tiers | None, optimizer: Any = te.optim.Adagrad, **kwargs: Any):
        super().__init__()
        torch.manual_seed(5)
        tables = [te.Table("a", ROWS["a"], 16), te.Table("b", ROWS["b"], 8)]
        self.emb = te.TieredEmbeddingCollection(
            tables, tiers=tiers, optimizer=optimizer(0.1, **kwargs)
        )
        self.mlp = nn.Linear(3, 4)
        self.register_buffer("seen", torch.zeros(()))

    def train_on(self, seed: int, steps: int = 20) -> Model:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            batch = {n: torch.randint(0, r, (64,), generator=generator) for n, r in ROWS.items()}
            sum(out.pow(2).sum() for out in self.emb(batch).values()).backward()
        with torch.no_grad():
            self.mlp.weight += seed
            self.seen += 1
        return self


def on_ssd(folder: Path, name: str, dram: int = 40_000, **kwargs: Any) -> te.Tiers:
    return te.Tiers(dram=dram, ssd=te.SSD(str(folder / name), **kwargs))


def state_of(model: Model) -> dict[str, torch.Tensor]:
    state = {"mlp": model.mlp.weight.detach().clone(), "seen": model.seen.clone()}
    for name, rows in ROWS.items():
        state[name] = model.emb.to_dense(name)
        for key, value in model.emb.state_rows(name, range(rows)).items():
            state[f"{name}.{key}"] = value
    return state


def assert_same_state(model: Model, want: dict[str, torch.Tensor]) -> None:
    have = state_of(model)
    assert have.keys() == want.keys()
    for key, value in want.items():
        assert_same_bits(have[key], value, key)


def run_script(code: str, folder: Path) -> str:
    """What a script prints that gets `folder`; it may take a minute."""
    command = [sys.executable, "-I", "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
