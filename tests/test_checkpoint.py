"""`te.save` and `te.load`: one cut of tables, optimizers and dense part, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from same_bits import assert_same_bits
from saved_model import Model, assert_same_state, on_ssd, state_of
from torch import nn

import tiered_emb as te
from tiered_emb.engine import TableEngine

SHARED = Path(__file__).resolve().parent

TIERS = {
    "less dram": lambda folder: on_ssd(folder, "less", 25_000),
    "all in dram": lambda folder: te.Tiers(),
    "all rows fit, with ssd": lambda folder: on_ssd(folder, "fits", 10_000_000),
}


@pytest.mark.parametrize("optimizer", [te.optim.Adagrad, te.optim.Adam, te.optim.RowwiseAdagrad])
@pytest.mark.parametrize("source", ["ssd", "dram"])
def test_loads_into_any_tiers(tmp_path: Path, source: str, optimizer: Any) -> None:
    tiers = on_ssd(tmp_path, "store") if source == "ssd" else te.Tiers()
    model = Model(tiers, optimizer).train_on(1)
    te.save(model, tmp_path / "ck", {"step": 20})
    saved = state_of(model)
    trained = state_of(model.train_on(2))
    for make in TIERS.values():
        other = Model(make(tmp_path), optimizer).train_on(9)
        assert te.load(other, tmp_path / "ck") == {"step": 20}
        assert_same_state(other, saved)
        assert_same_state(other.train_on(2), trained)  # the step counters came along
        other.emb.close()


def test_the_cut_is_the_state_at_the_call(tmp_path: Path) -> None:
    """Training goes on while the checkpoint is written."""
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    wants = []
    for i in range(6):
        wants.append(state_of(model))
        saving = te.save(model, tmp_path / f"ck{i}", i, wait=False)
        model.train_on(2 + i)
        saving.wait()
        assert saving.is_done
    for i, want in enumerate(wants):
        other = Model(on_ssd(tmp_path, "other"))
        assert te.load(other, tmp_path / f"ck{i}") == i
        assert_same_state(other, want)
        other.emb.close()
        te_files = list((tmp_path / "other").iterdir())
        for file in te_files:
            file.unlink()


def test_saves_flushes_and_training_at_once(tmp_path: Path) -> None:
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    errors: list[BaseException] = []

    def save_often(name: str) -> None:
        try:
            for _ in range(5):
                te.save(model, tmp_path / name)
                model.emb.flush()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save_often, args=(f"ck{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(10):
        model.train_on(seed)
    for thread in threads:
        thread.join()
    assert not errors
    te.save(model, tmp_path / "ck0")
    other = Model(te.Tiers())
    te.load(other, tmp_path / "ck0")
    assert_same_state(other, state_of(model))


def test_a_save_costs_what_has_changed(tmp_path: Path) -> None:
    rows, dim = 200_000, 16
    bag = te.TieredEmbedding(
        rows, dim, optimizer=te.optim.SGD(0.1), tiers=on_ssd(tmp_path, "store", 2_000_000)
    )
    for first in range(0, rows, 4000):
        bag.write_rows(torch.arange(first, first + 4000), torch.ones(4000, dim))
    te.save(bag, tmp_path / "ck")

    def written() -> int:
        stats = bag.stats()
        return stats.ssd_written_bytes + stats.ssd_checkpoint_written_bytes

    before = written()
    changed = torch.randperm(rows)[: rows // 100]
    bag.write_rows(changed, torch.zeros(len(changed), dim))
    te.save(bag, tmp_path / "ck")
    row_bytes = len(changed) * (dim * 4)
    assert written() - before <= 1.3 * row_bytes + 40_000  # the manifest names every segment
    stats = bag.stats()
    te.save(bag, tmp_path / "ck")  # nothing has changed
    assert bag.stats().ssd_written_bytes == stats.ssd_written_bytes
    # The files are the store's own.
    segment = next((tmp_path / "ck" / "tables-3-0").glob("segment-*"))
    assert segment.stat().st_ino == (tmp_path / "store" / segment.name).stat().st_ino


def test_old_checkpoints_stay_what_they_were(tmp_path: Path) -> None:
    """Although the store goes on, reclaims their segments, closes and opens again."""
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    wants = []
    for i in range(4):
        te.save(model, tmp_path / f"ck{i}")
        wants.append(state_of(model))
        for seed in range(10):
            model.train_on(10 * i + seed)
    model.emb.close()
    reopened = Model(on_ssd(tmp_path, "store", resume=True))
    reopened.train_on(77)
    reopened.emb.close()
    for i, want in enumerate(wants):
        other = Model(te.Tiers())
        te.load(other, tmp_path / f"ck{i}")
        assert_same_state(other, want)


def test_loading_does_not_touch_the_checkpoint(tmp_path: Path) -> None:
    """Two models share its files, train on and close: it stays, and so does the other."""
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    te.save(model, tmp_path / "ck")
    want = state_of(model)
    model.train_on(2)
    ahead = state_of(model)
    other = Model(on_ssd(tmp_path, "other"))
    te.load(other, tmp_path / "ck")
    for seed in range(20):
        other.train_on(seed)
    other.emb.close()
    assert_same_state(model, ahead)
    third = Model(on_ssd(tmp_path, "third"))
    te.load(third, tmp_path / "ck")
    assert_same_state(third, want)


def test_dense_part_optimizers_and_several_engines(tmp_path: Path) -> None:
    def make() -> nn.ModuleDict:
        torch.manual_seed(3)
        plain = nn.ModuleDict(
            {"one": nn.EmbeddingBag(50, 4), "two": nn.EmbeddingBag(60, 4), "top": nn.Linear(4, 1)}
        )
        model = te.convert(plain, optimizer=te.optim.SGD(0.5))
        assert isinstance(model, nn.ModuleDict)
        model["frozen"] = te.TieredEmbedding(30, 2)
        return model

    model = make()
    model["one"].optimizer.param_groups[0]["lr"] = 0.125
    model["one"](torch.tensor([[1, 2]])).sum().backward()
    with torch.no_grad():
        model["top"].weight.zero_()
    te.save(model, tmp_path / "ck", extra=[1, torch.ones(2)])
    other = make()
    extra = te.load(other, tmp_path / "ck")
    assert extra[0] == 1
    assert extra[1].eq(1).all()
    assert other["one"].optimizer.param_groups[0]["lr"] == 0.125
    for key, value in model.state_dict().items():
        assert_same_bits(other.state_dict()[key], value, key)


def test_not_fused_gradients_do_not_survive_a_load(tmp_path: Path) -> None:
    model = Model(te.Tiers(), te.optim.SGD, fused=False)
    te.save(model, tmp_path / "ck")
    want = state_of(model)
    model.emb({"a": torch.arange(5)})["a"].sum().backward()
    te.load(model, tmp_path / "ck")
    model.emb.optimizer.step()
    assert_same_state(model, want)
    model.emb({"a": torch.arange(5)})["a"].sum().backward()
    model.emb.optimizer.step()
    assert not torch.equal(model.emb.rows("a", range(5)), want["a"][:5])


def test_a_graph_from_before_a_load_is_refused(tmp_path: Path) -> None:
    model = Model(te.Tiers()).train_on(1)
    te.save(model, tmp_path / "ck")
    out = model.emb({"a": torch.arange(5)})["a"]
    te.load(model, tmp_path / "ck")
    want = state_of(model)
    with pytest.raises(ValueError, match="closed"):
        out.sum().backward()
    assert_same_state(model, want)


def test_wrong_models_are_refused_before_anything_changes(tmp_path: Path) -> None:
    te.save(Model(te.Tiers()).train_on(1), tmp_path / "ck")

    class Larger(Model):
        def __init__(self) -> None:
            super().__init__(te.Tiers())
            self.more = nn.Linear(2, 2)

    class Wider(Model):
        def __init__(self) -> None:
            super().__init__(te.Tiers())
            self.mlp = nn.Linear(3, 5)

    cases = [
        (Model(te.Tiers(), te.optim.SGD), "optimizer"),
        (Larger(), "only the model has 'more.bias'"),
        (Wider(), r"'mlp.weight' has shape \(4, 3\), in the model \(5, 3\)"),
        (nn.Linear(2, 2), "1 sets of tables, the model 0"),
    ]
    for model, message in cases:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            te.load(model, tmp_path / "ck")
        for key, value in before.items():
            assert_same_bits(model.state_dict()[key], value, key)


def test_places_that_are_no_checkpoints(tmp_path: Path) -> None:
    model = Model(te.Tiers())
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        te.load(model, tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        te.save(model, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    te.save(model, tmp_path / "ck")
    root = tmp_path / "ck" / "CHECKPOINT"
    good = json.loads(root.read_text())
    root.write_text(json.dumps({**good, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        te.load(model, tmp_path / "ck")
    root.write_text("nonsense")
    with pytest.raises(ValueError, match="not a checkpoint"):
        te.load(model, tmp_path / "ck")
    model.emb.close()
    with pytest.raises(ValueError, match="closed"):
        te.save(model, tmp_path / "closed")


def test_a_damaged_checkpoint_is_reported(tmp_path: Path) -> None:
    te.save(Model(te.Tiers()).train_on(1), tmp_path / "ck")
    segments = (tmp_path / "ck" / "tables-1-0").glob("segment-*")
    segment = next(s for s in segments if s.read_bytes().startswith(b"TEBK"))
    data = bytearray(segment.read_bytes())
    data[1000] ^= 1  # of the first block, which is full
    segment.write_bytes(data)
    with pytest.raises(OSError, match=segment.name):
        te.load(Model(te.Tiers()), tmp_path / "ck")


def test_histories_that_branch_do_not_share_files(tmp_path: Path) -> None:
    """Best and last: back to the best, on from there, over the last of the other history."""
    model = Model(on_ssd(tmp_path, "store"))
    for seed in range(6):
        model.train_on(seed)
    te.save(model, tmp_path / "best")
    for seed in range(10, 16):
        model.train_on(seed)
    te.save(model, tmp_path / "last")
    te.load(model, tmp_path / "best")
    for seed in range(20, 26):
        model.train_on(seed)
    te.save(model, tmp_path / "last")
    want = state_of(model)
    other = Model(te.Tiers())
    te.load(other, tmp_path / "last")
    assert_same_state(other, want)


def test_saves_to_one_path_take_turns(tmp_path: Path) -> None:
    models = [Model(on_ssd(tmp_path, f"store{i}")).train_on(i) for i in range(3)]
    savings = [te.save(model, tmp_path / "ck", i, wait=False) for i, model in enumerate(models)]
    for saving in savings:
        saving.wait()
    other = Model(te.Tiers())
    assert te.load(other, tmp_path / "ck") == 2
    assert_same_state(other, state_of(models[2]))
    assert sorted(p.name for p in (tmp_path / "ck").iterdir()) == [
        "CHECKPOINT", "LOCK", "state-3.pt", "tables-3-0"
    ]  # fmt: skip


def test_a_failed_save_of_several_engines_ends_for_all(tmp_path: Path, monkeypatch: Any) -> None:
    """The last cannot begin, and the first cannot finish: none of them is left waiting."""
    bags = nn.ModuleDict(
        {n: te.TieredEmbedding(500, 8, tiers=on_ssd(tmp_path, n, 100_000)) for n in "abc"}
    )
    bags["c"].close()
    begin = TableEngine.begin_save

    def begin_in_the_way(engine: TableEngine, path: str) -> None:
        begin(engine, path)
        if path.endswith("-0"):
            Path(path).touch()

    monkeypatch.setattr(TableEngine, "begin_save", begin_in_the_way)
    with pytest.raises(ValueError, match="closed"):
        te.save(bags, tmp_path / "ck")
    for bag in bags.values():
        bag.close()  # would wait for the end of a save


MANY_SEGMENTS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import torch
import tiered_emb as te
bag = te.TieredEmbedding(
    300_000, 16, mode="sum", optimizer=te.optim.SGD(0.1),
    tiers=te.Tiers(dram="1MiB", ssd=te.SSD(sys.argv[1] + "/store")),
)
for first in range(0, 300_000, 4000):
    bag(torch.arange(first, first + 4000).unsqueeze(1)).sum().backward()
print(bag.stats().ssd_segments)
bag.flush()
te.save(bag, sys.argv[1] + "/ck")
scattered = torch.randperm(300_000)[:50_000]  # of all segments at once
fresh = te.TieredEmbedding(300_000, 16, mode="sum")
torch.testing.assert_close(bag.rows(scattered), fresh.rows(scattered) - 0.1)
bag.close()
"""


