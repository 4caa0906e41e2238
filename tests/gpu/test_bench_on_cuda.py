"""`tiered-emb bench dlrm` with its layers and the first tier on a CUDA device."""

from __future__ import annotations

import json

import pytest
import torch

from tiered_emb.cli.main import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is present")


@pytest.mark.parametrize("does", [[], ["--inference"]])
def test_steps_over_three_tiers(does: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["dlrm", "dlrm-small", "--hbm", "10%", "--dram", "50%", *does]
    assert main(["bench", *argv, "--smoke", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"][0]
    assert run["tiers"]["device"] == torch.cuda.get_device_name()
    assert run["contenders"]["tiered"]["a_step"]["hbm_rows_filled"] > 0
    assert {"layers alone", "tiered, all in dram", "nn.EmbeddingBag"} < set(run["contenders"])
    for contender in run["contenders"].values():
        assert 0 < contender["step_ms"]["p50"] < 1e4
    assert 0 < run["efficiency"]["eta"] < 1.5
