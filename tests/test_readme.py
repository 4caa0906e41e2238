"""README.md tells the truth: its code runs, and its figures are those of the checked-in results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet: str, tmp_path: Path) -> None:
    code = snippet.replace('"/tmp/', f'"{tmp_path}/')
    assert code != snippet, "a snippet's store lies below /tmp, so that it can be moved here"
    names = {"model": nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 1))}
    exec(compile(code, "README.md", "exec"), names)


def test_first_snippet_is_ten_lines_and_converts() -> None:
    lines = [line for line in SNIPPETS[0].splitlines() if line.strip()]
    assert len(lines) <= 10
    assert "te.convert(" in SNIPPETS[0]


def test_figures_come_from_results() -> None:
    script = ROOT / "benchmarks" / "make_chart.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run benchmarks/make_chart.py: README.md is out of date\n{done}"


def test_a_wrong_figure_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "repo"
    for folder in ("benchmarks", "benchmarks/results"):
        (copy / folder).mkdir(parents=True, exist_ok=True)
        for file in (ROOT / folder).glob("*.*"):
            (copy / folder / file.name).write_bytes(file.read_bytes())
    (copy / "README.md").write_text(README.replace(" ms |", " us |", 1), encoding="utf-8")
    script = copy / "benchmarks" / "make_chart.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 1


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target
