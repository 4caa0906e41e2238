"""The oracle: a table as plain tensors, and a fleet of engines that must agree with one another.

`ModelTable` predicts every value within float tolerance, from the documented semantics alone.
`fleet.Fleet` runs the same operations on `Replica`s, engines that differ in nothing but tier sizes,
policy and threads, and holds all their observable values bit-equal. After each operation the model
is compared, then set to the engines' values, so errors do not add up and tolerances stay tight;
rows that an operation does not touch must keep their bits.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiered_emb as te

Tensor = torch.Tensor

LR = 0.1
OPTIMIZERS: dict[str, Callable[[bool], te.optim.RowOptimizer | None]] = {
    "frozen": lambda fused: None,
    "sgd": lambda fused: te.optim.SGD(LR, fused=fused),
    "adagrad": lambda fused: te.optim.Adagrad(LR, 0.05, 0.1, fused=fused),
    "rowwise": lambda fused: te.optim.RowwiseAdagrad(LR, weight_decay=0.02, fused=fused),
    "adam": lambda fused: te.optim.Adam(LR, (0.8, 0.95), fused=fused),
}
# Floats of state a row has, as functions of its dim.
STATES: dict[str, dict[str, Callable[[int], int]]] = {
    "frozen": {},
    "sgd": {},
    "adagrad": {"sum": lambda dim: dim},
    "rowwise": {"sum": lambda dim: 1},
    "adam": {"exp_avg": lambda dim: dim, "exp_avg_sq": lambda dim: dim},
}
# Relative and absolute error of one operation, by dtype of the rows.
TOLERANCE = {
    torch.float32: (1e-4, 1e-5),
    torch.float16: (2**-8, 2**-8),
    torch.bfloat16: (2**-5, 2**-5),
}


@dataclass(frozen=True)
class TableCase:
    """One table of a case: `nn.EmbeddingBag`'s arguments, and how many rows a batch may touch."""

    rows: int
    dim: int
    mode: str = "sum"
    padding_idx: int | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    include_last_offset: bool = False
    batch_rows: int = 8

    @property
    def universe(self) -> Tensor:
        """Row numbers that the tests use: all, or a sample with both ends of a large table."""
        if self.rows <= 400:
            return torch.arange(self.rows)
        generator = torch.Generator().manual_seed(self.rows)
        inner = torch.randint(1, self.rows - 1, (200,), generator=generator)
        return torch.cat([torch.tensor([0, 1, self.rows - 1]), inner]).unique()

    def row_bytes(self, optimizer: str, dtype: torch.dtype, alignment: int = 4) -> int:
        state = sum(width(self.dim) for width in STATES[optimizer].values())
        row = (self.dim * dtype.itemsize + 3) // 4 * 4 + 4 * state
        return -(-row // alignment) * alignment


@dataclass(frozen=True)
class Case:
    """What an engine is built from.

    kind: "single" (one TieredEmbedding), "views" (a converted model), "collection".
    """

    kind: str
    tables: tuple[TableCase, ...]
    optimizer: str = "sgd"
    fused: bool = True
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def is_huge(self) -> bool:
        """Whether not all rows could be in dram."""
        return any(t.rows > 400 for t in self.tables)

    def batch_bytes(self, alignment: int = 4) -> int:
        """DRAM that the largest lookup needs: all tables', or one's where each has its own."""
        needs = [
            min(t.batch_rows, t.rows) * t.row_bytes(self.optimizer, self.dtype, alignment)
            for t in self.tables
        ]
        if self.kind == "collection":
            return sum(needs)
        return max(needs) + self.one_row_each(alignment)

    def one_row_each(self, alignment: int = 4) -> int:
        """Every row layout keeps at least one slot."""
        return sum(t.row_bytes(self.optimizer, self.dtype, alignment) for t in self.tables)

    def all_bytes(self, alignment: int = 4) -> int:
        return sum(t.rows * t.row_bytes(self.optimizer, self.dtype, alignment) for t in self.tables)


@dataclass(frozen=True)
class Config:
    """A way to lay out a case over tiers.

    dram: None (all rows), "batch", or a part of all rows. hbm: a part of all rows on an emulated
    `device`, or None; with an executor that computes there. shares: `Table.dram_share` of a
    collection's tables, again and again; others with each opening.
    """

    dram: str | float | None
    ssd: bool
    policy: str
    threads: int
    hbm: float | None = None
    executor: str = "core"
    device: str = "cpu"
    shares: tuple[float | None, ...] = (None,)

    def share(self, case: Case, t: int, opening: int) -> float | None:
        share = self.shares[(t + opening) % len(self.shares)]
        huge = case.tables[t].rows > 400
        return share * 1e-7 if huge and share is not None else share  # up to 100 rows

    def share_bytes(self, case: Case, alignment: int) -> int:
        """The largest shares of any opening, with a row of each table."""
        if case.kind != "collection":
            return 0
        return case.one_row_each(alignment) + sum(
            math.ceil(t.rows * max(self.share(case, i, o) or 0.0 for o in range(len(self.shares))))
            * t.row_bytes(case.optimizer, case.dtype, alignment)
            for i, t in enumerate(case.tables)
        )

    def tiers(self, case: Case, path: Path, resume: bool) -> te.Tiers:
        alignment = 4 if self.hbm is None else 16
        least = max(case.batch_bytes(alignment), self.share_bytes(case, alignment))
        dram = None
        if self.dram == "batch":
            dram = least
        elif self.dram is not None:
            dram = max(least, int(case.all_bytes(alignment) * float(self.dram)))
            dram = min(dram, 1 << 20)  # tables of a billion rows
        if dram is None and case.is_huge:
            dram = 1 << 24  # enough for every row of the universes
        ssd = te.SSD(str(path), resume=resume) if self.ssd else None
        hbm = None
        if self.hbm is not None:
            size = min(int(case.all_bytes(alignment) * self.hbm), 1 << 20)
            size = max(size, case.one_row_each(alignment))
            # Buffers of a few rows, so that most stages need several.
            hbm = te.HBM(size, self.device, executor=self.executor, buffer=1024)
        return te.Tiers(hbm=hbm, dram=dram, ssd=ssd, policy=self.policy)


CONFIGS = (
    Config(None, True, "lfu", 1),
    Config("batch", True, "lru", 2),
    Config("batch", True, "lookahead", 3),
    Config(0.1, True, "lookahead", 1),
    Config(0.5, True, "s3fifo", 2),
    Config(None, False, "lfu", 3),
    Config("batch", True, "lookahead", 2, shares=(0.3, None, 1.0, 0.02)),
)
HBM_CONFIGS = (
    Config(None, True, "lfu", 1),
    Config(None, True, "lookahead", 1, hbm=1.0),
    Config("batch", True, "lookahead", 2, hbm=0.01),
    Config(0.1, True, "lru", 1, hbm=0.05),
    Config(0.5, True, "lookahead", 2, hbm=0.3),
    Config(None, True, "s3fifo", 1, hbm=0.1),
    Config("batch", True, "lfu", 1, hbm=1.0),
    Config("batch", True, "lookahead", 1, hbm=0.5, shares=(0.3, None, 1.0, 0.02)),
)


def torch_configs(device: str = "cpu") -> tuple[Config, ...]:
    """The same with plain torch operations on the device, all of them."""
    return tuple(replace(config, executor="torch", device=device) for config in HBM_CONFIGS[1:])


def triton_configs(device: str = "cpu") -> tuple[Config, ...]:
    """One that is all in dram, and devices that run the Triton kernels."""
    chosen = [HBM_CONFIGS[1], HBM_CONFIGS[2], HBM_CONFIGS[4]]
    on_device = [replace(config, executor="triton", device=device) for config in chosen]
    return (HBM_CONFIGS[0], *on_device)


@dataclass
class Batch:
    """Input of one table. `index` is `ids` by position in the table's universe, for the model."""

    table: int
    index: Tensor
    ids: Tensor
    offsets: Tensor | None = None
    weights: Tensor | None = None
    weights_grad: bool = False


# ---- The model


@dataclass
class Forward:
    """What the model keeps of a forward until its backward: the rows as they were."""

    batch: Batch
    rows_then: Tensor


class ModelTable:
    """A table as plain tensors, in double. Rows are those of the case's universe."""

    def __init__(self, case: Case, table: TableCase) -> None:
        self.case, self.table = case, table
        self.universe = table.universe
        count = len(self.universe)
        self.weight = torch.zeros(count, table.dim, dtype=torch.float64)
        self.state = {
            name: torch.zeros(count, width(table.dim), dtype=torch.float64)
            for name, width in STATES[case.optimizer].items()
        }
        self.step = 0
        self.lr = LR
        self.seen: dict[str, Tensor] = {}  # the engines' values at the last comparison
        self.moved = torch.zeros(count, dtype=torch.bool)  # since the last comparison
        self.clear_gradients()
        self.padding = None
        if table.padding_idx is not None:
            row = table.padding_idx % table.rows
            self.padding = int((self.universe == row).nonzero())

    def clear_gradients(self) -> None:
        self.grad = torch.zeros_like(self.weight)
        self.grad_rows = torch.zeros(len(self.universe), dtype=torch.bool)
        self.waiting = False  # whether there are gradients, be it of no row

    def _bag(self, batch: Batch, rows: Tensor, weights: Tensor | None) -> Tensor:
        offsets = batch.offsets
        if batch.index.numel() == 0:
            bags = batch.index.shape[0] if offsets is None else len(offsets)
            bags -= int(self.table.include_last_offset and offsets is not None)
            return torch.zeros(bags, self.table.dim, dtype=torch.float64)
        return F.embedding_bag(
            batch.index,
            rows,
            None if offsets is None else offsets.long(),
            mode=self.table.mode,
            per_sample_weights=weights,
            include_last_offset=self.table.include_last_offset and offsets is not None,
            padding_idx=self.padding,
        )

    def _weights(self, batch: Batch) -> Tensor | None:
        return None if batch.weights is None else batch.weights.detach().double()

    def renormalise(self, batch: Batch) -> None:
        if self.table.max_norm is None or batch.index.numel() == 0:
            return
        before = self.weight.clone()
        torch.embedding_renorm_(
            self.weight, batch.index.reshape(-1), self.table.max_norm, self.table.norm_type
        )
        self.moved |= (before != self.weight).any(1)
        # A row on the edge may go either way in another precision.
        norms = before.norm(self.table.norm_type, dim=1)
        edge = (norms - self.table.max_norm).abs() < 1e-4 * self.table.max_norm
        edge &= torch.isin(torch.arange(len(edge)), batch.index)
        self.moved |= edge

    def forward(self, batch: Batch) -> tuple[Tensor, Forward]:
        self.renormalise(batch)
        out = self._bag(batch, self.weight, self._weights(batch))
        return out, Forward(batch, self.weight.clone())

    def forward_error(self, batch: Batch) -> Tensor:
        """What a bag's sum may lose where large terms cancel; renormalised rows are rounded too."""
        error = 1e-6 if self.table.max_norm is None else torch.finfo(self.case.dtype).eps
        return max(error, 1e-6) * self._bag(batch, self.weight.abs(), self._weights(batch))

    def backward(self, forward: Forward, grad: Tensor) -> Tensor | None:
        """Updates the rows, or collects their gradients; returns the gradient of sample weights."""
        batch = forward.batch
        weights_grad = None
        if batch.weights is not None and batch.weights_grad:
            weights = self._weights(batch).requires_grad_()
            out = self._bag(batch, self.weight, weights)
            weights_grad = torch.zeros_like(weights)
            if out.requires_grad:
                (weights_grad,) = torch.autograd.grad(out, weights, grad.double())
        rows = forward.rows_then.clone().requires_grad_()
        out = self._bag(batch, rows, self._weights(batch))
        gradient = torch.zeros_like(rows)
        if out.requires_grad:
            (gradient,) = torch.autograd.grad(out, rows, grad.double())
        if self.table.scale_grad_by_freq:
            # As nn.Embedding; embedding_bag on the CPU takes another row's count (test_parity).
            counts = torch.bincount(batch.index.reshape(-1), minlength=len(rows))
            gradient = gradient / counts.clamp(min=1)[:, None]
        touched = torch.zeros_like(self.moved)
        touched[batch.index.reshape(-1)] = True
        if self.padding is not None:
            touched[self.padding] = False
        if self.case.optimizer == "frozen":
            return weights_grad
        if self.case.fused:
            self.update(gradient, touched)
        else:
            self.waiting = True
            self.grad += gradient
            self.grad_rows |= touched
        return weights_grad

    def update(self, gradient: Tensor, touched: Tensor) -> None:
        """One step of the case's optimizer on the touched rows."""
        self.step += 1
        lr = self.lr
        self.moved |= touched
        g, w = gradient[touched], self.weight[touched]
        state = {name: value[touched] for name, value in self.state.items()}
        if self.case.optimizer == "sgd":
            w = w - lr * g
        elif self.case.optimizer == "adagrad":
            state["sum"] = state["sum"] + g * g
            w = w - lr / (1 + (self.step - 1) * 0.05) * g / (state["sum"].sqrt() + 1e-10)
        elif self.case.optimizer == "rowwise":
            g = g + 0.02 * w
            state["sum"] = state["sum"] + (g * g).mean(1, keepdim=True)
            w = w - lr / (state["sum"].sqrt() + 1e-8) * g
        elif self.case.optimizer == "adam":
            beta1, beta2 = 0.8, 0.95
            m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
            v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
            scale = math.sqrt(1 - beta2**self.step) / (1 - beta1**self.step)
            w = w - lr * scale * m / (v.sqrt() + 1e-8)
        self.weight[touched] = w
        for name, value in state.items():
            self.state[name][touched] = value


# ---- The engines


class Replica:
    """One engine of the fleet."""

    def __init__(self, case: Case, config: Config, path: Path) -> None:
        self.case, self.config, self.path = case, config, path
        self.openings = 0
        self.open(resume=False)

    def open(self, resume: bool) -> None:
        case = self.case
        self.optimizer = OPTIMIZERS[case.optimizer](case.fused)
        tiers = self.config.tiers(case, self.path, resume)
        self.dram = tiers.dram
        common = {"tiers": tiers, "optimizer": self.optimizer, "seed": case.seed}
        self.use_threads()
        if case.kind == "collection":
            tables = [
                te.Table(
                    f"t{i}", t.rows, t.dim, t.mode, padding_idx=t.padding_idx,
                    dram_share=self.config.share(case, i, self.openings),
                )
                for i, t in enumerate(case.tables)
            ]  # fmt: skip
            self.openings += 1
            self.module: nn.Module = te.TieredEmbeddingCollection(
                tables, dtype=case.dtype, init=te.init.Normal(0, 0.5), **common
            )
        elif case.kind == "single":
            arguments = bag_arguments(case.tables[0], case.dtype)
            self.module = te.TieredEmbedding(init=te.init.Uniform(-1, 1), **arguments, **common)
        else:
            self.module = te.convert(plain_bags(case), **common)

    def use_threads(self) -> None:
        te.set_num_threads(self.config.threads)

    def table(self, t: int) -> te.TieredEmbedding:
        return self.module if self.case.kind == "single" else self.module[t]

    def lookup(self, batches: list[Batch], weights: list[Tensor | None]) -> list[Tensor]:
        self.use_threads()
        if self.case.kind != "collection":
            return [
                self.table(b.table)(b.ids, b.offsets, w)
                for b, w in zip(batches, weights, strict=True)
            ]
        out = self.module(
            {
                f"t{b.table}": (b.ids, b.offsets) if w is None else (b.ids, b.offsets, w)
                for b, w in zip(batches, weights, strict=True)
            }
        )
        return [out[f"t{b.table}"] for b in batches]

    def rows(self, t: int, ids: Tensor) -> Tensor:
        args = (f"t{t}", ids)
        return (
            self.module.rows(*args) if self.case.kind == "collection" else self.table(t).rows(ids)
        )

    def state_rows(self, t: int, ids: Tensor) -> dict[str, Tensor]:
        if self.case.kind == "collection":
            return self.module.state_rows(f"t{t}", ids)
        return self.table(t).state_rows(ids)

    def write_rows(self, t: int, ids: Tensor, weight: Tensor | None, state: object) -> None:
        if self.case.kind == "collection":
            self.module.write_rows(f"t{t}", ids, weight, state)
        else:
            self.table(t).write_rows(ids, weight, state)

    def any_table(self) -> te.TieredEmbedding | te.TieredEmbeddingCollection:
        return self.module[0] if self.case.kind == "views" else self.module

    def resize(self, part: float) -> None:
        """To a part of all rows, or what the largest batch needs; refused if that is too small."""
        if not self.config.ssd:
            with pytest.raises(ValueError, match="without an ssd tier"):
                self.any_table().resize(1 << 30)
            return
        alignment = 4 if self.config.hbm is None else 16
        least = self.case.batch_bytes(alignment)
        dram = max(least, min(int(self.case.all_bytes(alignment) * part), 1 << 20))
        before = self.any_table().stats()
        try:
            self.any_table().resize(dram)
            self.dram = dram
        except ValueError as error:
            if "is too small" not in str(error):
                raise
            after = self.any_table().stats()
            assert after.dram_target_bytes == before.dram_target_bytes
            assert after.slots == before.slots
        else:
            assert self.any_table().tiers.dram == dram

    def waiting_gradients(self) -> list[Tensor | None]:
        """`.grad` of each table's parameter, with fused=False."""
        return [p.grad for p in self.optimizer.param_groups[0]["params"]]

    def reopen(self, clean: bool) -> None:
        """Closes, or drops the engine as it is, then opens its store again."""
        if not self.config.ssd:  # stays as it is, with a new optimizer's settings
            assert clean
            if self.optimizer is not None:
                self.optimizer.zero_grad()
                self.optimizer.param_groups[0]["lr"] = LR
            return
        if clean:
            self.any_table().close()
        del self.module, self.optimizer
        gc.collect()
        self.open(resume=True)


def bag_arguments(table: TableCase, dtype: torch.dtype) -> dict[str, object]:
    return {
        "num_embeddings": table.rows,
        "embedding_dim": table.dim,
        "mode": table.mode,
        "padding_idx": table.padding_idx,
        "max_norm": table.max_norm,
        "norm_type": table.norm_type,
        "scale_grad_by_freq": table.scale_grad_by_freq,
        "include_last_offset": table.include_last_offset,
        "dtype": dtype,
    }


def plain_bags(case: Case) -> nn.ModuleList:
    """The same bags, weights included, at every call."""
    generator = torch.Generator().manual_seed(case.seed)
    bags = nn.ModuleList()
    for table in case.tables:
        bag = nn.EmbeddingBag(**bag_arguments(table, case.dtype))
        weight = torch.randn(table.rows, table.dim, generator=generator)
        with torch.no_grad():
            bag.weight.copy_(weight)
        bags.append(bag)
    return bags
