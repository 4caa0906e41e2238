"""README.md tells the truth: its code runs, and its figures are those of the checked-in results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet: str, tmp_path: Path) -> None:
    code = snippet.replace('"/tmp/', f'"{tmp_path}/')
    assert code != snippet, "a snippet's store lies below /tmp, so that it can be moved here"
    exec(compile(code, "README.md", "exec"), {})


def test_first_snippet_is_ten_lines_and_converts() -> None:
    lines = [line for line in SNIPPETS[0].splitlines() if line.strip()]
    assert len(lines) <= 10
    assert "te.convert(" in SNIPPETS[0]


def checked(script: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), "--check"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_figures_come_from_results() -> None:
    script = ROOT / "benchmarks" / "make_chart.py"
    done = checked(script)
    assert done.returncode == 0, f"run benchmarks/make_chart.py\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [("README.md", " ms |", " us |"), ("docs/rows.svg", "<path ", "<path  ")],
)
def test_a_wrong_figure_is_noticed(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    if file.endswith(".svg") and f"v{matplotlib.__version__}," not in (ROOT / file).read_text():
        pytest.skip("charts are compared by the matplotlib that drew them; pyproject.toml has it")
    for folder in (
        *("benchmarks", "benchmarks/results", "benchmarks/results/bench"),
        *("benchmarks/results/gpu", "docs"),
    ):
        (tmp_path / folder).mkdir()
        for source in (ROOT / folder).glob("*.*"):
            (tmp_path / folder / source.name).write_bytes(source.read_bytes())
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "tests").mkdir()
    compiled = Path("tests", "compiled_kernels.json")
    (tmp_path / compiled).write_bytes((ROOT / compiled).read_bytes())
    changed = tmp_path / file
    changed.write_text(changed.read_text(encoding="utf-8").replace(right, wrong, 1), "utf-8")
    script = tmp_path / "benchmarks" / "make_chart.py"
    done = checked(script)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{changed.name} and the results disagree" in done.stdout


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target
