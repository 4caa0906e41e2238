"""A report of benchmarks: one self-contained HTML file and its charts as PNG, from JSON alone.

    write_report_of(["out/dlrm.json", "out/limits.json"], "out")    # out/report.html, out/*.png

`shapes` reads and checks the JSON, `machine`, `steps`, `studies` and `wall` make a section of each
benchmark out of it, `tune` one of what the tuner found, `drawing` draws and `page` writes. What has
no input is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiered_emb.bench.report import drawing, machine, page, shapes, steps, studies, tune, wall
from tiered_emb.bench.report.parts import Report, Section, source_line
from tiered_emb.data.errors import DataError

REPORT_NAME = "report.html"


def write_report_of(inputs: Sequence[str | Path | Mapping[str, Any]], out_dir: str | Path) -> Path:
    """Writes `report.html` and PNG charts into a directory, which is made where it is absent.

    Args:
        inputs: JSON files of `tiered-emb bench` or `tune`, or what is in such a file.

    Returns:
        The path of the HTML file.

    Raises:
        DataError: an input is damaged or is no such report; or matplotlib is absent.
    """
    reports: list[Report] = []
    for given in inputs:
        if isinstance(given, str | Path):
            reports += shapes.read(Path(given))
        else:
            reports += shapes.checked(given, "report")
    if not reports:
        raise DataError("no reports given")
    drawing.require()
    sections = sections_of(reports)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    images: dict[str, bytes] = {}
    for section in sections:
        for chart in section.charts:
            images[chart.name] = drawing.render(chart, " / ".join(section.sources))
            (out / f"{chart.name}.png").write_bytes(images[chart.name])
    path = out / REPORT_NAME
    smoke = any(r.get("smoke") or (r.get("limits") or {}).get("smoke") for r in reports)
    machines = list(dict.fromkeys(source_line(report).split(";")[0] for report in reports))
    path.write_text(page.html(sections, images, smoke, machines), encoding="utf-8")
    return path


def files_in(directory: Path) -> list[Path]:
    """The files that `tiered-emb tune` and subcommands of `bench` write into a directory."""
    return [path for name in shapes.NAMES if (path := directory / f"{name}.json").is_file()]


def sections_of(reports: Sequence[Report]) -> list[Section]:
    """The sections, in the order of a report, with charts of different names."""
    kinds: dict[str, list[Report]] = {name: [] for name in shapes.NAMES}
    for report in reports:
        kinds[report["benchmark"]].append(report)
    sections = [
        machine.section(report, [group.main for group in steps.groups(runs)])
        for report, runs in _limits_of(reports)
    ]
    sections += [steps.section(same) for same in _by_machine(kinds["dlrm"])]
    sections += [studies.lookup_section(report) for report in kinds["lookup"]]
    sections += [studies.cache_section(report) for report in kinds["cache"]]
    sections += [studies.ssd_section(report) for report in kinds["ssd"]]
    sections += [wall.section(report) for report in kinds["wall"]]
    sections += [tune.section(report) for report in kinds["tune"]]
    return _with_own_names(sections)


def _limits_of(reports: Sequence[Report]) -> list[tuple[Report, list[Mapping[str, Any]]]]:
    """Each machine's limits once, of `bench limits` where that ran, with the dlrm runs beside."""
    found: dict[tuple[Any, ...], tuple[Report, list[Mapping[str, Any]]]] = {}
    for report in sorted(reports, key=lambda r: shapes.NAMES.index(r["benchmark"])):
        limits = report.get("limits")
        if limits is None:
            continue
        key = (limits["date"], limits["machine"].get("cpu"), limits.get("device"))
        found.setdefault(key, (report, []))[1].extend(report.get("runs", []))
    return list(found.values())


def _by_machine(reports: Sequence[Report]) -> list[list[Report]]:
    """Reports of one machine and commit together, as runs for different sizes of the cache are."""
    found: dict[tuple[Any, ...], list[Report]] = {}
    for report in reports:
        of = report["machine"]
        key = (of.get("cpu"), of.get("cores"), of.get("memory_bytes"), report.get("commit"))
        found.setdefault(key, []).append(report)
    return list(found.values())


def _with_own_names(sections: Sequence[Section]) -> list[Section]:
    taken: dict[str, int] = {}
    result = []
    for section in sections:
        charts = []
        for chart in section.charts:
            taken[chart.name] = taken.get(chart.name, 0) + 1
            again = taken[chart.name]
            charts.append(replace(chart, name=f"{chart.name}-{again}") if again > 1 else chart)
        result.append(replace(section, charts=charts))
    return result
