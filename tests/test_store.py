"""The ssd tier from outside: paths, resuming, deaths of the process, damage, locks, endings."""

from __future__ import annotations

import errno
import gc
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_bits import assert_same_bits
from torch import nn

import tiered_emb as te

ROWS, DIM = 200, 4
Tensor = torch.Tensor


def open_table(path: Path | str, resume: bool = False, **arguments: Any) -> te.TieredEmbedding:
    """200 rows of 32 bytes, 20 of them in dram."""
    tiers = te.Tiers(dram=arguments.pop("dram", 640), ssd=te.SSD(str(path), resume=resume))
    defaults = {"mode": "sum", "optimizer": te.optim.Adagrad(0.1), "seed": 5, "name": "ads"}
    return te.TieredEmbedding(
        **({"num_embeddings": ROWS, "embedding_dim": DIM} | defaults | arguments), tiers=tiers
    )


def train(bag: te.TieredEmbedding, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, ROWS, (5, 3), generator=generator)
        bag(ids).backward(torch.randn(5, DIM, generator=generator))


def snapshot(bag: te.TieredEmbedding) -> dict[str, Tensor]:
    return {"weight": bag.to_dense(), **bag.state_rows(range(ROWS))}


def assert_same(bag: te.TieredEmbedding, expected: dict[str, Tensor]) -> None:
    for name, value in snapshot(bag).items():
        assert_same_bits(value, expected[name], name)


# ---- Where rows are, and how much space they take


def test_tier_of(tmp_path: Path) -> None:
    with open_table(tmp_path) as bag:
        assert bag.tier_of([0, ROWS - 1]).tolist() == [0, 0]
        for first in range(0, 60, 10):
            bag.write_rows(range(first, first + 10), torch.randn(10, DIM))
        before = bag.stats()
        tiers = bag.tier_of(range(ROWS)).tolist()
        assert tiers.count(2) == before.resident_rows > 0
        assert tiers.count(1) + tiers.count(2) == 60
        assert set(tiers[60:]) == {0}
        assert bag.stats() == before
        with pytest.raises(IndexError, match=f"'ads'.*{ROWS}"):
            bag.tier_of([1, ROWS])


