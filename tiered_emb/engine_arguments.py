"""What the engine's callers pass, checked: budgets, stores, ids of rows, their values."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tiered_emb import _core
from tiered_emb.optim import RowOptimizer
from tiered_emb.table_spec import TableSpec
from tiered_emb.tiers import Tiers, format_bytes

_KNOWN_CHUNK_ROWS = 1 << 16


def available_bytes() -> int:
    """Memory that can be had without swapping; free pages alone where the kernel does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_arguments(tables: Sequence[TableSpec], tiers: Any, optimizer: Any, seed: int) -> None:
    """Raises `TypeError` or `ValueError` for what no engine can be made of."""
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


def check_memory(needed: int) -> None:
    """Without any budget the rows must at least fit in this machine's memory."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > physical:
        raise ValueError(
            f"the rows take {needed} bytes ({format_bytes(needed)}), more than this machine's "
            f"memory, {physical} bytes: give tiers=te.Tiers(dram=..., ssd=te.SSD(path))"
        )


def row_ids(spec: TableSpec, ids: Any) -> torch.Tensor:
    """`ids` as int64 [n]; the core checks their range."""
    tensor = torch.as_tensor(ids)
    if tensor.numel() == 0:
        tensor = tensor.to(torch.int64)
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(
            f"table '{spec.name}': ids must be a 1-D integer Tensor, got "
            f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor.to(device="cpu", dtype=torch.int64).contiguous()


def row_values(
    spec: TableSpec, what: str, values: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """`values` as the core reads them: of `shape` and `dtype`, contiguous."""
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        raise TypeError(
            f"table '{spec.name}': {what} must be a floating point Tensor, got {values!r:.80}"
        )
    if tuple(values.shape) != shape:
        raise ValueError(
            f"table '{spec.name}': {what} must have shape {shape}, got {tuple(values.shape)}"
        )
    return values.detach().to(device="cpu", dtype=dtype).contiguous()


def pack_state(
    spec: TableSpec, optimizer_kind: int, count: int, state: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The parts of `state` side by side, float32 [count, numbers a row]."""
    shapes = spec.state_shapes(optimizer_kind)
    if set(state) != set(shapes):
        raise ValueError(
            f"table '{spec.name}': state must have the keys {sorted(shapes)}, got {sorted(state)}"
        )
    parts = [torch.empty(count, 0)]
    for name, shape in shapes.items():
        part = row_values(spec, f"state '{name}'", state[name], (count, *shape), torch.float32)
        parts.append(part.reshape(count, math.prod(shape)))
    return torch.cat(parts, dim=1)


def check_not_in_checkpoint(store: Path) -> None:
    """Raises `ValueError` if the store is, or would be, a part of a checkpoint of `te.save`."""
    for folder in (store, store.resolve().parent):
        if (folder / "CHECKPOINT").exists():
            raise ValueError(
                f"{store}: {folder} is a checkpoint, which stays as it is: use te.load, a copy, or "
                "te.SSD(..., resume=True, read_only=True) of one of its tables"
            )


def check_rows(reader: _core.Engine) -> None:
    """Raises `OSError` naming the first place where a row is lost; reads every block."""
    for segment, _, _ in reader.segments():
        for file, block, _, what, rows in reader.verify(segment):
            if rows:
                raise OSError(errno.EIO, f"{file}: block {block}: {what}")


def known_rows(core: _core.Engine, table: int) -> Iterator[torch.Tensor]:
    """Ids of rows that were ever written, int64, in order and in chunks."""
    first = 0
    while True:
        ids = torch.empty(_KNOWN_CHUNK_ROWS, dtype=torch.int64)
        count = core.known_rows(table, first, ids.data_ptr(), len(ids))
        if count == 0:
            return
        yield ids[:count]
        first = int(ids[count - 1]) + 1
