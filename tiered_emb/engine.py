"""The engine as the modules see it: tables of one budget, looked up through autograd.

`TableEngine` owns the core's engine and turns tensors into what it takes. `TieredEmbedding`,
`TieredEmbeddingCollection` and `convert` are thin modules over it. Thread-safe as the core is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tiered_emb import _core
from tiered_emb.batch import Feature, Lookup
from tiered_emb.errors import IdOutOfRangeError, OffsetsError
from tiered_emb.init import Initializer, Normal
from tiered_emb.optim import RowOptimizer
from tiered_emb.stats import Stats
from tiered_emb.tiers import SSD, Tiers, format_bytes

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MODES = {"sum": 0, "mean": 1, "max": 2}
_STATES = {0: (), 1: (), 2: ("sum",), 3: ("sum",), 4: ("exp_avg", "exp_avg_sq")}
_STORE_FORMAT = 1
_NO_HYPER = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


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
            raise ValueError(
                f"table '{self.name}': num_embeddings must be >= 0 and embedding_dim >= 1, got "
                f"{self.num_embeddings} and {self.embedding_dim}"
            )

    def core(self, state_value: float, seed: int) -> _core.TableTuple:
        """The tuple that `_core.make_engine` takes."""
        zero_row = -1 if self.padding_idx is None else self.padding_idx
        return (
            self.name, self.num_embeddings, self.embedding_dim, _DTYPES[self.dtype], _MODES[self.mode],
            *self.init.spec(), state_value, seed, zero_row,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What a store must agree on to be resumed as this table."""
        kind, a, b = self.init.spec()
        return {
            "name": self.name,
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "dtype": str(self.dtype).removeprefix("torch."),
            "init": [kind, a, b],
            "padding_idx": self.padding_idx,
        }


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


def check_device(device: Any) -> None:
    """Rows live on the CPU in this release."""
    if device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"device must be 'cpu' in this release, got {device!r}")


def _available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def set_num_threads(threads: int) -> None:
    """Sets how many threads all tables of this process use together; at first torch's number.

    Results do not depend on it. Raises `ValueError` below 1.
    """
    if threads < 1:
        raise ValueError(f"set_num_threads: at least 1 thread is needed, got {threads}")
    _core.set_num_threads(threads)


def get_num_threads() -> int:
    """The number of threads that all tables of this process use together."""
    return _core.get_num_threads()