def test_more_segments_than_files_may_be_open(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", MANY_SEGMENTS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 256


def test_a_failed_save_leaves_the_one_before(tmp_path: Path) -> None:
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    te.save(model, tmp_path / "ck")
    want = state_of(model)
    model.train_on(2)
    with pytest.raises(TypeError):
        te.save(model, tmp_path / "ck", extra=(lambda: 0).__code__)  # cannot be pickled
    blocker = tmp_path / "ck" / "tables-2-0"
    blocker.write_text("in the way")
    blocker.chmod(0)
    other = Model(te.Tiers())
    te.load(other, tmp_path / "ck")
    assert_same_state(other, want)
    te.save(model, tmp_path / "ck")  # what was in the way was a leftover to it
    te.load(other, tmp_path / "ck")
    assert_same_state(other, state_of(model))


def test_many_readers_serve_one_store(tmp_path: Path) -> None:
    model = Model(on_ssd(tmp_path, "store")).train_on(1)
    te.save(model, tmp_path / "ck")
    tables = str(tmp_path / "ck" / "tables-1-0")
    before = {p: p.stat().st_mtime_ns for p in Path(tables).iterdir()}
    tiers = te.Tiers(dram=30_000, ssd=te.SSD(tables, resume=True, read_only=True))
    readers = [Model(tiers) for _ in range(2)]
    batch = {"a": torch.arange(0, 3000, 30), "b": torch.arange(100)}
    with torch.no_grad():
        want = model.emb(batch)
        for reader in readers:
            for name, out in reader.emb(batch).items():
                assert_same_bits(out, want[name], name)
    for attempt in (
        lambda: readers[0].emb(batch),
        lambda: readers[0].emb.write_rows("a", [1], torch.zeros(1, 16)),
        lambda: te.load(readers[0], tmp_path / "ck"),
        lambda: te.save(readers[0], tmp_path / "ck2"),
    ):
        with pytest.raises(ValueError, match="reading only"):
            attempt()
    for reader in readers:
        reader.emb.flush()
        reader.emb.close()
    assert {p: p.stat().st_mtime_ns for p in Path(tables).iterdir()} == before
    with pytest.raises(ValueError, match="without resume=True"):
        te.SSD("x", read_only=True)


def test_a_reader_that_renormalises_writes_nothing(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"max_norm": 0.5, "optimizer": te.optim.SGD(0.1), "name": "t"}
    with te.TieredEmbedding(2000, 8, tiers=on_ssd(tmp_path, "store", 9000), **kwargs) as bag:
        bag.write_rows(range(2000), torch.randn(2000, 8))
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "store").iterdir()}
    tiers = on_ssd(tmp_path, "store", 9000, resume=True, read_only=True)
    reader = te.TieredEmbedding(2000, 8, tiers=tiers, **{**kwargs, "optimizer": te.optim.SGD(1)})
    with torch.no_grad():
        for _ in range(3):
            for first in range(0, 2000, 100):  # far more rows than dram holds
                out = reader(torch.arange(first, first + 100).unsqueeze(1))
                assert (out.norm(dim=1) <= 0.5001).all()
    reader.close()
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "store").iterdir()}
    assert after == before


def test_kills_leave_a_completed_checkpoint(tmp_path: Path) -> None:
    """SIGKILL while a child trains, flushes and saves.

    TIERED_EMB_KILLS=1000 pytest --timeout 0 tests/test_checkpoint.py -k kills
    """
    kills = os.environ.get("TIERED_EMB_KILLS", "15")
    done = subprocess.run(
        [sys.executable, "-I", str(SHARED / "kill_loop.py"), str(tmp_path), kills],
        capture_output=True,
        text=True,
        timeout=120 + 5 * int(kills),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout
    assert int(done.stdout.split("last checkpoint: step ")[1].split()[0]) > 20
