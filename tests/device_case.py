"""One training step of a table, on the CPU and over slots on a device, whose bits must agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import tiered_emb as te
from tiered_emb import _core
from tiered_emb.device import launch
from tiered_emb.device.slots import SlotLayout, Slots

Tensor = torch.Tensor
SEED = 11
OPTIMIZERS = {
    "sgd": lambda: te.optim.SGD(0.1),
    "adagrad": lambda: te.optim.Adagrad(0.1, lr_decay=0.05, initial_accumulator_value=0.1),
    "rowwise": lambda: te.optim.RowwiseAdagrad(0.1),
    "rowwise, decay": lambda: te.optim.RowwiseAdagrad(0.1, weight_decay=0.02),
    "adam": lambda: te.optim.Adam(0.1, (0.8, 0.95)),
}
STATES = {1: [], 2: ["sum"], 3: ["sum"], 4: ["exp_avg", "exp_avg_sq"]}


@dataclass
class Case:
    """What is trained, and with which batch; a bag of -1 ids has padding."""

    dim: int
    dtype: torch.dtype = torch.float32
    optimizer: str = "sgd"
    mode: str = "sum"
    rows: int = 40
    sizes: list[int] = field(default_factory=lambda: [1, 0, 3, 2, 7, 1, 0])
    weighted: bool = False
    padding: bool = False
    by_count: bool = False
    often: int = launch.OFTEN
    guests: int = 0
    """So many of the slots are elsewhere."""
    extremes: bool = False
    """Zeros of both signs, the smallest and the largest numbers of float16."""
    steps: int = 2


def _batch(case: Case, step: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Ids, offsets, sample weights, gradient of the output."""
    random = torch.Generator().manual_seed(100 * step + case.dim)
    ids = torch.randint(0, case.rows, (sum(case.sizes),), generator=random)
    offsets = torch.tensor([0, *np.cumsum(case.sizes)[:-1]], dtype=torch.int64)
    weights = None
    if case.weighted:
        weights = torch.rand(len(ids), generator=random).to(case.dtype)
    grad = torch.randn(len(case.sizes), case.dim, generator=random).to(case.dtype)
    if case.extremes:
        of_grad = torch.tensor([0.0, -0.0, -0.0, 1.5, -3e-5, 7e-6, 6e4, -6e4])
        grad = of_grad[torch.randint(0, 8, grad.shape, generator=random)].to(case.dtype)
        if weights is not None:
            of_weights = torch.tensor([0.0, -0.0, 1.0, -1.0])
            drawn = torch.randint(0, 4, weights.shape, generator=random)
            weights = of_weights[drawn].to(case.dtype)
    return ids, offsets, weights, grad


