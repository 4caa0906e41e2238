"""Stores without the model that wrote them: opened for reading, as they describe themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tiered_emb import _core, optim, store_metadata, store_swap
from tiered_emb.checkpoint import read_root
from tiered_emb.engine import TableEngine
from tiered_emb.init import Initializer
from tiered_emb.optim import RowOptimizer
from tiered_emb.table_spec import TableSpec
from tiered_emb.tiers import SSD, Tiers

_DRAM_BYTES = 16 << 20
_OPTIMIZERS = {o.kind: o for o in (optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.Adam)}


class _StoredInit(Initializer):
    """Initial values as a store describes them."""

    def __init__(self, spec: tuple[int, float, float]) -> None:
        self._spec = spec

    def spec(self) -> tuple[int, float, float]:
        """(kind, a, b) as the core takes it."""
        return self._spec


def stores_of(path: str | os.PathLike[str]) -> list[Path]:
    """The stores at `path`: itself, or those of a checkpoint of `te.save`.

    Raises `FileNotFoundError` if there is neither, `ValueError` where a load has not ended.
    """
    root = Path(path)
    checkpoint = read_root(root)
    if checkpoint is not None:
        return [root / name for name in checkpoint["tables"]]
    store_swap.check_readable(str(root))
    if not _core.store_exists(str(root)):
        raise FileNotFoundError(f"{root}: neither a store nor a checkpoint")
    return [root]


def open_store(path: str | os.PathLike[str]) -> TableEngine:
    """The tables of a store, for reading only. Takes no lock, changes no file; close it."""
    text = os.fspath(path)
    metadata = store_metadata.read(text)
    optimizer: RowOptimizer | None = None
    if metadata["optimizer"] != 0:
        optimizer = _OPTIMIZERS[metadata["optimizer"]](lr=1.0)  # never used
        optimizer.defaults["initial_accumulator_value"] = metadata["state_value"]
    return TableEngine(
        [_spec_of(table) for table in metadata["tables"]],
        Tiers(dram=_DRAM_BYTES, ssd=SSD(text, resume=True, read_only=True)),
        optimizer,
        metadata["seed"],
    )


def table_number(engine: TableEngine, name: str | None) -> int:
    """Number of a table by its name; None stands for the only one. Raises `KeyError`."""
    names = [table.name for table in engine.tables]
    if name is None and len(names) == 1:
        return 0
    if name not in names:
        raise KeyError(f"no table {name!r}; there is {names}")
    return names.index(name)


def _spec_of(table: dict[str, Any]) -> TableSpec:
    kind, a, b = table["init"]
    return TableSpec(
        name=table["name"],
        num_embeddings=table["num_embeddings"],
        embedding_dim=table["embedding_dim"],
        mode="sum",  # a store does not care
        dtype=getattr(torch, table["dtype"]),
        init=_StoredInit((int(kind), float(a), float(b))),
        padding_idx=table["padding_idx"],
    )