@pytest.mark.parametrize("bound", [1.2, 2.0])
def test_space_stays_within_its_bound(tmp_path: Path, bound: float) -> None:
    """However fast rows are evicted: five segments of slack, and what one step writes."""
    rows, dim = 30_000, 31
    tiers = te.Tiers(dram=rows * 128 // 10, ssd=te.SSD(str(tmp_path), space_bound=bound))
    highest = 0.0
    with te.TieredEmbedding(rows, dim, tiers=tiers, optimizer=te.optim.RowwiseAdagrad(0.1)) as bag:
        generator = torch.Generator().manual_seed(1)
        for _ in range(400):
            ids = torch.randint(0, rows, (1000, 1), generator=generator)
            bag(ids).sum().backward()
            stats = bag.stats()
            used_segments = stats.ssd_segments - stats.ssd_segments_pinned
            if used_segments > 16:
                beyond_slack = stats.ssd_used_bytes * (used_segments - 16) / used_segments
                highest = max(highest, beyond_slack / stats.ssd_rows_bytes)
        assert stats.ssd_row_written_bytes > 8 * rows * 128
        assert bound * 0.9 < highest <= bound
        assert stats.ssd_rows_reclaimed > 0


# ---- Opening


def test_folder_is_created(tmp_path: Path) -> None:
    with open_table(tmp_path / "a" / "b") as bag:
        train(bag, 3)
    assert any((tmp_path / "a" / "b").iterdir())


def test_existing_empty_folder(tmp_path: Path) -> None:
    with open_table(tmp_path):
        pass


def test_existing_store_is_never_overwritten(tmp_path: Path) -> None:
    with open_table(tmp_path / "s") as bag:
        train(bag, 30)
        expected = snapshot(bag)
    with pytest.raises(FileExistsError, match="s"):
        open_table(tmp_path / "s")
    with open_table(tmp_path / "s", resume=True) as bag:
        assert_same(bag, expected)


def test_resume_without_store(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            open_table(path, resume=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("where", ["below a file", "/proc"])
def test_unwritable_path(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "store" if where == "below a file" else Path("/proc/store")
    with pytest.raises(OSError, match=str(path)):
        open_table(path)
    assert (tmp_path / "file").read_text() == "mine"


def test_path_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for resume in (False, True):
        with pytest.raises(OSError, match="file"):
            open_table(tmp_path / "file", resume=resume)
    assert (tmp_path / "file").read_text() == "mine"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with open_table(tmp_path) as bag:
        train(bag, 50)
    with open_table(tmp_path, resume=True) as bag:
        train(bag, 50)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_second_open(tmp_path: Path) -> None:
    bag = open_table(tmp_path)
    train(bag, 5)
    bag.flush()
    expected = snapshot(bag)
    for resume in (True, False):
        with pytest.raises(OSError):
            open_table(tmp_path, resume=resume)
    assert_same(bag, expected)
    train(bag, 5)
    bag.close()
    open_table(tmp_path, resume=True).close()


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"num_embeddings": ROWS + 1}, r"'ads'.*num_embeddings 200.* 201"),
    "dim": ({"embedding_dim": DIM + 1}, r"'ads'.*embedding_dim 4.* 5"),
    "dtype": ({"dtype": torch.float16}, r"'ads'.*dtype 'float32'.* 'float16'"),
    "name": ({"name": "news"}, r"name 'ads'.* 'news'"),
    "init": ({"init": te.init.Uniform()}, r"'ads'.*init"),
    "init's range": ({"init": te.init.Normal(0.0, 0.5)}, r"'ads'.*init"),
    "padding": ({"padding_idx": 3}, r"'ads'.*padding_idx None.* 3"),
    "seed": ({"seed": 6}, r"seed 5.* 6"),
    "optimizer": ({"optimizer": te.optim.SGD()}, r"optimizer"),
    "no optimizer": ({"optimizer": None}, r"optimizer"),
    "initial state": ({"optimizer": te.optim.Adagrad(0.1, 0.0, 0.5)}, r"state_value 0.0.* 0.5"),
}


@pytest.mark.parametrize("field", list(DIFFERENT))
def test_layout_mismatch(field: str, tmp_path: Path) -> None:
    with open_table(tmp_path) as bag:
        train(bag, 5)
        expected = snapshot(bag)
    arguments, message = DIFFERENT[field]
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path, resume=True, **arguments)
    with open_table(tmp_path, resume=True) as bag:
        assert_same(bag, expected)


def test_what_may_differ_on_resume(tmp_path: Path) -> None:
    """Budget, policy, learning rate, mode and norm are no part of the store."""
    with open_table(tmp_path) as bag:
        train(bag, 20)
        expected = snapshot(bag)
    for dram in (None, 100_000, 320):
        arguments = {"mode": "max", "max_norm": 5.0, "optimizer": te.optim.Adagrad(0.5)}
        with open_table(tmp_path, resume=True, dram=dram, **arguments) as bag:
            assert_same(bag, expected)


def test_tables_of_a_collection_must_agree(tmp_path: Path) -> None:
    def coll(names: str, resume: bool = True) -> te.TieredEmbeddingCollection:
        tables = [te.Table(n, 10, 2) for n in names]
        return te.TieredEmbeddingCollection(
            tables, tiers=te.Tiers(dram=64, ssd=te.SSD(str(tmp_path), resume=resume))
        )

    coll("ab", resume=False).close()
    with pytest.raises(ValueError, match="2 tables, the model 3"):
        coll("abc")
    with pytest.raises(ValueError, match=r"name 'a'.* 'b'"):
        coll("ba")
    coll("ab").close()


# ---- What survives


def test_training_goes_on_as_without_interruption(tmp_path: Path) -> None:
    """Adam's and the rounding's step counts come back too."""
    arguments = {"dtype": torch.bfloat16}
    with open_table(tmp_path / "a", optimizer=te.optim.Adam(0.1), **arguments) as whole:
        train(whole, 20, seed=1)
        train(whole, 20, seed=2)
        expected = snapshot(whole)
    with open_table(tmp_path / "b", optimizer=te.optim.Adam(0.1), **arguments) as bag:
        train(bag, 20, seed=1)
    with open_table(
        tmp_path / "b", resume=True, dram=960, optimizer=te.optim.Adam(0.1), **arguments
    ) as bag:
        train(bag, 20, seed=2)
        assert_same(bag, expected)


