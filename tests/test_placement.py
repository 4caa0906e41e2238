"""Shares that the tuner proposes are taken by the engine as they are printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tuner_case import HERE

import tiered_emb as te
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.reader import Trace
from tiered_emb.trace.writer import TraceWriter
from tiered_emb.tuner.advice import share_text
from tiered_emb.tuner.cost import Model, RowFormat, Sizes, outlook
from tiered_emb.tuner.model import Load, model_of
from tiered_emb.tuner.placement import placement
from tiered_emb.tuner.sample import Pyramid, take_sample

TABLES = {"users": (200_000, 64), "items": (100_000, 32)}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pyramid, Model]:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    with TraceWriter(path, {n: TraceTable(rows, dim) for n, (rows, dim) in TABLES.items()}) as to:
        for batch in range(2000):
            to.write(batch, "users", rng.integers(0, 200_000, 30))
            to.write(batch, "items", (100_000 ** rng.random(60)).astype(np.int64) - 1)
    pyramid = take_sample(Trace(path), warm_up=0.5)
    return pyramid, model_of(pyramid, Load(RowFormat()), (16,))


@pytest.mark.parametrize("part", [0.2, 0.3, 0.4, 0.5, 0.6])
def test_the_engine_takes_them(part: float, load: tuple[Pyramid, Model], tmp_path: Path) -> None:
    pyramid, model = load
    dram = int(part * model.bytes)
    point = outlook(model, Sizes(0, dram, 4, 16), HERE)
    found = placement(pyramid, model, RowFormat(), point, HERE)
    assert found is not None
    assert found.shares["items"] > 4 * found.shares["users"] or found.shares["items"] == 1
    printed = {name: float(share_text(share)) for name, share in found.shares.items()}
    for name, share in printed.items():
        assert 0.99 * found.shares[name] <= share <= found.shares[name]
    with te.TieredEmbeddingCollection(
        [te.Table(n, rows, dim, dram_share=printed[n]) for n, (rows, dim) in TABLES.items()],
        tiers=te.Tiers(dram=dram, ssd=te.SSD(tmp_path / "store")),
        optimizer=te.optim.RowwiseAdagrad(lr=0.1),
    ) as tables:
        assert tables.stats().dram_bytes <= dram


def test_as_they_are_printed() -> None:
    texts = [share_text(share) for share in (1.0, 0.9999, 0.5, 0.12345, 0.0015355625, 1e-9)]
    assert texts == ["1", "0.999", "0.5", "0.123", "0.00153", "1e-09"]
