"""Slots of one row layout on a torch device: the hbm tier's memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

STATES = {0: 0, 1: 0, 2: 1, 3: 0, 4: 2}
"""Float32 state values a column, by the optimizer's number in the core."""
SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM = 1, 2, 3, 4
"""Numbers of the optimizers in the core."""
ALIGNMENT_BYTES = 16
"""Rows begin at multiples of it, so that a thread loads 128 bits at once."""


@dataclass(frozen=True)
class SlotLayout:
    """Which bytes of a slot are weight and which are state: those of `cpp/rows/row_layout.h`.

    Args:
        dim: columns of the weight.
        dtype: float32, float16 or bfloat16, of the weight.
        optimizer: its number in the core (`tiered_emb.optim`); 0 for frozen rows.
    """

    dim: int
    dtype: torch.dtype
    optimizer: int

    @property
    def state_offset_bytes(self) -> int:
        """Where the state begins: behind the weight, at a multiple of 4 bytes."""
        return -(-self.dim * self.dtype.itemsize // 4) * 4

    @property
    def state_floats(self) -> int:
        """Float32 values of state a row."""
        per_row = 1 if self.optimizer == ROWWISE_ADAGRAD else 0
        return per_row + STATES[self.optimizer] * self.dim

    @property
    def row_bytes(self) -> int:
        """Bytes that move when a row does."""
        return self.state_offset_bytes + 4 * self.state_floats

    @property
    def stride_bytes(self) -> int:
        """Bytes from one slot to the next."""
        return -(-self.row_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Slots:
    """Slots of `layout` in memory `bytes`, uint8 [slots, stride].

    Numbers from `here` on are those of slots elsewhere, `shift_bytes` further than they would be in
    `bytes`.
    """

    def __init__(
        self, layout: SlotLayout, memory: torch.Tensor, here: int = 0, shift_bytes: int = 0
    ) -> None:
        self.layout = layout
        self.bytes = memory
        self.here = here
        self.shift_bytes = shift_bytes

    @classmethod
    def zeros(cls, layout: SlotLayout, count: int, device: torch.device | str) -> Slots:
        """`count` slots on `device`, all zeros."""
        return cls(
            layout, torch.zeros(count, layout.stride_bytes, dtype=torch.uint8, device=device)
        )

    @property
    def weights(self) -> torch.Tensor:
        """View [count, stride] in the weights' dtype; the first `dim` of a slot are its row's."""
        return self.bytes.view(self.layout.dtype)

    @property
    def states(self) -> torch.Tensor:
        """View [count, stride] in float32."""
        return self.bytes.view(torch.float32)

    @property
    def words(self) -> torch.Tensor:
        """View [count, stride] in int32: what moves."""
        return self.bytes.view(torch.int32)