def test_drop_without_close(tmp_path: Path) -> None:
    bag = open_table(tmp_path)
    train(bag, 20)
    bag.flush()
    expected = snapshot(bag)
    train(bag, 20)
    out = bag(torch.tensor([[1, 2]]))  # waits for a backward that never comes
    del bag, out
    gc.collect()
    with open_table(tmp_path, resume=True) as bag:
        assert_same(bag, expected)


@pytest.mark.parametrize("kind", ["_weight", "from_bag", "convert"])
def test_given_weights_survive_a_death(kind: str, tmp_path: Path) -> None:
    """A process that dies before its first flush comes back to the weights it was given."""
    bag = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=torch.randn(ROWS, DIM))

    def build(resume: bool) -> te.TieredEmbedding:
        tiers = te.Tiers(dram=640, ssd=te.SSD(str(tmp_path), resume=resume))
        if kind == "_weight":
            return te.TieredEmbedding(ROWS, DIM, _weight=bag.weight.detach(), tiers=tiers)
        if kind == "from_bag":
            return te.TieredEmbedding.from_bag(bag, tiers=tiers)
        return te.convert(bag, tiers=tiers)

    table = build(resume=False)
    del table
    gc.collect()
    bag_before = bag.weight.detach().clone()
    with torch.no_grad():
        bag.weight.zero_()  # a resumed table takes the store's rows, not these
    with build(resume=True) as table:
        assert_same_bits(table.to_dense(), bag_before, "weights")


