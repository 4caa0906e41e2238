"""The contenders of bench_kernels.py: the package, FBGEMM, `nn.EmbeddingBag`, the memory's limit.

Each holds the tables of one workload and takes the same batches, prepared in its own form before
the clock starts. `forward(i)` looks batch i up without a graph, `train(i)` is a training step.
"""

from __future__ import annotations

import ctypes
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from native import build
from numpy.typing import NDArray
from torch import nn

import tiered_emb as te

AHEAD = (2, 4, 8, 16, 24, 32)  # rows; the limit kernel takes the best
LR = 0.01


@dataclass(frozen=True)
class Workload:
    """Shape of the tables and of the batches, which are all alike."""

    tables: int
    rows: int
    dim: int
    batch: int
    pooling: int
    exponent: float
    """Of the Zipf law of ids; 0 is uniform."""
    optimizer: str = "rowwise_adagrad"
    dtype: str = "float32"

    @property
    def lookups(self) -> int:
        return self.tables * self.batch * self.pooling

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def label(self) -> str:
        ids = f"zipf {self.exponent}" if self.exponent else "uniform"
        return (
            f"{self.tables}x{self.rows} d{self.dim} b{self.batch} p{self.pooling} {ids} "
            f"{self.optimizer} {self.dtype}"
        )


class Batches:
    """Batches of ids, drawn once: `ids` [batches, tables, batch * pooling]."""

    def __init__(self, workload: Workload, count: int, seed: int = 0) -> None:
        self.workload = workload
        rng = np.random.default_rng(seed)
        n = workload.batch * workload.pooling
        shape = (count, workload.tables, n)
        if workload.exponent == 0:
            self.ids = rng.integers(0, workload.rows, shape)
        else:
            weights = np.arange(1, workload.rows + 1, dtype=np.float64) ** -workload.exponent
            cumulative = np.cumsum(weights)
            rank = np.searchsorted(cumulative, rng.random(shape) * cumulative[-1])
            # A fixed bijection scatters the popular ids over the table.
            spread = 12_345 * np.arange(workload.tables).reshape(1, -1, 1)
            scattered = np.minimum(rank, workload.rows - 1) * 2_654_435_761 + spread
            self.ids = scattered % workload.rows
        self.offsets = torch.arange(0, n, workload.pooling)

    def __len__(self) -> int:
        return len(self.ids)


class Contender(ABC):
    @abstractmethod
    def forward(self, i: int) -> Any: ...

    @abstractmethod
    def train(self, i: int) -> None: ...

    def close(self) -> None:  # noqa: B027
        """Frees the tables."""


OURS = {
    "sgd": lambda: te.optim.SGD(LR),
    "adagrad": lambda: te.optim.Adagrad(LR),
    "rowwise_adagrad": lambda: te.optim.RowwiseAdagrad(LR),
    "adam": lambda: te.optim.Adam(LR),
}
TORCH: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, LR),
    "adagrad": lambda p: torch.optim.Adagrad(p, LR),
    "adam": lambda p: torch.optim.SparseAdam(p, LR),
}


class Ours(Contender):
    def __init__(self, batches: Batches) -> None:
        w = batches.workload
        names = [f"t{t}" for t in range(w.tables)]
        self.collection = te.TieredEmbeddingCollection(
            [te.Table(name, w.rows, w.dim) for name in names],
            optimizer=OURS[w.optimizer](),
            dtype=w.torch_dtype,
            init=te.init.Uniform(-0.01, 0.01),
        )
        self.batches = [
            {
                name: (torch.from_numpy(ids), batches.offsets)
                for name, ids in zip(names, batch, strict=True)
            }
            for batch in batches.ids
        ]
        self.workload = w
        self.set_bags(w.batch)
        with torch.no_grad():  # the peers' tables hold their initial values already
            for first in range(0, w.rows, 1 << 16):
                ids = torch.arange(first, min(first + (1 << 16), w.rows)).unsqueeze(0)
                for name in names:
                    self.collection({name: ids})

    def set_bags(self, bags: int) -> None:
        """The batches have so many bags a table."""
        grad = torch.randn(bags, self.workload.dim).to(self.workload.torch_dtype)
        self.grads = [grad.clone() for _ in range(self.workload.tables)]

    def forward(self, i: int) -> Any:
        with torch.no_grad():
            return self.collection(self.batches[i])

    def train(self, i: int) -> None:
        torch.autograd.backward(list(self.collection(self.batches[i]).values()), self.grads)

    def close(self) -> None:
        self.collection.close()


