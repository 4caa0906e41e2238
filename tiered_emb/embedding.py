"""`TieredEmbedding`: `nn.EmbeddingBag` over tiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tiered_emb.batch import make_feature
from tiered_emb.engine import TableEngine
from tiered_emb.errors import ArgumentError
from tiered_emb.init import Initializer
from tiered_emb.optim import RowOptimizer
from tiered_emb.stats import Stats
from tiered_emb.table_spec import TableSpec, check_device, default_dtype, default_init
from tiered_emb.tiers import Size, Tiers, format_bytes


def _padding(num_embeddings: int, padding_idx: int | None) -> int | None:
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ArgumentError(
            f"padding_idx must be within num_embeddings = {num_embeddings}, got {padding_idx}"
        )
    return padding_idx % num_embeddings


class TieredEmbedding(nn.Module):
    """A drop-in for `torch.nn.EmbeddingBag` whose rows live on a device, in dram and on ssd.

    The positional arguments are those of `nn.EmbeddingBag`, in its order, with its meaning.
    `sparse` is accepted and means nothing: only touched rows are ever updated. `device` is where
    outputs are: that of the hbm tier, or the CPU without one.

    Args:
        tiers: budgets, a `te.Tiers`; None: all rows in dram.
        optimizer: one of `te.optim.*`, applied in `backward` unless `fused=False`; None: rows are
            frozen.
        init: one of `te.init.*`; None: standard normal, as `nn.EmbeddingBag`.
        seed: of initial values and of stochastic rounding (fp16 and bf16 rows).
        name: of the table, in messages and in the store; also part of the seed.
        dtype: float32, float16 or bfloat16; optimizer state is float32.

    Raises:
        ValueError: a budget that cannot hold the table without an ssd tier, naming the bytes
            needed.
        FileExistsError: the ssd directory already holds a store and `resume` is not set.

    >>> import torch
    >>> from tiered_emb import optim
    >>> bag = TieredEmbedding(1000, 4, mode="sum", optimizer=optim.SGD(lr=0.1))
    >>> y = bag(torch.tensor([1, 2, 4]), torch.tensor([0, 2]))
    >>> y.shape
    torch.Size([2, 4])
    >>> y.sum().backward()  # rows 1, 2 and 4 have moved
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: torch.Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        tiers: Tiers | None = None,
        optimizer: RowOptimizer | None = None,
        init: Initializer | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        check_device(device, tiers)
        if dtype is None and _weight is not None:
            dtype = _weight.dtype
        if _weight is not None and tuple(_weight.shape) != (num_embeddings, embedding_dim):
            raise ArgumentError(
                f"Shape of weight, {tuple(_weight.shape)}, does not match num_embeddings and "
                f"embedding_dim, {(num_embeddings, embedding_dim)}"
            )
        spec = TableSpec(
            name="embedding" if name is None else name,
            num_embeddings=num_embeddings,
            embedding_dim=embedding_dim,
            mode=mode,
            dtype=default_dtype(dtype),
            init=default_init(init),
            padding_idx=_padding(num_embeddings, padding_idx),
        )
        options = {
            "max_norm": max_norm,
            "norm_type": norm_type,
            "scale_grad_by_freq": scale_grad_by_freq,
            "sparse": sparse,
            "include_last_offset": include_last_offset,
        }
        _check_options(spec, options)
        engine = TableEngine([spec], tiers, optimizer, seed)
        self._set_up(engine, 0, options)
        if _weight is not None and not engine.resumed:
            engine.load_dense(0, _weight)
            engine.flush()  # a killed process comes back to these weights, not to `init`

    def _set_up(self, engine: TableEngine, table: int, options: dict[str, Any]) -> None:
        """Becomes a view of one table of `engine`."""
        super().__init__()
        spec = engine.tables[table]
        self._engine = engine
        self._table = table
        self.num_embeddings = spec.num_embeddings
        self.embedding_dim = spec.embedding_dim
        self.mode = spec.mode
        self.padding_idx = spec.padding_idx
        self.max_norm: float | None = options["max_norm"]
        self.norm_type: float = options["norm_type"]
        self.scale_grad_by_freq: bool = options["scale_grad_by_freq"]
        self.sparse: bool = options["sparse"]
        self.include_last_offset: bool = options["include_last_offset"]
        self._lookup = spec.lookup(
            table,
            include_last_offset=self.include_last_offset,
            max_norm=0.0 if self.max_norm is None else float(self.max_norm),
            norm_type=float(self.norm_type),
            scale_grad_by_freq=self.scale_grad_by_freq,
            device=engine.device,
        )
        # With fused=False the gradients of touched rows are visible to clipping and to GradScaler.
        self.register_parameter("touched_rows", engine.grad_parameter(table))

    @classmethod
    def _view(cls, engine: TableEngine, table: int, options: dict[str, Any]) -> TieredEmbedding:
        """A module over one table of an engine that it shares with others."""
        _check_options(engine.tables[table], options)
        bag = cls.__new__(cls)
        bag._set_up(engine, table, options)
        return bag

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        tiers: Tiers | None = None,
        optimizer: RowOptimizer | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> TieredEmbedding:
        """A table that starts as `embeddings`, [num_embeddings, dim].

        As `nn.EmbeddingBag.from_pretrained`, but rows are trained only with `freeze=False` and an
        `optimizer`. Raises `ValueError` for `freeze=True` with an optimizer.
        """
        if embeddings.dim() != 2:
            raise ArgumentError("Embeddings parameter is expected to be 2-dimensional")
        if freeze and optimizer is not None:
            raise ValueError("from_pretrained: freeze=True and an optimizer exclude each other")
        rows, dim = embeddings.shape
        return cls(
            rows, dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, embeddings,
            include_last_offset, padding_idx,
            tiers=tiers, optimizer=optimizer, seed=seed, name=name,
        )  # fmt: skip

    @classmethod
    def from_bag(
        cls,
        bag: nn.EmbeddingBag,
        *,
        tiers: Tiers | None = None,
        optimizer: RowOptimizer | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> TieredEmbedding:
        """A table with the arguments and the weights of an existing `nn.EmbeddingBag`."""
        return cls(
            bag.num_embeddings, bag.embedding_dim, bag.max_norm, bag.norm_type,
            bag.scale_grad_by_freq, bag.mode, bag.sparse, bag.weight.detach(),
            bag.include_last_offset, bag.padding_idx,
            tiers=tiers, optimizer=optimizer, seed=seed, name=name,
        )  # fmt: skip

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled bags, [bags, embedding_dim], as `nn.EmbeddingBag.forward`.

        Args:
            input: ids, int32 or int64; [bags, ids a bag], or [n] with `offsets`.
            offsets: [bags], or [bags + 1] with `include_last_offset`: where each bag begins in
                `input`.
            per_sample_weights: of `input`'s shape and the table's dtype; mode "sum" only.

        Raises:
            IndexError, ValueError, TypeError: a bad id, offset, shape or dtype, with table,
                position and value; or a batch whose rows do not fit in dram, with the bytes needed.
                Nothing has changed then.
        """
        feature = make_feature(self._lookup, input, offsets, per_sample_weights)
        return self._engine.lookup([feature])[0]

    def prefetch(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> None:
        """Announces a later `forward` with these arguments: its rows are fetched in the background.

        Returns at once; ids and offsets are copied. As many batches as one likes may be announced;
        they are fetched as far ahead as dram has room, and looked up in the order of their
        announcement. Results are the same bits as without. `Prefetcher` does it for a whole loop.

        Raises:
            As `forward` for bad shapes and dtypes. What is wrong with ids or offsets is raised by
            the `forward`, and so is a `forward` in training of another batch than the next one
            that was announced (`ValueError`, saying how they differ).
        """
        self._engine.prefetch(self._announce(input, offsets, per_sample_weights))

    def _announce(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> int:
        feature = make_feature(self._lookup, input, offsets, per_sample_weights)
        return self._engine.announce([feature])

    def cancel_prefetch(self) -> int:
        """Drops the announced batches, of all tables of the engine; how many waited."""
        return self._engine.cancel_prefetch()

    @property
    def optimizer(self) -> RowOptimizer | None:
        """The optimizer of the rows; change `param_groups[0]["lr"]` at any time."""
        return self._engine.optimizer

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows of the engine with their optimizer state."""
        return self._engine.row_bytes

    def rows(self, ids: Any) -> torch.Tensor:
        """Present weights of `ids` [n], as [n, embedding_dim]. Changes no cache state."""
        return self._engine.rows(self._table, ids)

    def state_rows(self, ids: Any) -> dict[str, torch.Tensor]:
        """Present optimizer state of `ids`: name -> float32 [n, dim].

        `RowwiseAdagrad` has one number a row: its "sum" is [n].
        """
        return self._engine.state_rows(self._table, ids)

    def tier_of(self, ids: Any) -> torch.Tensor:
        """Where the rows of `ids` [n] are now, as uint8 [n]. Changes no cache state.

        0: nowhere, the row has its initial value and takes no space; 1: ssd; 2: dram; 3: hbm.
        """
        return self._engine.tier_of(self._table, ids)

    def write_rows(
        self, ids: Any, weight: torch.Tensor | None, state: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Replaces weights [n, dim] of `ids` [n] and optimizer state, shaped as in `state_rows`.

        None keeps what is there; the last of duplicate ids wins.
        """
        self._engine.write_rows(self._table, ids, weight, state)

    def to_dense(self) -> torch.Tensor:
        """All weights, [num_embeddings, embedding_dim].

        Raises `ValueError` naming the bytes if memory is short.
        """
        return self._engine.to_dense(self._table)

    @property
    def tiers(self) -> Tiers:
        """Budgets of the engine, with the dram of the last `resize`."""
        return self._engine.tiers

    def resize(self, dram: Size) -> None:
        """Gives the engine (all its tables) another dram budget, also in the middle of training.

        Returns at once. A larger budget can be used at once. For a smaller one rows leave as the
        batches come, some thousand rows or 4 MiB with each, those that have changed to the ssd;
        their memory goes back to the system. No thread does that in the background: without
        batches the size stays as it is. Results are the same bits as without, and with any
        other budget. May be called again before it is done: `stats()` says how far it is
        (`dram_bytes`, `dram_target_bytes`, `dram_resizing`). `tiers` has the new size at once, and
        so does what comes later with it, as `te.load`; a store that is opened again takes the size
        of the `te.Tiers` it is opened with.

        Args:
            dram: bytes, or ``"8GiB"``, as in `te.Tiers`.

        Raises:
            ValueError: no number of bytes; the table has no ssd tier, or is closed; less than what
                batches in flight and the engine itself need now, naming those bytes; more rows than
                this machine's memory holds. Nothing has changed then.
            TypeError: not a size.

        >>> import tempfile
        >>> tiers = Tiers(dram="1MiB", ssd=tempfile.mkdtemp())
        >>> bag = TieredEmbedding(100_000, 16, tiers=tiers)
        >>> bag.resize("2MiB")
        >>> bag.stats().slots
        32768
        >>> bag.close()
        """
        self._engine.resize(dram)

    def stats(self) -> Stats:
        """Counters of the engine (all its tables)."""
        return self._engine.stats()

    def flush(self) -> None:
        """Makes the present state durable on ssd; without an ssd tier, nothing."""
        self._engine.flush()

    def close(self) -> None:
        """Flushes and frees the table. It cannot be used afterwards."""
        self._engine.close()

    def __enter__(self) -> TieredEmbedding:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def extra_repr(self) -> str:
        """Arguments, optimizer, size and tiers, for `repr`."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"]
        if self.max_norm is not None:
            parts.append(f"max_norm={self.max_norm}")
        if self.padding_idx is not None:
            parts.append(f"padding_idx={self.padding_idx}")
        optimizer = "frozen" if self.optimizer is None else type(self.optimizer).__name__
        parts.append(f"{optimizer}, rows={format_bytes(self.row_bytes)}, {self._engine.tiers}")
        if self._engine.is_closed:
            parts.append("closed")
        return ", ".join(parts)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "a tiered table has no `weight` tensor: use rows(ids), write_rows(ids, weight) or "
                "to_dense()"
            )
        return super().__getattr__(name)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a tiered table cannot be copied or pickled: use state_dict(), or its ssd store"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.to_dense()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        key = prefix + "weight"
        load_table(self._engine, self._table, state_dict, key, missing_keys, error_msgs)
        if strict:
            unexpected_keys.extend(k for k in state_dict if k.startswith(prefix) and k != key)


def load_table(
    engine: TableEngine,
    table: int,
    state_dict: Any,
    key: str,
    missing: list[str],
    errors: list[str],
) -> None:
    """Writes the rows under `key` of a state dict into a table.

    Problems are added to `missing` and `errors`, for `nn.Module.load_state_dict` to report.
    """
    spec = engine.tables[table]
    shape = (spec.num_embeddings, spec.embedding_dim)
    if key not in state_dict:
        missing.append(key)
    elif tuple(state_dict[key].shape) != shape:
        errors.append(
            f"size mismatch for {key}: {tuple(state_dict[key].shape)} in the state dict, "
            f"table has {shape}"
        )
    else:
        engine.load_dense(table, state_dict[key])


def _check_options(spec: TableSpec, options: dict[str, Any]) -> None:
    if spec.mode == "max" and options["scale_grad_by_freq"]:
        raise ValueError(
            f"table '{spec.name}': max mode does not support scaling the gradient by the frequency"
        )
    max_norm = options["max_norm"]
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"table '{spec.name}': max_norm must be positive, got {max_norm}")
    if not options["norm_type"] > 0:
        raise ValueError(
            f"table '{spec.name}': norm_type must be positive, got {options['norm_type']}"
        )
