"""A table and batches that the tests of prefetching share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tiered_emb as te

Tensor = torch.Tensor
ROWS, DIM = 300, 5
MIN, SOME, ALL = 40, 120, None  # rows in dram


def make_bag(
    path: Path, slots: int | None, optimizer: Any = None, hbm: int | None = None, **options: Any
) -> Any:
    """A table of ROWS rows with room in dram for `slots` of them, and on a device for `hbm`."""
    optimizer = te.optim.SGD(0.1) if optimizer is None else optimizer
    options = {"mode": "sum", **options}
    probe = te.TieredEmbedding(ROWS, DIM, dtype=options.get("dtype"), optimizer=optimizer)
    row_bytes = probe.row_bytes // ROWS
    device = None
    if hbm is not None:
        row_bytes = -(-row_bytes // 16) * 16
        device = te.HBM(hbm * row_bytes, "cpu", buffer=600)
    dram = None if slots is None else slots * row_bytes
    return te.TieredEmbedding(
        ROWS, DIM, optimizer=OPTIMIZERS_OF[type(optimizer)](optimizer), seed=3,
        tiers=te.Tiers(hbm=device, dram=dram, ssd=te.SSD(str(path))), **options,
    )  # fmt: skip


OPTIMIZERS_OF: dict[type, Any] = {
    te.optim.SGD: lambda o: te.optim.SGD(0.1, fused=o.fused),
    te.optim.Adagrad: lambda o: te.optim.Adagrad(0.1, fused=o.fused),
    te.optim.RowwiseAdagrad: lambda o: te.optim.RowwiseAdagrad(0.1, fused=o.fused),
    te.optim.Adam: lambda o: te.optim.Adam(0.1, fused=o.fused),
}


def random_batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(ids, offsets) of up to 20 ids, some of which come in every batch."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(count):
        n = int(torch.randint(1, 21, (), generator=generator))
        spread = ROWS if i % 3 else 30
        ids = torch.randint(spread, (n,), generator=generator)
        begin = torch.randint(n, (3,), generator=generator).sort().values
        begin[0] = 0
        batches.append((ids.to(torch.int32) if i % 4 == 0 else ids, begin))
    return batches