class Fbgemm(Contender):
    """FBGEMM's table-batched embedding on the host: one call for all tables, fused update."""

    def __init__(self, batches: Batches) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )

        w = batches.workload
        kinds = {
            "sgd": EmbOptimType.EXACT_SGD,
            "adagrad": EmbOptimType.EXACT_ADAGRAD,
            "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        }
        precision = SparseType.FP32 if w.dtype == "float32" else SparseType.FP16
        self.table = SplitTableBatchedEmbeddingBagsCodegen(
            [(w.rows, w.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * w.tables,
            optimizer=kinds[w.optimizer],
            learning_rate=LR,
            eps=1e-8,
            weights_precision=precision,
            output_dtype=precision,
        )
        self.table.init_embedding_weights_uniform(-0.01, 0.01)
        self.indices = [torch.from_numpy(batch.reshape(-1)) for batch in batches.ids]
        self.offsets = torch.arange(0, w.lookups + 1, w.pooling)
        self.grad = torch.randn(w.batch, w.tables * w.dim).to(w.torch_dtype)

    @staticmethod
    def is_possible(workload: Workload) -> bool:
        try:
            import fbgemm_gpu  # noqa: F401
        except ImportError:
            return False
        return workload.optimizer != "adam"

    def forward(self, i: int) -> Any:
        with torch.no_grad():
            return self.table(self.indices[i], self.offsets)

    def train(self, i: int) -> None:
        self.table(self.indices[i], self.offsets).backward(self.grad)


class TorchBags(Contender):
    """One `nn.EmbeddingBag(sparse=True)` a table and one torch optimizer over all."""

    def __init__(self, batches: Batches) -> None:
        w = batches.workload
        self.bags = [
            nn.EmbeddingBag(w.rows, w.dim, mode="sum", sparse=True, dtype=w.torch_dtype)
            for _ in range(w.tables)
        ]
        # It has no rowwise Adagrad; forward needs none.
        kind = TORCH.get(w.optimizer)
        self.optimizer = None if kind is None else kind([bag.weight for bag in self.bags])
        self.ids = [[torch.from_numpy(ids) for ids in batch] for batch in batches.ids]
        self.offsets = batches.offsets
        self.grad = torch.randn(w.batch, w.dim).to(w.torch_dtype)

    def _look_up(self, i: int) -> list[torch.Tensor]:
        return [bag(ids, self.offsets) for bag, ids in zip(self.bags, self.ids[i], strict=True)]

    def forward(self, i: int) -> Any:
        with torch.no_grad():
            return self._look_up(i)

    def train(self, i: int) -> None:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        outs = self._look_up(i)
        torch.autograd.backward(outs, [self.grad] * len(outs))
        self.optimizer.step()


U32 = NDArray[np.uint32]


class Limit(Contender):
    """Rows at known places gathered, and updated, with no planning; fp32, rowwise state."""

    def __init__(self, batches: Batches) -> None:
        w = self.workload = batches.workload
        self.lib = limits()
        self.lib.te_limits_set_threads(torch.get_num_threads())
        self.stride = w.dim * 4 + 4
        self.arena = self.lib.te_limits_arena(w.tables * w.rows * self.stride)
        self.base = self.lib.te_limits_data(self.arena)
        ctypes.memset(self.base, 0, w.tables * w.rows * self.stride)
        first = (np.arange(w.tables) * w.rows).reshape(1, -1, 1)
        slots = (batches.ids + first).astype(np.uint32)
        self.slots: list[U32] = [np.ascontiguousarray(batch.reshape(-1)) for batch in slots]
        self.out = np.zeros((w.tables * w.batch, w.dim), np.float32)
        self.grad = np.random.default_rng(0).random(self.out.shape, np.float32)
        self.ahead = {"forward": AHEAD[0], "update": AHEAD[0]}

    @cached_property
    def unique_rows(self) -> list[tuple[U32, U32, U32]]:
        """Of each batch: slots, CSR begin, bags."""
        found = []
        for slots in self.slots:
            unique, inverse, counts = np.unique(slots, return_inverse=True, return_counts=True)
            order = np.argsort(inverse, kind="stable")
            # In order of first use, as a planner finds them.
            rank = np.argsort(order[np.concatenate(([0], np.cumsum(counts)[:-1]))])
            counts = counts[rank]
            position = np.empty_like(rank)
            position[rank] = np.arange(len(rank))
            order = np.argsort(position[inverse], kind="stable")
            begin = np.concatenate(([0], np.cumsum(counts)))
            found.append(
                tuple(
                    np.ascontiguousarray(a, np.uint32)
                    for a in (unique[rank], begin, order // self.workload.pooling)
                )
            )
        return found  # type: ignore[return-value]

    def forward(self, i: int) -> Any:
        w = self.workload
        done = self.lib.te_limits_forward(
            self.base, self.stride, w.dim, self.slots[i].ctypes.data, len(self.out), w.pooling,
            self.ahead["forward"], self.out.ctypes.data,
        )  # fmt: skip
        assert done

    def update(self, i: int) -> None:
        unique, begin, bags = self.unique_rows[i]
        self.lib.te_limits_update(
            self.base, self.stride, self.workload.dim, unique.ctypes.data, len(unique),
            begin.ctypes.data, bags.ctypes.data, self.grad.ctypes.data, self.ahead["update"],
        )  # fmt: skip

    def train(self, i: int) -> None:
        self.forward(i)
        self.update(i)

    def close(self) -> None:
        self.lib.te_limits_free(self.arena)

    @staticmethod
    def is_possible(workload: Workload) -> bool:
        return workload.dtype == "float32" and workload.dim in (16, 32, 64, 128)


_limits: ctypes.CDLL | None = None


def limits() -> ctypes.CDLL:
    """The library of benchmarks/kernels, built if need be."""
    global _limits
    if _limits is None:
        lib = ctypes.CDLL(str(build("te_kernel_limits", "kernels_bench/libte_kernel_limits.so")))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        lib.te_limits_set_threads.argtypes = [size]
        lib.te_limits_arena.argtypes = [size]
        lib.te_limits_arena.restype = pointer
        lib.te_limits_data.argtypes = [pointer]
        lib.te_limits_data.restype = pointer
        lib.te_limits_free.argtypes = [pointer]
        lib.te_limits_forward.argtypes = [
            pointer, ctypes.c_uint64, ctypes.c_uint32, pointer, size, size, size, pointer,
        ]  # fmt: skip
        lib.te_limits_forward.restype = ctypes.c_bool
        lib.te_limits_update.argtypes = [
            pointer, ctypes.c_uint64, ctypes.c_uint32, pointer, size, pointer, pointer, pointer,
            size,
        ]  # fmt: skip
        lib.te_limits_update.restype = ctypes.c_bool
        _limits = lib
    return _limits
