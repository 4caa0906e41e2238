"""What a table is before there is an engine: shape, dtype, mode, and what follows from them.

Frozen values and pure functions; thread-safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from tiered_emb import _core
from tiered_emb.batch import Lookup
from tiered_emb.errors import ArgumentError
from tiered_emb.init import Initializer, Normal
from tiered_emb.tiers import HBM, Tiers

# The core's numbers of these things.
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MODES = {"sum": 0, "mean": 1, "max": 2}
_ROWWISE_ADAGRAD = 3
_STATE_NAMES: dict[int, tuple[str, ...]] = {
    0: (),  # no optimizer
    1: (),  # SGD
    2: ("sum",),  # Adagrad
    _ROWWISE_ADAGRAD: ("sum",),
    4: ("exp_avg", "exp_avg_sq"),  # Adam
}


@dataclass(frozen=True)
class TableSpec:
    """One table as the engine needs it; the modules build these."""

    name: str
    num_embeddings: int
    embedding_dim: int
    mode: str
    dtype: torch.dtype
    init: Initializer
    padding_idx: int | None = None
    dram_share: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(
                f"table '{self.name}': mode has to be one of sum, mean or max, got {self.mode!r}"
            )
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"table '{self.name}': dtype must be float32, float16 or bfloat16, got {self.dtype}"
            )
        if self.num_embeddings < 0 or self.embedding_dim < 1:
            raise ArgumentError(
                f"table '{self.name}': num_embeddings must be >= 0 and embedding_dim >= 1, got "
                f"{self.num_embeddings} and {self.embedding_dim}"
            )
        share = self.dram_share
        if share is None:
            return
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise TypeError(f"table '{self.name}': dram_share must be a number, got {share!r}")
        if not 0 < share <= 1:
            raise ValueError(f"table '{self.name}': dram_share must be in (0, 1], got {share!r}")

    def core(self, state_value: float, seed: int, *, shares: bool) -> _core.TableTuple:
        """The tuple that `_core.make_engine` takes; `shares`: with the table's share of dram."""
        return (
            self.name,
            self.num_embeddings,
            self.embedding_dim,
            _DTYPES[self.dtype],
            _MODES[self.mode],
            *self.init.spec(),
            state_value,
            seed,
            -1 if self.padding_idx is None else self.padding_idx,
            float(self.dram_share) if shares and self.dram_share is not None else 0.0,
        )

    def lookup(self, table: int, **options: Any) -> Lookup:
        """How this table, number `table` of its engine, is looked up; `options` as in `Lookup`."""
        return Lookup(
            name=self.name,
            table=table,
            dim=self.embedding_dim,
            mode=self.mode,
            dtype=self.dtype,
            padding_idx=-1 if self.padding_idx is None else self.padding_idx,
            **options,
        )

    def state_shapes(self, optimizer_kind: int) -> dict[str, tuple[int, ...]]:
        """Optimizer state of one row: name -> shape, () where a row has a single number."""
        shape = () if optimizer_kind == _ROWWISE_ADAGRAD else (self.embedding_dim,)
        return dict.fromkeys(_STATE_NAMES[optimizer_kind], shape)

    def row_bytes(self, optimizer_kind: int) -> int:
        """Bytes of one row: weights, padded to 4 bytes, and optimizer state."""
        weight_bytes = (self.embedding_dim * self.dtype.itemsize + 3) // 4 * 4
        state = sum(math.prod(shape) for shape in self.state_shapes(optimizer_kind).values())
        return weight_bytes + 4 * state


def default_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """`dtype`, or torch's default."""
    return torch.get_default_dtype() if dtype is None else dtype


def default_init(init: Initializer | None) -> Initializer:
    """`init`, or that of `nn.EmbeddingBag`: standard normal."""
    if init is None:
        return Normal(0.0, 1.0)
    if not isinstance(init, Initializer):
        raise TypeError(f"init must be one of te.init.*, got {type(init).__name__}")
    return init


def check_device(device: Any, tiers: Tiers | None) -> None:
    """Raises `ValueError` unless `device` is None or where the outputs are: the hbm tier's."""
    if device is None:
        return
    hbm = None if tiers is None else tiers.hbm
    here = hbm.torch_device if isinstance(hbm, HBM) else torch.device("cpu")
    wanted = torch.device(device)
    if wanted.type == here.type and wanted.index in (None, here.index):
        return
    if isinstance(hbm, HBM):
        raise ValueError(f"device is {device!r}, but the hbm tier is on {hbm.device!r}")
    raise ValueError(
        f"device {device!r} needs an hbm tier: give tiers=te.Tiers(hbm=te.HBM(size, {device!r}))"
    )
