"""`TieredEmbeddingCollection`: many tables, one engine, one budget, one plan a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tiered_emb.batch import Feature, Lookup, make_feature
from tiered_emb.embedding import load_table
from tiered_emb.engine import TableEngine
from tiered_emb.init import Initializer
from tiered_emb.optim import RowOptimizer
from tiered_emb.stats import Stats
from tiered_emb.table_spec import TableSpec, check_device, default_dtype, default_init
from tiered_emb.tiers import Size, Tiers, format_bytes


@dataclass(frozen=True)
class Table:
    """One table of a collection.

    Args:
        name: unique in the collection; also part of the seed of its initial values.
        num_embeddings: rows.
        embedding_dim: columns.
        mode: "sum", "mean" or "max".
        init: one of `te.init.*`; None: the collection's.
        padding_idx: id that is left out of its bag; its row starts as zeros.
        dram_share: part of the rows, in (0, 1], that has slots in dram of its own: 1.0 keeps all of
            them there once they have been used. None: the table shares slots with those of its row
            layout, which all get the same part of their rows of what is left. Other tables take
            slots of a share only for a batch that would not fit otherwise; a batch that needs more
            of this table takes it from the others. Changes time, never results; a store may be
            resumed with other shares. Means nothing without an ssd tier. Slots of an hbm tier are
            not shared out by it: each row layout and each table with a share gets the same part of
            its rows there, the latter never more than its share.

    Raises (the collection, when it is made):
        TypeError, ValueError: `dram_share` is no number, or not in (0, 1].
        ValueError: dram cannot hold all shares, with a row of each other row layout.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    mode: str = "sum"
    init: Initializer | None = None
    padding_idx: int | None = None
    dram_share: float | None = None