class OnDevice:
    """The table's rows in shuffled slots of a device, and what a plan would say of a batch."""

    def __init__(
        self, case: Case, bag: te.TieredEmbedding, device: str, elsewhere: list[Tensor]
    ) -> None:
        self.case, self.device = case, device
        self.kind = bag.optimizer.kind
        self.layout = SlotLayout(case.dim, case.dtype, self.kind)
        self.slots = Slots.zeros(self.layout, case.rows + 5 - case.guests, device)
        self.guests = Slots.zeros(self.layout, case.guests, device)
        if case.guests:
            elsewhere.append(self.guests.bytes)
            memory, here = self.slots.bytes, len(self.slots.bytes)
            shift_bytes = self.guests.bytes.data_ptr() - memory.data_ptr() - memory.numel()
            self.slots = Slots(self.layout, memory, here, shift_bytes)
        order = torch.randperm(case.rows + 5, generator=torch.Generator().manual_seed(3))
        self.slot_of = order[: case.rows].to(torch.int32)
        everything = torch.arange(case.rows)
        staged = torch.zeros(case.rows, self.layout.stride_bytes // 4, dtype=torch.int32)
        weights = bag.rows(everything).contiguous()
        bytes_of = staged.view(torch.uint8)
        bytes_of[:, : case.dim * case.dtype.itemsize] = weights.view(torch.uint8).reshape(
            case.rows, -1
        )
        at = self.layout.state_offset_bytes
        for name in STATES[self.kind]:
            state = bag.state_rows(everything)[name].reshape(case.rows, -1).contiguous()
            bytes_of[:, at : at + 4 * state.shape[1]] = state.view(torch.uint8)
            at += 4 * state.shape[1]
        # As a fill does it: from a staging block into the slots.
        for memory, numbers, slots in self._memories():
            launch.copy_rows(self.to(staged), numbers, memory, slots)

    def to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def _memories(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Words of a memory, the rows whose slots it has, those slots."""
        is_here = self.slot_of < len(self.slots.bytes)
        for slots, those in (self.slots, is_here), (self.guests, ~is_here):
            numbers = torch.nonzero(those).flatten().to(torch.int32)
            if len(numbers) > 0:
                first = 0 if slots is self.slots else len(self.slots.bytes)
                yield slots.words, self.to(numbers), self.to(self.slot_of[those] - first)

    def forward(self, ids: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        case = self.case
        slots = self.slot_of[ids]
        if case.padding:
            slots = torch.where(ids == 0, torch.tensor(-1, dtype=torch.int32), slots)
        self.occurrence_slots = self.to(slots)
        self.bag_begin = self.to(torch.cat([offsets, torch.tensor([len(ids)])]))
        out = torch.full((len(offsets), case.dim), torch.nan, dtype=case.dtype, device=self.device)
        self.argmax = None
        if case.mode == "max":
            self.argmax = torch.zeros(out.shape, dtype=torch.int32, device=self.device)
        launch.pool(
            self.slots,
            self.occurrence_slots,
            self.bag_begin,
            case.mode,
            out,
            None if weights is None else self.to(weights),
            self.argmax,
        )
        return out.cpu()

    def backward(
        self, ids: Tensor, weights: Tensor | None, grad: Tensor, bag: te.TieredEmbedding, step: int
    ) -> Tensor:
        """Updates the slots; the gradient of the sample weights."""
        case = self.case
        sizes = np.array(case.sizes)
        bag_of = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
        kept = np.ones(len(ids), bool) if not case.padding else ids.numpy() != 0
        unique, inverse = np.unique(ids.numpy()[kept], return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        positions = np.flatnonzero(kept)[order].astype(np.int32)
        begin = np.concatenate([[0], np.cumsum(np.bincount(inverse, minlength=len(unique)))])
        occurrences = launch.Occurrences(
            slots=self.to(self.slot_of[torch.from_numpy(unique)]),
            rows=self.to(torch.from_numpy(unique)),
            begin=self.to(torch.from_numpy(begin.astype(np.int32))),
            bags=self.to(torch.from_numpy(bag_of[positions])),
            positions=self.to(torch.from_numpy(positions)),
        )
        counted = np.bincount(bag_of[kept], minlength=len(sizes)).astype(np.float32)
        scale = np.float32(1) / np.maximum(counted, np.float32(1))
        grads = self.to(grad)
        of_weights = torch.full((len(ids),), torch.nan, dtype=case.dtype, device=self.device)
        launch.sample_weight_gradients(
            self.slots, self.occurrence_slots, self.to(torch.from_numpy(bag_of)), grads, of_weights
        )
        gradients = launch.Gradients(
            grads,
            sample_weights=None if weights is None else self.to(weights),
            bag_scale=self.to(torch.from_numpy(scale)) if case.mode == "mean" else None,
            argmax=self.argmax,
            by_count=case.by_count,
        )
        numbers = launch.step_numbers(
            self.kind, bag.optimizer.hyper(), step, _core.table_key(SEED, "t"), self.device
        )
        often = torch.from_numpy(np.diff(begin) > case.often)
        which = torch.arange(len(unique), dtype=torch.int32)
        few, many = self.to(which[~often]), self.to(which[often])
        launch.update(self.slots, few, occurrences, case.mode, gradients, numbers)
        summed = torch.full((len(many), case.dim), torch.nan, device=self.device)
        if len(many) > 0:
            launch.sum_gradients(many, occurrences, case.mode, gradients, summed)
            launch.update(self.slots, many, occurrences, case.mode, summed, numbers)
        return of_weights.cpu()

    def read(self) -> dict[str, Tensor]:
        """Weights and states by row, spilled through a staging block."""
        case = self.case
        staged = torch.zeros(
            case.rows, self.layout.stride_bytes // 4, dtype=torch.int32, device=self.device
        )
        for memory, numbers, slots in self._memories():
            launch.copy_rows(memory, slots, staged, numbers)
        rows = staged.cpu().view(torch.uint8)
        wide = case.dim * case.dtype.itemsize
        found = {"weight": rows[:, :wide].contiguous().view(case.dtype)}
        at = self.layout.state_offset_bytes
        for name in STATES[self.kind]:
            floats = 1 if self.kind == 3 else case.dim
            found[name] = rows[:, at : at + 4 * floats].contiguous().view(torch.float32)
            at += 4 * floats
        return found


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes, so that NaN equals NaN and -0 does not equal 0."""
    return tensor.detach().contiguous().view(torch.uint8)


def check(case: Case, device: str, elsewhere: list[Tensor] | None = None) -> dict[str, Any]:
    """Trains both, and asserts that every output, gradient, weight and state has the same bits.

    What memory lies elsewhere is appended to `elsewhere`, for who watches the kernels' accesses.
    """
    bag = te.TieredEmbedding(
        case.rows,
        case.dim,
        mode=case.mode,
        dtype=case.dtype,
        optimizer=OPTIMIZERS[case.optimizer](),
        init=te.init.Normal(0, 2e-5 if case.extremes else 1),
        seed=SEED,
        name="t",
        padding_idx=0 if case.padding else None,
        scale_grad_by_freq=case.by_count,
    )
    on_device = OnDevice(case, bag, device, [] if elsewhere is None else elsewhere)
    for step in range(1, case.steps + 1):
        ids, offsets, weights, grad = _batch(case, step)
        wanted_grad = weights is not None
        if weights is not None:
            weights.requires_grad_()
        out = bag(ids, offsets, weights)
        given = None if weights is None else weights.detach()
        assert torch.equal(bits(on_device.forward(ids, offsets, given)), bits(out))
        of_weights = on_device.backward(ids, given, grad, bag, step)
        out.backward(grad)
        if wanted_grad:
            assert torch.equal(bits(of_weights), bits(weights.grad))
    everything = torch.arange(case.rows)
    wanted = {"weight": bag.rows(everything), **bag.state_rows(everything)}
    found = on_device.read()
    for name, values in wanted.items():
        same = bits(found[name]).reshape(case.rows, -1) == bits(values).reshape(case.rows, -1)
        assert bool(same.all()), f"{name} of rows {torch.nonzero(~same.all(1)).flatten().tolist()}"
    return found
