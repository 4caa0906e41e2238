"""The sanitizer of Triton kernels sees each fault that it says it sees, and no more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from kernel_contracts import KernelContracts
from triton_sanitizer import AccessError, Contract, Sanitizer

from tiered_emb.device import kernels, launch
from tiered_emb.device.slots import SlotLayout, Slots

if torch.cuda.is_available():
    pytest.skip("the sanitizer works under Triton's interpreter", allow_module_level=True)
LANES = tl.constexpr(8)


@triton.jit
def clean(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def loads_too_far(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    found = tl.load(x + i, mask=i <= n)  # fault
    tl.store(out + i, found, mask=i < n)


@triton.jit
def loads_before(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    found = tl.load(x + i - 1, mask=i < n)  # fault
    tl.store(out + i, found, mask=i < n)


@triton.jit
def loads_an_output(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    found = tl.load(out + i, mask=i < n)  # fault
    tl.store(out + i, found, mask=i < n)


@triton.jit
def loads_unaligned(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    bytes_of = (x.to(tl.pointer_type(tl.int8)) + 4 * i + 1).to(tl.pointer_type(tl.float32))
    found = tl.load(bytes_of, mask=i + 1 < n)  # fault
    tl.store(out + i, found, mask=i < n)


@triton.jit
def stores_too_far(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    found = tl.load(x + i, mask=i < n)
    tl.store(out + i, found)  # fault


@triton.jit
def stores_to_an_input(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(x + i, 0.0, mask=i < n)  # fault


@triton.jit
def two_programs_store(x, out, n):
    i = tl.program_id(0) * (LANES - 1) + tl.arange(0, LANES)
    found = tl.load(x + i, mask=i < n)
    tl.store(out + i, found, mask=i < n)  # fault


@triton.jit
def two_lanes_store(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(out + i // 2, 1.0, mask=i < n)  # fault


@triton.jit
def _read(at, there):
    return tl.load(at, mask=there)  # fault


@triton.jit
def reads_what_another_stores(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(out + i, 1.0, mask=i < n)
    _read(out + i - LANES, (i >= LANES) & (i < n))


@triton.jit
def stores_what_another_reads(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    before = tl.load(out + i + LANES, mask=i + LANES < n, other=0.0)
    tl.store(out + i, before, mask=i < n)  # fault


@triton.jit
def leaves_one_out(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    found = tl.load(x + i, mask=i < n)
    tl.store(out + i, found, mask=i < n - 1)  # fault


@triton.jit
def adds_atomically(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.atomic_add(out + i, 1.0, mask=i < n)  # fault


@triton.jit
def maximum_atomically(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.atomic_max(out + i, 1.0, mask=i < n)  # fault


@triton.jit
def exchanges_atomically(x, out, n):
    i = tl.program_id(0)
    tl.atomic_cas(out.to(tl.pointer_type(tl.int32)) + i, 0, 1)  # fault


@triton.jit
def needs_a_barrier(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    before = tl.load(out + i, mask=i < n)
    tl.store(out + i, before + 1, mask=i < n)  # fault


@triton.jit
def has_a_barrier(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    before = tl.load(out + i, mask=i < n)
    tl.debug_barrier()
    tl.store(out + i, before + 1, mask=i < n)


@triton.jit
def uses_what_a_mask_left_out(x, out, n):
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    found = tl.load(x + i, mask=i < n - 1)
    tl.store(out + i, found, mask=i < n)


def reads_and_writes(arguments: Mapping[str, Any]) -> Contract:
    """`out` may be loaded too."""
    x, out = arguments["x"], arguments["out"]
    return Contract({"x": [x], "out": [out]}, {"out": [out]})


def writes(arguments: Mapping[str, Any]) -> Contract:
    return Contract({"x": [arguments["x"]]}, {"out": [arguments["out"]]})


def run(kernel: Any, contract: Callable[..., Contract] = writes, n: int = 20) -> torch.Tensor:
    """Over `n` elements in the middle of a memory, whose other elements belong to nobody."""
    memory = torch.zeros(2, 64)
    x, out = memory[:, 16 : 16 + n]
    with Sanitizer({kernel.__name__: contract}):
        kernel[(triton.cdiv(n, 8),)](x, out, n)
    return out


def line_of_fault(function: Any) -> int:
    lines, first = inspect.getsourcelines(function.fn)
    (line,) = (k for k, text in enumerate(lines, first) if text.endswith("# fault\n"))
    return line


@pytest.mark.parametrize(
    ("kernel", "contract", "what"),
    [
        (loads_too_far, writes, "program (2, 0, 0) loads, where it may not, byte 80 of `x` [20]"),
        (loads_before, writes, "program (0, 0, 0) loads, where it may not, byte -4 of `x`"),
        (loads_an_output, writes, "program (0, 0, 0) loads, where it may not, byte 0 of `out`"),
        (loads_unaligned, writes, "program (0, 0, 0) loads, unaligned, byte 1 of `x`"),
        (stores_too_far, writes, "program (2, 0, 0) stores, where it may not, byte 80 of `out`"),
        (stores_to_an_input, writes, "program (0, 0, 0) stores, where it may not, byte 0 of `x`"),
        (two_programs_store, writes, "(1, 0, 0) stores, as program (0, 0, 0) stored, byte 28 of"),
        (two_lanes_store, writes, "(0, 0, 0) stores by several lanes byte 0 of `out`"),
        (stores_what_another_reads, reads_and_writes, "as program (0, 0, 0) loaded, byte 32 of"),
        (adds_atomically, reads_and_writes, "(0, 0, 0) has an atomic on byte 0 of `out`"),
        (maximum_atomically, reads_and_writes, "(0, 0, 0) has an atomic on byte 0 of `out`"),
        (exchanges_atomically, reads_and_writes, "(0, 0, 0) has an atomic on byte 0 of `out`"),
        (needs_a_barrier, reads_and_writes, "no barrier since several warps loaded it, byte 0 of"),
    ],
    ids=lambda of: getattr(of, "__name__", ""),
)
def test_fault(kernel: Any, contract: Callable[..., Contract], what: str) -> None:
    with pytest.raises(AccessError) as found:
        run(kernel, contract)
    name = kernel.__name__
    where = f"{name}, test_triton_sanitizer.py:{line_of_fault(kernel)} in {name}: "
    assert str(found.value).startswith(where)
    assert what in str(found.value)


def test_fault_in_a_function_of_the_kernel() -> None:
    with pytest.raises(AccessError) as found:
        run(reads_what_another_stores, reads_and_writes, 24)
    start = f"reads_what_another_stores, test_triton_sanitizer.py:{line_of_fault(_read)} in _read"
    assert str(found.value).startswith(start + ", called from test_triton_sanitizer.py:")
    assert str(found.value).endswith(
        "program (1, 0, 0) loads, as program (0, 0, 0) stored, byte 0 of `out` [24]"
    )


def test_output_that_is_not_stored() -> None:
    with pytest.raises(AccessError) as found:
        run(leaves_one_out)
    assert str(found.value) == (
        "leaves_one_out: 4 bytes were not stored, the first of them byte 76 of `out` [20]; "
        f"test_triton_sanitizer.py:{line_of_fault(leaves_one_out)} in leaves_one_out stores there"
    )


@pytest.mark.parametrize("n", [1, 8, 20, 0])
def test_clean_kernels(n: int) -> None:
    assert run(clean, n=n).tolist() == [0] * n
    assert run(has_a_barrier, reads_and_writes, n).tolist() == [1] * n


def test_what_a_mask_left_out_is_nan() -> None:
    assert run(uses_what_a_mask_left_out).isnan().tolist() == [False] * 19 + [True]


def test_programs_run_in_the_order_that_is_given() -> None:
    seen: list[tuple[int, ...]] = []

    def backwards(programs: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        for program in reversed(programs):
            seen.append(program)
            yield program

    with Sanitizer({"clean": writes}, backwards) as sanitizer:
        clean[(3,)](torch.ones(20), torch.zeros(20), 20)
    assert seen == [(2, 0, 0), (1, 0, 0), (0, 0, 0)]
    assert sanitizer.launched == {"clean": 1}


def pool_one_bag(slots: Slots, numbers: list[int], elsewhere: list[torch.Tensor]) -> torch.Tensor:
    out = torch.empty(1, 4)
    of_bag = torch.tensor(numbers, dtype=torch.int32)
    contracts = KernelContracts()
    contracts.elsewhere += elsewhere
    with Sanitizer(contracts) as sanitizer:
        launch.pool(slots, of_bag, torch.tensor([0, len(numbers)]), "sum", out)
    assert sanitizer.launched == {"pool": 1}
    return out


def test_slots_elsewhere_are_known_by_their_memory() -> None:
    layout = SlotLayout(4, torch.float32, 0)
    home, guests = (torch.ones(n, 4).view(torch.uint8) for n in (3, 2))
    shift_bytes = guests.data_ptr() - home.data_ptr() - home.numel()
    slots = Slots(layout, home, 3, shift_bytes)
    assert pool_one_bag(slots, [0, 4, 2, 3, -1], [guests]).tolist() == [[4.0] * 4]
    with pytest.raises(AssertionError, match="no memory of `elsewhere` begins"):
        pool_one_bag(Slots(layout, home, 3, shift_bytes - 16), [0, 3], [guests])


def test_contracts_know_every_kernel() -> None:
    names = {k for k, v in vars(kernels).items() if isinstance(v, type(clean)) and k[0] != "_"}
    assert names - {"nearest", "random_halves", "round_bfloat16", "round_float16"} == set(
        KernelContracts()
    )
