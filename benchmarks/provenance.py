"""A benchmark's report, and what its figures depend on: machine, versions, commit, command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch


def provenance(script: str, argv: list[str] | None) -> dict[str, object]:
    """The head of a benchmark's JSON report.

    Args:
        script: the benchmark's `__file__`.
        argv: its arguments; None: those of the process.
    """
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    git = ["git", "-C", str(Path(script).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    for place in ("--out", "--dir"):  # paths of one machine say nothing to others
        if place in arguments:
            at = arguments.index(place)
            del arguments[at : at + 2]
    return {
        "machine": {
            "cpu": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "tiered-emb")},
        },
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
        "commit_changed": bool(changed.stdout.strip()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(script).name}", *arguments]),
    }


def write_report(path: Path | None, report: Mapping[str, object]) -> None:
    """Writes a report as JSON; None: nowhere."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")
