"""One table's part of a batch: checks what the user passed and describes it to the core.

The checks and their order follow `torch.nn.functional.embedding_bag`; ids and offsets themselves
are checked by the core, before it changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tiered_emb import _core
from tiered_emb.errors import DtypeError

_INT64, _INT32 = torch.int64, torch.int32
_SMALL_INTS = (torch.int16, torch.int8, torch.uint8)


@dataclass(slots=True)
class Lookup:
    """How a table is looked up: the arguments of `nn.EmbeddingBag` that a forward needs."""

    name: str
    table: int
    dim: int
    mode: str
    dtype: torch.dtype
    include_last_offset: bool = False
    padding_idx: int = -1
    max_norm: float = 0.0
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    device: torch.device | None = None
    """Of the table's hbm tier: inputs may be there too. None: they are on the CPU."""


@dataclass(slots=True)
class Feature:
    """A checked input of one table; keeps the tensors alive that the core reads.

    All are contiguous; `weights` is 1-D, one number for each of `ids`. `core` is what
    `_core.Engine.plan` takes of it.
    """

    lookup: Lookup
    ids: torch.Tensor
    offsets: torch.Tensor | None
    weights: torch.Tensor | None
    bags: int
    core: _core.FeatureTuple


def _index_tensor(lookup: Lookup, what: str, value: Any) -> torch.Tensor:
    name = lookup.name
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"table '{name}': {what} must be a Tensor, got {type(value).__name__}")
    tensor: torch.Tensor = value
    if tensor.dtype is _INT64 and tensor.is_cpu:  # as nearly always
        return tensor.contiguous()
    if not tensor.is_cpu:
        if tensor.device != lookup.device:
            raise DtypeError(
                f"table '{name}': {what} must be on {_devices(lookup)}, got device {tensor.device}"
            )
        tensor = tensor.cpu()
    if tensor.dtype is not _INT64 and tensor.dtype is not _INT32:
        if tensor.dtype not in _SMALL_INTS:
            raise DtypeError(f"table '{name}': {what} must be int64 or int32, got {tensor.dtype}")
        tensor = tensor.to(torch.int64)
    return tensor.contiguous()


def _devices(lookup: Lookup) -> str:
    on_cpu = lookup.device is None or lookup.device.type == "cpu"
    return "the CPU" if on_cpu else f"the CPU or {lookup.device}"


def _checked_weights(lookup: Lookup, ids: torch.Tensor, weights: Any) -> torch.Tensor:
    name = lookup.name
    if not isinstance(weights, torch.Tensor):
        raise TypeError(
            f"table '{name}': per_sample_weights must be a Tensor, got {type(weights).__name__}"
        )
    if weights.shape != ids.shape:
        raise ValueError(
            f"table '{name}': per_sample_weights must have the shape of the input, "
            f"{tuple(ids.shape)}, got {tuple(weights.shape)}"
        )
    if lookup.mode != "sum":
        raise NotImplementedError(
            f"table '{name}': per_sample_weights is only supported for mode='sum', "
            f"this table has mode={lookup.mode!r}"
        )
    if weights.dtype != lookup.dtype or not (weights.is_cpu or weights.device == lookup.device):
        raise DtypeError(
            f"table '{name}': per_sample_weights must be {lookup.dtype} on {_devices(lookup)} as "
            f"the table is, got {weights.dtype} on {weights.device}"
        )
    return weights.reshape(-1).contiguous()


def make_feature(
    lookup: Lookup,
    ids: Any,
    offsets: Any = None,
    weights: Any = None,
    *,
    last_offset: bool | None = None,
) -> Feature:
    """Checks one table's input.

    Args:
        lookup: the table.
        ids: int32 or int64, shape [n] with `offsets`, or [bags, ids a bag].
        offsets: int32 or int64, shape [bags] ([bags + 1] with include_last_offset), for 1-D ids
            only.
        weights: per-sample weights, of the ids' shape and the table's dtype; mode "sum" only.
        last_offset: overrides the table's include_last_offset.

    Raises:
        ValueError, TypeError, NotImplementedError: as `nn.EmbeddingBag` for the same misuse.
    """
    name = lookup.name
    index = _index_tensor(lookup, "input", ids)
    checked_weights = None if weights is None else _checked_weights(lookup, index, weights)
    dims = index.dim()
    if dims == 2:
        if offsets is not None:
            raise ValueError(
                f"table '{name}': with 2-D input, offsets has to be None, as each row is a bag; "
                f"got {type(offsets).__name__}"
            )
        bags, bag_size = index.shape
        core = (lookup.table, index.data_ptr(), bags * bag_size, index.dtype is _INT64, 0, 0,
                True, False, bag_size, bags, lookup.padding_idx, weights is not None)  # fmt: skip
        return Feature(lookup, index, None, checked_weights, bags, core)
    if dims != 1:
        raise ValueError(f"table '{name}': input has to be 1-D or 2-D, got {dims}-D")
    if offsets is None:
        raise ValueError(f"table '{name}': offsets has to be a 1-D Tensor for 1-D input, got None")
    begin = _index_tensor(lookup, "offsets", offsets)
    if begin.dim() != 1:
        raise ValueError(f"table '{name}': offsets has to be a 1-D Tensor, got {begin.dim()}-D")
    include_last = lookup.include_last_offset if last_offset is None else last_offset
    count = begin.numel()
    # A tensor without elements has no address; the core takes 0 for "no offsets".
    address = begin.data_ptr() or 1
    core = (lookup.table, index.data_ptr(), index.numel(), index.dtype is _INT64, address,
            count, begin.dtype is _INT64, include_last, 0, 0, lookup.padding_idx,
            weights is not None)  # fmt: skip
    bags = max(count - 1, 0) if include_last else count
    return Feature(lookup, index, begin, checked_weights, bags, core)