class TieredEmbeddingCollection(nn.Module):
    """Many tables over the same tiers, looked up together.

    Args:
        tables: the tables; names differ, dims and modes may.
        tiers: one budget for all, a `te.Tiers`; None: all rows in dram.
        optimizer: one of `te.optim.*` for all; None: rows are frozen.
        dtype: of all rows: float32, float16 or bfloat16.
        init: one of `te.init.*` for tables that name none; None: standard normal.
        seed: of initial values and of stochastic rounding.
        device: of the outputs, that of the hbm tier; None: wherever that is.

    >>> import torch
    >>> coll = TieredEmbeddingCollection([Table("user", 10, 4), Table("item", 20, 4)])
    >>> out = coll(
    ...     {"user": torch.tensor([1, 2]), "item": (torch.tensor([3, 4, 5]), torch.tensor([0, 1]))}
    ... )
    >>> out["item"].shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        tiers: Tiers | None = None,
        optimizer: RowOptimizer | None = None,
        dtype: torch.dtype | None = None,
        init: Initializer | None = None,
        seed: int = 0,
        device: Any = None,
    ) -> None:
        super().__init__()
        check_device(device, tiers)
        if len(tables) == 0:
            raise ValueError("TieredEmbeddingCollection: at least one table is needed")
        specs = []
        for table in tables:
            padding = table.padding_idx
            if padding is not None and not 0 <= padding < table.num_embeddings:
                raise ValueError(
                    f"table '{table.name}': padding_idx must be in [0, {table.num_embeddings}), "
                    f"got {padding}"
                )
            specs.append(
                TableSpec(
                    name=table.name,
                    num_embeddings=table.num_embeddings,
                    embedding_dim=table.embedding_dim,
                    mode=table.mode,
                    dtype=default_dtype(dtype),
                    init=default_init(table.init or init),
                    padding_idx=padding,
                    dram_share=table.dram_share,
                )
            )
        self.tables = tuple(tables)
        self._engine = TableEngine(specs, tiers, optimizer, seed)
        device = self._engine.device
        self._lookups = {spec.name: spec.lookup(t, device=device) for t, spec in enumerate(specs)}
        for t in range(len(specs)):
            # A parameter's name may not hold a dot; the table's number is unique.
            self.register_parameter(f"touched_rows_{t}", self._engine.grad_parameter(t))

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Pooled bags of every table in `batch`: name -> [bags, dim].

        Args:
            batch: a mapping from table name to ids, (ids, offsets) or (ids, offsets, weights); or
                a KeyedJaggedTensor whose keys are table names. Ids alone: [bags, ids a bag], or
                [bags] for one id a bag. Offsets: [bags]. Tables may be absent.

        Raises:
            KeyError: a name that is no table. Otherwise as `TieredEmbedding.forward`.
        """
        features = self._features(batch)
        outs = self._engine.lookup(features) if features else []
        return {f.lookup.name: out for f, out in zip(features, outs, strict=True)}

    def prefetch(self, batch: Any) -> None:
        """Announces a later `forward` of this batch; see `TieredEmbedding.prefetch`."""
        ticket = self._announce(batch)
        if ticket is not None:
            self._engine.prefetch(ticket)

    def _announce(self, batch: Any) -> int | None:
        features = self._features(batch)
        return self._engine.announce(features) if features else None

    def cancel_prefetch(self) -> int:
        """Drops the announced batches; how many waited."""
        return self._engine.cancel_prefetch()

    def _features(self, batch: Any) -> list[Feature]:
        return [self._feature(name, value) for name, value in items_of(batch)]

    def _feature(self, name: str, value: Any) -> Feature:
        lookup = self._lookup_of(name)
        if type(value) is tuple and len(value) == 2:  # as nearly always
            return make_feature(lookup, value[0], value[1])
        if isinstance(value, torch.Tensor):
            return make_feature(lookup, value.unsqueeze(1) if value.dim() == 1 else value)
        if hasattr(value, "values") and hasattr(value, "offsets"):  # torchrec.JaggedTensor
            weights = value.weights_or_none() if hasattr(value, "weights_or_none") else None
            return make_feature(lookup, value.values(), value.offsets(), weights, last_offset=True)
        if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
            raise TypeError(
                f"table '{name}': expected ids, (ids, offsets) or (ids, offsets, weights), "
                f"got {type(value).__name__}"
            )
        return make_feature(lookup, *value)

    def _lookup_of(self, name: str) -> Lookup:
        lookup = self._lookups.get(name)
        if lookup is None:
            raise KeyError(f"no table '{name}' in this collection; it has {sorted(self._lookups)}")
        return lookup

    @property
    def optimizer(self) -> RowOptimizer | None:
        """The optimizer of all rows; change `param_groups[0]["lr"]` at any time."""
        return self._engine.optimizer

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows of all tables with their optimizer state."""
        return self._engine.row_bytes

    def rows(self, name: str, ids: Any) -> torch.Tensor:
        """Present weights of `ids` [n] of a table, [n, dim]. Changes no cache state."""
        return self._engine.rows(self._lookup_of(name).table, ids)

    def state_rows(self, name: str, ids: Any) -> dict[str, torch.Tensor]:
        """Present optimizer state of `ids` of a table; see `TieredEmbedding.state_rows`."""
        return self._engine.state_rows(self._lookup_of(name).table, ids)

    def tier_of(self, name: str, ids: Any) -> torch.Tensor:
        """Where the rows of `ids` of a table are; see `TieredEmbedding.tier_of`."""
        return self._engine.tier_of(self._lookup_of(name).table, ids)

    def write_rows(
        self,
        name: str,
        ids: Any,
        weight: torch.Tensor | None,
        state: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Replaces rows of a table; see `TieredEmbedding.write_rows`."""
        self._engine.write_rows(self._lookup_of(name).table, ids, weight, state)

    def to_dense(self, name: str) -> torch.Tensor:
        """All weights of a table; `ValueError` naming the bytes if memory is short."""
        return self._engine.to_dense(self._lookup_of(name).table)

    @property
    def tiers(self) -> Tiers:
        """Budgets of all tables together, with the dram of the last `resize`."""
        return self._engine.tiers

    def resize(self, dram: Size) -> None:
        """Gives all tables together another dram budget; see `TieredEmbedding.resize`."""
        self._engine.resize(dram)

    def stats(self) -> Stats:
        """Counters over all tables."""
        return self._engine.stats()

    def flush(self) -> None:
        """Makes the present state durable on ssd; without an ssd tier, nothing."""
        self._engine.flush()

    def close(self) -> None:
        """Flushes and frees the tables. They cannot be used afterwards."""
        self._engine.close()

    def __enter__(self) -> TieredEmbeddingCollection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def extra_repr(self) -> str:
        """A line for each table, then optimizer, size and tiers, for `repr`."""
        lines = [
            f"{t.name}: {t.num_embeddings} x {t.embedding_dim}, mode={t.mode!r}"
            for t in self.tables
        ]
        optimizer = "frozen" if self.optimizer is None else type(self.optimizer).__name__
        lines.append(f"{optimizer}, rows={format_bytes(self.row_bytes)}, {self._engine.tiers}")
        return "\n".join(lines)

    def __reduce__(self) -> Any:
        raise TypeError(
            "tiered tables cannot be copied or pickled: use state_dict(), or their ssd store"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, lookup in self._lookups.items():
            destination[f"{prefix}{name}.weight"] = self._engine.to_dense(lookup.table)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        wanted = set()
        for name, lookup in self._lookups.items():
            key = f"{prefix}{name}.weight"
            wanted.add(key)
            load_table(self._engine, lookup.table, state_dict, key, missing_keys, error_msgs)
        if strict:
            unexpected_keys.extend(
                k for k in state_dict if k.startswith(prefix) and k not in wanted
            )


def items_of(batch: Any) -> list[tuple[str, Any]]:
    """Tables' names and inputs of what `TieredEmbeddingCollection.forward` takes."""
    if isinstance(batch, Mapping):
        return list(batch.items())
    if hasattr(batch, "to_dict"):  # torchrec.KeyedJaggedTensor
        return list(batch.to_dict().items())
    raise TypeError(
        "a batch is a mapping from table name to ids, or a KeyedJaggedTensor; "
        f"got {type(batch).__name__}"
    )
