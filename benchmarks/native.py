"""Builds what benchmarks have in C++: benchmarks/store and benchmarks/kernels."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(target: str, product: str) -> Path:
    """Builds a CMake target if it is not up to date.

    Args:
        target: its name.
        product: its file, relative to the build folder.
    """
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is needed to build {target} of this benchmark")
    folder = ROOT / "build" / "wheel"  # where `make build` has compiled the core already
    if not (folder / "CMakeCache.txt").is_file():
        folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two benchmarks at once, one waits
        _run_cmake(folder, target)
    return folder / product


def _run_cmake(folder: Path, target: str) -> None:
    for command in (
        ["cmake", "-S", str(ROOT / "cpp"), "-B", str(folder), "-G", "Ninja", "-DTE_BENCH=ON",
         "-DCMAKE_BUILD_TYPE=Release", "--log-level=WARNING"],
        ["cmake", "--build", str(folder), "--target", target],
    ):  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