KILLED = """
    import sys, os, signal, torch
    sys.path.insert(0, {tests!r})
    import test_store
    bag = test_store.open_table({path!r})
    for i in range(10**6):
        test_store.train(bag, 20, seed=i)
        bag.flush()
        print(i, flush=True)
        if i == {last}:
            test_store.train(bag, 7, seed=999)
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("last", [0, 3])
def test_sigkill(last: int, tmp_path: Path) -> None:
    """A killed process leaves its last flush, whatever it wrote since."""
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(tmp_path / "s"), last=last)
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split()[-1] == str(last)
    with open_table(tmp_path / "twin") as twin:
        for i in range(last + 1):
            train(twin, 20, seed=i)
        expected = snapshot(twin)
    with open_table(tmp_path / "s", resume=True) as bag:
        assert_same(bag, expected)
        train(bag, 20, seed=77)


# ---- Damage


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size > 0)


def damaged_kinds(path: Path) -> dict[str, Path]:
    """The largest file of each kind, by its name up to the first digit or dot."""
    kinds: dict[str, Path] = {}
    for file in files_of(path):
        kind = "".join(c for c in file.name if c.isalpha() or c in "-_")
        if kind not in kinds or file.stat().st_size > kinds[kind].stat().st_size:
            kinds[kind] = file
    return kinds


def filled_store(path: Path) -> dict[str, Tensor]:
    with open_table(path) as bag:
        bag.write_rows(range(ROWS), torch.randn(ROWS, DIM))
        train(bag, 60)
        return snapshot(bag)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x40
    file.write_bytes(data)


def test_damage_is_reported_or_harmless(tmp_path: Path) -> None:
    """A flipped bit anywhere is an error that names the store, or it changes nothing."""
    expected = filled_store(tmp_path / "s")
    results = []
    for file in files_of(tmp_path / "s"):
        size = file.stat().st_size
        for at in range(3, size, max(1, size // 5)):
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "s", copy)
            flip(copy / file.relative_to(tmp_path / "s"), at)
            results.append(outcome(copy, expected))
            assert results[-1] in ("refused", "same"), f"{file.name}, byte {at}: {results[-1]}"
            shutil.rmtree(copy)
    assert results.count("refused") >= 3


@pytest.mark.parametrize("how", ["cut", "empty", "gone", "grown"])
def test_damaged_files(how: str, tmp_path: Path) -> None:
    expected = filled_store(tmp_path / "s")
    kinds = damaged_kinds(tmp_path / "s")
    assert len(kinds) >= 3
    for kind, original in kinds.items():
        copy = tmp_path / f"copy-{kind}"
        shutil.copytree(tmp_path / "s", copy)
        file = copy / original.relative_to(tmp_path / "s")
        whole = file.read_bytes()
        if how == "gone":
            file.unlink()
        else:
            content = {"cut": whole[: len(whole) // 2], "empty": b"", "grown": whole + b"\0" * 99}
            file.write_bytes(content[how])
        result = outcome(copy, expected)
        assert result in ("refused", "same"), f"{how} {kind}: {result}"
        if kind.lower().startswith("manifest") and how != "grown":
            assert result == "refused"


def outcome(path: Path, expected: dict[str, Tensor]) -> str:
    """What opening a damaged store gives: "refused", naming it, or the "same" rows."""
    try:
        with open_table(path, resume=True) as bag:
            assert_same(bag, expected)
    except (OSError, ValueError) as error:
        return "refused" if str(path) in str(error) else repr(error)
    except AssertionError:
        return "other rows"
    return "same"


# ---- Endings


def test_use_after_close(tmp_path: Path) -> None:
    bag = open_table(tmp_path)
    train(bag, 5)
    out = bag(torch.tensor([[1, 2]]))
    counted = bag.stats().lookups
    bag.close()
    bag.close()
    calls: list[Callable[[], object]] = [
        lambda: bag(torch.tensor([[1]])),
        lambda: bag.rows([1]),
        lambda: bag.state_rows([1]),
        lambda: bag.write_rows([1], torch.zeros(1, DIM)),
        lambda: bag.to_dense(),
        lambda: bag.flush(),
        lambda: out.sum().backward(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    with torch.no_grad(), pytest.raises(ValueError, match="closed"):
        bag(torch.tensor([[1]]))
    assert bag.stats().lookups == counted
    assert "closed" in repr(bag)


def test_context_manager_closes_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with open_table(tmp_path) as bag:
            train(bag, 5)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    open_table(tmp_path, resume=True).close()


def test_full_store(tmp_path: Path) -> None:
    """A capacity that cannot hold the rows: ENOSPC names it, and what was flushed is safe."""
    tiers = te.Tiers(dram=64 * 64, ssd=te.SSD(str(tmp_path), capacity="512KiB"))
    bag = te.TieredEmbedding(200_000, 16, mode="sum", tiers=tiers, optimizer=te.optim.SGD(0.1))
    bag.write_rows(range(50), torch.ones(50, 16))
    bag.flush()
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        bag.write_rows(range(200_000), torch.full((200_000, 16), 2.0))
    assert caught.value.errno == errno.ENOSPC
    assert bag.rows([199_999]).shape == (1, 16)
    del bag, caught
    gc.collect()
    tiers = te.Tiers(dram=64 * 64, ssd=te.SSD(str(tmp_path), resume=True))
    bag = te.TieredEmbedding(200_000, 16, mode="sum", tiers=tiers, optimizer=te.optim.SGD(0.1))
    assert bag.rows(range(50)).eq(1).all()
    bag.close()


def test_space_is_bounded(tmp_path: Path) -> None:
    """Rewriting the same rows for long does not grow the store."""
    bag = open_table(tmp_path)
    sizes = []
    for _ in range(12):
        for _ in range(50):
            bag.write_rows(range(ROWS), torch.randn(ROWS, DIM))
        bag.flush()
        sizes.append(sum(f.stat().st_size for f in files_of(tmp_path)))
    stats = bag.stats()
    assert stats.ssd_row_written_bytes > 100 * ROWS * 32 // 2
    assert max(sizes[6:]) <= 2 * max(sizes[:3])
    bag.close()


def test_reading_moves_nothing(tmp_path: Path) -> None:
    bag = open_table(tmp_path)
    train(bag, 30)
    before = bag.stats()
    bag.rows(range(ROWS))
    bag.state_rows(range(ROWS))
    after = bag.stats()
    for name in ("resident_rows", "dirty_rows", "rows_filled_from_ssd", "rows_spilled_dirty"):
        assert getattr(before, name) == getattr(after, name), name
    assert before.lookups == after.lookups
    bag.close()


def test_stats_are_json(tmp_path: Path) -> None:
    with open_table(tmp_path) as bag:
        train(bag, 30)
        bag.flush()
        stats = json.loads(json.dumps(bag.stats().as_dict()))
    assert stats["steps"] == 30
    assert stats["lookups"] == 30 * 15
    assert 0 < stats["hit_ratio"] < 1
    assert stats["ssd_written_bytes"] > 0
    assert stats["slots"] == 20
    assert stats["dram_bytes"] <= 640
    assert stats["unique_rows"] <= stats["lookups"]
    filled = stats["rows_filled_from_ssd"] + stats["rows_filled_initial"]
    assert filled == stats["missing_rows"]
    spilled = stats["rows_spilled_dirty"] + stats["rows_spilled_clean"]
    assert stats["resident_rows"] == filled - spilled
