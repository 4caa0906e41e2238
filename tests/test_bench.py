"""What `tiered-emb bench` computes with: streams, models, bounds; and what it says to bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tiered_emb.bench.bound import (
    DeviceRates,
    MachineRates,
    StepWork,
    account,
    busy,
    efficiency,
    ideal,
    read_seconds,
)
from tiered_emb.bench.contenders import Dense, Training
from tiered_emb.bench.optimum import optimal_misses, optimal_misses_of_batches
from tiered_emb.bench.streams import (
    META_2022_LOOKUPS,
    META_2022_ROWS,
    MetaIds,
    ZipfIds,
)
from tiered_emb.bench.workloads import MODELS, named, resized
from tiered_emb.cli.main import main
from tiered_emb.data.errors import DataError

RATES = MachineRates(
    gather=lambda _: 10e9, update=lambda _: 5e9, reads_per_s=1e5, write_bytes_per_s=1e9
)


def test_a_pass_of_meta_ids_is_reused_as_the_traces_say() -> None:
    rows = 60_000
    stream = MetaIds(rows, "t", 0)
    length = len(stream._pass)
    ids = np.concatenate([stream.draw(1000), stream.draw(length - 1000)])
    uses = np.bincount(ids, minlength=rows)
    assert len(uses) == rows
    bins = np.ceil(np.log2(uses)).astype(np.int64)
    of_rows = np.bincount(bins, minlength=17)[:11] / rows
    of_lookups = np.bincount(bins, uses, minlength=17)[:17] / length
    assert np.abs(of_rows - META_2022_ROWS).max() < 0.006
    assert np.abs(of_lookups - META_2022_LOOKUPS).max() < 0.015  # one row may be 2%
    assert sorted(stream.draw(length)) == sorted(ids)  # the next pass, in another order


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.05, 2.0])
def test_zipf_ids_have_the_popularity_they_should(exponent: float) -> None:
    rows, count = 50, 40_000
    uses = np.bincount(ZipfIds(rows, exponent, "t", 1).draw(count), minlength=rows)
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -exponent
    expected = np.sort(weights / weights.sum() * count)
    assert np.abs(np.sort(uses) - expected).max() < 6 * np.sqrt(expected.max())


def test_published_sizes() -> None:
    kaggle, dcn = named("dlrm-kaggle"), named("dlrm-dcnv2")
    assert (len(kaggle.rows), kaggle.total_rows, kaggle.dim) == (26, 33_762_577, 16)
    assert (len(dcn.rows), dcn.total_rows, dcn.dim) == (26, 204_184_588, 128)
    assert sum(dcn.pooling.values()) == 214


@pytest.mark.parametrize("name", list(MODELS))
def test_batches_are_the_same_for_a_seed_and_fit_the_tables(name: str) -> None:
    load = resized(named(name, 0.01), batch_size=8)
    one, two = (list(islice(load.batches(3), 2)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.dense, b.dense)
        for table, rows in load.rows.items():
            ids, same = (
                v[0] if isinstance(v, tuple) else v for v in (a.sparse[table], b.sparse[table])
            )
            assert torch.equal(ids, same)
            assert len(ids) == 8 * load.pooling[table]
            assert int(ids.min()) >= 0
            assert int(ids.max()) < rows
    layers = Dense(load, Training())
    layers.run(one)
    assert len(layers.steps.seconds) == 2


def work(**changes: float) -> StepWork:
    numbers = {
        "dense_s": 0.010, "lookups": 2e4, "unique_rows": 1e4, "weight_bytes": 100, "row_bytes": 104,
        "trains": True, "optimal_misses": 500.0, "misses": 1000.0, "blocks_read": 2000.0,
        "written_bytes": 4e6,
    }  # fmt: skip
    return StepWork(**{**numbers, **changes})  # type: ignore[arg-type]


def test_the_bound_of_a_step() -> None:
    took = busy(work(), RATES)
    assert took.dram == pytest.approx(1e4 * 100 / 10e9 + 1e4 * 104 / 5e9)
    assert took.ssd == pytest.approx(2000 / 1e5 + 4e6 / 1e9)
    assert took.binding == "ssd"
    assert took.bound == took.ssd
    assert took.without_overlap == pytest.approx(took.dense + took.dram + took.ssd)
    assert busy(work(trains=False), RATES).dram == pytest.approx(1e-4)
    best = ideal(work(), 500)
    assert (best.blocks_read, best.written_bytes) == (500, 500 * 104)
    assert ideal(work(trains=False), 500).written_bytes == 0
    assert busy(ideal(work(), 500), RATES).binding == "layers"


def test_the_bound_of_a_step_on_a_device() -> None:
    """Layers and rows take turns there; the link, dram and the drive work beside it."""
    rates = replace(RATES, device=DeviceRates(hbm=1e12, up=1e9, down=2e9))
    took = busy(work(rows_up=3000.0, rows_down=1000.0), rates)
    assert took.hbm == pytest.approx(1e4 * (100 + 2 * 104) / 1e12)
    assert took.link == pytest.approx(3000 * 104 / 1e9)  # the other way takes less
    assert took.dram == pytest.approx(3000 * 104 / 10e9 + 1000 * 104 / 5e9)
    assert took.bound == took.ssd
    parts = took.dense + took.hbm + took.link + took.dram + took.ssd
    assert took.without_overlap == pytest.approx(parts)
    few = work(
        optimal_misses=0.0, misses=0.0, blocks_read=0.0, written_bytes=0.0,
        rows_up=3000.0, rows_down=1000.0,
    )  # fmt: skip
    assert busy(few, rates).binding == "layers"
    assert busy(few, rates).bound == pytest.approx(took.dense + took.hbm)
    assert busy(replace(few, dense_s=0.0), rates).binding == "link"
    best = ideal(few, 0, 200)
    assert (best.rows_up, best.rows_down) == (200, 200)
    found = efficiency(replace(few, optimal_hbm_misses=200.0, dense_s=0.0), rates, 1e-3, 5e-4)
    assert found.policy == pytest.approx(200 / 3000)  # of the link


def test_neighbouring_blocks_are_one_read() -> None:
    longer = replace(RATES, reads=lambda size: 1e5 if size <= 4096 else 0.8e5)
    assert read_seconds(1000, 0, longer) == 1000 / 1e5
    assert read_seconds(1000, 2000, longer) == pytest.approx(500 / 0.8e5)
    best = ideal(work(store_blocks=100.0), 500)
    assert best.blocks_read == pytest.approx(100 * (1 - np.exp(-5)))


def test_the_factors_of_eta_multiply_to_it() -> None:
    found = efficiency(work(misses=2000.0), RATES, step_s=0.05, busy_s=0.03)
    product = found.policy * found.amplification * found.bandwidth * found.overlap
    assert product == pytest.approx(found.eta)
    assert found.eta == pytest.approx(found.bound_s / 0.05)
    assert found.policy < 1
    assert found.overlap == pytest.approx(0.6)


def test_the_account_says_whether_it_closes() -> None:
    assert account(1.0, {"a": 0.5, "b": 0.46})["closes"]
    assert not account(1.0, {"a": 0.5, "b": 0.4})["closes"]


def test_optimal_misses_of_batches_of_any_length() -> None:
    ids = np.array([0, 1, 2, 0, 3, 1, 1, 0])
    even = np.arange(0, 9, 2)
    first, again = optimal_misses_of_batches(ids, 4, 2, even, 0)
    assert (again, first) == optimal_misses(ids, 4, 2, 2, 0)
    assert first == 4
    # [0 1] [2] [0 3 1 1] [0]: three slots; 2 leaves for 3, nothing is read again.
    uneven = np.array([0, 2, 3, 7, 8])
    assert optimal_misses_of_batches(ids, 4, 3, uneven, 0) == (4, 0)
    assert optimal_misses_of_batches(ids, 4, 3, uneven, 2) == (1, 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dlrm", "nosuch"], "no such file"),
        (["dlrm", "dlrm-small", "--scale", "0"], "--scale"),
        (["dlrm", "dlrm-small", "--dir", "/no/such/place"], "no such directory"),
        (["dlrm", "dlrm-small", "--dram", "1x", "--smoke"], "--dram"),
        (["dlrm", "dlrm-small", "--dram", "1", "--no-peers", "--smoke"], "dram"),
        (["dlrm", "dlrm-small", "--batch-size", "0"], "above 0"),
        (["nosuch"], "no command"),
        (["dlrm", "dlrm-small", "--hbm", "5 apples", "--device", "cpu", "--smoke"], "--hbm"),
        (["dlrm", "dlrm-small", "--device", "cpu", "--smoke"], "only with --hbm"),
        (["lookup", "--only", "nosuch"], "--only"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("tiered-emb bench")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "dlrm", "dlrm-small", "--hbm", "1MiB", "--smoke"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_steps_over_three_tiers(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["dlrm", "dlrm-small", "--hbm", "10%", "--device", "cpu", "--dram", "50%"]
    assert main(["bench", *argv, "--smoke", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"][0]
    tiers, step = run["tiers"], run["contenders"]["tiered"]["a_step"]
    assert tiers["device"] == "emulated by the processor"
    assert 0 < tiers["hbm_slots"] < tiers["slots"]
    assert step["hbm_rows_filled"] > 0
    assert 0 < run["work"]["optimal_hbm_misses"] <= run["work"]["rows_up"]
    assert {"tiered, all in dram", "nn.EmbeddingBag"} < set(run["contenders"])
    assert any("mmap" in name for name in run["left_out"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_of_another_dtype(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the peers, whose optimizer has to take them."""
    assert main(["bench", "dlrm", "dlrm-small", "--dtype", dtype, "--smoke", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"][0]
    assert run["training"]["dtype"] == dtype
    assert {"tiered", "tiered, in line", "nn.EmbeddingBag"} < set(run["contenders"])


def test_a_device_with_less_room_than_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["dlrm", "dlrm-small", "--hbm", "12KiB", "--device", "cpu", "--dram", "50%"]
    assert main(["bench", *argv, "--no-peers", "--smoke", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"][0]
    step, slots = run["contenders"]["tiered"]["a_step"], run["tiers"]["hbm_slots"]
    assert 0 < slots < run["work"]["unique_rows"]
    assert step["hbm_rows_in_dram"] > 0
    assert step["hbm_rows_spilled"] > 0
    # No cache has room for more; this processor's kernels use what has none where it is.
    beyond = run["work"]["unique_rows"] - slots
    assert beyond * 0.95 < run["work"]["optimal_hbm_misses"] < run["work"]["unique_rows"]
    assert run["work"]["rows_up"] == pytest.approx(step["hbm_rows_filled"], rel=0.5)


def test_figures_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "cache", "--smoke", "--rows", "500", "--json", "--out", str(tmp_path)]
    assert main(argv) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "cache.json").read_text())
    for stream in printed["streams"]:
        for point in stream["points"]:
            assert 0 <= point["misses"]["optimum"] <= point["misses"]["lru"] <= 1


def test_models_that_are_none() -> None:
    with pytest.raises(DataError, match="no model"):
        named("dlrm-large")
