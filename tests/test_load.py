"""`te.load`: all tables or none, and a kill at any moment leaves the old store or the new one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_model import Model, assert_same_state, on_ssd, run_script, state_of
from torch import nn

import tiered_emb as te
from tiered_emb import store_swap


def incomplete(checkpoint: Path) -> None:
    """As after a copy of a checkpoint that somebody stopped."""
    next(checkpoint.glob("tables-1-0/segment-*")).unlink()


def damaged(checkpoint: Path) -> None:
    """One bit of a full block is another one."""
    segments = checkpoint.glob("tables-1-0/segment-*")
    segment = next(s for s in segments if s.read_bytes().startswith(b"TEBK"))
    data = bytearray(segment.read_bytes())
    data[1000] ^= 1
    segment.unlink()  # the store has it too
    segment.write_bytes(data)


def folder_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    ("place", "harm"), [("ssd", incomplete), ("dram", incomplete), ("dram", damaged)]
)
def test_a_load_that_fails_changes_nothing(tmp_path: Path, place: str, harm: Any) -> None:
    tiers = on_ssd(tmp_path, "store") if place == "ssd" else te.Tiers()
    model = Model(tiers).train_on(1)
    te.save(model, tmp_path / "ck")
    model.train_on(2)
    want = state_of(model)
    harm(tmp_path / "ck")
    with pytest.raises(OSError, match="segment-"):
        te.load(model, tmp_path / "ck")
    assert_same_state(model, want)
    model.train_on(3)
    if place == "ssd":
        want = state_of(model)
        model.emb.close()
        assert folder_names(tmp_path / "store") == set()
        assert_same_state(Model(on_ssd(tmp_path, "store", resume=True)), {**want, **dense(model)})


def dense(model: Model) -> dict[str, torch.Tensor]:
    """What a fresh model has instead."""
    fresh = Model(te.Tiers())
    return {"mlp": fresh.mlp.weight.detach(), "seen": fresh.seen}


def two_engines(folder: Path, **kwargs: Any) -> nn.ModuleList:
    return nn.ModuleList(
        te.TieredEmbedding(500, 8, tiers=on_ssd(folder, name, **kwargs), name=name) for name in "ab"
    )


@pytest.mark.parametrize("step", ["copy", "commit"])
def test_all_engines_are_loaded_or_none(tmp_path: Path, monkeypatch: Any, step: str) -> None:
    """The second cannot be copied, or not be made the store."""
    bags = two_engines(tmp_path)
    te.save(bags, tmp_path / "ck")
    for bag in bags:
        bag.write_rows(range(500), torch.ones(500, 8))
    if step == "copy":
        shutil.rmtree(tmp_path / "ck" / "tables-1-1")
        (tmp_path / "ck" / "tables-1-1").mkdir()
    else:
        sync = store_swap.sync_directory

        def fail(folder: Path) -> None:
            sync(folder)
            if (folder / "LOADED").exists() and folder.name == "b":
                monkeypatch.undo()
                raise OSError("the disk fails")

        monkeypatch.setattr(store_swap, "sync_directory", fail)
    with pytest.raises((OSError, ValueError)):
        te.load(bags, tmp_path / "ck")
    for bag in bags:
        assert bag.to_dense().eq(1).all()
        bag.close()
    for bag in two_engines(tmp_path, resume=True):
        assert bag.to_dense().eq(1).all()
    assert folder_names(tmp_path / "a") | folder_names(tmp_path / "b") == set()


def test_a_store_that_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Is not opened for writing, by whatever name, nor are checkpoints made around an open one."""
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    te.save(model, tmp_path / "ck")
    want = state_of(model)
    (tmp_path / "link").symlink_to(tmp_path / "ck" / "tables-1-0")
    for name in ("ck/tables-1-0", "link", "ck"):
        with pytest.raises(ValueError, match=r"ck is a checkpoint"):
            Model(on_ssd(tmp_path, name, resume=name != "ck"))
    reader = te.SSD(tmp_path / "ck" / "tables-1-0", resume=True, read_only=True)
    assert_same_state(Model(te.Tiers(dram="64KiB", ssd=reader)), {**want, **dense(model)})
    te.load(model, tmp_path / "ck")
    assert_same_state(model, want)

    inside = Model(on_ssd(tmp_path, "later/tables-1-0")).train_on(1)
    with pytest.raises(ValueError, match=r"is a part of the checkpoint .*later"):
        te.save(inside, tmp_path / "later")
    with pytest.raises(OSError):
        te.save(model, tmp_path / "later")  # its tables would take that place
    inside.train_on(2).emb.flush()


