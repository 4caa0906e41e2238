"""Kills a training process at random moments, and checks what it left behind.

    python tests/kill_loop.py DIRECTORY KILLS [SEED]

A child goes on from the last checkpoint with a deterministic training: step k reads and updates
rows that k alone decides, now and then it flushes its store, and every few steps it saves itself.
The parent kills it and forks a checker, which loads the checkpoint and replays the whole training
in plain dram: every row, every state and the dense part must be the same bits. The store that was
left must open, too, as of a state that the training has had.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

import tiered_emb as te

ROWS, DIM = 4000, 12
KILLS_A_STORE = 25  # the replay becomes longer and longer


class Model(nn.Module):
    """One table, and a parameter that counts the steps."""

    def __init__(self, tiers: te.Tiers | None) -> None:
        super().__init__()
        self.bag = te.TieredEmbedding(
            ROWS, DIM, mode="sum", tiers=tiers, optimizer=te.optim.Adagrad(0.1), name="t"
        )
        self.steps = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)

    def step(self) -> None:
        generator = torch.Generator().manual_seed(int(self.steps))
        ids = torch.randint(0, ROWS, (150,), generator=generator)
        self.bag(ids, torch.arange(0, 150, 3)).pow(2).sum().backward()
        self.steps += 1


def tiers(folder: Path, resume: bool = False) -> te.Tiers:
    return te.Tiers(dram=40_000, ssd=te.SSD(str(folder / "store"), resume=resume))


def has_store(folder: Path) -> bool:
    """Whether there is one, or one that a load was about to put there."""
    return any((folder / "store" / name).exists() for name in ("MANIFEST", "LOADED/MANIFEST"))


def train(folder: Path, seed: int) -> None:
    """Trains and saves until it is killed."""
    chance = random.Random(seed)
    left = has_store(folder)
    model = Model(tiers(folder, resume=left))
    if (folder / "ck" / "CHECKPOINT").exists():
        te.load(model, folder / "ck")
    elif left:  # killed after a flush and before the first save
        model.steps.fill_(model.bag._engine._core.step(0))
    saving = None
    while True:
        model.step()
        if chance.random() < 0.1:
            model.bag.flush()
        if chance.random() < 0.2:
            if saving is not None:
                saving.wait()
            saving = te.save(model, folder / "ck", int(model.steps), wait=chance.random() < 0.5)


def same(a: Model, b: Model) -> bool:
    states = zip(
        a.bag.state_rows(range(ROWS)).values(), b.bag.state_rows(range(ROWS)).values(), strict=True
    )
    return (
        torch.equal(a.bag.to_dense(), b.bag.to_dense())
        and all(torch.equal(x, y) for x, y in states)
        and bool(a.steps == b.steps)
    )


def check(folder: Path) -> None:
    """Raises unless checkpoint and store, as far as they are there, are states of the training."""
    if (folder / "ck" / "CHECKPOINT").exists():
        loaded = Model(None)
        step = te.load(loaded, folder / "ck")
        assert same(loaded, replayed(step)), f"the checkpoint of step {step} has other rows"
    if has_store(folder):
        store = Model(tiers(folder, resume=True))
        flushed = store.bag._engine._core.step(0)
        store.steps.fill_(flushed)
        assert same(store, replayed(flushed)), f"the store of step {flushed} has other rows"
        os._exit(0)  # as a killed process leaves it


def replayed(steps: int) -> Model:
    model = Model(None)
    for _ in range(steps):
        model.step()
    return model


def report(folder: Path) -> None:
    if not (folder / "ck" / "CHECKPOINT").exists():
        print("no save was completed")
        return
    print("last checkpoint: step", torch.load(folder / "ck" / newest(folder))["extra"], flush=True)


def newest(folder: Path) -> str:
    return str(json.loads((folder / "ck" / "CHECKPOINT").read_text())["state"])


def run_child(function: object, *args: object) -> int:
    child = os.fork()
    if child == 0:
        try:
            function(*args)  # type: ignore[operator]
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    return child


def main(argv: list[str]) -> int:
    kills = int(argv[1])
    seed = int(argv[2]) if len(argv) > 2 else 0
    chance = random.Random(seed)
    torch.set_num_threads(1)
    te.set_num_threads(1)
    Model(None).step()  # imports what torch imports at the first use, once for all children
    for kill in range(kills):
        folder = Path(argv[0]) / str(kill // KILLS_A_STORE)
        folder.mkdir(exist_ok=True)
        child = run_child(train, folder, seed * 100_003 + kill)
        time.sleep(0.02 + chance.random() * 0.4)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(f"kill {kill}: the training ended by itself")
            return 1
        _, status = os.waitpid(run_child(check, folder), 0)
        if status != 0:
            print(f"kill {kill} of seed {seed}: the check failed")
            return 1
    os.waitpid(run_child(report, folder), 0)
    print(f"{kills} kills")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
