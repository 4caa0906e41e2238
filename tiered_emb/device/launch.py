"""Launches of the Triton kernels: shapes of tiles, and the numbers of an optimizer step.

Arguments are tensors on the device of the slots; nothing is checked, allocated or waited for here
(a plan has been checked when it was made), so the launches of a step can be captured in a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from tiered_emb import _core
from tiered_emb.device import kernels
from tiered_emb.device.executor import NUMBERS
from tiered_emb.device.executor import OFTEN as OFTEN
from tiered_emb.device.slots import Slots

MODES = {"sum": 0, "mean": 1, "max": 2}
TILE = 1024
"""Elements of a tile: eight a thread of four warps. The best on an H200, as the next two are."""
AHEAD = 2
"""Occurrences of a bag, or of a row, whose loads are under way at once."""
AHEAD_OFTEN = 32
"""The same in `sum_gradients`."""
WARPS = 4
_COUNTERS = 8  # where in a feature's numbers
ROUNDING = 1 << 30
"""What random words are for, where `cpp/base/philox.h` has it in their counter."""


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _tile(dim: int) -> tuple[int, int]:
    """(rows, columns) of a tile over rows of `dim` columns."""
    columns = max(16, min(_power_of_two(dim), TILE))
    return max(1, TILE // columns), columns


def _elsewhere(slots: Slots, itemsize: int) -> tuple[int, int]:
    """Number of the first slot elsewhere, and how far: in elements of `itemsize` bytes."""
    return slots.here, slots.shift_bytes // itemsize


def copy_rows(
    source: torch.Tensor,
    source_slots: torch.Tensor | None,
    target: torch.Tensor,
    target_slots: torch.Tensor | None,
) -> None:
    """``target[target_slots] = source[source_slots]``, whole slots.

    Args:
        source, target: int32 [slots, stride], as `Slots.words`; of one stride, a multiple of 4.
        source_slots, target_slots: int32 [n]; no target twice. One of them may be None: the first
            slots.
    """
    slots = source_slots if source_slots is not None else target_slots
    assert slots is not None
    count, words = slots.numel(), source.stride(0)
    rows, columns = _tile(words)
    kernels.copy_rows[(triton.cdiv(count, rows), triton.cdiv(words, columns))](
        source,
        slots if source_slots is None else source_slots,
        target,
        slots if target_slots is None else target_slots,
        count,
        words,
        source_slots is not None,
        target_slots is not None,
        rows,
        columns,
        num_warps=WARPS,
    )


def pool(
    slots: Slots,
    occurrence_slots: torch.Tensor,
    bag_begin: torch.Tensor,
    mode: str,
    out: torch.Tensor,
    sample_weights: torch.Tensor | None = None,
    argmax: torch.Tensor | None = None,
) -> None:
    """Pools bags of rows: ``nn.EmbeddingBag`` over slots.

    Args:
        slots: of the table's layout.
        occurrence_slots: int32 [occurrences]; -1 where one is left out of its bag.
        bag_begin: int64 [bags + 1], positions in `occurrence_slots`.
        mode: "sum", "mean" or "max".
        out: [bags, dim] in the table's dtype.
        sample_weights: [occurrences] in the table's dtype; mode "sum".
        argmax: int32 [bags, dim] to fill with the occurrence of the first maximum; mode "max".
    """
    bags, dim = out.shape
    rows, columns = _tile(dim)
    grid = (triton.cdiv(bags, rows), triton.cdiv(dim, columns))
    kernels.pool[grid](
        slots.weights,
        occurrence_slots,
        bag_begin,
        sample_weights if sample_weights is not None else slots.weights,
        out,
        argmax if argmax is not None else occurrence_slots,
        bags,
        *_elsewhere(slots, out.dtype.itemsize),
        dim,
        slots.weights.stride(0),
        MODES[mode],
        sample_weights is not None,
        argmax is not None,
        slots.shift_bytes != 0,
        rows,
        columns,
        AHEAD,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


def sample_weight_gradients(
    slots: Slots,
    occurrence_slots: torch.Tensor,
    bag_of: torch.Tensor,
    grad: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """``out[i] = dot(grad[bag_of[i]], row of occurrence i)``; 0 where that is left out.

    Args:
        slots, occurrence_slots: see `pool`.
        bag_of: int32 [occurrences].
        grad: [bags, dim] in the table's dtype.
        out: [occurrences], likewise.
    """
    count = occurrence_slots.numel()
    rows = TILE // 16
    kernels.sample_weight_gradients[(triton.cdiv(count, rows),)](
        slots.weights,
        occurrence_slots,
        bag_of,
        grad,
        out,
        count,
        *_elsewhere(slots, out.dtype.itemsize),
        slots.layout.dim,
        slots.weights.stride(0),
        slots.shift_bytes != 0,
        rows,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


@dataclass(frozen=True)
class Occurrences:
    """Where unique rows of a batch occur, in CSR form, as a plan tells it of one range of them.

    Args:
        slots: int32 [uniques], their slots.
        rows: int64 [uniques], their numbers in the table (for rows of 16 bits).
        begin: int32 [uniques + 1], positions in the two below.
        bags: int32 [occurrences], the bag of each, in input order a row.
        positions: int32 [occurrences] in the input, where sample weights or mode "max" need it.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    begin: torch.Tensor
    bags: torch.Tensor
    positions: torch.Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """Gradients of bags, and what weighs them on their way to the rows.

    Args:
        grad: [bags, dim] in the table's dtype.
        sample_weights: [ids of the input], likewise; mode "sum".
        bag_scale: float32 [bags], 1 / size; mode "mean".
        argmax: int32 [bags, dim], as `pool` has filled it; mode "max".
        by_count: divide by the number of the row's occurrences (``scale_grad_by_freq``).
    """

    grad: torch.Tensor
    sample_weights: torch.Tensor | None = None
    bag_scale: torch.Tensor | None = None
    argmax: torch.Tensor | None = None
    by_count: bool = False