class TableEngine:
    """Tables with one budget, one optimizer and one store."""

    def __init__(
        self,
        tables: Sequence[TableSpec],
        tiers: Tiers | None,
        optimizer: RowOptimizer | None,
        seed: int,
    ) -> None:
        tiers = Tiers() if tiers is None else tiers
        if not isinstance(tiers, Tiers):
            raise TypeError(f"tiers must be a te.Tiers, got {type(tiers).__name__}")
        if optimizer is not None and not isinstance(optimizer, RowOptimizer):
            raise TypeError(f"optimizer must be one of te.optim.*, got {type(optimizer).__name__}")
        names = [table.name for table in tables]
        if len(set(names)) != len(names):
            raise ValueError(
                f"table names must differ, got {sorted(n for n in names if names.count(n) > 1)}"
            )
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {seed}")
        self.tables = list(tables)
        self.tiers = tiers
        self.optimizer = optimizer
        kind = 0 if optimizer is None else optimizer.kind
        self._state_names = _STATES[kind]
        self._check_memory(kind)
        state_value = 0.0 if optimizer is None else optimizer.initial_state()
        metadata = {
            "format": _STORE_FORMAT,
            "seed": seed,
            "optimizer": kind,
            "state_value": state_value,
            "tables": [table.describe() for table in tables],
        }
        ssd = tiers.ssd if isinstance(tiers.ssd, SSD) else None
        self.resumed = ssd is not None and ssd.resume
        if self.resumed and ssd is not None:
            _check_store(ssd.path, metadata)
        self._core = _core.make_engine(
            [table.core(state_value, seed) for table in tables],
            kind,
            tiers.policy,
            0 if tiers.dram is None else int(tiers.dram),
            "" if ssd is None else ssd.path,
            0 if ssd is None or ssd.capacity is None else int(ssd.capacity),
            self.resumed,
            json.dumps(metadata),
        )
        self._last_stats: Stats | None = None
        # Autograd runs a backward only if some input requires a gradient; the tables are not tensors.
        self._anchor = torch.zeros((), requires_grad=True)
        self._grad_parameters = [
            None if optimizer is None else optimizer.add_table(self, t, table.embedding_dim)
            for t, table in enumerate(tables)
        ]

    def _check_memory(self, kind: int) -> None:
        """Without any budget the rows must at least fit in this machine's memory."""
        if self.tiers.dram is not None:
            return
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        needed = sum(t.num_embeddings * _row_bytes(t, kind) for t in self.tables)
        if needed > physical:
            raise ValueError(
                f"the rows take {needed} bytes ({format_bytes(needed)}), more than this machine's memory, "
                f"{physical} bytes: give tiers=te.Tiers(dram=..., ssd=te.SSD(path))"
            )

    # -- lookup ----------------------------------------------------------------------------------------------

    def lookup(self, features: list[Feature]) -> list[torch.Tensor]:
        """Pooled rows of each feature, [bags, dim] each, differentiable."""
        weights = [f.weights for f in features]
        wants_grad = torch.is_grad_enabled() and (
            self.optimizer is not None or any(w is not None and w.requires_grad for w in weights)
        )
        if not wants_grad:
            outs, plan = self.forward(features, will_update=False)
            plan.release()
            return outs
        return list(_Lookup.apply(self, features, self._anchor, *weights))

    def forward(
        self, features: list[Feature], will_update: bool
    ) -> tuple[list[torch.Tensor], _core.Plan]:
        """Plans the batch, brings its rows and pools them."""
        for f in features:
            if f.lookup.max_norm > 0:
                self._renormalise_padding(f)
        try:
            plan = self._core.plan([f.core() for f in features], will_update)
        except IndexError as error:
            raise IdOutOfRangeError(*error.args) from None
        except ValueError as error:
            if ": offset " in str(error) or "include_last_offset" in str(error):
                raise OffsetsError(*error.args) from None
            raise
        outs = [torch.empty((f.bags, f.lookup.dim), dtype=f.lookup.dtype) for f in features]
        held = [None if f.weights is None else f.weights.detach().contiguous() for f in features]
        calls = [
            (
                0 if w is None else w.data_ptr(),
                out.data_ptr(),
                f.lookup.max_norm,
                f.lookup.norm_type,
            )
            for f, w, out in zip(features, held, outs, strict=True)
        ]
        self._core.forward(plan, calls)
        return outs, plan

    def _renormalise_padding(self, feature: Feature) -> None:
        """As torch, `max_norm` also bounds the padding row, although it is not pooled."""
        padding = feature.lookup.padding_idx
        if padding < 0 or not bool((feature.ids == padding).any()):
            return
        ids = torch.tensor([padding])
        lookup = feature.lookup
        call = (lookup.table, ids.data_ptr(), 1, True, 0, 0, True, False, 1, 1, -1)
        plan = self._core.plan([call], False)
        out = torch.empty((1, lookup.dim), dtype=lookup.dtype)
        self._core.forward(plan, [(0, out.data_ptr(), lookup.max_norm, lookup.norm_type)])
        plan.release()

    def backward(
        self, plan: _core.Plan, features: list[Feature], grads: Sequence[torch.Tensor | None],
        wants_weights_grad: Sequence[bool],
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """Updates the rows (or collects their gradients); returns the gradients of sample weights."""
        optimizer = self.optimizer
        fused = optimizer is None or optimizer.fused
        counts = [] if fused else plan.unique_counts()
        held: list[torch.Tensor] = []
        weights_grads: list[torch.Tensor | None] = []
        row_grads: list[torch.Tensor | None] = []
        calls: list[_core.BackwardTuple] = []
        for i, (f, grad) in enumerate(zip(features, grads, strict=True)):
            weights_grad = row_grad = None
            addresses = [0, 0, 0, 0]
            if grad is not None:
                dense = grad.detach().to(f.lookup.dtype).contiguous()
                held.append(dense)
                addresses[0] = dense.data_ptr() or 1
                if f.weights is not None:
                    flat = f.weights.detach().contiguous()
                    held.append(flat)
                    addresses[1] = flat.data_ptr()
                    if wants_weights_grad[i]:
                        weights_grad = torch.zeros_like(flat)
                        addresses[2] = weights_grad.data_ptr()
                if not fused:
                    row_grad = torch.empty((counts[i], f.lookup.dim))
                    addresses[3] = row_grad.data_ptr() or 1
            weights_grads.append(weights_grad)
            row_grads.append(row_grad)
            calls.append(
                (
                    addresses[0],
                    addresses[1],
                    addresses[2],
                    addresses[3],
                    f.lookup.scale_grad_by_freq,
                )
            )
        hyper = _NO_HYPER if optimizer is None else optimizer.hyper()
        self._core.backward(plan, calls, hyper, optimizer is not None and optimizer.check_finite)
        for i, row_grad in enumerate(row_grads):
            parameter = self._grad_parameters[features[i].lookup.table]
            if row_grad is None or optimizer is None or parameter is None:
                continue
            rows = torch.empty(counts[i], dtype=torch.int64)
            plan.unique_rows(i, rows.data_ptr())
            optimizer.accumulate(parameter, rows, row_grad)
        plan.release()
        return weights_grads

    def grad_parameter(self, table: int) -> torch.nn.Parameter | None:
        """The parameter that carries a table's gradients with `fused=False`."""
        return self._grad_parameters[table]

    # -- rows ------------------------------------------------------------------------------------------------

    def _ids(self, table: int, ids: Any) -> torch.Tensor:
        tensor = torch.as_tensor(ids)
        if tensor.numel() == 0:
            tensor = tensor.to(torch.int64)
        if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise TypeError(
                f"table '{self.tables[table].name}': ids must be a 1-D integer Tensor, got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        return tensor.to(device="cpu", dtype=torch.int64).contiguous()

    def _read(
        self, table: int, ids: Any, *, state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        spec = self.tables[table]
        index = self._ids(table, ids)
        weights = torch.empty((len(index), spec.embedding_dim), dtype=spec.dtype)
        values = torch.empty((len(index), self._state_floats(table))) if state else None
        try:
            self._core.read_rows(
                table,
                index.data_ptr(),
                len(index),
                weights.data_ptr(),
                0 if values is None else values.data_ptr(),
            )
        except IndexError as error:
            raise IdOutOfRangeError(*error.args) from None
        return weights, values

    def _state_floats(self, table: int) -> int:
        return sum(width for _, width in self._state_widths(table))

    def _state_widths(self, table: int) -> Iterator[tuple[str, int]]:
        rowwise = self.optimizer is not None and self.optimizer.kind == 3
        for name in self._state_names:
            yield name, 1 if rowwise else self.tables[table].embedding_dim

    def rows(self, table: int, ids: Any) -> torch.Tensor:
        """Present weights [n, dim] of `ids`, wherever they are. Changes no cache state."""
        return self._read(table, ids, state=False)[0]

    def state_rows(self, table: int, ids: Any) -> dict[str, torch.Tensor]:
        """Present optimizer state of `ids`: name -> float32 [n, dim] ([n] where a row has one number)."""
        values = self._read(table, ids, state=True)[1]
        assert values is not None
        result, at = {}, 0
        for name, width in self._state_widths(table):
            part = values[:, at : at + width]
            result[name] = part[:, 0].clone() if self._is_rowwise() else part.contiguous()
            at += width
        return result

    def _is_rowwise(self) -> bool:
        return self.optimizer is not None and self.optimizer.kind == 3

    def write_rows(
        self,
        table: int,
        ids: Any,
        weight: torch.Tensor | None,
        state: dict[str, torch.Tensor] | None,
    ) -> None:
        """Replaces weights [n, dim] and state; None keeps what is there. The last of duplicate ids wins."""
        spec = self.tables[table]
        index = self._ids(table, ids)
        if weight is not None:
            weight = self._row_values(
                spec, "weight", weight, (len(index), spec.embedding_dim), spec.dtype
            )
        packed = None if state is None else self._pack_state(table, len(index), state)
        try:
            self._core.write_rows(
                table,
                index.data_ptr(),
                len(index),
                0 if weight is None else weight.data_ptr(),
                0 if packed is None else packed.data_ptr(),
            )
        except IndexError as error:
            raise IdOutOfRangeError(*error.args) from None

    def _row_values(
        self, spec: TableSpec, what: str, values: Any, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            raise TypeError(
                f"table '{spec.name}': {what} must be a floating point Tensor, got {values!r:.80}"
            )
        if tuple(values.shape) != shape:
            raise ValueError(
                f"table '{spec.name}': {what} must have shape {shape}, got {tuple(values.shape)}"
            )
        return values.detach().to(device="cpu", dtype=dtype).contiguous()

    def _pack_state(self, table: int, count: int, state: dict[str, torch.Tensor]) -> torch.Tensor:
        spec = self.tables[table]
        if set(state) != set(self._state_names):
            raise ValueError(
                f"table '{spec.name}': state must have the keys {sorted(self._state_names)}, got {sorted(state)}"
            )
        parts = []
        for name, width in self._state_widths(table):
            shape = (count,) if self._is_rowwise() else (count, width)
            parts.append(
                self._row_values(spec, f"state '{name}'", state[name], shape, torch.float32)
            )
        return (
            torch.cat([p.reshape(count, -1) for p in parts], dim=1)
            if parts
            else torch.empty(count, 0)
        )

    def to_dense(self, table: int) -> torch.Tensor:
        """All weights of a table, [num_embeddings, dim]; `ValueError` if they exceed free memory."""
        spec = self.tables[table]
        needed = spec.num_embeddings * spec.embedding_dim * spec.dtype.itemsize
        available = _available_bytes()
        if needed > available:
            raise ValueError(
                f"table '{spec.name}': to_dense needs {needed} bytes ({format_bytes(needed)}), "
                f"{available} bytes are free"
            )
        dense = torch.empty((spec.num_embeddings, spec.embedding_dim), dtype=spec.dtype)
        for first in range(0, spec.num_embeddings, 1 << 18):
            last = min(first + (1 << 18), spec.num_embeddings)
            dense[first:last] = self.rows(table, torch.arange(first, last))
        return dense

    def load_dense(self, table: int, weight: torch.Tensor) -> None:
        """Replaces all weights of a table by `weight` [num_embeddings, dim]; state is kept."""
        for first in range(0, weight.shape[0], 1 << 18):
            part = weight[first : first + (1 << 18)]
            self.write_rows(table, torch.arange(first, first + len(part)), part, None)

    def apply_gradients(self, table: int, rows: torch.Tensor, grads: torch.Tensor) -> None:
        """One update of distinct `rows` with summed gradients [n, dim]."""
        assert self.optimizer is not None
        index = rows.contiguous()
        values = grads.detach().to(torch.float32).contiguous()
        self._core.apply_gradients(
            table, index.data_ptr(), len(index), values.data_ptr(), self.optimizer.hyper()
        )

    # -- life ------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters; those at the time of closing once closed."""
        if self._last_stats is None or not self._core.is_closed:
            self._last_stats = Stats(**self._core.stats())
        return self._last_stats

    def flush(self) -> None:
        """Makes the present state durable: opening the store with `resume=True` gives exactly it."""
        self._core.flush()

    def close(self) -> None:
        """Flushes and gives everything back. Closing twice is fine."""
        if not self._core.is_closed:
            self.stats()
            self._core.close()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._core.is_closed

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows of all tables with their optimizer state."""
        kind = 0 if self.optimizer is None else self.optimizer.kind
        return sum(t.num_embeddings * _row_bytes(t, kind) for t in self.tables)


def _row_bytes(table: TableSpec, optimizer_kind: int) -> int:
    weight = (table.embedding_dim * table.dtype.itemsize + 3) // 4 * 4
    state = {2: table.embedding_dim, 3: 1, 4: 2 * table.embedding_dim}.get(optimizer_kind, 0)
    return weight + 4 * state


def _check_store(path: str, metadata: dict[str, Any]) -> None:
    """Raises `ValueError` naming the first difference between a store and the tables to resume it with."""
    text = _core.store_metadata(path)
    try:
        stored = json.loads(text)
    except ValueError:
        raise ValueError(f"{path}: the store was not written by this package's tables") from None
    for key in ("format", "seed", "optimizer", "state_value"):
        if stored.get(key) != metadata[key]:
            raise ValueError(
                f"{path}: the store has {key} {stored.get(key)!r}, the model {metadata[key]!r}"
            )
    have, want = stored.get("tables", []), metadata["tables"]
    if len(have) != len(want):
        raise ValueError(f"{path}: the store has {len(have)} tables, the model {len(want)}")
    for old, new in zip(have, want, strict=True):
        for key, value in new.items():
            if old.get(key) != value:
                raise ValueError(
                    f"{path}: table '{new['name']}': the store has {key} {old.get(key)!r}, the model {value!r}"
                )


class _Lookup(torch.autograd.Function):
    """Pooling forward; update, or gradient collection, backward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, engine: TableEngine, features: list[Feature], anchor: torch.Tensor, *weights: Any
    ) -> tuple[torch.Tensor, ...]:
        outs, plan = engine.forward(features, will_update=True)
        ctx.engine, ctx.features, ctx.plan = engine, features, plan
        ctx.save_for_backward(*[w for w in weights if w is not None])  # torch checks their version
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        engine: TableEngine = ctx.engine
        _ = ctx.saved_tensors
        plan = ctx.plan
        if plan.is_released:  # a second backward over a retained graph
            _, plan = engine.forward(ctx.features, will_update=True)
        weights_grads = engine.backward(plan, ctx.features, grads, ctx.needs_input_grad[3:])
        return (None, None, None, *weights_grads)


def lookup_of(spec: TableSpec, table: int, **extra: Any) -> Lookup:
    """How `spec`, the engine's table number `table`, is looked up."""
    padding = -1 if spec.padding_idx is None else spec.padding_idx
    return Lookup(
        name=spec.name,
        table=table,
        dim=spec.embedding_dim,
        mode=spec.mode,
        dtype=spec.dtype,
        padding_idx=padding,
        **extra,
    )
