"""A benchmark's report, and what its figures depend on: machine, versions, commit, command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> dict[str, object]:
    """What this computer is: processor, cores, memory, kernel."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a figure."""
    packages = {name: version(name) for name in ("torch", "numpy", "tiered-emb")}
    return {"python": platform.python_version(), **packages}


def now_text() -> str:
    """The time, in UTC and to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def provenance(
    script: str, argv: Sequence[str] | None, program: str | None = None
) -> dict[str, object]:
    """The head of a benchmark's JSON report.

    Args:
        script: the benchmark's `__file__`. The commit is that of the checkout that it belongs to;
            None where it belongs to none, as in an installed package.
        argv: its arguments; None: those of the process.
        program: what was called with them; None: Python with the script.
    """
    is_tracked = _git(script, "ls-files", "--error-unmatch", Path(script).name) is not None
    arguments = list(sys.argv[1:] if argv is None else argv)
    for place in ("--out", "--dir"):  # paths of one machine say nothing to others
        if place in arguments:
            at = arguments.index(place)
            del arguments[at : at + 2]
    return {
        "machine": machine(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "commit": _git(script, "rev-parse", "HEAD") if is_tracked else None,
        "commit_changed": is_tracked and bool(_git(script, "status", "--porcelain", "-uno")),
        "date": now_text(),
        "command": " ".join([program or f"python benchmarks/{Path(script).name}", *arguments]),
    }


def _git(script: str, *arguments: str) -> str | None:
    """What git prints about the folder of a script; None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(script).parent), *arguments], capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_report(path: Path | None, report: Mapping[str, object]) -> None:
    """Writes a report as JSON; None: nowhere."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")
