"""Equality of tensors to the last bit."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every bit: 0.0 differs from -0.0, and a NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.detach().contiguous().view(bits), b.detach().contiguous().view(bits))


def assert_same_bits(a: Tensor, b: Tensor, what: str) -> None:
    if not same_bits(a, b):
        differ = (a != b) & ~(a.isnan() & b.isnan()) if a.shape == b.shape else None
        where = "" if differ is None else f", first at {differ.nonzero()[:1].tolist()}"
        raise AssertionError(f"{what}: bits differ{where}\n{a}\n{b}")