def _csr(occurrences: Occurrences) -> tuple[torch.Tensor, ...]:
    positions = occurrences.positions
    bags = occurrences.bags
    return occurrences.begin, bags, positions if positions is not None else bags


def _gradients(grad: Gradients, absent: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Arguments of a kernel; `absent` stands where there is none, and is not read."""
    optional = (grad.sample_weights, grad.bag_scale, grad.argmax)
    return grad.grad, *(absent if tensor is None else tensor for tensor in optional)


@dataclass(frozen=True)
class StepNumbers:
    """What an optimizer step computes with, in memory of the device.

    Args:
        numbers: float32 [6]: lr, eps, 1 - beta1, 1 - beta2, Adam's step size, weight decay.
        counters: int32 [4]: key of the table's random words, the step's low 32 bits, and its next
            16 with the words' purpose, where `cpp/base/philox.h` has them.
        decays: whether the weight decay is not 0.
    """

    numbers: torch.Tensor
    counters: torch.Tensor
    decays: bool

    @classmethod
    def at(cls, memory: torch.Tensor, decays: bool) -> StepNumbers:
        """Those in `memory`, int32 [`NUMBERS`]."""
        return cls(memory.view(torch.float32)[:6], memory[_COUNTERS : _COUNTERS + 4], decays)


def sum_gradients(
    which: torch.Tensor, occurrences: Occurrences, mode: str, grad: Gradients, out: torch.Tensor
) -> None:
    """``out[i]`` = gradient of unique row ``which[i]``, summed over its occurrences in order.

    For rows that occur more than `OFTEN` times: here a row has as many programs as tiles of
    columns, and more of its occurrences are under way at once.

    Args:
        which: int32 [n], unique rows.
        occurrences, mode, grad: see `update`.
        out: float32 [n, dim].
    """
    dim = out.shape[1]
    columns = min(32, max(16, _power_of_two(dim)))
    kernels.sum_gradients[(which.numel(), triton.cdiv(dim, columns))](
        which,
        *_csr(occurrences),
        *_gradients(grad, which),
        out,
        dim,
        MODES[mode],
        grad.sample_weights is not None,
        grad.by_count,
        columns,
        AHEAD_OFTEN,
        num_warps=1,
        enable_fp_fusion=False,
    )


def update(
    slots: Slots,
    which: torch.Tensor,
    occurrences: Occurrences,
    mode: str,
    grad: Gradients | torch.Tensor,
    step: StepNumbers,
) -> None:
    """Sums the gradients of unique rows over their occurrences, in order, and moves the rows.

    Args:
        slots: of the table's layout, with an optimizer.
        which: int32 [n], unique rows.
        occurrences: of all unique rows.
        mode: "sum", "mean" or "max".
        grad: of the bags; or float32 [n, dim], the gradients of the rows, summed already.
        step: numbers of the step.
    """
    layout = slots.layout
    columns = max(16, _power_of_two(layout.dim))
    rows = max(1, TILE // columns)
    count = which.numel()
    is_summed = isinstance(grad, torch.Tensor)
    bags = Gradients(grad) if isinstance(grad, torch.Tensor) else grad
    kernels.update[(triton.cdiv(count, rows),)](
        slots.weights,
        slots.states,
        occurrences.slots,
        occurrences.rows,
        which,
        bags.grad,
        *_csr(occurrences),
        *_gradients(bags, which),
        count,
        step.numbers,
        step.counters,
        *_elsewhere(slots, layout.dtype.itemsize),
        slots.shift_bytes // 4,
        layout.dim,
        slots.weights.stride(0),
        slots.states.stride(0),
        layout.state_offset_bytes // 4,
        layout.optimizer,
        is_summed,
        MODES[mode],
        bags.sample_weights is not None,
        bags.by_count,
        step.decays,
        slots.shift_bytes != 0,
        rows,
        columns,
        AHEAD,
        num_warps=WARPS if columns <= 1024 else 2 * WARPS,
        enable_fp_fusion=False,
    )


def write_step_numbers(
    optimizer: int,
    hyper: _core.HyperTuple,
    step: int,
    key: tuple[int, int],
    memory: torch.Tensor,
) -> bool:
    """Writes the numbers of a table's update, as the core computes them; whether weights decay.

    Args:
        optimizer: its number in the core.
        hyper: what `RowOptimizer.hyper` gives.
        step: 1 for the table's first update.
        key: of the table's random words, `_core.table_key(seed, name)`.
        memory: int32 [`NUMBERS`] on the host.
    """
    numbers = _core.optimizer_numbers(optimizer, hyper, step)
    words = (*key, step & 0xFFFFFFFF, ROUNDING | (step >> 32 & 0xFFFF) << 8)
    memory.view(torch.float32)[: len(numbers)] = torch.tensor(numbers, dtype=torch.float32)
    memory[_COUNTERS : _COUNTERS + len(words)] = torch.tensor(words, dtype=torch.int64).to(
        torch.int32
    )
    return numbers[-1] != 0


def step_numbers(
    optimizer: int,
    hyper: _core.HyperTuple,
    step: int,
    key: tuple[int, int],
    device: torch.device | str,
) -> StepNumbers:
    """The numbers of `write_step_numbers` on a device."""
    memory = torch.zeros(NUMBERS, dtype=torch.int32)
    decays = write_step_numbers(optimizer, hyper, step, key, memory)
    return StepNumbers.at(memory.to(device), decays)
