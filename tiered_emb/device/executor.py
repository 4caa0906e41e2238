"""What computes over slots on a device: the executors, and a plan as they read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from tiered_emb import _core
from tiered_emb.batch import Feature

OFTEN = 64
"""Rows that occur more often in a batch have a kernel of their own to sum their gradients."""


NUMBERS = 16
"""32-bit words that an executor may keep beside a plan's image for each feature."""


@dataclass(frozen=True)
class LayoutMemory:
    """Slots of one row layout on the device.

    Args:
        number: the layout's in the core.
        slots: how many.
        stride: bytes of a slot.
        device: uint8 [slots, stride].
    """

    number: int
    slots: int
    stride: int
    device: torch.Tensor


@dataclass(slots=True)
class PlannedFeature:
    """A feature's part of a plan's image; numbers of `_core.Engine.features`."""

    occurrence_first: int
    occurrences: int
    bag_first: int
    bags: int
    begin_first: int
    pooled: int
    """Occurrences in bags: ids behind the last bag belong to none."""


@dataclass(slots=True)
class PlannedRange:
    """Unique rows of a feature that lie together in a plan's image."""

    feature: int
    first: int
    count: int
    before: int
    csr_first: int
    csr_end: int
    """Their occurrences are `csr_first` to `csr_end` of the image's."""
    seldom: int
    """How many of them occur at most `OFTEN` times."""
    seldom_first: int = 0
    often_first: int = 0
    """Where in `which` those begin that occur seldom, and the others."""


@dataclass(slots=True)
class Image:
    """A plan's arrays on the device; see cpp/table/plan_image.h."""

    occurrence_slots: torch.Tensor
    bag_begin: torch.Tensor
    bag_of: torch.Tensor
    places: torch.Tensor
    rows: torch.Tensor
    which: torch.Tensor
    csr_begin: torch.Tensor
    csr_bags: torch.Tensor
    csr_occurrences: torch.Tensor
    bag_scale: torch.Tensor
    numbers: list[torch.Tensor]
    """Two int32 [features, NUMBERS], in pinned memory and on the device, for the executor."""
    features: list[PlannedFeature]
    groups: list[range]
    """Neighbouring features that one launch serves: the image counts their bags together."""
    ranges: list[PlannedRange]

    def __post_init__(self) -> None:
        at = 0
        for planned in self.ranges:
            planned.seldom_first, at = at, at + planned.seldom
        for planned in self.ranges:
            planned.often_first, at = at, at + planned.count - planned.seldom


@dataclass(slots=True)
class StagedBatch:
    """A batch whose rows are where the device finds them, from its forward to its backward.

    Args:
        plan, features: the batch.
        will_update: a backward may follow.
        is_ready: it has been staged, to the end.
        layouts: by feature.
        weights: per-sample weights of the features, on the device.
        image: the plan on the device, for executors other than the core.
        buffer: that the image lies in.
        argmax: what `pool` kept of features in mode "max".
        in_dram: by layout, slots in dram of unique rows that found no room on the device.
        guests: by layout, those rows on the device while it works on the batch, uint8 [n, stride].
            A place from `LayoutMemory.slots` on is one of them.
    """

    plan: _core.Plan
    features: list[Feature]
    will_update: bool
    layouts: list[int]
    weights: list[torch.Tensor | None]
    is_ready: bool = False
    image: Image | None = None
    buffer: Any = None
    argmax: list[torch.Tensor | None] = field(default_factory=list)
    in_dram: dict[int, np.ndarray] = field(default_factory=dict)
    guests: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class FeatureUpdate:
    """What a backward does to the rows of one feature.

    Args:
        grad: [bags, dim] in the table's dtype, contiguous, on the device.
        weights: per-sample weights, or None.
        row_grad: float32 [unique rows, dim] to fill, or None.
        weights_grad: of the weights, to fill, or None.
        step: of the table's update; 0: rows stay.
    """

    grad: torch.Tensor
    weights: torch.Tensor | None
    row_grad: torch.Tensor | None = None
    weights_grad: torch.Tensor | None = None
    step: int = 0


class Copier(Protocol):
    """Copies rows between slots."""

    def copy(
        self,
        source: torch.Tensor,
        source_slots: torch.Tensor | None,
        target: torch.Tensor,
        target_slots: torch.Tensor | None,
    ) -> None:
        """Slots `target_slots` of `target` become those of `source`; None: the first ones.

        Tensors are uint8 [slots, stride], lists int32 [n], one of the two None. Those of pinned
        buffers lie on the host.
        """


class Executor(Copier, Protocol):
    """Kernels over the slots of one engine; their results are the same on every run."""

    def groups(self, batch: StagedBatch, planned: Sequence[PlannedFeature]) -> list[range]:
        """All features in order, neighbours of one layout together that one launch can serve.

        In a group of several all ids are in bags, and there are neither sample weights nor mode
        "max".
        """

    def pool(
        self, memory: LayoutMemory, batch: StagedBatch, group: range, out: torch.Tensor
    ) -> None:
        """Pools a group into `out` [bags of its features, dim]; keeps the argmax of mode "max"."""

    def backward(
        self,
        memory: Sequence[LayoutMemory],
        batch: StagedBatch,
        updates: Sequence[FeatureUpdate | None],
        hyper: _core.HyperTuple,
    ) -> None:
        """Gradients of weights first, then updates, or gradients, of rows.

        `memory` is by the layouts' numbers.
        """
