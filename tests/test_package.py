"""The installed package: its metadata, and that it stands on its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import tiered_emb

ROOT = Path(__file__).resolve().parent.parent

# Imports the package in a fresh interpreter and prints every file that was opened meanwhile.
IMPORT_AND_LIST_FILES = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import tiered_emb, tiered_emb._core
print(json.dumps({"opened": opened, "modules": list(sys.modules)}))
"""


@pytest.fixture(scope="module")
def fresh_import(tmp_path_factory: pytest.TempPathFactory) -> dict:
    done = subprocess.run(
        [sys.executable, "-I", "-c", IMPORT_AND_LIST_FILES],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tests_see_the_installed_package() -> None:
    package = Path(tiered_emb.__file__).parent
    assert package != ROOT / "tiered_emb", "run .venv/bin/pytest, not python -m pytest"


def test_metadata() -> None:
    package = metadata.metadata("tiered-emb")
    assert package["Version"] == tiered_emb.__version__
    assert package["License-Expression"] == "Apache-2.0"
    assert set(package.get_all("Provides-Extra")) == {"fbgemm", "bench", "demo", "dev"}
    required = {
        line.split(">")[0] for line in package.get_all("Requires-Dist") if "extra" not in line
    }
    assert required == {"torch", "numpy", "numba", "pyarrow", "tqdm"}


def test_wheel_contents() -> None:
    files = [Path(str(file)) for file in metadata.files("tiered-emb")]
    names = {file.as_posix() for file in files}
    assert "tiered_emb/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert sum(file.suffix == ".so" for file in files) == 1
    tops = {file.parts[0] for file in files if file.suffix in {".py", ".so", ".h", ".cc"}}
    assert tops == {"tiered_emb"}, "the wheel holds the package and nothing else"


def test_entry_point_is_there() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="tiered-emb")
    assert callable(script.load())


def test_import_reads_nothing_of_the_checkout(fresh_import: dict) -> None:
    """No file of the repository or of the `shared` folder beside it, .venv aside."""
    beside = (ROOT.parent / "shared", *(path for path in ROOT.iterdir() if path.name != ".venv"))
    opened = {Path(name) for name in fresh_import["opened"] if name.startswith("/")}
    inside = [path for path in opened if any(path.is_relative_to(folder) for folder in beside)]
    assert not inside


def test_import_is_light(fresh_import: dict) -> None:
    """Optional and slow packages are imported by what uses them."""
    heavy = {"fbgemm_gpu", "pandas", "matplotlib"} & set(fresh_import["modules"])
    assert not heavy
