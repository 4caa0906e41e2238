"""Random operations: bit-equal on all tier configurations, and near a model of plain tensors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from fleet import (
    BackwardKept,
    DropKept,
    Fleet,
    Flush,
    Input,
    Lookup,
    Op,
    Reopen,
    SetLr,
    Step,
    Write,
    ZeroGrad,
)
from hypothesis import given
from hypothesis import strategies as st
from oracle import STATES, Case, TableCase

# Stores are made and synced by the thousand here: in memory where that is possible.
MEMORY = Path("/dev/shm")
SEEDS = st.integers(0, 2**32 - 1)
# One in four tables is much larger than what is ever touched of it.
ROWS = st.sampled_from([1, 2, 9, 40, 300, 10**9])
SMALL_ROWS = st.sampled_from([1, 2, 9, 40, 300])
DIMS = st.sampled_from([1, 3, 4, 8, 16, 33])
BIG = tuple(range(12)) * 60


@st.composite
def table_cases(draw: st.DrawFn, rows: st.SearchStrategy[int], options: bool) -> TableCase:
    count = draw(rows)
    mode = draw(st.sampled_from(["sum", "mean", "max"]))
    padding = draw(st.none() | st.integers(-count if options else 0, count - 1))
    extra = {}
    if options:
        extra = {
            "max_norm": draw(st.none() | st.sampled_from([0.3, 1.0, 2.5])),
            "norm_type": draw(st.sampled_from([2.0, 1.0, 3.0, float("inf")])),
            "scale_grad_by_freq": mode != "max" and draw(st.booleans()),
            "include_last_offset": draw(st.booleans()),
        }
    # Padding of a huge table has to be in its universe.
    if padding is not None and count > 400:
        padding = draw(st.sampled_from([0, 1, count - 1]))
    return TableCase(count, draw(DIMS), mode, padding, batch_rows=draw(st.integers(1, 40)), **extra)


@st.composite
def cases(draw: st.DrawFn, optimizer: str, dtype: torch.dtype, fused: bool) -> Case:
    kind = draw(st.sampled_from(["single", "views", "collection"]))
    count = 1 if kind == "single" else draw(st.integers(1, 4))
    tables = draw(
        st.lists(
            table_cases(SMALL_ROWS if kind == "views" else ROWS, kind != "collection"),
            min_size=count,
            max_size=count,
        )
    )
    return Case(kind, tuple(tables), optimizer, fused, dtype, draw(SEEDS))


@st.composite
def inputs(draw: st.DrawFn, table: int) -> Input:
    sizes = draw(
        st.lists(st.integers(0, 6), max_size=8).map(tuple) | st.sampled_from([BIG, (700,)])
    )
    return Input(
        table,
        sizes,
        two_d=draw(st.booleans()),
        ids32=draw(st.booleans()),
        offsets32=draw(st.booleans()),
        weights=draw(st.sampled_from(["none", "const", "grad"])),
        unused=draw(st.sampled_from([False, False, False, True])),
    )


@st.composite
def lookups(draw: st.DrawFn, case: Case) -> Lookup:
    tables = draw(st.permutations(range(len(case.tables))))
    chosen = tables[: draw(st.integers(1, len(tables)))]
    then = draw(
        st.sampled_from(["backward", "backward", "backward", "keep", "twice", "no_grad", "drop"])
    )
    return Lookup(tuple(draw(inputs(t)) for t in chosen), then, draw(SEEDS))


@st.composite
def programs(
    draw: st.DrawFn, optimizer: str, dtype: torch.dtype = torch.float32, fused: bool = True
) -> tuple[Case, list[Op]]:
    case = draw(cases(optimizer, dtype, fused))
    what = ["weight"] if not STATES[optimizer] else ["weight", "both", "state"]
    writes = st.builds(
        Write,
        st.integers(0, len(case.tables) - 1),
        st.sampled_from([0, 1, 3, 60]),
        st.sampled_from(what),
        SEEDS,
    )
    one_lookup = lookups(case)
    choices = [
        one_lookup,
        one_lookup,
        one_lookup,
        writes,
        st.builds(BackwardKept, SEEDS) | st.just(DropKept()),
        st.just(Flush()) | st.builds(Reopen, st.booleans()),
        st.sampled_from([0.3, 0.01]).map(SetLr),
    ]
    if not fused:
        choices += [st.sampled_from([Step(), Step(), ZeroGrad()])] * 2
    return case, draw(st.lists(st.one_of(choices), min_size=1, max_size=12))


def run(case: Case, ops: list[Op]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        fleet = Fleet(case, Path(folder))
        for op in ops:
            fleet.run(op)
        fleet.close()


@pytest.mark.parametrize("optimizer", list(STATES))
def test_fused(optimizer: str) -> None:
    @given(programs(optimizer))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program)

    check()


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise", "adam"])
def test_not_fused(optimizer: str) -> None:
    @given(programs(optimizer, fused=False))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program)

    check()


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise", "adam"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision(optimizer: str, dtype: torch.dtype) -> None:
    @given(programs(optimizer, dtype))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program)

    check()
