"""`tiered-emb train` end to end: small generated files, real data where it is there, bad input."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tiered_emb as te
from tiered_emb.cli import train as train_command
from tiered_emb.cli.main import main
from tiered_emb.data import DataError, open_data
from tiered_emb.models.dlrm import DLRM
from tiered_emb.models.peer import BagCollection, RowwiseAdagrad

SHARED = Path(
    os.environ.get(
        "TIERED_EMB_SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    )
)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 samples whose label depends on user, shop and a dense feature; with a list column."""
    rng = np.random.default_rng(5)
    n = 2000
    user, shop = rng.integers(0, 200, n), rng.integers(0, 30, n)
    x = rng.normal(size=n)
    score = np.sin(user) + np.cos(shop * 3) + 0.7 * x
    table = pa.table(
        {
            "when": np.sort(rng.integers(0, 10_000, n)),
            "user": user,
            "shop": [f"shop {s}" for s in shop],
            "basket": np.arange(n) // 4,
            "tags": [rng.integers(0, 50, k).tolist() for k in rng.integers(0, 5, n)],
            "x": x,
            "click": (rng.random(n) < 1 / (1 + np.exp(-2 * score))).astype(np.int64),
        }
    )
    path = tmp_path_factory.mktemp("clicks") / "clicks.parquet"
    pq.write_table(table, path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    threads = [] if "--threads" in arguments else ["--threads", "1"]  # tiny models, shared cores
    status = main(["train", *(str(a) for a in arguments), *threads])
    out, err = capsys.readouterr()
    return status, out, err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail; gives the one line it says."""
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("tiered-emb train: error: ")
    return lines[0]


COLUMNS = ["--label", "click", "--time", "when"]
ALL = [*COLUMNS, "--cross", "user,shop:3000", "--cross", "user,tags:3000"]
ALL += ["--bag", "user,shop:basket:2000"]


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise-adagrad", "adam"])
def test_small_dram_is_exact_and_equals_the_peer(
    clicks: Path, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    sizes = ["--dim", 8, "--batch-size", 64, "--epochs", 2, "--optimizer", optimizer]
    result = run_json(
        capsys, clicks, *ALL, *sizes, "--dram", "40%", "--peer", "--compare-dram", "100%"
    )
    tiered, peer, whole = result["runs"]
    assert result["identical"] is True
    assert result["rows_compared"] == sum(result["tables_rows"].values())
    assert tiered["test_auc"] == whole["test_auc"]
    assert abs(tiered["test_auc"] - peer["test_auc"]) < 1e-3
    assert abs(tiered["train_loss"] - peer["train_loss"]) < 1e-3
    assert tiered["tiers"]["ssd_row_written_bytes"] > 0  # though the drive may not have them yet
    assert tiered["tiers"]["hit_ratio"] < 1
    assert peer["tiers"] is None
    assert result["samples_train"] + result["samples_test"] == 2000


def test_it_learns_and_prints_a_table(clicks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(
        capsys, clicks, *COLUMNS, "--epochs", 8, "--batch-size", 32, "--dram", "50%", "--peer"
    )
    assert status == 0
    assert "progress" not in err
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert float(lines["test AUC"].split()[2]) > 0.75
    for name in ("train loss", "test logloss", "samples/s", "dram: hit ratio", "ssd: written"):
        assert name in lines
    assert "nn.EmbeddingBag" in out
    table = out.splitlines()[3:]
    widths = {len(line) for line in table[: table.index("")]}
    assert len(widths) <= 2  # aligned


def test_same_seed_same_numbers_and_the_store_stays_where_asked(
    clicks: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = run_json(capsys, clicks, *ALL, "--dram", "60%", "--ssd", tmp_path / "store")
    assert any((tmp_path / "store").iterdir())
    again = run_json(capsys, clicks, *ALL, "--threads", 2, "--dram", "70%")
    other = run_json(capsys, clicks, *ALL, "--seed", 1)
    assert first["runs"][0]["test_auc"] == again["runs"][0]["test_auc"]
    assert first["runs"][0]["test_auc"] != other["runs"][0]["test_auc"]
    message = fails(capsys, clicks, *ALL, "--dram", "60%", "--ssd", tmp_path / "store")
    assert str(tmp_path / "store") in message


def test_temporary_stores_are_removed(
    clicks: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_json(capsys, clicks, *ALL, "--dram", "50%", "--steps", 3)
    fails(capsys, clicks, *ALL, "--dram", "2KiB")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_rows(clicks: Path, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    result = run_json(
        capsys, clicks, *ALL, "--dtype", dtype, "--dram", "50%", "--compare-dram", "100%"
    )
    assert result["identical"] is True


def test_random_split_and_steps(clicks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(
        capsys, clicks, *COLUMNS, "--split", "random", "--test-fraction", 0.3, "--steps", 5,
        "--order", "time", "--batch-size", 10,
    )  # fmt: skip
    assert result["runs"][0]["steps"] == 5
    assert result["runs"][0]["samples"] == 50
    assert 450 < result["samples_test"] < 750


def criteo_lines(n: int) -> list[str]:
    rng = np.random.default_rng(2)
    lines = []
    for _ in range(n):
        ids = rng.integers(0, 40, 26)
        label = int(ids[0] % 2) if rng.random() < 0.9 else 1 - int(ids[0] % 2)
        dense = [str(v) if v > 0 else "" for v in rng.integers(-1, 90, 13)]
        lines.append(
            "\t".join([str(label), *dense, *[f"{v * 2654435761 % 2**32:08x}" for v in ids]])
        )
    return lines


def test_criteo_gz_trains_and_counts_bad_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = criteo_lines(1500)
    path = tmp_path / "day_0.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    options = ["--hash-rows", 500, "--batch-size", 50, "--epochs", 5, "--dram", "50%"]
    result = run_json(capsys, path, *options)
    assert result["runs"][0]["test_auc"] > 0.75
    assert result["tables_rows"] == {f"C{i}": 500 for i in range(1, 27)}

    lines[700] = "1\tbroken"
    plain = tmp_path / "day_1"
    plain.write_text("\n".join(lines))
    assert f"{plain}:701: 2 fields; expected 40" in fails(capsys, plain, *options)
    status, out, _ = run(capsys, plain, *options, "--skip-bad-lines")
    assert status == 0
    assert "1 malformed lines left out" in out


def test_bad_input_is_one_line_and_status_2(
    clicks: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert "no such file" in fails(capsys, tmp_path / "absent.parquet")
    assert "not a readable Parquet" in fails(capsys, tmp_path / "broken.parquet")
    assert "no column 'clicked'; it has when, user" in fails(capsys, clicks, "--label", "clicked")
    assert "no column 'label' (say which" in fails(capsys, clicks)
    assert "label 'user' at row" in fails(capsys, clicks, "--label", "user")
    assert "no column 'z'" in fails(capsys, clicks, *COLUMNS, "--cross", "user,z")
    assert "at least two columns" in fails(capsys, clicks, *COLUMNS, "--cross", "user")
    assert "must be a column of numbers" in fails(capsys, clicks, *COLUMNS, "--dense", "shop")
    assert "--dram 0%" in fails(capsys, clicks, *COLUMNS, "--dram", "0%")
    assert "--dram lots" in fails(capsys, clicks, *COLUMNS, "--dram", "lots")
    assert "bytes" in fails(capsys, clicks, *COLUMNS, "--dram", "1KiB")
    assert "--batch-size" in fails(capsys, clicks, *COLUMNS, "--batch-size", "0")
    assert "invalid choice" in fails(capsys, clicks, *COLUMNS, "--optimizer", "lion")
    assert "unrecognized arguments: 1" in fails(capsys, clicks, 1)
    assert "unrecognized arguments: --nonsense" in fails(capsys, clicks, "--nonsense")
    assert "between 0 and 1" in fails(capsys, clicks, *COLUMNS, "--test-fraction", "1.5")
    assert "'-1' is not a whole number" in fails(capsys, clicks, *COLUMNS, "--seed", "-1")
    assert "lr must not be negative" in fails(capsys, clicks, *COLUMNS, "--lr", "-1")
    assert "lower --lr" in fails(capsys, clicks, *COLUMNS, "--lr", "1e30", "--optimizer", "sgd")
    (tmp_path / "file").write_text("")
    message = fails(capsys, clicks, *COLUMNS, "--dram", "50%", "--ssd", tmp_path / "file")
    assert "file" in message


def test_missing_data_set_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    message = fails(capsys, "movielens-100k")
    assert message.endswith("install them: pip install --no-deps recbole==1.2.1")
    assert message.count("pip install") == 1


def test_help_fits_a_screen_and_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert len(lines) <= 50
    assert max(len(line) for line in lines) <= 88
    assert lines[-1].startswith("example: tiered-emb train ")


def test_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert train_command.SUMMARY in capsys.readouterr().out
    assert main(["nonsense"]) == 2
    assert "no command 'nonsense'" in capsys.readouterr().err
    assert main([]) == 2


def test_dlrm_is_its_definition() -> None:
    """Against the interaction written out pair by pair."""
    torch.manual_seed(1)
    tables = {"a": 5, "b": 6, "c": 7}
    peer = BagCollection(tables, dim=4)
    model = DLRM(peer, list(tables), 4, dense_features=2, bottom=(8,), top=(8,))
    dense = torch.randn(3, 2)
    ids = {"a": torch.tensor([0, 1, 2]), "b": torch.tensor([3, 4, 5])}
    batch = {**ids, "c": (torch.tensor([1, 2, 6, 0]), torch.tensor([0, 2, 2]))}
    vectors = [model.bottom(dense), *peer(batch).values()]
    dots = [(vectors[i] * vectors[j]).sum(1) for i in range(4) for j in range(i)]
    expected = model.top(torch.cat([vectors[0], torch.stack(dots, dim=1)], dim=1)).squeeze(1)
    torch.testing.assert_close(model(dense, batch), expected)
    assert len(list(model.dense_parameters())) == 8


def test_dlrm_without_dense_features() -> None:
    model = DLRM(BagCollection({"a": 5}, dim=4), ["a"], 4, dense_features=0)
    assert model(torch.zeros(2, 0), {"a": torch.tensor([0, 1])}).shape == (2,)


def test_rowwise_adagrad_of_the_peer_is_the_tables() -> None:
    table = te.Table("a", 20, 4, mode="sum", init=te.init.Uniform(-1, 1))
    tiered = te.TieredEmbeddingCollection([table], optimizer=te.optim.RowwiseAdagrad(lr=0.1))
    with tiered:
        peer = BagCollection({"a": 20}, dim=4)
        peer.set_weight("a", tiered.to_dense("a"))
        optimizer = RowwiseAdagrad(peer.parameters(), lr=0.1)
        ids, offsets = torch.tensor([1, 2, 1, 7]), torch.tensor([0, 2])
        for _ in range(3):
            for part in (tiered, peer):
                part({"a": (ids, offsets)})["a"].pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ours, theirs = tiered.to_dense("a"), peer.bags[0].weight.detach()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- Real data


def shared_file(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set TIERED_EMB_SHARED_DATA to the folder that holds {name}")
    return path


def check_exact_and_beside_peer(result: dict[str, Any], auc_min: float) -> None:
    tiered, peer = result["runs"][:2]
    assert result["identical"] is True
    assert abs(result["auc_difference"]) < 1e-3
    assert tiered["test_auc"] > auc_min
    assert peer["test_auc"] > auc_min
    assert tiered["tiers"]["ssd_row_written_bytes"] > 0  # though the drive may not have them yet


COMPARISON = ["--dram", "10%", "--peer", "--compare-dram", "100%"]


@pytest.mark.slow
def test_movielens_demo(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        open_data("movielens-100k")
    except DataError as error:
        pytest.skip(str(error))
    check_exact_and_beside_peer(run_json(capsys, "movielens-100k", *COMPARISON), 0.69)


@pytest.mark.slow
def test_online_retail(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(
        capsys, shared_file("online_retail.parquet"), *COMPARISON,
        "--label", "y_repeat", "--unlabelled", 255, "--time", "minute", "--train-from", 259200,
        "--cross", "customer,sku:500000", "--bag", "customer,sku:invoice:500000",
        "--order", "time", "--steps", 300,
    )  # fmt: skip
    assert result["samples_train"] > 400_000
    check_exact_and_beside_peer(result, 0.6)


@pytest.mark.slow
def test_nycflights(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(
        capsys, shared_file("nycflights.parquet"), *COMPARISON, "--label", "y_late15",
        "--dense", "sched_dep_minute,distance",
        "--categorical", "carrier,flight,tailnum,origin,dest,month,hour,dow",
        "--cross", "tailnum,dest:60000", "--cross", "flight,month:40000",
    )  # fmt: skip
    check_exact_and_beside_peer(result, 0.61)
