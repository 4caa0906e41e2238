"""docs/TUNING.md tells the truth: its commands run as they stand, on its own data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tuner_case import know_machine

from tiered_emb.cli.main import main

GUIDE = (Path(__file__).resolve().parent.parent / "docs" / "TUNING.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ tiered-emb ")
    for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ tiered-emb ")
]


def test_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(# clicks\.py.*?)```", GUIDE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    know_machine(monkeypatch)
    exec(compile(snippet, "clicks.py", "exec"), {})
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        assert main(shlex.split(command)) == 0, command
        said = capsys.readouterr().out
        if command.startswith("tune"):
            assert "te.Tiers(" in said
            assert ("A projection" in said) == ("--gpu" in command)
