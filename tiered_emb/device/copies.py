"""Copies of rows by the core, for a device that is this processor."""

from __future__ import annotations

import torch

from tiered_emb import _core


class CoreCopier:
    """See `Copier`."""

    def copy(
        self,
        source: torch.Tensor,
        source_slots: torch.Tensor | None,
        target: torch.Tensor,
        target_slots: torch.Tensor | None,
    ) -> None:
        """See `Copier`."""
        slots = source_slots if source_slots is not None else target_slots
        assert slots is not None
        _core.copy_slots(
            source.data_ptr(),
            0 if source_slots is None else source_slots.data_ptr(),
            target.data_ptr(),
            0 if target_slots is None else target_slots.data_ptr(),
            slots.numel(),
            source.shape[1],
        )