def test_a_load_that_cannot_be_undone_closes_the_tables(tmp_path: Path, monkeypatch: Any) -> None:
    """Else they would go on with a store that the next open replaces."""
    bags = two_engines(tmp_path)
    te.save(bags, tmp_path / "ck")

    def fail(*_: Any) -> None:
        raise OSError("the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(bags[1]._engine, "commit_load", fail)
        patch.setattr(store_swap.StoreSwap, "cancel", fail)
        with pytest.raises(OSError, match="the disk fails"):
            te.load(bags, tmp_path / "ck")
    for bag in bags:
        with pytest.raises(ValueError, match="closed"):
            bag.write_rows(range(500), torch.ones(500, 8))
    for bag in two_engines(tmp_path, resume=True):
        bag.close()


def test_folders_of_others_stay(tmp_path: Path) -> None:
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    te.save(model, tmp_path / "ck")
    for name in ("LOADING", "LOADED"):
        (tmp_path / "store" / name).mkdir()
        (tmp_path / "store" / name / "notes.txt").write_text("mine")
        with pytest.raises(OSError):
            te.load(model, tmp_path / "ck")
        assert (tmp_path / "store" / name / "notes.txt").read_text() == "mine"
        (tmp_path / "store" / name / "notes.txt").unlink()
        (tmp_path / "store" / name).rmdir()
    te.load(model, tmp_path / "ck")


def test_leftovers_of_a_killed_load(tmp_path: Path) -> None:
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    te.save(model, tmp_path / "ck")
    want = state_of(model)
    store = tmp_path / "store"

    def leave() -> None:
        (store / "LOADING").mkdir()
        (store / "LOADING" / "segment-00000000").write_bytes(b"half")

    leave()
    te.load(model, tmp_path / "ck")
    assert folder_names(store) == set()
    leave()
    model.emb.close()
    te.load(model, tmp_path / "ck")  # of closed tables
    assert_same_state(model, want)
    model.emb.close()
    leave()
    assert_same_state(Model(on_ssd(tmp_path, "store", resume=True)), {**want, **dense(model)})
    assert folder_names(store) == set()


def test_a_store_that_is_being_replaced(tmp_path: Path) -> None:
    """Readers are told; another process that would write is refused, or ends the load."""
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    te.save(model, tmp_path / "ck")
    want = state_of(model)
    model.train_on(2).emb.flush()
    engine = model.emb._engine
    engine.prepare_load(str(tmp_path / "ck" / "tables-1-0"))
    engine.commit_load()
    with pytest.raises(OSError, match="open elsewhere"):
        Model(on_ssd(tmp_path, "store", resume=True))
    engine.discard()
    with pytest.raises(ValueError, match=r"store/LOADED.*resume=True"):
        Model(on_ssd(tmp_path, "store", resume=True, read_only=True))
    second = Model(on_ssd(tmp_path, "store", resume=True))
    assert_same_state(second, {**want, **dense(model)})
    with pytest.raises(OSError, match=r"store/LOADED.*open elsewhere"):
        engine.finish_load(str(tmp_path / "ck" / "tables-1-0"))
    assert engine.is_closed


def test_files_of_others_stay(tmp_path: Path) -> None:
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    (tmp_path / "store" / "notes.txt").write_text("mine")
    te.save(model, tmp_path / "store" / "ck")
    want = state_of(model)
    model.train_on(2)
    te.load(model, tmp_path / "store" / "ck")
    assert_same_state(model, want)
    assert (tmp_path / "store" / "notes.txt").read_text() == "mine"
    assert folder_names(tmp_path / "store") == {"ck"}


KILLED_LOADS = """
import os, shutil, sys, warnings
import torch
import tiered_emb as te
warnings.simplefilter("ignore")
torch.set_num_threads(1)
te.set_num_threads(1)
folder = sys.argv[1]
store = folder + "/store"
changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.flock"}

def bag(resume):
    tiers = te.Tiers(dram=9000, ssd=te.SSD(store, resume=resume))
    return te.TieredEmbedding(2000, 16, tiers=tiers)

def prepare():
    with bag(False) as table:
        table.write_rows(range(2000), torch.ones(2000, 16))
        te.save(table, folder + "/ck")
        table.write_rows(range(2000), torch.zeros(2000, 16))

def load(kill_at):
    steps = 0
    def count(event, args):
        nonlocal steps
        if event in changes:
            if steps == kill_at:
                os._exit(9)
            steps += 1
    table = bag(True)
    sys.addaudithook(count)
    te.load(table, folder + "/ck")
    os._exit(0)

def check():
    rows = bag("newest").to_dense()  # would find whatever old segments were left
    os._exit(int(rows[0, 0]) if rows.eq(rows[0, 0]).all() else 99)

def status(function, *args):
    child = os.fork()
    if child == 0:
        try:
            function(*args)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

te.TieredEmbedding(10, 4)(torch.arange(4).view(1, 4))
prepare()
shutil.copytree(store, folder + "/old")
kill_at, seen = 0, []
while True:
    shutil.rmtree(store)
    shutil.copytree(folder + "/old", store)
    killed = status(load, kill_at)
    seen.append(status(check))
    if killed == 0:
        break
    assert killed == 9, killed
    kill_at += 1
print("".join(map(str, seen)))
"""


def test_a_kill_at_any_step_leaves_the_old_store_or_the_new_one(tmp_path: Path) -> None:
    """Before each change of the file system that the package makes by itself."""
    seen = run_script(KILLED_LOADS, tmp_path).strip()
    assert set(seen) == {"0", "1"}, seen
    assert seen == "".join(sorted(seen)), "the new store stays once it is there"
    assert seen.count("1") > 10
