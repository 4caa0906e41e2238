"""What the reclaimer does by itself, and damage that only it meets."""

from __future__ import annotations

import time
from pathlib import Path

import torch

import tiered_emb as te

ROWS = 20_000
DIM = 32
PART = 64


def opened(path: Path) -> te.TieredEmbedding:
    tiers = te.Tiers(dram="256KiB", ssd=te.SSD(path, resume=path.exists()))
    return te.TieredEmbedding(ROWS, DIM, mode="sum", tiers=tiers, optimizer=te.optim.SGD(lr=0.1))


def unreadable(bag: te.TieredEmbedding) -> torch.Tensor:
    """The ids of parts that cannot be read."""
    parts = []
    for part in torch.arange(ROWS).split(PART):
        try:
            bag.rows(part)
        except OSError:
            parts.append(part)
    return torch.cat(parts)


def test_damage_that_the_reclaimer_meets_in_the_background_is_told(tmp_path: Path) -> None:
    store = tmp_path / "store"
    bag = opened(store)
    bag.write_rows(torch.arange(ROWS), torch.rand(ROWS, DIM))
    bag.close()
    segment = sorted(store.glob("segment-*"))[1]
    segment.write_bytes(b"\xff" * segment.stat().st_size)
    bag = opened(store)
    lost = unreadable(bag)
    errors = []

    def write(ids: torch.Tensor) -> None:
        for part in ids.split(PART):
            time.sleep(0.002)  # so that the thread reclaims, and not this call
            try:
                bag.write_rows(part, torch.rand(len(part), DIM))
            except OSError as error:
                errors.append(str(error))

    write(lost[:-10])  # few rows of the segment are left: it is reclaimed first
    others = torch.tensor(sorted(set(range(ROWS)) - set(lost.tolist())))
    for _ in range(20):
        write(others[torch.randperm(len(others))[: ROWS // 4]])
        if bag.stats().ssd_segments_damaged > 0:
            break
    assert bag.stats().ssd_segments_damaged == 1
    try:
        bag.close()
    except OSError as error:
        errors.append(str(error))
    assert any(str(segment) in error for error in errors), errors


def test_space_is_given_back_while_nobody_calls(tmp_path: Path) -> None:
    tiers = te.Tiers(dram="1MiB", ssd=te.SSD(tmp_path / "store"))
    with te.TieredEmbedding(ROWS, DIM, tiers=tiers, optimizer=te.optim.SGD(lr=0.1)) as bag:
        bag.write_rows(torch.arange(ROWS), torch.rand(ROWS, DIM))
        for _ in range(8):  # each spills about 25 segments of 16 KiB
            bag(torch.randperm(ROWS)[: ROWS // 4], torch.arange(ROWS // 4)).sum().backward()
        deadline = time.monotonic() + 20
        while bag.stats().space_amplification > 1.5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert bag.stats().space_amplification <= 1.5  # 1.6 after a call
        assert bag.stats().ssd_segments_reclaimed > 0
