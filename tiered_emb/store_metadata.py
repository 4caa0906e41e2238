"""What an ssd store remembers of the tables it was written by, so that no others resume it.

The text is JSON; the core keeps it in the store's checkpoints and never looks inside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tiered_emb import _core, store_swap
from tiered_emb.table_spec import TableSpec

_FORMAT = 1

Metadata = dict[str, Any]


def describe(
    tables: Sequence[TableSpec], optimizer_kind: int, state_value: float, seed: int
) -> Metadata:
    """All that a store and the tables that resume it have to agree on."""
    return {
        "format": _FORMAT,
        "seed": seed,
        "optimizer": optimizer_kind,
        "state_value": state_value,
        "tables": [_describe_table(table) for table in tables],
    }


def read(path: str) -> Metadata:
    """What the store at `path` says of its tables; `ValueError` if it says nothing."""
    store_swap.check_readable(path)
    try:
        stored: Metadata = json.loads(_core.store_metadata(path))
        assert isinstance(stored["tables"], list)
        return stored
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: the store was not written by this package's tables") from None


def check_store(path: str, metadata: Metadata) -> None:
    """Raises `ValueError` naming the first difference of the store at `path` from `metadata`."""
    stored = read(path)
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
                    f"{path}: table '{new['name']}': the store has {key} {old.get(key)!r}, "
                    f"the model {value!r}"
                )


def _describe_table(table: TableSpec) -> Metadata:
    return {
        "name": table.name,
        "num_embeddings": table.num_embeddings,
        "embedding_dim": table.embedding_dim,
        "dtype": str(table.dtype).removeprefix("torch."),
        "init": list(table.init.spec()),
        "padding_idx": table.padding_idx,
    }
