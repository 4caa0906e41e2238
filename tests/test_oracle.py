"""Random operations: bit-equal on all tier configurations, and near a model of plain tensors."""

from __future__ import annotations

import gc
import os
import random
import tempfile
from collections.abc import Iterator
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
    Resize,
    SetLr,
    Step,
    Write,
    ZeroGrad,
)
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONFIGS, STATES, Case, Config, TableCase

# Stores are made and synced by the thousand here: in memory where that is possible.
MEMORY = Path("/dev/shm")
SEEDS = st.integers(0, 2**32 - 1)
# One in four tables is much larger than what is ever touched of it.
ROWS = st.sampled_from([1, 2, 9, 40, 300, 10**9])
SMALL_ROWS = st.sampled_from([1, 2, 9, 40, 300])
DIMS = st.sampled_from([1, 3, 4, 8, 16, 33])
REPEATS = [1, 1, 1, 1, 1, 1, 1, 70]  # seldom enough bags for several threads


@st.composite
def table_cases(draw: st.DrawFn, rows: st.SearchStrategy[int], options: bool) -> TableCase:
    count = draw(rows)
    dim = draw(DIMS)
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
        if mode == "max" and (dim == 1 or extra["norm_type"] == float("inf")):
            extra["max_norm"] = None  # weights equal but for rounding: any of them may win
    # Padding of a huge table has to be in its universe.
    if padding is not None and count > 400:
        padding = draw(st.sampled_from([0, 1, count - 1]))
    return TableCase(count, dim, mode, padding, batch_rows=draw(st.integers(1, 40)), **extra)


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
    sizes = draw(st.lists(st.integers(0, 6), max_size=8).map(tuple) | st.just((900,)))
    return Input(
        table,
        sizes,
        two_d=draw(st.booleans()),
        ids32=draw(st.booleans()),
        offsets32=draw(st.booleans()),
        weights=draw(st.sampled_from(["none", "const", "grad"])),
        repeat=draw(st.sampled_from(REPEATS)) if sizes != (900,) else 1,
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
        st.builds(Resize, SEEDS),
    ]
    if not fused:
        choices += [st.sampled_from([Step(), Step(), ZeroGrad()])] * 2
    return case, draw(st.lists(st.one_of(choices), min_size=1, max_size=12))


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Dropped engines are collected at once; what is loaded so far need not be searched."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def run(case: Case, ops: list[Op], configs: tuple[Config, ...] = CONFIGS) -> None:
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tiered-emb-oracle-", dir=where) as folder:
        fleet = Fleet(case, Path(folder), configs)
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


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        ("sgd", torch.float16),
        ("sgd", torch.bfloat16),
        ("rowwise", torch.float16),
        ("adam", torch.bfloat16),
    ],
    ids=str,
)
def test_low_precision(optimizer: str, dtype: torch.dtype) -> None:
    @given(programs(optimizer, dtype))
    def check(program: tuple[Case, list[Op]]) -> None:
        run(*program)

    check()


# ---- Long sequences: hypothesis keeps its own short


def random_lookup(rng: random.Random, case: Case) -> Lookup:
    chosen = rng.sample(range(len(case.tables)), rng.randint(1, len(case.tables)))
    parts = []
    for table in chosen:
        sizes = tuple(rng.choices(range(7), k=rng.randrange(12)))
        parts.append(
            Input(
                table,
                sizes,
                two_d=rng.random() < 0.3,
                ids32=rng.random() < 0.5,
                weights=rng.choice(["none", "const", "grad"]),
                repeat=rng.choice(REPEATS),
                unused=rng.random() < 0.1,
            )
        )
    then = rng.choices(["backward", "keep", "twice", "no_grad", "drop"], [6, 3, 1, 2, 1])[0]
    return Lookup(tuple(parts), then, rng.randrange(2**32))


def random_op(rng: random.Random, case: Case) -> Op:
    kind = rng.choices(range(9), [12, 2, 1, 1, 1, 1, 0 if case.fused else 3, 0.5, 1.5])[0]
    seed = rng.randrange(2**32)
    what = "both" if STATES[case.optimizer] and rng.random() < 0.5 else "weight"
    return (
        random_lookup(rng, case),
        BackwardKept(seed),
        Write(rng.randrange(len(case.tables)), rng.choice([1, 5, 60]), what, seed),
        Flush(),
        Reopen(rng.random() < 0.5),
        SetLr(rng.choice([0.1, 0.02])),
        rng.choice([Step(), Step(), ZeroGrad()]),
        DropKept(),
        Resize(seed),
    )[kind]


SOAKS = {
    "one layout": Case(
        "collection",
        (TableCase(300, 8), TableCase(10**9, 8, "mean", 1), TableCase(40, 8, "max")),
        "adagrad",
    ),
    "layouts share a tight budget": Case(
        "collection",
        (TableCase(300, 4, batch_rows=40), TableCase(200, 16, "max"), TableCase(90, 33, "mean")),
        "adam",
    ),
    "options": Case(
        "views",
        (
            TableCase(300, 8, "sum", -1, max_norm=1.0, include_last_offset=True),
            TableCase(90, 3, "mean", 0, scale_grad_by_freq=True),
            TableCase(300, 8, "max", max_norm=0.5, norm_type=1.0),
        ),
        "rowwise",
    ),
    "not fused": Case(
        "views", (TableCase(300, 4), TableCase(200, 16, "mean", 3)), "adam", fused=False
    ),
    "bfloat16": Case(
        "collection", (TableCase(300, 5), TableCase(10**9, 8)), "rowwise", dtype=torch.bfloat16
    ),
}


@pytest.mark.parametrize("name", list(SOAKS))
def test_long_sequences(name: str) -> None:
    case = SOAKS[name]
    for seed in range(int(os.environ.get("SOAK_SEEDS", "3"))):
        rng = random.Random(seed)
        run(case, [random_op(rng, case) for _ in range(80)])
